"""The followers this process runs, each in a thread of its own.

Woken by this process's commits, by those of others (LISTEN) and by a timer. What this process has
committed is in its hand, so only the others' commits and the timer make a follower look into the
ledger for more. Whatever is away is waited for with back-off; the ledger waits for none of them.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import psycopg

from core.errors import Unavailable
from service import logs, metrics
from storage.followers import Follower
from storage.kafka.publishing import Publisher
from storage.postgres import connections
from storage.postgres.connections import BOARDS_LOCK, CHANNEL, Connection
from storage.redis.boards import PAGE, BoardCopy
from stream_app.replying import Due, Replier

TIMER_S: Final = 1.0
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 2.0
COMPARED_PAGES: Final = 20
"""Most pages of `storage.redis.boards.PAGE` entries a reconciler compares with the ledger in its interval.
They are spread over it: all at one go would keep the copy, and whoever needs this process, waiting."""

_log = logs.get("stream_app.following")


class Following(threading.Thread):
    """One follower's thread. `on_defect` is told of what must not happen; it ends the process."""

    def __init__(self, name: str, on_defect: Callable[[BaseException], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._on_defect = on_defect
        self._awake = threading.Event()
        self._look = threading.Event()
        self._ended = threading.Event()
        self.caught_up = False

    def wake(self, *, in_hand: bool = False) -> None:
        """There may be something to follow: in the ledger, or only `in_hand`."""
        if not in_hand:
            self._look.set()
        self._awake.set()

    def end(self) -> None:
        self._ended.set()
        self._awake.set()

    def run(self) -> None:
        pause_s, look = FIRST_PAUSE_S, True
        looked_s = float("-inf")
        try:
            while not self._ended.is_set():
                try:
                    if look:
                        looked_s = time.monotonic()
                    self.round(look=look)
                    pause_s = FIRST_PAUSE_S
                    self._awake.wait(TIMER_S)
                    self._awake.clear()
                    # Also where commits of our own never let it sleep: it may stand where what is in
                    # hand does not reach back to.
                    look = self._look.is_set() or time.monotonic() - looked_s >= TIMER_S
                    if look:
                        self._look.clear()
                except Unavailable as error:
                    self.caught_up, look = False, True
                    _log.warning("follower_waits", follower=self.name, detail=str(error)[:300])
                    self._ended.wait(pause_s * (0.5 + random.random()))
                    pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
        except BaseException as error:
            self._on_defect(error)
        finally:
            self.close()

    def round(self, *, look: bool) -> None:
        """Follow until there is nothing to follow: in the ledger, or in hand where `look` is false."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def _stepped(self, follower: Follower, look: bool) -> bool:
        begun_s = time.perf_counter()
        moved = follower.step(look=look)
        if moved:
            metrics.FOLLOWER_STEP_SECONDS.labels(follower.name).observe(time.perf_counter() - begun_s)
        return moved


class Publishing(Following):
    """Sends the topics that follow the ledger, while no other process does."""

    def __init__(self, publisher: Publisher, on_defect: Callable[[BaseException], None]) -> None:
        super().__init__("topics", on_defect)
        self._publisher = publisher

    def round(self, *, look: bool) -> None:
        while not self._ended.is_set() and self._stepped(self._publisher, look):
            pass
        self.caught_up = True

    def close(self) -> None:
        self._publisher.close()


class Keeping(Following):
    """Keeps the Redis boards, answers who waits for them, and compares them with the ledger."""

    def __init__(
        self,
        copies: Sequence[BoardCopy],
        replier: Replier,
        on_defect: Callable[[BaseException], None],
        *,
        postgres_url: str,
        reconcile_every_s: float,
        prove: Callable[[Connection], None] = lambda _: None,
    ) -> None:
        """`prove` is given each new connection, to hold what is in hand against its ledger."""
        super().__init__("boards", on_defect)
        self._copies, self._replier = copies, replier
        self._url, self._every_s = postgres_url, reconcile_every_s
        self._prove = prove
        self._lock: Connection | None = None
        self._kept_since_s = float("-inf")
        self._look_began_s = self._compared_s = time.monotonic()
        self._differing: dict[str, int] = {}

    def round(self, *, look: bool) -> None:
        keeper = self._is_keeper()
        waiting = self._replier.waiting()
        try:
            for copy in self._copies:
                waiting = self._follow(copy, waiting, keeper, look)
                metrics.PROJECTION_LAG_REVISIONS.labels(copy.period).set(0)
        except BaseException as error:
            self._replier.put_back(waiting)
            if isinstance(error, Unavailable):
                self._tell_lags()
            raise
        if waiting:
            # Somebody else keeps the copy and has not come there yet.
            self._replier.put_back(waiting)
            self._ended.wait(0.005)
            self._awake.set()
        self.caught_up = True
        if keeper:
            self.compare_due(time.monotonic())

    def _tell_lags(self) -> None:
        """How far the copies fall behind while nothing can be brought to them."""
        for copy in self._copies:
            # The ledger may be what is away.
            with suppress(Unavailable):
                metrics.PROJECTION_LAG_REVISIONS.labels(copy.period).set(copy.lag())

    def _follow(self, copy: BoardCopy, waiting: list[Due], keeper: bool, look: bool) -> list[Due]:
        """Bring the copy to the ledger, answering on the way; what is not answered comes back."""
        while not self._ended.is_set():
            # Who waits for a revision that left the period as it was can only be told by the ledger.
            moved = keeper and self._stepped(copy, look or bool(waiting))
            if waiting:
                at = copy.position()
                shown = (at.epoch, at.revision) if at is not None else ("", 0)
                # Nothing left to follow: it shows all that was committed when this round began.
                ready = [
                    due
                    for due in waiting
                    if (keeper and not moved) or (due.epoch, due.judged_revision) <= shown
                ]
                if ready:
                    self._replier.send(ready)
                    answered = set(map(id, ready))
                    waiting = [due for due in waiting if id(due) not in answered]
            if not moved:
                break
        return waiting

    def _is_keeper(self) -> bool:
        """Whether this process holds the lock: asked for at most once a second while it does.

        A keeper that lost its connection unseen may go on for that long; a copy takes a step only where
        it stands at the position that the step begins at, whoever takes it.
        """
        now_s = time.monotonic()
        if now_s - self._kept_since_s < TIMER_S and self._lock is not None and not self._lock.closed:
            return True
        self._kept_since_s = float("-inf")
        with connections.unavailable():
            lock = self._proven()
            try:
                row = lock.execute(
                    "SELECT CASE WHEN EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory'"
                    "  AND objid = %(key)s AND pid = pg_backend_pid() AND granted) THEN true"
                    " ELSE pg_try_advisory_lock(%(key)s) END",
                    {"key": BOARDS_LOCK},
                ).fetchone()
            except psycopg.Error:
                lock.close()
                raise
        keeper = bool(row and row[0])
        if keeper:
            self._kept_since_s = now_s
        return keeper

    def _proven(self) -> Connection:
        """The lock's connection; a new one is kept once what is in hand was held against its ledger."""
        if self._lock is None or self._lock.closed:
            lock = connections.connect(self._url, name="boards", autocommit=True, before_compared=True)
            try:
                for copy in self._copies:
                    copy.close()
                self._prove(lock)
            except BaseException:
                lock.close()
                raise
            self._lock = lock
        return self._lock

    def compare_due(self, now_s: float) -> None:
        """Compare the pages that are due: a look begins every interval, and ends with the last entry."""
        under_way = any(copy.is_being_compared for copy in self._copies)
        if not under_way:
            if now_s - self._look_began_s < self._every_s:
                return
            self._look_began_s, pages = now_s, 1
            self._differing.clear()
        else:
            pages = int((now_s - self._compared_s) * COMPARED_PAGES / self._every_s)
            if not pages:
                return
        self._compared_s = now_s
        for copy in self._copies:
            if under_way and not copy.is_being_compared:
                continue
            differing = copy.compare(most=min(pages, COMPARED_PAGES) * PAGE)
            self._differing[copy.period] = self._differing.get(copy.period, 0) + differing
            metrics.PROJECTION_DRIFT_ENTRIES.labels(copy.period).set(self._differing[copy.period])
            if differing:
                _log.error("copy_differs", period=copy.period, entries=differing)
                copy.discard()
                copy.step()

    def close(self) -> None:
        for copy in self._copies:
            copy.close()
        if self._lock is not None:
            self._lock.close()


class Listening(threading.Thread):
    """Wakes the followers when another process commits a revision.

    Those that are in this one's hand, by `in_hand(revision)`, it wakes them for itself.
    """

    def __init__(
        self, postgres_url: str, followers: Sequence[Following], in_hand: Callable[[int], bool]
    ) -> None:
        super().__init__(name="listen", daemon=True)
        self._url, self._followers, self._in_hand = postgres_url, followers, in_hand
        self._ended = threading.Event()

    def end(self) -> None:
        self._ended.set()

    def run(self) -> None:
        while not self._ended.is_set():
            try:
                with connections.connect(
                    self._url, name="listen", autocommit=True, timeout_ms=0, before_compared=True
                ) as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    self._wake()
                    while not self._ended.is_set():
                        for notice in connection.notifies(timeout=0.5, stop_after=1):
                            self.heard(notice.payload)
            except (Unavailable, psycopg.Error):
                # The followers' timer carries on meanwhile.
                self._ended.wait(1.0)

    def heard(self, revision: str) -> None:
        """Somebody has committed this revision."""
        if not (revision.isdecimal() and self._in_hand(int(revision))):
            self._wake()

    def _wake(self) -> None:
        for follower in self._followers:
            follower.wake()


def end_all(threads: Sequence[Any], *, within_s: float) -> None:
    """Ask these threads to end, and wait for them."""
    for thread in threads:
        thread.end()
    deadline_s = time.monotonic() + within_s
    for thread in threads:
        thread.join(max(0.0, deadline_s - time.monotonic()))
