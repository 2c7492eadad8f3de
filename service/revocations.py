"""Which tokens are revoked, as this process knows it: a small view of what Postgres keeps.

It is read anew every few seconds, beside all requests, so that none ever waits for it. Before the
first reading nobody's token can be said to be good, and none is taken; after it, a Postgres that is
away leaves in force what was known, and the view's age says for how long.

What was once read is kept until it expires, whatever becomes of the table: a restore from an older
backup takes nothing back that a running process knows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from core.errors import Unavailable
from service import logs
from service.metrics import REVOCATIONS, REVOCATIONS_AGE_SECONDS

LONGEST_INTERVAL_S: Final = 60.0
"""A revoked token is good for nothing after a minute, so the view is never older than that by design."""

_RETRY_S: Final = 1.0

_log = logs.get("service.revocations")


@dataclass(frozen=True, slots=True)
class Revocation:
    """One token, by its `jti`, or all of a user's that were issued before `issued_before_s`.

    `number` rises from one to the next; `revoked_at_us` tells it from another of the same number, in a
    table that was restored. Instants are since 1970.
    """

    number: int
    revoked_at_us: int
    jti: str | None
    user_id: str | None
    issued_before_s: int | None
    expires_at_s: int
    """From then on it says nothing: no such token is good any more anyway."""


Read = Callable[[int], Awaitable[Sequence[Revocation]]]
"""The next ones in force from this number on, in order, and whichever has that very number; empty at
the end. Raises Unavailable."""


class Revocations:
    """The view; `run` keeps it. Belongs to one event loop, but `known` and `age_s` may be asked anywhere.

    Raises:
        ValueError: the interval is not within (0, `LONGEST_INTERVAL_S`].
    """

    def __init__(
        self,
        read: Read,
        *,
        interval_s: float = 5.0,
        clock_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        check_interval(interval_s)
        self._read, self._interval_s = read, interval_s
        self._clock_s, self._monotonic_s = clock_s, monotonic_s
        self._began_s = monotonic_s()
        self._read_at_s: float | None = None
        self._last: Revocation | None = None
        self._tokens: dict[str, int] = {}
        self._users: dict[str, list[tuple[int, int]]] = {}
        self._next_expiry_s: float = 0
        self._listeners: list[Callable[[], None]] = []
        self._failing = False

    @property
    def known(self) -> bool:
        """Whether they were read at all."""
        return self._read_at_s is not None

    @property
    def age_s(self) -> float:
        """Seconds since they were last read; since the start, if they never were."""
        since_s = self._began_s if self._read_at_s is None else self._read_at_s
        return self._monotonic_s() - since_s

    def __len__(self) -> int:
        """How many are in force, those of one user that say more than each other counted each."""
        return len(self._tokens) + sum(map(len, self._users.values()))

    def cover(self, jti: str, user_id: str, issued_at_s: int) -> bool:
        """Whether this token is revoked.

        Raises:
            Unavailable: they were never read, so nobody knows.
        """
        if self._read_at_s is None:
            raise Unavailable("Which tokens are revoked cannot be read now.", retry_after_s=2)
        if jti in self._tokens:
            return True
        theirs = self._users.get(user_id)
        return theirs is not None and any(issued_at_s < before_s for before_s, _ in theirs)

    def listen(self, call: Callable[[], None]) -> None:
        """Call this whenever a token may be covered that was not before."""
        self._listeners.append(call)

    async def run(self) -> None:
        """Read for ever."""
        REVOCATIONS_AGE_SECONDS.set_function(lambda: self.age_s)
        while True:
            try:
                await self.refresh()
            except Unavailable as error:
                if not self._failing:
                    _log.warning("revocations_unreadable", detail=error.detail, known=self.known)
                self._failing = True
            else:
                if self._failing:
                    _log.info("revocations_follow", in_force=len(self))
                self._failing = False
            self._forget_expired()
            REVOCATIONS.set(len(self))
            await asyncio.sleep(self._interval_s if self.known else min(_RETRY_S, self._interval_s))

    async def refresh(self) -> None:
        """Read what is new. Raises Unavailable, and keeps what was known."""
        fresh, last = await self._fresh()
        for revocation in fresh:
            self._take(revocation)
        self._last = fresh[-1] if fresh else last
        self._read_at_s = self._monotonic_s()
        if fresh:
            _log.info("revocations_read", read=len(fresh), last=fresh[-1].number)
            for call in self._listeners:
                call()

    async def _fresh(self) -> tuple[list[Revocation], Revocation | None]:
        """All after the last that is known, and that; all there are, if the table has another there."""
        last = self._last
        if last is not None:
            page = list(await self._read(last.number))
            if page[:1] == [last]:
                further = await self._from(page[-1].number + 1) if page[1:] else []
                return page[1:] + further, last
        return await self._from(0), None

    async def _from(self, number: int) -> list[Revocation]:
        found: list[Revocation] = []
        while page := await self._read(number):
            found += page
            number = page[-1].number + 1
        return found

    def _take(self, revocation: Revocation) -> None:
        until_s = revocation.expires_at_s
        if revocation.jti is not None:
            self._tokens[revocation.jti] = max(until_s, self._tokens.get(revocation.jti, 0))
        elif revocation.user_id is not None and revocation.issued_before_s is not None:
            before_s = revocation.issued_before_s
            theirs = self._users.get(revocation.user_id, [])
            if any(before_s <= known[0] and until_s <= known[1] for known in theirs):
                return
            # Those that say no more than this one need not be kept.
            wider = [known for known in theirs if known[0] > before_s or known[1] > until_s]
            self._users[revocation.user_id] = [*wider, (before_s, until_s)]
        self._next_expiry_s = min(self._next_expiry_s or until_s, until_s)

    def _forget_expired(self) -> None:
        now_s = self._clock_s()
        if not self._next_expiry_s or now_s < self._next_expiry_s:
            return
        self._tokens = {jti: until_s for jti, until_s in self._tokens.items() if until_s > now_s}
        kept = {
            user_id: [known for known in theirs if known[1] > now_s]
            for user_id, theirs in self._users.items()
        }
        self._users = {user_id: theirs for user_id, theirs in kept.items() if theirs}
        untils = [*self._tokens.values(), *(until_s for each in self._users.values() for _, until_s in each)]
        self._next_expiry_s = min(untils, default=0)


def check_interval(interval_s: float) -> None:
    """Raises ValueError unless a view read so often is never older than it may be."""
    if not 0 < interval_s <= LONGEST_INTERVAL_S:
        raise ValueError(f"revocations_interval_s must be above 0 and at most {LONGEST_INTERVAL_S:g}")
