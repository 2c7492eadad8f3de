"""One of the services as a program of the stack: a Python module with a health port."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from trueboard.devstack.processes import Launch
from trueboard.devstack.program import Base


class Service(Base):
    """Runs a command, with an environment asked for at each start, until its health port says ready."""

    ready_timeout_s: ClassVar[float] = 90.0

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        metrics_port: int,
        log: Path,
        env: Callable[[], Mapping[str, str]],
    ) -> None:
        self.name = name
        self.metrics_port = metrics_port
        self._command, self._log, self._env = command, log, env

    def launch(self) -> Launch:
        """The command, told which port its health is asked on."""
        env = {**self._env(), "TRUEBOARD_METRICS_PORT": str(self.metrics_port)}
        return Launch(argv=self._command, log=self._log, env=env)

    def is_ready(self) -> bool:
        """Whether `/health/ready` answers 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self.metrics_port, timeout=1.0)
        try:
            connection.request("GET", "/health/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
