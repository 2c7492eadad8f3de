"""Bring a database to the present schema. Safe to run twice, and from two places at once."""

from __future__ import annotations

import warnings
from pathlib import Path
from urllib.parse import urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict

from core.errors import Unavailable
from storage.postgres.connections import CONNECT_TIMEOUT_S, MIGRATING_LOCK

MIGRATIONS = Path(__file__).parent / "migrations"

PATIENCE_S = 60
"""How long another process may be at it."""


def apply(url: str) -> None:
    """Apply every migration that the database at `url`, in any form libpq takes, has not seen.

    Raises:
        Unavailable: the database does not answer, or another process is still at it.
        psycopg.Error: it refuses.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from yoyo import get_backend, read_migrations

    # yoyo reads addresses in its own way; what it finds in the query it hands on as it is.
    given = {name: value for name, value in conninfo_to_dict(url).items() if value is not None}
    asked = urlencode({"connect_timeout": CONNECT_TIMEOUT_S, **given})
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as connection:
            connection.execute(f"SET lock_timeout = '{PATIENCE_S}s'")
            connection.execute("SELECT pg_advisory_lock(%s)", (MIGRATING_LOCK,))
            backend = get_backend(f"postgresql+psycopg:///?{asked}")
            try:
                migrations = read_migrations(str(MIGRATIONS))
                # Its lock is a row, which outlives a process that is killed; this session's does not.
                backend.break_lock()
                with backend.lock():
                    backend.apply_migrations(backend.to_apply(migrations))
            finally:
                backend.connection.close()
    except psycopg.errors.LockNotAvailable as error:
        raise Unavailable(f"Postgres: another process has been at its schema for {PATIENCE_S} s") from error
    except psycopg.OperationalError as error:
        raise Unavailable(f"Postgres does not answer: {error}") from error
