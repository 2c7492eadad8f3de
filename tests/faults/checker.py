"""`python -m tests.faults.checker DIR`: what must hold of a run, asked of its files alone (and of
the services' logs, where they are kept beside it).

DIR is what a run has left (`tests.faults.histories` says in what form). Prints the first witness of each
violation and counts of what was seen; the exit code is 1 if something is violated, or if so little was
seen that nothing is proved.

What is checked where: the table in docs/reliability.md.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from core.topics import SUBMITTED
from tests.faults.checking import actions, ledger, logs, people, secrecy, shown
from tests.faults.checking.findings import VACUOUS, Findings
from tests.faults.checking.material import Ledger, Material, as_object
from tests.faults.histories import Attempt, Copy, Event, Record, dumps, read


def check(run: Path, dump: Path | None = None) -> Findings:
    """All that a run has written down up to a dump, its last one if none is named, against that dump."""
    known = dumps(run)
    where = dump or known[-1]
    material, findings = Material(run, where), Findings()
    for part in (actions, ledger, logs, people, shown):
        part.check(findings, material)
    earlier = [other for other in known if int(other.name) < int(where.name)]
    if earlier:
        ledger.unchanged(findings, Ledger(earlier[-1]), material.ledger, material.users)
    secrecy.check(findings, run)
    _recovered(findings, material.events)
    _proved(findings, material)
    return findings


def check_every_dump(run: Path) -> Findings:
    """The same for each dump of a run: of those before the last, what holds at rest."""
    findings = Findings()
    for where in dumps(run):
        one = check(run, where)
        for invariant, witness in one.witnesses.items():
            findings.witnesses.setdefault(invariant, witness)
            findings.times[invariant] = max(findings.times[invariant], one.times[invariant])
        findings.looked_at = one.looked_at
    return findings


# I-22


def _recovered(findings: Findings, events: list[Event]) -> None:
    """A row whose faults are over is as before within its time, by itself."""
    begun: dict[str, Event] = {}
    healed: dict[str, tuple[int, Event]] = {}
    recovered: dict[str, tuple[int, Event]] = {}
    ended: dict[str, tuple[int, Event]] = {}
    for line, event in enumerate(events, 1):
        if event.what == "row":
            begun[event.row] = event
        for what, known in (("healed", healed), ("recovered", recovered), ("end", ended)):
            if event.what == what:
                known[event.row] = (line, event)
    for row, (line, _) in healed.items():
        about = begun[row].detail if row in begun else {}
        within_s = about.get("within_s")
        if within_s is None:
            continue
        findings.count("recoveries")
        _, again = recovered.get(row, (0, None))
        took_s = again.detail["seconds"] if again is not None else None
        if (took_s is None and row in ended) or (took_s is not None and took_s > within_s):
            told = "never" if took_s is None else f"after {took_s} s"
            findings.add("I-22", f"row {row}", f"as before within {within_s} s", told, f"events.jsonl:{line}")


# Against passing without having looked


def _proved(findings: Findings, material: Material) -> None:
    """Something was confirmed, something was shown, and each row saw what it must have seen."""
    for name in ("confirmed", "rows", "shown"):
        if not findings.looked_at.get(name):
            findings.add(VACUOUS, "the run", f"some {name}", "none", str(material.run))
    spans: dict[str, list[float]] = {}
    wants: dict[str, tuple[int, list[str]]] = {}
    told: dict[str, dict[str, int]] = {}
    for line, event in enumerate(material.events, 1):
        spans.setdefault(event.row, [event.at_s, event.at_s])[1] = event.at_s
        if event.what == "row":
            wants[event.row] = (line, ["confirmed", *event.detail.get("wants", [])])
        if event.what == "end":
            observed = event.detail.get("observed", {})
            told[event.row] = {name: observed.get(name, 0) for name in ("redelivered", "repeated")}
    for row, (line, wanted) in wants.items():
        if row not in spans or spans[row][0] > material.until_s:
            continue
        seen = {**_seen(material, row, *spans[row]), **told.get(row, {})}
        for what in wanted:
            if what in seen and not seen[what]:
                findings.add(VACUOUS, f"row {row}", f"some {what}", "none", f"events.jsonl:{line}")


def _seen(material: Material, row: str, from_s: float, to_s: float) -> Counter[str]:
    """What a row saw by the files; what only the services' logs tell stands in its `end`."""
    seen = Counter({"confirmed": 0, "503": 0, "unanswered": 0, "again": 0, "duplicates": 0})
    for _, attempt in material.attempts:
        if attempt.row != row:
            continue
        seen["confirmed"] += actions.is_confirmed(attempt)
        seen["503"] += attempt.status == 503
        seen["unanswered"] += attempt.status == 0
        seen["again"] += attempt.purpose == "again"
    known = set()
    for one in material.submitted:
        if one.key is not None and one.key in known:
            seen["duplicates"] += from_s <= one.record.at_s <= to_s
        known.add(one.key)
    return seen


# What a run saw, for whoever reads the result


def counts(run: Path) -> dict[str, int]:
    """Attempts by answer, repeats, and what befell whom."""
    told: Counter[str] = Counter({"attempts": 0, "202": 0, "503": 0})
    for attempt in read(run / "attempts.jsonl", Attempt):
        told["attempts"] += 1
        told[str(attempt.status) if attempt.status else "unanswered"] += 1
    known: set[tuple[str | None, str | None]] = set()
    for record in read(run / f"topics/{SUBMITTED.name}.jsonl", Record):
        body = as_object(record) or {}
        key = (body.get("user_id"), body.get("action_id"))
        told["records"] += 1
        told["duplicates"] += None not in key and key in known
        known.add(key)
    for event in read(run / "events.jsonl", Event):
        text = str(event.detail.get("text", ""))
        told["faults"] += event.what == "struck"
        told["kills"] += event.what == "struck" and is_kill(text)
        if event.what == "end":
            observed = event.detail.get("observed", {})
            for name in ("redelivered", "repeated", "rebalances"):
                told[name] += int(observed.get(name, 0))
    told["builds"] = builds(read(run / "copies.jsonl", Copy))
    return dict(told)


def is_kill(what: str) -> bool:
    """Whether a fault, by what it says, ended a process at once."""
    return "SIGKILL" in what or " ends at " in what


def builds(copies: Iterable[Copy]) -> int:
    """How often a copy was seen whole that had been none before; Redis away for a while is neither."""
    count, readable = 0, True
    for copy in copies:
        now = copy.state == "there" and copy.sizes == [copy.count, copy.count]
        count += now and not readable
        readable = now or (readable and copy.state == "away")
    return count


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.faults.checker")
    parser.add_argument("run", type=Path, help="the directory of a run")
    parser.add_argument("--every-dump", action="store_true", help="not only the last")
    wanted = parser.parse_args(arguments)
    if dumps(wanted.run):
        findings = check_every_dump(wanted.run) if wanted.every_dump else check(wanted.run)
    else:
        findings = Findings()
        findings.add(
            VACUOUS, str(wanted.run), "a dump, as a run leaves at rest", "none", str(wanted.run / "dumps")
        )
    for line in findings.wrong:
        print(line)
    print("seen:", ", ".join(f"{number} {name}" for name, number in counts(wanted.run).items()))
    print("looked at:", ", ".join(f"{number} {name}" for name, number in findings.looked_at.items()))
    print("violated" if findings.wrong else "all holds")
    return bool(findings.wrong)


if __name__ == "__main__":
    sys.exit(main())
