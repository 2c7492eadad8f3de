"""Runs a module as `python -m` does, with its threads' names known to the system too.

Python 3.11 keeps them to itself; with them /proc tells which thread spends what.
"""

from __future__ import annotations

import runpy
import sys
import threading
from pathlib import Path
from typing import Any

_MOST_CHARACTERS = 15


def _name(name: str) -> None:
    Path("/proc/thread-self/comm").write_text(name[:_MOST_CHARACTERS])


def _named() -> None:
    begin: Any = threading.Thread._bootstrap_inner  # type: ignore[attr-defined]

    def begin_named(thread: threading.Thread) -> None:
        _name(thread.name)
        begin(thread)

    threading.Thread._bootstrap_inner = begin_named  # type: ignore[attr-defined]


if __name__ == "__main__":
    module = sys.argv.pop(1)
    _name("event loop")
    _named()
    runpy.run_module(module, run_name="__main__", alter_sys=True)
