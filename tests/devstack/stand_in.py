"""A program for the supervisor's tests: a few lines of Python that do as they are told."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from trueboard.devstack.processes import Launch, Workbench
from trueboard.devstack.program import Base

STAYS = "import time\nprint('up', flush=True)\ntime.sleep(600)"

IGNORES_SIGTERM = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('up', flush=True)
time.sleep(600)
"""


class StandIn(Base):
    """Runs Python source; ready when its log says `up` once more than before it was started."""

    def __init__(
        self, name: str, log: Path, source: str = STAYS, *, preparing: Exception | None = None
    ) -> None:
        self.name, self.starts, self.exit_codes = name, 0, list[int]()
        self._log, self._source, self._preparing = log, source, preparing

    def prepare(self, bench: Workbench) -> None:
        if self._preparing:
            raise self._preparing

    def launch(self) -> Launch:
        self.starts += 1
        source = f"START = {self.starts}\n{self._source}"
        return Launch(argv=[sys.executable, "-S", "-c", source], log=self._log, env=dict(os.environ))

    def is_ready(self) -> bool:
        return self._log.exists() and self._log.read_text().count("up") >= self.starts

    def stopped(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)


def is_running(pid: int) -> bool:
    """Whether a process lives; one that ended and was not collected yet (a zombie) does not."""
    try:
        os.kill(pid, 0)
        status = Path(f"/proc/{pid}/stat").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
