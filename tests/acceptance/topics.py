"""The topics as an analyst reads them: a stock consumer, from the first record to the last."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

SUBMITTED = "leaderboard.action.submitted.v1"
JUDGED = "leaderboard.action.judged.v1"
PLAYER = "leaderboard.player.v1"
CHANGED = "leaderboard.board.changed.v1"
DEAD = "leaderboard.action.dead.v1"


@dataclass(frozen=True)
class Record:
    """A record; `value` is its JSON where there is one, `raw` its bytes."""

    partition: int
    offset: int
    key: bytes | None
    raw: bytes | None
    headers: dict[str, bytes | None]

    @property
    def value(self) -> Any:
        return None if self.raw is None else json.loads(self.raw)

    def header(self, name: str) -> str:
        value = self.headers[name]
        assert value is not None
        return value.decode()


def read(bootstrap: str, topic: str) -> list[Record]:
    """Every record a topic holds now, partition by partition, in order."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"analyst-{secrets.token_hex(4)}",
            "enable.auto.commit": False,
            "enable.partition.eof": False,
        }
    )
    try:
        metadata = consumer.list_topics(topic, timeout=10).topics[topic]
        assert metadata.error is None, metadata.error
        ends = {}
        for partition in metadata.partitions:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
            if high > low:
                ends[partition] = high
        records: list[Record] = []
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in ends])
        deadline_s = time.monotonic() + 30
        while ends:
            assert time.monotonic() < deadline_s, f"{topic}: partitions {sorted(ends)} do not end"
            for message in consumer.consume(1000, timeout=0.5):
                assert message.error() is None, message.error()
                records.append(
                    Record(
                        message.partition(),
                        message.offset(),
                        message.key(),
                        message.value(),
                        dict(message.headers() or []),
                    )
                )
            done = consumer.position([TopicPartition(topic, partition) for partition in ends])
            for place in done:
                # Transactions' marks and compacted records leave no message, but the position moves.
                if place.offset >= ends[place.partition]:
                    del ends[place.partition]
        return sorted(records, key=lambda record: (record.partition, record.offset))
    finally:
        consumer.close()
