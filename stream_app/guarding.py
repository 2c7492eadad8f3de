"""Sees that the ledger is the one that the topics and the copies follow, before and while this worker runs.

Whichever process holds the lock compares; all of them notice the epoch that came of it.
"""

from __future__ import annotations

from collections.abc import Callable

from core.errors import Unavailable
from storage.histories import Histories
from stream_app.following import Following


class Guarding(Following):
    """Compares whenever Postgres was started anew, and tells of a new epoch."""

    def __init__(
        self,
        histories: Histories,
        on_defect: Callable[[BaseException], None],
        on_compared: Callable[[], None],
        on_epoch: Callable[[], None],
    ) -> None:
        """Called from this thread: `on_compared` after the first comparison, `on_epoch` whenever the
        history has become another one, or may have: a restore of which nobody was shown anything that it
        lost begins no epoch, and progress stands at earlier offsets all the same."""
        super().__init__("epochs", on_defect)
        self._histories, self._on_compared, self._on_epoch = histories, on_compared, on_epoch
        self._known: tuple[str, str] | None = None

    def round(self, *, look: bool) -> None:
        """Compare, if nobody has.

        Raises:
            Unavailable: it is not compared yet.
        """
        settled = self._histories.settle()
        if settled is None:
            raise Unavailable("another worker compares the ledger with what follows it")
        before, self._known = self._known, (settled.epoch, settled.incarnation)
        if before is None:
            self._on_compared()
        elif before != self._known:
            self._on_epoch()
        self.caught_up = True

    def close(self) -> None:
        self._histories.close()
