"""Random schedules of the model: none shows anything wrong, and every clause carries weight.

`TRUEBOARD_SCHEDULES` sets how many are tried (default 100), from `TRUEBOARD_SEED` on (default 0).
A failure names its seed.
"""

from __future__ import annotations

import os

import pytest

from tests.model import clauses
from tests.model.world import Wrong, schedule

MOST_FOR_A_MUTANT = 1000
"""Schedules tried until a missing clause must have been noticed; the worst takes some 70."""


@pytest.mark.timeout(600)
def test_no_schedule_shows_anything_wrong() -> None:
    first = int(os.environ.get("TRUEBOARD_SEED", "0"))
    most = int(os.environ.get("TRUEBOARD_SCHEDULES", "100"))
    revisions = epochs = builds = accepted = stops = 0
    for seed in range(first, first + most):
        try:
            world = schedule(seed, clauses.Clauses())
        except Wrong as wrong:
            raise AssertionError(f"seed {seed}: {wrong}") from wrong
        revisions += len(world.history)
        epochs += world.epochs
        builds += world.builds
        accepted += len(world.accepted)
        stops += len(world.stops)

    # Nothing of this was in vain: of all of it there has been some, or nothing was tried.
    assert accepted > 5 * most
    assert revisions > 5 * most
    assert epochs > most // 2
    assert builds > most
    assert stops > most // 50


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(clauses.mutants()))
def test_a_missing_clause_is_noticed(name: str) -> None:
    mutant = clauses.mutants()[name]
    for seed in range(MOST_FOR_A_MUTANT):
        try:
            schedule(seed, mutant)
        except Exception:
            # Most show something wrong; some, being wrong, stumble over it themselves.
            return
    raise AssertionError(f"{MOST_FOR_A_MUTANT} schedules went well without {name}")
