"""The checker finds what is wrong with a run, by its name and the one who shows it, and nothing else."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from core.ranking import member, order_key
from core.topics import BOARD_CHANGED, DEAD, JUDGED, PLAYER, SUBMITTED
from tests.faults import checker
from tests.faults.checking.findings import VACUOUS
from tests.faults.made import EPOCH, FIRST_US, LAST, LATER, Fact, Line, Made, attempt, pid

Spoil = Callable[[Made], object]


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


def _a_later_record_counts(made: Made) -> None:
    made.facts[3].offset, made.facts[3].told = 2, True


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


# What is wrong in one line --------------------------------------------------------------------


def _line(lines: list[Line], **like: object) -> Line:
    """The last line with these fields."""
    return next(line for line in reversed(lines) if all(line.get(k) == v for k, v in like.items()))


def _value(line: Line, **changes: object) -> None:
    line["value"] = json.dumps(json.loads(line["value"]) | changes)


def _sent(made: Made, action: str) -> Line:
    return _line(made.attempts, action=action, status=202)


def _never_sent(made: Made) -> None:
    made.attempts = [line for line in made.attempts if line["action"] != "b2"]


def _only_refused(made: Made) -> None:
    _sent(made, "b2").update(status=422, code="cooldown", verdict=None)


def _record_of_nobody(made: Made) -> None:
    _submit(made, "cy", "c9", "00")
    made.tables["set_aside"].append({"log": 1, "partition": 1, "record_offset": 3, "reason": "erased"})


def _submit(made: Made, user: str, action: str, fingerprint: str) -> None:
    """One more record on partition 1, read by all."""
    body = {"user_id": user, "action_id": action, "fingerprint": fingerprint}
    like = made.topics[SUBMITTED.name][0]
    made.topics[SUBMITTED.name].append(
        like | {"partition": 1, "offset": 3, "key": user, "value": json.dumps(body)}
    )
    made.tables["progress"][1]["next_offset"] = 4
    _line(made.offsets, topic=SUBMITTED.name, partition=1).update(end=4, committed=4)


def _body_of_nobody(made: Made) -> None:
    row = made.tables["ledger"][6]
    row["fingerprint"] = "0" * 32


def _place_of_a_repeat(made: Made) -> None:
    made.tables["ledger"][3]["kafka_offset"] = 2


def _sum_off_by_one(made: Made) -> None:
    made.tables["entries"][0]["score"] += 1


def _delta_off_by_one(made: Made) -> None:
    """Of ada's last change, in all that follows it."""
    made.tables["deltas"][3]["old_scores"][0] -= 1


def _negative_count(made: Made) -> None:
    made.tables["deltas"][5]["count"] = -2
    _value(made.topics[BOARD_CHANGED.name][5], count=2)


def _delta_adds_up_otherwise(made: Made) -> None:
    """A total that the rows of its revision do not give, and that everybody shows."""
    made.tables["deltas"][1]["new_scores"][0] = made.tables["deltas"][2]["old_scores"][0] = 11
    body = json.loads(made.topics[BOARD_CHANGED.name][1]["value"])
    body["changed"][0]["score"] = body["top"][0]["score"] = 11
    _value(made.topics[BOARD_CHANGED.name][1], **body)
    _line(made.attempts, action="a1", status=200)["score"] = 11
    made.tables["deltas"][2]["new_scores"][0] = made.tables["deltas"][3]["old_scores"][0] = 11


def _row_without_effect(made: Made) -> None:
    """The rows are there and their revision changes nothing for ada; what is shown is as before."""
    for name in ("players", "old_scores", "new_scores", "old_reached", "new_reached"):
        del made.tables["deltas"][2][name][0]
    body = json.loads(made.topics[BOARD_CHANGED.name][2]["value"])
    ada = made.states[2]["ada"]
    made.states[3] = made.states[3] | {"ada": ada}
    _value(made.topics[BOARD_CHANGED.name][2], changed=body["changed"][1:], top=made._entries(3))
    made._readers()


def _copy_lacks_somebody(made: Made) -> None:
    made.whole["z"].pop()


def _copy_has_another_score(made: Made) -> None:
    _, score, at = made.top(LAST)[1]
    made.whole["z"][1] = member(score + 1, at, "bo").hex()
    made.whole["m"]["bo"] = order_key(score + 1, at).hex()


def _copy_has_another_name(made: Made) -> None:
    made.whole["m"]["ada"] = made.whole["m"]["ada"][:32] + b"Eve".hex()


