"""`python -m auditor`: the auditor as a process. SIGTERM and SIGINT end it, with exit code 0."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Final

from auditor.settings import Settings
from service import logs
from service.health import HealthServer
from service.settings import SettingsError, read_settings

_BEHIND: Final = 10
"""Niceness: whoever has work for people goes first."""

_STOP_S: Final = 1.0

_log = logs.get("auditor")


def main() -> int:
    """The process's exit code: 0 stopped as asked, 1 could not go on, 2 wrong settings."""
    logs.configure("auditor")
    try:
        settings = read_settings(Settings, os.environ)
    except SettingsError as error:
        _log.critical("settings_unusable", detail=str(error))
        return 2
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    # Imported late: a start of the whole stack shall not wait for what only counting needs.
    from auditor.app import Auditor

    auditor = Auditor(settings)
    health = HealthServer(settings.metrics_port, live=auditor.live, ready=auditor.ready)
    try:
        health.start()
    except OSError as error:
        _log.critical("auditor_cannot_start", detail=str(error))
        return 1
    os.nice(_BEHIND)
    auditor.start()
    while not (asked.wait(0.2) or auditor.failed.is_set()):
        pass
    auditor.stop(_STOP_S)
    health.stop()
    return 1 if auditor.failed.is_set() else 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # A thread that still waits for Kafka or Postgres shall not hold up the end; it has nothing to save.
    os._exit(code)
