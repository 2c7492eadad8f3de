"""The board as `action.judged` and `player` tell it, at one revision after the other.

An action's effect is its record of the highest revision, wherever in the log that stands, so
records may come in any order and more than once. A player's visibility is less certain: a record
of `player` that is sent again says what holds now, not what held at its revision. Whoever was
hidden, erased or told of twice is therefore *in doubt* from that record on, until a revision is
reached that is later than everything the record could have known (`settle_doubts`); while in doubt
a player is left out of every comparison.

After a restore two players may be told of under one user id: whoever came first in revisions that were
lost came once more, as another player. The topic keeps both, under their own keys.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from auditor import order
from auditor.actions import ACCEPTED, DECIDED, Actions
from auditor.order import Leaders, Place
from auditor.records import Judged, Person, instant_us

KNOWN: Final = 1
HIDDEN: Final = 2
ERASED: Final = 4

_LEAST, _MOST = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True)
class Wrong:
    """Where something first differs from the recount: `kind` of difference, whose, and both sides."""

    kind: str
    user: str | None
    expected: Any
    found: Any

    @property
    def signature(self) -> tuple[Any, ...]:
        """What stays the same while one wrong thing is seen again and again."""
        if isinstance(self.expected, int) and isinstance(self.found, int):
            return self.kind, self.user, self.found - self.expected
        return self.kind, self.user


@dataclass(slots=True)
class Recount:
    """Scores, instants and order of the default board, all-time."""

    actions: Actions = field(default_factory=Actions)
    users: list[str] = field(default_factory=list)
    """User id by player number, empty where it is not known."""
    scores: array[int] = field(default_factory=lambda: array("q"))
    reached: array[int] = field(default_factory=lambda: array("q"))
    flags: bytearray = field(default_factory=bytearray)
    count: int = 0
    """Entries that are shown."""
    last_changed: int = 0
    """The last revision that changed what the board shows."""
    doubts_raised: int = 0
    """How often it was told of somebody that they may be hidden or erased."""
    touched: set[int] = field(default_factory=set)
    """Players whose score or instant changed since this was last emptied."""

    _numbers: dict[str, int] = field(default_factory=dict)
    _of_user: dict[str, int] = field(default_factory=dict)
    _namesakes: dict[str, set[int]] = field(default_factory=dict)
    _once: set[int] = field(default_factory=set)
    _accepted: array[int] = field(default_factory=lambda: array("q"))
    _with_points: array[int] = field(default_factory=lambda: array("q"))
    _last_row: array[int] = field(default_factory=lambda: array("q"))
    _names: array[int] = field(default_factory=lambda: array("q"))
    _told: array[int] = field(default_factory=lambda: array("q"))
    _doubts: dict[int, tuple[float, int | None]] = field(default_factory=dict)
    _unordered: set[int] = field(default_factory=set)
    _leaders: Leaders = field(init=False)

    def __post_init__(self) -> None:
        self._leaders = Leaders(self._first_of_all)

    # Folding -------------------------------------------------------------------------------

    def judged(self, record: Judged) -> Wrong | None:
        """Take one record of `action.judged`; what is wrong with it beside those before it.

        Raises:
            ValueError: an instant that is none.
        """
        player = self._numbers.get(record.player, -1)
        if player < 0:
            player = self._number(record.player)
        received_us = instant_us(record.received_at)
        state = ACCEPTED if record.verdict == "accepted" else 0
        if record.decision:
            state |= DECIDED
        points, revision, last = record.points, record.revision, self._last_row
        row = self.actions.enter(player, record.action_id, points, received_us, revision, state, last[player])
        if row >= 0:
            return self._again(row, player, record, received_us, state)
        last[player] = len(self.actions) - 1
        if state & ACCEPTED:
            self._gain(player, points, received_us, revision)
        return None

    def _again(self, row: int, player: int, record: Judged, received_us: int, state: int) -> Wrong | None:
        actions = self.actions
        known = actions.revisions[row]
        if record.revision == known and state & DECIDED == actions.states[row] & DECIDED:
            there = actions.states[row] & ACCEPTED, actions.points[row], actions.received[row]
            said = state & ACCEPTED, record.points, received_us
            return None if said == there else Wrong("repeat", self._name(player, record), there, said)
        doubled = not (state & DECIDED or actions.states[row] & DECIDED)
        if record.revision > known or (record.revision == known and state & DECIDED):
            actions.points[row], actions.received[row] = record.points, received_us
            actions.revisions[row], actions.states[row] = record.revision, state
            self._from_rows(player, record.revision)
        if doubled:
            return Wrong("doubled", self._name(player, record), known, record.revision)
        return None

    def _name(self, player: int, record: Judged) -> str:
        return f"{self.users[player] or record.player} {record.action_id}"

    def _gain(self, player: int, points: int, received_us: int, revision: int) -> None:
        first = not self._accepted[player]
        if not points and not first:
            self._accepted[player] += 1
            if not self._with_points[player]:
                # Which of several worthless actions was first is in the ledger, not in the topics.
                self._unordered.add(player)
            return
        score = self.scores[player]
        # Far down nobody's place is held, and a change of it changes nothing that is.
        far_down = score < self._leaders.bound > score + points and not first
        before = None if far_down else self._place(player)
        self._accepted[player] += 1
        if first or not self._with_points[player] or received_us > self.reached[player]:
            self.reached[player] = received_us
        if points:
            self._set_score(player, score + points)
            self._with_points[player] += 1
        if far_down:
            self.touched.add(player)
            if revision > self.last_changed:
                self.last_changed = revision
        else:
            self._moved(player, before, revision)

    def _from_rows(self, player: int, revision: int) -> None:
        """Count a player anew, from all that is known of them."""
        before, actions = self._place(player), self.actions
        was = self._accepted[player] > 0, self.scores[player], self.reached[player]
        rows = [row for row in actions.of_player(self._last_row[player]) if actions.states[row] & ACCEPTED]
        with_points = [row for row in rows if actions.points[row]]
        self._accepted[player], self._with_points[player] = len(rows), len(with_points)
        self._set_score(player, sum(actions.points[row] for row in with_points))
        self.reached[player] = max((actions.received[row] for row in with_points or rows), default=0)
        if rows and not with_points:
            self._unordered.add(player)
        if was != (bool(rows), self.scores[player], self.reached[player]):
            self._moved(player, before, revision)

    def _set_score(self, player: int, score: int) -> None:
        # No ledger holds a larger one: the board will differ, and that is what is to be seen.
        try:
            self.scores[player] = score
        except OverflowError:
            self.scores[player] = _MOST if score > 0 else _LEAST

    def person(self, key: str, person: Person | None, revision: int, now_s: float) -> None:
        """Take one record of `player`; None says that they were erased.

        `now_s` is when it was read; infinite, with revision 0: what it says is void, and nothing
        settles it but a record that is not.
        """
        player = self._number(key)
        if revision < self._told[player]:
            if person is None or person.hidden:
                self._doubt(player, now_s)
            return
        before, flags = self._place(player), self.flags[player]
        if person is None:
            after, user, name = KNOWN | ERASED, "", 0
        else:
            after = KNOWN | (HIDDEN if person.hidden else 0)
            user, name = person.user_id, hash(person.username)
        plain = after == KNOWN and (not flags or (flags == KNOWN and name != self._names[player]))
        if now_s == math.inf or (not plain and not (revision == self._told[player] and after == flags)):
            self._doubt(player, now_s)
        elif self._doubts.get(player, (0.0, None))[0] == math.inf:
            del self._doubts[player]
        if self.users[player] and not user:
            self._once.add(hash(self.users[player]))
        self._rename(player, self.users[player], user)
        shown_before = self._shown(player)
        self.users[player], self.flags[player] = user, after
        self._names[player], self._told[player] = name, revision
        self._replaced(player, before, shown_before)
        if self._accepted[player]:
            self.last_changed = max(self.last_changed, revision)

    def _rename(self, player: int, before: str, after: str) -> None:
        if before == after:
            return
        several = self._namesakes.get(before)
        if several is None:
            self._of_user.pop(before, None)
        else:
            several.discard(player)
            if len(several) == 1:
                self._of_user[before] = several.pop()
                del self._namesakes[before]
        if after and (other := self._of_user.setdefault(after, player)) != player:
            self._namesakes.setdefault(after, {other}).add(player)

    # Doubt ---------------------------------------------------------------------------------

    def _doubt(self, player: int, now_s: float) -> None:
        self._doubts[player] = now_s, None
        self.doubts_raised += 1

    def settle_doubts(self, asked_s: float, ledger_end: int, at: int) -> None:
        """The ledger's end, asked for at `asked_s`, bounds what a record read before could know."""
        for player, (since_s, settled_at) in list(self._doubts.items()):
            if settled_at is None:
                if since_s < asked_s:
                    self._doubts[player] = since_s, ledger_end
            elif settled_at <= at:
                del self._doubts[player]

    def in_doubt(self) -> set[int]:
        """The players that no comparison may judge now."""
        unordered = {player for player in self._unordered if not self._with_points[player]}
        self._unordered = unordered
        return self._doubts.keys() | unordered

    def was_erased(self, user: str) -> bool:
        """Whether this id may have belonged to somebody who was erased since."""
        return hash(user) in self._once

    # Reading -------------------------------------------------------------------------------

    def player_of(self, user: str) -> int | None:
        """The player of a user id: of several the one who has actions, since those of a void one are void."""
        several = self._namesakes.get(user)
        if several is None:
            return self._of_user.get(user)
        return max(several, key=lambda player: self._last_row[player] >= 0)

    def is_hidden(self, player: int) -> bool:
        return bool(self.flags[player] & HIDDEN)

    def entry(self, player: int) -> tuple[int, int] | None:
        """(score, reached at µs) of a player who is shown."""
        return (self.scores[player], self.reached[player]) if self._shown(player) else None

    def shown_without(self, doubted: set[int]) -> int:
        """How many entries are shown, not counting these players'."""
        return self.count - sum(self._shown(player) for player in doubted)

    def counted(self, doubted: set[int]) -> int:
        """How many of these players have an entry, shown or not."""
        return sum(self._accepted[player] > 0 for player in doubted)

    def first(self, wanted: int, without: set[int]) -> list[Place]:
        """The first places, without these players."""
        return self._leaders.first(wanted, without)

    def better_than(self, player: int, without: set[int]) -> int:
        """How many stand before a player, not counting `without`."""
        place = -self.scores[player], self.reached[player], self.users[player].encode(), player
        shown, scores, reached = self._columns()
        shown[list(without)] = False
        return order.better_than(place, shown, scores, reached, self.users)

    # Parts ---------------------------------------------------------------------------------

    def _number(self, key: str) -> int:
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.users)
            self.users.append("")
            self.flags.append(0)
            for column in (self.scores, self.reached, self._accepted, self._with_points, self._names):
                column.append(0)
            self._told.append(0)
            self._last_row.append(-1)
        return number

    def _shown(self, player: int) -> bool:
        return self.flags[player] == KNOWN and self._accepted[player] > 0

    def _place(self, player: int) -> Place | None:
        if self.flags[player] != KNOWN or not self._accepted[player]:
            return None
        return -self.scores[player], self.reached[player], self.users[player].encode(), player

    def _moved(self, player: int, before: Place | None, revision: int) -> None:
        self.touched.add(player)
        if revision > self.last_changed:
            self.last_changed = revision
        self._replaced(player, before, before is not None)

    def _replaced(self, player: int, before: Place | None, shown_before: bool) -> None:
        after = self._place(player)
        self.count += (after is not None) - shown_before
        if after != before:
            self._leaders.move(before, after)

    def _columns(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        flags = np.frombuffer(bytes(self.flags), np.uint8)
        accepted = np.frombuffer(self._accepted.tobytes(), np.int64)
        scores = np.frombuffer(self.scores.tobytes(), np.int64)
        reached = np.frombuffer(self.reached.tobytes(), np.int64)
        return (flags == KNOWN) & (accepted > 0), scores, reached

    def _first_of_all(self, wanted: int) -> list[Place]:
        return order.first_of_all(wanted, *self._columns(), self.users)
