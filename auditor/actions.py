"""What is remembered of every action: enough to know it again and to take back what it gave.

A row is 45 bytes and its place in the index 6 to 12, so some 55 MB for a million actions. Nothing
can be forgotten: a decision may come about the oldest action, and an action that comes a second
time must be known. Rows of one player are linked, so that one player is recounted by themselves.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Final

import numpy as np

ACCEPTED: Final = 1
DECIDED: Final = 2

_FIRST_SIZE: Final = 1 << 12


class Actions:
    """Rows by the hash of player number and action id; columns are read and written by row number.

    The hash has 64 bits, so of n actions of one player two are taken for one with a chance of
    n²/2^65; actions of different players never are.
    """

    def __init__(self) -> None:
        self.players = array("I")
        self.points, self.received, self.revisions = array("q"), array("q"), array("q")
        self.states = bytearray()
        self._hashes, self._before = array("q"), array("q")
        self._index = array("I", bytes(4 * _FIRST_SIZE))
        self._mask = _FIRST_SIZE - 1

    def __len__(self) -> int:
        return len(self._hashes)

    def enter(
        self,
        player: int,
        action_id: str,
        points: int,
        received_us: int,
        revision: int,
        state: int,
        before: int,
    ) -> int:
        """Add an action; −1 if it was not known, else the row in which it stands, unchanged.

        `before` is the player's last row, −1 for none.
        """
        index, mask, hashes = self._index, self._mask, self._hashes
        known = hash((player, action_id))
        place = known & mask
        while row := index[place]:
            if hashes[row - 1] == known and self.players[row - 1] == player:
                return row - 1
            place = (place + 1) & mask
        hashes.append(known)
        self.players.append(player)
        self.points.append(points)
        self.received.append(received_us)
        self.revisions.append(revision)
        self.states.append(state)
        self._before.append(before)
        number = len(hashes)
        if number * 3 > mask * 2:
            self._grow()
        else:
            index[place] = number
        return -1

    def of_player(self, last: int) -> Iterator[int]:
        """The player's rows, from the last one back."""
        while last >= 0:
            yield last
            last = self._before[last]

    def _grow(self) -> None:
        """Twice the index: every row looks for a free place from its own on, all of them at a time."""
        mask = 2 * self._mask + 1
        table = np.zeros(mask + 1, np.uint32)
        places = np.frombuffer(self._hashes, np.int64) & mask
        rows = np.arange(1, len(places) + 1, dtype=np.uint32)
        while len(rows):
            free = table[places] == 0
            table[places[free]] = rows[free]
            left = table[places] != rows
            rows, places = rows[left], (places[left] + 1) & mask
        self._index, self._mask = array("I", table.tobytes()), mask
