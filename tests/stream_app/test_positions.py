"""Where a partition is read on, and whether its log still holds what was read of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from core.errors import Unavailable
from storage.postgres.ledger import Ledger
from stream_app import positions
from stream_app.carry_out import record_fingerprint
from stream_app.positions import MOST_MARKS, Marks, look_again
from tests.stream_app.world import World, submitted


class Logs:
    """Logs in memory: per partition the first offset and the records from there on."""

    def __init__(self, **partitions: list[bytes]) -> None:
        self.held = {int(name[1:]): records for name, records in partitions.items()}
        self.first: dict[int, int] = {}
        self.silent: set[int] = set()

    def ends(self, partitions: set[int]) -> dict[int, tuple[int, int]]:
        if partitions & self.silent:
            raise Unavailable("no leader")
        return {p: (self.first.get(p, 0), self.first.get(p, 0) + len(self.held[p])) for p in partitions}

    def records(self, offsets: dict[int, int]) -> dict[int, tuple[bytes | None, bytes | None]]:
        return {p: (None, self.held[p][offset - self.first.get(p, 0)]) for p, offset in offsets.items()}


def numbered(count: int, kind: str = "old") -> list[bytes]:
    return [f"{kind} {number}".encode() for number in range(count)]


def read(records: list[bytes], *offsets: int) -> dict[int, list[tuple[int, bytes]]]:
    return {0: [(offset, record_fingerprint(None, records[offset])) for offset in offsets]}


def test_a_log_that_holds_what_was_read_is_found_again():
    records = numbered(30)

    looked = look_again(Logs(p0=records), {0: 20}, read(records, 5, 19))

    assert (looked.ends, looked.found_again, looked.stopped) == ({0: 30}, {0: 19}, {})


def test_a_log_that_ends_before_what_was_read_stops_its_partition_alone():
    records = numbered(30)

    looked = look_again(Logs(p0=records[:18], p1=records), {0: 20, 1: 20}, read(records, 5, 19))

    assert looked.stopped.keys() == {0}
    assert "2 records that were read are gone" in looked.stopped[0]


@pytest.mark.parametrize("length", [20, 25, 400])
def test_a_log_cut_at_its_end_and_refilled_stops_its_partition_with_numbers(length):
    records = numbered(30)
    refilled = records[:12] + numbered(length - 12, "new")

    looked = look_again(Logs(p0=refilled), {0: 20}, read(records, 5, 11, 15, 19))

    assert looked.changed[0][0] == 15
    assert "offset 15" in looked.stopped[0]
    assert "after 11" in looked.stopped[0]


def test_what_is_no_longer_kept_is_not_asked_for():
    records = numbered(30)
    logs = Logs(p0=records[18:])
    logs.first[0] = 18

    looked = look_again(logs, {0: 20}, read(records, 5, 11, 19))

    assert (looked.found_again, looked.stopped) == ({0: 19}, {})


def test_a_partition_without_a_leader_keeps_no_other_from_being_looked_at():
    records = numbered(30)
    logs = Logs(p0=records, p1=records[:3])
    logs.silent = {0}

    looked = look_again(logs, {0: 20, 1: 20}, read(records, 19))

    assert (looked.ends, looked.stopped.keys()) == ({1: 3}, {1})


def test_marks_are_few_evenly_spread_and_the_last_is_the_latest():
    marks = Marks({0: (4, b"4")})
    for offset in range(10, 1000, 10):
        marks.add(0, offset, b"%d" % offset)
    marks.add(0, 500, b"a redelivery")

    (kept,) = marks.taken().values()
    offsets = [offset for offset, _ in kept]
    assert (offsets[0], offsets[-1]) == (4, 990)
    assert 3 <= len(offsets) <= MOST_MARKS
    marks.found_again(0, 990)
    assert marks.taken() == {0: [(990, b"990")]}


@pytest.fixture
def ledger(database: str) -> Iterator[Ledger]:
    made = Ledger(database, name="tests")
    yield made
    made.close()


@pytest.mark.services
def test_a_partition_that_went_back_is_stopped_for_whoever_takes_it_up(stream: World, ledger: Ledger):
    for number in range(6):
        stream.take(submitted("ada", f"a{number}"))
    read_there = [record_fingerprint(raw.key, raw.value) for raw in stream.log.records[0]]
    stream.log.records[0][3:] = stream.log.records[0][:3] * 5
    held = [raw.value or b"" for raw in stream.log.records[0]]

    class Keyed(Logs):
        def records(self, offsets: dict[int, int]) -> dict[int, tuple[bytes | None, bytes | None]]:
            return {p: (b"ada", held[offset]) for p, offset in offsets.items()}

    positions.go_back(ledger, stream.log.number, {0: (3, read_there[3])})
    found = positions.find(ledger, Keyed(p0=held, p1=[]), lambda: stream.log.topic_id, [0, 1], memory=False)

    assert found.offsets == {1: 0}
    assert "offset 3" in found.stopped[0]
    assert stream.rows("SELECT next_offset FROM progress WHERE partition = 0") == [(4,)]
