"""Every interleaving there is, at the smallest size that has everything in it.

Two workers that both believe to own the one partition, actions of two people with the same id, one
of them there twice, an operator who applies a catalogue, a batch that is refused once, and somebody
killed at every place where he can stand. Two states that look
the same from outside and in every process's variables go on the same way, so each is looked at once.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any

import pytest

from core.rates import Recent
from tests.model import ledger, operators, worker
from tests.model.clauses import Clauses, mutants
from tests.model.servers import Record, Session
from tests.model.world import World, Wrong

SECOND_US = 1_000_000
NOW_US = 1_795_000_000 * SECOND_US

LOG = (
    Record("ada", "a1", NOW_US, 1),
    Record("bob", "a1", NOW_US + SECOND_US, 1),
    Record("ada", "a2", NOW_US + 2 * SECOND_US, 1),
    Record("ada", "a1", NOW_US + 3 * SECOND_US, 2),
    Record("ada", "a3", NOW_US + 4 * SECOND_US, 1),
)


class Tiny(World):
    """Two workers over one partition; maybe an operator who applies a catalogue."""

    def __init__(self, clauses: Clauses, *, actions: int, operator: bool, refusals: int) -> None:
        super().__init__(clauses, partitions=1)
        self.processes.close()
        self.processes = type(self.processes)()
        for name in self.workers:
            self.processes.add(name, partial(worker.worker, self, name))
        if operator:
            self.processes.add("operator", partial(operators.operator, self))
            self.asked.append(operators.apply_catalogue(1))
        self.refusals = refusals
        self.log = LOG[:actions]
        self.kafka.submitted[0] = list(self.log)

    def assigned(self, name: str) -> list[int]:
        return [0]

    def check(self) -> None:
        """There are no copies here."""

    def end(self) -> None:
        """Everything counted once, in one order, with the verdicts of that order."""
        tables = self.postgres.tables
        people = {person.user_id: player for player, person in tables.people.items()}
        expected = {(record.action_id, people.get(record.user_id, 0), 0) for record in self.log}
        if set(tables.ledger) != expected or set(people) != {"ada", "bob"}:
            raise Wrong(f"{sorted(tables.ledger)} were counted of {sorted(expected)}")
        if tables.progress[0].next_offset != len(self.log):
            raise Wrong(f"progress ends at {tables.progress[0]}")
        for period, entries in tables.entries.items():
            if entries != {player: ledger.effect(tables, player, period) for player in people.values()}:
                raise Wrong(f"{period} ends with {entries}")


def look(value: Any) -> Any:
    """What can be told of a value from outside, so that equal ones behave alike."""
    if isinstance(value, (int, str, bytes, type(None))):
        return value
    if isinstance(value, Recent):
        return tuple(value.rows())
    if isinstance(value, Session):
        return ("session", tuple(sorted(value._locks)), value.broken)
    if isinstance(value, dict):
        return tuple(sorted(((look(key), look(item)) for key, item in value.items()), key=repr))
    if isinstance(value, (set, frozenset)):
        return tuple(sorted((look(item) for item in value), key=repr))
    if isinstance(value, (list, tuple)):
        return tuple(look(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return (type(value).__name__, *(look(getattr(value, field.name)) for field in fields(value)))
    return type(value).__name__


def frames(steps: Any) -> Iterator[Any]:
    while isinstance(steps, types.GeneratorType):
        frame = steps.gi_frame
        if frame is not None:
            kept = {name: item for name, item in frame.f_locals.items() if name != "world"}
            yield frame.f_code.co_name, frame.f_lasti, look(kept)
        steps = steps.gi_yieldfrom


def state(world: World, kills: int) -> int:
    processes = world.processes
    running = tuple(
        (name, name in processes._waiting, tuple(frames(steps))) for name, steps in processes._running.items()
    )
    held = tuple(
        (name, tuple(sorted(map(look, sessions), key=repr)))
        for name, sessions in sorted(world.postgres._held.items())
        if sessions
    )
    return hash((kills, look(world.postgres.tables), look(world.kafka.group_offsets), held, running))


@dataclass(frozen=True)
class Case:
    """A smallest world that has this in it, and who is killed how often."""

    actions: int
    operator: bool = False
    refusals: int = 0
    kills: int = 0


CASES = {
    "somebody is killed": Case(actions=4, kills=1),
    "a batch is refused": Case(actions=5, refusals=1),
    "a catalogue comes into force": Case(actions=3, operator=True),
}


def explore(clauses: Clauses, case: Case) -> int:
    """Go through every interleaving; how many states there are.

    Raises:
        Wrong: with the steps that lead to it.
    """
    seen: set[int] = set()
    todo: list[tuple[str, ...]] = [()]
    while todo:
        path = todo.pop()
        world = Tiny(clauses, actions=case.actions, operator=case.operator, refusals=case.refusals)
        try:
            left = case.kills
            for choice in path:
                left -= take(world, choice)
            while (here := state(world, left)) not in seen:
                seen.add(here)
                choices = world.processes.ready()
                if not choices:
                    world.end()
                    break
                if left:
                    choices += [f"kill {name}" for name in choices]
                todo.extend((*path, choice) for choice in choices[1:])
                path = (*path, choices[0])
                left -= take(world, choices[0])
        except Exception as wrong:
            raise Wrong(f"{path}: {wrong}") from wrong
        finally:
            world.close()
    return len(seen)


def take(world: World, choice: str) -> int:
    """One step of somebody, or a kill; how many kills that was."""
    if choice.startswith("kill "):
        world.processes.kill(choice.removeprefix("kill "))
        return 1
    world.step(choice)
    return 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(CASES))
def test_every_interleaving_counts_once(name: str) -> None:
    assert explore(Clauses(), CASES[name]) > 500


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("clause", "name"),
    [
        ("key_of_user_and_action", "somebody is killed"),
        ("windows_read_again_after_another_owner", "a batch is refused"),
        ("plan_held_by_batches", "a catalogue comes into force"),
        ("plan_held_alone_by_operators", "a catalogue comes into force"),
        ("version_compared", "a catalogue comes into force"),
        ("definitions_read_under_the_lock", "a catalogue comes into force"),
    ],
)
def test_the_search_would_notice(clause: str, name: str) -> None:
    with pytest.raises(Wrong):
        explore(mutants()[clause], CASES[name])
