"""`python -m push`: the feed as a process. SIGTERM and SIGINT end it, with exit code 0."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import sys
from typing import Final

import uvloop

from core.errors import Unavailable
from push.app import joined
from push.settings import Settings
from service import logs
from service.settings import SettingsError, read_settings

MANY_FILES: Final = 65_536

_log = logs.get("push")


async def _serve(settings: Settings) -> None:
    async with joined(settings) as feed:
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_number, feed.stop)
        await feed.run()


def _allow_many_sockets() -> None:
    """A socket is an open file; the soft limit on those is often 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main() -> int:
    """The process's exit code: 0 stopped as asked, 1 could not go on, 2 wrong settings."""
    logs.configure("push")
    try:
        settings = read_settings(Settings, os.environ)
    except SettingsError as error:
        _log.critical("settings_unusable", detail=str(error))
        return 2
    _allow_many_sockets()
    # Thousands of sockets are long-lived objects: looking at them often halves how fast they connect.
    gc.set_threshold(50_000, 20, 100)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings))
    except (OSError, Unavailable) as error:
        _log.critical("feed_cannot_start", detail=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
