"""The stream: partition batches in, revisions out."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from core.rates import Recent
from tests.model import judging, ledger, operators
from tests.model.running import Condition, Steps
from tests.model.servers import (
    PERIODS,
    Broken,
    Person,
    Progress,
    Record,
    Row,
    Session,
    Tables,
    unless,
)

if TYPE_CHECKING:
    from tests.model.world import World

MOST = 2
"""Records taken of a partition at a time."""


@dataclass
class Window:
    """A player's recent actions, and where their partition stood when they were last right."""

    recent: Recent
    partition: int
    run: int
    catalogue: int


@dataclass
class Memory:
    """What a worker keeps between transactions; none of it is believed over the ledger."""

    version: int | None = None
    catalogue: int = 0
    hidden: set[int] = field(default_factory=set)
    players: dict[str, int] = field(default_factory=dict)
    windows: dict[int, Window] = field(default_factory=dict)
    # Partition → (log and next offset this worker left, its unbroken run's number).
    left: dict[int, tuple[tuple[str, int], int]] = field(default_factory=dict)
    runs: int = 0

    def read_definitions(self, tables: Tables) -> None:
        self.catalogue = tables.catalogue
        self.hidden = {player for player, person in tables.people.items() if person.hidden}
        self.players.clear()
        self.windows.clear()


def worker(world: World, name: str) -> Steps:
    clauses, postgres, kafka = world.clauses, world.postgres, world.kafka
    memory = Memory()
    session: Session | None = None
    positions: dict[int, int] = {}
    log = ""
    generation = -1
    try:
        while True:
            yield unless(session, lambda: world.has_work(name))
            try:
                if session is None or session.broken:
                    if session is not None:
                        session.close()
                    session = postgres.connect()
                    if clauses.memory_goes_with_the_connection:
                        memory = Memory()
                    generation = -1
                    yield from operators.look_at_the_epoch(world, session)
                if generation != world.generation or log != kafka.submitted_id:
                    generation, log = world.generation, kafka.submitted_id
                    positions = {}
                    for partition in world.assigned(name):
                        position = seek(world, session, partition, log)
                        yield None
                        if position is not None:
                            positions[partition] = position
                taken = {
                    partition: list(enumerate(kafka.submitted[partition]))[position : position + MOST]
                    for partition, position in positions.items()
                }
                taken = {partition: records for partition, records in taken.items() if records}
                if not taken:
                    continue
                again = yield from transaction(world, session, memory, log, taken)
                if again:
                    generation = -1
                    continue
                for partition, records in taken.items():
                    positions[partition] = records[-1][0] + 1
                yield None
                for partition in taken:
                    kafka.group_offsets[partition] = positions[partition]
            except Broken:
                session = None
    finally:
        if session is not None:
            session.close()


def seek(world: World, session: Session, partition: int, log: str) -> int | None:
    """Where to read on; None stops the partition."""
    kafka, clauses = world.kafka, world.clauses
    if log != kafka.submitted_id:
        # What is asked of a log now would be the answer of another one.
        return None
    end = len(kafka.submitted[partition])
    if not clauses.positions_from_the_ledger:
        return min(kafka.group_offsets[partition], end)
    row = session.tables.progress.get(partition)
    if row is None:
        return 0
    if clauses.progress_by_log_id and row.log != log:
        return 0
    if end < row.next_offset:
        world.stopped(partition, f"the log ends at {end}, {row.next_offset} were read")
        return None
    before = kafka.submitted[partition][row.next_offset - 1].fingerprint if row.next_offset else None
    if clauses.progress_by_log_id and before != row.fingerprint:
        world.stopped(partition, "another record stands where the last one was read")
        return None
    return row.next_offset


