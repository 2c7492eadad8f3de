"""One consumed group of records, carried out in one transaction.

The order of steps is that of the architecture's ledger chapter. What has happened to each record
comes back as an `Outcome`; whatever was at hand about players is put right only after the commit.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, TypeVar

import psycopg

from core import words
from core.errors import TrueboardError
from core.rates import Judgement, Rules
from service import failpoints
from storage.postgres import definitions
from storage.postgres.contents import Content
from storage.postgres.definitions import Definitions
from storage.postgres.ledger import (
    Appended,
    DeltaColumns,
    JudgedRow,
    Ledger,
    OpenBatch,
    Overtaken,
    Position,
    Progress,
    merged,
)
from stream_app import erased, judging
from stream_app.erased import Erased
from stream_app.hand import content_of
from stream_app.judging import Bounds, Incoming, Person, Plan
from stream_app.people import People, person

T = TypeVar("T")

JUDGINGS: Final = 3
"""How often a group is judged anew, in a transaction of its own, because others were quicker."""

LOOKED_UP: Final = 64
"""Groups without a repeat after which keys are no longer looked up before judging.

Then the ledger's unique key alone tells of a repeat: that group is judged once more, and the next
ones are looked up again. So a group judged in vain is at most one in as many, and a look-up is a
twentieth of a group's cost.
"""


class Stopped(TrueboardError):
    """This partition cannot go on: its log is not the one the ledger knows. Somebody must look."""

    def __init__(self, partition: int, detail: str) -> None:
        super().__init__(f"partition {partition}: {detail}")
        self.partition, self.detail = partition, detail


class OutOfStep(TrueboardError):
    """The records at hand do not begin where the ledger ends: seek to `next_offset` and read again."""

    def __init__(self, partition: int, next_offset: int, first_offset: int) -> None:
        super().__init__(f"partition {partition}: expected offset {next_offset}, got {first_offset}")
        self.partition, self.next_offset, self.first_offset = partition, next_offset, first_offset


@dataclass(slots=True)
class Slice:
    """A contiguous run of one partition's records, decoded.

    `incoming` are the readable ones, `unreadable` offset → reason of the others (already on the
    dead-letter topic), `last_fingerprint` that of the last record. `first`/`last` are offsets.
    """

    partition: int
    first: int
    last: int
    incoming: list[Incoming]
    unreadable: dict[int, str]
    last_fingerprint: bytes


@dataclass(slots=True)
class Outcome:
    """What a group came to. `position` is None if it only repeated what is known.

    `asked` are the new judgements that somebody waits for, `asked_again` the repeats likewise,
    with what the ledger says of them in `answers`. `verdicts` counts by (verdict, reason's code).
    """

    position: Position | None
    judged: int = 0
    repeated: int = 0
    redelivered: int = 0
    verdicts: dict[tuple[str, str], int] = field(default_factory=dict)
    asked: list[tuple[Incoming, Judgement]] = field(default_factory=list)
    asked_again: list[Incoming] = field(default_factory=list)
    changed_entries: int = 0
    answers: dict[tuple[str, str], JudgedRow] = field(default_factory=dict)
    content: Content | None = None


def record_fingerprint(key: bytes | None, value: bytes | None) -> bytes:
    """First 16 bytes of SHA-256(key ‖ 0x00 ‖ value)."""
    return hashlib.sha256((key or b"") + b"\0" + (value or b"")).digest()[:16]


Watch = Callable[[], AbstractContextManager[None]]
"""Gives what is to be around the judging itself, each time."""


class Judge:
    """What one worker keeps between groups: definitions, players at hand, one connection."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        most_people: int,
        most_rows: int,
        max_late_us: int,
        max_early_us: int,
        on_numbered: Callable[[Position], None] = lambda _: None,
        erasure_key: Callable[[], bytes] = bytes,
    ) -> None:
        """`on_numbered` is told each revision between its numbering and its commit; under
        `erasure_key` the user ids of erased people are kept."""
        self.ledger = ledger
        self._erased = Erased(erasure_key)
        self._on_numbered = on_numbered
        slack_us = max(max_late_us, max_early_us)
        self._nobody = partial(People, most=most_people, most_rows=most_rows, slack_us=slack_us)
        self._people = self._nobody()
        self._max_late_us, self._max_early_us = max_late_us, max_early_us
        self._definitions: Definitions | None = None
        self._rules: Rules | None = None
        self._to_look_up = LOOKED_UP

    def people_at_hand(self) -> int:
        return len(self._people)

    def forget(self) -> None:
        """Know nothing but what the ledger says: players, definitions and the connection are made anew."""
        self._people = self._nobody()
        self._definitions = self._rules = None
        self._to_look_up = LOOKED_UP
        self.ledger.close()

    def carry_out(
        self,
        log: int,
        slices: Sequence[Slice],
        watched: Watch = nullcontext,
    ) -> Outcome:
        """Judge these slices of log `log` and write down what came of it: all of it, or nothing.

        `watched` is around the judging itself, which nothing but the records and what is at hand decides.

        Raises:
            Unavailable: repeat the step.
            OutOfStep: a slice does not begin where the ledger ends.
            Stopped: a slice is not of the log that the ledger has read.
        """
        bounded = False
        left = JUDGINGS
        while left:
            looked_up = self._to_look_up > 0
            try:
                return self._attempt(log, slices, bounded, watched)
            except Overtaken:
                self._to_look_up = LOOKED_UP
                # Who did not look was not overtaken.
                left -= looked_up
                if not left:
                    raise
            except (psycopg.errors.NumericValueOutOfRange, psycopg.errors.CheckViolation):
                if bounded:
                    raise
                left -= 1
                bounded = True
        raise Overtaken("others judge the same actions over and over")

    def _attempt(
        self,
        log: int,
        slices: Sequence[Slice],
        bounded: bool,
        watched: Watch,
    ) -> Outcome:
        involved: list[Person] = []
        try:
            return self._in_transaction(log, slices, bounded, involved, watched)
        except BaseException:
            judging.forget(involved)
            raise

    def _in_transaction(
        self,
        log: int,
        slices: Sequence[Slice],
        bounded: bool,
        involved: list[Person],
        watched: Watch,
    ) -> Outcome:
        with self.ledger.batch([piece.partition for piece in slices]) as batch:
            failpoints.reach("ledger.locked")
            rules = self._current(batch)
            incoming, redelivered = _in_step(batch, log, slices)
            aside = _set_aside_before(batch, log, redelivered)
            if aside:
                incoming = [item for item in incoming if (item.partition, item.offset) not in aside]
            runs = {
                piece.partition: self._people.run_of(
                    piece.partition, log, batch.progress[piece.partition].next_offset
                )
                for piece in slices
            }
            at_hand = self._at_hand(incoming, runs)
            incoming, redelivered = self._without_erased(batch, slices, incoming, redelivered, at_hand)
            people, found, fresh = self._who(batch, incoming, at_hand)
            failpoints.reach("ledger.interned")
            involved += people
            existing = self._existing(batch, incoming, people, bool(redelivered))
            _only_known(redelivered, aside, existing, incoming, people)
            people, renamed = _renamed(batch, incoming, people, existing, found)
            involved += people
            self._people.ready(batch, rules, people, fresh, incoming, runs)
            bounds = self._bounds(batch, rules, incoming, people, bounded)
            with watched():
                plan = judging.judge(
                    rules,
                    bounds,
                    people,
                    existing,
                    incoming,
                    log,
                    max_late_us=self._max_late_us,
                    max_early_us=self._max_early_us,
                )
            failpoints.reach("ledger.judged")
            appended, delta = _write(batch, log, slices, plan, renamed, fresh)
            outcome = Outcome(
                None if appended is None else appended.position,
                len(plan.judged),
                len(plan.repeated),
                len(redelivered),
                _counted(plan.judged.values()),
                [
                    (incoming[index], judged)
                    for index, judged in plan.judged.items()
                    if incoming[index].reply_to
                ],
                [incoming[index] for index in plan.repeated if incoming[index].reply_to],
                len(delta),
            )
            if outcome.asked_again:
                outcome.answers = batch.judged(
                    [(item.record.user_id, item.record.action_id) for item in outcome.asked_again]
                )
            if appended is not None:
                self._on_numbered(appended.position)
            failpoints.reach("ledger.numbered")
        failpoints.reach("ledger.committed")
        for piece in slices:
            next_offset = max(piece.last + 1, batch.progress[piece.partition].next_offset)
            self._people.moved(piece.partition, log, next_offset)
        self._people.keep(found)
        if appended is not None:
            outcome.content = content_of(
                appended, plan, delta, incoming, people, sorted(fresh | renamed.keys())
            )
        self._people.judged(len(plan.judged))
        if incoming:
            self._people.prune(people, rules, max(item.received_us for item in incoming))
        return outcome

    def _current(self, batch: OpenBatch) -> Rules:
        """The rules in force; read anew, with all that depends on them, where the fence moved."""
        if self._definitions is None or self._rules is None or self._definitions.fence != batch.fence():
            self._people.clear()
            self._erased.look(batch)
            self._definitions = definitions.load(batch)
            self._rules = Rules(self._definitions.catalogue)
        return self._rules

    def _without_erased(
        self,
        batch: OpenBatch,
        slices: Sequence[Slice],
        incoming: list[Incoming],
        redelivered: list[tuple[Slice, int]],
        at_hand: dict[str, Person | None],
    ) -> tuple[list[Incoming], list[tuple[Slice, int]]]:
        """Set the records of erased people aside; a redelivered one may have been judged before that."""
        gone = self._erased.among(batch, [user_id for user_id, known in at_hand.items() if known is None])
        if not gone:
            return incoming, redelivered
        for user_id in gone:
            del at_hand[user_id]
        theirs = [item for item in incoming if item.record.user_id in gone]
        piece_of = {piece.partition: piece for piece in slices}
        for item in theirs:
            piece_of[item.partition].unreadable[item.offset] = erased.REASON
        judged = erased.judged_before(batch, theirs)
        known = {(item.partition, item.offset) for item in theirs if item.record.action_id in judged}
        return (
            [item for item in incoming if item.record.user_id not in gone],
            [(piece, offset) for piece, offset in redelivered if (piece.partition, offset) not in known],
        )

    def _at_hand(self, incoming: Sequence[Incoming], runs: dict[int, int]) -> dict[str, Person | None]:
        """Who sent these records, by user id; None where that is not known without asking."""
        find = self._people.find
        at_hand: dict[str, Person | None] = {}
        for item in incoming:
            user_id = item.record.user_id
            if user_id not in at_hand:
                at_hand[user_id] = find(user_id, item.partition, runs[item.partition])
        return at_hand

    def _existing(
        self, batch: OpenBatch, incoming: Sequence[Incoming], people: Sequence[Person], redelivered: bool
    ) -> set[tuple[str, int]]:
        """Which keys have been judged, as far as it pays to ask: the insert finds the others."""
        if not incoming or not (redelivered or self._to_look_up):
            return set()
        existing = batch.existing(
            [item.record.action_id for item in incoming], [someone.player for someone in people]
        )
        self._to_look_up = LOOKED_UP if existing else max(0, self._to_look_up - 1)
        return existing

    def _who(
        self, batch: OpenBatch, incoming: Sequence[Incoming], at_hand: dict[str, Person | None]
    ) -> tuple[list[Person], dict[str, Person], set[int]]:
        """Who sent each record; those not at hand before; those new in this world."""
        missing = sorted(user_id for user_id, known in at_hand.items() if known is None)
        found: dict[str, Person] = {}
        fresh: set[int] = set()
        if missing:
            found = {user_id: person(row) for user_id, row in batch.players(missing).items()}
            unknown: dict[str, str | None] = {user_id: None for user_id in missing if user_id not in found}
            if unknown:
                keys = [(item.record.action_id, item.record.user_id) for item in incoming]
                unknown |= {
                    user_id: name
                    for user_id, name in _names(incoming, keys, ()).items()
                    if user_id in unknown
                }
                made, others = batch.intern(unknown)
                found |= {user_id: person(row) for user_id, row in (made | others).items()}
                fresh = {row.player for row in made.values()}
        people_of = {
            user_id: known if known is not None else found[user_id] for user_id, known in at_hand.items()
        }
        return [people_of[item.record.user_id] for item in incoming], found, fresh

    def _bounds(
        self,
        batch: OpenBatch,
        rules: Rules,
        incoming: Sequence[Incoming],
        people: Sequence[Person],
        bounded: bool,
    ) -> Bounds:
        assert self._definitions is not None
        (main,) = [board for board in self._definitions.boards if board.board == words.MAIN_BOARD]
        if bounded or judging.could_cross(rules, incoming):
            players = sorted({someone.player for someone in people})
            return Bounds(main.lowest, batch.scores(words.MAIN_PERIOD, players))
        return Bounds(main.lowest)


