"""The channel `user:<id>`: the verdicts on one's own actions, as receipts.

They are read from the ledger. The topic of verdicts names no user, tells no fingerprint, no score
and no rank, and holds everybody's: each replica would read all of it, and all the people there
are, to pass on what a few of them watch. The ledger has all of a receipt but the place, which the
standings have at the same revision, and it answers only for those who watch: one read for all of
them, woken by publications and by a timer, and none while nobody watches. It is in the order of
revisions, so it can be taken up again from any of them, on any replica.

A revision may hold several verdicts on one user: only the last one of them moves the client's
position, so a connection that breaks between them loses none.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from core.errors import Unavailable
from core.feed import Position
from core.receipts import Judged, judged_receipt
from service import logs
from storage.postgres.verdicts import Found
from storage.standings import Page, RankedEntry

POLL_S: Final = 0.2
"""How long a verdict that moved no board may lie before it is read."""

LEAST_PAUSE_S: Final = 0.02
RETRY_S: Final = 1.0

RESUMED_REVISIONS: Final = 2_000
"""A client that is further behind is told that it cannot be brought forward."""

_log = logs.get("push.verdicts")
_encode = msgspec.json.Encoder().encode


class LedgerReader(Protocol):
    """What is needed of `storage.postgres.verdicts.VerdictReader`."""

    async def position(self) -> Position: ...

    async def after(self, revision: int, user_ids: Collection[str]) -> Found: ...


class PlaceReader(Protocol):
    """What is needed of `storage.standings.Standings`."""

    async def player(
        self, period: str, user_id: str, *, at_least: Position | None = None
    ) -> tuple[Page, RankedEntry | None]: ...


class Listener(Protocol):
    """Who is told."""

    def tell(self, receipt: bytes, position: Position | None) -> bool:
        """One verdict, and where it brings the listener; False if it listens no more."""

    def lose(self) -> None:
        """What comes next cannot be told in order: the listener has to begin anew."""


@dataclass(eq=False, slots=True)
class Watching:
    """One listener, and the position up to which it knows everything."""

    user_id: str
    listener: Listener
    epoch: str
    seen: int
    recovered: bool

    @property
    def position(self) -> Position:
        return self.epoch, self.seen


class Verdicts:
    """Tells each listener of its user's verdicts, in order and without a gap."""

    def __init__(
        self, ledger: LedgerReader, places: PlaceReader, period: str, poll_s: float = POLL_S
    ) -> None:
        self._ledger, self._places, self._period, self._poll_s = ledger, places, period, poll_s
        self._watching: dict[Watching, None] = {}
        self._due = asyncio.Event()
        self._failing = False

    async def watch(self, user_id: str, listener: Listener, since: Position | None) -> Watching:
        """Tell this listener what is judged from now on, or after `since` if that is not long ago.

        It is told nothing before this call has returned to the event loop.

        Raises:
            Unavailable: the ledger does not answer now.
        """
        epoch, revision = await self._ledger.position()
        recovered = since is not None and since[0] == epoch and 0 <= revision - since[1] <= RESUMED_REVISIONS
        seen = since[1] if since is not None and recovered else revision
        watching = Watching(user_id, listener, epoch, seen, recovered)
        self._watching[watching] = None
        self._due.set()
        return watching

    def stop(self, watching: Watching) -> None:
        """Tell this listener nothing more; harmless if repeated."""
        self._watching.pop(watching, None)

    def wake(self) -> None:
        """Something was judged, as far as one can tell."""
        if self._watching:
            self._due.set()

    async def run(self) -> None:
        """Tell until cancelled."""
        while True:
            pause_s = await self._turn()
            # A busy board is published more often than the ledger need be asked.
            await asyncio.sleep(LEAST_PAUSE_S)
            if self._watching and pause_s is not None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._due.wait(), pause_s)
            elif not self._watching:
                await self._due.wait()
            self._due.clear()

    async def _turn(self) -> float | None:
        """How long to wait for the next turn, None not at all."""
        away: str | None = None
        more = False
        try:
            more = await self._tell_once()
        except* Unavailable as errors:
            away = str(errors.exceptions[0])
        if (away is not None) != self._failing:
            self._failing = away is not None
            _log.warning("verdicts_delayed", detail=away) if away else _log.info("verdicts_follow")
        if away is not None:
            # Whoever wakes us meanwhile does not bring back what is away.
            await asyncio.sleep(RETRY_S)
        return None if away or more else self._poll_s

    async def _tell_once(self) -> bool:
        """One read for all who watch; whether there is more to read at once."""
        watching = list(self._watching)
        if not watching:
            return False
        found = await self._ledger.after(min(it.seen for it in watching), {it.user_id for it in watching})
        lost = [it for it in watching if it.epoch != found.last[0] or it.seen > found.last[1]]
        for it in lost:
            self._lose(it)
        receipts = await self._receipts(found.judged)
        for it in watching:
            if it in self._watching:
                self._tell(it, receipts.get(it.user_id, []))
                it.seen = max(it.seen, found.upto)
        return found.upto < found.last[1]

    def _tell(self, watching: Watching, receipts: list[Judged]) -> None:
        fresh = [receipt for receipt in receipts if receipt.judged_revision > watching.seen]
        for n, receipt in enumerate(fresh):
            last = n + 1 == len(fresh) or fresh[n + 1].judged_revision > receipt.judged_revision
            position = (watching.epoch, receipt.judged_revision) if last else None
            if not watching.listener.tell(_encode({"receipt": judged_receipt(receipt)}), position):
                self.stop(watching)
                return

    def _lose(self, watching: Watching) -> None:
        self.stop(watching)
        watching.listener.lose()

    async def _receipts(self, judged: Iterable[Judged]) -> dict[str, list[Judged]]:
        """By user, with the score and rank that the user has at the last of the verdicts or later."""
        by_user: dict[str, list[Judged]] = {}
        for one in judged:
            by_user.setdefault(one.user_id, []).append(one)
        async with asyncio.TaskGroup() as reads:
            placed = {
                user_id: reads.create_task(self._placed(user_id, theirs))
                for user_id, theirs in by_user.items()
            }
        return {user_id: task.result() for user_id, task in placed.items()}

    async def _placed(self, user_id: str, judged: list[Judged]) -> list[Judged]:
        at_least = judged[-1].epoch, judged[-1].judged_revision
        page, entry = await self._places.player(self._period, user_id, at_least=at_least)
        # What the period has not changed since still holds: a position names its last change.
        revision = max(page.revision, at_least[1])
        return [_with_place(one, page.epoch, revision, entry) for one in judged]


def _with_place(judged: Judged, epoch: str, revision: int, entry: RankedEntry | None) -> Judged:
    score, rank = (None, None) if entry is None else (entry.score, entry.rank)
    return msgspec.structs.replace(judged, epoch=epoch, revision=revision, score=score, rank=rank)
