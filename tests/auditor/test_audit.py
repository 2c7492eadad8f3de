"""Each kind of wrongness is counted once, with its witness; what is right is not counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from auditor.audit import Seen
from auditor.comparing import Copy, Page, Shown
from auditor.records import MAIN
from tests.auditor.world import (
    EPOCH,
    Watch,
    World,
    encoded,
    horizon,
    mutated,
    of_twelve,
    pid,
    take,
    watched,
)


def test_a_right_history_is_compared_and_nothing_is_wrong():
    world = of_twelve()
    watch = watched(world)

    watch.take_rest()

    assert watch.wrong == []
    assert [at for what, at in watch.report.made if what == "publication"] == [2, 3]
    assert watch.audit.at == 3


def test_an_empty_board_and_a_revision_that_shows_nothing_are_right():
    world = World()
    world.revise()
    watch = watched(world)
    world.revise(("act", "ada", "a", 5, "held"))
    watch.take_rest()
    watch.audit.observe(Seen("page", "1", EPOCH, 1, Page(1, [], 0, 10), 0.0))
    watch.audit.observe(Seen("frame", "", EPOCH, 1, Page(1, [], 0, 10), 0.0))

    assert watch.wrong == []
    assert ("page", 1) in watch.report.made


# publications


def _spoil(change: Callable[[dict[str, Any]], None]) -> Callable[[World], Watch]:
    def spoilt(world: World) -> Watch:
        watch = watched(world)
        take(watch.audit, world.revisions[1])
        wrong = mutated(world.revisions[2])
        change(wrong.publication or {})
        take(watch.audit, wrong)
        watch.go_on()
        return watch

    return spoilt


def _line(record: dict[str, Any], part: str, user: str) -> dict[str, Any]:
    (line,) = [line for line in record[part] if line["user_id"] == user]
    return line  # type: ignore[no-any-return]


def _lose_an_action(record: dict[str, Any]) -> None:
    for part in ("changed", "top"):
        _line(record, part, "u11")["score"] -= 10


def _count_twice(record: dict[str, Any]) -> None:
    for part in ("changed", "top"):
        _line(record, part, "u05")["score"] += 100


def _turn_the_tie(record: dict[str, Any]) -> None:
    # u11 and u12 both have 120
    top = record["top"]
    at = [line["user_id"] for line in top].index("u12")
    top[at], top[at + 1] = top[at + 1], top[at]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(_lose_an_action, ("publication", 3, "score", "u11"), id="a missed action"),
        pytest.param(_count_twice, ("publication", 3, "score", "u05"), id="a doubled action"),
        pytest.param(_turn_the_tie, ("publication", 3, "order", "u11"), id="a tie the wrong way round"),
        pytest.param(lambda r: r.update(count=13), ("publication", 3, "count", None), id="the count"),
        pytest.param(
            lambda r: _line(r, "top", "u10").update(reached_at="2026-01-01T00:00:00.000001Z"),
            ("publication", 3, "reached_at", "u10"),
            id="an instant",
        ),
        pytest.param(
            lambda r: r["changed"].pop(), ("publication", 3, "not_named", "u11"), id="a change not named"
        ),
        pytest.param(
            lambda r: _line(r, "changed", "u05").update(score=None, reached_at=None),
            ("publication", 3, "gone", "u05"),
            id="gone who is there",
        ),
        pytest.param(
            lambda r: r["top"][0].update(user_id="nobody"),
            ("publication", 3, "unknown_user", "nobody"),
            id="somebody nobody knows",
        ),
        pytest.param(lambda r: r["top"].pop(), ("publication", 3, "length", None), id="too short a top"),
        pytest.param(lambda r: r.update(previous=1), ("chain", 3, "previous", None), id="the chain"),
    ],
)
def test_a_publication_that_is_wrong_is_counted_once(
    change: Callable[[dict[str, Any]], None], expected: tuple[Any, ...]
):
    watch = _spoil(change)(of_twelve())

    assert watch.wrong == [expected]


def test_a_score_that_falls_though_the_topic_says_nothing_of_it_is_wrong():
    world = of_twelve()
    watch = watched(world)
    take(watch.audit, world.revisions[1])
    take(watch.audit, world.revisions[2])
    world.revise(("act", "u05", "d", 1))
    fallen = mutated(world.last)
    assert fallen.publication is not None
    for part in ("changed", "top"):
        _line(fallen.publication, part, "u05")["score"] = 3
    take(watch.audit, fallen)
    watch.go_on()

    assert len(watch.wrong) == 1
    ((_, _, wrong),) = watch.report.mismatches
    assert (wrong.kind, wrong.user, wrong.expected, wrong.found) == ("score", "u05", 151, 3)


def test_one_wrong_thing_that_stands_on_is_counted_once():
    world = of_twelve()
    watch = watched(world)
    for revision in range(4, 9):
        world.revise(("act", "u01", f"more-{revision}", 1))
    for revision in world.revisions[1:]:
        wrong = mutated(revision)
        assert wrong.publication is not None
        _line(wrong.publication, "top", "u12")["score"] += 1
        take(watch.audit, wrong)
    watch.go_on()

    assert watch.wrong == [("publication", 2, "score", "u12")]


def test_a_revision_without_its_publication_is_missed_with_who_changed():
    world = of_twelve()
    watch = watched(world)
    silent = mutated(world.revisions[1])
    silent.publication = None
    take(watch.audit, silent)
    watch.go_on(2)

    assert watch.wrong == [("publication", 2, "missing", "u03")]


def test_publications_that_kafka_lost_are_not_missed():
    world = of_twelve()
    watch = watched(world)
    silent = mutated(world.revisions[1])
    silent.publication = None
    take(watch.audit, silent)
    watch.audit.publications_lost()
    take(watch.audit, world.revisions[2])
    watch.go_on()

    assert watch.wrong == []


# repeats


def test_repeats_say_the_same_and_are_right():
    world = of_twelve()
    watch = watched(world)
    watch.take_rest()
    for revision in world.revisions:
        take(watch.audit, revision)
    watch.go_on()

    assert watch.wrong == []


def test_a_revision_repeated_with_another_content_is_wrong():
    world = of_twelve()
    watch = watched(world)
    watch.take_rest()
    again = mutated(world.revisions[2])
    assert again.publication is not None
    _line(again.publication, "changed", "u05")["score"] += 1
    take(watch.audit, again)

    assert watch.wrong == [("publication", 3, "repeat", "u05")]


def test_one_revision_has_one_digest_whoever_tells_it():
    world = of_twelve()
    watch = watched(world)
    watch.take_rest()
    other = dict(world.last.publication or {}, board="teams", digest="0" * 64)
    watch.audit.take_publication(b"teams:all-time", encoded(other))

    assert watch.wrong == [("digest", 3, "digest", None)]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        pytest.param({"points": 11}, "repeat", id="another worth under the same revision"),
        pytest.param({"verdict": "held"}, "repeat", id="another verdict under the same revision"),
        pytest.param({"revision": 2}, "doubled", id="judged a second time"),
        pytest.param({"action_id": "new"}, "late", id="an action that was not there when it was complete"),
    ],
)
def test_a_judged_record_that_comes_again_and_differs_is_wrong(change: dict[str, Any], kind: str):
    world = of_twelve()
    watch = watched(world, seen=2)
    watch.audit.take_judged(encoded(world.revisions[0].judged[4] | change))

    ((what, _, wrong),) = watch.report.mismatches
    assert (what, wrong.kind) == ("action", kind)
    assert "u05" in (wrong.user or "") or pid("u05") in (wrong.user or "")


@pytest.mark.parametrize("topic", ["take_judged", "take_publication", "take_person"])
def test_a_record_that_nobody_can_read_is_counted_and_stops_nothing(topic: str):
    world = of_twelve()
    watch = watched(world)
    take_it = getattr(watch.audit, topic)
    {
        "take_judged": lambda: take_it(b"{]"),
        "take_publication": lambda: take_it(MAIN, b'{"revision": "x"}'),
        "take_person": lambda: take_it("p", b"\xff", (EPOCH, 1), 0.0),
    }[topic]()
    watch.take_rest()

    assert [(what, kind) for what, _, kind, _ in watch.wrong] == [("record", "unreadable")]
    assert watch.audit.at == 3


# decisions


def test_decisions_are_followed_up_and_down():
    world = of_twelve()
    watch = watched(world)
    world.revise(("decide", "u05", "c", "rejected"))
    world.revise(("decide", "u01", "b", "accepted"), ("decide", "u12", "a12", "accepted", 7))
    world.revise(("decide", "u05", "c", "accepted"), ("decide", "u02", "a2", "rejected"))
    watch.take_rest()
    watch.audit.observe(world.page(limit=100))

    assert watch.wrong == []
    assert ("page", 6) in watch.report.made


# pages, frames, copies


def test_right_pages_frames_and_copies_are_right():
    world = of_twelve()
    watch = watched(world)
    watch.take_rest()
    for start, limit in ((1, 10), (1, 100), (3, 4), (11, 10), (12, 1)):
        watch.audit.observe(world.page(start=start, limit=limit))
    watch.audit.observe(world.copy())
    frame = [Shown(user, score) for user, score, _ in world.last.board[:10]]
    watch.audit.observe(Seen("frame", "", EPOCH, 3, Page(1, frame, None, 10), 0.0))

    assert watch.wrong == []
    assert len([what for what, _ in watch.report.made if what == "page"]) == 5


def _entries(page: Page, **changes: Any) -> Page:
    first, *rest = page.entries
    return replace(page, entries=[replace(first, **changes), *rest])


@pytest.mark.parametrize(
    ("start", "change", "kind", "user"),
    [
        pytest.param(1, lambda p: _entries(p, score=1), "score", "u05", id="score"),
        pytest.param(1, lambda p: _entries(p, reached_us=1), "reached_at", "u05", id="instant"),
        pytest.param(1, lambda p: _entries(p, rank=2), "rank", "u05", id="rank said"),
        pytest.param(1, lambda p: replace(p, count=11), "count", None, id="count"),
        pytest.param(1, lambda p: replace(p, entries=p.entries[:-1]), "length", None, id="short"),
        pytest.param(
            1, lambda p: replace(p, entries=[*p.entries[1:], p.entries[0]]), "rank", "u12", id="turned"
        ),
        pytest.param(
            4,
            lambda p: replace(p, first=5, entries=[replace(e, rank=(e.rank or 0) + 1) for e in p.entries]),
            "rank",
            "u10",
            id="a page that begins too late",
        ),
        pytest.param(
            4,
            lambda p: replace(p, entries=[replace(e, rank=4 + n) for n, e in enumerate(reversed(p.entries))]),
            "order",
            "u09",
            id="a later page turned round",
        ),
    ],
)
def test_a_page_that_is_wrong_is_counted_with_its_witness(
    start: int, change: Callable[[Page], Page], kind: str, user: str | None
):
    world = of_twelve()
    watch = watched(world)
    watch.take_rest()
    right = world.page(start=start, limit=3 if start > 1 else 5)
    assert isinstance(right.shown, Page)
    watch.audit.observe(replace(right, shown=change(right.shown)))

    assert [(what, at, said) for what, at, said, _ in watch.wrong] == [("page", 3, kind)]
    assert watch.report.mismatches[0][2].user == user


def test_a_stale_page_under_a_newer_revision_is_wrong():
    world = of_twelve()
    watch = watched(world)
    stale = world.page(world.revisions[1])
    watch.audit.observe(replace(stale, revision=3))
    watch.take_rest()

    # Of the old board u12 leads, who has not changed; the second has.
    ((what, at, kind, _),) = watch.wrong
    assert (what, at) == ("page", 3)
    assert kind in ("score", "order")


def test_a_page_waits_for_its_revision_and_is_compared_then():
    world = of_twelve()
    watch = watched(world)
    watch.audit.observe(world.page(world.revisions[1]))
    watch.audit.observe(world.page(world.revisions[2]))

    assert [what for what, _ in watch.report.made].count("page") == 0

    watch.take_rest()

    assert [at for what, at in watch.report.made if what == "page"] == [2, 3]
    assert watch.wrong == []


def test_a_page_of_a_revision_that_is_past_is_skipped_and_counted_as_skipped():
    world = of_twelve()
    watch = watched(world)
    watch.take_rest()
    watch.audit.observe(world.page(world.revisions[0]))

    assert watch.wrong == []
    assert watch.report.not_made == ["page"]


def test_a_revision_that_the_ledger_never_had_is_wrong():
    world = of_twelve()
    watch = watched(world)
    watch.audit.observe(replace(world.page(), revision=99, seen_s=1.0))
    watch.take_rest()

    assert watch.wrong == [("position", 99, "not_in_ledger", None)]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        pytest.param(lambda c: replace(c, members=13), "sizes", id="a member too many"),
        pytest.param(lambda c: replace(c, fields=11), "sizes", id="a field too few"),
        pytest.param(lambda c: replace(c, page=_entries(c.page, score=9_999)), "score", id="a member"),
        pytest.param(lambda c: replace(c, held={**c.held, "u02": (5, 5)}), "field", id="a field"),
        pytest.param(lambda c: replace(c, held={**c.held, "u02": None}), "field", id="a field gone"),
        pytest.param(lambda c: replace(c, digest="0" * 64), "digest", id="the digest"),
    ],
)
def test_a_copy_that_is_wrong_is_counted_once(change: Callable[[Copy], Copy], kind: str):
    world = of_twelve()
    watch = watched(world)
    watch.take_rest()
    right = world.copy()
    assert isinstance(right.shown, Copy)
    for _ in range(3):
        watch.audit.observe(replace(right, shown=change(right.shown)))
        assert watch.wrong

    assert [(at, said) for _, at, said, _ in watch.wrong] == [(3, kind)]


def test_what_was_wrong_and_healed_is_counted_when_it_is_wrong_again():
    world = of_twelve()
    watch = watched(world)
    watch.take_rest()
    right = world.copy()
    assert isinstance(right.shown, Copy)
    wrong = replace(right, shown=replace(right.shown, members=13))
    for seen in (wrong, wrong, right, wrong):
        watch.audit.observe(seen)
        watch.go_on()
        watch.go_on()

    assert [kind for _, _, kind, _ in watch.wrong] == ["sizes", "sizes"]


def test_too_much_that_waits_is_counted_without_comparing_and_then_goes_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("auditor.audit.MOST_WAITING", 40)
    world = of_twelve()
    watch = watched(world)
    for n in range(20):
        world.revise(("act", "u01", f"m{n}", 1))
    for revision in world.revisions[1:]:
        take(watch.audit, revision)
    assert watch.audit.is_full
    reached = horizon(23, asked_s=2e12)
    watch.audit.catch_up(reached)
    assert not watch.audit.is_full
    watch.audit.advance(reached)
    watch.audit.advance(horizon(23, asked_s=3e12))
    world.revise(("act", "u01", "last", 1))
    take(watch.audit, world.last)
    watch.audit.advance(horizon(24, asked_s=4e12))

    assert watch.wrong == []
    assert [at for what, at in watch.report.made if what == "publication"] == [24]