def _names(
    incoming: Sequence[Incoming], keys: Sequence[tuple[str, T]], existing: Container[tuple[str, T]]
) -> dict[T, str]:
    """The latest name that came with an action that is new; a repeat names nobody anew.

    `keys[i]` are the action id of `incoming[i]` and whom the names are asked for.
    """
    names: dict[T, str] = {}
    seen: set[tuple[str, T]] = set()
    for item, key in zip(incoming, keys, strict=True):
        if key in seen or key in existing:
            continue
        seen.add(key)
        if item.record.username is not None:
            names[key[1]] = item.record.username
    return names


def _renamed(
    batch: OpenBatch,
    incoming: Sequence[Incoming],
    people: list[Person],
    existing: set[tuple[str, int]],
    found: dict[str, Person],
) -> tuple[list[Person], dict[int, str]]:
    """Write new names: who sent each record, under its new name, and the new names by player."""
    if all(item.record.username is None for item in incoming):
        return people, {}
    keys = [(item.record.action_id, someone.player) for item, someone in zip(incoming, people, strict=True)]
    names = _names(incoming, keys, existing)
    renamed: dict[int, str] = {}
    copies: dict[int, Person] = {}
    for item, someone in zip(incoming, people, strict=True):
        player = someone.player
        name = names.get(player)
        if name is not None and name != someone.username and player not in renamed:
            # A person at hand must not know a name that is not committed: it gets a copy.
            renamed[player] = name
            copies[player] = found[item.record.user_id] = replace(someone, username=name)
            someone.recent = None
    if renamed:
        batch.rename(renamed)
    return [copies.get(someone.player, someone) for someone in people], renamed


