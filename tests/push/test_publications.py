"""Publications as a real Kafka brings them."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from core import events
from core.feed import Publication
from core.words import MAIN_PERIOD
from push import publications
from push.publications import Publications
from storage.kafka import silence
from tests.conftest import Kafka
from tests.deaf import Deafened
from tests.push.views import publication

pytestmark = pytest.mark.kafka


async def _until(held: list[int], last: int) -> None:
    deadline_s = time.monotonic() + 15
    while not held or held[-1] != last:
        assert time.monotonic() < deadline_s, held
        await asyncio.sleep(0.005)


async def _made(kafka: Kafka, partitions: int) -> tuple[str, Producer]:
    """A topic of the test's own, and somebody who writes to it."""
    topic = f"changed-{secrets.token_hex(4)}"
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    for made in admin.create_topics([NewTopic(topic, partitions, 1)]).values():
        await asyncio.to_thread(made.result, 20)
    return topic, Producer({"bootstrap.servers": kafka.bootstrap, "linger.ms": 0})


async def test_reading_begins_with_some_earlier_records_and_goes_on_at_once(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publications, "EARLIER_RECORDS", 3)
    topic, producer = await _made(kafka, 12)
    held: list[int] = []
    times_s: list[float] = []

    def send(revision: int, period: str = MAIN_PERIOD) -> None:
        producer.produce(topic, events.encode(publication(revision)), key=period.encode())
        assert producer.flush(10) == 0

    def deliver(brought: Sequence[Publication]) -> None:
        held.extend(one.revision for one in brought)
        times_s.append(time.monotonic())

    for revision in range(1, 6):
        await asyncio.to_thread(send, revision)
    await asyncio.to_thread(send, 99, "other:all-time")
    reader = Publications(kafka.bootstrap, wanted={MAIN_PERIOD}.__contains__, deliver=deliver, topic=topic)
    reading = asyncio.create_task(reader.run())
    await asyncio.wait_for(reader.caught_up.wait(), 20)
    at_start = list(held)
    took_s = []
    for revision in range(6, 16):
        began_s = time.monotonic()
        await asyncio.to_thread(send, revision)
        await _until(held, revision)
        took_s.append(times_s[-1] - began_s)
    reading.cancel()
    await asyncio.wait([reading])

    assert reader.assigned
    assert at_start[-1] == 5
    assert held == list(range(at_start[0], 16))
    assert at_start[0] in (3, 4), "another period's record may lie in the same partition"
    assert sorted(took_s)[5] < 0.1


async def test_a_consumer_that_lost_every_broker_is_replaced(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumers = Deafened()
    monkeypatch.setattr(publications, "Consumer", consumers)
    monkeypatch.setattr(silence, "ASK_AFTER_S", 0.3)
    topic, producer = await _made(kafka, 2)
    held: list[int] = []

    def send(revision: int) -> None:
        producer.produce(topic, events.encode(publication(revision)), key=MAIN_PERIOD.encode())
        assert producer.flush(10) == 0

    reader = Publications(
        kafka.bootstrap,
        wanted={MAIN_PERIOD}.__contains__,
        deliver=lambda brought: held.extend(one.revision for one in brought),
        topic=topic,
    )
    reading = asyncio.create_task(reader.run())
    await asyncio.wait_for(reader.caught_up.wait(), 20)
    await asyncio.to_thread(send, 1)
    await _until(held, 1)
    # Silent and answered: it stays.
    await asyncio.sleep(1)
    silent = len(consumers.made)
    consumers.deafen()
    await asyncio.to_thread(send, 2)
    await _until(held, 2)
    reading.cancel()
    await asyncio.wait([reading])

    assert silent == 1
    assert len(consumers.made) == 2
