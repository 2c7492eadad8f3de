"""The same model as a state machine, so that what goes wrong is made small.

`TRUEBOARD_EXAMPLES` sets how many runs are tried (default 30).
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.model.clauses import Clauses, mutants
from tests.model.playing import play, play_as_asked
from tests.model.world import WEIGHTS, Fate, World, Wrong

STEPS = 60
FAULTS = sorted(set(WEIGHTS) - {"submit", "run", "run_on", "watch"})


class Machine(RuleBasedStateMachine):
    """Rules are what can happen; whatever they draw is a number below some bound."""

    clauses = Clauses()

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.clauses)

    def _happen(self, what: str, data: Any) -> None:
        fate = Fate(self.world, lambda below: data.draw(st.integers(0, below - 1)))
        fate.actions = len(self.world.accepted) + len(self.world.unanswered)
        getattr(fate, what)()

    @rule(data=st.data())
    def submit(self, data: Any) -> None:
        self._happen("submit", data)

    @rule(data=st.data())
    def go_on(self, data: Any) -> None:
        self._happen("run_on", data)

    @rule(data=st.data(), rounds=st.integers(1, 8))
    def everybody_goes_on(self, data: Any, rounds: int) -> None:
        for _ in range(rounds):
            for name in self.world.processes.ready():
                if name in self.world.processes.ready():
                    self.world.step(name)

    @rule(data=st.data(), what=st.sampled_from(FAULTS))
    def suffer(self, data: Any, what: str) -> None:
        self._happen(what, data)

    @rule(data=st.data())
    def watch(self, data: Any) -> None:
        self._happen("watch", data)

    @invariant()
    def what_can_be_read_is_the_ledger(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        try:
            self.world.finish()
        finally:
            self.world.close()


@pytest.mark.timeout(600)
def test_whatever_happens_what_is_shown_is_the_ledger() -> None:
    play_as_asked(Machine, 30, steps=STEPS)


@pytest.mark.timeout(600)
def test_the_machine_would_notice() -> None:
    class Careless(Machine):
        clauses = mutants()["sizes_compared"]

    with pytest.raises(Wrong):
        play(Careless, 200, steps=STEPS)
