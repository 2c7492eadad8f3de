"""What a check has found: how much it compared, how much differed, and the first witness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Step = Callable[[int], None]
"""Told how many more things were compared, for whoever watches."""


@dataclass(slots=True)
class Check:
    """One check under way or done. `first` names what differs, where, what was expected and found."""

    name: str
    compared: int = 0
    differences: int = 0
    first: dict[str, Any] | None = None
    step: Step = field(default=lambda _: None, repr=False)

    @property
    def ok(self) -> bool:
        return not self.differences

    def saw(self, count: int = 1) -> None:
        """So many more things were compared."""
        self.compared += count
        self.step(count)

    def differs(self, what: str, *, expected: Any, found: Any, count: int = 1, **where: Any) -> None:
        """`count` things are not as they should be, the first of them like this."""
        if count and self.first is None:
            self.first = {"what": what, **where, "expected": expected, "found": found}
        self.differences += count

    def body(self) -> dict[str, Any]:
        """As `docs/interfaces.md` §8 writes it."""
        return {
            "name": self.name,
            "ok": self.ok,
            "compared": self.compared,
            "differences": self.differences,
            "first": self.first,
        }
