"""Bring a database to the present schema. Safe to run twice, and from two places at once."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict

from core.errors import Unavailable
from storage.postgres.connections import (
    CONNECT_TIMEOUT_S,
    KEEPALIVES,
    MIGRATING_LOCK,
    Connection,
    unavailable,
)

MIGRATIONS = Path(__file__).parent / "migrations"

PATIENCE_S = 10.0
"""How long another process may be at it before whoever asks is told to come again."""

_PAUSE_S = 0.2


def apply(url: str) -> None:
    """Apply every migration that the database at `url`, in any form libpq takes, has not seen.

    Raises:
        Unavailable: the database does not answer, or another process is still at it.
        psycopg.Error: it refuses.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from yoyo import get_backend, read_migrations

    options = {"connect_timeout": CONNECT_TIMEOUT_S, **KEEPALIVES}
    # yoyo reads addresses in its own way; what it finds in the query it hands on as it is.
    given = {name: value for name, value in conninfo_to_dict(url).items() if value is not None}
    asked = urlencode({**options, **given})
    with _answers():
        connection = psycopg.connect(url, autocommit=True, **options)
    with connection, unavailable():
        _wait_for_turn(connection)
        _must_be_allowed(connection)
        with _answers():
            backend = get_backend(f"postgresql+psycopg:///?{asked}")
        try:
            migrations = read_migrations(str(MIGRATIONS))
            # Its lock is a row, which outlives a process that is killed; this session's does not.
            backend.break_lock()
            with backend.lock():
                for migration in backend.to_apply(migrations):
                    # One transaction: else a process killed in between leaves tables that nobody knows of.
                    with backend.transaction():
                        migration.process_steps(backend, "apply")
                        backend.mark_one(migration, log=False)
        finally:
            backend.connection.close()


@contextmanager
def _answers() -> Iterator[None]:
    try:
        yield
    except psycopg.OperationalError as error:
        raise Unavailable(f"Postgres does not answer: {error}") from error


def _wait_for_turn(connection: Connection) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while True:
        row = connection.execute("SELECT pg_try_advisory_lock(%s)", (MIGRATING_LOCK,)).fetchone()
        if row is not None and row[0]:
            return
        if time.monotonic() > until_s:
            raise Unavailable(f"Postgres: another process has been at its schema for {PATIENCE_S:.0f} s")
        time.sleep(_PAUSE_S)


def _must_be_allowed(connection: Connection) -> None:
    row = connection.execute(
        "SELECT to_regclass('yoyo_lock') IS NOT NULL OR has_schema_privilege(current_schema(), 'CREATE')"
    ).fetchone()
    if row is None or not row[0]:
        raise psycopg.errors.InsufficientPrivilege("this user may not make tables in this database's schema")
