"""Everything together: who runs, what goes wrong, and what must hold after every step."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.model import copies, door, judging, ledger, operators, topics, worker
from tests.model.clauses import Clauses
from tests.model.running import Processes, Steps
from tests.model.servers import (
    PERIODS,
    Kafka,
    Place,
    Postgres,
    Publication,
    Redis,
    Row,
    Session,
    Standings,
    Tables,
)

USERS = ("ada", "bob", "cyd")


class Wrong(AssertionError):
    """Something was shown, counted or kept that must not be."""


class World:
    """The whole system at one moment."""

    def __init__(self, clauses: Clauses, *, workers: int = 2, partitions: int = 2) -> None:
        self.clauses = clauses
        self.postgres, self.kafka, self.redis = Postgres(), Kafka(partitions), Redis()
        self.processes = Processes()
        self.clock_s = 0
        self.epochs = 0
        self.builds = 0
        self.generation = 0
        self.attempts: list[door.Attempt] = []
        self.asked: list[Callable[[World, Session], Steps]] = []
        self.unanswered: dict[tuple[str, str], int] = {}
        self.accepted: dict[tuple[str, str], str] = {}
        self.stops: dict[int, str] = {}
        self.cut: set[int] = set()
        self.lost_log = False
        self.refusals = 0
        self.tombstones_seen = 0
        self.history: dict[Place, dict[str, Standings]] = {}
        self.ledger_of: dict[Place, bytes] = {}
        self.replicas: dict[str, topics.Replica] = {}
        self.clients = [topics.Client() for _ in range(2)]
        self.workers = [f"worker {number}" for number in range(workers)]
        self.owner = {partition: self.workers[partition % workers] for partition in range(partitions)}
        self.backups: list[Tables] = []
        self.snapshots: list[Any] = []
        self._last_copy = dict.fromkeys(PERIODS, ("", 0))
        self._harmed = 0
        self.postgres.committed = self._committed
        self._begin()

    def _begin(self) -> None:
        tables = self.postgres.tables
        session = self.postgres.connect()

        def first(tables: Tables) -> None:
            ledger.append(tables, "definition", {}, every_period=True)

        session.commit(first)
        session.close()
        self.backups.append(self.postgres.backup())
        self.snapshots.append(self.redis.snapshot())
        assert tables.revision == 1
        add = self.processes.add
        add("door", partial(door.door, self))
        for name in self.workers:
            add(name, partial(worker.worker, self, name))
        add("operator", partial(operators.operator, self))
        for period in PERIODS:
            add(f"keeper {period}", partial(copies.keeper, self, period, "one"))
        add("keeper again", partial(copies.keeper, self, PERIODS[0], "two"))
        add("publisher", partial(topics.publisher, self))
        add("publisher again", partial(topics.publisher, self))
        for name in ("replica 0", "replica 1"):
            add(name, partial(topics.replica, self, name))

    # What processes ask --------------------------------------------------------------------------

    def now_us(self) -> int:
        """Every look at the clock is later than the one before."""
        self.clock_s += 1
        return judging.BEGIN_US + self.clock_s * judging.SECOND_US

    def partition_of(self, user_id: str) -> int:
        return USERS.index(user_id) % self.kafka.partitions

    def assigned(self, name: str) -> list[int]:
        return [partition for partition, owner in self.owner.items() if owner == name]

    def has_work(self, name: str) -> bool:
        tables = self.postgres.tables
        for partition in self.assigned(name):
            if partition in self.stops:
                continue
            row = tables.progress.get(partition)
            end = len(self.kafka.submitted[partition])
            read = 0 if row is None or row.log != self.kafka.submitted_id else row.next_offset
            if end > read:
                return True
        return False

    def copy_is_behind(self, period: str) -> bool:
        tables, copy = self.postgres.tables, self.redis.copies[period]
        if copy.meta is None or not copy.whole(copy.meta.count):
            return True
        last = tables.deltas[period][-1].place
        return copy.meta.place != last or not operators.has(tables, copy.meta)

    def topics_are_behind(self) -> bool:
        return topics.sent_until(self, self.postgres.tables) < self.postgres.tables.revision

    def answered(self, attempt: door.Attempt, *, log: str) -> None:
        """Somebody was told 202, for a record that this log has confirmed."""
        key = (attempt.user_id, attempt.action_id)
        self.unanswered.pop(key, None)
        self.accepted.setdefault(key, log)

    def stopped(self, partition: int, why: str) -> None:
        self.stops[partition] = why
        if not (self.cut or self.lost_log):
            raise Wrong(f"partition {partition} stopped though nothing is lost: {why}")

    # What must hold ------------------------------------------------------------------------------

    def _committed(self, tables: Tables) -> None:
        if not tables.revisions:
            return
        last = tables.revisions[-1]
        named = {period: tables.named(period) for period in PERIODS}
        known = self.ledger_of.setdefault(last.place, last.digest)
        if known != last.digest:
            # One number, two histories: whoever shows it from now on can be wrong.
            self.history.setdefault(last.place, named)
            return
        if self.history.setdefault(last.place, named) != named and last.rows:
            raise Wrong(f"{last.place} changed after it was committed")
        for period in PERIODS:
            for player, standing in tables.entries[period].items():
                if ledger.effect(tables, player, period) != standing:
                    raise Wrong(f"the entry of {player} in {period} is not the sum of its rows")

    def check_verdicts(self, tables: Tables, rows: list[Row]) -> None:
        """Each new row is what somebody who reads the whole ledger would have said."""
        judged = [row for row in tables.ledger.values() if row.seq == 0]
        for row in rows:
            window = judging.recent(tables.catalogue, [r for r in judged if r.player == row.player])
            expected = judging.verdict(tables.catalogue, window, row.received_us)
            if expected != (row.verdict, row.points):
                raise Wrong(f"{row} should be {expected}")
            judged.append(row)

    def seen(self, period: str, place: Place, standings: Standings, who: str) -> None:
        known = self.history.get(place)
        if known is None or known[period] != standings:
            was = None if known is None else known[period]
            raise Wrong(f"{who} shows {standings} of {period} at {place}, which is {was}")

    def published(self, record: Publication) -> None:
        self.seen(record.period, record.place, record.standings, "the topic")
        if len(record.standings) != record.count:
            raise Wrong(f"{record} counts wrongly")

    def check(self) -> None:
        """After every step: what can be read now is the ledger at the position it names."""
        for period in PERIODS:
            page = copies.read(self.redis, self.clauses, period)
            if page is None:
                self._last_copy[period] = ("", 0)
                continue
            self.seen(period, page[0].place, page[1], "the copy")
            if self.redis.harmed == self._harmed and page[0].place < self._last_copy[period]:
                raise Wrong(f"the copy of {period} went back to {page[0].place} by itself")
            self._last_copy[period] = page[0].place
        self._harmed = self.redis.harmed

    def step(self, name: str) -> None:
        self.processes.step(name)
        self.check()

    # The end -------------------------------------------------------------------------------------

    def settle(self, most: int = 4000) -> None:
        """No more faults: everybody goes on until nobody has anything to do."""
        self.processes.paused.clear()
        for _ in range(most):
            for key, tries in list(self.unanswered.items()):
                if not any((a.user_id, a.action_id) == key for a in self.attempts):
                    self.attempts.append(door.Attempt(*key, tries + 1, "confirmed"))
                    self.unanswered[key] = tries + 1
            ready = self.processes.ready()
            if not ready:
                break
            for name in ready:
                if name in self.processes.ready():
                    self.step(name)
        else:
            raise Wrong("it never comes to rest")

    def finish(self) -> None:
        """Come to rest, and see that everything accepted is counted and everybody shows the same."""
        if self.cut:
            self.generation += 1
        self.settle()
        tables = self.postgres.tables
        for (user_id, action_id), log in self.accepted.items():
            partition = self.partition_of(user_id)
            if user_id in tables.erased or log != self.kafka.submitted_id or partition in self.cut:
                continue
            player = tables.player_of(user_id)
            if player is None or (action_id, player, 0) not in tables.ledger:
                raise Wrong(f"{action_id} of {user_id} was accepted and is not counted")
        for period in PERIODS:
            last, named = tables.deltas[period][-1].place, tables.named(period)
            self.seen(period, tables.revisions[-1].place, named, "the ledger")
            page = copies.read(self.redis, self.clauses, period)
            if page is None or page[0].place != last or page[1] != named:
                raise Wrong(f"the copy of {period} ends with {page}, the ledger with {last} {named}")
            for client in self.clients:
                for replica in self.replicas.values():
                    client.poll(self, replica)
                if client.place.get(period) != last or client.shown[period] != named:
                    raise Wrong(f"a client ends with {client}, the ledger with {last} {named}")
        # A tombstone that a publisher of the lost history sends later waits for the next look.
        names = dict(self.kafka.players[: self.tombstones_seen])
        for person in tables.people.values():
            if person.user_id is not None and names.get(person.pid, "") is None:
                raise Wrong(f"{person} was erased, and a restore brought the name back")
        recounted = topics.recounted(self.kafka.judged)
        all_entries = {tables.people[player].pid: s for player, s in tables.entries["all"].items()}
        if recounted != all_entries:
            raise Wrong(f"the topic adds up to {recounted}, the ledger to {all_entries}")

    def close(self) -> None:
        self.processes.close()


# What happens to it ------------------------------------------------------------------------------


class Fate:
    """Everything that can happen, each with its arguments drawn by `pick(n)`: 0 … n − 1."""

    def __init__(self, world: World, pick: Callable[[int], int]) -> None:
        self.world, self.pick = world, pick
        self.actions = 0

    def refuse(self) -> None:
        """Postgres ends the next batch that comes so far, and the connection stays."""
        self.world.refusals = 1

    def submit(self) -> None:
        world = self.world
        user_id = USERS[self.pick(len(USERS))]
        if self.actions and self.pick(4) == 0:
            action_id = f"a{self.pick(self.actions)}"
        else:
            action_id = f"a{self.actions}"
            self.actions += 1
        key = (user_id, action_id)
        number = world.unanswered.get(key, 0) + 1
        world.unanswered[key] = number
        outcome = ("confirmed", "confirmed", "confirmed", "unconfirmed", "refused")[self.pick(5)]
        world.attempts.append(door.Attempt(user_id, action_id, number, outcome))

    def run(self) -> None:
        ready = self.world.processes.ready()
        if ready:
            self.world.step(ready[self.pick(len(ready))])

    def run_on(self) -> None:
        """One process for a while, so that some get far ahead of others."""
        ready = self.world.processes.ready()
        if not ready:
            return
        name = ready[self.pick(len(ready))]
        for _ in range(self.pick(12) + 1):
            if name not in self.world.processes.ready():
                break
            self.world.step(name)

    def kill(self) -> None:
        names = self.world.processes.names()
        self.world.processes.kill(names[self.pick(len(names))])

    def pause(self) -> None:
        names = self.world.processes.names()
        name = names[self.pick(len(names))]
        paused = self.world.processes.paused
        paused.symmetric_difference_update({name})

    def deal_out(self) -> None:
        """Another owner for a partition; the one before is told when it next asks."""
        world = self.world
        partition = self.pick(world.kafka.partitions)
        world.owner[partition] = world.workers[self.pick(len(world.workers))]
        world.generation += 1

    def decide(self) -> None:
        rows = [row for row in self.world.postgres.tables.ledger.values() if row.seq == 0]
        if rows:
            row = rows[self.pick(len(rows))]
            verdict = ("accepted", "rejected")[self.pick(2)]
            for _ in range(self.pick(2) + 1):
                self.world.asked.append(operators.decide(row.action_id, row.player, verdict))

    def hide(self) -> None:
        people = sorted(self.world.postgres.tables.people)
        if people:
            self.world.asked.append(operators.hide(people[self.pick(len(people))], hidden=bool(self.pick(3))))

    def erase(self) -> None:
        people = sorted(self.world.postgres.tables.people)
        if people and self.pick(3) == 0:
            self.world.asked.append(operators.erase(people[self.pick(len(people))]))

    def define(self) -> None:
        number = max(self.world.postgres.tables.catalogue, 0) + 1
        self.world.asked.append(operators.apply_catalogue(number))

    def expire(self) -> None:
        world = self.world
        edge_us = judging.BEGIN_US + (max(0, world.clock_s - self.pick(6))) * judging.SECOND_US
        world.asked.append(operators.move_edge(edge_us))

    def flush(self) -> None:
        self.world.redis.flush()

    def snapshot(self) -> None:
        self.world.snapshots = [*self.world.snapshots, self.world.redis.snapshot()][-4:]

    def load(self) -> None:
        self.world.redis.load(self.world.snapshots[self.pick(len(self.world.snapshots))])

    def lose_key(self) -> None:
        self.world.redis.lose_key(PERIODS[self.pick(2)], ("z", "m", "meta")[self.pick(3)])

    def back_up(self) -> None:
        self.world.backups = [*self.world.backups, self.world.postgres.backup()][-4:]

    def restore(self) -> None:
        self.world.postgres.restore(self.world.backups[self.pick(len(self.world.backups))])

    def make_log_anew(self) -> None:
        if self.pick(3) == 0:
            self.world.kafka.make_submitted_anew()
            self.world.generation += 1
            self.world.lost_log = True
            self.world.stops.clear()

    def make_feed_anew(self) -> None:
        if self.pick(3) == 0:
            self.world.kafka.make_feed_anew()

    def cut_the_log(self) -> None:
        """An unclean election: the end of a partition is gone, and soon written anew."""
        partition = self.pick(self.world.kafka.partitions)
        log = self.world.kafka.submitted[partition]
        if log and self.pick(3) == 0:
            del log[len(log) - 1 - self.pick(min(2, len(log))) :]
            self.world.cut.add(partition)

    def look_at_the_log(self) -> None:
        if self.world.cut:
            self.world.generation += 1

    def move_group_offset(self) -> None:
        kafka = self.world.kafka
        partition = self.pick(kafka.partitions)
        kafka.group_offsets[partition] = self.pick(len(kafka.submitted[partition]) + 1)

    def watch(self) -> None:
        world = self.world
        replicas = sorted(world.replicas)
        if replicas:
            client = world.clients[self.pick(len(world.clients))]
            client.poll(world, world.replicas[replicas[self.pick(len(replicas))]])


WEIGHTS: dict[str, int] = {
    "submit": 14,
    "run": 60,
    "run_on": 40,
    "kill": 4,
    "pause": 5,
    "refuse": 3,
    "deal_out": 8,
    "decide": 3,
    "hide": 2,
    "erase": 2,
    "define": 1,
    "expire": 2,
    "flush": 1,
    "snapshot": 2,
    "load": 2,
    "lose_key": 2,
    "back_up": 2,
    "restore": 1,
    "make_log_anew": 1,
    "make_feed_anew": 1,
    "cut_the_log": 1,
    "look_at_the_log": 1,
    "move_group_offset": 2,
    "watch": 10,
}


def schedule(seed: int, clauses: Clauses, *, length: int = 400) -> World:
    """One schedule, all of it drawn from the seed.

    Raises:
        Wrong: what was found; the same seed finds it again.
    """
    rng = random.Random(seed)
    world = World(clauses)
    fate = Fate(world, rng.randrange)
    names, weights = list(WEIGHTS), list(WEIGHTS.values())
    try:
        for what in rng.choices(names, weights, k=length):
            getattr(fate, what)()
            world.check()
        world.finish()
    finally:
        world.close()
    return world
