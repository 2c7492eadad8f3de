"""Where each partition is to be read from: what Postgres says, held against what Kafka has.

A log that lost records the ledger has not read, or that holds another record where the ledger read
one, stops its partition: to go on would skip or recount in silence. That is looked at before a
partition is read, and from time to time while it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from core.errors import Unavailable
from service import logs
from storage.postgres import resumptions
from storage.postgres.ledger import Ledger, LogLeft, Progress
from stream_app.carry_out import record_fingerprint

_log = logs.get("stream_app.positions")


class Log(Protocol):
    """What must be known of the submitted topic's log; `storage.kafka.log_ends.LogEnds` knows it."""

    def ends(self, partitions: set[int]) -> dict[int, tuple[int, int]]: ...

    def records(self, offsets: dict[int, int]) -> dict[int, tuple[bytes | None, bytes | None]]: ...


@dataclass(frozen=True, slots=True)
class Found:
    """The log's number, where to read on, and why some partitions may not be read.

    `before` are the offset and the fingerprint of the record before each partition's next offset,
    `resumption` the last time that an operator told a partition to go on.
    """

    log: int
    offsets: dict[int, int]
    stopped: dict[int, str]
    before: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    resumption: int = 0


MOST_MARKS: Final = 8


class Marks:
    """What was read lately, as it is to be found in the log again: a few records of each partition.

    A log whose end was cut and written anew holds others from the cut on. The record read last
    may be one of those already, so some from before it are kept too, evenly spread since the last
    look.
    """

    def __init__(self, before: Mapping[int, tuple[int, bytes]]) -> None:
        self._marks: dict[int, list[tuple[int, bytes]]] = {
            partition: [mark] for partition, mark in before.items()
        }

    def add(self, partition: int, offset: int, fingerprint: bytes) -> None:
        """The record at this offset was read and what came of it committed."""
        marks = self._marks.setdefault(partition, [])
        if marks and marks[-1][0] >= offset:
            return
        marks.append((offset, fingerprint))
        if len(marks) > MOST_MARKS:
            del marks[1:-1:2]

    def taken(self) -> dict[int, list[tuple[int, bytes]]]:
        """All of them by partition, ascending."""
        return {partition: list(marks) for partition, marks in self._marks.items() if marks}

    def found_again(self, partition: int, offset: int) -> None:
        """The log was seen to hold what was read up to here."""
        marks = self._marks.get(partition, [])
        marks[:] = [mark for mark in marks if mark[0] >= offset]


def find(
    ledger: Ledger, log: Log, topic_id: Callable[[], str], partitions: Iterable[int], *, memory: bool
) -> Found:
    """Take up these partitions. Blocks.

    The topic's id is asked for while the partitions' progress is locked, so an owner that is no
    longer one meets the new one there. `memory` says that a fresh log is expected at each start.

    Raises:
        Unavailable: Postgres or Kafka does not answer.
    """
    wanted = sorted(partitions)
    with ledger.batch(wanted) as batch:
        resumption = resumptions.last(batch)
        try:
            number, left = batch.adopt(wanted, topic_id())
        except LogLeft as error:
            return Found(0, {}, dict.fromkeys(wanted, str(error)), resumption=resumption)
        progress = dict(batch.progress)
    if left:
        say = _log.info if memory else _log.error
        say("log_changed", log=number, partitions={str(p): before for p, before in left.items()})
    ends = log.ends(set(wanted))
    stopped = {
        partition: why
        for partition in wanted
        if (why := _gap(progress[partition], *ends[partition])) is not None
    }
    before = {
        partition: progress[partition].next_offset - 1
        for partition in wanted
        if partition not in stopped
        and progress[partition].fingerprint is not None
        and ends[partition][0] < progress[partition].next_offset
    }
    for partition, (key, value) in log.records(before).items():
        if record_fingerprint(key, value) != progress[partition].fingerprint:
            stopped[partition] = (
                f"the record at offset {before[partition]} is not the one that was read: "
                "the log's end was cut and written anew"
            )
    for partition, why in stopped.items():
        _log.error("partition_stopped", partition=partition, detail=why)
    return Found(
        number,
        {partition: progress[partition].next_offset for partition in wanted if partition not in stopped},
        stopped,
        {
            partition: (before[partition], fingerprint)
            for partition in before
            if partition not in stopped and (fingerprint := progress[partition].fingerprint) is not None
        },
        resumption,
    )


@dataclass(slots=True)
class Looked:
    """What a look at logs that are being read has come to.

    `ends` are the offsets to be written next, of those partitions that answer; `found_again` where
    each was seen to hold what was read, `changed` the first record that is another, with what was
    read there.
    """

    ends: dict[int, int] = field(default_factory=dict)
    found_again: dict[int, int] = field(default_factory=dict)
    changed: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    stopped: dict[int, str] = field(default_factory=dict)


def look_again(log: Log, offsets: Mapping[int, int], marks: Mapping[int, list[tuple[int, bytes]]]) -> Looked:
    """Hold what was read against the log: `offsets` are where each partition is read on. Blocks.

    Raises:
        Unavailable: a partition whose ends are known does not give its records.
    """
    looked = Looked()
    lows: dict[int, int] = {}
    for partition, next_offset in offsets.items():
        try:
            lows[partition], high = log.ends({partition})[partition]
        except Unavailable:
            continue
        looked.ends[partition] = high
        if high < next_offset:
            looked.stopped[partition] = _gap(Progress(0, next_offset, None), 0, high) or ""
    open_ = {
        partition: [mark for mark in marks.get(partition, ()) if mark[0] >= low]
        for partition, low in lows.items()
        if partition not in looked.stopped
    }
    while open_ := {partition: rest for partition, rest in open_.items() if rest}:
        here = {partition: rest.pop(0) for partition, rest in open_.items()}
        found = log.records({partition: offset for partition, (offset, _) in here.items()})
        for partition, (offset, fingerprint) in here.items():
            if record_fingerprint(*found[partition]) == fingerprint:
                looked.found_again[partition] = offset
                continue
            good = looked.found_again.get(partition)
            looked.changed[partition] = (offset, fingerprint)
            looked.stopped[partition] = (
                f"the record at offset {offset} is not the one that was read: the log's end was cut"
                f"{'' if good is None else f' after {good}'} and written anew; it was read up to"
                f" {offsets[partition]}, it ends before {looked.ends[partition]}"
            )
            open_[partition] = []
    return looked


def go_back(ledger: Ledger, log: int, changed: Mapping[int, tuple[int, bytes]]) -> None:
    """Write down that nothing read after these records is vouched for, so that no restart goes on. Blocks.

    Raises:
        Unavailable: Postgres does not answer.
    """
    with ledger.batch(sorted(changed)) as batch:
        batch.move_progress(
            {
                partition: Progress(log, offset + 1, fingerprint)
                for partition, (offset, fingerprint) in changed.items()
                if batch.progress[partition].log == log and batch.progress[partition].next_offset > offset
            }
        )


def _gap(progress: Progress, low: int, high: int) -> str | None:
    if low > progress.next_offset:
        return (
            f"{low - progress.next_offset} records that were never read are gone: "
            f"the log begins at {low}, the ledger ends before {progress.next_offset}"
        )
    if high < progress.next_offset:
        return (
            f"{progress.next_offset - high} records that were read are gone: "
            f"the log ends before {high}, the ledger before {progress.next_offset}"
        )
    return None
