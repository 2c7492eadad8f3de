"""What became of every action of a run: what was said of it, and what the ledger says.

An action that was once confirmed must have exactly one verdict, or it is lost. One that was only ever
refused, or was never sent, must have none, or it is invented. Of one whose every answer was missing or
asked to come back, either is right. Nine bytes an action.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from trueboard.simulation.planning import Action

SENT: Final = 1
CONFIRMED: Final = 2
REFUSED: Final = 4
OPEN: Final = 8
"""Some answer was missing or asked to come back: it may have been taken all the same."""
JUDGED: Final = 16


class Account:
    """The account of one run. Actions are known by their numbers, 0, 1, 2 …"""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.answers: Counter[int] = Counter()
        self.verdicts: Counter[str] = Counter()
        self.duplicates = 0
        self.invented = 0
        self._marks = bytearray()
        self._users = array("q")
        self._sent = 0

    def sending(self, action: Action, *, again: bool) -> None:
        """It is about to be sent, for the first time or once more on purpose."""
        missing = action.number + 1 - len(self._marks)
        if missing > 0:
            self._marks.extend(bytes(missing))
            self._users.extend([-1] * missing)
        if not self._marks[action.number] & SENT:
            self._sent += 1
            self._users[action.number] = action.user
        self._marks[action.number] |= SENT
        self.duplicates += again

    def answered(self, action: Action, status: int | None) -> None:
        """An answer came back for it, or None did."""
        if status is not None:
            self.answers[status] += 1
        if status is None or status >= 500:
            mark = OPEN
        elif status == 429:
            mark = 0
        else:
            mark = CONFIRMED if status < 300 else REFUSED
        self._marks[action.number] |= mark

    def user(self, number: int) -> int:
        """Who did it; −1 where no action of this number was sent."""
        return self._users[number] if 0 <= number < len(self._users) else -1

    @property
    def sent(self) -> int:
        return self._sent

    def waiting(self) -> Iterator[tuple[int, int]]:
        """(number, user) of what may have a verdict and none was seen of; the confirmed first."""
        for wanted in (CONFIRMED, OPEN, REFUSED):
            for number, mark in enumerate(self._marks):
                if not mark & JUDGED and self._rank(mark) == wanted:
                    yield number, self._users[number]

    def confirmed_waiting(self) -> int:
        """How many confirmed actions no verdict was seen of."""
        return sum(1 for mark in self._marks if mark & CONFIRMED and not mark & JUDGED)

    @staticmethod
    def _rank(mark: int) -> int:
        if mark & CONFIRMED:
            return CONFIRMED
        return OPEN if mark & OPEN else mark & REFUSED

    def look_again(self) -> None:
        """Forget what the ledger said, to ask anew."""
        self._marks = bytearray(mark & ~JUDGED for mark in self._marks)
        self.verdicts.clear()
        self.invented = 0

    def judged(self, number: int, user: int, verdict: str) -> None:
        """The ledger has this verdict on an action of this run."""
        known = user >= 0 and self.user(number) == user
        mark = self._marks[number] if known else 0
        if known:
            self._marks[number] |= JUDGED
        if mark & (CONFIRMED | OPEN) and not mark & JUDGED:
            self.verdicts[verdict] += 1
        else:
            self.invented += 1

    def body(self) -> dict[str, Any]:
        """As `docs/interfaces.md` §8 writes it; to be asked when all verdicts were looked up."""
        return {
            "seed": self.seed,
            "sent": self._sent,
            "answers": {str(status): count for status, count in sorted(self.answers.items())},
            "verdicts": {name: self.verdicts[name] for name in ("accepted", "rejected", "held")},
            "duplicates": self.duplicates,
            "lost": self.confirmed_waiting(),
            "invented": self.invented,
        }
