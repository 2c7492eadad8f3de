"""What a check found: violations with their first witness, and how much was looked at."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

VACUOUS = "vacuous"


@dataclass(frozen=True, slots=True)
class Witness:
    """Who shows the violation, what should be there, what is, and in which line of which file."""

    who: str
    expected: Any
    found: Any
    where: str

    def __str__(self) -> str:
        return f"{self.who}: expected {self.expected}, found {self.found} ({self.where})"


@dataclass
class Findings:
    """Violations by invariant. A check that looked at nothing has found nothing and proved nothing."""

    witnesses: dict[str, Witness] = field(default_factory=dict)
    """The first of each invariant."""
    times: Counter[str] = field(default_factory=Counter)
    looked_at: dict[str, int] = field(default_factory=dict)

    def add(self, invariant: str, who: str, expected: Any, found: Any, where: str) -> None:
        self.times[invariant] += 1
        if invariant not in self.witnesses:
            self.witnesses[invariant] = Witness(who, expected, found, where)

    def count(self, name: str, by: int = 1) -> None:
        self.looked_at[name] = self.looked_at.get(name, 0) + by

    @property
    def wrong(self) -> list[str]:
        """A line per violated invariant, in their order; none when all hold."""
        return [self._line(invariant) for invariant in sorted(self.witnesses, key=_number)]

    def _line(self, invariant: str) -> str:
        more = self.times[invariant] - 1
        return f"{invariant}: {self.witnesses[invariant]}" + (f", and {more} more" if more else "")


def _number(invariant: str) -> tuple[int, str]:
    digits = invariant.removeprefix("I-")
    return (int(digits), "") if digits.isdigit() else (0, invariant)
