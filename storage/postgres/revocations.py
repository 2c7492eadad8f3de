"""Revoked tokens: written by an operator's command, read by whoever takes tokens.

No part of the ledger. Numbers rise in the order of commits, since writers take turns: who has read
all up to n finds everything new behind n.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from psycopg_pool import AsyncConnectionPool

from core.errors import TrueboardError
from service.revocations import Revocation
from storage.postgres import connections
from storage.postgres.connections import Connection

PAGE: Final = 2_000
"""Read at once; some 5 ms of decoding."""

MOST_IN_FORCE: Final = 100_000
"""Every process that takes tokens holds all of them, at some 200 bytes each."""

KEPT_AFTER_END_DAYS: Final = 30
"""How long one that has expired can still be looked up; a user id is not kept for ever."""

_COLUMNS: Final = "revocation, jti, user_id, issued_before, expires_at, revoked_by, reason, revoked_at"

_READ: Final = """
SELECT revocation, (extract(epoch FROM revoked_at) * 1000000)::bigint, jti, user_id,
    ceil(extract(epoch FROM issued_before))::bigint, ceil(extract(epoch FROM expires_at))::bigint
FROM revocations
WHERE revocation >= %(first)s AND (expires_at > clock_timestamp() OR revocation = %(first)s)
ORDER BY revocation
LIMIT %(most)s
"""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A revocation with who made it, why and when."""

    number: int
    jti: str | None
    user_id: str | None
    issued_before: datetime | None
    expires_at: datetime
    by: str
    reason: str | None
    revoked_at: datetime


class TooManyRevocations(TrueboardError):
    """As many are in force as processes hold."""

    def __init__(self, held: int) -> None:
        super().__init__(
            f"{held} revocations are in force, and processes hold no more: to revoke every token there is, "
            "put another key in the place of the issuer's in its key set"
        )


async def read(pool: AsyncConnectionPool[Any], first: int) -> list[Revocation]:
    """The next in force from this number on, at most `PAGE`, and the one of that number if it is there.

    Raises:
        Unavailable: no Postgres, or a ledger that has to be compared first.
    """
    async with connections.reading(pool) as connection:
        with connections.schema_awaited():
            cursor = await connection.execute(_READ, {"first": first, "most": PAGE})
            return [Revocation(*row) for row in await cursor.fetchall()]


def add(
    connection: Connection,
    *,
    jti: str | None = None,
    user_id: str | None = None,
    issued_before: datetime | None = None,
    expires_at: datetime,
    by: str,
    reason: str | None = None,
) -> Recorded:
    """Revoke one token, or all of a user's that were issued before an instant. A transaction of its own.

    Raises:
        TooManyRevocations: there are `MOST_IN_FORCE` already.
        Unavailable: no Postgres, or none that has the table.
    """
    with connections.unavailable(), connections.schema_awaited(), connection.transaction():
        # Numbered in the order of commits, or a reader could pass one over.
        connection.execute("LOCK TABLE revocations IN SHARE ROW EXCLUSIVE MODE")
        connection.execute(
            "DELETE FROM revocations WHERE expires_at < clock_timestamp() - make_interval(days => %s)",
            (KEPT_AFTER_END_DAYS,),
        )
        held = connection.execute(
            "SELECT count(*) FROM revocations WHERE expires_at > clock_timestamp()"
        ).fetchone()
        if held is not None and held[0] >= MOST_IN_FORCE:
            raise TooManyRevocations(held[0])
        row = connection.execute(
            "INSERT INTO revocations (jti, user_id, issued_before, expires_at, revoked_by, reason)"
            f" VALUES (%s, %s, %s, %s, %s, %s) RETURNING {_COLUMNS}",
            (jti, user_id, issued_before, expires_at, by, reason),
        ).fetchone()
    assert row is not None
    return Recorded(*row)


def in_force(connection: Connection) -> list[Recorded]:
    """Those that have not expired, the oldest first.

    Raises:
        Unavailable: no Postgres, or none that has the table.
    """
    with connections.unavailable(), connections.schema_awaited():
        rows = connection.execute(
            f"SELECT {_COLUMNS} FROM revocations WHERE expires_at > clock_timestamp() ORDER BY revocation"
        ).fetchall()
    return [Recorded(*row) for row in rows]
