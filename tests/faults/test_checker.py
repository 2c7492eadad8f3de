"""The checker finds what is wrong with a run, by its name and the one who shows it, and nothing else."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest

from core.topics import BOARD_CHANGED, SUBMITTED
from tests.faults import checker, spoiled
from tests.faults.checking.findings import VACUOUS
from tests.faults.made import EPOCH, ERASED, ERASED_AT, ERASED_S, LAST, Fact, Made, attempt
from tests.faults.spoiled import Spoil


def _found(made: Made, run: Path) -> dict[str, str]:
    return _found_in(made.write(run))


def _found_in(run: Path) -> dict[str, str]:
    findings = checker.check(run)
    return {invariant: str(witness) for invariant, witness in findings.witnesses.items()}


def test_a_run_that_is_right_is_found_right(tmp_path: Path):
    findings = checker.check(Made().write(tmp_path))

    assert findings.wrong == []
    assert findings.looked_at == {
        "confirmed": 7,
        "retried": 1,
        "receipts": 1,
        "rows": 7,
        "attempts": 11,
        "durable": 7,
        "digests": 6,
        "entries": 3,
        "copied": 2,
        "partitions": 3,
        "records": 9,
        "set aside": 1,
        "verdicts": 7,
        "erased": 1,
        "at least": 1,
        "sockets at rest": 3,
        "shown": 19,
        "recoveries": 1,
    }


# What is wrong in the ledger, with all that follows from it ------------------------------------


def _lost(made: Made) -> None:
    made.facts[6].revision = 0


def _counted_twice(made: Made) -> None:
    made.facts.append(Fact("ada", "a1", "level_complete", 10, 6, 0, 4, told=False))


def _worth_more(made: Made) -> None:
    made.facts[0].points = 11


def _order_turned(made: Made) -> None:
    made.facts[0].offset, made.facts[3].offset = 1, 0


def _no_reason(made: Made) -> None:
    made.facts[4].verdict = "lost"


def _decision_without_a_judgement(made: Made) -> None:
    made.facts.append(Fact("cy", "c1", "client_points", 60, 6, 1, 1, sent_points=60, seq=2))


BEFORE: list[tuple[Spoil, str, str]] = [
    (_lost, "I-1", "action b2 of bo: expected a row, found none, though it was told 202 at 1.1 s"),
    (_no_reason, "I-1", "action c1 of cy"),
    (_counted_twice, "I-3", "action a1 of ada: expected one row 0, found two, in lines 1 and 8"),
    (_worth_more, "I-3", "the points of action a1 of ada: expected 10, found 11"),
    (_decision_without_a_judgement, "I-19", "row 2 of c1 of cy: expected row 1, in a batch after 104"),
    (_order_turned, "I-16", "a1 of ada, offset 1 of 0: expected revision 3 or later"),
]


@pytest.mark.parametrize(("spoil", "invariant", "witness"), BEFORE, ids=lambda part: _id(part))
def test_what_is_wrong_in_the_ledger_is_found(tmp_path: Path, spoil: Spoil, invariant: str, witness: str):
    made = Made()
    sent = copy.deepcopy(made.attempts)
    spoil(made)
    made.derive()
    made.attempts = sent if spoil is _counted_twice else made.attempts

    found = _found(made, tmp_path)

    assert list(found) == [invariant], found
    assert witness in found[invariant]


def _id(part: object) -> str:
    return part.__name__.strip("_") if callable(part) else "" if " " in str(part) else str(part)


@pytest.mark.parametrize(("spoil", "invariant", "witness"), spoiled.CASES, ids=lambda part: _id(part))
def test_what_is_wrong_in_one_place_is_found(tmp_path: Path, spoil: Spoil, invariant: str, witness: str):
    made = Made()
    spoil(made)

    found = _found(made, tmp_path)

    assert list(found) == [invariant], found
    assert witness in found[invariant]


def test_decisions_count_from_their_revision_on(tmp_path: Path):
    made = Made()
    made.facts += [
        Fact("cy", "c1", "client_points", 60, 6, 1, 1, sent_points=60, seq=1),
        Fact("ada", "a3", "client_points", 5, 6, 0, 3, sent_points=5, verdict="rejected", seq=1),
        Fact("bo", "b1", "client_points", 7, 6, 1, 0, sent_points=7, verdict="rejected", seq=1),
    ]
    made.derive()

    findings = checker.check(made.write(tmp_path))

    assert findings.wrong == []
    assert [user for user, _, _ in made.top(LAST)] == ["cy", "ada", "bo"]


def test_of_each_dump_of_a_run_what_is_wrong_is_found(tmp_path: Path):
    made = Made()
    good = copy.deepcopy(made)
    spoiled.sum_off_by_one(made)
    made.write(tmp_path)
    good.write(tmp_path, 2)

    assert checker.check(tmp_path).wrong == []
    assert list(checker.check_every_dump(tmp_path).witnesses) == ["I-4"]


def test_nobody_is_shown_under_the_name_of_what_was_lost(tmp_path: Path):
    """Of an epoch that is over only what was shown is known: one revision of it is one content."""
    made = Made()
    made.restored()
    made.pages.append(made.page(3, 13.0) | {"epoch": EPOCH, "revision": LAST + 5})
    made.pages.sort(key=lambda page: page["begun_s"])

    assert _found(made, tmp_path / "one") == {}
    made.looks.insert(0, made.look(2, 13.0) | {"epoch": EPOCH, "revision": LAST + 5})
    found = _found(made, tmp_path / "two")
    assert list(found) == ["I-8"]
    assert f"at lost revision {LAST + 5}" in found["I-8"]


@pytest.mark.parametrize(("at_s", "wrong"), [(ERASED_S + 0.1, []), (ERASED_S - 0.1, ["I-8"])])
def test_who_was_erased_is_missing_only_from_records_sent_since(
    tmp_path: Path, at_s: float, wrong: list[str]
):
    """Of the revisions before, too, which name them wherever they were sent before."""
    made = Made()
    changes = made.topics[BOARD_CHANGED.name]
    before = json.loads(changes[ERASED_AT - 2]["value"])
    assert [entry["user_id"] for entry in before["top"]][-1] == ERASED
    again = before | {"top": before["top"][:-1]}
    changes.append(changes[-1] | {"at_s": at_s, "offset": len(changes), "value": json.dumps(again)})

    assert list(_found(made, tmp_path)) == wrong


def test_what_an_earlier_dump_holds_may_not_change(tmp_path: Path):
    made = Made()
    made.write(tmp_path)
    changed = Made()
    changed.facts[4].verdict = "rejected"
    changed.derive()

    found = _found_in(changed.write(tmp_path, 2))

    assert list(found) == ["I-15"]
    assert "the digest of revision 4" in found["I-15"]


def test_a_row_may_not_vanish(tmp_path: Path):
    """Out of the earlier dump's table the last row of a fuller ledger is gone, digests and all else alike."""
    made = Made()
    earlier = copy.deepcopy(made)
    earlier.tables["ledger"].append(made.tables["ledger"][6] | {"action_id": "b3"})
    earlier.write(tmp_path)

    found = _found_in(made.write(tmp_path, 2))

    assert list(found) == ["I-15"]
    assert "action b3 of bo: expected accepted, as before, found no row any more" in found["I-15"]


