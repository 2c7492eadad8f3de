"""What the door reads of the ledger beside verdicts: how far it is, what is public, and past pages.

All of it by short read-only statements over a pool of autocommit connections (`Standings.pool`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from psycopg_pool import AsyncConnectionPool

from core import boards
from core.errors import Unavailable
from core.ranking import read_member
from core.times import EPOCH
from storage.postgres import connections

MOST_CHANGES: Final = 20_000
"""Of a period since a past page's revision; beyond, the page is no longer held."""

_PAST = """
WITH since AS MATERIALIZED (
    SELECT DISTINCT ON (u.player) u.player, u.old_score, u.old_reached
    FROM deltas d
    CROSS JOIN LATERAL unnest(d.players, d.old_scores, d.old_reached) u(player, old_score, old_reached)
    WHERE d.period = %(period)s AND d.revision > %(revision)s
    ORDER BY u.player, d.revision),
past AS (
    SELECT player, old_score AS score, old_reached AS reached_at FROM since WHERE old_score IS NOT NULL
    UNION ALL
    SELECT e.player, e.score, e.reached_at FROM entries e
    WHERE e.period = %(period)s AND NOT EXISTS (SELECT FROM since s WHERE s.player = e.player))
SELECT p.user_id, coalesce(p.username, p.user_id), t.score,
    (extract(epoch FROM t.reached_at) * 1000000)::bigint
FROM past t JOIN players p USING (player)
WHERE NOT p.hidden AND p.erased_at IS NULL
    AND (t.score < %(score)s OR (t.score = %(score)s AND (t.reached_at > %(reached_at)s
        OR (t.reached_at = %(reached_at)s AND p.user_id > %(user_id)s COLLATE "C"))))
ORDER BY t.score DESC, t.reached_at, p.user_id
LIMIT %(limit)s
"""


@dataclass(frozen=True, slots=True)
class PastEntry:
    """A player's place in a period as it was; names are the latest."""

    user_id: str
    username: str
    score: int
    reached_at_us: int


async def progress(pool: AsyncConnectionPool[Any]) -> dict[int, tuple[int, int]]:
    """How far the submitted topic was judged: partition → (log, next offset).

    Raises:
        Unavailable: no Postgres.
    """
    async with connections.reading(pool) as connection:
        cursor = await connection.execute("SELECT partition, log, next_offset FROM progress")
        return {partition: (log, next_offset) for partition, log, next_offset in await cursor.fetchall()}


async def fence(pool: AsyncConnectionPool[Any]) -> int:
    """A number that moves whenever catalogue, boards or people may have changed.

    Raises:
        Unavailable: no Postgres, or nothing in it yet.
    """
    async with connections.reading(pool) as connection:
        cursor = await connection.execute("SELECT version FROM fence")
        row = await cursor.fetchone()
    if row is None:
        raise Unavailable("nothing is in force yet")
    return int(row[0])


async def public_boards(pool: AsyncConnectionPool[Any]) -> frozenset[str]:
    """The boards that need no token.

    Raises:
        Unavailable: no Postgres.
    """
    async with connections.reading(pool) as connection:
        cursor = await connection.execute(
            "SELECT DISTINCT ON (board) definition, version FROM boards ORDER BY board, version DESC"
        )
        rows = await cursor.fetchall()
    known = (boards.from_body(body, version) for body, version in rows)
    return frozenset(board.board for board in known if board.public)


async def past_page(
    pool: AsyncConnectionPool[Any], period: str, epoch: str, revision: int, after: bytes, limit: int
) -> list[PastEntry] | None:
    """The entries after a member (`core.ranking.member`) as the period was at this revision.

    Today's entries are rolled back: who changed since stands as the first change since found it. None if the
    revision is not of this history, or too much changed since. A scan: 34 ms for 1 M entries.

    Raises:
        Unavailable: no Postgres.
    """
    user_id, score, reached_at_us = read_member(after)
    async with connections.reading(pool) as connection, connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        cursor = await connection.execute(
            "SELECT EXISTS (SELECT FROM revisions WHERE revision = %(revision)s AND epoch = %(epoch)s),"
            " coalesce((SELECT sum(cardinality(players)) FROM deltas"
            "   WHERE period = %(period)s AND revision > %(revision)s), 0)",
            {"period": period, "epoch": epoch, "revision": revision},
        )
        row = await cursor.fetchone()
        if row is None or not row[0] or row[1] > MOST_CHANGES:
            return None
        cursor = await connection.execute(
            _PAST,
            {
                "period": period,
                "revision": revision,
                "score": score,
                "reached_at": EPOCH + timedelta(microseconds=reached_at_us),
                "user_id": user_id,
                "limit": limit,
            },
        )
        return [PastEntry(*found) for found in await cursor.fetchall()]
