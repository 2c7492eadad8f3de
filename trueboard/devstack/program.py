"""What a program of the stack has unless it says otherwise."""

from __future__ import annotations

import signal
from typing import ClassVar

from trueboard.devstack.processes import Launch, Workbench


class Base:
    """Ends on SIGTERM, has a minute to get ready, prepares nothing; see `processes.Program`."""

    name: str
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    kill_signal: ClassVar[signal.Signals] = signal.SIGKILL
    ready_timeout_s: ClassVar[float] = 60.0

    def prepare(self, bench: Workbench) -> None:
        """Nothing to do before the first start."""

    def launch(self) -> Launch:
        """How to start it now."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Whether it does its work."""
        raise NotImplementedError

    def stopped(self, exit_code: int) -> None:
        """Nothing to tidy up."""
