"""What is remembered of every action: enough to know it again and to take back what it gave.

A row is 41 bytes and its place in the index 4 to 12, so some 50 MB for a million actions. Nothing
can be forgotten: a decision may come about the oldest action, and an action that comes a second
time must be known. Rows of one player are linked, so that one player is recounted by themselves.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Final

ACCEPTED: Final = 1
DECIDED: Final = 2

_FIRST_SIZE: Final = 1 << 12
_SPREAD: Final = 0x9E3779B97F4A7C15


class Actions:
    """Rows by (player number, hash of the action id); columns are read and written by row number.

    The hash has 64 bits, so of one player's n actions two are taken for one with a chance of
    n²/2^65.
    """

    def __init__(self) -> None:
        self.hashes, self.players = array("q"), array("I")
        self.points, self.received, self.revisions = array("q"), array("q"), array("q")
        self.states = bytearray()
        self._before = array("q")
        self._index = array("I", bytes(4 * _FIRST_SIZE))
        self._mask = _FIRST_SIZE - 1

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def bytes_held(self) -> int:
        """What rows and index take."""
        columns = (self.hashes, self.players, self.points, self.received, self.revisions, self._before)
        return sum(len(c) * c.itemsize for c in (*columns, self._index)) + len(self.states)

    def find(self, player: int, action_hash: int) -> int:
        """The row of this action, −1 if it is not known."""
        index, mask, hashes, players = self._index, self._mask, self.hashes, self.players
        place = (action_hash ^ player * _SPREAD) & mask
        while row := index[place]:
            if hashes[row - 1] == action_hash and players[row - 1] == player:
                return row - 1
            place = (place + 1) & mask
        return -1

    def add(
        self,
        player: int,
        action_hash: int,
        points: int,
        received_us: int,
        revision: int,
        state: int,
        before: int,
    ) -> int:
        """A new row, which must not be known; `before` is the player's last one, −1 for none."""
        self.hashes.append(action_hash)
        self.players.append(player)
        self.points.append(points)
        self.received.append(received_us)
        self.revisions.append(revision)
        self.states.append(state)
        self._before.append(before)
        number = len(self.hashes)
        if number * 3 > self._mask * 2:
            self._grow()
        else:
            self._enter(number)
        return number - 1

    def of_player(self, last: int) -> Iterator[int]:
        """The player's rows, from the last one back."""
        while last >= 0:
            yield last
            last = self._before[last]

    def _enter(self, number: int) -> None:
        index, mask = self._index, self._mask
        place = (self.hashes[number - 1] ^ self.players[number - 1] * _SPREAD) & mask
        while index[place]:
            place = (place + 1) & mask
        index[place] = number

    def _grow(self) -> None:
        size = 2 * (self._mask + 1)
        self._index, self._mask = array("I", bytes(4 * size)), size - 1
        for number in range(1, len(self.hashes) + 1):
            self._enter(number)
