"""Clients that others wrote, following one channel: what happens to them, as events.

An event is `{"is": "connected" | "connecting" | "disconnected" | "subscribed" | "unsubscribed" |
"publication", …}`, the same from both.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import centrifuge
import pytest

Event = dict[str, Any]
Follow = Callable[..., AbstractAsyncContextManager["Events"]]

_HERE = Path(__file__).parent
BUNDLE = _HERE.parent.parent / "web" / "vendor" / "centrifuge.js"


class Events:
    """What happened so far, and what comes."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Event] = asyncio.Queue()

    async def next(self, is_: str, timeout_s: float = 20.0) -> Event:
        """The next event of this kind; others before it are passed over."""
        async with asyncio.timeout(timeout_s):
            while (event := await self.queue.get())["is"] != is_:
                pass
        return event


class _Client(centrifuge.ClientEventHandler):
    def __init__(self, events: Events) -> None:
        self._say = events.queue.put_nowait

    async def on_connected(self, ctx: Any) -> None:
        self._say({"is": "connected"})

    async def on_connecting(self, ctx: Any) -> None:
        if ctx.code:
            self._say({"is": "connecting", "code": ctx.code})

    async def on_disconnected(self, ctx: Any) -> None:
        self._say({"is": "disconnected", "code": ctx.code})


class _Subscription(centrifuge.SubscriptionEventHandler):
    def __init__(self, events: Events) -> None:
        self._say = events.queue.put_nowait

    async def on_subscribed(self, ctx: Any) -> None:
        at = [ctx.stream_position.epoch, ctx.stream_position.offset]
        said = {"data": ctx.data, "recovered": ctx.recovered, "wasRecovering": ctx.was_recovering}
        self._say({"is": "subscribed", "at": at} | said)

    async def on_unsubscribed(self, ctx: Any) -> None:
        self._say({"is": "unsubscribed", "code": ctx.code})

    async def on_publication(self, ctx: Any) -> None:
        self._say({"is": "publication", "data": ctx.pub.data, "offset": ctx.pub.offset})


@asynccontextmanager
async def in_python(
    url: str, channel: str, *, token: str = "", tokens: list[str] | None = None, delta: bool = False
) -> AsyncIterator[Events]:
    """centrifuge-python."""
    events = Events()

    async def another() -> str:
        assert tokens
        return tokens.pop(0)

    client = centrifuge.Client(
        url,
        events=_Client(events),
        token=token,
        get_token=another if tokens else None,
        min_reconnect_delay=0.05,
        max_reconnect_delay=0.2,
        max_server_ping_delay=1.0,
    )
    subscription = client.new_subscription(
        channel,
        events=_Subscription(events),
        delta=centrifuge.DeltaType.FOSSIL if delta else None,
        min_resubscribe_delay=0.05,
        max_resubscribe_delay=0.2,
    )
    await client.connect()
    await subscription.subscribe()
    try:
        yield events
    finally:
        await client.disconnect()


def _node() -> str:
    """A node that knows WebSocket; skips the test without one."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node")
    knows = [node, "--experimental-websocket", "-e", "WebSocket"]
    if subprocess.run(knows, capture_output=True, timeout=30).returncode != 0:
        pytest.skip("this node knows no WebSocket: 20.10 or newer does")
    return node


@asynccontextmanager
async def in_javascript(
    url: str, channel: str, *, token: str = "", tokens: list[str] | None = None, delta: bool = False
) -> AsyncIterator[Events]:
    """centrifuge-js, the very file that the page is served with, in Node."""
    node = _node()
    options = {"url": url, "channel": channel, "token": token, "tokens": tokens}
    process = await asyncio.create_subprocess_exec(
        node,
        "--experimental-websocket",
        str(_HERE / "official.mjs"),
        str(BUNDLE),
        json.dumps(options | ({"delta": "fossil"} if delta else {})),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        limit=1 << 24,
    )
    events = Events()

    async def read() -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            events.queue.put_nowait(json.loads(line))

    reading = asyncio.create_task(read())
    try:
        yield events
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await asyncio.wait_for(process.wait(), 10)
        await reading
