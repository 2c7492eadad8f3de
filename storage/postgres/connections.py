"""Connections to Postgres, and what its errors mean for the caller.

Every writer's transaction is ended by the server after `TRANSACTION_TIMEOUT_MS`, so that a
paused owner frees what it holds. Where a commit would not wait until it is written, no connection is
made. Nobody reads or writes over a connection before the ledger behind it was compared with what
follows it (`storage.histories`): once per connection, since a ledger is restored only under a
server that starts anew or into tables made anew.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, TypeVar

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from core.errors import Unavailable

TRANSACTION_TIMEOUT_MS: Final = 5_000
CONNECT_TIMEOUT_S: Final = 3

KEEPALIVES: Final[dict[str, Any]] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
"""A server that vanished is noticed within half a minute, also by who waits for its answer."""

PLAN_LOCK: Final = 0x7B00_0001
"""Held shared by a stream batch, exclusively by every other writer of the ledger."""

REVISION_LOCK: Final = 0x7B00_0002
"""Held from just before a revision is numbered until its commit: commit order = revision order."""

PUBLISHER_LOCK: Final = 0x7B00_0003
"""A session's: whoever holds it is the one publisher of the topics."""

BOARDS_LOCK: Final = 0x7B00_0004
"""A session's: whoever holds it keeps the Redis boards."""

COMPARING_LOCK: Final = 0x7B00_0005
"""A session's: whoever holds it compares the ledger with what follows it, and begins new epochs."""

MIGRATING_LOCK: Final = 0x7B00_0006
"""A session's: whoever holds it brings the schema up to date."""

CHANNEL: Final = "trueboard_revisions"
"""LISTEN here to be woken by commits."""

INCARNATION: Final = """
    CASE WHEN pg_is_in_recovery() THEN 'standby' ELSE concat_ws('/',
        (SELECT system_identifier FROM pg_control_system()),
        left(pg_walfile_name(pg_current_wal_insert_lsn()), 8),
        (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint,
        (SELECT oid FROM pg_database WHERE datname = current_database()),
        pg_relation_filenode('revisions')) END
"""
"""SQL: the run of the server, its timeline, and the very table; another one where a ledger was restored."""

_IS_COMPARED: Final = f"""
SELECT i.incarnation = 'standby' OR i.incarnation = c.incarnation AND NOT c.erasures_due
    OR NOT EXISTS (SELECT FROM epochs), i.incarnation = 'standby'
FROM compared c, (SELECT {INCARNATION} AS incarnation) i
"""

PATIENCE_TRIES: Final = 30
"""How often a writer beside the stream asks for the plan lock, a second at a time."""

PATIENCE_PAUSE_S: Final = 0.2

_COMMITS: Final = "SELECT set_config('synchronous_commit', current_setting('synchronous_commit'), false)"
"""What a commit waits for here; said by the session itself, it stays so when the server's settings change."""

Connection = psycopg.Connection[tuple[Any, ...]]

T = TypeVar("T")


class NotCompared(Unavailable):
    """Nobody has seen yet whether this ledger lost revisions that others were shown."""

    def __init__(self) -> None:
        super().__init__(
            "Postgres was started anew: the ledger is being compared with what follows it",
            code="board_rebuilding",
            retry_after_s=1,
        )


class ForgetsCommits(Unavailable):
    """The server would confirm commits that it has not written: a crash would lose judged actions."""

    def __init__(self) -> None:
        super().__init__(
            "Postgres has synchronous_commit off for these connections, so a crash would lose what was"
            " committed: set it to on (ALTER SYSTEM, ALTER DATABASE, ALTER ROLE)",
            code="board_rebuilding",
            retry_after_s=1,
        )


def sees_commits_kept(url: str) -> None:
    """See that the server keeps what it commits.

    Raises:
        ForgetsCommits: it does not.
        Unavailable: the server does not answer.
    """
    connect(url, name="settings", autocommit=True, before_compared=True).close()


