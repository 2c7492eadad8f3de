"""Reading standings: from Redis, else from Postgres, always at one named revision.

A page and the revision it names are of one moment. What one process shows of a period never goes
back: a copy that is behind what was shown already is not believed. Without a copy, short pages and
single players come from a scan in Postgres (34 ms for 1 M entries), one at a time and kept for a
second; longer ones must wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import redis.asyncio
from psycopg_pool import AsyncConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from core import ids
from core.errors import Refused, Unavailable
from core.ranking import KEY_BYTES, read_key, read_member
from storage.postgres import connections
from storage.redis import clients, keys, scripts

FALLBACK_ENTRIES: Final = 100
"""Longest page that is answered from Postgres."""

AT_LEAST_WAIT_S: Final = 2.0
"""How long a reader who names a revision waits for it."""

_REDIS_TIMEOUT_S: Final = 0.5
_REDIS_REST_S: Final = 0.5
_CONNECTIONS_MOST: Final = 64
_SCRIPTS_AT_ONCE: Final = 56
"""Below the connections there are: tickets take some too."""
_KEPT_S: Final = 1.0

Source = Literal["redis", "memory", "postgres"]


@dataclass(frozen=True, slots=True)
class RankedEntry:
    rank: int
    user_id: str
    username: str
    score: int
    reached_at_us: int


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a period's standings at (epoch, revision), the period's own last change.

    `count` is how many entries the period has; `digest` hex; `source` where it was read.
    """

    epoch: str
    revision: int
    count: int
    entries: list[RankedEntry]
    digest: str = ""
    source: Source = "redis"

    @property
    def at(self) -> tuple[str, int]:
        return self.epoch, self.revision


@dataclass(slots=True)
class _Kept:
    """What was last read from Postgres for one question, and the read that is under way."""

    until: float = 0.0
    value: Any = None
    reading: asyncio.Task[Any] | None = field(default=None)


