"""No connection whose commits a crash could undo."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from storage.postgres import connections
from storage.postgres.ledger import Ledger
from tests.stream_app.world import World

pytestmark = pytest.mark.services


@pytest.fixture
def careless(stream: World) -> Iterator[str]:
    """A database whose server confirms commits before they are written."""
    _set(stream.url, "SET synchronous_commit = off")
    yield stream.url
    _set(stream.url, "RESET synchronous_commit")


def _set(url: str, what: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} {}").format(name, sql.SQL(what)))


@pytest.mark.parametrize("autocommit", [True, False])
def test_nobody_writes_where_a_crash_would_undo_commits(careless: str, autocommit: bool) -> None:
    with pytest.raises(connections.ForgetsCommits, match="synchronous_commit"):
        connections.connect(careless, name="tests", autocommit=autocommit, before_compared=True)


def test_a_writer_that_lost_its_connection_comes_back_only_to_a_server_that_keeps_commits(
    stream: World,
) -> None:
    ledger = Ledger(stream.url, name="tests")
    with ledger.looking() as cursor:
        cursor.execute("SELECT 1")
    _set(stream.url, "SET synchronous_commit = off")
    ledger.close()
    try:
        with pytest.raises(connections.ForgetsCommits), ledger.looking():
            pass
    finally:
        _set(stream.url, "RESET synchronous_commit")

    with ledger.looking() as cursor:
        cursor.execute("SELECT 1")
    ledger.close()


@pytest.mark.parametrize("autocommit", [True, False])
def test_a_connection_goes_on_waiting_for_its_commits_whatever_the_server_is_told(
    stream: World, autocommit: bool
) -> None:
    with connections.connect(stream.url, name="tests", autocommit=autocommit) as connection:
        said = connection.execute(
            "SELECT setting, source FROM pg_settings WHERE name = 'synchronous_commit'"
        ).fetchone()

    assert said == ("on", "session")