def transaction(
    world: World, session: Session, memory: Memory, log: str, taken: dict[int, list[tuple[int, Record]]]
) -> Generator[Condition | None, None, bool]:
    """One group of records, one revision. Answers whether to seek again."""
    clauses, kafka = world.clauses, world.kafka
    version_before = memory.version
    if not clauses.definitions_read_under_the_lock and version_before != session.tables.version:
        memory.read_definitions(session.tables)
        yield None
    if clauses.plan_held_by_batches:
        yield from session.lock("plan", shared=True)
    for partition in sorted(taken):
        yield from session.lock(f"progress {partition}")
    yield None
    tables = session.tables
    if memory.version != tables.version and (clauses.version_compared or memory.version is None):
        if clauses.definitions_read_under_the_lock:
            memory.read_definitions(tables)
        memory.version = tables.version
    fresh: list[tuple[int, int, Record]] = []
    for partition, records in sorted(taken.items()):
        row = tables.progress.get(partition)
        next_offset = 0
        if row is not None and (row.log == log or not clauses.progress_by_log_id):
            next_offset = row.next_offset
        elif row is not None and (kafka.submitted_id != log or log in tables.logs_left):
            session.rollback()
            return True
        if memory.left.get(partition, (None, 0))[0] != (log, next_offset):
            memory.runs += 1
            memory.left[partition] = ((log, next_offset), memory.runs)
        for offset, record in records:
            if offset > next_offset and clauses.positions_from_the_ledger:
                session.rollback()
                return True
            if offset >= next_offset:
                fresh.append((partition, offset, record))
                next_offset = offset + 1
    # People.
    players: dict[str, int] = {}
    new_people: dict[int, Person] = {}
    for user_id in sorted({record.user_id for _, _, record in fresh}):
        if user_id in tables.erased:
            continue
        known: int | None = memory.players.get(user_id)
        if known is None:
            yield from session.lock(f"user {user_id}")
            known = session.tables.player_of(user_id)
        if known is None:
            postgres = session.postgres
            postgres.last_player += 1
            postgres.last_pid += 1
            known = postgres.last_player
            new_people[known] = Person(f"pid-{postgres.last_pid}", user_id)
        players[user_id] = known
    yield None
    # Which keys are there, and the verdicts.
    keys = {
        (record.action_id, players[record.user_id]) for _, _, record in fresh if record.user_id in players
    }
    for action_id, of in sorted(keys):
        yield from session.lock(f"key {action_id} {of}")
    tables = session.tables
    seen_actions = {action_id for action_id, _, _ in tables.ledger}
    rows: dict[tuple[str, int], Row] = {}
    aside: set[tuple[str, int]] = set()
    windows: dict[int, Window] = {}
    for partition, offset, record in fresh:
        player = players.get(record.user_id)
        if player is None:
            if record.action_id not in seen_actions:
                aside.add((f"{log}/{partition}", offset))
            continue
        key = (record.action_id, player)
        counted = (
            (*key, 0) in tables.ledger
            if clauses.key_of_user_and_action
            else record.action_id in seen_actions or record.action_id in {taken_id for taken_id, _ in rows}
        )
        if key in rows or counted:
            continue
        window = windows.get(player)
        if window is None:
            window = windows[player] = _window(world, memory, tables, partition, player)
        verdict, points = judging.verdict(memory.catalogue, window.recent, record.received_us)
        rows[key] = Row(*key, 0, verdict, points, record.received_us, str(memory.catalogue))
    touched = sorted({row.player for row in rows.values() if row.verdict == "accepted"})
    for player in touched:
        yield from session.lock(f"entry {player}")
    yield None
    if world.refusals:
        # A deadlock, a lock not had in time: rolled back, to be judged again.
        world.refusals -= 1
        session.rollback()
        return True
    yield from session.lock("revision")
    world.check_verdicts(session.tables, list(rows.values()))
    last = {partition: records[-1] for partition, records in taken.items()}
    session.commit(
        lambda tables: _write(tables, memory, log, last, rows, new_people, aside),
    )
    # What was committed may be remembered now, and only now.
    if clauses.memory_goes_with_the_connection or not session.broken:
        for partition, (offset, _) in last.items():
            (_, before), run = memory.left[partition]
            memory.left[partition] = ((log, max(offset + 1, before)), run)
        memory.players.update(players)
        memory.windows.update(windows)
    return False


def _window(world: World, memory: Memory, tables: Tables, partition: int, player: int) -> Window:
    """A player's recent actions: those at hand if they can be believed, else the ledger's."""
    known = memory.windows.get(player)
    run = memory.left[partition][1]
    believed = known is not None and known.catalogue == memory.catalogue
    if world.clauses.windows_read_again_after_another_owner:
        believed = believed and known is not None and (known.partition, known.run) == (partition, run)
    if known is not None and believed:
        if world.clauses.windows_changed_after_the_commit:
            copied = Recent()
            for row in known.recent.rows():
                copied.add(*row[:3], row.code, row.points, row.accepted)
            return Window(copied, partition, run, memory.catalogue)
        return known
    rows = [row for (_, of, _), row in tables.ledger.items() if of == player]
    window = Window(judging.recent(memory.catalogue, rows), partition, run, memory.catalogue)
    if not world.clauses.windows_changed_after_the_commit:
        memory.windows[player] = window
    return window


def _write(
    tables: Tables,
    memory: Memory,
    log: str,
    last: dict[int, tuple[int, Record]],
    rows: dict[tuple[str, int], Row],
    new_people: dict[int, Person],
    aside: set[tuple[str, int]],
) -> None:
    tables.people.update(new_people)
    for partition, (offset, record) in last.items():
        progress = tables.progress.get(partition)
        if progress is not None and progress.log != log:
            tables.logs_left.add(progress.log)
        if progress is None or progress.log != log or progress.next_offset <= offset:
            tables.progress[partition] = Progress(log, offset + 1, record.fingerprint)
    tables.set_aside |= aside
    ordered = tuple(rows[key] for key in sorted(rows))
    changed: dict[str, ledger.Changes] = {period: {} for period in PERIODS}
    for row in ordered:
        tables.ledger[(row.action_id, row.player, row.seq)] = row
        if row.verdict == "accepted":
            _count(tables, memory, row, changed)
    if ordered:
        ledger.append(tables, "stream", changed, rows=ordered, people=tuple(sorted(new_people)))


def _count(tables: Tables, memory: Memory, row: Row, changed: dict[str, ledger.Changes]) -> None:
    for period in PERIODS:
        if period == "recent" and row.received_us < tables.edge_us:
            continue
        entries = tables.entries[period]
        old = entries.get(row.player)
        score, reached_us = old or (0, 0)
        new = entries[row.player] = (score + row.points, max(reached_us, row.received_us))
        # Whether somebody is shown is what this worker believes of them.
        if row.player not in memory.hidden:
            before, _ = changed[period].get(row.player, (old, new))
            changed[period][row.player] = (before, new)
