"""How the state machines are played. `TRUEBOARD_EXAMPLES` sets how many runs are tried."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test


def play(
    machine: type[RuleBasedStateMachine], examples: int, *, steps: int, derandomize: bool = True
) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=derandomize,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def play_as_asked(machine: type[RuleBasedStateMachine], default: int, *, steps: int) -> None:
    """The same runs each time, or others where a number of them is asked for."""
    examples = os.environ.get("TRUEBOARD_EXAMPLES")
    play(machine, int(examples or default), steps=steps, derandomize=examples is None)
