"""Whoever reads on is told where the ledger may not be the one that was read for."""

from __future__ import annotations

from typing import Any

from storage.histories import Settled
from stream_app.guarding import Guarding


class Told:
    """Comparisons that come to this, one after the other."""

    def __init__(self, *settled: Settled) -> None:
        self._settled = list(settled)

    def settle(self) -> Settled:
        return self._settled.pop(0)


def test_positions_are_looked_up_again_in_another_epoch_and_on_another_run_of_the_server():
    told: list[str] = []
    histories: Any = Told(
        Settled("e1", "run 1"),
        Settled("e1", "run 1"),
        # A restore that left no trace: no epoch begins.
        Settled("e1", "run 2"),
        Settled("e2", "run 2"),
        Settled("e2", "run 2"),
    )
    guarding = Guarding(
        histories, lambda _: None, lambda: told.append("compared"), lambda: told.append("look again")
    )
    seen = []

    for _ in range(5):
        guarding.round(look=True)
        seen.append(tuple(told))
        told.clear()

    assert seen == [("compared",), (), ("look again",), ("look again",), ()]
