"""Clients that others wrote, following one channel: what happens to them, as events.

An event is `{"is": "connected" | "connecting" | "disconnected" | "subscribed" | "unsubscribed" |
"publication", …}`, the same from both. Each is a process, which may be put to sleep.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

Event = dict[str, Any]
Follow = Callable[..., AbstractAsyncContextManager["Events"]]

_HERE = Path(__file__).parent
PATH = "/connection/websocket"
BOARD = "board:main"
BUNDLE = _HERE.parent.parent / "web" / "vendor" / "centrifuge.js"


class Events:
    """What happened so far, and what comes."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.queue: asyncio.Queue[Event] = asyncio.Queue()

    async def next(self, is_: str, timeout_s: float = 20.0) -> Event:
        """The next event of this kind; others before it are passed over."""
        async with asyncio.timeout(timeout_s):
            while (event := await self.queue.get())["is"] != is_:
                pass
        return event

    def sleep(self) -> None:
        """Let it stand still, as everything does on a laptop that is closed."""
        os.kill(self._pid, signal.SIGSTOP)

    def wake(self) -> None:
        os.kill(self._pid, signal.SIGCONT)


@asynccontextmanager
async def _program(*command: str) -> AsyncIterator[Events]:
    """A client in a process of its own, which says an event a line and ends with its input."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=1 << 24
    )
    events = Events(process.pid)

    async def read() -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            events.queue.put_nowait(json.loads(line))

    reading = asyncio.create_task(read())
    try:
        yield events
    finally:
        if process.returncode is None:
            events.wake()
        assert process.stdin is not None
        process.stdin.close()
        await asyncio.wait_for(process.wait(), 10)
        await reading


def _python() -> list[str]:
    """centrifuge-python."""
    return [sys.executable, "-P", str(_HERE / "official_python.py")]


def _javascript() -> list[str]:
    """centrifuge-js, the very file that the page is served with, in Node."""
    return [_node(), "--experimental-websocket", str(_HERE / "official.mjs"), str(BUNDLE)]


def _following(program: Callable[[], list[str]]) -> Follow:
    def follow(
        url: str, channel: str, *, token: str = "", tokens: list[str] | None = None, delta: bool = False
    ) -> AbstractAsyncContextManager[Events]:
        options = {"url": url, "channel": channel, "token": token, "tokens": tokens}
        return _program(*program(), json.dumps(options | ({"delta": "fossil"} if delta else {})))

    return follow


in_python, in_javascript = _following(_python), _following(_javascript)
FOLLOW = {"python": in_python, "javascript": in_javascript}
"""To follow a channel at a URL with each client; `tokens` are handed out one by one when it asks."""


def _node() -> str:
    """A node that knows WebSocket; skips the test without one."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node")
    knows = [node, "--experimental-websocket", "-e", "WebSocket"]
    if subprocess.run(knows, capture_output=True, timeout=30).returncode != 0:
        pytest.skip("this node knows no WebSocket: 20.10 or newer does")
    return node