def _copy_behind(made: Made) -> None:
    made.whole["meta"]["revision"] = "5"


def _copy_of_another_history(made: Made) -> None:
    made.whole["meta"]["digest"] = "00" * 32


def _no_copy(made: Made) -> None:
    made.whole["meta"] = {}


def _copy_out_of_order(made: Made) -> None:
    made.whole["z"].reverse()


def _copy_with_scores(made: Made) -> None:
    made.whole["scores_not_zero"] = 1


def _half_a_copy(made: Made) -> None:
    """A copy that may be read, since its sizes agree, and that lacks somebody."""
    made.looks[0] |= {"count": 1, "sizes": [1, 1], "top": made.looks[0]["top"][:1]}


def _older_than_asked_for(made: Made) -> None:
    made.pages[2] = made.player_page("bo", 5, 12.5) | {"at_least": f"{EPOCH}-6"}
    del made.pages[1]


def _reader_left_behind(made: Made) -> None:
    made.frames.remove(_line(made.frames, socket=1))


def _reader_shown_nothing(made: Made) -> None:
    made.frames.remove(_line(made.frames, socket=2))


def _another_content(made: Made) -> None:
    _line(made.frames, socket=1)["body"] = made.frame(1, "scores", 5, 0.0)["body"]


def _tie_the_other_way(made: Made) -> None:
    made.pages[1]["entries"].reverse()


def _socket_goes_back(made: Made) -> None:
    made.frames.append(made.frame(4, "scores", 6, 13.0))
    made.frames.append(made.frame(4, "scores", 5, 14.0))
    made.frames.append(made.frame(4, "scores", 6, 15.0))


def _page_goes_back(made: Made) -> None:
    made.pages.append(made.page(5, 13.0))


def _revision_of_nobody(made: Made) -> None:
    made.pages[1]["revision"] = LAST + 1
    made.pages.pop()


def _count_below_zero(made: Made) -> None:
    made.pages[1]["count"] = -1


def _rank_one_too_high(made: Made) -> None:
    made.pages[2]["entries"][0][0] = 1


def _receipt_of_another_score(made: Made) -> None:
    _line(made.attempts, action="a1", status=200)["score"] = 9


def _mover_of_another_score(made: Made) -> None:
    _line(made.frames, socket=2)["body"]["data"]["new_score"] = 9


def _not_the_periods_own(made: Made) -> None:
    """Revision 6 changes nothing of the period here, so what shows the period names 5."""
    del made.tables["deltas"][5]
    made.topics[BOARD_CHANGED.name].pop()
    _line(made.offsets, topic=BOARD_CHANGED.name, partition=0)["end"] -= 1
    made.tables["ledger"][6] |= {"verdict": "held", "reason": {"code": "rate"}}


def _chain_broken(made: Made) -> None:
    _value(made.topics[BOARD_CHANGED.name][3], previous=2)


def _ledger_chain_broken(made: Made) -> None:
    made.tables["deltas"][3]["previous"] = 2
    _value(made.topics[BOARD_CHANGED.name][3], previous=2)


def _top_unlike_the_deltas(made: Made) -> None:
    body = json.loads(made.topics[BOARD_CHANGED.name][3]["value"])
    body["top"][0]["score"] += 1
    _value(made.topics[BOARD_CHANGED.name][3], top=body["top"])


def _change_left_out(made: Made) -> None:
    _value(made.topics[BOARD_CHANGED.name][3], changed=[])


def _two_digests(made: Made) -> None:
    _value(made.topics[BOARD_CHANGED.name][3], digest="00" * 32)


def _revision_left_out(made: Made) -> None:
    for line in made.tables["revisions"][5:]:
        line["revision"] = 7


def _epoch_goes_back(made: Made) -> None:
    made.tables["epochs"].insert(0, {"epoch": "00", "continues_epoch": None, "continues_revision": None})
    made.tables["revisions"][3]["epoch"] = "00"


def _copy_shows_another_digest(made: Made) -> None:
    made.looks[0]["digest"] = "00" * 32


def _erased_is_shown(made: Made) -> None:
    entries = [*made.pages[1]["entries"], [3, "dee", None, 1, made.page(3, 0)["entries"][2][4]]]
    made.pages[1] |= {"entries": entries, "count": 3}


def _not_read_to_the_end(made: Made) -> None:
    made.tables["progress"][1]["next_offset"] = 2


def _group_ahead(made: Made) -> None:
    _line(made.offsets, topic=SUBMITTED.name, partition=1)["committed"] = 503


