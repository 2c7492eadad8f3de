"""Whether every partition has been read as far as the ledger says, and nothing was passed over.

The log's id, its ends and the record before the next offset are asked of Kafka. Of the last records
each must have a ledger row of its own, be set aside, or repeat an action that the ledger has: those
without a trace of their own are read again from Kafka.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from core.errors import Unavailable
from core.topics import SUBMITTED
from storage.kafka.topic_ids import topic_id
from trueboard.verification.report import Check
from trueboard.verification.snapshots import Connection

LOOK_BACK: Final = 20_000
"""How many of a partition's last records are accounted for one by one."""

_ANSWER_S: Final = 10.0

_OVERTAKEN: Final = """EXISTS (SELECT FROM resumptions r WHERE r.log = ledger.log
    AND r.partition = kafka_partition AND kafka_offset >= r.from_offset AND ledger.batch < r.batch)"""
"""Of a ledger row: its partition went back to before it, so its offset may be another record's now."""

_PARTITIONS: Final = f"""
SELECT p.partition, g.topic_id, p.next_offset, p.fingerprint, coalesce(l.rows, 0), l.highest,
    coalesce(s.rows, 0), s.highest, p.log
FROM progress p JOIN logs g USING (log)
LEFT JOIN (SELECT log, kafka_partition, count(*) AS rows, max(kafka_offset) AS highest
    FROM ledger WHERE seq = 0 AND kafka_offset IS NOT NULL AND NOT {_OVERTAKEN}
    GROUP BY log, kafka_partition) l
    ON l.log = p.log AND l.kafka_partition = p.partition
LEFT JOIN (SELECT log, partition, count(*) AS rows, max(record_offset) AS highest
    FROM set_aside GROUP BY log, partition) s
    ON s.log = p.log AND s.partition = p.partition
ORDER BY p.partition
"""

_RECENT: Final = f"""
SELECT kafka_partition, kafka_offset FROM ledger
JOIN progress p ON p.log = ledger.log AND p.partition = kafka_partition
WHERE seq = 0 AND kafka_offset >= p.next_offset - %(look_back)s AND NOT {_OVERTAKEN}
UNION ALL
SELECT s.partition, s.record_offset FROM set_aside s
JOIN progress p ON p.log = s.log AND p.partition = s.partition
WHERE s.record_offset >= p.next_offset - %(look_back)s
"""

_LOST: Final = """
SELECT DISTINCT r.partition, generate_series(
    greatest(r.was, p.next_offset - %(look_back)s), least(r.from_offset, p.next_offset) - 1)
FROM resumptions r JOIN progress p ON p.log = r.log AND p.partition = r.partition
WHERE r.from_offset > r.was
"""
"""Offsets that an operator gave up."""

_JUDGED: Final = """
SELECT k.place FROM unnest(%s::integer[], %s::text[], %s::text[]) k(place, user_id, action_id)
WHERE EXISTS (
    SELECT FROM ledger l JOIN players p USING (player) WHERE l.action_id = k.action_id
        AND (p.user_id = k.user_id OR p.erased_at IS NOT NULL))
"""

Record = tuple[bytes | None, bytes | None]


@dataclass(frozen=True, slots=True)
class Partition:
    """One row of `progress`, with what the ledger and the records set aside say of it."""

    partition: int
    topic_id: str
    next_offset: int
    fingerprint: bytes | None
    rows: int
    highest_row: int | None
    set_aside: int
    highest_set_aside: int | None
    log: int


@contextmanager
def unavailable() -> Iterator[None]:
    try:
        yield
    except KafkaException as error:
        raise Unavailable(f"Kafka: {error}") from error


