"""The publisher, the replicas that read it, and the clients that go from one to another."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.model import operators
from tests.model.running import Steps
from tests.model.servers import (
    PERIODS,
    Broken,
    Cursor,
    Judged,
    Meta,
    Person,
    Place,
    Publication,
    Revision,
    Session,
    Standings,
    Tables,
    unless,
)

if TYPE_CHECKING:
    from tests.model.world import World

WINDOW = 3
"""Publications a replica keeps of each period."""


def publisher(world: World) -> Steps:
    """Sends revision after revision. There may be two: a session can end unnoticed."""
    session: Session | None = None
    try:
        while True:
            yield unless(session, world.topics_are_behind)
            try:
                if session is None or session.broken:
                    session = world.postgres.connect()
                    yield from operators.look_at_the_epoch(world, session)
                    yield from session.lock("publisher", for_session=True)
                yield from publish(world, session)
            except Broken:
                session = None
    finally:
        if session is not None:
            session.close()


def sent_until(world: World, tables: Tables) -> int:
    """The revision that the cursor says is sent, 0 if the topics are not those it was saved for."""
    cursor = tables.cursor
    if cursor is None:
        return 0
    if world.clauses.cursor_names_the_topic and cursor.topic != world.kafka.feed_id:
        return 0
    return min(cursor.place[1], tables.revision)


def publish(world: World, session: Session) -> Steps:
    """Send what comes after the cursor, as far as it goes."""
    clauses, kafka = world.clauses, world.kafka
    if kafka.changed:
        last = kafka.changed[-1]
        yield from operators.new_epoch(world, session, seen=Meta(last.place, last.digest, last.count))
    topic = kafka.feed_id
    after = sent_until(world, session.tables)
    for revision in list(session.tables.revisions[after:]):
        records = publications(session.tables, revision)
        judged = judgements(session.tables, revision)
        people = [(person.pid, person.user_id) for person in _people(session.tables, revision)]
        cursor = Cursor(revision.place, topic)
        if not clauses.cursor_after_acknowledgements:
            save(world, session, cursor)
        for record in records:
            yield None
            if kafka.feed_id == topic:
                kafka.changed.append(record)
                world.published(record)
        yield None
        if kafka.feed_id == topic:
            kafka.judged.extend(judged)
            kafka.players.extend(people)
        yield None
        if clauses.cursor_after_acknowledgements:
            save(world, session, cursor)
        if kafka.feed_id != topic:
            return


def save(world: World, session: Session, cursor: Cursor) -> None:
    """By the very session that holds the lock, so that one that lost it can save nothing."""
    if not world.clauses.cursor_on_the_connection_with_the_lock:
        session = world.postgres.connect()

    def write(tables: Tables) -> None:
        tables.cursor = cursor

    session.commit(write)


def _people(tables: Tables, revision: Revision) -> list[Person]:
    return [tables.people[player] for player in revision.people if player in tables.people]


def publications(tables: Tables, revision: Revision) -> list[Publication]:
    found = []
    for period in PERIODS:
        held: Standings = {}
        for delta in tables.deltas[period]:
            if delta.place[1] > revision.place[1]:
                break
            changes = {tables.people[player].pid: new for player, (_, new) in delta.changes.items()}
            for pid, new in changes.items():
                if new is None:
                    held.pop(pid, None)
                else:
                    held[pid] = new
            if delta.place == revision.place:
                found.append(
                    Publication(
                        period, delta.place, delta.previous, revision.digest, delta.count, changes, dict(held)
                    )
                )
    return found


def judgements(tables: Tables, revision: Revision) -> list[Judged]:
    found = [Judged(revision.place, tables.people[row.player].pid, row) for row in revision.rows]
    if revision.cause == "new_epoch":
        continues = next(place for epoch, place in tables.epochs if epoch == revision.place[0])
        found.append(Judged(revision.place, continues=continues))
    return found


def recounted(records: list[Judged]) -> Standings:
    """What somebody who reads `action.judged` alone makes of it: the scores of the period `all`.

    Only what lies on the line of the newest epoch counts: each epoch on it up to the revision that
    the next one goes on from. A restore may also take back an epoch, which then is on no line.
    """
    continues = {record.place[0]: record.continues for record in records if record.continues is not None}
    until: dict[str, float] = {}
    place: Place | None = (max((record.place[0] for record in records), default=""), 1 << 62)
    while place is not None:
        until[place[0]] = place[1]
        place = continues.get(place[0])
    last: dict[tuple[str, str], Judged] = {}
    for record in records:
        if record.row is None or record.place[1] > until.get(record.place[0], -1):
            continue
        key = (record.pid, record.row.action_id)
        if key not in last or record.place > last[key].place:
            last[key] = record
    held: Standings = {}
    for (pid, _), record in last.items():
        assert record.row is not None
        if record.row.verdict == "accepted":
            score, reached_us = held.get(pid, (0, 0))
            held[pid] = (score + record.row.points, max(reached_us, record.row.received_us))
    return held


# The feed ----------------------------------------------------------------------------------------


@dataclass
class Replica:
    """What one push process keeps: the latest publications of each period."""

    topic: str = ""
    read: int = 0
    window: dict[str, list[Publication]] = field(default_factory=lambda: {p: [] for p in PERIODS})

    def latest(self, period: str) -> Publication | None:
        return self.window[period][-1] if self.window[period] else None


def replica(world: World, name: str) -> Steps:
    """Reads `board.changed`, beginning with the last record of each period."""
    kept = world.replicas[name] = Replica()
    while True:
        yield lambda: kept.topic != world.kafka.feed_id or kept.read < len(world.kafka.changed)
        changed = world.kafka.changed
        if kept.topic != world.kafka.feed_id:
            last_of = {record.period: place for place, record in enumerate(changed)}
            kept.topic, kept.read = world.kafka.feed_id, min(last_of.values(), default=0)
            continue
        record = changed[kept.read]
        kept.read += 1
        latest = kept.latest(record.period)
        if latest is None or record.place > latest.place:
            kept.window[record.period] = [*kept.window[record.period], record][-WINDOW:]


@dataclass
class Client:
    """Somebody who watches: what was shown, and where that stands."""

    place: dict[str, Place] = field(default_factory=dict)
    shown: dict[str, Standings] = field(default_factory=dict)

    def poll(self, world: World, kept: Replica) -> None:
        """Take what a replica has: the publications that follow, else a snapshot."""
        for period in PERIODS:
            latest = kept.latest(period)
            if latest is None or latest.place <= self.place.get(period, ("", 0)):
                continue
            if not self._resumed(world, period, kept.window[period]):
                self.place[period], self.shown[period] = latest.place, dict(latest.standings)
                world.seen(period, latest.place, self.shown[period], "a client's snapshot")

    def _resumed(self, world: World, period: str, window: list[Publication]) -> bool:
        place = self.place.get(period)
        if place is None:
            return False
        later = [record for record in window if record.place > place]
        at = place
        for record in later:
            if world.clauses.links_checked_on_resume and (record.place[0], record.previous) != at:
                return False
            at = record.place
        for record in later:
            for pid, standing in record.changes.items():
                if standing is None:
                    self.shown[period].pop(pid, None)
                else:
                    self.shown[period][pid] = standing
            self.place[period] = record.place
            world.seen(period, record.place, self.shown[period], "a client that goes on")
        return True
