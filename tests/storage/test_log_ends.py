"""Single records are found wherever they stand, also within large batches of every partition."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

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
