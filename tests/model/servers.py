"""Postgres, Kafka and Redis in memory, with what the design relies on and what it must survive."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.model.running import Condition, Steps

PERIODS = ("all", "recent")
"""`all` counts everything; `recent` what was received at its edge or later, and the edge moves."""

Standing = tuple[int, int]
"""(score, reached at in µs)."""

Standings = dict[str, Standing]
"""pid → standing, of those who are shown; names are looked up by whoever shows them."""

Place = tuple[str, int]
"""(epoch, revision)."""


class Broken(Exception):
    """The connection is gone, and with it the transaction."""


# Postgres ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row of the ledger. A decision has the number of the row it decides over plus one."""

    action_id: str
    player: int
    seq: int
    verdict: str
    points: int
    received_us: int
    catalogue: str


@dataclass(frozen=True)
class Revision:
    place: Place
    digest: bytes
    cause: str
    rows: tuple[Row, ...]
    people: tuple[int, ...]


@dataclass(frozen=True)
class Delta:
    """What a revision changed in one period: player → standing before and after, None for gone."""

    place: Place
    previous: int
    count: int
    changes: dict[int, tuple[Standing | None, Standing | None]]


@dataclass
class Person:
    pid: str
    user_id: str | None
    hidden: bool = False


@dataclass(frozen=True)
class Progress:
    log: str
    next_offset: int
    fingerprint: str | None


@dataclass(frozen=True)
class Cursor:
    place: Place
    topic: str


@dataclass
class Tables:
    """Everything that is committed."""

    epochs: list[tuple[str, Place]] = field(default_factory=lambda: [("e00000", ("", 0))])
    server: int = 0
    progress: dict[int, Progress] = field(default_factory=dict)
    logs_left: set[str] = field(default_factory=set)
    ledger: dict[tuple[str, int, int], Row] = field(default_factory=dict)
    set_aside: set[tuple[str, int]] = field(default_factory=set)
    revisions: list[Revision] = field(default_factory=list)
    deltas: dict[str, list[Delta]] = field(default_factory=lambda: {period: [] for period in PERIODS})
    entries: dict[str, dict[int, Standing]] = field(default_factory=lambda: {p: {} for p in PERIODS})
    edge_us: int = 0
    people: dict[int, Person] = field(default_factory=dict)
    erased: set[str] = field(default_factory=set)
    catalogue: int = 0
    version: int = 0
    cursor: Cursor | None = None

    @property
    def epoch(self) -> str:
        return self.epochs[-1][0]

    @property
    def revision(self) -> int:
        return self.revisions[-1].place[1] if self.revisions else 0

    @property
    def digest(self) -> bytes:
        return self.revisions[-1].digest if self.revisions else bytes(32)

    def player_of(self, user_id: str) -> int | None:
        return next((player for player, person in self.people.items() if person.user_id == user_id), None)

    def effective(self, action_id: str, player: int) -> Row | None:
        """The last row about an action."""
        last = None
        seq = 0
        while (row := self.ledger.get((action_id, player, seq))) is not None:
            last, seq = row, seq + 1
        return last

    def shown(self, period: str) -> dict[int, Standing]:
        """The period's entries of everybody who is neither hidden nor erased."""
        return {
            player: standing
            for player, standing in self.entries[period].items()
            if self.people[player].user_id is not None and not self.people[player].hidden
        }

    def named(self, period: str) -> Standings:
        return {self.people[player].pid: standing for player, standing in self.shown(period).items()}


class Postgres:
    """One server: locks, read-committed transactions, and restoring it from a backup."""

    def __init__(self) -> None:
        self.tables = Tables()
        self.server = 0
        self._held: dict[str, dict[Session, bool]] = {}
        self.committed: Callable[[Tables], None] = lambda _tables: None
        # Sequences and random ids: a restore takes nothing of them back.
        self.last_player = 0
        self.last_pid = 0

    def connect(self) -> Session:
        return Session(self)

    def backup(self) -> Tables:
        return copy.deepcopy(self.tables)

    def restore(self, backup: Tables) -> None:
        """Another server with an older ledger; every connection to the one before is gone."""
        self.tables = copy.deepcopy(backup)
        self.last_player = max(self.tables.people, default=0)
        self.server += 1
        self._held.clear()

    def free(self, name: str, session: Session, shared: bool) -> bool:
        others = {s: s_shared for s, s_shared in self._held.get(name, {}).items() if s is not session}
        return not others or (shared and all(others.values()))

    def take(self, name: str, session: Session, shared: bool) -> None:
        self._held.setdefault(name, {})[session] = shared

    def let_go(self, session: Session, names: set[str]) -> None:
        for name in names:
            self._held.get(name, {}).pop(session, None)


def gone(session: Session | None) -> bool:
    return session is None or session.broken


