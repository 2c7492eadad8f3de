"""The order of the board, counted by the auditor's own means.

More first, then earlier, then the smaller user id's bytes. The best few hundred are kept sorted;
when too many of them have left, they are found anew by one pass over all scores.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection
from typing import Final

import numpy as np
import numpy.typing as npt

KEPT: Final = 256
NOBODY: Final = -(2**63)

Place = tuple[int, int, bytes, int]
"""−score, instant reached (µs), user id, player number: sorts as the board does."""


class Leaders:
    """The first places of the board. Whoever is not held stands after everybody who is."""

    def __init__(self, count_all: Callable[[int], list[Place]]) -> None:
        """`count_all(n)` finds the first n places by looking at everybody."""
        self._count_all = count_all
        self._places: list[Place] = []
        self._complete = True
        self.bound = NOBODY
        """Whoever has fewer points than this is not held, and would not be."""

    def move(self, before: Place | None, after: Place | None) -> None:
        """A player has left one place and taken another; None is no place."""
        places = self._places
        last = places[-1] if places else None
        if before is not None:
            at = bisect_left(places, before)
            if at < len(places) and places[at] == before:
                del places[at]
        if after is not None and (self._complete or (last is not None and after < last)):
            insort(places, after)
            if len(places) > KEPT:
                places.pop()
                self._complete = False
        self._set_bound()

    def first(self, wanted: int, without: Collection[int]) -> list[Place]:
        """The first `wanted` places of those who are not in `without`."""
        found = self._of_kept(wanted, without)
        if len(found) < wanted and not self._complete:
            self._places = self._count_all(KEPT + len(without))
            self._complete = len(self._places) < KEPT + len(without)
            self._set_bound()
            found = self._of_kept(wanted, without)
        return found

    def _set_bound(self) -> None:
        self.bound = -self._places[-1][0] if self._places and not self._complete else NOBODY

    def _of_kept(self, wanted: int, without: Collection[int]) -> list[Place]:
        found: list[Place] = []
        for place in self._places:
            if len(found) == wanted:
                break
            if place[3] not in without:
                found.append(place)
        return found


def first_of_all(
    wanted: int,
    shown: npt.NDArray[np.bool_],
    scores: npt.NDArray[np.int64],
    reached: npt.NDArray[np.int64],
    users: list[str],
) -> list[Place]:
    """The first `wanted` places of the players that are `shown`."""
    (numbers,) = np.nonzero(shown)
    if len(numbers) > wanted:
        bound = np.partition(scores[numbers], len(numbers) - wanted)[len(numbers) - wanted]
        numbers = numbers[scores[numbers] >= bound]
        # Of equal scores at the bound only the earliest may be among the first.
        instants = reached[numbers]
        better = int((scores[numbers] > bound).sum())
        at_bound = np.sort(instants[scores[numbers] == bound])
        latest = at_bound[wanted - better - 1]
        numbers = numbers[(scores[numbers] > bound) | (instants <= latest)]
    places = [
        (-score, at, users[number].encode(), number)
        for number, score, at in zip(
            numbers.tolist(), scores[numbers].tolist(), reached[numbers].tolist(), strict=True
        )
    ]
    places.sort()
    return places[:wanted]


def better_than(
    place: Place,
    shown: npt.NDArray[np.bool_],
    scores: npt.NDArray[np.int64],
    reached: npt.NDArray[np.int64],
    users: list[str],
) -> int:
    """How many of the shown players stand before this place."""
    score, at, user = -place[0], place[1], place[2]
    equal = shown & (scores == score)
    tied = np.nonzero(equal & (reached == at))[0].tolist()
    better = int((shown & (scores > score)).sum()) + int((equal & (reached < at)).sum())
    return better + sum(users[number].encode() < user for number in tied)
