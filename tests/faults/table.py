"""`python -m tests.faults.table`: writes what came of the rows into docs/reliability.md.

The results are those of the last `make faults`, kept in tests/faults/results.json; a row that never
ran is shown as such.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from tests.docs import pages
from tests.faults import rows  # noqa: F401
from tests.faults.engine import ROWS

RESULTS = Path(__file__).with_name("results.json")
PAGE, MARK = "docs/reliability.md", "faults"

_COUNTS = ("confirmed", "503", "unanswered", "duplicates", "repeated", "redelivered")
_TOTALS = {
    "attempts": "attempts",
    "202": "answered 202",
    "503": "answered 503",
    "duplicates": "duplicates on the log",
    "redelivered": "records redelivered",
    "builds": "builds of the copy",
    "rebalances": "rebalances",
    "kills": "kills",
}
"""What is added up over all rows, and how it is called."""


def table() -> str:
    """The table, from the results that are kept."""
    known = _known()
    lines = [
        "| row | what is done | times | seen meanwhile | judged/s before, during, after | whole again after |"
        " verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in ROWS.values():
        lines.append(_line(row.id, row.what, row.cannot, known.get(row.id)))
    return "\n".join([*lines, "", totals()])


def totals() -> str:
    """What all rows saw together, in one line."""
    known = _known()
    verdicts = Counter(known[id]["verdict"] if id in known else "not run" for id in ROWS)
    ran = [one for id, one in known.items() if id in ROWS and one["verdict"] != "not run"]
    told = ", ".join(
        f"{sum(one['observed'].get(name, 0) for one in ran):,} {called}"
        for name, called in _TOTALS.items()
        if any(name in one["observed"] for one in ran)
    )
    return (
        f"Together: {told}; {sum(one['struck'] for one in ran):,} faults. {len(ROWS)} rows:"
        f" {verdicts['held']} held, {verdicts['broken']} broken, {verdicts['not run']} not run."
    )


def _known() -> dict[str, dict[str, Any]]:
    """Each row's last result."""
    return {one["id"]: one for one in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}


def _line(id: str, what: str, cannot: str, result: dict[str, Any] | None) -> str:
    if result is None or result["verdict"] == "not run":
        return f"| {id} | {what} | | | | | not run{': ' + cannot if cannot else ''} |"
    seen = ", ".join(f"{result['observed'][name]} {name}" for name in _COUNTS if result["observed"].get(name))
    seen = "; ".join(filter(None, (seen, result["observed"].get("told"))))
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
    print(totals())


if __name__ == "__main__":
    main()
