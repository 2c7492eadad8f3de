"""Mutants of the running product: one clause left out each, and the row that must notice.

A mutant is text that stands in the product once, and what stands there instead. The services of a
stack are started from a copy of the packages with that change; nothing is changed in this tree. What
notices is said in full: the checker's first witness, the row's own assertion, the auditor's alarms,
`trueboard verify`. A clause that has a second fence behind it is shown twice: left out alone, where
everything holds, and together with the fence.

`python -m tests.faults.mutants [NAME …]` runs them one after another; `make mutants` beside each other.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import re
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import httpx

from core.errors import TrueboardError
from tests.docs import pages
from tests.faults import mutants_rows
from tests.faults.engine import ROWS, Row, run_row
from tests.faults.rig import PATIENCE_S, Rig
from tests.faults.worlds import Worlds
from trueboard.endpoints import Endpoints
from trueboard.verify import verify

PACKAGES: Final = (
    "core",
    "service",
    "storage",
    "ingest",
    "stream_app",
    "push",
    "auditor",
    "trueboard",
    "web",
)
TREE: Final = Path(__file__).parents[2]
RESULTS: Final = Path(__file__).with_name("mutants.json")
PAGE: Final = "docs/reliability.md"
MARK: Final = "mutants"

KNOWN: Final[dict[str, Row]] = ROWS | mutants_rows.ROWS
"""The rows a mutant may be run on, by id."""

BESIDE: Final = ("auditor",)
PER_S: Final = 15.0
"""Actions a second: less than in the matrix, for many stacks run beside each other."""

AUDIT_S: Final = 8.0
"""How long the auditor is waited for at the end of a row: it looks at everything every second or two."""


@dataclass(frozen=True)
class Patch:
    """`old` stands in the file once; `new` takes its place."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """The clause that is left out, how, and on which row."""

    name: str
    patches: tuple[Patch, ...]
    row: str
    by: str = ""
    """What notices, as a regular expression: that a machine was too slow for a row is no notice."""
    fence: str = ""
    """Why nobody notices: what else keeps it from harm."""

    def is_as_said(self, caught: list[str]) -> bool:
        """Whether this is who must notice; with a fence, that nobody did."""
        return not caught if self.fence else any(re.search(self.by, one) for one in caught)


@dataclass
class Outcome:
    """What came of a mutant, or of the product as it is (`mutant` empty)."""

    mutant: str
    row: str
    noticed: list[str] = field(default_factory=list)
    """By the row: its first witnesses, or the assertion."""
    auditor: list[str] = field(default_factory=list)
    verify: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def caught(self) -> list[str]:
        return [*self.noticed, *self.auditor, *self.verify]


# The copy ------------------------------------------------------------------------------------


def product(where: Path, patches: tuple[Patch, ...], tree: Path = TREE) -> Path:
    """A copy of the packages with these patches in it.

    Raises:
        ValueError: a text does not stand in its file exactly once.
    """
    for package in PACKAGES:
        shutil.copytree(tree / package, where / package, ignore=shutil.ignore_patterns("__pycache__"))
    for patch in patches:
        path = where / patch.file
        path.write_text(patched(path.read_text(encoding="utf-8"), patch), encoding="utf-8")
    return where


def patched(text: str, patch: Patch) -> str:
    """The text of its file with the patch.

    Raises:
        ValueError: what it replaces does not stand there exactly once.
    """
    times = text.count(patch.old)
    if times != 1:
        raise ValueError(f"{patch.file} holds this {times} times, not once:\n{patch.old}")
    return text.replace(patch.old, patch.new)


# A run ---------------------------------------------------------------------------------------


def run(row: Row, mutant: Mutant | None, worlds: Worlds, *, keep: bool = False) -> Outcome:
    """One row on a stack of its own with the auditor beside it, the services mutated or as they are."""
    outcome = Outcome("" if mutant is None else mutant.name, row.id)
    begun_s = time.monotonic()
    packages = product(worlds.new_directory(), () if mutant is None else mutant.patches)
    # How quickly it recovers is no matter here, where others run beside it.
    row = replace(row, recover_within_s=max(row.recover_within_s, PATIENCE_S))
    world = worlds.start(product=packages, brokers=3 if row.stack == "trio" else 1)
    try:
        result = run_row(world, row, per_s=PER_S)
        outcome.noticed = [one.splitlines()[0][:300] for one in result.wrong[:3]]
        outcome.auditor = audited(world.rig)
        outcome.verify = verified(world.rig)
    finally:
        world.rig.kill()
        world.close()
        if not keep:
            shutil.rmtree(world.rig.data.parent, ignore_errors=True)
            shutil.rmtree(packages, ignore_errors=True)
    outcome.seconds = round(time.monotonic() - begun_s, 1)
    return outcome


def audited(rig: Rig) -> list[str]:
    """Which of the auditor's alarms rose."""
    end_s = time.monotonic() + AUDIT_S
    while time.monotonic() < end_s:
        try:
            text = httpx.get(rig.metrics_url("auditor"), timeout=5, trust_env=False).text
        except httpx.HTTPError:
            text = ""
        told = [
            line
            for line in text.splitlines()
            if line.startswith("trueboard_audit_mismatch_total{") and float(line.rsplit(" ", 1)[1])
        ]
        if told:
            return told
        time.sleep(0.5)
    return []


