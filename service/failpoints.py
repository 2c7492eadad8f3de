"""Places between two steps where a process can be told to end, to stand still or to fail.

For the fault rig alone. `TRUEBOARD_FAILPOINTS` names places and what happens there:

    ledger.numbered=kill@3,boards.applying=pause:2s

`kill` (SIGKILL to itself), `pause:<seconds>s` (the thread that comes there stands still) or `raise`
(a defect); `@3` is the third time the place is reached, `@3+` that and every later one, `@*` every
time, without it the first. Without the variable `reach` does nothing.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

VARIABLE: Final = "TRUEBOARD_FAILPOINTS"

PLACES: Final = {
    "ingest.publishing": "the action was looked at, Kafka has not been told",
    "ingest.published": "Kafka has confirmed, nobody knows",
    "ingest.marked": "the marker is written, the answer is not",
    "stream.brought": "the consumer has records, and stands still alone: its worker goes on",
    "stream.fetched": "records are at hand, nothing is begun",
    "stream.letters_sent": "dead letters are confirmed, the ledger has not moved past their records",
    "ledger.locked": "positions are locked, nothing is judged",
    "ledger.interned": "players have their numbers, nothing is judged",
    "ledger.judged": "the plan is made, nothing of it is written",
    "ledger.rows_written": "rows are written, entries are not",
    "ledger.entries_changed": "entries are changed, positions have not moved",
    "ledger.progress_moved": "positions have moved, the batch has no number",
    "ledger.numbered": "everything is written, the commit is not sent",
    "ledger.committed": "committed, and nobody has been told",
    "stream.told": "followers are woken, the records are not acknowledged",
    "stream.acknowledged": "acknowledged, the group's offset is not committed",
    "boards.applying": "the changes are read, Redis has none of them",
    "boards.applied": "Redis has them, nobody has been answered",
    "boards.page_filled": "a build has some of its pages",
    "boards.swapping": "a build is whole, readers see the copy before it",
    "boards.swapped": "readers see the new copy, the builder does not know",
    "topics.sending": "a revision is read, none of its records is sent",
    "topics.sent": "its records are confirmed, the cursor stands before it",
    "topics.saved": "the cursor is saved",
    "push.encoded": "a board is encoded, no reader has it",
    "push.written": "some readers have it",
}

_FORM: Final = re.compile(
    r"(?P<place>[a-z._]+)=(?P<what>kill|raise|pause:(?P<s>[0-9.]+)s)(?:@(?P<at>[0-9]+\+?|\*))?"
)


class Reached(Exception):
    """What a place that was told to `raise` raises: nothing that anybody expects."""


class _Armed:
    def __init__(self, told: str) -> None:
        self._faults: dict[str, tuple[str, float, range]] = {}
        for part in told.split(","):
            match = _FORM.fullmatch(part.strip())
            if match is None or match["place"] not in PLACES:
                raise ValueError(f"{VARIABLE} names no place and fault with {part!r}")
            self._faults[match["place"]] = (
                match["what"].partition(":")[0],
                float(match["s"] or 0),
                _times(match["at"] or "1"),
            )
        self._times: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, place: str) -> None:
        time.sleep(self.pause_s(place))

    def pause_s(self, place: str) -> float:
        """Come to `place`; for how long whoever came there is to stand still."""
        fault = self._faults.get(place)
        if fault is None:
            return 0.0
        what, pause_s, at = fault
        with self._lock:
            self._times[place] += 1
            times = self._times[place]
        if times not in at:
            return 0.0
        print(f"failpoint {place} {what}", file=sys.stderr, flush=True)
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "raise":
            raise Reached(place)
        return pause_s


def _times(told: str) -> range:
    """Which times a place that is reached again and again is meant."""
    if told == "*":
        return range(1, sys.maxsize)
    first = int(told.removesuffix("+"))
    return range(first, sys.maxsize if told.endswith("+") else first + 1)


def _nothing(place: str) -> None:
    """Come past `place`."""


_armed: Final = _Armed(told) if (told := os.environ.get(VARIABLE)) else None

reach: Final[Callable[[str], None]] = _armed or _nothing


async def reach_alone(place: str) -> None:
    """As `reach`, on an event loop: who stands still there holds up nobody else."""
    if _armed is not None:
        await asyncio.sleep(_armed.pause_s(place))
