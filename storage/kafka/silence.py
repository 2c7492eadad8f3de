"""Whether a consumer that hears nothing is still talked to.

librdkafka lets go of every broker it knows when one that comes back answers that the cluster has
none, and may then never ask anybody again (https://github.com/confluentinc/librdkafka/issues/5301).
To a consumer that looks like a topic to which nothing is written, so it is asked something.
"""

from __future__ import annotations

import time
from typing import Any, Final

from confluent_kafka import KafkaException, TopicPartition

ASK_AFTER_S: Final = 10.0
_ANSWER_S: Final = 5.0


class Silence:
    """How long a consumer has heard nothing. One thread: that of its consumer."""

    def __init__(self) -> None:
        self._since_s = time.monotonic()

    def heard(self) -> None:
        """Something has come."""
        self._since_s = time.monotonic()

    def is_deaf(self, consumer: Any, topic: str, partition: int) -> bool:
        """Whether it has been silent for long and gets no answer either: make another. Blocks for 5 s."""
        if time.monotonic() - self._since_s < ASK_AFTER_S:
            return False
        self.heard()
        try:
            ends = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=_ANSWER_S)
        except KafkaException:
            return True
        return ends is None
