"""The stream's loop: partition batches in, one transaction a group, everything else told of it.

Errors by what to do next: unreadable records go to the dead-letter topic and the group goes on;
what is away is waited for and the same step repeated; a log that is not the one read before stops
its partition; anything else is a defect, and `trying` finds whose.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from core.errors import Unavailable
from service import failpoints, logs, metrics
from storage.kafka.dead_letters import DeadLetters
from storage.postgres.ledger import Overtaken
from stream_app import intake
from stream_app.carry_out import Judge, Outcome, OutOfStep, Slice, Stopped
from stream_app.following import Following
from stream_app.hand import Hand
from stream_app.positions import Found, Marks
from stream_app.replying import Replier
from stream_app.trying import Counting, Done, Piece, Run, Trials

FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 2.0
QUEUED_GROUPS: Final = 2
"""How many groups' worth of records may wait. Counted in records: many short batches, as quiet
partitions bring, are one group all the same and must not wait for several."""

OVERTAKEN_MOST: Final = 10
"""How often in a row others may have been quicker; beyond that nobody was."""

TOO_LARGE: Final = ("25P04", "53200")
"""SQLSTATEs that may be the group's own doing: its transaction took too long, or too much memory."""

_log = logs.get("stream_app.agent")


class Stream:
    """Judges what the transport hands on. Lives on the event loop; the work is done in one thread."""

    def __init__(
        self,
        judge: Judge,
        dead_letters: DeadLetters,
        replier: Replier,
        followers: Sequence[Following],
        attempts: Counting,
        *,
        batch_actions: int,
        dead_letters_in_a_row: int,
        defects_in_a_row: int,
        hand: Hand,
    ) -> None:
        self._judge, self._dead_letters, self._replier = judge, dead_letters, replier
        self._trials = Trials(
            self._carried_out,
            judge,
            dead_letters,
            attempts,
            group_records=batch_actions,
            defects_in_a_row=defects_in_a_row,
        )
        self._followers, self._hand = followers, hand
        self._batch_actions, self._in_a_row_most = batch_actions, dead_letters_in_a_row
        self._queue: deque[tuple[Any, Any]] = deque()
        self._queued_records, self._queued_most = 0, QUEUED_GROUPS * batch_actions
        self._some, self._room = asyncio.Event(), asyncio.Event()
        self._room.set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="judge")
        self._find_consumer: Callable[[], Any] = lambda: None
        self._consumer: Any = None
        self._in_a_row: defaultdict[int, int] = defaultdict(int)
        self._sought_again: dict[int, int] = {}
        self.log = 0
        self.stopped: dict[int, str] = {}
        self.next_offsets: dict[int, int] = {}
        self.marks = Marks({})
        self.ends: dict[int, int] = {}
        """Where each log that answers was last seen to end, whatever was fetched of it."""
        self.last_finished_s = time.monotonic()
        """When a step last came to an end, be it that what it needs is away."""

    def taken_up(self, found: Found) -> None:
        """Partitions were assigned and looked at; all that came before is void."""
        self.log = found.log
        self.stopped = dict(found.stopped)
        self.next_offsets = dict(found.offsets)
        self.marks = Marks(found.before)
        self.ends = {}
        self._sought_again.clear()
        self._in_a_row.clear()
        self._trials.taken_up()
        self.last_finished_s = time.monotonic()
        metrics.PARTITION_STOPPED.clear()
        metrics.STREAM_LAG_RECORDS.clear()
        for partition in found.offsets:
            metrics.PARTITION_STOPPED.labels(str(partition)).set(0)
        for partition in found.stopped:
            metrics.PARTITION_STOPPED.labels(str(partition)).set(1)

    async def take_in(self, stream: Any) -> None:
        """Faust's agent: hand each batch on, unacknowledged; a full queue holds the transport back."""
        async for event in stream.noack().events():
            await self._room.wait()
            self._queue.append((stream, event))
            self._queued(len(event.message.value))

    def _queued(self, records: int) -> None:
        self._queued_records += records
        for event, is_so in (
            (self._some, bool(self._queue)),
            (self._room, self._queued_records < self._queued_most),
        ):
            if is_so:
                event.set()
            else:
                event.clear()

    async def run(self, consumer: Callable[[], Any]) -> None:
        """Judge group after group until cancelled."""
        self._find_consumer = consumer
        while True:
            group = await self._next_group()
            self._consumer = consumer()
            try:
                await self._judged(group)
            finally:
                self.last_finished_s = time.monotonic()

    async def _next_group(self) -> list[tuple[Any, Any]]:
        """All that waits, up to one transaction's worth, one batch at least."""
        await self._some.wait()
        group: list[tuple[Any, Any]] = []
        size = 0
        while self._queue:
            records = len(self._queue[0][1].message.value)
            if group and size + records > self._batch_actions:
                break
            group.append(self._queue.popleft())
            size += records
        self._queued(-size)
        return group

    async def _judged(self, group: list[tuple[Any, Any]]) -> None:
        """See a group to its end: in one piece, or in as many as a defect makes of it."""
        loop = asyncio.get_running_loop()
        dropped: set[int] = set()
        todo = deque([Piece([Run(event, event.message.value) for _, event in group])])
        pause_s = FIRST_PAUSE_S
        while todo:
            piece = todo[0]
            dropped |= {
                id(run.event) for run in piece.runs if not self._consumer.is_current(run.event.message)
            }
            piece.runs = [run for run in piece.runs if id(run.event) not in dropped]
            if not piece.runs:
                todo.popleft()
                continue
            try:
                tried = await loop.run_in_executor(self._thread, self._trials.attempt, self.log, piece)
            except OutOfStep as error:
                await self._out_of_step(error)
            except Stopped as error:
                self.stop(error.partition, error.detail)
            except Exception as error:
                if parts := await self._parts_after(piece, error):
                    todo.popleft()
                    todo.extendleft(reversed(parts))
                    continue
                self.last_finished_s = time.monotonic()
                _log.warning("stream_waits", detail=str(error)[:300], pause_s=pause_s)
                await asyncio.sleep(pause_s * (0.5 + random.random()))
                pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
            else:
                todo.popleft()
                pause_s = FIRST_PAUSE_S
                if isinstance(tried, Done):
                    self.last_finished_s = time.monotonic()
                    self._told(tried.outcome, tried.slices)
                else:
                    todo.extendleft(reversed(tried))
        failpoints.reach("stream.told")
        for stream, event in group:
            if id(event) not in dropped:
                await stream.ack(event)
        failpoints.reach("stream.acknowledged")

    async def _parts_after(self, piece: Piece, error: Exception) -> list[Piece]:
        """What to try in the place of a piece that raised; nothing where waiting is all there is.

        Raises:
            Exception: the error, where the process is to end of it.
        """
        if isinstance(error, Unavailable):
            too_large = getattr(error.__cause__, "sqlstate", None) in TOO_LARGE
            overtaken = isinstance(error, Overtaken)
            piece.waited = piece.waited + 1 if too_large or overtaken else 0
            if too_large and piece.waited > 1 and piece.size > 1:
                return piece.halves()
            if not overtaken or piece.waited <= OVERTAKEN_MOST:
                return []
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._trials.after, piece, error)

    async def _out_of_step(self, error: OutOfStep) -> None:
        if error.partition in self.stopped:
            return
        if self._sought_again.get(error.partition) == error.next_offset:
            self.stop(error.partition, f"{error}: records in between are gone")
            return
        self._sought_again[error.partition] = error.next_offset
        _log.warning("seek_again", partition=error.partition, detail=str(error))
        await self._consumer.seek_again(error.partition, error.next_offset)

    def stop(self, partition: int, why: str) -> None:
        """Judge nothing more of this partition until it is taken up again."""
        self.stopped[partition] = why
        metrics.PARTITION_STOPPED.labels(str(partition)).set(1)
        _log.error("partition_stopped", partition=partition, detail=why)
        self._find_consumer().stop_partition(partition)

    def _carried_out(self, log: int, piece: Piece) -> Done:
        """In the judging thread: decode, set aside, judge and write."""
        failpoints.reach("stream.fetched")
        begun_s = time.perf_counter()
        joined: dict[int, list[Any]] = {}
        for run in piece.runs:
            joined.setdefault(run.partition, []).extend(run.records)
        slices, dead = [], []
        in_a_row: dict[int, int] = {}
        with self._trials.watched():
            for partition in sorted(joined):
                records = joined[partition]
                if records[-1].offset - records[0].offset + 1 != len(records):
                    raise Stopped(partition, "the log has holes: it was compacted or written in transactions")
                part, letters = intake.read_slice(records)
                in_a_row[partition] = self._counted_in_a_row(part)
                slices.append(part)
                dead += letters
        if dead:
            self._dead_letters.send(dead)
            failpoints.reach("stream.letters_sent")
        outcome = self._judge.carry_out(log, slices, self._trials.watched)
        # Only now: a step that has to be repeated counts once.
        self._in_a_row.update(in_a_row)
        if outcome.content is not None:
            self._hand.put(outcome.content)
        for letter in dead:
            metrics.DEAD_LETTERS.labels(letter.reason).inc()
            _log.warning(
                "dead_letter", partition=letter.partition, offset=letter.offset, reason=letter.reason
            )
        metrics.LEDGER_COMMIT_SECONDS.observe(time.perf_counter() - begun_s)
        return Done(outcome, slices)

    def _counted_in_a_row(self, piece: Slice) -> int:
        """How many unreadable records in a row the partition has come to.

        Raises:
            Stopped: more than are believed to be the records' fault.
        """
        before = self._in_a_row[piece.partition]
        run = 0 if piece.incoming else before
        ends_unreadable = 0
        for offset in range(piece.last, piece.first - 1, -1):
            if offset not in piece.unreadable:
                break
            ends_unreadable += 1
        in_a_row = run + ends_unreadable
        if in_a_row > self._in_a_row_most:
            raise Stopped(
                piece.partition,
                f"{in_a_row} unreadable records in a row, up to offset {piece.last}: "
                "whoever writes them has to be stopped first",
            )
        return in_a_row

    def _told(self, outcome: Outcome, slices: Sequence[Slice]) -> None:
        self._replier.add(outcome)
        if outcome.position is not None or outcome.answers:
            for follower in self._followers:
                follower.wake(in_hand=True)
        for piece in slices:
            self.next_offsets[piece.partition] = piece.last + 1
            self.marks.add(piece.partition, piece.last, piece.last_fingerprint)
        for (verdict, reason), count in outcome.verdicts.items():
            metrics.SCORE_UPDATES.labels(verdict, reason).inc(count)
        traces = []
        if outcome.content is not None:
            traces = [row.traceparent[3:35] for row in outcome.content.rows[:20] if row.traceparent]
        metrics.BATCH_ACTIONS.observe(outcome.judged)
        if outcome.position is not None:
            metrics.REVISIONS.labels("stream").inc()
        _log.info(
            "batch_judged",
            revision=None if outcome.position is None else outcome.position.revision,
            judged=outcome.judged,
            repeated=outcome.repeated,
            redelivered=outcome.redelivered,
            changed=outcome.changed_entries,
            progress={str(piece.partition): piece.last + 1 for piece in slices},
            trace_ids=traces,
        )
        self.measure()

    def measure(self) -> None:
        """Put the present lag into the metrics."""
        for partition, lag in self.lags().items():
            metrics.STREAM_LAG_RECORDS.labels(str(partition)).set(lag)

    def lags(self) -> dict[int, int]:
        """Records not judged yet, of each partition that is read, as far as its end is known."""
        consumer = self._find_consumer()
        if consumer is None:
            return {}
        lags = {}
        for tp in consumer.assignment():
            next_offset = self.next_offsets.get(tp.partition)
            ends = [end for end in (consumer.highwater(tp), self.ends.get(tp.partition)) if end is not None]
            if next_offset is not None and ends:
                lags[tp.partition] = max(0, max(ends) - next_offset)
        return lags

    def close(self) -> None:
        """Let what is in the judging thread's hands come to its end."""
        self._thread.submit(self._trials.close)
        self._thread.shutdown(wait=True)