def _counted(judgements: Iterable[Judgement]) -> dict[tuple[str, str], int]:
    found = Counter((judgement.verdict, judgement.reason) for judgement in judgements)
    counts: Counter[tuple[str, str]] = Counter()
    for (verdict, reason), count in found.items():
        counts[verdict, "" if reason is None else reason.code] += count
    return counts


def _in_step(
    batch: OpenBatch, log: int, slices: Sequence[Slice]
) -> tuple[list[Incoming], list[tuple[Slice, int]]]:
    """The readable records in order, and which (slice, offset) are redeliveries."""
    incoming: list[Incoming] = []
    redelivered: list[tuple[Slice, int]] = []
    for piece in slices:
        progress = batch.progress.get(piece.partition)
        if progress is None or progress.log != log:
            raise OutOfStep(piece.partition, progress.next_offset if progress else 0, piece.first)
        if piece.first > progress.next_offset:
            raise OutOfStep(piece.partition, progress.next_offset, piece.first)
        incoming += piece.incoming
        redelivered += [
            (piece, offset) for offset in range(piece.first, min(piece.last + 1, progress.next_offset))
        ]
    return incoming, redelivered


def _set_aside_before(
    batch: OpenBatch, log: int, redelivered: Sequence[tuple[Slice, int]]
) -> set[tuple[int, int]]:
    """(partition, offset) of the redelivered records that were passed over, and are so again."""
    offsets: dict[int, list[int]] = {}
    for piece, offset in redelivered:
        offsets.setdefault(piece.partition, []).append(offset)
    return {
        (partition, offset)
        for partition, some in offsets.items()
        for offset in batch.set_aside_offsets(log, partition, some)
    }


