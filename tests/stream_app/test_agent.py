"""The loop between transport and judging thread: what it acknowledges, waits for, stops and counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from core.errors import Unavailable
from service import metrics
from storage.postgres.ledger import Overtaken
from stream_app import agent
from stream_app.agent import Stream
from stream_app.carry_out import Outcome, OutOfStep, Slice, Stopped
from stream_app.hand import Hand
from stream_app.positions import Found
from tests.stream_app.world import Log, Raw, submitted


class Judge:
    """Answers each call with the next of its fates; afterwards all goes well."""

    def __init__(self, *fates: BaseException) -> None:
        self.fates, self.given = list(fates), []

    def forget(self) -> None: ...

    def carry_out(self, log: int, slices: list[Slice], watched: Any = None) -> Outcome:
        if self.fates:
            raise self.fates.pop(0)
        self.given.append([(piece.partition, piece.first, piece.last) for piece in slices])
        return Outcome(None)


class Letters:
    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []

    def send(self, letters: Any) -> None:
        self.sent += [(letter.partition, letter.offset) for letter in letters]


class Attempts:
    """Counts as table `attempts` does."""

    def __init__(self) -> None:
        self.tries: dict[tuple[int, int], int] = {}

    def known(self, log: int, partition: int, offset: int) -> int:
        return self.tries.get((partition, offset), 0)

    def put(self, log: int, tries: Mapping[tuple[int, int], int]) -> None:
        self.tries |= tries

    def passed(self, log: int, next_offsets: Mapping[int, int]) -> None:
        for partition, end in next_offsets.items():
            self.tries = {
                place: n for place, n in self.tries.items() if place[0] != partition or place[1] >= end
            }

    def close(self) -> None: ...


class Consumer:
    def __init__(self) -> None:
        self.stopped: set[int] = set()
        self.sought: list[tuple[int, int]] = []
        self.void: set[int] = set()

    def is_current(self, message: Any) -> bool:
        return message.partition not in self.stopped | self.void

    def stop_partition(self, partition: int) -> None:
        self.stopped.add(partition)

    async def seek_again(self, partition: int, offset: int) -> None:
        self.sought.append((partition, offset))
        self.void.add(partition)

    def assignment(self) -> set[Any]:
        return set()


class Batches:
    """Faust's stream: batches as events, counted by the world as they are taken."""

    def __init__(self, world: World, batches: Sequence[list[Raw]]) -> None:
        self._world, self._batches = world, batches
        self.ack = world.ack

    def noack(self) -> Batches:
        return self

    async def events(self) -> AsyncIterator[Any]:
        for records in self._batches:
            self._world.taken += 1
            message = SimpleNamespace(value=records, partition=records[0].partition)
            yield SimpleNamespace(message=message)


