"""Official clients that were away: asleep, or sent to another replica when they come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from core.words import MAIN_PERIOD
from push.sequencing import LINKS_MOST
from tests.faults.proxy import Link
from tests.push.conftest import RunFeed
from tests.push.official import BOARD, FOLLOW, PATH, Events, Follow
from tests.push.views import publication
from trueboard.devstack.ports import free_port

ASLEEP_S = 30.0


class Board:
    """The board of one who follows, from what it was told."""

    def __init__(self, name: str, events: Events) -> None:
        self.name, self.events = name, events
        self.revision = self.returns = self.snapshots = 0
        self.top: list[dict[str, Any]] = []

    async def until(self, revision: int) -> None:
        """Take what comes until this revision is shown; each publication leads on from the one before."""
        async with asyncio.timeout(20):
            while self.revision < revision:
                event = await self.events.queue.get()
                if event["is"] == "subscribed":
                    self.returns += 1
                    assert event["recovered"] == (event["data"] is None), self.name
                    if event["data"] is not None:
                        self._show(event["data"])
                        self.snapshots += 1
                elif event["is"] == "publication":
                    assert event["data"]["previous"] == self.revision, self.name
                    self._show(event["data"])
                else:
                    assert event["is"] in ("connected", "connecting"), (self.name, event)

    def _show(self, data: dict[str, Any]) -> None:
        assert data["revision"] >= self.revision, self.name
        self.revision, self.top = data["revision"], data["top"]


@asynccontextmanager
async def both(url: str) -> AsyncIterator[list[Board]]:
    async with AsyncExitStack() as held:
        yield [
            Board(name, await held.enter_async_context(follow(url, BOARD))) for name, follow in FOLLOW.items()
        ]


async def _all_show(boards: list[Board], revision: int) -> None:
    await asyncio.gather(*(board.until(revision) for board in boards))
    for board in boards:
        assert [(line["user_id"], line["score"]) for line in board.top] == [("ada", revision)], board.name


@pytest.mark.timeout(120)
async def test_who_slept_for_30_s_misses_nothing_inside_the_window(run_feed: RunFeed) -> None:
    async with run_feed() as running, both(running.url + PATH) as boards:
        await _all_show(boards, 1)
        for board in boards:
            board.events.sleep()
        for revision in range(2, 152):
            await running.publish(publication(revision))
            await asyncio.sleep(ASLEEP_S / 150)
        for board in boards:
            board.events.wake()
        await _all_show(boards, 151)

    assert [board.snapshots for board in boards] == [1, 1]


@pytest.mark.timeout(120)
async def test_who_slept_for_30_s_gets_the_board_beyond_the_window(run_feed: RunFeed) -> None:
    last = LINKS_MOST + 50
    async with run_feed(ping_interval_s=5) as running, both(running.url + PATH) as boards:
        await _all_show(boards, 1)
        for board in boards:
            board.events.sleep()
        asleep = asyncio.create_task(asyncio.sleep(ASLEEP_S))
        await running.until(lambda: not running.feed.hub.channels[MAIN_PERIOD].readers)
        await running.publish(*(publication(revision) for revision in range(2, last + 1)))
        await asleep
        for board in boards:
            board.events.wake()
        await _all_show(boards, last)

    assert [(board.snapshots, board.returns) for board in boards] == [(2, 2), (2, 2)]


@pytest.mark.parametrize("follow", FOLLOW.values(), ids=FOLLOW)
async def test_any_replica_goes_on_where_another_was(run_feed: RunFeed, follow: Follow) -> None:
    async with run_feed() as one, run_feed() as other:
        link = Link("client-push", free_port(), ("127.0.0.1", one.feed.port))
        await link.listen()
        try:
            async with follow(f"ws://127.0.0.1:{link.port}{PATH}", BOARD) as events:
                board = Board("", events)
                for revision in range(2, 12):
                    await one.publish(publication(revision))
                    if revision % 3 == 0:
                        there = other if link.upstream[1] == one.feed.port else one
                        link.upstream = ("127.0.0.1", there.feed.port)
                        link.reset()
                    await board.until(revision)
        finally:
            await link.close()

    assert (board.snapshots, board.returns) == (1, 4)