def verified(rig: Rig) -> list[str]:
    """The first witness of each check of `trueboard verify` that differs."""
    try:
        report = verify(Endpoints.read(rig.data), wait_s=10)
    except TrueboardError:
        return []
    return [
        f"verify {check['name']}: {json.dumps(check['first'], default=str)}"[:300]
        for check in report["checks"]
        if not check["ok"]
    ]


# What is written down ------------------------------------------------------------------------


def write(path: Path, outcome: Outcome) -> None:
    """Put an outcome beside the others, of those that run beside each other too."""
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        known = {one["mutant"]: one for one in json.loads(file.read() or "[]")}
        known[outcome.mutant] = asdict(outcome)
        file.truncate(0)
        ordered = [known[mutant.name] for mutant in MUTANTS if mutant.name in known]
        file.write(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")


def table() -> str:
    """What noticed each mutant, from the results that are kept."""
    known: dict[str, Any] = {}
    if RESULTS.exists():
        known = {one["mutant"]: one for one in json.loads(RESULTS.read_text(encoding="utf-8"))}
    lines = ["| what is left out | row | noticed by | the auditor | `verify` |", "|---|---|---|---|---|"]
    for mutant in MUTANTS:
        about = f"| {mutant.name} | {mutant.row}: {KNOWN[mutant.row].what} |"
        one = known.get(mutant.name)
        if one is None:
            lines.append(f"{about} not run | | |")
        elif not mutant.is_as_said([*one["noticed"], *one["auditor"], *one["verify"]]):
            lines.append(f"{about} **not as it must be**: {_short(one['noticed'])} | | |")
        elif mutant.fence:
            lines.append(f"{about} nobody: {mutant.fence} | | |")
        else:
            audited = ", ".join(sorted({_label(line) for line in one["auditor"]})) or "–"
            verified = ", ".join(line.split(":")[0].removeprefix("verify ") for line in one["verify"]) or "–"
            lines.append(f"{about} {_short(one['noticed'])} | {audited} | {verified} |")
    return "\n".join(lines)


def _short(noticed: list[str]) -> str:
    """The first witness, without ids that differ each time."""
    return "–" if not noticed else noticed[0].split(" (")[0].replace("|", "/")[:140]


def _label(line: str) -> str:
    return line[line.index("{") + 1 : line.index("}")].replace('"', "`")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help="parts of names; none: all")
    parser.add_argument("--row", help="the product as it is, on this row")
    parser.add_argument("--keep", action="store_true", help="keep what a run left")
    parser.add_argument("--table", action="store_true", help="only write the table into the page")
    wanted = parser.parse_args()
    if wanted.table:
        pages.put(PAGE, MARK, table())
        return 0
    worlds = Worlds(beside=BESIDE)
    print(f"runs in {worlds.directory}", flush=True)
    chosen: list[tuple[Row, Mutant | None]] = [
        (KNOWN[mutant.row], mutant)
        for mutant in MUTANTS
        if not wanted.row and (not wanted.names or any(name in mutant.name for name in wanted.names))
    ]
    if wanted.row:
        chosen = [(KNOWN[wanted.row], None)]
    for row, mutant in chosen:
        print(json.dumps(asdict(run(row, mutant, worlds, keep=wanted.keep)), indent=1), flush=True)
    if not wanted.keep:
        shutil.rmtree(worlds.directory, ignore_errors=True)
    return 0


