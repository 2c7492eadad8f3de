"""Revoked tokens in Postgres: written in the order of their numbers, kept, read in pages."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from core.errors import Unavailable
from service.revocations import Revocation, Revocations
from storage.postgres import connections, revocations
from storage.postgres.connections import Connection
from storage.postgres.revocations import TooManyRevocations
from storage.standings import Standings

pytestmark = pytest.mark.services

NO_REDIS = "redis://127.0.0.1:1"


def now() -> datetime:
    return datetime.now(UTC)


def later(seconds: float) -> datetime:
    return now() + timedelta(seconds=seconds)


@pytest.fixture
def connection(database: str) -> Iterator[Connection]:
    connection = connections.connect(database, name="test", autocommit=True, before_compared=True)
    yield connection
    connection.close()


def add_token(connection: Connection, jti: str, *, for_s: float = 900) -> int:
    return revocations.add(connection, jti=jti, expires_at=later(for_s), by="ops").number


async def test_what_is_written_is_read(database: str, connection: Connection):
    before = datetime(2026, 11, 21, 9, 26, 0, 1, UTC)
    token = revocations.add(connection, jti="j1", expires_at=later(900), by="ops", reason="stolen")
    user = revocations.add(connection, user_id="ada", issued_before=before, expires_at=later(900), by="ops")
    async with Standings.connect(NO_REDIS, database) as standings:
        first, second = await revocations.read(standings.pool, 0)
        behind = await revocations.read(standings.pool, user.number)

    assert (first.jti, first.user_id, first.issued_before_s) == ("j1", None, None)
    # Tokens say whole seconds: one of 09:26:00 was issued before 09:26:00.000001.
    assert (second.jti, second.user_id, second.issued_before_s) == (None, "ada", int(before.timestamp()) + 1)
    assert behind == [second]
    assert revocations.in_force(connection) == [token, user]
    assert (token.reason, token.by, user.issued_before) == ("stolen", "ops", before)


async def test_only_what_is_in_force_is_read_and_the_one_that_is_asked_for(
    database: str, connection: Connection
):
    old, kept = add_token(connection, "old", for_s=-10), add_token(connection, "kept")
    async with Standings.connect(NO_REDIS, database) as standings:
        assert [row.number for row in await revocations.read(standings.pool, 0)] == [kept]
        assert [row.number for row in await revocations.read(standings.pool, old)] == [old, kept]

    assert [row.jti for row in revocations.in_force(connection)] == ["kept"]


async def test_many_are_read_in_pages(database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(revocations, "PAGE", 7)
    for n in range(30):
        add_token(connection, f"j{n}")
    async with Standings.connect(NO_REDIS, database) as standings:

        async def read(first: int) -> list[Revocation]:
            page = await revocations.read(standings.pool, first)
            assert len(page) <= 7
            return page

        view = Revocations(read)
        await view.refresh()

    assert all(view.cover(f"j{n}", "ada", 0) for n in range(30))


def test_numbers_become_visible_in_their_order(database: str, connection: Connection):
    """A reader that knows n never finds a smaller number later."""
    seen: list[int] = []

    def write(count: int) -> None:
        own = connections.connect(database, name="test", autocommit=True, before_compared=True)
        for n in range(count):
            add_token(own, f"j{n}")
        own.close()

    with ThreadPoolExecutor(4) as writers:
        writing = [writers.submit(write, 25) for _ in range(4)]
        while True:
            over = all(each.done() for each in writing)
            last = seen[-1] if seen else 0
            rows = connection.execute(
                "SELECT revocation FROM revocations WHERE revocation > %s ORDER BY 1", (last,)
            )
            seen += [number for (number,) in rows.fetchall()]
            if over:
                break
        for each in writing:
            each.result()

    assert len(seen) == 100


def test_it_is_only_added_to_until_it_is_long_over(connection: Connection):
    add_token(connection, "j1")
    add_token(connection, "over", for_s=-10)
    add_token(connection, "forgotten", for_s=-31 * 86_400)
    for statement in (
        "UPDATE revocations SET expires_at = now()",
        "DELETE FROM revocations",
        "TRUNCATE revocations",
    ):
        with pytest.raises(psycopg.errors.RestrictViolation):
            connection.execute(statement)

    add_token(connection, "j2")

    kept = connection.execute("SELECT jti FROM revocations ORDER BY revocation").fetchall()
    assert kept == [("j1",), ("over",), ("j2",)]


def test_there_are_no_more_than_processes_hold(connection: Connection, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(revocations, "MOST_IN_FORCE", 2)
    for jti in ("j1", "over"):
        add_token(connection, jti, for_s=900 if jti == "j1" else -10)
    add_token(connection, "j2")

    with pytest.raises(TooManyRevocations, match="2 revocations"):
        add_token(connection, "j3")

    assert [row.jti for row in revocations.in_force(connection)] == ["j1", "j2"]


async def test_a_schema_without_the_table_is_waited_for(postgres_url: str):
    async with Standings.connect(NO_REDIS, postgres_url) as standings:
        with pytest.raises(Unavailable):
            await revocations.read(standings.pool, 0)
    connection = connections.connect(postgres_url, name="test", autocommit=True, before_compared=True)
    with pytest.raises(Unavailable):
        add_token(connection, "j1")
    connection.close()
