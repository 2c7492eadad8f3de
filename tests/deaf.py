"""Clients of Kafka that have lost every broker for good, as librdkafka's may (`storage.kafka.silence`)."""

from __future__ import annotations

from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException

NO_BROKER = KafkaException(KafkaError(KafkaError._TRANSPORT))


class Deafened:
    """Makes consumers, and can deafen those made so far: nothing comes to them, nobody answers them."""

    def __init__(self) -> None:
        self.made: list[_Consumer] = []

    def __call__(self, *settings: Any, **more: Any) -> Consumer:
        self.made.append(_Consumer(*settings, **more))
        return self.made[-1]

    def deafen(self) -> None:
        for consumer in self.made:
            consumer.is_deaf = True


class _Consumer(Consumer):
    is_deaf = False

    def poll(self, *wait: Any) -> Any:
        message = super().poll(*wait)
        return None if self.is_deaf else message

    def consume(self, *wait: Any) -> Any:
        messages = super().consume(*wait)
        return [] if self.is_deaf else messages

    def get_watermark_offsets(self, *asked: Any, **more: Any) -> Any:
        if self.is_deaf:
            raise NO_BROKER
        return super().get_watermark_offsets(*asked, **more)
