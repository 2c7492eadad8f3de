"""What a bench says: the machine, the command, tables for a person, JSON for a program."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from core.times import format_us

_PACKAGES: Final = (
    "uvicorn",
    "uvloop",
    "httptools",
    "litestar",
    "msgspec",
    "hiredis",
    "confluent-kafka",
    "aiokafka",
    "faust-streaming",
    "psycopg",
)


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure that was measured in several rounds."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        listed = sorted(values)
        return cls(statistics.median(listed), listed[0], listed[-1])

    def __str__(self) -> str:
        if self.lowest == self.highest:
            return shown(self.median)
        return f"{shown(self.median)} ({shown(self.lowest)}–{shown(self.highest)})"


@dataclass(frozen=True, slots=True)
class Bar:
    """A ratio that is asked for: `value` in this run, `bar` as a sentence, and whether it was met."""

    name: str
    value: float
    bar: str
    met: bool

    def __str__(self) -> str:
        met = "met" if self.met else "NOT met"
        return f"{self.name}: {shown(self.value)} (asked for: {self.bar}): {met}"


def shown(number: float) -> str:
    """A number with three figures that matter."""
    size = abs(number)
    if size >= 100:
        return f"{number:,.0f}"
    decimals = 1 if size >= 10 else 2 if size >= 0.095 or not size else 3
    return f"{number:.{decimals}f}"


def quantile(sorted_values: Sequence[float], share: float) -> float:
    """The value below which this share of them lies; 0 of none."""
    if not sorted_values:
        return 0.0
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))]


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns, the first to the left, the others to the right."""
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    lines.insert(1, ["─" * width for width in widths])
    texts = []
    for first, *others in lines:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        texts.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(texts)


def circumstances(bench: str, directory: Path, servers: Mapping[str, str]) -> dict[str, Any]:
    """Where, when and how this was run. `directory` is on the disk the servers write to."""
    return {
        "bench": bench,
        "command": shlex.join(["python", f"bench/{bench}.py", *sys.argv[1:]]),
        "date": format_us(int(datetime.now(UTC).timestamp() * 1e6)),
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "cpu": _cpu_model(),
            "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
            "kernel": platform.release(),
            "fdatasync_ms": round(_fdatasync_ms(directory), 3),
            "load_average_before": round(os.getloadavg()[0], 2),
        },
        "versions": {
            "python": platform.python_version(),
            **servers,
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
    }


def head(facts: Mapping[str, Any]) -> str:
    """The circumstances for a person."""
    machine, versions = facts["machine"], facts["versions"]
    return (
        f"{facts['command']}\n"
        f"{facts['date']}, {machine['cores']} cores of {machine['cpu']}, {machine['memory_gb']} GB, "
        f"Linux {machine['kernel']}, fdatasync {machine['fdatasync_ms']} ms, "
        f"load average before {machine['load_average_before']}\n"
        + ", ".join(f"{name} {version}" for name, version in versions.items())
    )


def publish(result: Mapping[str, Any], sections: Sequence[str], *, as_json: bool) -> None:
    """Print the tables; with `as_json` the result alone on standard output, the tables beside it."""
    print("\n\n".join([head(result), *sections]), file=sys.stderr if as_json else sys.stdout, flush=True)
    if as_json:
        print(json.dumps(result, default=_as_json, indent=1), flush=True)


def progress(line: str) -> None:
    """One line on standard error for whoever waits."""
    print(f"  {time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def _as_json(value: object) -> Any:
    if isinstance(value, Spread):
        return {"median": value.median, "min": value.lowest, "max": value.highest}
    if isinstance(value, Bar):
        return {"name": value.name, "value": value.value, "bar": value.bar, "met": value.met}
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.machine()


def _fdatasync_ms(directory: Path) -> float:
    """The median of fifty; commits wait for it, so a figure means little without it."""
    path, times_ms = directory / "fdatasync", []
    with path.open("wb", buffering=0) as file:
        for _ in range(50):
            file.write(b"\0" * 8192)
            begun_s = time.perf_counter()
            os.fdatasync(file.fileno())
            times_ms.append((time.perf_counter() - begun_s) * 1000)
    path.unlink()
    return statistics.median(times_ms)
