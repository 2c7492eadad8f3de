"""A reader of the topics that follow the ledger: from the start, every record, nothing left out."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from core import topics


@dataclass(frozen=True)
class Record:
    topic: str
    partition: int
    offset: int
    key: str
    raw: bytes | None
    headers: tuple[tuple[str, bytes], ...]

    @property
    def value(self) -> Any:
        return None if self.raw is None else json.loads(self.raw)

    @property
    def event_id(self) -> str:
        return dict(self.headers)["ce_id"].decode()


class Reader:
    """Keeps what it has read; each `read` goes on to the present ends."""

    def __init__(self, bootstrap: str, *names: str) -> None:
        self._names = names or (topics.JUDGED.name, topics.PLAYER.name, topics.BOARD_CHANGED.name)
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "tests-reader",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 10,
                "fetch.message.max.bytes": topics.MAX_RECORD_BYTES,
            }
        )
        admin = AdminClient({"bootstrap.servers": bootstrap})
        listed = admin.list_topics(timeout=10).topics
        self._read = {(name, partition): 0 for name in self._names for partition in listed[name].partitions}
        self._consumer.assign([TopicPartition(name, partition, 0) for name, partition in self._read])
        self.records: dict[str, list[Record]] = {name: [] for name in self._names}

    def read(self, timeout_s: float = 20.0) -> dict[str, list[Record]]:
        """Every record up to the present ends, by topic; within a partition in order."""
        ends = {
            place: self._consumer.get_watermark_offsets(TopicPartition(*place), timeout=10)[1]
            for place in self._read
        }
        deadline_s = time.monotonic() + timeout_s
        while any(self._read[place] < end for place, end in ends.items()):
            assert time.monotonic() < deadline_s, "the broker does not give its records"
            for message in self._consumer.consume(500, timeout=0.05):
                assert message.error() is None, message.error()
                place = (message.topic(), message.partition())
                self._read[place] = message.offset() + 1
                self.records[message.topic()].append(
                    Record(
                        *place,
                        message.offset(),
                        (message.key() or b"").decode(),
                        message.value(),
                        tuple(message.headers() or ()),
                    )
                )
        return self.records

    def close(self) -> None:
        self._consumer.close()
