"""The players one worker has at hand: who they are and what they did lately.

A view of the ledger, never a source: what is not here, or is not of this worker's unbroken run of
a partition, is read from the ledger before anything is judged. Bounded: two generations, the older
of which is dropped when the younger is full, so what was used lately stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from core.rates import ALWAYS_US, FOREVER_US, Recent, Rules
from core.times import US
from storage.postgres.ledger import ACCEPTED, BACKFILL, OpenBatch, PlayerRow
from stream_app.judging import Incoming, Person

LATENESS_KEPT_US: Final = 5 * 60 * US
"""How late most actions come; those later are judged at the price of reading the ledger."""

PRUNE_EVERY: Final = 16
"""Batches between two prunings: who acts much is in the next one too."""

PRUNE_ROWS: Final = 16
"""A player with fewer recent actions than this is not worth pruning."""


@dataclass(slots=True)
class _Wanted:
    """What must be known of one person: everything within these instants, both included."""

    person: Person
    since_us: int
    until_us: int


class People:
    """Players at hand, by user id."""

    def __init__(self, *, most: int, most_rows: int, slack_us: int) -> None:
        """`most` players and about `most_rows` of their recent actions at the most.

        `slack_us` is how late or early an action that is no backfill may come.
        """
        self._half, self._half_rows = max(1, most // 2), max(1, most_rows // 2)
        self._slack_us = slack_us
        self._young_rows = 0
        self._batches = 0
        self._young: dict[str, Person] = {}
        self._old: dict[str, Person] = {}
        self._runs: dict[int, tuple[int, tuple[int, int]]] = {}
        self._last_run = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def clear(self) -> None:
        """Definitions or people have changed: believe nothing."""
        self._young.clear()
        self._old.clear()
        self._young_rows = 0

    def run_of(self, partition: int, log: int, next_offset: int) -> int:
        """The run this partition is in; a new one if somebody else has moved its progress.

        Or its log is another: an offset alone may be reached again in a topic made anew.
        """
        run, expected = self._runs.get(partition, (0, None))
        if expected != (log, next_offset):
            self._last_run += 1
            run = self._last_run
            self._runs[partition] = (run, (log, next_offset))
        return run

    def moved(self, partition: int, log: int, next_offset: int) -> None:
        """This worker has committed a batch that moved the partition to `next_offset` of this log."""
        run, _ = self._runs[partition]
        self._runs[partition] = (run, (log, next_offset))

    def find(self, user_id: str, partition: int, run: int) -> Person | None:
        """The player, if it was read or written in this run: in another one its name may be another."""
        person = self._found(user_id)
        if person is None or (person.partition, person.run) != (partition, run):
            return None
        return person

    def _found(self, user_id: str) -> Person | None:
        person = self._young.get(user_id)
        if person is None:
            person = self._old.pop(user_id, None)
            if person is not None:
                self._keep(user_id, person)
        return person

    def keep(self, found: dict[str, Person]) -> None:
        """Players whose existence has been committed."""
        for user_id, person in found.items():
            self._keep(user_id, person)

    def _keep(self, user_id: str, person: Person) -> None:
        if len(self._young) >= self._half or self._young_rows >= self._half_rows:
            self._old = self._young
            self._young, self._young_rows = {}, 0
        self._young[user_id] = person
        if person.recent is not None:
            self._young_rows += len(person.recent)

    def ready(
        self,
        batch: OpenBatch,
        rules: Rules,
        people: Sequence[Person],
        fresh: set[int],
        incoming: Sequence[Incoming],
        runs: dict[int, int],
    ) -> None:
        """See that each player's recent actions are known as far as its actions of this group need.

        `fresh` are players interned in this transaction: nobody has judged anything of theirs.
        """
        unknown: set[int] = set()
        for person, item in zip(people, incoming, strict=True):
            run = runs[item.partition]
            if person.run != run or person.partition != item.partition:
                person.recent = None
                person.partition, person.run = item.partition, run
            recent = person.recent
            if recent is None:
                if person.player in fresh:
                    person.recent = Recent()
                else:
                    unknown.add(person.player)
            elif not recent.covers(ALWAYS_US, FOREVER_US):
                needed = _needed_us(rules, item)
                if needed is not None and not recent.covers(*needed):
                    unknown.add(person.player)
        if unknown:
            wanted = self._wanted(rules, unknown, people, incoming)
            latest_us = max(item.received_us for item in incoming)
            self._read(batch, rules, wanted, latest_us - rules.horizon_us)

    @staticmethod
    def _wanted(
        rules: Rules, unknown: set[int], people: Sequence[Person], incoming: Sequence[Incoming]
    ) -> dict[int, _Wanted]:
        """All that the group needs of these players: what is read takes the place of what was known."""
        wanted: dict[int, _Wanted] = {}
        for person, item in zip(people, incoming, strict=True):
            if person.player not in unknown:
                continue
            needed = _needed_us(rules, item)
            known = wanted.get(person.player)
            if needed is None:
                if person.recent is None and known is None:
                    # No rule looks at it now; one may at the next action of this player.
                    wanted[person.player] = _Wanted(person, item.received_us, item.received_us)
            elif known is not None:
                known.since_us = min(known.since_us, needed[0])
                known.until_us = max(known.until_us, needed[1])
            else:
                wanted[person.player] = _Wanted(person, *needed)
        return wanted

    def _read(self, batch: OpenBatch, rules: Rules, wanted: dict[int, _Wanted], present_us: int) -> None:
        """Read what is wanted; for actions of the present everything from there on, to be kept.

        For a backfill that looks back beyond that only as far as it looks, which the next action of
        the present will not be content with.
        """
        players = sorted(wanted)
        since_us, until_us = [], []
        for player in players:
            one = wanted[player]
            of_the_present = one.since_us >= present_us - self._slack_us
            since_us.append(min(one.since_us, present_us) if of_the_present else one.since_us)
            until_us.append(FOREVER_US if of_the_present else one.until_us)
        recents = {
            player: Recent(since, until)
            for player, since, until in zip(players, since_us, until_us, strict=True)
        }
        for player, occurred_us, received_us, points, flags, type_ in batch.recent(
            players, since_us, until_us, self._slack_us
        ):
            recents[player].add(
                occurred_us,
                received_us,
                bool(flags & BACKFILL),
                rules.code(type_),
                points,
                bool(flags & ACCEPTED),
            )
        for player in players:
            wanted[player].person.recent = recents[player]

    def judged(self, rows: int) -> None:
        """So many recent actions were added to players at hand."""
        self._young_rows += rows

    def prune(self, people: Sequence[Person], rules: Rules, received_us: int) -> None:
        """Drop what no action that comes in time will be judged by.

        One that comes later than `LATENESS_KEPT_US` has what it needs read from the ledger.
        """
        self._batches += 1
        if self._batches % PRUNE_EVERY:
            return
        before_us = received_us - rules.horizon_us - LATENESS_KEPT_US
        for person in {id(person): person for person in people}.values():
            if person.recent is not None and len(person.recent) > PRUNE_ROWS:
                person.recent.prune(before_us)


def _needed_us(rules: Rules, item: Incoming) -> tuple[int, int] | None:
    return rules.needed_us(
        item.record.type,
        occurred_us=item.occurred_us,
        received_us=item.received_us,
        backfill=item.record.backfill,
    )


def person(row: PlayerRow) -> Person:
    return Person(row.player, row.pid, row.username, row.hidden)