def _kept(tmp_path: Path, log: str) -> Path:
    """A right run with a service's log beside it, as the rig keeps them."""
    (tmp_path / "data" / "logs").mkdir(parents=True)
    (tmp_path / "data" / "valkey.password").write_text("xyzzy-7\n")
    (tmp_path / "data" / "logs" / "push.log").write_text(f'{{"event":"started"}}\n{log}\n')
    return Made().write(tmp_path / "run")


@pytest.mark.parametrize(
    "secret", ["eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ1MSJ9.c2ln", "redis://:xyzzy-7@127.0.0.1"]
)
def test_no_log_may_hold_a_secret(tmp_path: Path, secret: str):
    found = _found_in(_kept(tmp_path, f'{{"event":"x","detail":"{secret}"}}'))

    assert list(found) == ["I-27"]
    assert "push.log:2" in found["I-27"]


def test_a_log_without_secrets_is_right(tmp_path: Path):
    findings = checker.check(_kept(tmp_path, '{"event":"x","token":"***"}'))

    assert findings.wrong == []
    assert findings.looked_at["logs"] == 1


@pytest.mark.parametrize(
    ("spoil", "invariant", "witness"),
    [
        (spoiled.second_judgement, "I-19", "row 0 of c1 of cy: expected judged, found decision"),
        (spoiled.revision_left_out, "I-8", "the ledger's revisions: expected 6, found 7"),
        (spoiled.epoch_goes_back, "I-8", "the epoch of revision 4"),
        (spoiled.not_the_periods_own, "I-8", "expected the period's own revision, 5, found 6"),
    ],
    ids=lambda part: _id(part),
)
def test_a_ledger_that_cannot_be_is_found(tmp_path: Path, spoil: Spoil, invariant: str, witness: str):
    """None of these comes alone: other places no longer fit either."""
    made = Made()
    spoil(made)

    assert witness in _found(made, tmp_path)[invariant]


