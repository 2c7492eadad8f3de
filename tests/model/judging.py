"""What an action is worth in the model: the real rules over a catalogue of one limit."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from core.catalogue import read
from core.rates import Recent, Rules
from tests.model.servers import Row

SECOND_US = 1_000_000

BEGIN_US = 1_795_000_000 * SECOND_US
"""Where the model's clock begins."""

TOML = """
version = "{number}"
[types.step]
points = {points}
[[types.step.limits]]
window_s = 30
soft = {soft}
hard = {hard}
"""


@cache
def rules(number: int) -> Rules:
    """The catalogue of this number; each differs from its neighbours in worth and in limit."""
    soft = 1 + number % 2
    return Rules(read(TOML.format(number=number, points=10 + number, soft=soft, hard=soft + 1).encode()))


def recent(number: int, rows: Iterable[Row]) -> Recent:
    """The judged actions of one player, as the rules of this catalogue see them."""
    window = Recent()
    code = rules(number).code("step")
    for row in rows:
        if row.seq == 0:
            window.add(row.received_us, row.received_us, False, code, row.points, row.verdict == "accepted")
    return window


def verdict(number: int, window: Recent, received_us: int) -> tuple[str, int]:
    """(verdict, points) of one more action, which is added to the window."""
    of = rules(number)
    judged = of.judge(
        window,
        occurred_us=received_us,
        received_us=received_us,
        backfill=False,
        type="step",
        client_points=None,
    )
    window.add(received_us, received_us, False, of.code("step"), judged.points, judged.verdict == "accepted")
    return judged.verdict, judged.points