def _record_without_a_place(made: Made) -> None:
    _submit(made, "direct-1", "x1", "00")


def _poison_without_a_place(made: Made) -> None:
    made.tables["set_aside"].clear()
    made.topics[DEAD.name].clear()
    _line(made.offsets, topic=DEAD.name, partition=0)["end"] = 0


def _no_letter(made: Made) -> None:
    made.topics[DEAD.name].clear()
    _line(made.offsets, topic=DEAD.name, partition=0)["end"] = 0


def _letter_without_reason(made: Made) -> None:
    made.topics[DEAD.name][0]["headers"] = {}


def _letter_of_other_bytes(made: Made) -> None:
    made.topics[DEAD.name][0]["value"] = "{}"


def _letter_of_a_good_record(made: Made) -> None:
    letter = made.topics[DEAD.name][0] | {"offset": 1, "key": f"{SUBMITTED.name}-1-0"}
    made.topics[DEAD.name].append(letter)
    _line(made.offsets, topic=DEAD.name, partition=0)["end"] = 2


def _answer_500(made: Made) -> None:
    made.attempts.append(_sent(made, "b2") | {"status": 500, "code": "internal", "verdict": None})


def _refused_without_a_word(made: Made) -> None:
    _line(made.attempts, status=503)["retry_after"] = None


def _left_hanging(made: Made) -> None:
    _line(made.attempts, status=0)["code"] = "timeout"


def _confirmed_on_hope(made: Made) -> None:
    """202 while the broker was away: what is in the ledger came later, by the record of a retry."""
    made.attempts.append(_sent(made, "b1") | {"type": "commit", "sent_points": None, "begun_s": 2.0})


def _repeat_of_nothing(made: Made) -> None:
    about = attempt(Fact("cy", "c9", "commit", 1, 0, 1, 9)) | {"purpose": "other", "replayed": True}
    made.attempts.append(about)


def _receipt_of_another_verdict(made: Made) -> None:
    _line(made.attempts, action="a1", status=200)["verdict"] = "held"


def _receipt_of_another_reason(made: Made) -> None:
    _sent(made, "c1").update(status=200, verdict="held", reason="cooldown", points=60)


def _row_changed_afterwards(made: Made) -> None:
    """A sound ledger in all, but not the one that its digests are of."""
    made.tables["ledger"][6]["occurred_at"] += 1
    record = _line(made.topics[JUDGED.name], offset=6)
    _value(record, occurred_at=json.loads(record["value"])["occurred_at"][:-2] + "3Z")


def _erased_is_in_the_copy(made: Made) -> None:
    made.whole["z"].append(member(1, FIRST_US, "dee").hex())
    made.whole["m"]["dee"] = order_key(1, FIRST_US).hex()
    made.whole["meta"]["count"] = "3"


def _erased_by_half(made: Made) -> None:
    made.tables["players"][3]["username"] = "Dee"


def _no_tombstone(made: Made) -> None:
    made.topics[PLAYER.name].pop()
    _line(made.offsets, topic=PLAYER.name, partition=0)["end"] -= 1


def _second_judgement(made: Made) -> None:
    made.tables["ledger"][4]["kind"] = "decision"


def _epoch_of_nobody(made: Made) -> None:
    made.looks.append(made.look(6, 13.0) | {"epoch": LATER})


def _never_whole_again(made: Made) -> None:
    made.events = [event for event in made.events if event["what"] != "recovered"]
    made.events.append(made.events[0] | {"at_s": 21.0, "what": "end", "detail": {}})


def _whole_again_too_late(made: Made) -> None:
    _line(made.events, what="recovered")["detail"] = {"seconds": 31.0}


def _verdict_not_told(made: Made) -> None:
    made.topics[JUDGED.name].pop()
    _line(made.offsets, topic=JUDGED.name, partition=0)["end"] -= 1


def _verdict_told_otherwise(made: Made) -> None:
    _value(made.topics[JUDGED.name][6], verdict="held")


def _verdict_of_another_instant(made: Made) -> None:
    _value(made.topics[JUDGED.name][6], received_at="2026-11-21T00:00:00.000000Z")


def _verdict_changed_over_a_redelivery(made: Made) -> None:
    again = made.topics[JUDGED.name][6] | {"offset": 7}
    _value(again, points=2)
    made.topics[JUDGED.name].append(again)
    _line(made.offsets, topic=JUDGED.name, partition=0)["end"] = 8


