"""The players one worker has at hand: who they are and what they did lately.

A view of the ledger, never a source: what is not here, or is not of this worker's unbroken run of
a partition, is read from the ledger before anything is judged. Bounded: two generations, the older
of which is dropped when the younger is full, so what was used lately stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from core.rates import Recent, Rules
from storage.postgres.ledger import OpenBatch, PlayerRow
from stream_app.judging import Incoming, Person

PRUNE_ROWS: Final = 16
"""A player with fewer recent actions than this is not worth pruning."""


class People:
    """Players at hand, by user id."""

    def __init__(self, *, most: int, slack_us: int) -> None:
        """`most` players at the most; `slack_us` how late an action that is no backfill may come."""
        self._half = max(1, most // 2)
        self._slack_us = slack_us
        self._young: dict[str, Person] = {}
        self._old: dict[str, Person] = {}
        self._runs: dict[int, tuple[int, int]] = {}
        self._last_run = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def clear(self) -> None:
        """Definitions or people have changed: believe nothing."""
        self._young.clear()
        self._old.clear()

    def run_of(self, partition: int, next_offset: int) -> int:
        """The run this partition is in; a new one if somebody else has moved its progress."""
        run, expected = self._runs.get(partition, (0, -1))
        if expected != next_offset:
            self._last_run += 1
            run = self._last_run
            self._runs[partition] = (run, next_offset)
        return run

    def moved(self, partition: int, next_offset: int) -> None:
        """This worker has committed a batch that moved the partition to `next_offset`."""
        run, _ = self._runs[partition]
        self._runs[partition] = (run, next_offset)

    def find(self, user_id: str) -> Person | None:
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
        if len(self._young) >= self._half:
            self._old = self._young
            self._young = {}
        self._young[user_id] = person

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
        wanted: dict[int, tuple[Person, int, int]] = {}
        for index, item in enumerate(incoming):
            person = people[index]
            run = runs[item.partition]
            if person.recent is not None and (person.run != run or person.partition != item.partition):
                person.recent = None
            if person.recent is None:
                if person.player in fresh:
                    person.recent = Recent()
                person.partition, person.run = item.partition, run
            needed = rules.needed_us(
                item.record.type,
                occurred_us=item.occurred_us,
                received_us=item.received_us,
                backfill=item.record.backfill,
            )
            if needed is None:
                if person.recent is None and person.player not in wanted:
                    wanted[person.player] = (person, item.received_us, item.received_us)
                continue
            since_us, until_us = needed
            known = wanted.get(person.player)
            if known is not None:
                wanted[person.player] = (person, min(known[1], since_us), max(known[2], item.received_us))
            elif person.recent is None or not person.recent.covers(since_us, until_us):
                wanted[person.player] = (person, since_us, item.received_us)
        if wanted:
            self._read(batch, rules, wanted)

    def _read(self, batch: OpenBatch, rules: Rules, wanted: dict[int, tuple[Person, int, int]]) -> None:
        players = sorted(wanted)
        since_us = [min(wanted[player][1], wanted[player][2] - rules.horizon_us) for player in players]
        recents = {
            player: Recent(complete_since_us=since) for player, since in zip(players, since_us, strict=True)
        }
        for player, occurred_us, received_us, backfill, type_, points, accepted in batch.recent(
            players, since_us, self._slack_us
        ):
            recents[player].add(occurred_us, received_us, backfill, rules.code(type_), points, accepted)
        for player in players:
            wanted[player][0].recent = recents[player]

    def prune(self, people: Sequence[Person], rules: Rules, received_us: int) -> None:
        """Drop what no action received from now on will be judged by, backfills apart."""
        before_us = received_us - rules.horizon_us - self._slack_us
        for person in people:
            if person.recent is not None and len(person.recent) > PRUNE_ROWS:
                person.recent.prune(before_us)


def person(row: PlayerRow) -> Person:
    return Person(row.player, row.pid, row.username)
