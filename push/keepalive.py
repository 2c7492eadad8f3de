"""Going round all connections, each once an interval, with one timer for all.

A timer per connection costs more than what it is for, twice over: in memory, and each time it
rings. Here a connection keeps the place on the round that it was given when it came; places are
given by turns, so visits are spread evenly however many come at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

STOPS: Final = 40
"""Places on a round."""


class Visited(Protocol):
    """A connection, as far as this is concerned."""

    def visit(self) -> None:
        """It has been an interval since the last time; the first comes earlier."""


class Rounds:
    """Visits every member once every `interval_s`, as exactly as `sweep` is called."""

    def __init__(self, interval_s: float, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._step_s, self._clock_s = interval_s / STOPS, clock_s
        self._stops: list[dict[Visited, None]] = [{} for _ in range(STOPS)]
        self._at: dict[Visited, dict[Visited, None]] = {}
        self._came = 0
        self._next_stop, self._next_s = 0, clock_s() + self._step_s

    def __len__(self) -> int:
        return len(self._at)

    def add(self, member: Visited) -> None:
        stop = self._stops[self._came % STOPS]
        self._came += 1
        stop[member] = None
        self._at[member] = stop

    def remove(self, member: Visited) -> None:
        """Harmless if it is no member."""
        stop = self._at.pop(member, None)
        if stop is not None:
            del stop[member]

    def sweep(self) -> None:
        """Visit whoever is due. Late, it visits nobody twice: who was missed waits less for the next."""
        now_s = self._clock_s()
        for _ in range(STOPS):
            if now_s < self._next_s:
                return
            stop = self._stops[self._next_stop]
            self._next_stop = (self._next_stop + 1) % STOPS
            self._next_s += self._step_s
            for member in list(stop):
                member.visit()
        self._next_s = max(self._next_s, now_s + self._step_s)
