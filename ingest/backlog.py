"""How far the stream is behind what was confirmed here: the age of the oldest unjudged action.

Several times a second the offsets that Kafka confirmed to this process are noted with the
time, once a second `progress` is read beside them. An age is never shown as less than it is, and
as more by at most one note's pause. What another instance had confirmed is not seen here.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from core.errors import Unavailable
from core.topics import SUBMITTED
from service import logs, metrics

_LEFT_BEHIND_S = 10.0
"""A partition that stood still for so long while others moved is stopped: only its own users wait."""

_MOST_NOTES = 4096
_DRAIN_OVER_S = 10.0
_UNKNOWN_RETRY_S = 30
_MOST_RETRY_S = 60

_log = logs.get("ingest.backlog")


@dataclass(slots=True)
class _Partition:
    """Notes of (highest offset confirmed, no earlier than), oldest first, for what is not judged."""

    notes: deque[tuple[int, float]] = field(default_factory=deque)
    confirmed: int = -1
    next_offset: int = 0
    log: int | None = None
    moved_s: float = -math.inf
    """When its next offset was last seen to move."""


class Backlog:
    """Whether to keep callers waiting, and whether to take more. `clock_s` is monotonic."""

    def __init__(
        self,
        acknowledged: dict[tuple[str, int], int],
        *,
        late_after_s: float = 5.0,
        shed_after_s: float = 60.0,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.late = False
        """The oldest, but for partitions that are stopped, is older than `late_after_s`: nobody is kept
        waiting."""
        self.oldest_s = 0.0
        self._acknowledged = acknowledged
        self._late_after_s, self._shed_after_s = late_after_s, shed_after_s
        self._clock_s = clock_s
        self._partitions: dict[int, _Partition] = {}
        self._noted_at_s = clock_s()
        self._drained: deque[tuple[float, int]] = deque()
        self._shedding = False

    def note(self) -> None:
        """Note what was confirmed since the last time, and how old the oldest is now."""
        now_s = self._clock_s()
        for (topic, number), offset in self._acknowledged.items():
            if topic != SUBMITTED.name:
                continue
            partition = self._partitions.setdefault(number, _Partition())
            if offset < partition.confirmed:
                self._cut(partition, offset + 1)
            if offset > partition.confirmed:
                # Confirmed after the last note, so none of it is older than that.
                partition.notes.append((offset, self._noted_at_s))
                partition.confirmed = offset
                if len(partition.notes) > _MOST_NOTES:
                    _halve(partition.notes)
        self._noted_at_s = now_s
        self._look(now_s)

    def waiting(self, longer_than_s: float) -> dict[int, int]:
        """Partitions in which a confirmed action waits for so long, with the last offset confirmed."""
        before_s = self._clock_s() - longer_than_s
        return {
            number: partition.confirmed
            for number, partition in self._partitions.items()
            if partition.notes and partition.notes[0][1] < before_s
        }

    def ended(self, waiting: Mapping[int, int], ends: Mapping[int, int]) -> None:
        """Logs were seen to end before `ends`, after `waiting` had been confirmed: partition → offset.

        What was confirmed at an end or beyond it is lost. It is said with numbers, and no longer
        counts as waiting: nobody will ever judge it.
        """
        for number, confirmed in waiting.items():
            place, end = (SUBMITTED.name, number), ends.get(number)
            # What was confirmed meanwhile says by itself where the log stands.
            if end is None or end > confirmed or self._acknowledged.get(place) != confirmed:
                continue
            metrics.LOST_RECORDS.inc(confirmed - end + 1)
            _log.error(
                "confirmed_records_lost",
                topic=SUBMITTED.name,
                partition=number,
                confirmed=confirmed,
                now=end - 1,
                at_least=confirmed - end + 1,
            )
            self._acknowledged[place] = end - 1
            self._cut(self._partitions[number], end)
        self._look(self._clock_s())

    def judged_up_to(self, progress: Mapping[int, tuple[int, int]]) -> None:
        """Take in table `progress`: partition → (log, next offset)."""
        for number, (log, next_offset) in progress.items():
            partition = self._partitions.setdefault(number, _Partition())
            if partition.log is not None and log != partition.log:
                self._begin_log(number, partition, log, next_offset)
            if (log, next_offset) != (partition.log, partition.next_offset):
                partition.moved_s = self._clock_s()
            partition.log, partition.next_offset = log, next_offset
            while partition.notes and partition.notes[0][0] < next_offset:
                partition.notes.popleft()
        now_s = self._clock_s()
        self._drained.append((now_s, sum(partition.next_offset for partition in self._partitions.values())))
        while len(self._drained) > 2 and self._drained[0][0] < now_s - _DRAIN_OVER_S:
            self._drained.popleft()
        self._look(now_s)

    def check(self) -> None:
        """Raises Unavailable while more must not be taken."""
        if self._shedding:
            raise Unavailable(
                "Actions are judged too late at the moment; send it again later.",
                retry_after_s=self.retry_after_s(),
            )

    def retry_after_s(self) -> int:
        """Seconds until what is waiting will have been judged at the present pace, 1 to 60."""
        waiting = sum(
            max(0, partition.confirmed + 1 - partition.next_offset)
            for partition in self._partitions.values()
            if partition.notes
        )
        if len(self._drained) < 2:
            return _UNKNOWN_RETRY_S
        (began_s, before), (ended_s, after) = self._drained[0], self._drained[-1]
        if after <= before or ended_s <= began_s:
            return _UNKNOWN_RETRY_S
        seconds = waiting * (ended_s - began_s) / (after - before)
        return min(_MOST_RETRY_S, max(1, math.ceil(seconds)))

    def _begin_log(self, number: int, partition: _Partition, log: int, next_offset: int) -> None:
        """The stream reads another log for this partition: offsets of the old one mean nothing in it."""
        unjudged = partition.confirmed + 1 - partition.next_offset
        if partition.notes and unjudged > 0:
            _log.error(
                "confirmed_actions_may_be_lost",
                partition=number,
                log_before=partition.log,
                log=log,
                confirmed=partition.confirmed,
                judged_up_to=partition.next_offset,
                unjudged=unjudged,
            )
        partition.notes.clear()
        partition.confirmed = next_offset - 1
        self._acknowledged.pop((SUBMITTED.name, number), None)
        self._drained.clear()

    @staticmethod
    def _cut(partition: _Partition, end: int) -> None:
        """The log holds nothing at `end` and after it of what was noted there."""
        cut = [note for note in partition.notes if note[0] >= end]
        while partition.notes and partition.notes[-1][0] >= end:
            partition.notes.pop()
        if cut and (partition.notes[-1][0] if partition.notes else partition.next_offset - 1) < end - 1:
            # Of what one note stands for, the part before the end still waits.
            partition.notes.append((end - 1, cut[0][1]))
        partition.confirmed = end - 1

    def _look(self, now_s: float) -> None:
        # Of all, and of those whose being late says something about the others.
        oldest_s = counted_s = 0.0
        moved_s = max((partition.moved_s for partition in self._partitions.values()), default=-math.inf)
        for partition in self._partitions.values():
            if partition.notes:
                age_s = now_s - partition.notes[0][1]
                oldest_s = max(oldest_s, age_s)
                stands_still = moved_s - max(partition.moved_s, partition.notes[0][1]) > _LEFT_BEHIND_S
                if not (stands_still and now_s - moved_s < _LEFT_BEHIND_S):
                    counted_s = max(counted_s, age_s)
        self.oldest_s = oldest_s
        self.late = counted_s > self._late_after_s
        if self._shedding != (counted_s > self._shed_after_s):
            self._shedding = not self._shedding
            event = "shedding" if self._shedding else "shedding_ended"
            _log.warning(event, oldest_unjudged_s=round(oldest_s, 1))
        metrics.OLDEST_UNJUDGED_SECONDS.set(oldest_s)


def _halve(notes: deque[tuple[int, float]]) -> None:
    """Merge neighbours: the later offset with the earlier time, so no age gets less."""
    listed = list(notes)
    notes.clear()
    for index in range(0, len(listed) - 1, 2):
        notes.append((listed[index + 1][0], listed[index][1]))
    if len(listed) % 2:
        notes.append(listed[-1])
