"""Single records are found wherever they stand, also within large batches of every partition."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from core.errors import Unavailable
from storage.kafka import log_ends as module
from storage.kafka.log_ends import LogEnds
from tests.conftest import PARTITIONS, Kafka

pytestmark = pytest.mark.kafka

EACH = 250


@pytest.fixture
def topic(kafka: Kafka) -> Iterator[str]:
    """A topic whose partitions hold batches of some 100 records of 200 bytes."""
    name = f"log-ends-{secrets.token_hex(4)}"
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    for future in admin.create_topics([NewTopic(name, PARTITIONS, 1)]).values():
        future.result(30)
    batches = {"linger.ms": 200, "batch.num.messages": 100, "enable.idempotence": True}
    producer = Producer({"bootstrap.servers": kafka.bootstrap, **batches})
    for number in range(EACH * PARTITIONS):
        value = b"%d " % (number // PARTITIONS) + random.randbytes(200)
        producer.produce(name, value, partition=number % PARTITIONS)
    assert producer.flush(30) == 0
    yield name
    admin.delete_topics([name])


@pytest.mark.parametrize("offset", [0, EACH // 2, EACH - 1], ids=["first", "middle", "last"])
def test_a_record_of_each_partition_is_found_within_large_batches(kafka: Kafka, topic: str, offset: int):
    ends = LogEnds(kafka.bootstrap, topic)
    try:
        found = ends.records(dict.fromkeys(range(PARTITIONS), offset))
    finally:
        ends.close()

    assert {partition: value.split()[0] for partition, (_, value) in found.items() if value} == dict.fromkeys(
        range(PARTITIONS), b"%d" % offset
    )


@pytest.mark.parametrize("code", [KafkaError._UNKNOWN_PARTITION, KafkaError._TRANSPORT])
def test_what_one_consumer_keeps_saying_is_asked_of_another(monkeypatch: pytest.MonkeyPatch, code: int):
    """librdkafka remembers for minutes that a broker which came back knew no topics, or loses all brokers."""

    class Remembers:
        made = 0

        def __init__(self, _: dict[str, Any]) -> None:
            Remembers.made += 1
            self.number = Remembers.made

        def get_watermark_offsets(self, partition: TopicPartition, *, timeout: float) -> tuple[int, int]:
            if self.number == 1:
                raise KafkaException(KafkaError(code))
            return partition.partition, 7

        def close(self) -> None:
            self.number = 0

    monkeypatch.setattr(module, "Consumer", Remembers)
    ends = LogEnds("127.0.0.1:1", "t")
    with pytest.raises(Unavailable):
        ends.ends({0, 1})

    assert ends.ends({0, 1}) == {0: (0, 7), 1: (1, 7)}