class Log:
    """The submitted topic, looked at by a consumer of no group."""

    def __init__(self, bootstrap: str, *, kind: str) -> None:
        self._bootstrap, self._kind = bootstrap, kind
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "trueboard-verify",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "enable.partition.eof": False,
                "fetch.wait.max.ms": 20,
                "log_level": 0,
            }
        )

    def close(self) -> None:
        self._consumer.close()

    def topic_id(self) -> str:
        return topic_id(self._bootstrap, SUBMITTED.name, kind=self._kind)

    def partitions(self) -> list[int]:
        """The topic's partitions."""
        with unavailable():
            told = self._consumer.list_topics(SUBMITTED.name, timeout=_ANSWER_S).topics[SUBMITTED.name]
            if told.error is not None:
                raise KafkaException(told.error)
        return sorted(told.partitions)

    def ends(self, partition: int) -> tuple[int, int]:
        """The first offset there is, and the next one to be written."""
        with unavailable():
            ends = self._consumer.get_watermark_offsets(
                TopicPartition(SUBMITTED.name, partition), timeout=_ANSWER_S
            )
        if ends is None:
            raise Unavailable(f"Kafka does not tell the ends of partition {partition} of {SUBMITTED.name}")
        return int(ends[0]), int(ends[1])

    def records(self, wanted: dict[int, list[int]]) -> dict[int, dict[int, Record]]:
        """Key and value at these offsets of each partition, ascending; what is not there is left out.

        Raises:
            Unavailable: Kafka gives nothing for `_ANSWER_S`.
        """
        found: dict[int, dict[int, Record]] = {partition: {} for partition in wanted}
        asked = {partition: set(offsets) for partition, offsets in wanted.items()}
        open_ = {partition: offsets[-1] for partition, offsets in wanted.items() if offsets}
        until_s = time.monotonic() + _ANSWER_S
        with unavailable():
            places = [TopicPartition(SUBMITTED.name, partition, wanted[partition][0]) for partition in open_]
            self._consumer.assign(places)
            # A partition stays paused through a new assignment.
            self._consumer.resume(places)
            try:
                while open_:
                    if time.monotonic() > until_s:
                        raise Unavailable(f"Kafka does not give records of partitions {sorted(open_)}")
                    for message in self._consumer.consume(1000, timeout=0.1):
                        error = message.error()
                        if error is not None:
                            if error.code() == KafkaError._ALL_BROKERS_DOWN:
                                continue
                            raise KafkaException(error)
                        until_s = time.monotonic() + _ANSWER_S
                        partition, at = message.partition(), message.offset()
                        if at in asked[partition]:
                            found[partition][at] = (message.key(), message.value())
                        if at >= open_.get(partition, at + 1):
                            del open_[partition]
                            self._consumer.pause([TopicPartition(SUBMITTED.name, partition)])
            finally:
                self._consumer.unassign()
        return found


_UNREAD: Final = """
SELECT DISTINCT kafka_partition FROM ledger WHERE log = (SELECT max(log) FROM logs)
EXCEPT SELECT partition FROM progress WHERE log = (SELECT max(log) FROM logs) ORDER BY 1
"""
"""Partitions of the present log that the ledger has rows of, and `progress` knows nothing of."""