def connect(
    url: str,
    *,
    name: str,
    autocommit: bool = False,
    timeout_ms: int | None = None,
    before_compared: bool = False,
) -> Connection:
    """A connection whose transactions end after `timeout_ms` (default: the writers' 5 s; 0: never).

    `before_compared` is for those who compare, and for looking on.

    Raises:
        ForgetsCommits: the server would lose commits in a crash.
        NotCompared: the ledger must be compared with what follows it first.
        Unavailable: the server does not answer or does not let us in.
    """
    connection = _connect(url, name=name, autocommit=autocommit, timeout_ms=timeout_ms)
    if before_compared:
        return connection
    try:
        with unavailable(), schema_awaited():
            row = connection.execute(_IS_COMPARED).fetchone()
            if not autocommit:
                connection.rollback()
        if row is None or not row[0]:
            raise NotCompared
    except BaseException:
        connection.close()
        raise
    return connection


class Pooled(psycopg.AsyncConnection[tuple[Any, ...]]):
    """A reader's connection; asks once whether its ledger was compared."""

    compared = False


@asynccontextmanager
async def pool(url: str, *, name: str, most: int) -> AsyncIterator[AsyncConnectionPool[Any]]:
    """A pool for `reading`, of at most so many connections. Opens even while the server is down."""
    made: AsyncConnectionPool[Any] = AsyncConnectionPool(
        url,
        min_size=0,
        max_size=most,
        timeout=2.0,
        open=False,
        connection_class=Pooled,
        kwargs={
            "application_name": f"trueboard {name}",
            "connect_timeout": CONNECT_TIMEOUT_S,
            "autocommit": True,
            "options": "-c statement_timeout=5000 -c timezone=UTC -c jit=off",
            **KEEPALIVES,
        },
        check=AsyncConnectionPool.check_connection,
    )
    await made.open()
    try:
        yield made
    finally:
        await made.close(timeout=1.0)


@asynccontextmanager
async def reading(pool: AsyncConnectionPool[Any]) -> AsyncIterator[Any]:
    """A connection of a pool of readers (`connection_class` being `Pooled`).

    Raises:
        Unavailable: no Postgres, or a ledger that has to be compared first.
    """
    with unavailable():
        try:
            async with pool.connection() as connection:
                if not getattr(connection, "compared", False):
                    with schema_awaited():
                        row = await (await connection.execute(_IS_COMPARED)).fetchone()
                    if row is None or not row[0]:
                        raise NotCompared
                    if isinstance(connection, Pooled):
                        # A standby may be promoted under an open connection: it is asked again.
                        connection.compared = not row[1]
                yield connection
        except PoolTimeout as error:
            raise Unavailable(f"Postgres: {error}", code="board_rebuilding") from error


def _connect(url: str, *, name: str, autocommit: bool, timeout_ms: int | None) -> Connection:
    limit_ms = TRANSACTION_TIMEOUT_MS if timeout_ms is None else timeout_ms
    with unavailable():
        connection = psycopg.connect(
            url,
            autocommit=autocommit,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name=f"trueboard {name}",
            prepare_threshold=1,
            options=f"-c transaction_timeout={limit_ms} -c timezone=UTC -c jit=off",
            **KEEPALIVES,
        )
    try:
        with unavailable():
            row = connection.execute(_COMMITS).fetchone()
            if not autocommit:
                connection.commit()
        if row is None or row[0] == "off":
            raise ForgetsCommits
    except BaseException:
        connection.close()
        raise
    return connection


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


@contextmanager
def schema_awaited() -> Iterator[None]:
    """Turn a schema that is not there into Unavailable: whoever sets up may be at it."""
    try:
        yield
    except psycopg.errors.UndefinedTable as error:
        raise Unavailable(f"Postgres holds no ledger of this version yet: {error}") from error


def passes(error: psycopg.Error) -> bool:
    """Whether waiting and repeating the step can help."""
    state = error.sqlstate
    if state is None:
        return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
    return state[:2] in ("08", "40", "53", "57", "58") or state in ("25P03", "25P04", "55P03", "25006")


def patiently(step: Callable[[], T]) -> T:
    """What this step gives, tried again while batches do not let go or Postgres is away.

    For writers that take the plan lock alone (`Ledger.exclusive`) and have nobody waiting behind
    them. The step begins anew each time.

    Raises:
        Unavailable: the last of `PATIENCE_TRIES`' own.
    """
    for _ in range(PATIENCE_TRIES - 1):
        try:
            return step()
        except Unavailable:
            time.sleep(PATIENCE_PAUSE_S)
    return step()
