"""Reading standings for the routes: shared where many ask the same, counted, and paged.

Many who ask for the same page at once share one reading, but never one that began before they
asked: who has just been told of a write sees it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, TypeVar

import msgspec

from core import words
from core.errors import Unavailable
from ingest.patience import within
from ingest.ports import Position, Standings
from service import metrics
from storage.standings import Page, RankedEntry

TOP: Final = 10

LONGEST_READ_S: Final = 4.0
"""Twice what a reader may ask to wait for a revision."""

T = TypeVar("T")


class Shared(Generic[T]):
    """One reading at a time; whoever comes while one is under way shares the next."""

    def __init__(self, read: Callable[[], Awaitable[T]]) -> None:
        self._read = read
        self._running: asyncio.Task[T] | None = None
        self._next: asyncio.Task[T] | None = None

    async def get(self) -> T:
        """What a reading gives that begins from now on. Raises what the reading raises."""
        if self._running is None:
            task = self._running = asyncio.create_task(self._run(None))
        elif self._next is None:
            task = self._next = asyncio.create_task(self._run(self._running))
        else:
            task = self._next
        # Shielded: one who goes away takes nothing from the others.
        return await asyncio.shield(task)

    async def _run(self, before: asyncio.Task[T] | None) -> T:
        if before is not None:
            await asyncio.wait([before])
            self._running, self._next = self._next, None
        try:
            return await self._read()
        finally:
            if self._next is None:
                self._running = None


class Boards:
    """Standings as the routes read them."""

    def __init__(self, standings: Standings) -> None:
        self._standings = standings
        self._hit = metrics.STANDINGS_READS.labels("hit")
        self._miss = metrics.STANDINGS_READS.labels("miss")
        self._top = Shared(lambda: self.page(words.MAIN_PERIOD, limit=TOP))

    async def top(self) -> Page:
        """The default board's top 10."""
        return await self._top.get()

    async def top_at_least(self, at_least: Position) -> Page:
        """The default board's top 10 at this revision or a later one."""
        return await self.page(words.MAIN_PERIOD, limit=TOP, at_least=at_least)

    async def page(
        self, period: str, *, limit: int, after: bytes | None = None, at_least: Position | None = None
    ) -> Page:
        page = await within(LONGEST_READ_S, self._read_page(period, limit, after, at_least))
        self.count(postgres=page.source == "postgres")
        return page

    async def later_page(self, period: str, position: Position, *, limit: int, after: bytes) -> Page | None:
        """The entries behind this member, if the period still shows this position."""
        try:
            page = await within(LONGEST_READ_S, self._read_page(period, limit, after, None))
        except Unavailable:
            return None
        if (page.epoch, page.revision) != position:
            return None
        self.count(postgres=page.source == "postgres")
        return page

    async def player(
        self, period: str, user_id: str, at_least: Position | None = None
    ) -> tuple[Page, RankedEntry | None]:
        page, entry = await within(LONGEST_READ_S, self._read_player(period, user_id, at_least))
        self.count(postgres=page.source == "postgres")
        return page, entry

    def count(self, *, postgres: bool) -> None:
        """Count a reading, by what answered it."""
        (self._miss if postgres else self._hit).inc()

    async def _read_page(
        self, period: str, limit: int, after: bytes | None, at_least: Position | None
    ) -> Page:
        return await self._standings.page(period, limit=limit, after=after, at_least=at_least)

    async def _read_player(
        self, period: str, user_id: str, at_least: Position | None
    ) -> tuple[Page, RankedEntry | None]:
        return await self._standings.player(period, user_id, at_least=at_least)


class Encoded:
    """The bytes of what is shown of a page, kept for the last position: never a mix of two."""

    def __init__(self, show: Callable[[Page], Any]) -> None:
        self._show = show
        self._at: tuple[str, int, int] | None = None
        self._body = b""

    def body(self, page: Page) -> bytes:
        # The names in a page may change without its position: the entries are compared as well.
        at = (page.epoch, page.revision, hash(tuple((e.user_id, e.username, e.score) for e in page.entries)))
        if self._at != at:
            self._at, self._body = at, msgspec.json.encode(self._show(page))
        return self._body
