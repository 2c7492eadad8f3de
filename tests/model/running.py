"""Processes that run one step at a time, in an order somebody else decides.

A process is a generator that yields None where others may go on, or a condition without which it
cannot go on itself. Closing the generator is `kill -9`: only what the servers would notice happens,
by the `finally` of the sessions it held.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

Condition = Callable[[], bool]
Steps = Generator[Condition | None, None, None]


class Processes:
    """Named processes; each can be run by a step, paused, killed and begun again."""

    def __init__(self) -> None:
        self._make: dict[str, Callable[[], Steps]] = {}
        self._running: dict[str, Steps] = {}
        self._waiting: dict[str, Condition] = {}
        self.paused: set[str] = set()
        self.ended: set[str] = set()

    def add(self, name: str, make: Callable[[], Steps]) -> None:
        self._make[name] = make
        self._running[name] = make()

    def names(self) -> list[str]:
        return list(self._make)

    def ready(self) -> list[str]:
        """Who could go on now."""
        return [
            name
            for name in self._running
            if name not in self.paused and (name not in self._waiting or self._waiting[name]())
        ]

    def step(self, name: str) -> None:
        self._waiting.pop(name, None)
        try:
            condition = next(self._running[name])
        except StopIteration:
            del self._running[name]
            self.ended.add(name)
            return
        if condition is not None:
            self._waiting[name] = condition

    def kill(self, name: str) -> None:
        """End it where it stands, and begin it again."""
        if name in self._running:
            self._running[name].close()
        self._waiting.pop(name, None)
        self.paused.discard(name)
        if name not in self.ended:
            self._running[name] = self._make[name]()

    def close(self) -> None:
        for steps in self._running.values():
            steps.close()
        self._running.clear()
