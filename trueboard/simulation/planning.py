"""What simulated users do, and when: a pure function of a seed.

Few users do much and many little (Zipf). Traffic comes at random instants and in bursts. Honest users
stay below the limits of the shipped catalogue; cheaters finish levels in bursts far beyond them, send
points out of bounds, or an id again with other points. Some actions are sent twice, at once or
seconds later; some occurred long before they are sent, or out of order.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Final, Literal

LEVEL: Final = "level_complete"
POINTS: Final = "client_points"

LEVELS_A_MINUTE: Final = 25
"""Levels an honest user finishes in a minute at the most; the shipped catalogue holds above 30."""

POINTS_AN_HOUR: Final = 4_500
"""Points an honest user earns at the most; the shipped catalogue holds above 5,000 an hour."""

OWN_RATE_PER_S: Final = 2.0
"""Actions a second of all users with tokens of their own; the door allows each of them 5."""

_ZIPF = 1.05
_BURST_SHARE, _BURST_FACTOR = 0.05, 4.0
_LEVEL_POINTS = 10
_LATEST_S = 20 * 3600.0
_OUT_OF_ORDER_S = 3.0
_AGAIN_AFTER_S = (0.2, 3.0)

Kind = Literal["first", "again", "altered"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What is asked for. Shares are of actions, `cheaters` of users; `rate_per_s` without duplicates."""

    seed: int
    users: int
    rate_per_s: float
    duration_s: float | None
    actions: int | None
    duplicates: float
    cheaters: float
    late: float
    own_users: int = 5


@dataclass(frozen=True, slots=True)
class Action:
    """One thing a user did, due `due_us` after the start.

    `points` is None where the catalogue knows; `late_us` how long before it was due it occurred,
    None where it does not say. `own`: sent with the user's own token.
    """

    number: int
    user: int
    type: str
    points: int | None
    due_us: int
    late_us: int | None
    own: bool = False


@dataclass(frozen=True, slots=True)
class Sending:
    """One time an action is sent, `due_s` after the start: first, again as it was, or altered."""

    due_s: float
    action: Action
    kind: Kind


class _Honest:
    """How much a user has done, so that an honest one stays below the limits."""

    __slots__ = ("levels_s", "points")

    def __init__(self) -> None:
        self.levels_s: deque[float] = deque()
        self.points = 0

    def may_level(self, due_s: float) -> bool:
        while self.levels_s and self.levels_s[0] <= due_s - 61:
            self.levels_s.popleft()
        return len(self.levels_s) < LEVELS_A_MINUTE and self.points + _LEVEL_POINTS <= POINTS_AN_HOUR


def plan(traffic: Traffic) -> Iterator[Sending]:
    """Every sending in the order they are due."""
    later: list[tuple[float, int, Sending]] = []
    tie = 0
    cheaters = cheating_users(traffic)
    for due_s, action in _actions(traffic, cheaters):
        while later and later[0][0] <= due_s:
            yield heapq.heappop(later)[2]
        yield Sending(due_s, action, "first")
        for sending in _repeats(traffic, due_s, action, cheats=action.user in cheaters):
            tie += 1
            heapq.heappush(later, (sending.due_s, tie, sending))
    while later:
        yield heapq.heappop(later)[2]


def _repeats(traffic: Traffic, due_s: float, action: Action, *, cheats: bool) -> Iterator[Sending]:
    """An action's second sendings. A generator of its own, by number: they shift nothing else."""
    random = Random(f"{traffic.seed}/again/{action.number}")
    if random.random() < traffic.duplicates:
        at_once = random.random() < 0.5
        yield Sending(due_s if at_once else due_s + random.uniform(*_AGAIN_AFTER_S), action, "again")
    if cheats and action.points is not None and random.random() < 0.2:
        yield Sending(due_s + random.uniform(*_AGAIN_AFTER_S), action, "altered")


def cheating_users(traffic: Traffic) -> frozenset[int]:
    """Spread over all users, the busy and the quiet; one at least, if any."""
    wanted = max(1, round(traffic.users * traffic.cheaters)) if traffic.cheaters else 0
    return frozenset(Random(f"{traffic.seed}/cheaters").sample(range(traffic.users), wanted))


def _actions(traffic: Traffic, cheaters: frozenset[int]) -> Iterator[tuple[float, Action]]:
    random = Random(traffic.seed)
    weights = list(accumulate(1 / rank**_ZIPF for rank in range(1, traffic.users + 1)))
    honest: dict[int, _Honest] = {}
    own_share = min(0.2, OWN_RATE_PER_S / traffic.rate_per_s) if traffic.own_users else 0.0
    number, now_s, second, factor = 0, 0.0, -1, 1.0
    while True:
        if int(now_s) != second:
            second = int(now_s)
            factor = _BURST_FACTOR if random.random() < _BURST_SHARE else 1.0
        now_s += random.expovariate(traffic.rate_per_s * factor)
        if traffic.duration_s is not None and now_s >= traffic.duration_s:
            return
        late_us = _late_us(random, traffic.late)
        own = random.random() < own_share
        found: list[tuple[str, int | None]]
        if own:
            # Beyond the others in number, so that none of them sends for one of these.
            user = traffic.users + random.randrange(traffic.own_users)
            found = [(LEVEL, None)] if _levels(honest, user, now_s) else [(POINTS, 1)]
        else:
            user = bisect_left(weights, random.random() * weights[-1])
            if user in cheaters:
                found = _cheating(random)
            else:
                user, type_, points = _honestly(random, honest, cheaters, traffic.users, user, now_s)
                found = [(type_, points)]
        for type_, points in found:
            if traffic.actions is not None and number >= traffic.actions:
                return
            yield now_s, Action(number, user, type_, points, int(now_s * 1e6), late_us, own)
            number += 1


def _late_us(random: Random, share: float) -> int | None:
    chance = random.random()
    if chance < share:
        return int(random.uniform(60.0, _LATEST_S) * 1e6)
    if chance < share + (1 - share) / 2:
        return None
    return int(random.uniform(0.0, _OUT_OF_ORDER_S) * 1e6)


def _cheating(random: Random) -> list[tuple[str, int | None]]:
    what = random.random()
    if what < 0.3:
        return [(LEVEL, None)] * random.randint(20, 60)
    if what < 0.6:
        return [(POINTS, random.choice((0, -5, 1_001, 10**6, 10**12)))]
    return [(POINTS, random.randint(500, 1_000))]


def _levels(honest: dict[int, _Honest], user: int, now_s: float) -> bool:
    done = honest.setdefault(user, _Honest())
    if not done.may_level(now_s):
        return False
    done.levels_s.append(now_s)
    done.points += _LEVEL_POINTS
    return True


def _honestly(
    random: Random, honest: dict[int, _Honest], cheaters: frozenset[int], users: int, user: int, now_s: float
) -> tuple[int, str, int | None]:
    """What this user may still do, or else another one; who, and what."""
    for _ in range(10):
        done = honest.setdefault(user, _Honest())
        if random.random() < 0.5 and _levels(honest, user, now_s):
            return user, LEVEL, None
        points = random.randint(1, 20)
        if done.points + points <= POINTS_AN_HOUR:
            done.points += points
            return user, POINTS, points
        user = random.randrange(users)
        while user in cheaters and len(cheaters) < users:
            user = random.randrange(users)
    return user, POINTS, 1
