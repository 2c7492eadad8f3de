"""Setting records aside: only what is in the topic counts as sent."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from core import topics
from core.errors import Unavailable
from storage.kafka.dead_letters import DeadLetters
from stream_app.intake import DeadLetter
from tests.storage.reading_topics import Reader
from trueboard.devstack.kafka.memory import PRODUCE


def letter(offset: int, *headers: tuple[str, bytes]) -> DeadLetter:
    return DeadLetter(topics.SUBMITTED.name, 0, offset, b"k", b"{", headers, "unreadable", "no JSON")


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


@pytest.mark.parametrize("traced", [True, False])
def test_a_letter_is_an_event_in_the_trace_of_its_record(memory_kafka, traced):
    memory_kafka.make_topic(topics.DEAD.name, 1)
    trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    sender = DeadLetters(memory_kafka.bootstrap)
    reader = Reader(memory_kafka.bootstrap, topics.DEAD.name)
    sender.send([letter(7, *([("traceparent", trace)] if traced else []))])
    (record,) = reader.read()[topics.DEAD.name]
    reader.close()
    headers = dict(record.headers)

    assert record.key == record.event_id == f"{topics.SUBMITTED.name}-0-7"
    assert (headers["ce_type"], headers["content-type"]) == (
        topics.DEAD.name.encode(),
        b"application/octet-stream",
    )
    assert (headers["traceparent"] == trace) == traced
    assert (headers["reason"], headers["detail"]) == (b"unreadable", b"no JSON")


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_producer_that_is_lost_while_letters_are_confirmed_is_away_and_made_anew(memory_kafka, wrapped):
    memory_kafka.make_topic(topics.DEAD.name, 1)
    sender = DeadLetters(memory_kafka.bootstrap)
    fatal = KafkaException(KafkaError(KafkaError._FATAL, "lost", fatal=True))

    class Lost:
        def produce(self, *_: Any, **__: Any) -> None: ...

        def flush(self, _timeout_s: float) -> int:
            if wrapped:
                raise SystemError("a result with an exception set") from fatal
            raise fatal

    sender._producer = Lost()  # type: ignore[assignment]
    with pytest.raises(Unavailable):
        sender.send([letter(1)])

    sender.send([letter(1)])
