"""`python -m stream_app` with a defect: what a record does whose action id names it.

`raises` meets an exception, `ends` kills the process, `stays` never comes back, `holds` neither
comes back nor lets another thread run. An id may end in the number of the process from which on
nothing is wrong any more.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from typing import Any

from stream_app import judging
from stream_app.__main__ import main

_sound = judging.judge


def _faulty(
    rules: Any, bounds: Any, people: Any, existing: Any, incoming: Any, *rest: Any, **named: Any
) -> Any:
    for item in incoming:
        _fate(item.record.action_id)
    return _sound(rules, bounds, people, existing, incoming, *rest, **named)


def _fate(action_id: str) -> None:
    if action_id.startswith("raises"):
        raise ZeroDivisionError(f"at {action_id}")
    if action_id.startswith("ends"):
        os.kill(os.getpid(), signal.SIGKILL)
    if action_id.startswith("stays"):
        time.sleep(10_000)
    if action_id.startswith("holds"):
        re.match(r"(a+)+$", "a" * 64 + "b")  # one call into C that takes for ever
    if action_id.startswith("slow"):
        time.sleep(1.5)


judging.judge = _faulty

if __name__ == "__main__":
    sys.exit(main())
