"""The topics as a broker gives them: starts, gaps, logs that end earlier than what was read of them."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from auditor import reading as module
from auditor.audit import Audit
from auditor.horizon import TOPICS
from auditor.reading import Reading, StartsLater
from auditor.records import BOARD_CHANGED, JUDGED, MAIN, PLAYER
from storage.kafka import silence
from tests.auditor.test_audit import of_twelve
from tests.auditor.world import EPOCH, Recorder, World, encoded, horizon
from tests.deaf import Deafened
from trueboard.devstack.kafka.memory import MockCluster

PATIENCE_S = 30.0
STARTS = {(topic, partition): 0 for topic in TOPICS for partition in range(2)}


@pytest.fixture
def broker(memory_kafka: MockCluster) -> MockCluster:
    for topic in TOPICS:
        memory_kafka.make_topic(topic, 2)
    return memory_kafka


def send(broker: MockCluster, world: World, *, without: tuple[str, ...] = ()) -> dict[tuple[str, int], int]:
    """Put a world's records on the topics; where each partition ends then."""
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    ends = dict(STARTS)

    def produce(topic: str, key: str, value: bytes | None, revision: int) -> None:
        if topic in without:
            return
        partition = 0 if topic == BOARD_CHANGED else int(key[0], 16) % 2
        ends[topic, partition] += 1
        producer.produce(
            topic,
            key=key,
            value=value,
            partition=partition,
            headers=[("ce_id", f"{key}/{EPOCH}/{revision}".encode())],
        )

    for revision in world.revisions:
        for player, person in revision.people:
            produce(PLAYER, player, encoded(person), revision.number)
        for record in revision.judged:
            produce(JUDGED, record["player"], encoded(record), revision.number)
        if revision.publication is not None:
            produce(BOARD_CHANGED, MAIN.decode(), encoded(revision.publication), revision.number)
    assert producer.flush(PATIENCE_S) == 0
    return ends


@pytest.fixture
def audit() -> Audit:
    return Audit(Recorder(), EPOCH, 1, {})


def read_to(reading: Reading, audit: Audit, ends: dict[tuple[str, int], int]) -> None:
    target = replace(horizon(3, asked_s=1e12), ends=ends)
    deadline_s = time.monotonic() + PATIENCE_S
    while not reading.has_read_to(target):
        assert time.monotonic() < deadline_s, "the ends were not reached"
        reading.step(audit, 0.1, 0.0)
    audit.advance(target)


def test_everything_from_the_first_record_on_is_handed_on(broker: MockCluster, audit: Audit):
    world = of_twelve()
    ends = send(broker, world)
    reading = Reading(broker.bootstrap, STARTS, ends)
    try:
        read_to(reading, audit, ends)
    finally:
        reading.close()

    assert len(audit.recount.actions) == 16
    assert [audit.recount.users[place[3]] for place in audit.recount.first(2, set())] == ["u05", "u12"]
    assert audit.recount.count == 12


def test_a_broker_that_goes_away_is_waited_for(broker: MockCluster, audit: Audit):
    ends = send(broker, of_twelve())
    reading = Reading(broker.bootstrap, STARTS, ends)
    try:
        broker.take_down(1)
        reading.step(audit, 0.5, 0.0)
        broker.bring_up(1)
        read_to(reading, audit, ends)
    finally:
        reading.close()

    assert len(audit.recount.actions) == 16


def test_a_consumer_that_lost_every_broker_is_replaced_where_it_was(
    broker: MockCluster, audit: Audit, monkeypatch: pytest.MonkeyPatch
):
    consumers = Deafened()
    monkeypatch.setattr(module, "Consumer", consumers)
    monkeypatch.setattr(silence, "ASK_AFTER_S", 0.3)
    ends = send(broker, of_twelve())
    reading = Reading(broker.bootstrap, STARTS, ends)
    try:
        consumers.deafen()
        read_to(reading, audit, ends)
    finally:
        reading.close()

    assert len(consumers.made) == 2
    assert len(audit.recount.actions) == 16


def test_a_log_that_does_not_begin_with_its_first_record_cannot_be_counted():
    with pytest.raises(StartsLater):
        Reading("127.0.0.1:1", STARTS | {(JUDGED, 1): 5}, STARTS)


def test_a_log_that_ends_before_what_was_read_of_it_is_another_one(broker: MockCluster, audit: Audit):
    ends = send(broker, of_twelve())
    reading = Reading(broker.bootstrap, STARTS, ends)
    try:
        read_to(reading, audit, ends)

        assert not reading.is_ahead_of(ends)
        assert reading.is_ahead_of(STARTS)
    finally:
        reading.close()


def test_ids_of_events_name_epoch_and_revision(broker: MockCluster):
    # Of a player whose records came after the audit's start the revision decides when they hold.
    report = Recorder()
    audit = Audit(report, EPOCH, 0, {})
    world = of_twelve()
    world.revise(("act", "late", "x", 1))
    ends = send(broker, world, without=(JUDGED, BOARD_CHANGED))
    reading = Reading(broker.bootstrap, STARTS, ends)
    try:
        read_to(reading, audit, ends)
    finally:
        reading.close()

    assert audit.recount.player_of("u01") is not None
    assert audit.recount.player_of("late") is None


def test_the_ends_of_the_in_memory_brokers_logs_can_be_asked_for(broker: MockCluster):
    from confluent_kafka import TopicPartition
    from confluent_kafka.admin import OffsetSpec

    ends = send(broker, of_twelve())
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    told = admin.list_offsets({TopicPartition(*place): OffsetSpec.latest() for place in STARTS})

    assert {(p.topic, p.partition): f.result(PATIENCE_S).offset for p, f in told.items()} == ends
