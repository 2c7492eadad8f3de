"""A stream without Kafka: a log of records in memory, and workers over a real Postgres."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg

from core import actions, topics
from core.catalogue import Catalogue, read
from core.times import US
from storage.postgres import definitions
from storage.postgres.ledger import Ledger
from stream_app import intake
from stream_app.carry_out import Judge, Outcome, Slice
from tests.acceptance.naive import Submitted

NOW_US = 1_795_000_000 * US

DAY_US = 86_400 * US

TOML = """
version = "{version}"
[types.level]
points = 10
[[types.level.limits]]
window_s = 60
soft = {soft}
hard = {hard}
[types.slow]
points = 7
cooldown_s = 30
min_gap_ms = 500
[types.points]
min = -100
max = 1000
[types.huge]
min = 1
max = 9223372036854775807
[types.badge]
points = 0
[limits.earned]
types = ["level", "points"]
window_s = 3600
soft = {sum_soft}
hard = {sum_hard}
"""


def toml(version: str, *, soft: int = 3, hard: int = 5, sum_soft: int = 2000, sum_hard: int = 4000) -> bytes:
    return TOML.format(version=version, soft=soft, hard=hard, sum_soft=sum_soft, sum_hard=sum_hard).encode()


def catalogue(version: str, **limits: int) -> Catalogue:
    return read(toml(version, **limits))


@dataclass(frozen=True)
class Raw:
    """A record as the transport hands it on."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()


def submitted(
    user_id: str,
    action_id: str,
    type_: str = "level",
    *,
    points: int | None = None,
    at_us: int = NOW_US,
    received_us: int | None = None,
    backfill: bool = False,
    username: str | None = None,
) -> Submitted:
    return Submitted(
        user_id,
        action_id,
        type_,
        points,
        at_us,
        at_us if received_us is None else received_us,
        backfill,
        username,
    )


def encoded(action: Submitted) -> bytes:
    return actions.encode(
        actions.submitted(
            user_id=action.user_id,
            action_id=action.action_id,
            type_=action.type,
            points=action.points,
            occurred_at_us=action.occurred_us,
            received_at_us=action.received_us,
            username=action.username,
            contract="v1",
            client="door",
            backfill=action.backfill,
            fingerprint_hex=actions.fingerprint(action.type, action.points, None),
        )
    )


@dataclass
class Log:
    """The submitted topic: per partition its records, and what they were made of (None: poison)."""

    number: int = 0
    topic_id: str = "log-1"
    records: dict[int, list[Raw]] = field(default_factory=dict)
    made_of: dict[int, list[Submitted | None]] = field(default_factory=dict)

    def append(self, partition: int, action: Submitted, headers: Any = ()) -> int:
        return self._append(partition, action.user_id.encode(), encoded(action), headers, action)

    def append_raw(
        self, partition: int, value: bytes | None, *, key: bytes | None = b"k", headers: Any = ()
    ) -> int:
        return self._append(partition, key, value, headers, None)

    def _append(self, partition: int, key: Any, value: Any, headers: Any, action: Submitted | None) -> int:
        run = self.records.setdefault(partition, [])
        run.append(Raw(topics.SUBMITTED.name, partition, len(run), key, value, headers))
        self.made_of.setdefault(partition, []).append(action)
        return len(run) - 1

    def end(self, partition: int) -> int:
        return len(self.records.get(partition, ()))

    def slice(self, partition: int, first: int = 0, last: int | None = None) -> Slice:
        """The records first…last, both included, through the intake."""
        last = self.end(partition) - 1 if last is None else last
        piece, _ = intake.read_slice(self.records[partition][first : last + 1])
        return piece


def adopt(url: str, log: Log, partitions: Sequence[int]) -> None:
    """Take up these partitions, as the seek does."""
    ledger = Ledger(url, name="tests")
    try:
        with ledger.batch(list(partitions)) as batch:
            log.number, _ = batch.adopt(list(partitions), log.topic_id)
    finally:
        ledger.close()


def worker(url: str, *, most_people: int = 1000) -> Judge:
    return Judge(
        Ledger(url, name="tests"),
        most_people=most_people,
        most_rows=20 * most_people,
        max_late_us=DAY_US,
        max_early_us=60 * US,
    )


@dataclass
class World:
    """A ledger with a catalogue in force, a log, and one worker to begin with."""

    url: str
    log: Log
    judge: Judge

    def take(self, *actions_: Submitted, partition: int = 0, by: Judge | None = None) -> Outcome:
        """Append these actions to the log and have them carried out as one group."""
        first = self.log.end(partition)
        for action in actions_:
            self.log.append(partition, action)
        return (by or self.judge).carry_out(self.log.number, [self.log.slice(partition, first)])

    def rows(self, query: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(query, parameters).fetchall()

    def verdicts(self) -> dict[str, tuple[str, str | None]]:
        """action id → (verdict, reason's code)."""
        return {
            row[0]: (row[1], row[2])
            for row in self.rows("SELECT action_id, verdict, reason->>'code' FROM ledger")
        }


@contextmanager
def opened(url: str, *, partitions: int = 2, catalogue_toml: bytes | None = None) -> Iterator[World]:
    definitions.apply(url, catalogue_toml or toml("1"))
    log = Log()
    adopt(url, log, range(partitions))
    judge = worker(url)
    try:
        yield World(url, log, judge)
    finally:
        judge.ledger.close()


@contextmanager
def fresh_database(postgres_url: str, template: str) -> Iterator[str]:
    """A database for one example of many; the `database` fixture lasts a whole test."""
    name = f"example_{secrets.token_hex(6)}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))
    finally:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
