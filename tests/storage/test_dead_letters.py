"""Setting records aside: only what is in the topic counts as sent."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from core import topics
from core.errors import Unavailable
from storage.kafka.dead_letters import DeadLetters
from stream_app.intake import DeadLetter
from tests.storage.reading_topics import Reader

PRODUCE = 0


def letter(offset: int) -> DeadLetter:
    return DeadLetter(topics.SUBMITTED.name, 0, offset, b"k", b"{", (), "unreadable", "no JSON")


def test_a_letter_that_was_refused_is_not_confirmed_by_the_next_one(memory_kafka):
    """Kafka takes a new producer's second batch where it has refused the first, as a partition moves."""
    memory_kafka.make_topic(topics.DEAD.name, 1)
    sender = DeadLetters(memory_kafka.bootstrap, kafka={"batch.num.messages": 1})
    reader = Reader(memory_kafka.bootstrap, topics.DEAD.name)
    memory_kafka.delay(1, 100)
    memory_kafka.fail_next(PRODUCE, KafkaError.NOT_LEADER_FOR_PARTITION)

    with pytest.raises(Unavailable):
        sender.send([letter(1), letter(2)])
    sender.send([letter(1), letter(2)])

    memory_kafka.delay(1, 0)
    offsets = {dict(record.headers)["origin_offset"] for record in reader.read()[topics.DEAD.name]}
    reader.close()
    assert offsets == {b"1", b"2"}