class Session:
    """A connection. Locks are a transaction's unless they are the session's own."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres, self._server = postgres, postgres.server
        self._locks: set[str] = set()
        self._session_locks: set[str] = set()
        self.cut = False

    @property
    def broken(self) -> bool:
        return self.cut or self._server != self._postgres.server

    @property
    def tables(self) -> Tables:
        """What is committed at this moment: each look is a statement of its own."""
        if self.broken:
            raise Broken
        return self._postgres.tables

    @property
    def postgres(self) -> Postgres:
        return self._postgres

    def lock(self, name: str, *, shared: bool = False, for_session: bool = False) -> Steps:
        while not self._postgres.free(name, self, shared):
            yield lambda: self.broken or self._postgres.free(name, self, shared)
            if self.broken:
                raise Broken
        if self.broken:
            raise Broken
        self._postgres.take(name, self, shared)
        (self._session_locks if for_session else self._locks).add(name)

    def commit(self, write: Callable[[Tables], Any]) -> None:
        """Everything the transaction wrote, at once; its locks are free then."""
        write(self.tables)
        self._end()
        self._postgres.committed(self._postgres.tables)

    def rollback(self) -> None:
        self._end()

    def _end(self) -> None:
        self._postgres.let_go(self, self._locks)
        self._locks = set()

    def close(self) -> None:
        """Whoever held it is gone: what was not committed never was."""
        self.cut = True
        self._postgres.let_go(self, self._locks | self._session_locks)
        self._locks, self._session_locks = set(), set()


def unless(session: Session | None, condition: Condition) -> Condition:
    """A condition that a connection which is not there fulfils too: there is something to do."""
    return lambda: session is None or session.broken or condition()


# Kafka -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """Of the submitted topic."""

    user_id: str
    action_id: str
    received_us: int
    attempt: int

    @property
    def fingerprint(self) -> str:
        return f"{self.user_id}/{self.action_id}/{self.received_us}/{self.attempt}"


@dataclass(frozen=True)
class Publication:
    """Of `board.changed`: the period's chain."""

    period: str
    place: Place
    previous: int
    digest: bytes
    count: int
    changes: dict[str, Standing | None]
    standings: Standings
    continues: Place | None = None


@dataclass(frozen=True)
class Judged:
    """Of `action.judged`, or (with `continues`) where a new epoch goes on from."""

    place: Place
    pid: str = ""
    row: Row | None = None
    continues: Place | None = None


class Kafka:
    """The topics; names are for ever, ids are not."""

    def __init__(self, partitions: int) -> None:
        self.partitions = partitions
        self._made = 0
        self.submitted_id = self._fresh()
        self.submitted: list[list[Record]] = [[] for _ in range(partitions)]
        self.group_offsets = [0] * partitions
        self.feed_id = self._fresh()
        self.changed: list[Publication] = []
        self.judged: list[Judged] = []
        self.players: list[tuple[str, str | None]] = []

    def _fresh(self) -> str:
        self._made += 1
        return f"topic-{self._made}"

    def make_submitted_anew(self) -> None:
        self.submitted_id = self._fresh()
        self.submitted = [[] for _ in range(self.partitions)]
        # The group's offsets outlive a topic of the same name.

    def make_feed_anew(self) -> None:
        self.feed_id = self._fresh()
        self.changed, self.judged = [], []


# Redis -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Meta:
    place: Place
    digest: bytes
    count: int


@dataclass
class Copy:
    """A period: `z` and `m` with what they hold of a user, and where they stand. None: not there."""

    z: dict[str, Standing] | None = None
    m: dict[str, Standing] | None = None
    meta: Meta | None = None

    def whole(self, count: int) -> bool:
        return len(self.z or {}) == len(self.m or {}) == count


@dataclass
class Build:
    """The private keys of a build."""

    m: dict[str, Standing] = field(default_factory=dict)
    pages: int = 0


class Redis:
    """Copies, builds and markers. A method is a script: nothing comes between."""

    def __init__(self) -> None:
        self.copies = {period: Copy() for period in PERIODS}
        self.builds: dict[str, Build] = {}
        # (user id, action id) → the log that confirmed it.
        self.markers: dict[tuple[str, str], str] = {}
        self.harmed = 0

    def flush(self) -> None:
        self.copies = {period: Copy() for period in PERIODS}
        self.builds, self.markers = {}, {}
        self.harmed += 1

    def snapshot(self) -> Any:
        return copy.deepcopy((self.copies, self.markers))

    def load(self, snapshot: Any) -> None:
        self.copies, self.markers = copy.deepcopy(snapshot)
        self.builds = {}
        self.harmed += 1

    def lose_key(self, period: str, key: str) -> None:
        setattr(self.copies[period], key, None)
        self.harmed += 1
