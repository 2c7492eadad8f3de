"""Where each partition is to be read from: what Postgres says, held against what Kafka has.

A log that lost records the ledger has not read, or that holds another record where the ledger read
one, stops its partition: to go on would skip or recount in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from service import logs
from storage.postgres.ledger import Ledger, LogLeft, Progress
from stream_app.carry_out import record_fingerprint

_log = logs.get("stream_app.positions")


class Log(Protocol):
    """What must be known of the submitted topic's log; `storage.kafka.log_ends.LogEnds` knows it."""

    def ends(self, partitions: set[int]) -> dict[int, tuple[int, int]]: ...

    def records(self, offsets: dict[int, int]) -> dict[int, tuple[bytes | None, bytes | None]]: ...


@dataclass(frozen=True, slots=True)
class Found:
    """The log's number, where to read on, and why some partitions may not be read."""

    log: int
    offsets: dict[int, int]
    stopped: dict[int, str]


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
        try:
            number, left = batch.adopt(wanted, topic_id())
        except LogLeft as error:
            return Found(0, {}, dict.fromkeys(wanted, str(error)))
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
