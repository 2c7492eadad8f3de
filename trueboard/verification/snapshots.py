"""Reading one moment of the ledger: a transaction that sees nothing of what is written later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg

from core.errors import Unavailable
from storage.postgres import connections

Connection = psycopg.Connection[tuple[Any, ...]]

FETCH_ROWS: Final = 5_000
"""Rows a server-side cursor brings at a time."""


@contextmanager
def snapshot(url: str) -> Iterator[Connection]:
    """A connection in a transaction of REPEATABLE READ that may only read, for as long as it takes.

    Raises:
        Unavailable: no Postgres, or one without a ledger.
    """
    with connections.unavailable():
        connection = connections.connect(url, name="verify", timeout_ms=0, before_compared=True)
        try:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            with connection.transaction():
                connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
                connection.execute("SET LOCAL statement_timeout = 0")
                connection.execute("SET LOCAL work_mem = '64MB'")
                yield connection
        except psycopg.errors.UndefinedTable as error:
            raise Unavailable(f"Postgres holds no ledger of this version: {error}") from error
        finally:
            connection.close()


def one(connection: Connection, query: str, parameters: Any = None) -> tuple[Any, ...]:
    """The one row of a statement that always answers with one."""
    row = connection.execute(query, parameters).fetchone()
    if row is None:
        raise RuntimeError("a statement that always answers with a row gave none")
    return row


def stream(
    connection: Connection, name: str, query: str, parameters: Any = None
) -> Iterator[tuple[Any, ...]]:
    """The rows of a statement, a few thousand in memory at a time."""
    with connection.cursor(name=name) as cursor:
        cursor.itersize = FETCH_ROWS
        cursor.execute(query, parameters)
        yield from cursor


def periods(connection: Connection) -> list[str]:
    """The ids of every period there is."""
    return [row[0] for row in connection.execute("SELECT period FROM periods ORDER BY period").fetchall()]


def microseconds(column: str) -> str:
    """SQL for an instant as µs since 1970, exactly."""
    return f"(extract(epoch FROM {column}) * 1000000)::bigint"
