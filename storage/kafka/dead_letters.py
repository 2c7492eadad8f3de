"""The dead-letter topic: the original bytes, where they stood, and why they could not be read."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from confluent_kafka import Producer

from core import events, topics
from core.errors import Unavailable
from core.times import format_us
from storage.kafka.delivery import hearing, offset_of

CONFIRM_S: Final = 10.0
_DETAIL_BYTES: Final = 500


class DeadLetters:
    """A producer that returns only when Kafka has confirmed. Blocks; one thread."""

    def __init__(self, bootstrap: str, *, kafka: Mapping[str, Any] | None = None) -> None:
        self._conf = {
            "bootstrap.servers": bootstrap,
            "client.id": "trueboard-dead-letters",
            "acks": "all",
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "message.max.bytes": topics.MAX_RECORD_BYTES,
            "message.timeout.ms": int(CONFIRM_S * 1000),
            "log_level": 0,
            **(kafka or {}),
        }
        self._producer: Producer | None = None

    def send(self, letters: Iterable[Any]) -> None:
        """Set these records aside (`stream_app.intake.DeadLetter`), confirmed.

        Raises:
            Unavailable: not all of them are confirmed; sending them again is harmless.
        """
        try:
            self._send(letters)
        except Unavailable:
            # It may have lost every broker for good (`storage.kafka.silence`).
            self._producer = None
            raise

    def _send(self, letters: Iterable[Any]) -> None:
        if self._producer is None:
            self._producer = Producer(self._conf)
        failed: list[str] = []

        def confirmed(error: Any, message: Any) -> None:
            if error is not None or offset_of(message) is None:
                failed.append(str(error or "no offset"))

        with hearing():
            for letter in letters:
                key = f"{letter.topic}-{letter.partition}-{letter.offset}"
                self._producer.produce(
                    topics.DEAD.name,
                    key=key,
                    value=letter.value,
                    headers=[
                        *_event(key, letter.headers),
                        ("reason", letter.reason.encode()),
                        ("detail", letter.detail.encode()[:_DETAIL_BYTES].decode(errors="ignore").encode()),
                        ("origin_topic", letter.topic.encode()),
                        ("origin_partition", str(letter.partition).encode()),
                        ("origin_offset", str(letter.offset).encode()),
                    ],
                    on_delivery=confirmed,
                )
            left = self._producer.flush(CONFIRM_S)
        if left or failed:
            raise Unavailable(f"Kafka has not confirmed the dead letters: {left} left, {failed[:1]}")


def _event(event_id: str, original: Sequence[tuple[str, bytes | None]]) -> events.Headers:
    """The headers of an event, in the trace of the record that is set aside."""
    trace = next((value for name, value in original if name == "traceparent" and value), None)
    traceparent = events.derived_traceparent(event_id) if trace is None else trace.decode("ascii", "replace")
    return events.headers(topics.DEAD, event_id, format_us(time.time_ns() // 1000), traceparent)
