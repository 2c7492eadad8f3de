"""Connections to Postgres, and what its errors mean for the caller.

Every writer's transaction is ended by the server after `TRANSACTION_TIMEOUT_MS`, so that a
paused owner frees what it holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg

from core.errors import Unavailable

TRANSACTION_TIMEOUT_MS: Final = 5_000
CONNECT_TIMEOUT_S: Final = 3

PLAN_LOCK: Final = 0x7B00_0001
"""Held shared by a stream batch, exclusively by every other writer of the ledger."""

REVISION_LOCK: Final = 0x7B00_0002
"""Held from just before a revision is numbered until its commit: commit order = revision order."""

PUBLISHER_LOCK: Final = 0x7B00_0003
"""A session's: whoever holds it is the one publisher of the topics."""

BOARDS_LOCK: Final = 0x7B00_0004
"""A session's: whoever holds it keeps the Redis boards."""

CHANNEL: Final = "trueboard_revisions"
"""LISTEN here to be woken by commits."""

Connection = psycopg.Connection[tuple[Any, ...]]


def connect(url: str, *, name: str, autocommit: bool = False, timeout_ms: int | None = None) -> Connection:
    """A connection whose transactions end after `timeout_ms` (default: the writers' 5 s; 0: never).

    Raises:
        Unavailable: the server does not answer or does not let us in.
    """
    limit_ms = TRANSACTION_TIMEOUT_MS if timeout_ms is None else timeout_ms
    with unavailable():
        return psycopg.connect(
            url,
            autocommit=autocommit,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name=f"trueboard {name}",
            prepare_threshold=1,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=15_000,
            options=f"-c transaction_timeout={limit_ms} -c timezone=UTC -c jit=off",
        )


@contextmanager
def unavailable() -> Iterator[None]:
    """Turn what passes by itself into Unavailable; anything else is a defect and stays one.

    SQLSTATE classes: 08 connection, 25P03/25P04 timeouts, 40 serialization and deadlock,
    53 resources, 55P03 lock not available, 57 operator intervention, 58 system errors.
    """
    try:
        yield
    except psycopg.Error as error:
        state = error.sqlstate or ""
        if passes(error):
            raise Unavailable(f"Postgres: {state or type(error).__name__}: {error}") from error
        raise


def passes(error: psycopg.Error) -> bool:
    """Whether waiting and repeating the step can help."""
    state = error.sqlstate
    if state is None:
        return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
    return state[:2] in ("08", "40", "53", "57", "58") or state in ("25P03", "25P04", "55P03", "25006")
