"""Where a log begins and ends, and whether it is the one that was read before.

Asked before a partition is sought. A log that begins after, or ends before, the next offset has
lost records; one whose last record read is another than it was has been cut and refilled.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from core.errors import Unavailable

_UNKNOWN: Final = frozenset(
    {KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART}
)
"""What librdkafka may go on saying of a topic for minutes, out of memory, after a broker that came back
from a pause has once not known it."""


class LogEnds:
    """A consumer that belongs to no group and only looks. Blocks; one thread."""

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
        self._consumer = Consumer(self._settings)

    def close(self) -> None:
        self._consumer.close()

    def _forget(self, error: BaseException) -> None:
        """Ask anew the next time where this one only repeats what it once heard."""
        if isinstance(error, KafkaException) and error.args[0].code() in _UNKNOWN:
            self._consumer.close()
            self._consumer = Consumer(self._settings)

    def ends(self, partitions: set[int], *, timeout_s: float = 5.0) -> dict[int, tuple[int, int]]:
        """(first offset, next offset to be written) of each partition.

        Raises:
            Unavailable: no answer within `timeout_s` each.
        """
        found = {}
        try:
            for partition in sorted(partitions):
                low, high = self._consumer.get_watermark_offsets(
                    TopicPartition(self._topic, partition), timeout=timeout_s
                )
                found[partition] = (low, high)
        except (KafkaException, TypeError) as error:
            self._forget(error)
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
        found: dict[int, tuple[bytes | None, bytes | None]] = {}
        deadline_s = time.monotonic() + timeout_s
        try:
            self._consumer.assign(
                [TopicPartition(self._topic, partition, offset) for partition, offset in offsets.items()]
            )
            while len(found) < len(offsets):
                if time.monotonic() > deadline_s:
                    raise Unavailable(f"Kafka does not give records of {self._topic}")
                for message in self._consumer.consume(len(offsets), timeout=0.1):
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
                        self._consumer.incremental_unassign([TopicPartition(self._topic, partition)])
        except KafkaException as error:
            raise Unavailable(f"Kafka: {error}") from error
        finally:
            self._consumer.unassign()
        return found