def _verdict_of_nobody(made: Made) -> None:
    invented = made.topics[JUDGED.name][6] | {"offset": 7}
    _value(invented, action_id="zz")
    made.topics[JUDGED.name].append(invented)
    _line(made.offsets, topic=JUDGED.name, partition=0)["end"] = 8


def _verdicts_out_of_order(made: Made) -> None:
    records = made.topics[JUDGED.name]
    records[0]["value"], records[6]["value"] = records[6]["value"], records[0]["value"]


def _change_not_told(made: Made) -> None:
    del made.topics[BOARD_CHANGED.name][3]
    for offset, record in enumerate(made.topics[BOARD_CHANGED.name]):
        record["offset"] = offset
    _line(made.offsets, topic=BOARD_CHANGED.name, partition=0)["end"] -= 1


def _player_told_otherwise(made: Made) -> None:
    _value(made.topics[PLAYER.name][0], username="Eve")


def _record_of_the_refused(made: Made) -> None:
    refused = _line(made.attempts, action="c0")
    _submit(made, "cy", "c0", Fact("cy", "c0", refused["type"], 0, 0, 1, 3).fingerprint)
    made.tables["set_aside"].append({"log": 1, "partition": 1, "record_offset": 3, "reason": "erased"})


AFTER: list[tuple[Spoil, str, str]] = [
    (_never_sent, "I-2", "action b2 of bo: expected no row: nobody sent it"),
    (_only_refused, "I-2", "action b2 of bo: expected no row: only ever refused, {422}"),
    (_record_of_nobody, "I-2", "action c9 of cy: expected no record: nobody sent it"),
    (_body_of_nobody, "I-3", "action b2 of bo: expected one of the bodies sent"),
    (_place_of_a_repeat, "I-3", "action a2 of ada: expected the first record to count, offset 1"),
    (_sum_off_by_one, "I-4", "the entry of ada: expected (16, "),
    (_delta_off_by_one, "I-4", "ada at revision 4, before: expected (11, "),
    (_delta_adds_up_otherwise, "I-4", "ada at revision 2, recounted: expected (10, "),
    (_row_without_effect, "I-4", "ada at revision 3: expected a change to (11, "),
    (_negative_count, "I-4", "the count at revision 6: expected 2, found -2"),
    (_copy_lacks_somebody, "I-5", "bo in the copy"),
    (_copy_has_another_score, "I-5", "bo in the copy: expected (8, "),
    (_copy_has_another_name, "I-5", "ada in the copy"),
    (_copy_behind, "I-5", "the copy's position: expected 6"),
    (_copy_of_another_history, "I-5", "the copy's digest at 6"),
    (_no_copy, "I-5", "the copy in Redis: expected revision 6, found none"),
    (_copy_out_of_order, "I-5", "the copy's order"),
    (_copy_with_scores, "I-5", "members of the copy with a score: expected 0, found 1"),
    (_half_a_copy, "I-6", "the count of the copy at 5.0 s, at revision 3: expected 3, found 1"),
    (_older_than_asked_for, "I-6", f"expected at least {EPOCH}-6, found {EPOCH}-5"),
    (_reader_left_behind, "I-7", "the last frame to socket 1 of scores"),
    (_reader_shown_nothing, "I-7", "the last frame to socket 2 of scoreboard"),
    (_another_content, "I-8", "the top of a frame of scores to socket 1 at 12.0 s, at revision 6"),
    (_tie_the_other_way, "I-8", "the top of the top page"),
    (_socket_goes_back, "I-8", "socket 4 of scores at 14.0 s"),
    (_page_goes_back, "I-8", "the top page of 13.0 to 13.1 s"),
    (_revision_of_nobody, "I-8", "the revision of the top page of 12.0"),
    (
        _count_below_zero,
        "I-8",
        "the count of the top page of 12.0 to 12.1 s, at revision 6: expected 2, found -1",
    ),
    (_rank_one_too_high, "I-8", "the rank of bo of the player page"),
    (_receipt_of_another_score, "I-8", "the score of ada of the receipt of a1"),
    (_mover_of_another_score, "I-8", "the score of bo of a frame of scoreboard"),
    (
        _chain_broken,
        "I-8",
        "the revision before of the record of revision 4, at revision 4: expected 3, found 2",
    ),
    (_ledger_chain_broken, "I-8", "the delta of revision 4: expected previous 3, found 2"),
    (_top_unlike_the_deltas, "I-8", "the top of the record of revision 4"),
    (_change_left_out, "I-8", "the change of ada of the record of revision 4"),
    (_two_digests, "I-8", "the digest of the record of revision 4"),
    (_copy_shows_another_digest, "I-8", "the digest of the copy at 5.0 s"),
    (
        _not_read_to_the_end,
        "I-9",
        "partition 1 of leaderboard.action.submitted.v1: expected read to its end, 3",
    ),
    (_group_ahead, "I-9", "the group at partition 1"),
    (_record_without_a_place, "I-9", "the record at 3 of partition 1, action x1 of direct-1"),
    (_poison_without_a_place, "I-9", "the record at 1 of partition 2, no action"),
    (_no_letter, "I-10", "the record at 1 of partition 2: expected a letter"),
    (_letter_without_reason, "I-10", "the reason of letter leaderboard.action.submitted.v1-2-1"),
    (
        _letter_of_other_bytes,
        "I-10",
        "letter leaderboard.action.submitted.v1-2-1: expected the record's bytes",
    ),
    (_letter_of_a_good_record, "I-10", "v1-1-0: expected set aside"),
    (_answer_500, "I-11", "action b2 of bo: expected a confirmation, a refusal or 503, found 500 internal"),
    (_refused_without_a_word, "I-11", "action a2 of ada: expected Retry-After"),
    (_left_hanging, "I-11", "action a2 of ada: expected 503 within some 4 s, found no answer for 0.1 s"),
    (_confirmed_on_hope, "I-12", "action b1 of bo: expected a record on the log"),
    (_repeat_of_nothing, "I-14", "action c9 of cy: expected a record on the log"),
    (
        _receipt_of_another_verdict,
        "I-15",
        "the verdict of action a1 of ada: expected held as its receipt says",
    ),
    (_receipt_of_another_reason, "I-15", "the reason of action c1 of cy: expected cooldown"),
    (_row_changed_afterwards, "I-15", "the digest of revision 6"),
    (_erased_is_shown, "I-18", "dee of the top page of 12.0"),
    (_erased_is_in_the_copy, "I-18", "dee: expected not in the copy of main:all-time"),
    (_erased_by_half, "I-18", f"player {pid(4)}: expected no id and no name"),
    (_no_tombstone, "I-18", f"player {pid(4)}: expected a tombstone last"),
    (_epoch_of_nobody, "I-17", "the epoch of the copy at 13.0 s"),
    (_never_whole_again, "I-22", "row X-1: expected as before within 30 s, found never"),
    (_whole_again_too_late, "I-22", "row X-1: expected as before within 30 s, found after 31.0 s"),
    (_verdict_not_told, "I-24", "the verdict on b2 of bo: expected a record on the topic"),
    (
        _verdict_told_otherwise,
        "I-24",
        f"verdict of the verdict on b2 of {pid(2)}: expected accepted, found held",
    ),
    (_verdict_of_another_instant, "I-24", "received_at of the verdict on b2"),
    (_verdict_changed_over_a_redelivery, "I-24", f"the verdict on b2 of {pid(2)}: expected repeated as"),
    (_verdict_of_nobody, "I-24", f"the verdict on zz of {pid(2)}: expected no record"),
    (_verdicts_out_of_order, "I-24", "the verdict on "),
    (_change_not_told, "I-24", "revision 4 of main:all-time"),
    (_player_told_otherwise, "I-24", f"player {pid(1)}"),
    (_record_of_the_refused, "I-26", "action c0 of cy: expected no record: it was told 422"),
]


def _id(part: object) -> str:
    return part.__name__.strip("_") if callable(part) else "" if " " in str(part) else str(part)


@pytest.mark.parametrize(("spoil", "invariant", "witness"), AFTER, ids=lambda part: _id(part))
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
    _sum_off_by_one(made)
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
        (_second_judgement, "I-19", "row 0 of c1 of cy: expected judged, found decision"),
        (_revision_left_out, "I-8", "the ledger's revisions: expected 6, found 7"),
        (_epoch_goes_back, "I-8", "the epoch of revision 4"),
        (_not_the_periods_own, "I-8", "expected the period's own revision, 5, found 6"),
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
    _line(made.topics[SUBMITTED.name], partition=0, offset=2)["at_s"] = 0.1


def _nothing_redelivered(made: Made) -> None:
    made.events[0]["detail"]["wants"].append("redelivered")
    made.events.append(
        made.events[0] | {"at_s": 21.0, "what": "end", "detail": {"observed": {"redelivered": 0}}}
    )


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
    _sum_off_by_one(made)
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
