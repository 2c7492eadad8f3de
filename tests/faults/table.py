"""`python -m tests.faults.table`: writes what came of the rows into docs/reliability.md.

The results are those of the last `make faults`, kept in tests/faults/results.json; a row that never
ran is shown as such.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.docs import pages
from tests.faults import rows  # noqa: F401
from tests.faults.engine import ROWS

RESULTS = Path(__file__).with_name("results.json")
PAGE, MARK = "docs/reliability.md", "faults"

_COUNTS = ("confirmed", "503", "unanswered", "duplicates", "repeated", "redelivered")


def table() -> str:
    """The table, from the results that are kept."""
    known = {one["id"]: one for one in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    lines = [
        "| row | what is done | times | seen meanwhile | judged/s before, during, after | whole again after |"
        " verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in ROWS.values():
        lines.append(_line(row.id, row.what, row.cannot, known.get(row.id)))
    return "\n".join(lines)


def _line(id: str, what: str, cannot: str, result: dict[str, Any] | None) -> str:
    if result is None or result["verdict"] == "not run":
        return f"| {id} | {what} | | | | | not run{': ' + cannot if cannot else ''} |"
    seen = ", ".join(f"{result['observed'][name]} {name}" for name in _COUNTS if result["observed"].get(name))
    speeds = result["judged_per_s"]
    told = " / ".join(_speed(speeds.get(span)) for span in ("before", "during", "after"))
    recovery = "" if result["recovery_s"] is None else f"{result['recovery_s']} s"
    return (
        f"| {id} | {what}: {'; '.join(result['done'])} | {result['struck']} | {seen} | {told} | {recovery} |"
        f" {result['verdict']} |"
    )


def _speed(per_s: float | None) -> str:
    return "–" if per_s is None else f"{per_s:.0f}"


def main() -> None:
    pages.put(PAGE, MARK, table())


if __name__ == "__main__":
    main()
