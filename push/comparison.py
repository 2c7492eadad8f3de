"""What is shown against what the standings say, once a second: the newer is shown.

In good times Kafka is first and this changes nothing. When the standings are ahead, Kafka gets
a moment, since a publication says what changed and a page does not; then the page is shown. So
without Kafka the feed is at most two seconds old.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final, Protocol

from core import events, feed
from core.errors import Refused, Unavailable
from core.feed import View
from core.times import format_us
from push.hub import BOARD_REBUILDING, Hub
from service import logs
from storage.standings import Page, RankedEntry

GRACE_S: Final = 0.4
"""How long Kafka may be behind the standings before a page is shown instead."""

READ_TIMEOUT_S: Final = 5.0

_log = logs.get("push.comparison")


class StandingsReader(Protocol):
    """What is needed of `storage.standings.Standings`."""

    async def page(self, period: str, *, limit: int) -> Page: ...


class Comparison:
    """Keeps one period of the hub from falling behind the standings."""

    def __init__(
        self,
        hub: Hub,
        standings: StandingsReader,
        period: str,
        *,
        interval_s: float = 1.0,
        grace_s: float = GRACE_S,
    ) -> None:
        self._hub, self._standings, self._period = hub, standings, period
        self._interval_s, self._grace_s = interval_s, grace_s
        self._kafka_is_behind = False
        self._failing: str | None = None
        self._told = False
        self.loaded = asyncio.Event()
        """Set once the standings have answered for the first time."""

    def kafka_brought_news(self) -> None:
        """A publication was newer than what was shown."""
        self._kafka_is_behind = False

    async def run(self) -> None:
        """Compare until cancelled."""
        while True:
            began_s = time.monotonic()
            await self.compare()
            await asyncio.sleep(max(0.0, self._interval_s - (time.monotonic() - began_s)))

    async def compare(self) -> None:
        """Read the standings once and show them if they are newer."""
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                page = await self._standings.page(self._period, limit=feed.TOP)
        except (Refused, Unavailable, TimeoutError) as error:
            self._failed(error)
            return
        self._answered()
        position = page.epoch, page.revision
        sequence = self._hub.channels[self._period].sequence
        if self.loaded.is_set() and not self._kafka_is_behind and sequence.is_news(position):
            await asyncio.sleep(self._grace_s)
        if sequence.is_news(position):
            view = View.of_page(
                self._period,
                position,
                page.count,
                map(_entry, page.entries),
                before=sequence.latest,
                digest=page.digest,
            )
            self._hub.publish(view)
            if self.loaded.is_set() and not self._kafka_is_behind:
                self._kafka_is_behind = True
                _log.warning("publications_behind", period=self._period, revision=page.revision)
        self.loaded.set()

    def _failed(self, error: Refused | Unavailable | TimeoutError) -> None:
        # Refused: before the ledger is set up there is no such period yet.
        code = "timeout" if isinstance(error, TimeoutError) else error.code
        if code != self._failing:
            self._failing = code
            _log.warning("standings_unavailable", period=self._period, code=code, detail=str(error))
        if code == BOARD_REBUILDING and not self._told:
            self._told = True
            self._hub.tell_all(
                self._period,
                BOARD_REBUILDING,
                "the board is being rebuilt: what was shown last still holds",
            )

    def _answered(self) -> None:
        if self._failing is not None:
            self._failing = None
            _log.info("standings_available", period=self._period)
        if self._told:
            self._told = False
            self._hub.repeat(self._period)


def _entry(line: RankedEntry) -> events.RankedEntry:
    return events.RankedEntry(
        rank=line.rank,
        user_id=line.user_id,
        username=line.username,
        score=line.score,
        reached_at=format_us(line.reached_at_us),
    )
