"""The feed with the official clients as they are: what they promise their users holds here too."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from tests.push.conftest import RunFeed, Running
from tests.push.official import BOARD, FOLLOW, PATH, Follow
from tests.push.views import EPOCH, LATER_EPOCH, page, publication

pytestmark = pytest.mark.parametrize("follow", FOLLOW.values(), ids=FOLLOW)


def _url(running: Running) -> str:
    return running.url + PATH


def _cut(running: Running) -> None:
    """What a network does that goes away."""
    for connection in list(running.feed.connections):
        connection.transport.abort()


def _shown(event: dict[str, Any]) -> tuple[int, int]:
    return event["data"]["previous"], event["data"]["revision"]


async def test_a_board_and_its_publications(run_feed: RunFeed, follow: Follow) -> None:
    async with run_feed() as running, follow(_url(running), BOARD) as events:
        subscribed = await events.next("subscribed")
        await running.publish(publication(2, user_id="ben"))
        pub = await events.next("publication")

    assert subscribed["at"] == [EPOCH, 1]
    assert subscribed["data"]["top"][0]["user_id"] == "ada"
    assert (pub["offset"], _shown(pub)) == (2, (1, 2))


async def test_a_cut_connection_misses_nothing(run_feed: RunFeed, follow: Follow) -> None:
    rng = random.Random(7)
    seen: list[int] = [1]
    async with run_feed() as running, follow(_url(running), BOARD) as events:
        await events.next("subscribed")
        revision = 1
        for _ in range(5):
            _cut(running)
            for _ in range(rng.randint(1, 5)):
                revision += 1
                await running.publish(publication(revision))
            again = await events.next("subscribed")
            assert again["wasRecovering"]
            assert again["recovered"]
            while seen[-1] < revision:
                previous, shown = _shown(await events.next("publication"))
                assert previous == seen[-1], "a link is missing"
                seen.append(shown)

    assert seen[-1] == revision


async def test_a_client_that_lost_its_history_is_told_and_gets_the_board(
    run_feed: RunFeed, follow: Follow
) -> None:
    async with run_feed() as running, follow(_url(running), BOARD) as events:
        await events.next("subscribed")
        _cut(running)
        running.standings.page_now = page(1, epoch=LATER_EPOCH)
        await running.until(lambda: running.feed.hub.channels["main:all-time"].sequence.version == 2)
        again = await events.next("subscribed")
        while again["recovered"]:
            # It was back before the new history was here.
            _cut(running)
            again = await events.next("subscribed")

    assert again["at"] == [LATER_EPOCH, 1]
    assert again["data"]["epoch"] == LATER_EPOCH


async def test_deltas_give_what_was_published(run_feed: RunFeed, follow: Follow) -> None:
    names = ["Zoë Ångström", "日本語の名前", "🙂🙃", "plain", '"quoted"\n\\']
    async with run_feed() as running, follow(_url(running), BOARD, delta=True) as events:
        await events.next("subscribed")
        for revision in range(2, 30):
            said = publication(revision, user_id="ada", padding=names[revision % 5] * (revision % 4))
            await running.publish(said)
            pub = await events.next("publication")
            assert pub["data"]["top"][0]["username"] == said.top[0].username
            if revision == 15:
                _cut(running)
                await events.next("subscribed")

    assert pub["offset"] == 29


async def test_a_token_that_runs_out_is_renewed(run_feed: RunFeed, follow: Follow) -> None:
    async with run_feed() as running:
        later = "ada;;60"
        async with follow(_url(running), "user:ada", token="ada;;1", tokens=[later]) as events:
            await events.next("subscribed")
            await running.until(lambda: later in running.brought, timeout_s=20)
            running.ledger.judge("ada", "a-1", revision=2)
            told = await events.next("publication")

    assert told["data"]["receipt"]["action_id"] == "a-1"


async def test_pings_are_answered_and_heard(run_feed: RunFeed, follow: Follow) -> None:
    async with run_feed(ping_interval_s=0.4) as running, follow(_url(running), BOARD) as events:
        await events.next("subscribed")
        await asyncio.sleep(3)
        await running.publish(publication(2))
        await events.next("publication")

        assert len(running.feed.connections) == 1


async def test_a_stop_sends_clients_elsewhere(run_feed: RunFeed, follow: Follow) -> None:
    async with run_feed() as running, follow(_url(running), BOARD) as events:
        await events.next("subscribed")
        running.feed.stop()
        told = await events.next("connecting")

    assert told["code"] == 3001


async def test_a_bad_token_is_final(run_feed: RunFeed, follow: Follow) -> None:
    async with run_feed() as running, follow(_url(running), BOARD, token="-") as events:
        ended = await events.next("disconnected")

    assert ended["code"] == 3500


async def test_what_is_not_ones_own_cannot_be_followed(run_feed: RunFeed, follow: Follow) -> None:
    async with run_feed() as running, follow(_url(running), "user:ben", token="ada") as events:
        ended = await events.next("unsubscribed")

    assert ended["code"] == 103
