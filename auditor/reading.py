"""The topics from their beginning: every partition, no group, nothing committed anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, TopicPartition

from auditor.audit import Audit, Horizon
from auditor.records import BOARD_CHANGED, JUDGED, PLAYER
from core.errors import Unavailable
from core.topics import MAX_RECORD_BYTES
from service import logs
from storage.kafka.silence import Silence

PUBLICATIONS_BACK: Final = 200
"""How many records of each partition of `board.changed` are read of the time before the start."""

_BATCH: Final = 2_000
_PASSING: Final = (
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TRANSPORT,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
)

_log = logs.get("auditor.reading")

Offsets = Mapping[tuple[str, int], int]


class StartsLater(Unavailable):
    """`action.judged` does not begin with its first record: nothing can be recounted from it."""


class Reading:
    """One pass over the topics into an `Audit`, from given starts on."""

    def __init__(self, bootstrap: str, starts: Offsets, ends: Offsets) -> None:
        """Raises StartsLater."""
        late = {partition: at for (topic, partition), at in starts.items() if topic == JUDGED and at}
        if late:
            raise StartsLater(f"the first records of {JUDGED} are gone, by partition: {late}")
        self._next = dict(starts)
        for place, end in ends.items():
            if place[0] == BOARD_CHANGED:
                self._next[place] = max(starts[place], end - PUBLICATIONS_BACK)
        self._settings = {
            "bootstrap.servers": bootstrap,
            # The client insists on a name; nothing is joined and nothing committed.
            "group.id": "trueboard-auditor",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "fetch.message.max.bytes": MAX_RECORD_BYTES,
            "queued.max.messages.kbytes": 2 * MAX_RECORD_BYTES // 1024,
            "reconnect.backoff.max.ms": 1000,
            "log_level": 2,
        }
        self._consumer = self._made()

    def _made(self) -> Consumer:
        """A consumer that goes on where this reading is."""
        consumer = Consumer(self._settings, logger=_Quiet())
        consumer.assign([TopicPartition(*place, at) for place, at in self._next.items()])
        self._silence = Silence()
        return consumer

    def close(self) -> None:
        self._consumer.close()

    def has_read_to(self, horizon: Horizon) -> bool:
        """Whether everything before the horizon's ends has been handed on."""
        return all(self._next.get(place, -1) >= end for place, end in horizon.ends.items())

    def is_ahead_of(self, ends: Offsets) -> bool:
        """Whether a partition ends before what was read of it: it is not the one that was read."""
        return any(self._next.get(place, 0) > end for place, end in ends.items())

    def step(self, audit: Audit, wait_s: float, now_s: float) -> int:
        """Hand on what has arrived within `wait_s`; how many records that was.

        Raises:
            Unavailable: the topics must be read again from the start.
        """
        read, arrived = 0, self._consumer.consume(_BATCH, wait_s)
        if arrived:
            self._silence.heard()
        elif self._silence.is_deaf(self._consumer, *min(self._next)):
            _log.warning("consumer_replaced", detail="Kafka does not answer")
            self._consumer.close()
            self._consumer = self._made()
        for message in arrived:
            if (error := message.error()) is not None:
                self._trouble(message, error)
                continue
            topic, place = message.topic(), (message.topic(), message.partition())
            offset = message.offset()
            if offset != self._next[place]:
                self._gap(audit, topic, place, offset)
            self._next[place] = offset + 1
            read += 1
            if topic == JUDGED:
                audit.take_judged(message.value())
            elif topic == BOARD_CHANGED:
                audit.take_publication(message.key(), message.value())
            else:
                key = (message.key() or b"").decode("utf-8", "replace")
                audit.take_person(key, message.value(), _event(message), now_s)
        return read

    def _gap(self, audit: Audit, topic: str, place: tuple[str, int], offset: int) -> None:
        if topic == JUDGED:
            raise StartsLater(f"{place[0]}-{place[1]} goes from {self._next[place]} to {offset}")
        if topic == BOARD_CHANGED:
            audit.publications_lost()

    def _trouble(self, message: Any, error: KafkaError) -> None:
        if error.code() == KafkaError._PARTITION_EOF:
            place = message.topic(), message.partition()
            # Compaction may have taken the last records before the end.
            if message.topic() == PLAYER:
                self._next[place] = max(self._next[place], message.offset())
        elif error.code() in _PASSING and not error.fatal():
            _log.debug("kafka_trouble", detail=error.str())
        else:
            raise Unavailable(f"Kafka: {error.str()}")


def _event(message: Any) -> tuple[str, int] | None:
    """Epoch and revision in the id of a `player` record's event, `<player>/<epoch>/<revision>`."""
    for name, value in message.headers() or ():
        if name == "ce_id":
            _, *epoch, revision = value.decode("utf-8", "replace").split("/")
            return (epoch[0], int(revision)) if len(epoch) == 1 and revision.isdecimal() else None
    return None


class _Quiet:
    """Takes librdkafka's own log lines: what matters arrives as errors of `consume`."""

    def log(self, level: int, text: str, *args: Any) -> None:
        _log.debug("librdkafka", level=level, text=text % args if args else text)

    def addFilter(self, *_: Any) -> None:
        """Part of the logger's shape; nothing is filtered."""
