"""Whether one action of one player is accepted, held or rejected, and why.

A pure function of the catalogue, the action and the player's judged actions: never of the order
in which those came to be known, nor of a clock. An action at t is looked at once by when it
occurred and once by when it was received, and the worse verdict counts; one that came as a
backfill only by when it occurred, and it stands in no window by when it was received.

- unknown type, points out of bounds: rejected; what the action would be worth stays on record.
- gap: nearer than `min_gap_ms` to a judged action of the type, before or after: rejected.
- cooldown: nearer than `cooldown_s` to an accepted action of the type, before or after: rejected.
- limit of a type: judged actions in (t − window, t], itself included; more than `hard`: rejected,
  more than `soft`: held. Rejected and held actions count too.
- limit over several types: likewise the sum of what those actions would be worth.

Of several rules that fire, one gives the reason: the worst verdict first, then the order of this
list, then the order of the type's limits, or the names of the limits over several types; by
occurred before by received.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left, bisect_right, insort_right
from collections.abc import Collection, Iterable, Iterator
from itertools import accumulate
from typing import Final, Literal, NamedTuple

import msgspec

from core.catalogue import ActionType, Catalogue
from core.receipts import Reason
from core.times import HIGHEST_US, LOWEST_US, US

Verdict = Literal["accepted", "rejected", "held"]

ALWAYS_US: Final = -(1 << 63)
"""As `complete_since_us`: everything that ever was."""

FOREVER_US: Final = (1 << 63) - 1
"""As `complete_until_us`: everything there is, and each row is added as it is judged."""

UNWATCHED: Final = -1
"""The code of a type that no rule looks back at, an unknown one among them."""

MAX_LATE_US: Final = 24 * 3600 * US
"""How long before it was received an action may have occurred, by default (`docs/interfaces.md` §3)."""

MAX_EARLY_US: Final = 60 * US
"""How long after it was received an action may say that it occurred, by default."""

READ_SLACK_US: Final = MAX_LATE_US
"""How much further back than a window by received one reads in an index by occurred.

