"""The verdicts on some users' actions, in the order of the ledger, from a revision on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from psycopg_pool import AsyncConnectionPool

from core.receipts import Judged, Reason
from core.times import format_us
from storage.postgres import connections

REVISIONS_AT_ONCE: Final = 500
"""How many revisions one read covers at most."""

# Only what was judged lately is looked at: the BRIN index on batch answers ranges. `received_at`
# is that of the submission, also for a later decision about it.
_ROWS = """
SELECT p.user_id, l.action_id, l.type, l.verdict, l.reason, l.points, l.fingerprint,
    (extract(epoch FROM f.received_at) * 1000000)::bigint, r.revision, r.epoch
FROM ledger l
JOIN players p USING (player)
JOIN revisions r ON r.batch = l.batch
CROSS JOIN LATERAL (
    SELECT received_at FROM ledger WHERE action_id = l.action_id AND player = l.player AND seq = 0) f
WHERE l.batch BETWEEN %(first)s AND %(last)s AND p.user_id = ANY(%(user_ids)s)
    AND r.revision > %(after)s AND r.revision <= %(upto)s
ORDER BY r.revision, l.action_id, l.seq
"""

_RANGE = """
SELECT l.epoch, l.revision, r.first, r.last, r.upto
FROM (SELECT epoch, revision FROM revisions ORDER BY revision DESC LIMIT 1) l
CROSS JOIN (
    SELECT min(batch) AS first, max(batch) AS last, max(revision) AS upto
    FROM (SELECT revision, batch FROM revisions WHERE revision > %s ORDER BY revision LIMIT %s) n) r
"""


@dataclass(frozen=True, slots=True)
class Found:
    """The verdicts of the revisions up to `upto`; `last` is the ledger's last (epoch, revision)."""

    judged: list[Judged]
    upto: int
    last: tuple[str, int]


class VerdictReader:
    """Reads with connections of a pool in autocommit (`Standings.pool`)."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    async def position(self) -> tuple[str, int]:
        """The ledger's last revision, ("", 0) of an empty one.

        Raises:
            Unavailable: no Postgres.
        """
        async with connections.reading(self._pool) as connection:
            cursor = await connection.execute(
                "SELECT epoch, revision FROM revisions ORDER BY revision DESC LIMIT 1"
            )
            row = await cursor.fetchone()
        return ("", 0) if row is None else (row[0], row[1])

    async def after(self, revision: int, user_ids: Collection[str]) -> Found:
        """These users' verdicts of the next revisions after this one.

        Revisions become visible in their order, so nothing is passed over. Score and rank are
        left to the standings.

        Raises:
            Unavailable: no Postgres.
        """
        async with connections.reading(self._pool) as connection:
            cursor = await connection.execute(_RANGE, (revision, REVISIONS_AT_ONCE))
            row = await cursor.fetchone()
            if row is None or row[4] is None:
                return Found([], revision, ("", 0) if row is None else (row[0], row[1]))
            epoch, last_revision, first, last, upto = row
            batches = {"first": first, "last": last, "after": revision, "upto": upto}
            cursor = await connection.execute(_ROWS, batches | {"user_ids": list(user_ids)})
            rows = await cursor.fetchall()
        return Found([_judged(row) for row in rows], upto, (epoch, last_revision))


def _judged(row: tuple[Any, ...]) -> Judged:
    user_id, action_id, type_, verdict, reason, points, fingerprint, received_us, revision, epoch = row
    return Judged(
        user_id=user_id,
        action_id=action_id,
        type=type_,
        received_at=format_us(received_us),
        fingerprint=fingerprint,
        status=verdict,
        points=points,
        reason=None if reason is None else msgspec.convert(reason, Reason),
        judged_revision=revision,
        epoch=epoch,
        revision=revision,
        score=None,
        rank=None,
    )