# The mutants ---------------------------------------------------------------------------------

_GROUP = Patch(
    "stream_app/transport.py",
    "        wanted = {tp: offsets[tp.partition] for tp in assigned if tp.partition in offsets}\n",
    "        group = await self.seek_to_committed()\n"
    "        wanted = {tp: group.get(tp) or offsets[tp.partition]"
    " for tp in assigned if tp.partition in offsets}\n",
)
_GAPS = Patch(
    "stream_app/carry_out.py",
    "        if piece.first > progress.next_offset:\n            raise",
    "        if False:\n            raise",
)
_CAS = Patch(
    "storage/redis/scripts/board_apply.lua",
    "if at[1] ~= ARGV[1] or at[2] ~= ARGV[2] or at[3] ~= ARGV[3] then",
    "if not at[1] then",
)
_SIZES_AFTER = Patch(
    "storage/redis/scripts/board_apply.lua",
    "if not fine or not whole(tonumber(ARGV[7])) then",
    "if false then",
)
_SIZES_BEFORE = Patch("storage/redis/scripts/board_apply.lua", "if not whole(count) then", "if false then")
_READ_PAGE, _READ_PLAYERS = (
    Patch(
        f"storage/redis/scripts/{script}.lua",
        "if redis.call('HLEN', KEYS[2]) ~= count or redis.call('ZCARD', KEYS[1]) ~= count"
        " then return nil end\n",
        "",
    )
    for script in ("board_page", "board_players")
)
_RECONCILED = Patch(
    "storage/redis/boards.py",
    "        return max(abs(int(size) - int(count)) for size in sizes)\n",
    "        return 0\n",
)
_PAGES = (
    Patch("storage/redis/scripts/board_fill.lua", "if page ~= tonumber(ARGV[1]) then return 'order' end", ""),
    Patch(
        "storage/redis/scripts/board_catch_up.lua", "if page ~= tonumber(ARGV[1]) then return 'order' end", ""
    ),
    Patch("storage/redis/scripts/board_swap.lua", "if (pages or '0') ~= ARGV[2] then return 'order' end", ""),
)
_SIZES_AT_SWAP = Patch(
    "storage/redis/scripts/board_swap.lua",
    "if redis.call('HLEN', KEYS[5]) ~= count or redis.call('ZCARD', KEYS[4]) ~= count then",
    "if false then",
)

