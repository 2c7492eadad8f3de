"""One server by itself, for as long as a block of code runs: what tests need of the stack."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from trueboard.devstack.errors import CannotStart
from trueboard.devstack.processes import Program, Workbench, end_at_once, last_lines, spawn

_STOP_WITHIN_S = 8.0


@contextmanager
def running(program: Program) -> Iterator[None]:
    """Prepare and start a program, wait until it is ready, stop it at the end.

    Use it in the main thread: on Linux the program ends with the thread that started it.

    Raises:
        CannotStart: it ended, or was not ready in time.
    """
    program.prepare(Workbench(lambda _: None))
    launch = program.launch()
    process = spawn(launch)
    try:
        deadline_s = time.monotonic() + program.ready_timeout_s
        while not program.is_ready():
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise CannotStart(f"{program.name} did not get ready:\n{last_lines(launch.log, count=20)}")
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(program.stop_signal)
        deadline_s = time.monotonic() + _STOP_WITHIN_S
        while process.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.02)
        if process.poll() is None:
            end_at_once(process, program.kill_signal)
        program.stopped(process.wait())
