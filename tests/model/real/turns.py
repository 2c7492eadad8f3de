"""Calls of the product that take turns: one runs, all others stand at a place between two steps."""

from __future__ import annotations

import threading
from collections.abc import Callable

STANDS_STILL_S = 120
"""A call that comes neither to a place nor to its end within this has met a lock that nobody gives up."""

TO_THE_END = 1 << 30

_here = threading.local()


class Killed(BaseException):
    """The process of this call is no more; nothing of the product may take it for an error."""


class Task:
    """One call, in a thread of its own that waits for its turn."""

    def __init__(self, work: Callable[[], None], must_stop: Callable[[str], bool]) -> None:
        """`must_stop(place)` says that whoever comes there cannot go on for now."""
        self._work, self._must_stop = work, must_stop
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._places = 0
        self._thrown: BaseException | None = None
        self._error: BaseException | None = None
        self.place: str | None = None
        """Where it stands; None before it begins and after its end."""
        self.ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def go(self, places: int) -> None:
        """Go on, past all places but the `places`-th from here; what the call raises is raised here."""
        self._places = places
        self._go.release()
        if not self._back.acquire(timeout=STANDS_STILL_S):
            raise AssertionError(f"a call stands still after {self.place}")
        if self._error is not None:
            raise self._error

    def throw(self, error: BaseException) -> None:
        """Have this raised where it stands, and go on to the end."""
        self._thrown = error
        self.go(TO_THE_END)

    def _run(self) -> None:
        self._go.acquire()
        _here.task = self
        try:
            self._work()
        except Killed:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self.ended, self.place = True, None
            self._back.release()

    def reach(self, place: str) -> None:
        self._places -= 1
        if self._places > 0 and not self._must_stop(place):
            return
        self.place = place
        self._back.release()
        self._go.acquire()
        self.place = None
        thrown, self._thrown = self._thrown, None
        if thrown is not None:
            raise thrown


def reach(place: str) -> None:
    """`service.failpoints.reach` while the machine runs."""
    task: Task | None = getattr(_here, "task", None)
    if task is not None:
        task.reach(place)
