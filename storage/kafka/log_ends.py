"""Where a log begins and ends, and whether it is the one that was read before.

Asked before a partition is sought. A log that begins after, or ends before, the next offset has
lost records; one whose last record read is another than it was has been cut and refilled.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from core.errors import Unavailable


class LogEnds:
    """A consumer that belongs to no group and only looks. Blocks; one thread.

    One that was not answered is not asked again: of a broker that came back from a pause and did not know
    the topic yet librdkafka goes on saying so for minutes, and it may have lost every broker for good
    (`storage.kafka.silence`).
    """

    def __init__(self, bootstrap: str, topic: str, *, kafka: Mapping[str, Any] | None = None) -> None:
        self._topic = topic
        self._settings = {
            "bootstrap.servers": bootstrap,
            "group.id": "trueboard-log-ends",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "fetch.wait.max.ms": 20,
            # One batch of records answers, however large; what lies behind it is not asked for.
            "fetch.message.max.bytes": 1024,
            "queued.min.messages": 1,
            # What was brought is taken at once, so nothing waits a second for its turn.
            "fetch.queue.backoff.ms": 10,
            "log_level": 0,
            **(kafka or {}),
        }
        self._made: Consumer | None = None

    def close(self) -> None:
        if self._made is not None:
            self._made.close()
            self._made = None

    @contextmanager
    def _asked(self) -> Iterator[Consumer]:
        """The consumer to ask, which is given up if it is not answered."""
        if self._made is None:
            self._made = Consumer(self._settings)
        try:
            yield self._made
        except Unavailable:
            self.close()
            raise

    def ends(self, partitions: set[int], *, timeout_s: float = 5.0) -> dict[int, tuple[int, int]]:
        """(first offset, next offset to be written) of each partition.

        Raises:
            Unavailable: no answer within `timeout_s` each.
        """
        found = {}
        with self._asked() as consumer:
            try:
                for partition in sorted(partitions):
                    low, high = consumer.get_watermark_offsets(
                        TopicPartition(self._topic, partition), timeout=timeout_s
                    )
                    found[partition] = (low, high)
            except (KafkaException, TypeError) as error:
                raise Unavailable(f"Kafka does not tell the ends of {self._topic}: {error}") from error
        return found

    def records(
        self, offsets: Mapping[int, int], *, timeout_s: float = 10.0
    ) -> dict[int, tuple[bytes | None, bytes | None]]:
        """Key and value of the record at one offset of each partition.

        Raises:
            Unavailable: not all of them came within `timeout_s`.
        """
        if not offsets:
            return {}
        with self._asked() as consumer:
            try:
                found = self._records(consumer, offsets, time.monotonic() + timeout_s)
                consumer.unassign()
            except KafkaException as error:
                raise Unavailable(f"Kafka: {error}") from error
        return found

    def _records(
        self, consumer: Consumer, offsets: Mapping[int, int], deadline_s: float
    ) -> dict[int, tuple[bytes | None, bytes | None]]:
        found: dict[int, tuple[bytes | None, bytes | None]] = {}
        consumer.assign(
            [TopicPartition(self._topic, partition, offset) for partition, offset in offsets.items()]
        )
        while len(found) < len(offsets):
            if time.monotonic() > deadline_s:
                raise Unavailable(f"Kafka does not give records of {self._topic}")
            for message in consumer.consume(len(offsets), timeout=0.1):
                error = message.error()
                if error is not None:
                    if error.code() in (KafkaError._PARTITION_EOF, KafkaError._ALL_BROKERS_DOWN):
                        continue
                    raise Unavailable(f"Kafka: {error}")
                partition = message.partition()
                if partition is not None and message.offset() == offsets.get(partition):
                    found[partition] = (message.key(), message.value())
                    # Of a fetch only the first partition's batch may be larger than was asked for:
                    # one that is still assigned would stand before those that are waited for.
                    consumer.incremental_unassign([TopicPartition(self._topic, partition)])
        return found