An action that is no backfill occurred within [received − max_late, received + max_early] (see
`effective_backfill`), so those received in (r − w, r] all have occurred in
(r − w − max_late, r + max_early]. With another setting than the default, that one is the slack.
"""

SMALL_ROWS: Final = 24
"""Up to this many rows a player is looked through row by row; beyond, by an index."""

_BACKFILL = 1
_ACCEPTED = 2
# occurred, received, points, code of the type, flags
_ROW = struct.Struct("<qqqHB")
_ROW_BYTES = _ROW.size
_NO_BOUND = 1 << 200


class Judgement(msgspec.Struct, frozen=True, gc=False):
    """The verdict, why (None if accepted), and what the action would be worth whatever the verdict."""

    verdict: Verdict
    reason: Reason | None
    points: int


class Row(NamedTuple):
    """One judged action as the rules see it."""

    occurred_us: int
    received_us: int
    backfill: bool
    code: int
    points: int
    accepted: bool


def effective_backfill(
    occurred_us: int, received_us: int, backfill: bool, max_late_us: int, max_early_us: int
) -> bool:
    """Whether an action counts as a backfill: sent as one, or out of the bounds of any other.

    An action that occurred outside [received − max_late, received + max_early] can only have come
    as a backfill, whatever its record says. So every other one is found by an index on
    (player, occurred), within `READ_SLACK_US` of its window by received.
    """
    return backfill or not received_us - max_late_us <= occurred_us <= received_us + max_early_us


def read_range_us(
    since_us: int, until_us: int, max_late_us: int = MAX_LATE_US, max_early_us: int = MAX_EARLY_US
) -> tuple[int, int]:
    """Between which instants, both included, a row occurred that these instants may ask for.

    Every row that occurred in since..until, and every one not a backfill that was received in
    it; cut to the instants that can be written, beyond which there is none.
    """
    return max(LOWEST_US, since_us - max_late_us), min(HIGHEST_US, until_us + max_early_us)


class Recent:
    """The judged actions of one player that a rule may still look at, duplicates left out.

    Made for one `Rules` (its rows hold that one's codes): a new catalogue begins new ones.
    Complete from `complete_since_us` to `complete_until_us`: every watched row that occurred
    within these instants is in it, and every one not a backfill that was received within them.
    Rows beyond may be in it or not, and are no harm.

    Some 310 bytes for five rows. Up to `SMALL_ROWS` a question costs one pass; beyond, there are
    sorted instants and running sums per type: O(log n) a question, O(1) to add a row in order.
    A row out of order moves those after it, 25 ns each: 0.5 ms to go before 10,000 by both instants.
    """

    __slots__ = ("_index", "_magnitude", "_rows", "complete_since_us", "complete_until_us")

    def __init__(self, complete_since_us: int = ALWAYS_US, complete_until_us: int = FOREVER_US) -> None:
        self.complete_since_us = complete_since_us
        self.complete_until_us = complete_until_us
        self._rows: bytes | bytearray = b""
        # The sum of the points' absolute values: no window can hold more.
        self._magnitude = 0
        self._index: dict[int, _TypeIndex] | None = None

    def __len__(self) -> int:
        return len(self._rows) // _ROW_BYTES

    def rows(self) -> Iterator[Row]:
        """Every row, in the order they were added."""
        for occurred_us, received_us, points, code, flags in _ROW.iter_unpack(self._rows):
            yield Row(
                occurred_us, received_us, bool(flags & _BACKFILL), code, points, bool(flags & _ACCEPTED)
            )

    def add(
        self, occurred_us: int, received_us: int, backfill: bool, code: int, points: int, accepted: bool
    ) -> None:
        """Add one judged action; `code` is `Rules.code` of its type, `UNWATCHED` is left out.

        `accepted` is the final verdict, after the bounds of the score; `backfill` is that of
        `effective_backfill`.
        """
        if code == UNWATCHED:
            return
        row = _ROW.pack(
            occurred_us,
            received_us,
            points,
            code,
            (_BACKFILL if backfill else 0) | (_ACCEPTED if accepted else 0),
        )
        self._magnitude += abs(points)
        if self._index is not None:
            self._rows += row
            self._indexed(self._index, occurred_us, received_us, backfill, code, points, accepted)
        else:
            self._rows += row
            if len(self._rows) > SMALL_ROWS * _ROW_BYTES:
                self._arrange()

    def rewind(self, length: int) -> None:
        """Forget the rows added since `len()` was `length`: their transaction did not commit.

        Costs a pass. Nothing may have been pruned since.
        """
        if length < len(self):
            self._keep(bytes(self._rows[: length * _ROW_BYTES]))

    def prune(self, before_us: int) -> None:
        """Drop rows that occurred before this instant and are in no window by received since it.

        What is left is complete since `before_us`. A player with an index is left as it is, and
        as complete as it was, until half of the rows can go: so calling this often is cheap.
        """
        if before_us <= self.complete_since_us:
            return
        if self._index is not None and not self._half_is_before(before_us):
            return
        kept = b"".join(
            _ROW.pack(*row)
            for row in _ROW.iter_unpack(self._rows)
            if row[0] >= before_us or (row[1] >= before_us and not row[4] & _BACKFILL)
        )
        if len(kept) < len(self._rows):
            self.complete_since_us = before_us
            self._keep(kept)

    def covers(self, since_us: int, until_us: int) -> bool:
        """Whether it is complete for these instants, both included."""
        return self.complete_since_us <= since_us and until_us <= self.complete_until_us

    def count(self, code: int, occurred_us: int, received_us: int | None, window_us: int) -> tuple[int, ...]:
        """Rows of a type in the windows that end at an instant: by occurred, then by received.

        Without `received_us` the answer is by occurred alone.
        """
        if self._index is not None:
            of_type = self._index.get(code, _NOTHING)
            if received_us is None:
                return (of_type.occurred.count(occurred_us, window_us),)
            return (
                of_type.occurred.count(occurred_us, window_us),
                of_type.received.count(received_us, window_us),
            )
        occurred_low_us = occurred_us - window_us
        received_high_us = ALWAYS_US if received_us is None else received_us
        received_low_us = received_high_us - window_us
        by_occurred = by_received = 0
        for row_occurred_us, row_received_us, _, row_code, flags in _ROW.iter_unpack(self._rows):
            if row_code == code:
                if occurred_low_us < row_occurred_us <= occurred_us:
                    by_occurred += 1
                if received_low_us < row_received_us <= received_high_us and not flags & _BACKFILL:
                    by_received += 1
        return (by_occurred,) if received_us is None else (by_occurred, by_received)

    def total(
        self, codes: Collection[int], occurred_us: int, received_us: int | None, window_us: int
    ) -> tuple[int, ...]:
        """The sum of the points of the rows of these types, in the windows of `count`."""
        by_occurred = by_received = 0
        if self._index is not None:
            for code in codes:
                of_type = self._index.get(code, _NOTHING)
                by_occurred += of_type.occurred.total(occurred_us, window_us)
                if received_us is not None:
                    by_received += of_type.received.total(received_us, window_us)
            return (by_occurred,) if received_us is None else (by_occurred, by_received)
        occurred_low_us = occurred_us - window_us
        received_high_us = ALWAYS_US if received_us is None else received_us
        received_low_us = received_high_us - window_us
        for row_occurred_us, row_received_us, points, row_code, flags in _ROW.iter_unpack(self._rows):
            if row_code in codes:
                if occurred_low_us < row_occurred_us <= occurred_us:
                    by_occurred += points
                if received_low_us < row_received_us <= received_high_us and not flags & _BACKFILL:
                    by_received += points
        return (by_occurred,) if received_us is None else (by_occurred, by_received)

    def nearest_us(self, code: int, at_us: int) -> tuple[int, int]:
        """How far from an instant, before or after it, the nearest row of a type occurred.

        The nearest judged one, and the nearest accepted one; `FOREVER_US` where there is none.
        """
        if self._index is not None:
            of_type = self._index.get(code, _NOTHING)
            return _nearest_us(of_type.occurred.instants, at_us), _nearest_us(of_type.accepted, at_us)
        judged_us = accepted_us = FOREVER_US
        for occurred_us, _, _, row_code, flags in _ROW.iter_unpack(self._rows):
            if row_code == code:
                gap_us = at_us - occurred_us if occurred_us < at_us else occurred_us - at_us
                if gap_us < judged_us:
                    judged_us = gap_us
                if gap_us < accepted_us and flags & _ACCEPTED:
                    accepted_us = gap_us
        return judged_us, accepted_us

    def _keep(self, rows: bytes) -> None:
        self._rows, self._index = rows, None
        self._magnitude = sum(abs(row[2]) for row in _ROW.iter_unpack(rows))
        if len(rows) > SMALL_ROWS * _ROW_BYTES:
            self._arrange()

    def _arrange(self) -> None:
        """Build the index, from rows sorted once."""
        self._rows = bytearray(self._rows)
        index = self._index = {}
        rows = list(self.rows())
        for code in {row.code for row in rows}:
            of_type = [row for row in rows if row.code == code]
            index[code] = _TypeIndex(
                _Series((row.occurred_us, row.points) for row in of_type),
                _Series((row.received_us, row.points) for row in of_type if not row.backfill),
                array("q", sorted(row.occurred_us for row in of_type if row.accepted)),
            )

    @staticmethod
    def _indexed(
        index: dict[int, _TypeIndex],
        occurred_us: int,
        received_us: int,
        backfill: bool,
        code: int,
        points: int,
        accepted: bool,
    ) -> None:
        of_type = index.get(code)
        if of_type is None:
            of_type = index[code] = _TypeIndex(_Series(()), _Series(()), array("q"))
        of_type.occurred.add(occurred_us, points)
        if not backfill:
            of_type.received.add(received_us, points)
        if accepted:
            insort_right(of_type.accepted, occurred_us)

    def _half_is_before(self, before_us: int) -> bool:
        """Whether half of the rows may be older by both instants: never too low an estimate."""
        assert self._index is not None
        by_occurred = by_received = 0
        for of_type in self._index.values():
            backfills = len(of_type.occurred.instants) - len(of_type.received.instants)
            by_occurred += bisect_left(of_type.occurred.instants, before_us)
            by_received += bisect_left(of_type.received.instants, before_us) + backfills
        return 2 * min(by_occurred, by_received) >= len(self)


class _Series:
    """Instants in order, and the running sum of their points: `sums[i]` is that of the first i.

    The sums are 8 bytes each; where one is beyond 64 bits, integers of Python's.
    """

    __slots__ = ("instants", "sums")

    def __init__(self, pairs: Iterable[tuple[int, int]]) -> None:
        ordered = sorted(pairs)
        self.instants = array("q", [instant for instant, _ in ordered])
        self.sums: array[int] | list[int] = array("q", [0])
        self._put(1, list(accumulate(points for _, points in ordered)))

    def _put(self, place: int, sums: list[int]) -> None:
        """Have these from there on."""
        if isinstance(self.sums, list):
            self.sums[place:] = sums
            return
        try:
            self.sums[place:] = array("q", sums)
        except OverflowError:
            self.sums = [*self.sums[:place], *sums]

    def add(self, instant_us: int, points: int) -> None:
        instants, sums = self.instants, self.sums
        if not instants or instant_us >= instants[-1]:
            instants.append(instant_us)
            total = sums[-1] + points
            try:
                sums.append(total)
            except OverflowError:
                self._put(len(sums), [total])
            return
        place = bisect_right(instants, instant_us)
        instants.insert(place, instant_us)
        self._put(place, [sums[place], *[total + points for total in sums[place:]]])

    def count(self, at_us: int, window_us: int) -> int:
        """How many lie in (at − window, at]."""
        return bisect_right(self.instants, at_us) - bisect_right(self.instants, at_us - window_us)

    def total(self, at_us: int, window_us: int) -> int:
        """The sum of the points of those."""
        sums = self.sums
        return sums[bisect_right(self.instants, at_us)] - sums[bisect_right(self.instants, at_us - window_us)]


class _TypeIndex(NamedTuple):
    occurred: _Series
    received: _Series
    accepted: array[int]


_NOTHING: Final = _TypeIndex(_Series(()), _Series(()), array("q"))
"""Stands for a type without rows; nothing is ever added to it."""


class _Bounds(NamedTuple):
    """One limit, ready to be asked; `floor` is the lower of its bounds."""

    rule: str
    window_us: int
    soft: int | None
    hard: int | None
    floor: int
    codes: frozenset[int]


class _TypeRules:
    """What the rules ask of an action of one type."""

    __slots__ = (
        "ahead_us",
        "back_by_received_us",
        "back_us",
        "code",
        "cooldown_us",
        "highest",
        "limits",
        "lowest",
        "min_gap_us",
        "name",
        "points",
        "points_accepted",
        "safe_magnitude",
        "safe_rows",
        "sums",
    )

    def __init__(self, type_: ActionType, code: int, limits: list[_Bounds], sums: list[_Bounds]) -> None:
        self.name, self.code = type_.name, code
        self.points, self.lowest, self.highest = type_.points, type_.lowest, type_.highest
        self.points_accepted = None if type_.points is None else Judgement("accepted", None, type_.points)
        self.min_gap_us, self.cooldown_us = type_.min_gap_us, type_.cooldown_us
        self.limits, self.sums = tuple(limits), tuple(sums)
        self.ahead_us = max(type_.min_gap_us, type_.cooldown_us)
        self.back_by_received_us = max((bounds.window_us for bounds in limits + sums), default=0)
        self.back_us = max(self.ahead_us, self.back_by_received_us)
        # With fewer rows than this, and no more points than that, nothing can be crossed.
        self.safe_rows = min(
            [bounds.floor for bounds in limits] + ([1] if self.ahead_us else []), default=_NO_BOUND
        )
        self.safe_magnitude = min((bounds.floor for bounds in sums), default=_NO_BOUND)


class Rules:
    """A catalogue, ready to judge by.

    `watched` are the types whose rows a rule may look back at; `horizon_us` is the furthest any
    rule looks back.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        summed = {name for limit in catalogue.points_limits for name in limit.types}
        self.watched = frozenset(
            type_.name
            for type_ in catalogue.types.values()
            if type_.limits or type_.cooldown_us or type_.min_gap_us or type_.name in summed
        )
        self._codes = {name: code for code, name in enumerate(sorted(self.watched))}
        self._types = {name: self._of_type(type_) for name, type_ in catalogue.types.items()}
        self.horizon_us = max(of_type.back_us for of_type in self._types.values())

    def _of_type(self, type_: ActionType) -> _TypeRules:
        code = self._codes.get(type_.name, UNWATCHED)
        limits = [
            _bounds(f"types.{type_.name}.limits.{index}", limit.window_us, limit.soft, limit.hard, {code})
            for index, limit in enumerate(type_.limits)
        ]
        sums = [
            _bounds(
                f"limits.{limit.name}",
                limit.window_us,
                limit.soft,
                limit.hard,
                {self._codes[name] for name in limit.types},
            )
            for limit in self.catalogue.points_limits
            if type_.name in limit.types
        ]
        return _TypeRules(type_, code, limits, sums)

    def code(self, type_name: str) -> int:
        """What stands for a type in `Recent`; `UNWATCHED` if no rule looks back at it."""
        return self._codes.get(type_name, UNWATCHED)

    def horizon_of_us(self, type_name: str) -> int:
        """How far back a rule looks from an action of this type; 0 if none does."""
        of_type = self._types.get(type_name)
        return 0 if of_type is None else of_type.back_us

    def needed_us(
        self, type_name: str, *, occurred_us: int, received_us: int, backfill: bool
    ) -> tuple[int, int] | None:
        """The instants for which a `Recent` must be complete to judge this action, both included.

        None if it is judged without looking at any other. `read_range_us` says what to read of
        the ledger for them; they themselves may lie before any instant that can be written.
        """
        of_type = self._types.get(type_name)
        if of_type is None or of_type.code == UNWATCHED:
            return None
        since_us, until_us = occurred_us - of_type.back_us, occurred_us + of_type.ahead_us
        if not backfill and of_type.back_by_received_us:
            since_us = min(since_us, received_us - of_type.back_by_received_us)
            until_us = max(until_us, received_us)
        return since_us, until_us

    def judge(
        self,
        recent: Recent,
        *,
        occurred_us: int,
        received_us: int,
        backfill: bool,
        type: str,
        client_points: int | None,
    ) -> Judgement:
        """The verdict on an action that is not in `recent` yet, nor put there by this.

        `backfill` is that of `effective_backfill`.

        Raises:
            ValueError: `recent` is not complete for `needed_us`; a verdict would be a guess.
        """
        of_type = self._types.get(type)
        if of_type is None:
            return Judgement("rejected", self._reason("unknown_type", f"types.{type}", None, None), 0)
        accepted = of_type.points_accepted
        if accepted is not None:
            points = accepted.points
        else:
            outside = self._outside(of_type, client_points)
            points = client_points or 0
            if outside is not None:
                return Judgement("rejected", outside, points)
            accepted = Judgement("accepted", None, points)
        if of_type.code == UNWATCHED:
            return accepted
        if (
            recent.complete_since_us > occurred_us - of_type.back_us
            or recent.complete_until_us < occurred_us + of_type.ahead_us
            or (
                not backfill
                and of_type.back_by_received_us
                and (
                    recent.complete_since_us > received_us - of_type.back_by_received_us
                    or recent.complete_until_us < received_us
                )
            )
        ):
            raise ValueError(
                f"rows are known from {recent.complete_since_us} to {recent.complete_until_us} µs: too few "
                f"to judge {type} of {occurred_us}, received {received_us}"
            )
        known = len(recent._rows) // _ROW_BYTES
        if known < of_type.safe_rows and recent._magnitude + abs(points) <= of_type.safe_magnitude:
            return accepted
        return self._looked_up(recent, of_type, occurred_us, received_us, backfill, points, accepted)

    def _looked_up(
        self,
        recent: Recent,
        of_type: _TypeRules,
        occurred_us: int,
        received_us: int,
        backfill: bool,
        points: int,
        accepted: Judgement,
    ) -> Judgement:
        code = of_type.code
        if of_type.ahead_us:
            judged_us, accepted_us = recent.nearest_us(code, occurred_us)
            if judged_us < of_type.min_gap_us:
                return Judgement("rejected", self._too_near("too_fast", of_type, judged_us), points)
            if accepted_us < of_type.cooldown_us:
                return Judgement("rejected", self._too_near("cooldown", of_type, accepted_us), points)
        by_received_us = None if backfill else received_us
        held: Reason | None = None
        for bounds in of_type.limits:
            if len(recent) < bounds.floor:
                continue
            for others in recent.count(code, occurred_us, by_received_us, bounds.window_us):
                over, worst = self._over("rate", bounds, others + 1)
                if worst:
                    return Judgement("rejected", over, points)
                held = held or over
        for bounds in of_type.sums:
            if recent._magnitude + abs(points) <= bounds.floor:
                continue
            for others in recent.total(bounds.codes, occurred_us, by_received_us, bounds.window_us):
                over, worst = self._over("points_rate", bounds, others + points)
                if worst:
                    return Judgement("rejected", over, points)
                held = held or over
        return accepted if held is None else Judgement("held", held, points)

    def _outside(self, of_type: _TypeRules, client_points: int | None) -> Reason | None:
        assert of_type.lowest is not None
        assert of_type.highest is not None
        if client_points is None:
            return self._reason("out_of_bounds", f"types.{of_type.name}", None, None)
        if client_points < of_type.lowest:
            return self._reason("out_of_bounds", f"types.{of_type.name}.min", of_type.lowest, client_points)
        if client_points > of_type.highest:
            return self._reason("out_of_bounds", f"types.{of_type.name}.max", of_type.highest, client_points)
        return None

    def _over(self, code: str, bounds: _Bounds, seen: int) -> tuple[Reason | None, bool]:
        """Why this number is too many, None if it is not; and whether it is beyond `hard`."""
        if seen <= bounds.floor:
            return None, False
        rejected = bounds.hard is not None and seen > bounds.hard
        crossed = bounds.hard if rejected else bounds.soft
        if crossed is None:
            return None, False
        window_s = bounds.window_us // US
        return Reason(code, bounds.rule, self.catalogue.version, crossed, seen, window_s), rejected

    def _too_near(self, code: str, of_type: _TypeRules, gap_us: int) -> Reason:
        if code == "too_fast":
            rule, least_us, unit_us = "min_gap_ms", of_type.min_gap_us, 1000
        else:
            rule, least_us, unit_us = "cooldown_s", of_type.cooldown_us, US
        whole, rest = divmod(gap_us, unit_us)
        seen = gap_us / unit_us if rest else whole
        return self._reason(code, f"types.{of_type.name}.{rule}", least_us // unit_us, seen)

    def _reason(self, code: str, rule: str, limit: int | None, seen: int | float | None) -> Reason:
        return Reason(code, rule, self.catalogue.version, limit, seen, None)


def _bounds(rule: str, window_us: int, soft: int | None, hard: int | None, codes: set[int]) -> _Bounds:
    floor = min(bound for bound in (soft, hard) if bound is not None)
    return _Bounds(rule, window_us, soft, hard, floor, frozenset(codes))


def _nearest_us(instants: array[int], at_us: int) -> int:
    """How far the nearest of these sorted instants is; `FOREVER_US` if there is none."""
    after = bisect_left(instants, at_us)
    neighbours = instants[max(0, after - 1) : after + 1]
    return min((abs(instant - at_us) for instant in neighbours), default=FOREVER_US)