def _only_known(
    redelivered: Sequence[tuple[Slice, int]],
    aside: set[tuple[int, int]],
    existing: set[tuple[str, int]],
    incoming: Sequence[Incoming],
    people: Sequence[Person],
) -> None:
    """A redelivered record must be in the ledger or among those passed over.

    Raises:
        Stopped: it is in neither, so this is not the log that was read before.
    """
    if not redelivered:
        return
    key_at = {
        (item.partition, item.offset): (item.record.action_id, someone.player)
        for item, someone in zip(incoming, people, strict=True)
    }
    for piece, offset in redelivered:
        place = (piece.partition, offset)
        if place not in aside and key_at.get(place) not in existing:
            raise Stopped(
                piece.partition,
                f"offset {offset} was read before and is not in the ledger: this is another log",
            )


def _write(
    batch: OpenBatch, log: int, slices: Sequence[Slice], plan: Plan, renamed: dict[int, str], fresh: set[int]
) -> tuple[Appended | None, DeltaColumns]:
    deltas: list[DeltaColumns] = []
    number = batch.next_batch() if plan.judged or renamed else 0
    if plan.judged:
        batch.insert_rows(number, plan.rows)
        failpoints.reach("ledger.rows_written")
    for piece in slices:
        progress = batch.progress[piece.partition]
        passed = {o: why for o, why in piece.unreadable.items() if o >= progress.next_offset}
        if passed:
            batch.set_aside(log, piece.partition, passed)
    period = words.MAIN_PERIOD
    if plan.points:
        players = sorted(plan.points)
        deltas.append(
            batch.add_points(
                period,
                number,
                players,
                [plan.points[player] for player in players],
                [plan.reached_us[player] for player in players],
            )
        )
    only_names = renamed.keys() - plan.points.keys()
    if only_names:
        # Before new entries are made, so that no player stands in two of the deltas.
        deltas.append(batch.touch(period, sorted(only_names)))
    if plan.presence:
        players = sorted(plan.presence)
        deltas.append(batch.add_presence(period, players, [plan.presence[player] for player in players]))
    failpoints.reach("ledger.entries_changed")
    moved = {}
    for piece in slices:
        progress = batch.progress[piece.partition]
        if piece.last + 1 > progress.next_offset:
            moved[piece.partition] = Progress(log, piece.last + 1, piece.last_fingerprint)
    if moved:
        batch.move_progress(moved)
        failpoints.reach("ledger.progress_moved")
    delta = merged(period, deltas)
    if not number:
        return None, delta
    appended = batch.append(
        number, "stream", plan.leaves, [delta] if len(delta) else [], sorted(fresh | renamed.keys())
    )
    return appended, delta
