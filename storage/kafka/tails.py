"""What the topics that follow the ledger said last, and what they said since an instant.

Asked when a ledger may have lost revisions: what was sent of it is then ahead of it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from core import ids, topics
from core.errors import Unavailable

LOOK_BACK: Final = 100
"""Of how many of a partition's last records the latest counts: a publisher that began again from its
cursor may just be sending what it sent before."""

_ANSWER_S: Final = 10.0


class _Placed(msgspec.Struct):
    """What each record of `action.judged` and `board.changed` names."""

    epoch: str
    revision: int
    digest: str | None = None


class Judged(msgspec.Struct):
    """What is looked for in `action.judged` after a loss: decisions."""

    epoch: str
    revision: int
    player: str = ""
    action_id: str = ""
    verdict: str = ""
    decision: int | None = None


class _Named(msgspec.Struct):
    user_id: str


_PID: Final = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""A key of `player` as it is written here; others are somebody else's."""

_read_placed = msgspec.json.Decoder(_Placed).decode
_read_judged = msgspec.json.Decoder(Judged).decode
_read_named = msgspec.json.Decoder(_Named).decode


@dataclass(frozen=True, slots=True)
class People:
    """Players by their pid."""

    named: Set[str]

    buried: dict[str, str | None]
    """Whose last record is a tombstone; the user id if a record before it is still there to name it."""


class Tails:
    """A consumer that belongs to no group and only looks. Blocks; one thread."""

    def __init__(self, bootstrap: str, *, kind: str, kafka: Mapping[str, Any] | None = None) -> None:
        self._kind = kind
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "trueboard-tails",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 20,
                "fetch.message.max.bytes": topics.MAX_RECORD_BYTES,
                "log_level": 0,
                **(kafka or {}),
            }
        )

    def close(self) -> None:
        self._consumer.close()

    def last(self) -> list[tuple[str, int, str | None]]:
        """The latest (epoch, revision, digest) that each topic names; none for a topic without any.

        Raises:
            Unavailable: no answer within some seconds.
        """
        found = []
        for topic, look_back in ((topics.JUDGED, LOOK_BACK), (topics.BOARD_CHANGED, 1)):
            placed: list[tuple[str, int, str | None]] = []

            def note(_key: bytes | None, value: bytes | None, kept: list[Any] = placed) -> None:
                with _unreadable_is_nobodys():
                    record = _read_placed(value or b"")
                    if ids.EPOCH.fullmatch(record.epoch):
                        kept.append((record.epoch, record.revision, record.digest))

            self._read(topic.name, lambda low, high, back=look_back: max(low, high - back), note)  # type: ignore[misc]
            if placed:
                found.append(max(placed, key=lambda one: one[:2]))
        return found

    def decisions_since(self, instant_us: int) -> Iterator[Judged]:
        """Decisions that were written to `action.judged` since this instant."""
        found: list[Judged] = []

        def note(_key: bytes | None, value: bytes | None) -> None:
            if value is None or b'"decision"' not in value:
                return
            with _unreadable_is_nobodys():
                record = _read_judged(value)
                if record.decision is not None:
                    found.append(record)

        self._read_since(topics.JUDGED.name, instant_us, note)
        return iter(found)

    def people_since(self, instant_us: int) -> People:
        """Of whom `player` has told since this instant."""
        names: dict[str, str | None] = {}
        buried: set[str] = set()

        def note(key: bytes | None, value: bytes | None) -> None:
            pid = (key or b"").decode("ascii", "replace")
            if _PID.fullmatch(pid) is None:
                return
            if value is None:
                buried.add(pid)
                names.setdefault(pid, None)
                return
            # Nobody comes back: one who is named again was named by a restored ledger.
            with _unreadable_is_nobodys():
                names[pid] = _read_named(value).user_id

        self._read_since(topics.PLAYER.name, instant_us, note)
        return People(names.keys() - buried, {pid: names[pid] for pid in buried})

    def _read_since(
        self, topic: str, instant_us: int, note: Callable[[bytes | None, bytes | None], None]
    ) -> None:
        if self._kind == "memory":
            # It cannot be asked by time, and keeps little.
            self._read(topic, lambda low, _: low, note)
            return
        with _unavailable():
            asked = [TopicPartition(topic, p, instant_us // 1000) for p in self._partitions(topic)]
            begins = {
                place.partition: place.offset
                for place in (self._consumer.offsets_for_times(asked, timeout=_ANSWER_S) if asked else [])
            }
        self._read(topic, None, note, begins)

    def _read(
        self,
        topic: str,
        begin: Callable[[int, int], int] | None,
        note: Callable[[bytes | None, bytes | None], None],
        begins: Mapping[int, int] | None = None,
    ) -> None:
        """Give every record from where each partition is to be begun up to its present end."""
        with _unavailable():
            ends: dict[int, int] = {}
            places = []
            for partition in self._partitions(topic):
                ends_now = self._consumer.get_watermark_offsets(
                    TopicPartition(topic, partition), timeout=_ANSWER_S
                )
                if ends_now is None:
                    raise Unavailable(f"Kafka does not tell the ends of {topic}")
                low, high = ends_now
                first = begin(low, high) if begin else (begins or {}).get(partition, -1)
                if 0 <= first < high:
                    ends[partition] = high
                    places.append(TopicPartition(topic, partition, first))
            if not places:
                return
            self._consumer.assign(places)
            try:
                self._consume(topic, ends, note)
            finally:
                self._consumer.unassign()

    def _consume(
        self, topic: str, ends: dict[int, int], note: Callable[[bytes | None, bytes | None], None]
    ) -> None:
        deadline_s = time.monotonic() + _ANSWER_S
        while ends:
            if time.monotonic() > deadline_s:
                raise Unavailable(f"Kafka does not give records of {topic}")
            for message in self._consumer.consume(1000, timeout=0.1):
                error = message.error()
                if error is not None:
                    if error.code() in (KafkaError._PARTITION_EOF, KafkaError._ALL_BROKERS_DOWN):
                        continue
                    raise KafkaException(error)
                deadline_s = time.monotonic() + _ANSWER_S
                partition, offset = message.partition(), message.offset()
                if partition not in ends or offset is None or offset >= ends[partition]:
                    continue
                note(message.key(), message.value())
            # Compacted records leave no message, but the position moves past them.
            for place in self._consumer.position([TopicPartition(topic, p) for p in ends]):
                if place.offset >= ends[place.partition]:
                    del ends[place.partition]

    def _partitions(self, topic: str) -> list[int]:
        described = self._consumer.list_topics(topic, timeout=_ANSWER_S).topics[topic]
        if described.error is not None:
            if described.error.code() in (
                KafkaError.UNKNOWN_TOPIC_OR_PART,
                KafkaError._UNKNOWN_TOPIC,
                KafkaError._UNKNOWN_PARTITION,
            ):
                return []
            raise KafkaException(described.error)
        return sorted(described.partitions)


@contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except KafkaException as error:
        raise Unavailable(f"Kafka: {error}") from error


@contextmanager
def _unreadable_is_nobodys() -> Iterator[None]:
    """What is not written as a record of ours was written by somebody else."""
    try:
        yield
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return
