"""The schema is brought up to date whoever was at it before, and however the address is written."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from core.errors import Unavailable
from storage.postgres import migrate
from storage.postgres.connections import MIGRATING_LOCK
from trueboard.devstack.ports import free_port

pytestmark = pytest.mark.services


def applied(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM _yoyo_migration").fetchone()
    assert row
    return int(row[0])


MIGRATIONS = len(list(migrate.MIGRATIONS.glob("*.sql")))


def test_a_lock_that_a_killed_process_left_holds_nobody_up(database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, now(), 1)")

    migrate.apply(database)
    migrate.apply(database)

    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM yoyo_lock").fetchone() == (0,)


@pytest.mark.parametrize(
    "more", [{}, {"application_name": "a b&c=d/100%", "options": "-c timezone=UTC -c jit=off"}]
)
def test_the_address_may_have_any_form(empty_database: str, more: dict[str, str]) -> None:
    keywords = make_conninfo("", **{**conninfo_to_dict(empty_database), **more})

    migrate.apply(keywords)

    assert "://" not in keywords
    assert applied(empty_database) == MIGRATIONS


def test_two_at_once_both_find_it_done(empty_database: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(migrate.apply, empty_database) for _ in range(2)]
        assert [each.result(60) for each in done] == [None, None]

    assert applied(empty_database) == MIGRATIONS


def test_another_that_stays_at_it_is_waited_for_so_long(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "PATIENCE_S", 1)
    with psycopg.connect(database, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s)", (MIGRATING_LOCK,))
        with pytest.raises(Unavailable, match="another process"):
            migrate.apply(database)

    migrate.apply(database)


def test_a_database_that_refuses_is_its_own_error(empty_database: str) -> None:
    guest = f"guest_{secrets.token_hex(4)}"
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {guest} LOGIN PASSWORD 'guest'")
    try:
        with pytest.raises(psycopg.Error):
            migrate.apply(make_conninfo(empty_database, user=guest, password="guest"))
    finally:
        with psycopg.connect(empty_database, autocommit=True) as connection:
            connection.execute(f"DROP ROLE {guest}")


@pytest.mark.parametrize("url", ["postgresql://u:p@127.0.0.1:{}/x", "host=127.0.0.1 port={} dbname=x"])
def test_one_that_does_not_answer_is_unavailable(url: str) -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        migrate.apply(url.format(free_port()))


def test_a_migration_and_that_it_was_applied_are_one(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise RuntimeError("as by SIGKILL")

    with monkeypatch.context() as patched:
        patched.setattr("yoyo.backends.base.DatabaseBackend.mark_one", killed)
        with pytest.raises(RuntimeError):
            migrate.apply(empty_database)

    migrate.apply(empty_database)
