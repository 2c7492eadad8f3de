"""What was just committed, kept for followers: bounded, and never of a history that is gone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from storage.followers import At
from storage.postgres.contents import Content, PeriodChange, Row
from storage.postgres.deltas import Link
from storage.postgres.ledger import Position
from stream_app import hand
from stream_app.hand import Hand


def content(revision: int, *, previous: int | None = None, rows: int = 1, digest: str = "d") -> Content:
    at = At("e", revision, digest)
    row = Row("p", "a", 0, "level", "accepted", None, 1, 0, 0, "1")
    before = revision - 1 if previous is None else previous
    return Content(
        at, 0, [row] * rows, periods=[PeriodChange("main", "all-time", Link(at, before, 1, 0), [])]
    )


def test_a_revision_is_found_by_its_number_and_by_its_periods_chain():
    kept = Hand()
    one = content(7, previous=4)
    kept.put(one)

    assert kept.content(7) is one
    assert kept.link_after("main:all-time", 4) is one.periods[0]
    assert kept.link_after("main:all-time", 6) is None
    assert kept.content(8) is None


def test_what_is_being_committed_is_in_hand_already():
    kept = Hand()
    kept.expect(Position("e", 7, b"d"))

    assert kept.has(7)
    assert not kept.has(6)
    kept.put(content(7))
    assert kept.has(7)


def test_only_the_latest_are_kept():
    kept = Hand()
    for revision in range(1, hand.MOST_REVISIONS + 11):
        kept.put(content(revision))

    assert kept.content(10) is None
    assert kept.link_after("main:all-time", 9) is None
    assert kept.content(11) is not None
    assert kept.link_after("main:all-time", 10) is not None


def test_rows_bound_what_is_kept_too():
    kept = Hand()
    kept.put(content(1, rows=hand.MOST_ROWS - 1))
    kept.put(content(2, rows=2))

    assert (kept.content(1), kept.content(2) is None) == (None, False)


def test_a_revision_whose_history_was_replaced_gives_way():
    kept = Hand()
    kept.put(content(5, previous=3, digest="lost"))
    kept.put(content(5, previous=4, digest="now"))

    assert kept.content(5).at.digest == "now"
    assert kept.link_after("main:all-time", 3) is None
    assert kept.link_after("main:all-time", 4).link.at.digest == "now"


def test_what_followed_in_a_history_that_was_replaced_is_gone_with_it():
    kept = Hand()
    for revision in (4, 5, 6):
        kept.put(content(revision, digest="lost"))
    kept.put(content(5, digest="now"))

    assert kept.content(6) is None
    assert kept.link_after("main:all-time", 5) is None
    assert kept.content(4) is None


def test_replacing_over_and_over_leaves_no_room_taken():
    kept = Hand()
    for _ in range(3 * hand.MOST_ROWS // 1000):
        kept.put(content(5, rows=1000))
    kept.put(content(6, rows=1000))

    assert kept.content(5) is not None
    assert kept.content(6) is not None


class Restored:
    """As much of a connection as answers with the digests that its ledger has."""

    def __init__(self, digests: dict[int, str]) -> None:
        self._digests = digests

    def execute(self, _query: str, parameters: Any) -> Any:
        (asked,) = parameters
        return SimpleNamespace(fetchall=lambda: [(n, self._digests[n]) for n in asked if n in self._digests])


def test_what_the_ledger_has_not_got_is_forgotten():
    kept = Hand()
    for revision in (4, 5, 6, 7):
        kept.put(content(revision))
    restored: Any = Restored({4: "d", 5: "d", 6: "another"})
    kept.prove(restored)

    assert [kept.content(revision) is None for revision in (4, 5, 6, 7)] == [False, False, True, True]
    assert kept.link_after("main:all-time", 4) is not None
    assert kept.link_after("main:all-time", 5) is None
    assert kept._rows == 2
