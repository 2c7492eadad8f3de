"""Which of the records that a fetch brought are handed on after a seek."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from stream_app.transport import GATHER_BYTES, GATHER_MS, BatchConsumer, next_fetch

HERE = TP("submitted", 9)


class Consumer(BatchConsumer):
    """Of the real one only what handing on needs; `handed` are the offsets of each batch."""

    def __init__(self) -> None:
        self.app = SimpleNamespace(
            consumer_generation_id=1, max_batch=100, monitor=SimpleNamespace(track_tp_end_offset=_nothing)
        )
        self.flow_active = True
        self.handed: list[list[int]] = []
        self.callback = self._take
        self._inflight, self._read_offset = defaultdict(_list), {}
        self._sought: dict[TP, int] = {}

    async def _take(self, message: Any) -> None:
        self.handed.append([record.offset for record in message.value])

    def highwater(self, tp: TP) -> int:
        return 1000

    def seek(self, offset: int) -> None:
        self._sought[HERE] = self._sought.get(HERE, 0) + 1
        self._read_offset[HERE] = offset

    async def hand_on(self, first: int, last: int, asked_after: int) -> None:
        """A fetch of these offsets, asked for after so many seeks."""
        found = [
            SimpleNamespace(topic=HERE.topic, partition=9, offset=offset, timestamp=0, timestamp_type=0)
            for offset in range(first, last + 1)
        ]
        await self._hand_on({HERE: found}, None, {HERE: asked_after})


def _nothing(*_: Any) -> None: ...


def _list() -> list[Any]:
    return []


async def test_what_was_asked_for_before_a_seek_back_is_not_handed_on():
    consumer = Consumer()
    consumer.seek(118)
    consumer.seek(7)

    await consumer.hand_on(118, 120, asked_after=1)
    await consumer.hand_on(7, 9, asked_after=2)

    assert consumer.handed == [[7, 8, 9]]


async def test_what_begins_where_was_sought_is_handed_on_whenever_it_was_asked_for():
    consumer = Consumer()
    consumer.seek(118)
    consumer.seek(7)

    await consumer.hand_on(5, 9, asked_after=1)

    assert consumer.handed == [[7, 8, 9]]


async def test_a_gap_that_was_asked_for_since_is_handed_on_to_be_looked_at():
    consumer = Consumer()
    consumer.seek(7)

    await consumer.hand_on(9, 10, asked_after=1)

    assert consumer.handed == [[9, 10]]


async def test_a_partition_without_a_position_ends_nothing():
    """Faust's own watch asserts one; aiokafka has none while an offset is out of range."""
    consumer = Consumer()
    consumer.seek(7)

    await consumer.verify_all_partitions_active()

    assert consumer.handed == []


@pytest.mark.parametrize(
    ("records", "waits_for"),
    [
        (0, (1, 300)),
        (1, (1, 20)),
        (3, (1, 20)),
        (4, (GATHER_BYTES, GATHER_MS)),
        (6000, (GATHER_BYTES, GATHER_MS)),
    ],
)
def test_the_broker_gathers_only_where_several_records_come_together(records, waits_for):
    assert next_fetch(records, longest_ms=20, idle_ms=300) == waits_for
