"""Server-sent events of a board, as `curl -N` and a browser's EventSource read them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.push.conftest import RunFeed, Running
from tests.push.views import EPOCH, LATER_EPOCH, page, publication

PATH = "/v1/boards/main/stream"


@dataclass
class Events:
    """A stream being read: its head, and what arrives."""

    response: httpx.Response
    lines: AsyncIterator[str]

    async def next(self, timeout_s: float = 5.0) -> dict[str, str]:
        """The next event, or the next comment or `retry` as an event of that one field."""
        event: dict[str, str] = {}
        async with asyncio.timeout(timeout_s):
            async for line in self.lines:
                if not line and event:
                    return event
                name, _, value = line.partition(":")
                if line:
                    event[name] = value.removeprefix(" ")
        raise EOFError

    async def board(self) -> dict[str, Any]:
        while (event := await self.next()).get("event") != "board":
            pass
        data: dict[str, Any] = json.loads(event["data"])
        assert event["id"] == f"{data['epoch']}-{data['revision']}"
        return data


def _url(running: Running, path: str = PATH) -> str:
    return running.url.replace("ws://", "http://") + path


@asynccontextmanager
async def reading(running: Running, path: str = PATH, **headers: str) -> AsyncIterator[Events]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        async with client.stream("GET", _url(running, path), headers=named) as response:
            yield Events(response, response.aiter_lines())


async def test_a_stream_shows_the_board_and_then_every_change(run_feed: RunFeed) -> None:
    async with run_feed() as running, reading(running) as events:
        head = events.response
        retry = await events.next()
        first = await events.board()
        await running.publish(publication(2, user_id="ben"))
        second = await events.board()

    assert head.status_code == 200
    assert head.headers["content-type"] == "text/event-stream"
    assert head.headers["x-accel-buffering"] == "no"
    assert "no-store" in head.headers["cache-control"]
    assert 1_000 <= int(retry["retry"]) <= 5_000
    assert (first["revision"], "changed" in first) == (1, False)
    assert (second["revision"], second["previous"]) == (2, 1)
    assert [change["user_id"] for change in second["changed"]] == ["ben"]


async def test_the_last_event_id_brings_what_was_missed(run_feed: RunFeed) -> None:
    async with run_feed() as running:
        await running.publish(*(publication(revision) for revision in (2, 3, 4)))
        await running.until(lambda: running.feed.hub.channels["main:all-time"].sequence.version == 4)
        async with reading(running, Last_Event_ID=f"{EPOCH}-2") as events:
            missed = [await events.board(), await events.board()]
        async with reading(running, Last_Event_ID=f"{EPOCH}-4") as events:
            await running.publish(publication(5))
            up_to_date = await events.board()

    assert [(data["previous"], data["revision"]) for data in missed] == [(2, 3), (3, 4)]
    assert (up_to_date["previous"], up_to_date["revision"]) == (4, 5)


@pytest.mark.parametrize(
    "said", ["nonsense", f"{EPOCH}-0", "01kaj00000000000000000000z-3", f"{EPOCH}-", f"{26 * 'z'}-5"]
)
async def test_an_id_that_is_not_known_brings_the_board(run_feed: RunFeed, said: str) -> None:
    async with run_feed() as running, reading(running, Last_Event_ID=said) as events:
        shown = await events.board()

    assert (shown["revision"], "changed" in shown) == (1, False)


async def test_a_reader_ahead_of_this_replica_waits_for_it(run_feed: RunFeed) -> None:
    async with run_feed() as running, reading(running, Last_Event_ID=f"{EPOCH}-3") as events:
        await events.next()
        await running.publish(*(publication(revision) for revision in (2, 3, 4)))
        shown = await events.board()

    assert (shown["previous"], shown["revision"]) == (3, 4)


async def test_a_replica_that_stays_behind_ends_the_stream(run_feed: RunFeed) -> None:
    async with run_feed() as running, reading(running, Last_Event_ID=f"{LATER_EPOCH}-3") as events:
        await events.next()
        with pytest.raises(EOFError):
            await events.next(10)


async def test_what_the_standings_bring_is_a_snapshot(run_feed: RunFeed) -> None:
    async with run_feed() as running, reading(running) as events:
        await events.board()
        running.standings.page_now = page(9)
        shown = await events.board()

    assert (shown["revision"], shown["previous"], "changed" in shown) == (9, None, False)


async def test_a_quiet_stream_is_kept_alive_by_comments(run_feed: RunFeed) -> None:
    async with run_feed(ping_interval_s=0.1) as running, reading(running) as events:
        await events.board()
        comments = [await events.next(), await events.next()]

    assert comments == [{"": ""}, {"": ""}]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/boards/other/stream", 404, "not_found"),
        ("GET", f"{PATH}?window=last-24h", 404, "not_found"),
        ("GET", f"{PATH}?window=all-time&window=all-time", 404, "not_found"),
        ("POST", PATH, 405, "method_not_allowed"),
        ("GET", PATH + "?" + "&".join("a=1" for _ in range(17)), 400, "invalid_field"),
        ("HEAD", PATH, 405, None),
        ("OPTIONS", PATH, 405, "method_not_allowed"),
    ],
)
async def test_what_cannot_be_streamed_is_a_problem(
    run_feed: RunFeed, method: str, path: str, status: int, code: str | None
) -> None:
    async with run_feed() as running, httpx.AsyncClient(trust_env=False) as client:
        answer = await client.request(method, _url(running, path))

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    if code is not None:
        assert answer.json()["code"] == code
    if status == 405:
        assert answer.headers["allow"] == "GET, OPTIONS"


async def test_the_window_may_be_named(run_feed: RunFeed) -> None:
    async with run_feed() as running, reading(running, f"{PATH}?window=all-time") as events:
        assert (await events.board())["window"] == "all-time"


async def test_pages_of_allowed_origins_may_read_it_and_no_others(run_feed: RunFeed) -> None:
    page_at, other = "https://board.example", "https://other.example"
    async with run_feed(origins=(page_at,)) as running, httpx.AsyncClient(trust_env=False) as client:
        async with reading(running, Origin=page_at) as events:
            allowed = events.response.headers
        refused = await client.get(_url(running), headers={"Origin": other})
        asking = {"Origin": page_at, "Access-Control-Request-Method": "GET"}
        preflight = await client.options(_url(running), headers=asking)

    assert (allowed["access-control-allow-origin"], allowed["vary"]) == (page_at, "origin")
    assert refused.status_code == 403
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == page_at
    assert "authorization" in preflight.headers["access-control-allow-headers"]


async def test_without_a_list_pages_of_every_origin_may_read_a_public_board(run_feed: RunFeed) -> None:
    async with run_feed() as running, reading(running, Origin="https://other.example") as events:
        assert events.response.headers["access-control-allow-origin"] == "https://other.example"


async def test_a_stop_ends_every_stream(run_feed: RunFeed) -> None:
    async with run_feed() as running, reading(running) as events:
        await events.board()
        running.feed.stop()
        with pytest.raises(EOFError):
            await events.next()


async def test_a_reader_that_does_not_read_is_cut_and_the_others_miss_nothing(run_feed: RunFeed) -> None:
    async with run_feed(stall_limit_s=0.5) as running, reading(running) as events:
        await events.board()
        _, writer = await asyncio.open_connection("127.0.0.1", running.feed.port, limit=1024)
        writer.write(f"GET {PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        channel = running.feed.hub.channels["main:all-time"]
        await running.until(lambda: len(channel.readers) == 2)
        revision = 1
        while len(channel.readers) == 2:
            assert revision < 2_000, "the stalled reader was never cut"
            revision += 1
            await running.publish(publication(revision, padding="x" * 200_000))
            assert (await events.board())["revision"] == revision
        writer.close()

    assert revision > 2


async def test_a_stream_in_http_1_0_ends_with_its_connection(run_feed: RunFeed) -> None:
    async with run_feed() as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.feed.port)
        writer.write(f"GET {PATH} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        first = await asyncio.wait_for(reader.readuntil(b"\n\n"), 5)
        writer.close()

    assert b"chunked" not in head.lower()
    assert first.startswith(b"retry: ")
