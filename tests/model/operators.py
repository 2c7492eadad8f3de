"""Everybody who writes alone: decisions, people, definitions, edges, and a new epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from core import digest
from tests.model import ledger
from tests.model.running import Steps
from tests.model.servers import PERIODS, Broken, Meta, Row, Session, Standing, Tables

if TYPE_CHECKING:
    from tests.model.world import World


def operator(world: World) -> Steps:
    """Carries out what is asked, one after another."""
    session: Session | None = None
    try:
        while True:
            yield lambda: bool(world.asked)
            try:
                if session is None or session.broken:
                    session = world.postgres.connect()
                    yield from look_at_the_epoch(world, session)
                ask = world.asked.pop(0)
                yield from ask(world, session)
            except Broken:
                session = None
    finally:
        if session is not None:
            session.close()


def alone(world: World, session: Session, write: Callable[[Tables], None]) -> Steps:
    """Write while nobody else does."""
    if world.clauses.plan_held_alone_by_operators:
        yield from session.lock("plan")
    else:
        yield from session.lock("plan", shared=True)
    yield None
    yield from session.lock("revision")
    session.commit(write)


def decide(action_id: str, player: int, verdict: str) -> Callable[[World, Session], Steps]:
    """Give an action another verdict than the one that was looked at."""

    def carry_out(world: World, session: Session) -> Steps:
        looked_at = session.tables.effective(action_id, player)
        if looked_at is None or looked_at.verdict == verdict:
            return
        yield None

        def write(tables: Tables) -> None:
            last = tables.effective(action_id, player)
            if last is None or (world.clauses.decision_numbered and last.seq != looked_at.seq):
                return
            row = Row(action_id, player, last.seq + 1, verdict, last.points, last.received_us, last.catalogue)
            shown = {period: tables.shown(period).get(player) for period in PERIODS}
            tables.ledger[(action_id, player, row.seq)] = row
            for period in PERIODS:
                if world.clauses.decision_numbered:
                    new = ledger.effect(tables, player, period)
                else:
                    # Careless: what was looked at is added or taken away once more.
                    new = _shifted(tables, player, period, looked_at, verdict)
                _put(tables, period, player, new)
            changed = {
                period: {player: (shown[period], tables.shown(period).get(player))} for period in PERIODS
            }
            ledger.append(tables, "operator", changed, rows=(row,))

        yield from alone(world, session, write)

    return carry_out


def _shifted(
    tables: Tables, player: int, period: str, looked_at: Row, verdict: str
) -> tuple[int, int] | None:
    entry = tables.entries[period].get(player)
    if period == "recent" and looked_at.received_us < tables.edge_us:
        return entry
    sign = (verdict == "accepted") - (looked_at.verdict == "accepted")
    score, reached_us = entry or (0, 0)
    return (score + sign * looked_at.points, reached_us or looked_at.received_us)


def _put(tables: Tables, period: str, player: int, new: tuple[int, int] | None) -> None:
    if new is None:
        tables.entries[period].pop(player, None)
    else:
        tables.entries[period][player] = new


def hide(player: int, hidden: bool) -> Callable[[World, Session], Steps]:
    def carry_out(world: World, session: Session) -> Steps:
        def write(tables: Tables) -> None:
            person = tables.people.get(player)
            if person is None or person.user_id is None or person.hidden == hidden:
                return
            shown = {period: tables.shown(period).get(player) for period in PERIODS}
            person.hidden = hidden
            tables.version += 1
            _say(tables, player, shown if world.clauses.delta_for_the_hidden else {})

        yield from alone(world, session, write)

    return carry_out


def erase(player: int) -> Callable[[World, Session], Steps]:
    def carry_out(world: World, session: Session) -> Steps:
        yield from alone(world, session, lambda tables: carry_out_erasure(world, tables, player))

    return carry_out


def carry_out_erasure(world: World, tables: Tables, player: int) -> None:
    person = tables.people.get(player)
    if person is None or person.user_id is None:
        return
    shown = {period: tables.shown(period).get(player) for period in PERIODS}
    _blank(tables, player)
    _say(tables, player, shown if world.clauses.delta_for_the_erased else {})


def _blank(tables: Tables, player: int) -> None:
    person = tables.people[player]
    assert person.user_id is not None
    tables.erased.add(person.user_id)
    person.user_id = None
    tables.version += 1


def _say(tables: Tables, player: int, shown: Mapping[str, Standing | None]) -> None:
    changed: dict[str, ledger.Changes] = {
        period: {player: (old, tables.shown(period).get(player))} for period, old in shown.items()
    }
    ledger.append(tables, "person", changed, people=(player,))


def apply_catalogue(number: int) -> Callable[[World, Session], Steps]:
    def carry_out(world: World, session: Session) -> Steps:
        def write(tables: Tables) -> None:
            tables.catalogue = number
            tables.version += 1
            leaf = digest.catalogue_leaf(str(number), "00")
            ledger.append(tables, "definition", {}, extra=(leaf,))

        yield from alone(world, session, write)

    return carry_out


def move_edge(edge_us: int) -> Callable[[World, Session], Steps]:
    """What was received before the edge leaves `recent`."""

    def carry_out(world: World, session: Session) -> Steps:
        def write(tables: Tables) -> None:
            if edge_us <= tables.edge_us:
                return
            tables.edge_us = edge_us
            tables.version += 1
            before = tables.shown("recent")
            for player in list(tables.entries["recent"]):
                _put(tables, "recent", player, ledger.effect(tables, player, "recent"))
            now = tables.shown("recent")
            changes: ledger.Changes = {player: (old, now.get(player)) for player, old in before.items()}
            changed = {"recent": changes} if world.clauses.delta_for_the_expired else {}
            ledger.append(tables, "expiry", changed, extra=(digest.edge_leaf("recent", edge_us),))

        yield from alone(world, session, write)

    return carry_out


# A new epoch -------------------------------------------------------------------------------------


def look_at_the_epoch(world: World, session: Session) -> Steps:
    """What every process does at each connect, before it answers or writes."""
    if session.tables.server != session.postgres.server:
        yield from new_epoch(world, session, seen=world.postgres.server)


def has(tables: Tables, seen: Meta) -> bool:
    """Whether the history has this position."""
    number = seen.place[1]
    if number == 0 or number > len(tables.revisions):
        return number == 0
    revision = tables.revisions[number - 1]
    return (revision.place, revision.digest) == (seen.place, seen.digest)


def lost(world: World, tables: Tables, seen: int | Meta) -> bool:
    """Whether what was found says that this history lost revisions without saying so."""
    if isinstance(seen, int):
        return tables.server != seen
    # An earlier epoch was left behind for a reason: what it lost has been said.
    if seen.place[0] < tables.epoch or has(tables, seen):
        return False
    if not world.clauses.position_with_digest:
        return seen.place[1] > tables.revision
    return True


def new_epoch(world: World, session: Session, *, seen: int | Meta) -> Steps:
    """Go over to a new history, once for everybody who noticed.

    `seen` is the server found, or a position named by a copy or a topic.
    """
    if not lost(world, session.tables, seen):
        return
    yield from session.lock("plan")
    yield from session.lock("revision")
    if not lost(world, session.tables, seen):
        session.rollback()
        return

    def write(tables: Tables) -> None:
        tables.server = session.postgres.server
        tables.version += 1
        if not world.clauses.epoch_changed_on_restore:
            return
        world.epochs += 1
        epoch, continued = f"e{world.epochs:05}", (tables.epoch, tables.revision)
        tables.epochs.append((epoch, continued))
        leaf = digest.epoch_leaf(epoch, *continued)
        world.tombstones_seen = len(world.kafka.players)
        changed: dict[str, ledger.Changes] = {period: {} for period in PERIODS}
        for player in _erased_before(world, tables):
            # In the very revision, so that nobody is shown in between.
            for period in PERIODS:
                changed[period][player] = (tables.shown(period).get(player), None)
            _blank(tables, player)
        ledger.append(
            tables,
            "new_epoch",
            changed,
            people=tuple(sorted(changed[PERIODS[0]])),
            extra=(leaf,),
            every_period=True,
        )

    session.commit(write)


def _erased_before(world: World, tables: Tables) -> list[int]:
    """Whose name the topic says is gone, and the restored ledger has again."""
    if not world.clauses.erased_again_after_restore:
        return []
    names = dict(world.kafka.players)
    return [
        player
        for player, person in sorted(tables.people.items())
        if person.user_id is not None and names.get(person.pid, "") is None
    ]
