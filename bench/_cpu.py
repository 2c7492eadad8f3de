"""What a process costs: CPU seconds and memory, as Linux tells them in /proc.

CPU is user and system time of all threads, living or ended, counted in the kernel's ticks (10 ms).
A server that works in child processes, as Postgres does, is counted with all of them: an ended
child's time is in its parent once that has waited for it.

Source: https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")

# Of what follows the name in a stat file, from 0.
_PARENT, _USER, _SYSTEM, _ENDED_USER, _ENDED_SYSTEM, _RESIDENT = 1, 11, 12, 13, 14, 21


def _stat(path: Path) -> tuple[str, list[int]] | None:
    """Name and numbers of a stat file (the state, a letter, is 0); None if the process is gone."""
    try:
        text = path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    return name, [0, *map(int, rest.split()[1:])]


def alone_s(pid: int) -> float:
    """CPU seconds of one process without its children; 0 if it is gone."""
    found = _stat(_PROC / str(pid) / "stat")
    return 0.0 if found is None else (found[1][_USER] + found[1][_SYSTEM]) / _TICKS_PER_S


def with_children_s(pids: Iterable[int]) -> float:
    """CPU seconds of these processes and of all their descendants, ended or not."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    ticks: dict[int, int] = {}
    for directory in _PROC.iterdir():
        if directory.name.isdecimal() and (found := _stat(directory / "stat")) is not None:
            numbers = found[1]
            children[numbers[_PARENT]].append(int(directory.name))
            ticks[int(directory.name)] = sum(numbers[_USER : _ENDED_SYSTEM + 1])
    total, left = 0, list(pids)
    while left:
        pid = left.pop()
        total += ticks.get(pid, 0)
        left += children[pid]
    return total / _TICKS_PER_S


def by_thread_s(pid: int) -> dict[str, float]:
    """CPU seconds by the threads' names; threads that have ended are left out."""
    named: defaultdict[str, float] = defaultdict(float)
    for directory in (_PROC / str(pid) / "task").iterdir():
        found = _stat(directory / "stat")
        if found is not None:
            named[found[0]] += (found[1][_USER] + found[1][_SYSTEM]) / _TICKS_PER_S
    return dict(named)


def resident_bytes(pid: int) -> int:
    """Memory in use (RSS); 0 if the process is gone."""
    found = _stat(_PROC / str(pid) / "stat")
    return 0 if found is None else found[1][_RESIDENT] * _PAGE_BYTES


def spent_s(pids: Mapping[str, Iterable[int]]) -> dict[str, float]:
    """CPU seconds so far of each of these, by name, children included."""
    return {name: with_children_s(each) for name, each in pids.items()}


def between(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What was spent between two readings."""
    return {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}