MUTANTS: Final[tuple[Mutant, ...]] = (
    Mutant(
        name="positions from the ledger (the group's offset instead)",
        patches=(_GROUP,),
        row="M-1",
        fence="offsets are held against `next_offset` in the transaction, and read again from there",
    ),
    Mutant(
        name="positions from the ledger, and offsets held against them",
        patches=(_GROUP, _GAPS),
        row="M-1",
        by=r"^I-(1|9):",
    ),
    Mutant(
        name="the marker only after Kafka's confirmation",
        patches=(
            Patch(
                "ingest/submitting.py",
                "        self._backlog.check()\n        if wait_s <= 0",
                "        self._backlog.check()\n        self._markers.remember((record,))\n"
                "        if wait_s <= 0",
            ),
        ),
        row="N-1",
        by=r"an action was confirmed that was sent|^I-(1|12|14):",
    ),
    Mutant(
        name="an answer only after Kafka's confirmation",
        patches=(
            Patch(
                "ingest/submitting.py",
                "        await self._delivery.send(SUBMITTED.name, key, value, headers)\n",
                "        sending = self._delivery.send(SUBMITTED.name, key, value, headers)\n"
                "        self._sending = asyncio.ensure_future(sending)\n",
            ),
        ),
        row="M-2",
        by=r"^I-(1|12|14):",
    ),
    Mutant(
        name="a copy moves only from the position it is at",
        patches=(_CAS,),
        row="M-3",
        fence="what a change takes away has to be there, and the sizes have to fit: the copy is built anew",
    ),
    Mutant(
        name="a copy moves only from the position it is at, and all sizes",
        patches=(_CAS, _SIZES_BEFORE, _SIZES_AFTER, _READ_PAGE, _READ_PLAYERS, _RECONCILED),
        row="M-3",
        by=r"the copy went back|^I-(5|6|8):",
    ),
    Mutant(
        name="the digest in a position",
        patches=(
            Patch(
                "storage/redis/boards.py",
                "            if known is None or known.at != at:\n",
                "            if known is None or known.at.epoch != at.epoch:\n",
            ),
            Patch(
                "storage/postgres/epochs.py",
                "    return known is None or (seen.digest is not None and known != seen.digest)\n",
                "    return known is None\n",
            ),
        ),
        row="M-4",
        by=r"the copy is of the ledger's history again",
    ),
    Mutant(
        name="the sizes of a copy, by whoever reads and changes it",
        patches=(_SIZES_BEFORE, _SIZES_AFTER, _READ_PAGE, _READ_PLAYERS),
        row="R-4",
        by=r"^I-(5|6|8):",
    ),
    Mutant(
        name="the sizes of a copy, by anybody",
        patches=(_SIZES_BEFORE, _SIZES_AFTER, _READ_PAGE, _READ_PLAYERS, _RECONCILED),
        row="R-4",
        by=r"the copy is whole again|^I-(5|6|8):",
    ),
    Mutant(
        name="the numbers of a build's pages",
        patches=_PAGES,
        row="M-5",
        fence="a build whose sizes do not fit is not put in the copy's place",
    ),
    Mutant(
        name="the numbers of a build's pages, and all sizes",
        patches=(*_PAGES, _SIZES_AT_SWAP, _SIZES_BEFORE, _SIZES_AFTER, _READ_PAGE, _READ_PLAYERS),
        row="M-5",
        by=r"the copy is whole again|^I-(5|6|8):",
    ),
    Mutant(
        name="the cursor only after what was sent is confirmed",
        patches=(
            Patch(
                "storage/kafka/publishing.py",
                "            self._await_acknowledgements()\n            failpoints",
                "            self._save()\n"
                "            self._await_acknowledgements()\n            failpoints",
            ),
        ),
        row="K-17",
        by=r"the cursor has moved|^I-24:",
    ),
    Mutant(
        name="the user in an action's key",
        patches=(
            Patch(
                "storage/postgres/ledger.py",
                '            "  AND l.player = k.player AND l.seq = 0 LIMIT 1) found",\n',
                '            "  AND l.seq = 0 LIMIT 1) found",\n',
            ),
        ),
        row="M-7",
        by=r"^I-(1|3|9):",
    ),
    Mutant(
        name="a log is told from another by Kafka's topic id",
        patches=(
            Patch(
                "stream_app/positions.py",
                "            number, left = batch.adopt(wanted, topic_id())\n",
                "            topic_id()\n            number, left = batch.adopt(wanted, 'submitted')\n",
            ),
        ),
        row="K-18",
        by=r"the ledger has gone over to the new log",
    ),
    Mutant(
        name="the version of definitions and people is compared",
        patches=(
            Patch(
                "stream_app/carry_out.py",
                " or self._definitions.fence != batch.fence():\n",
                ":\n",
            ),
        ),
        row="M-8",
        by=r"by a catalogue that was not in force",
    ),
    Mutant(
        name="an operator holds *plan* alone",
        patches=(
            Patch(
                "storage/postgres/ledger.py",
                '            cursor.execute("SELECT pg_advisory_xact_lock(%s)", (PLAN_LOCK,))\n',
                '            cursor.execute("SELECT pg_advisory_xact_lock_shared(%s)", (PLAN_LOCK,))\n',
            ),
        ),
        row="M-8",
        by=r"by a catalogue that was not in force",
    ),
    Mutant(
        name="a delta for who is erased",
        patches=(
            Patch("storage/postgres/epochs.py", "            if len(delta):\n", "            if False:\n"),
        ),
        row="M-9",
        by=r"^I-18:|^trueboard_audit",
    ),
    Mutant(
        name="windows are read again after another worker",
        patches=(
            Patch(
                "stream_app/people.py",
                "        if expected != (log, next_offset):\n",
                "        if expected is None:\n",
            ),
        ),
        row="M-10",
        by=r"the verdicts are|^verify verdicts",
    ),
)


if __name__ == "__main__":
    sys.exit(main())
