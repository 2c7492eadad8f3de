"""A ledger written by the stream, its copy in Redis, and a log to hold it against: to be damaged."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from core.times import US
from core.words import MAIN_PERIOD
from storage.postgres import definitions
from storage.redis import boards
from tests.stream_app.world import NOW_US, World, opened, submitted, toml
from trueboard.verification.snapshots import Connection

USERS = [f"user-{number}" for number in range(12)]
TYPES = ("level", "level", "slow", "points", "badge", "unknown")


def write(world: World, seed: int, *, groups: int = 12, size: int = 25) -> None:
    """A history of many kinds: limits crossed, bounds met, repeats, late ones, names, poison."""
    random_ = random.Random(seed)
    sent: list[Any] = []
    for group in range(groups):
        if group == groups // 2:
            definitions.apply(world.url, toml("2", soft=2, hard=4))
        now_us = NOW_US + group * 20 * US
        batch = []
        for number in range(size):
            if sent and random_.random() < 0.1:
                batch.append(random_.choice(sent))
                continue
            type_ = random_.choice(TYPES)
            action = submitted(
                random_.choice(USERS),
                f"{seed}-{group}-{number}",
                type_,
                points=random_.choice((-120, -40, 1, 30, 400, None)) if type_ == "points" else None,
                at_us=now_us + number * 100_000 - random_.choice((0, 0, 1, 500, 3600)) * US,
                received_us=now_us + number * 100_000,
                backfill=random_.random() < 0.1,
                username=random_.choice((None, None, "Ann", "Änn 2")),
            )
            batch.append(action)
            sent.append(action)
        partition_of = {action.user_id: len(action.user_id) % 2 for action in batch}
        for partition in (0, 1):
            if group == 3:
                world.log.append_raw(partition, b"no json")
                world.judge.carry_out(
                    world.log.number, [world.log.slice(partition, world.log.end(partition) - 1)]
                )
            mine = [action for action in batch if partition_of[action.user_id] == partition]
            if mine:
                world.take(*mine, partition=partition)


@contextmanager
def written(url: str, seed: int = 1) -> Iterator[World]:
    with opened(url) as world:
        write(world, seed)
        yield world


def copied(world: World, redis_url: str) -> Any:
    """A client of a Redis that has the board's copy."""
    client = boards.connect(redis_url)
    follow(world, client)
    return client


def follow(world: World, client: Any) -> None:
    copy = boards.BoardCopy(MAIN_PERIOD, postgres_url=world.url, client=client)
    try:
        while copy.step():
            pass
    finally:
        copy.close()


class HeldLog:
    """The world's log, as `trueboard.verification.progress.Log` shows one."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.id = world.log.topic_id
        self.first = dict.fromkeys(world.log.records, 0)

    def topic_id(self) -> str:
        return self.id

    def partitions(self) -> list[int]:
        return sorted(self._world.log.records)

    def ends(self, partition: int) -> tuple[int, int]:
        return self.first.get(partition, 0), self._world.log.end(partition)

    def records(self, wanted: dict[int, list[int]]) -> dict[int, dict[int, Any]]:
        return {
            partition: {
                offset: (found.key, found.value)
                for offset, found in enumerate(self._world.log.records.get(partition, ()))
                if offset in offsets and offset >= self.first[partition]
            }
            for partition, offsets in wanted.items()
        }


@contextmanager
def damaged(url: str, *statements: str) -> Iterator[Connection]:
    """A transaction in which these were done, past every trigger and key; nothing of it stays."""
    with psycopg.connect(url, options="-c timezone=UTC") as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SET LOCAL session_replication_role = replica")
        for statement in statements:
            cursor = connection.execute(statement)  # type: ignore[call-overload]
            if statement.startswith(("UPDATE", "DELETE", "INSERT")):
                assert cursor.rowcount > 0, statement
        yield connection
        connection.rollback()
