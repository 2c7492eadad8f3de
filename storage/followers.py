"""What everything derived from the ledger has in common.

A follower has a position in the history and shows exactly the ledger there. It moves by `step`,
which applies what lies between two positions if and only if it still stands at the first, and by
`build`, which starts from the ledger whenever anything is in doubt. Nothing waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, order=True)
class At:
    """A position as a follower stores it: epoch, revision, digest in hex."""

    epoch: str
    revision: int
    digest: str


class Follower(Protocol):
    """One derived thing. Not shared between threads; its calls may raise core.errors.Unavailable."""

    name: str

    def position(self) -> At | None:
        """Where it stands; None if there is nothing that could be believed."""
        ...

    def step(self, *, look: bool = True) -> bool:
        """Follow the ledger by one bounded piece; False if there was nothing to do.

        Where `look` is false only what is in hand is followed, and the ledger is not read for more.
        """
        ...

    def build(self) -> None:
        """Make it anew from the ledger, keeping what readers see until it is whole."""
        ...