class Standings:
    """A reader of standings over one Redis and one Postgres."""

    def __init__(self, client: redis.asyncio.Redis, pool: AsyncConnectionPool[Any]) -> None:
        self.redis, self.pool = client, pool
        self._page = client.register_script(scripts.source("board_page"))
        self._players = client.register_script(scripts.source("board_players"))
        self._rest_until = 0.0
        self._at_once = asyncio.Semaphore(_SCRIPTS_AT_ONCE)
        self._shown: dict[str, tuple[str, int]] = {}
        self._periods: frozenset[str] = frozenset()
        self._kept: dict[tuple[Any, ...], _Kept] = {}

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, redis_url: str, postgres_url: str, *, name: str = "reader", connections_most: int = 4
    ) -> AsyncIterator[Standings]:
        """A reader with connections of its own. Opens even while either is down."""
        client = clients.connect(
            redis_url,
            socket_timeout=_REDIS_TIMEOUT_S,
            socket_connect_timeout=_REDIS_TIMEOUT_S,
            max_connections=_CONNECTIONS_MOST,
            # A reader has Postgres to go to: it does not try Redis again for seconds.
            retry=Retry(NoBackoff(), 1),
        )
        async with connections.pool(postgres_url, name=name, most=connections_most) as pool:
            try:
                yield cls(client, pool)
            finally:
                await client.aclose()

    async def page(
        self,
        period: str,
        *,
        limit: int,
        after: bytes | None = None,
        at_least: tuple[str, int] | None = None,
    ) -> Page:
        """Entries in rank order, from the top or after a member (`core.ranking.member`).

        Raises:
            Refused: there is no such period.
            Unavailable: `board_rebuilding`: no copy, and too much to ask of Postgres; or the
                revision named by `at_least` did not show within 2 s.
        """
        await self._known(period)

        async def from_redis() -> Page | None:
            raw = await self._script(self._page, period, [limit, after or b""])
            return None if raw is None else _read_page(raw)

        async def from_postgres() -> Page:
            if after is not None or limit > FALLBACK_ENTRIES:
                raise Unavailable(f"the copy of {period} is being built", code="board_rebuilding")
            kept: Page = await self._once(("page", period), lambda: self._scan_top(period))
            return Page(kept.epoch, kept.revision, kept.count, kept.entries[:limit], kept.digest, kept.source)

        return await self._at(period, at_least, from_redis, from_postgres)

    async def player(
        self, period: str, user_id: str, *, at_least: tuple[str, int] | None = None
    ) -> tuple[Page, RankedEntry | None]:
        """One player's entry, None if there is none, and the position it holds at.

        Raises:
            Refused: there is no such period.
            Unavailable: as `page`.
        """
        await self._known(period)
        found: dict[int, RankedEntry | None] = {}

        async def from_redis() -> Page | None:
            raw = await self._script(self._players, period, [user_id])
            if raw is None:
                return None
            page, (entry,) = _read_players(raw, [user_id])
            found[0] = entry
            return page

        async def from_postgres() -> Page:
            answer: tuple[Page, RankedEntry | None] = await self._once(
                ("player", period, user_id), lambda: self._scan_player(period, user_id)
            )
            found[0] = answer[1]
            return answer[0]

        page = await self._at(period, at_least, from_redis, from_postgres)
        return page, found[0]

    async def _at(
        self, period: str, at_least: tuple[str, int] | None, from_redis: Any, from_postgres: Any
    ) -> Page:
        """The first answer that is no older than what was shown, and than what was asked for."""
        deadline = time.monotonic() + AT_LEAST_WAIT_S
        floor = self._shown.get(period, ("", 0))
        wanted = max(floor, at_least) if at_least else floor
        pause_s = 0.005
        while True:
            before = self._shown.get(period)
            page = await from_redis()
            if page is not None and await self._may_be_shown(period, page, wanted):
                return self._show(period, page)
            # Where somebody was shown a later one meanwhile, the answer was slow, not the copy.
            overtaken = self._shown.get(period) != before
            if page is None or not (at_least or overtaken) or time.monotonic() >= deadline:
                break
            await asyncio.sleep(pause_s)
            pause_s = min(0.05, pause_s * 1.5)
        while True:
            page = await from_postgres()
            if await self._may_be_shown(period, page, wanted):
                return self._show(period, page)
            if time.monotonic() >= deadline:
                raise Unavailable(
                    f"{period} has not come to revision {wanted[1]} yet", code="board_rebuilding"
                )
            await asyncio.sleep(0.05)

    def _show(self, period: str, page: Page) -> Page:
        before = self._shown.get(period, ("", 0))
        if before[0] and page.epoch > before[0]:
            # Another history: what was read of the one before goes with it.
            self._periods, self._kept = frozenset(), {}
        self._shown[period] = max(before, page.at)
        return page

    async def _may_be_shown(self, period: str, page: Page, wanted: tuple[str, int]) -> bool:
        if page.at < wanted and not await self._unchanged_since(period, page, wanted):
            return False
        return page.at >= self._shown.get(period, ("", 0))

    async def _unchanged_since(self, period: str, page: Page, wanted: tuple[str, int]) -> bool:
        """Whether the period did not change from the page's revision up to the one wanted."""
        if page.epoch < wanted[0] or page.at < self._shown.get(period, ("", 0)):
            return False
        row = await self._row(
            "SELECT (SELECT max(revision) FROM revisions),"
            " (SELECT max(revision) FROM deltas WHERE period = %s)",
            (period,),
        )
        return row[0] is not None and row[0] >= wanted[1] and row[1] == page.revision

    async def _known(self, period: str) -> None:
        if period in self._periods:
            return

        async def read() -> frozenset[str]:
            async with connections.reading(self.pool) as connection:
                rows = await (await connection.execute("SELECT period FROM periods")).fetchall()
            return frozenset(row[0] for row in rows)

        self._periods = await self._once(("periods",), read)
        if period not in self._periods:
            raise Refused("not_found", f"there is no board window {period}", status_code=404)

    # Redis ---------------------------------------------------------------------------------

    async def _script(self, script: Any, period: str, arguments: Sequence[Any]) -> list[Any] | None:
        """What a script answers; None where there is no whole copy, or no Redis for now."""
        if time.monotonic() < self._rest_until:
            return None
        try:
            # More at once than there are connections is no sign of a dead Redis.
            async with self._at_once:
                if time.monotonic() < self._rest_until:
                    return None
                raw: list[Any] | None = await script(keys=list(keys.board(period)), args=list(arguments))
        except redis.exceptions.ResponseError:
            return None
        except (RedisError, OSError, TimeoutError):
            # A dead Redis costs one time-out in half a second, not one a request.
            self._rest_until = time.monotonic() + _REDIS_REST_S
            return None
        if raw is not None and ids.EPOCH.fullmatch(raw[0].decode("ascii", "replace")) is None:
            # Whatever sorts after every epoch would be shown for ever.
            return None
        return raw

    # Postgres ------------------------------------------------------------------------------

    async def _row(self, query: str, parameters: Sequence[Any]) -> tuple[Any, ...]:
        async with connections.reading(self.pool) as connection:
            row = await (await connection.execute(query, parameters)).fetchone()
        if row is None:
            raise RuntimeError("a statement that always answers with a row gave none")
        result: tuple[Any, ...] = row
        return result

    async def _once(self, question: tuple[Any, ...], read: Any) -> Any:
        """One read at a time for each question; its answer serves everybody for a second."""
        kept = self._kept.setdefault(question, _Kept())
        now = time.monotonic()
        if now < kept.until:
            return kept.value
        if kept.reading is None:
            if len(self._kept) > 10_000:
                self._kept = {question: kept}

            async def reading() -> Any:
                try:
                    kept.value = await read()
                    kept.until = time.monotonic() + _KEPT_S
                    return kept.value
                finally:
                    kept.reading = None

            kept.reading = asyncio.create_task(reading())
        return await asyncio.shield(kept.reading)

    async def _scan_top(self, period: str) -> Page:
        async with connections.reading(self.pool) as connection, connection.transaction():
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            page = await self._scan_position(connection, period)
            rows = await (
                await connection.execute(
                    "SELECT p.user_id, coalesce(p.username, p.user_id), e.score,"
                    "  (extract(epoch FROM e.reached_at) * 1000000)::bigint"
                    " FROM entries e JOIN players p USING (player)"
                    " WHERE e.period = %s AND NOT p.hidden AND p.erased_at IS NULL"
                    " ORDER BY e.score DESC, e.reached_at, p.user_id LIMIT %s",
                    (period, FALLBACK_ENTRIES),
                )
            ).fetchall()
        entries = [RankedEntry(rank, *row) for rank, row in enumerate(rows, 1)]
        return Page(page.epoch, page.revision, page.count, entries, page.digest, "postgres")

    async def _scan_player(self, period: str, user_id: str) -> tuple[Page, RankedEntry | None]:
        async with connections.reading(self.pool) as connection, connection.transaction():
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            page = await self._scan_position(connection, period)
            row = await (
                await connection.execute(
                    "SELECT 1 + (SELECT count(*) FROM entries o JOIN players q USING (player)"
                    "   WHERE o.period = e.period AND NOT q.hidden AND q.erased_at IS NULL"
                    "   AND (o.score > e.score OR (o.score = e.score AND (o.reached_at < e.reached_at"
                    "    OR (o.reached_at = e.reached_at AND q.user_id < p.user_id))))),"
                    "  p.user_id, coalesce(p.username, p.user_id), e.score,"
                    "  (extract(epoch FROM e.reached_at) * 1000000)::bigint"
                    " FROM players p JOIN entries e USING (player)"
                    " WHERE p.user_id = %s AND e.period = %s AND NOT p.hidden AND p.erased_at IS NULL",
                    (user_id, period),
                )
            ).fetchone()
        return page, None if row is None else RankedEntry(*row)

    async def _scan_position(self, connection: Any, period: str) -> Page:
        row = await (
            await connection.execute(
                "SELECT r.epoch, d.revision, d.count, encode(r.digest, 'hex')"
                " FROM deltas d JOIN revisions r USING (revision)"
                " WHERE d.period = %s ORDER BY d.revision DESC LIMIT 1",
                (period,),
            )
        ).fetchone()
        if row is None:
            raise Unavailable(f"{period} has no revision yet", code="board_rebuilding")
        return Page(row[0], row[1], row[2], [], row[3], "postgres")


def _read_page(raw: list[Any]) -> Page:
    first = int(raw[4])
    entries = []
    for rank, index in enumerate(range(5, len(raw), 2), first):
        user_id, score, reached_at_us = read_member(raw[index])
        name = raw[index + 1].decode() or user_id
        entries.append(RankedEntry(rank, user_id, name, score, reached_at_us))
    return Page(raw[0].decode(), int(raw[1]), int(raw[3]), entries, raw[2].decode())


def _read_players(raw: list[Any], user_ids: Sequence[str]) -> tuple[Page, list[RankedEntry | None]]:
    page = Page(raw[0].decode(), int(raw[1]), int(raw[3]), [], raw[2].decode())
    entries: list[RankedEntry | None] = []
    for index, user_id in enumerate(user_ids):
        rank, held = int(raw[4 + 2 * index]), raw[5 + 2 * index]
        if not rank:
            entries.append(None)
            continue
        score, reached_at_us = read_key(held)
        name = held[KEY_BYTES:].decode() or user_id
        entries.append(RankedEntry(rank, user_id, name, score, reached_at_us))
    return page, entries


__all__ = ["Page", "RankedEntry", "Standings"]