def check(connection: Connection, log: Log, found: Check) -> None:
    """Check every partition of this snapshot against the log as it is now."""
    for (partition,) in connection.execute(_UNREAD).fetchall():
        found.differs("a partition", partition=partition, expected="a row of progress", found=None)
    partitions = [Partition(*row) for row in connection.execute(_PARTITIONS).fetchall()]
    accounted: dict[int, set[int]] = {}
    for partition, offset in connection.execute(_RECENT, {"look_back": LOOK_BACK}):
        seen = accounted.setdefault(partition, set())
        if offset in seen:
            found.differs("a record with two traces", partition=partition, offset=offset, expected=1, found=2)
        seen.add(offset)
    for partition, offset in connection.execute(_LOST, {"look_back": LOOK_BACK}):
        accounted.setdefault(partition, set()).add(offset)
    present = log.topic_id() if partitions else ""
    left = _left_behind(connection, partitions, present, log.partitions() if partitions else [])
    untraced: dict[int, list[int]] = {}
    wanted: dict[int, list[int]] = {}
    for one in partitions:
        found.saw()
        _within(one, found)
        if one.partition in left:
            continue
        if one.topic_id != present:
            found.differs("the log", partition=one.partition, expected=present, found=one.topic_id)
            continue
        first, end = log.ends(one.partition)
        if not first <= one.next_offset <= end:
            found.differs(
                "the ends of the log",
                partition=one.partition,
                expected=f"{first}..{end}",
                found=one.next_offset,
            )
            continue
        traced, last = accounted.get(one.partition, set()), one.next_offset - 1
        begin = max(first, one.next_offset - LOOK_BACK)
        found.saw(one.next_offset - begin)
        untraced[one.partition] = [offset for offset in range(begin, one.next_offset) if offset not in traced]
        wanted[one.partition] = sorted({*untraced[one.partition], *range(max(begin, last), one.next_offset)})
    records = log.records(wanted) if any(wanted.values()) else {}
    for one in partitions:
        of_log = records.get(one.partition, {})
        if (before := of_log.get(one.next_offset - 1)) is not None:
            _fingerprint(one, before, found)
        _repeats(
            connection,
            one,
            [(at, of_log[at]) for at in untraced.get(one.partition, []) if at in of_log],
            found,
        )


def _left_behind(
    connection: Connection, partitions: list[Partition], present: str, there: list[int]
) -> set[int]:
    """Partitions that only an earlier log had: nobody will ever take them up from the present one."""
    row = connection.execute("SELECT log FROM logs WHERE topic_id = %s", (present,)).fetchone()
    # One that the ledger does not know yet comes after all it knows.
    number = math.inf if row is None else row[0]
    return {one.partition for one in partitions if one.partition not in there and one.log < number}


def _within(one: Partition, found: Check) -> None:
    for what, highest in (("ledger row", one.highest_row), ("record set aside", one.highest_set_aside)):
        if highest is not None and highest >= one.next_offset:
            found.differs(
                f"the last {what}",
                partition=one.partition,
                expected=f"an offset below {one.next_offset}",
                found=highest,
            )
    if one.rows + one.set_aside > one.next_offset:
        found.differs(
            "the number of records",
            partition=one.partition,
            expected=f"at most {one.next_offset}",
            found=one.rows + one.set_aside,
        )


def _fingerprint(one: Partition, last: Record, found: Check) -> None:
    key, value = last
    wanted = hashlib.sha256((key or b"") + b"\x00" + (value or b"")).digest()[:16]
    if one.fingerprint != wanted:
        found.differs(
            "the record before the next offset",
            partition=one.partition,
            offset=one.next_offset - 1,
            expected=wanted.hex(),
            found=None if one.fingerprint is None else one.fingerprint.hex(),
        )


def _repeats(connection: Connection, one: Partition, records: list[tuple[int, Record]], found: Check) -> None:
    """These records left no trace of their own: each must repeat an action that the ledger has."""
    named = [_named(value) for _, (_, value) in records]
    users, actions = ([name[part] if name else None for name in named] for part in (0, 1))
    judged = {row[0] for row in connection.execute(_JUDGED, (list(range(len(records))), users, actions))}
    for place, ((offset, _), name) in enumerate(zip(records, named, strict=True)):
        if place not in judged:
            found.differs(
                "a record passed over",
                partition=one.partition,
                offset=offset,
                expected="a ledger row, or a record set aside",
                found=None if name is None else {"user_id": name[0], "action_id": name[1]},
            )


def _named(value: bytes | None) -> tuple[str, str] | None:
    """User id and action id of a submitted record; None where it is not readable."""
    try:
        body: Any = json.loads(value or b"")
        user_id, action_id = body["user_id"], body["action_id"]
    except (ValueError, KeyError, TypeError):
        return None
    return (user_id, action_id) if isinstance(user_id, str) and isinstance(action_id, str) else None
