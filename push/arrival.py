"""Waiting until a period has come to a position that a client has seen elsewhere.

Replicas read Kafka each by itself, so a client that comes from a faster one may be ahead of the
one it comes to. It must not be shown what is older than what it has. The same holds for one that
has read the board over HTTP a moment ago, or was told of its own action there: so whoever begins
to follow a channel is first brought abreast of the standings.

That holds where the ledger itself is behind the client, too: a restored one may be, until its new
epoch has begun. So a position that is ahead of the ledger is never taken for one that never was.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from core import feed
from core.errors import Refused, Unavailable
from core.feed import Position
from push.comparison import StandingsReader
from push.hub import Hub

STANDINGS_PATIENCE_S: Final = 0.5
"""How long somebody waits for the standings' answer, or for Kafka to bring what they show."""


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


class Abreast:
    """Brings periods abreast of the standings; one question serves all who ask at the same time."""

    def __init__(
        self, hub: Hub, standings: StandingsReader, *, patience_s: float = STANDINGS_PATIENCE_S
    ) -> None:
        self._hub, self._standings, self._patience_s = hub, standings, patience_s
        self._asking: dict[str, asyncio.Task[Position]] = {}
        self._next: dict[str, asyncio.Task[Position]] = {}

    async def reach(self, period: str) -> None:
        """Wait until the period shows what the standings show now, but not for long: if they or Kafka
        are away, what is shown is the best there is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience_s):
                # Shielded: the caller may go away, the others still wait for this one answer.
                position = await asyncio.shield(self._ask(period))
                await arrived(self._hub, period, position, self._patience_s)

    def _ask(self, period: str) -> asyncio.Task[Position]:
        """An answer to a question that is asked after this call; ("", 0): the standings have none."""
        waiting = self._next.get(period)
        if waiting is None:
            waiting = asyncio.create_task(self._ask_after(period, self._asking.get(period)))
            self._next[period] = waiting
        return waiting

    async def _ask_after(self, period: str, before: asyncio.Task[Position] | None) -> Position:
        if before is not None:
            await asyncio.wait([before])
        self._asking[period] = self._next.pop(period)
        try:
            page = await self._standings.page(period, limit=feed.TOP)
        except (Refused, Unavailable):
            return "", 0
        return page.epoch, page.revision
