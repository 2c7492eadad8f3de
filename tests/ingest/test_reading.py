"""What the door reads of the ledger, on a real Postgres: progress, definitions and past pages."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from core import catalogue
from core.errors import Unavailable
from core.ranking import member
from core.times import EPOCH as EPOCH_INSTANT
from ingest.definitions import Definitions
from storage.postgres import definitions, reading
from tests.ingest.world import NOW_US

pytestmark = pytest.mark.services

PERIOD = "main:all-time"


@pytest.fixture
async def pool(database: str) -> AsyncIterator[AsyncConnectionPool[Any]]:
    definitions.apply(database, catalogue.shipped())
    async with AsyncConnectionPool(
        database, min_size=0, max_size=2, open=False, kwargs={"autocommit": True}
    ) as pool:
        yield pool


async def test_definitions_are_read_when_they_move(database: str, pool: AsyncConnectionPool[Any]) -> None:
    held = Definitions(
        lambda: reading.fence(pool),
        lambda: definitions.current_catalogue_async(pool),
        lambda: reading.public_boards(pool),
    )
    with pytest.raises(Unavailable):
        _ = held.current
    with pytest.raises(Unavailable):
        held.public()
    await held.refresh()
    first = held.current
    await held.refresh()
    same = held.current
    changed = catalogue.shipped().replace(b'version = "', b'version = "next-')
    definitions.apply(database, changed)
    await held.refresh()

    assert held.public() == {"main"}
    assert same is first
    assert held.current.version == "next-" + first.version


async def test_progress_is_empty_before_anything_was_judged(pool: AsyncConnectionPool[Any]) -> None:
    assert await reading.progress(pool) == {}


async def test_progress_is_by_partition(database: str, pool: AsyncConnectionPool[Any]) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("INSERT INTO logs (topic_id) VALUES ('t')")
        connection.execute("INSERT INTO progress (partition, log, next_offset) SELECT 3, log, 17 FROM logs")

    assert [next_offset for _, next_offset in (await reading.progress(pool)).values()] == [17]


async def test_a_past_page_is_what_the_page_was(database: str, pool: AsyncConnectionPool[Any]) -> None:
    chance = random.Random(7)
    with psycopg.connect(database) as connection:
        epoch, history = write_history(connection, chance)
    for revision, standings in history.items():
        ordered = sorted(standings.items(), key=lambda item: member(*item[1], item[0]))
        for start in range(0, len(ordered) - 1, 3):
            user_id, (score, reached_at_us) = ordered[start]
            after = member(score, reached_at_us, user_id)
            page = await reading.past_page(pool, PERIOD, epoch, revision, after, 4)

            assert page is not None
            assert [(e.user_id, (e.score, e.reached_at_us)) for e in page] == ordered[start + 1 : start + 5]


async def test_a_page_of_another_history_or_of_too_long_ago_is_not_held(
    database: str, pool: AsyncConnectionPool[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(database) as connection:
        epoch, history = write_history(connection, random.Random(7))
    after = member(10**9, NOW_US, "zz")
    first = min(history)
    held = await reading.past_page(pool, PERIOD, epoch, first, after, 4)
    other = await reading.past_page(pool, PERIOD, "0" * 26, first, after, 4)
    future = await reading.past_page(pool, PERIOD, epoch, max(history) + 1, after, 4)
    monkeypatch.setattr(reading, "MOST_CHANGES", 3)
    long_ago = await reading.past_page(pool, PERIOD, epoch, first, after, 4)

    assert held is not None
    assert (other, future, long_ago) == (None, None, None)


def write_history(
    connection: psycopg.Connection[tuple[Any, ...]], chance: random.Random
) -> tuple[str, dict[int, dict[str, tuple[int, int]]]]:
    """Twenty revisions of ten players; (epoch, revision → user id → score and instant)."""
    row = connection.execute(
        "SELECT epoch, revision FROM revisions ORDER BY revision DESC LIMIT 1"
    ).fetchone()
    assert row is not None
    epoch, revision = row
    players = {}
    for number in range(10):
        found = connection.execute(
            "INSERT INTO players (user_id) VALUES (%s) RETURNING player", (f"u{number}",)
        ).fetchone()
        assert found is not None
        players[f"u{number}"] = found[0]
    standings: dict[str, tuple[int, int]] = {}
    history: dict[int, dict[str, tuple[int, int]]] = {}
    previous = revision
    for step in range(20):
        revision += 1
        changes = chance.sample(sorted(players), chance.randint(1, 4))
        before = dict(standings)
        for user_id in changes:
            if user_id in standings and chance.random() < 0.2:
                del standings[user_id]
            else:
                standings[user_id] = (chance.randint(0, 5), NOW_US + chance.randint(0, 2) * 1_000_000 + step)
        connection.execute(
            "INSERT INTO revisions (revision, epoch, batch, cause, definitions, digest)"
            " VALUES (%s, %s, %s, 'stream', 1, %s)",
            (revision, epoch, 1000 + step, bytes(32)),
        )
        connection.execute(
            "INSERT INTO deltas VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (
                PERIOD,
                revision,
                previous,
                len(standings),
                [players[user_id] for user_id in changes],
                [before[user_id][0] if user_id in before else None for user_id in changes],
                [standings[user_id][0] if user_id in standings else None for user_id in changes],
                [instant(before[user_id][1]) if user_id in before else None for user_id in changes],
                [instant(standings[user_id][1]) if user_id in standings else None for user_id in changes],
            ),
        )
        previous = revision
        history[revision] = dict(standings)
    for user_id, (score, reached_at_us) in standings.items():
        connection.execute(
            "INSERT INTO entries VALUES (%s, %s, %s, %s)",
            (PERIOD, players[user_id], score, instant(reached_at_us)),
        )
    return epoch, history


def instant(us: int) -> Any:
    return EPOCH_INSTANT + timedelta(microseconds=us)
