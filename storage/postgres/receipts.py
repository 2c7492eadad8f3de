"""What the ledger says of one action, for the one who sent it."""

from __future__ import annotations

from typing import Any

import msgspec
from psycopg_pool import AsyncConnectionPool

from core.receipts import Judged, Reason
from core.times import format_us
from storage.postgres import connections

_FIND = """
SELECT l.type, l.verdict, l.reason, l.points, l.fingerprint,
    (extract(epoch FROM f.received_at) * 1000000)::bigint, r.revision, r.epoch
FROM players p
CROSS JOIN LATERAL (
    SELECT * FROM ledger WHERE action_id = %(action_id)s AND player = p.player ORDER BY seq DESC LIMIT 1) l
CROSS JOIN LATERAL (
    SELECT received_at FROM ledger WHERE action_id = %(action_id)s AND player = p.player AND seq = 0) f
JOIN revisions r ON r.batch = l.batch
WHERE p.user_id = %(user_id)s
"""


class Receipts:
    """A reader of verdicts. `pool` gives autocommit connections (`Standings.pool`)."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    async def find(self, user_id: str, action_id: str) -> Judged | None:
        """The verdict, None if the action is not in the ledger (yet).

        `revision` is the one of the verdict; score and rank are left to the standings.

        Raises:
            Unavailable: no Postgres.
        """
        async with connections.reading(self._pool) as connection:
            cursor = await connection.execute(_FIND, {"action_id": action_id, "user_id": user_id})
            row = await cursor.fetchone()
        if row is None:
            return None
        return Judged(
            user_id=user_id,
            action_id=action_id,
            type=row[0],
            received_at=format_us(row[5]),
            fingerprint=row[4],
            status=row[1],
            points=row[3],
            reason=None if row[2] is None else msgspec.convert(row[2], Reason),
            judged_revision=row[6],
            epoch=row[7],
            revision=row[6],
            score=None,
            rank=None,
        )