# Against passing without having looked


def _nothing_confirmed(made: Made) -> None:
    for line in made.attempts:
        line |= {"status": 0, "code": "reset", "verdict": None, "score": None, "replayed": None}


def _nothing_shown(made: Made) -> None:
    made.pages, made.looks, made.attempts = [], [], [a | {"score": None} for a in made.attempts]
    made.frames = []
    made.topics[BOARD_CHANGED.name] = [
        record | {"value": json.dumps(json.loads(record["value"]) | {"window": "other"})}
        for record in made.topics[BOARD_CHANGED.name]
    ]


def _no_refusals(made: Made) -> None:
    made.attempts = [line for line in made.attempts if line["status"] != 503]


def _no_duplicates(made: Made) -> None:
    """The one there is was written before the row began."""
    spoiled.last(made.topics[SUBMITTED.name], partition=0, offset=2)["at_s"] = 0.1


def _transcript_with_a_gap(made: Made) -> None:
    del made.topics[SUBMITTED.name][2]


@pytest.mark.parametrize(
    ("spoil", "witness"),
    [
        (_nothing_confirmed, "expected some confirmed, found none"),
        (_nothing_shown, "expected some shown, found none"),
        (_no_refusals, "row X-1: expected some 503, found none"),
        (_no_duplicates, "row X-1: expected some duplicates, found none"),
        (
            _transcript_with_a_gap,
            "partition 0 of leaderboard.action.submitted.v1: expected a transcript of 4",
        ),
    ],
    ids=lambda part: _id(part),
)
def test_a_run_that_proves_nothing_has_failed(tmp_path: Path, spoil: Spoil, witness: str):
    made = Made()
    spoil(made)

    found = _found(made, tmp_path)

    assert list(found) == [VACUOUS], found
    assert witness in found[VACUOUS]


# The command


def test_a_good_run_is_told_with_its_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = Made()
    made.write(tmp_path)

    code = checker.main([str(tmp_path), "--every-dump"])

    out = capsys.readouterr().out
    assert code == 0, out
    assert "11 attempts, 6 202, 1 503" in out
    assert "1 duplicates" in out
    assert "1 builds" in out
    assert "1 kills" in out
    assert "all holds" in out


def test_a_bad_run_is_told_with_its_first_witness(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = Made()
    spoiled.sum_off_by_one(made)
    made.write(tmp_path)

    code = checker.main([str(tmp_path)])

    assert code == 1
    assert capsys.readouterr().out.startswith("I-4: the entry of ada: expected (16, ")


def test_a_run_that_never_came_to_rest_proves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.rmtree(Made().write(tmp_path) / "dumps")

    code = checker.main([str(tmp_path)])

    assert code == 1
    assert "expected a dump, as a run leaves at rest, found none" in capsys.readouterr().out


def test_what_was_seen_after_the_dump_does_not_count(tmp_path: Path):
    made = Made()
    late = attempt(Fact("cy", "c7", "commit", 1, 0, 1, 9)) | {"begun_s": 19.9, "ended_s": 20.5}
    made.attempts.append(late)
    made.frames.append(made.frame(1, "scores", 6, 21.0) | {"revision": 7})
    made.pages.append(made.page(6, 21.0) | {"revision": 7})

    assert _found(made, tmp_path) == {}
