"""Which boards can be watched, under which names, and by whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from core import words


@dataclass(frozen=True, slots=True)
class Watched:
    """A board's windows, the first being the one it is shown in unless another is named."""

    windows: tuple[str, ...]
    public: bool


BOARDS: Final[Mapping[str, Watched]] = {
    words.MAIN_BOARD: Watched(windows=(words.ALL_TIME,), public=True),
}


def periods() -> list[str]:
    """Every period that can be watched."""
    return [words.period_id(board, window) for board, it in BOARDS.items() for window in it.windows]


def find(board: str, window: str | None = None) -> tuple[str, Watched] | None:
    """The period of a board's window and the board; None if there is no such one."""
    known = BOARDS.get(board)
    if known is None or (window is not None and window not in known.windows):
        return None
    return words.period_id(board, known.windows[0] if window is None else window), known
