"""Bring a database to the present schema. Safe to run twice, and from two places at once."""

from __future__ import annotations

import warnings
from pathlib import Path

import psycopg

from core.errors import Unavailable

MIGRATIONS = Path(__file__).parent / "migrations"


def apply(url: str) -> None:
    """Apply every migration that the database at `url` has not seen.

    Raises:
        Unavailable: the database does not answer.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from yoyo import get_backend, read_migrations

    scheme, rest = url.split("://", 1)
    if not scheme.startswith("postgres"):
        raise ValueError("a postgresql:// URL is needed")
    try:
        backend = get_backend(f"postgresql+psycopg://{rest}")
    except psycopg.OperationalError as error:
        raise Unavailable(f"Postgres does not answer: {error}") from error
    try:
        migrations = read_migrations(str(MIGRATIONS))
        with backend.lock():
            backend.apply_migrations(backend.to_apply(migrations))
    finally:
        backend.connection.close()