class World:
    """A stream with everything around it made up. `fed` batches are (partition, records)."""

    def __init__(self, *fates: BaseException, in_a_row: int = 3, batch_actions: int = 2000) -> None:
        self.taken = self.taken_before_judging = 0
        self.judge, self.letters, self.consumer = Judge(*fates), Letters(), Consumer()
        self.acknowledged: list[tuple[int, int]] = []
        self.stream = Stream(
            self.judge,  # type: ignore[arg-type]
            self.letters,  # type: ignore[arg-type]
            SimpleNamespace(add=lambda outcome: False),  # type: ignore[arg-type]
            [],
            Attempts(),
            batch_actions=batch_actions,
            dead_letters_in_a_row=in_a_row,
            defects_in_a_row=3,
            hand=Hand(),
        )
        self.stream.taken_up(Found(1, {0: 0, 1: 0}, {}))

    async def feed(self, *batches: list[Raw]) -> None:
        """Hand these on and wait until the loop has nothing left to do."""
        taking = asyncio.create_task(self.stream.take_in(Batches(self, batches)))
        for _ in range(100):
            await asyncio.sleep(0)
        self.taken_before_judging = self.taken
        running = asyncio.create_task(self.stream.run(lambda: self.consumer))
        for _ in range(2000):
            await asyncio.sleep(0.001)
            if running.done() or (taking.done() and not self.judge.fates and self._idle()):
                break
        taking.cancel()
        running.cancel()
        try:
            await running
        except asyncio.CancelledError:
            pass
        finally:
            self.stream.close()

    def _idle(self) -> bool:
        # The loop waits in `_next_group` again, so somebody waits for there to be something.
        return bool(self.stream._some._waiters)  # type: ignore[attr-defined]

    async def ack(self, event: Any) -> None:
        self.acknowledged.append((event.message.partition, event.message.value[-1].offset))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(agent, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(agent, "LONGEST_PAUSE_S", 0.002)


def records(partition: int, *kinds: str, first: int = 0) -> list[Raw]:
    """Records of one partition: "good" or "bad"."""
    log = Log()
    for number, kind in enumerate(kinds):
        if kind == "good":
            log.append(partition, submitted("ada", f"a{partition}-{first + number}"))
        else:
            log.append_raw(partition, b"poison")
    return [
        Raw(raw.topic, partition, raw.offset + first, raw.key, raw.value) for raw in log.records[partition]
    ]


def stopped(partition: int) -> float:
    return metrics.PARTITION_STOPPED.labels(str(partition))._value.get()


async def test_all_that_waits_is_judged_as_one_group_and_then_acknowledged():
    world = World()

    await world.feed(records(0, "good"), records(1, "good", "good"), records(0, "good", first=1))

    assert world.judge.given == [[(0, 0, 1), (1, 0, 1)]]
    assert world.acknowledged == [(0, 0), (1, 1), (0, 1)]


async def test_many_short_batches_wait_for_one_group_and_not_for_several():
    world = World()

    await world.feed(*(records(n % 2, "good", first=n // 2) for n in range(40)))

    assert world.judge.given == [[(0, 0, 19), (1, 0, 19)]]


async def test_what_waits_is_held_back_by_its_records():
    world = World(batch_actions=10)

    await world.feed(*(records(0, *["good"] * 5, first=5 * n) for n in range(20)))

    # Four batches are two groups' worth; the fifth is in the transport's hand.
    assert world.taken_before_judging == 5
    assert world.judge.given == [[(0, first, first + 9)] for first in range(0, 100, 10)]


async def test_what_is_away_is_waited_for_and_nothing_acknowledged_before():
    world = World(Unavailable("away"), Unavailable("still away"))

    await world.feed(records(0, "good"))

    assert world.judge.given == [[(0, 0, 0)]]
    assert world.acknowledged == [(0, 0)]


async def test_unreadable_records_are_sent_aside_and_acknowledged_with_the_others():
    world = World()

    await world.feed(records(0, "good", "bad", "good"))

    assert world.letters.sent == [(0, 1)]
    assert world.acknowledged == [(0, 2)]


async def test_a_partition_stops_alone_and_the_others_go_on():
    world = World(Stopped(0, "another log"))

    await world.feed(records(0, "good"), records(1, "good"))

    assert world.judge.given == [[(1, 0, 0)]]
    assert world.acknowledged == [(1, 0)]
    assert world.stream.stopped == {0: "another log"}
    assert (stopped(0), stopped(1)) == (1, 0)


async def test_a_gap_is_read_again_once_and_then_stops_the_partition():
    world = World(OutOfStep(0, 5, 7))
    await world.feed(records(0, "good", first=7))
    again = World(OutOfStep(0, 5, 7), OutOfStep(0, 5, 7))
    again.consumer.seek_again = _harmless  # type: ignore[method-assign]
    await again.feed(records(0, "good", first=7))

    assert (world.consumer.sought, world.consumer.stopped) == ([(0, 5)], set())
    assert again.consumer.stopped == {0}
    assert again.acknowledged == []


async def _harmless(partition: int, offset: int) -> None: ...


async def test_a_log_with_holes_stops_its_partition():
    world = World()
    first, _, third = records(0, "good", "good", "good")

    await world.feed([first, third])

    assert world.consumer.stopped == {0}
    assert world.judge.given == []


async def test_nothing_but_unreadable_records_stop_a_partition_beyond_the_limit():
    world = World(in_a_row=3)

    await world.feed(records(0, "bad", "bad", "bad", "bad"), records(1, "bad", "bad", "bad"))

    assert world.consumer.stopped == {0}
    assert world.acknowledged == [(1, 2)]
    assert stopped(0) == 1


async def test_a_readable_record_begins_the_count_anew():
    world = World(in_a_row=3)

    await world.feed(
        records(0, "bad", "bad", "bad", "good", "bad", "bad"),
        records(0, "good", "bad", "bad", "bad", first=6),
    )

    assert world.consumer.stopped == set()
    assert len(world.letters.sent) == 8


async def test_the_count_goes_on_from_group_to_group():
    world = World(in_a_row=3)
    world.stream._batch_actions = 1

    await world.feed(records(0, "bad", "bad"), records(0, "bad", "bad", first=2))

    assert world.consumer.stopped == {0}
    assert world.acknowledged == [(0, 1)]


async def test_a_step_that_is_repeated_counts_its_unreadable_records_once():
    world = World(*[Unavailable("away")] * 5, in_a_row=3)

    await world.feed(records(0, "bad", "bad"))

    assert world.consumer.stopped == set()
    assert world.acknowledged == [(0, 1)]


async def test_a_group_that_meets_a_defect_once_is_judged_as_it_was():
    world = World(ZeroDivisionError("of what was at hand"))

    await world.feed(records(0, "good", "good"), records(1, "good"))

    assert world.judge.given == [[(0, 0, 1), (1, 0, 0)]]
    assert world.letters.sent == []
    assert world.acknowledged == [(0, 1), (1, 0)]


async def test_want_of_memory_ends_the_loop_before_anything_is_acknowledged():
    world = World(MemoryError())

    with pytest.raises(MemoryError):
        await world.feed(records(0, "good"))

    assert world.acknowledged == []


async def test_a_group_whose_transaction_takes_too_long_is_carried_out_in_parts():
    too_long = [Unavailable("too long") for _ in range(2)]
    for error in too_long:
        error.__cause__ = psycopg.errors.TransactionTimeout()
    world = World(*too_long)

    await world.feed(records(0, "good", "good", "good"))

    assert world.judge.given == [[(0, 0, 0)], [(0, 1, 2)]]
    assert world.acknowledged == [(0, 2)]


async def test_a_group_that_others_always_judge_first_is_a_defect_and_not_waited_for():
    world = World(*[Overtaken("again") for _ in range(agent.OVERTAKEN_MOST + 1)])

    await world.feed(records(0, "good"))

    assert world.judge.given == [[(0, 0, 0)]]


async def test_a_batch_from_before_a_seek_is_dropped_unjudged():
    world = World()
    world.consumer.void = {0}

    await world.feed(records(0, "good"), records(1, "good"))

    assert world.judge.given == [[(1, 0, 0)]]
    assert world.acknowledged == [(1, 0)]
