"""The worked examples of docs/rules.md: judged by the rules themselves, one player's after another."""

from __future__ import annotations

from typing import Final

from core import catalogue
from core.rates import Recent, Rules
from core.times import parse_us
from tests.docs import pages

PAGE: Final = "docs/rules.md"

ACTIONS: Final = (
    ("12:00:00", "level", None),
    ("12:00:20", "level", None),
    ("12:00:40", "level", None),
    ("12:00:50", "level", None),
    ("12:01:50", "level", None),
    ("12:10:00", "bonus", None),
    ("12:40:00", "bonus", None),
    ("13:10:00", "bonus", None),
    ("13:10:00.100", "click", None),
    ("13:10:00.250", "click", None),
    ("13:10:00.450", "click", None),
    ("13:20:00", "sale", 450),
    ("13:20:10", "sale", 60),
    ("13:20:20", "sale", 120),
    ("13:20:30", "sale", 501),
    ("13:20:40", "dance", None),
)


def table() -> str:
    """The examples as a table, with the verdicts that the rules give."""
    (block,) = pages.blocks(PAGE, "toml")
    rules, recent = Rules(catalogue.read(block.text.encode())), Recent()
    lines = [
        "| at | type | points sent | verdict | reason | limit | seen |",
        "|---|---|---|---|---|---|---|",
    ]
    for at, type_, points in ACTIONS:
        instant_us = parse_us(f"2026-12-01T{at}Z")
        judgement = rules.judge(
            recent,
            occurred_us=instant_us,
            received_us=instant_us,
            backfill=False,
            type=type_,
            client_points=points,
        )
        accepted = judgement.verdict == "accepted"
        recent.add(instant_us, instant_us, False, rules.code(type_), judgement.points, accepted)
        reason = judgement.reason
        told = (None, None, None) if reason is None else (f"`{reason.code}`", reason.limit, reason.seen)
        cells = (at, type_, points, judgement.verdict, *told)
        lines.append(" ".join(f"| {'' if cell is None else cell}".rstrip() for cell in cells) + " |")
    return "\n".join(lines)
