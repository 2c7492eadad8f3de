"""What a board is: which actions count, how they add up, how far down a score may go.

A definition is versioned data; its canonical JSON goes into the digest of the revision from
which it holds.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

from core import digest, words


@dataclass(frozen=True, slots=True)
class Board:
    """One version of a board's definition.

    `operator` is how actions make a score (`sum` of points), `lowest` the least score an action
    may lead to, `windows` the periods it has.
    """

    board: str
    version: int
    operator: str
    lowest: int
    public: bool
    windows: tuple[str, ...]

    @property
    def body(self) -> dict[str, Any]:
        return {
            "board": self.board,
            "lowest": self.lowest,
            "operator": self.operator,
            "public": self.public,
            "ties": "first",
            "types": "all",
            "windows": list(self.windows),
        }

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the definition's canonical JSON."""
        return hashlib.sha256(digest.canonical(self.body)).hexdigest()

    @property
    def periods(self) -> tuple[tuple[str, str], ...]:
        """(window, period id) of each of its windows."""
        return tuple((window, words.period_id(self.board, window)) for window in self.windows)


def from_body(body: dict[str, Any], version: int) -> Board:
    return Board(
        board=body["board"],
        version=version,
        operator=body["operator"],
        lowest=body["lowest"],
        public=body["public"],
        windows=tuple(body["windows"]),
    )


MAIN: Final = Board(
    board=words.MAIN_BOARD,
    version=1,
    operator="sum",
    lowest=0,
    public=True,
    windows=(words.ALL_TIME,),
)
"""The default board: sum over every type, all time, public, first to reach wins a tie."""
