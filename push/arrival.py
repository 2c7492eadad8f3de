"""Waiting until a period has come to a position that a client has seen elsewhere.

Replicas read Kafka each by itself, so a client that comes from a faster one may be ahead of the
one it comes to. It must not be shown what is older than what it has.
"""

from __future__ import annotations

import asyncio

from core.feed import Position
from push.hub import Hub


async def arrived(hub: Hub, period: str, position: Position, timeout_s: float) -> bool:
    """Whether the period shows this position or a later one, within the time-out."""
    channel = hub.channels[period]
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    while channel.sequence.position < position:
        moved: asyncio.Future[None] = loop.create_future()

        def wake(moved: asyncio.Future[None] = moved) -> None:
            if not moved.done():
                moved.set_result(None)

        channel.moved.append(wake)
        try:
            await asyncio.wait_for(moved, deadline_s - loop.time())
        except TimeoutError:
            return False
        finally:
            if wake in channel.moved:
                channel.moved.remove(wake)
    return True
