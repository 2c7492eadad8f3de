"""The feed as a process beside real servers: a fresh ledger, a signed token, a ticket, a restart."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis.asyncio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from core import scopes
from core.topics import BOARD_CHANGED
from service import keys
from storage.postgres import definitions
from storage.redis import tickets
from trueboard.devstack.kafka.memory import MockCluster
from trueboard.devstack.ports import free_port

pytestmark = pytest.mark.services

KEYS = "keys"


class Process:
    """A running feed and where to find it."""

    def __init__(self, data: Path, env: dict[str, str]) -> None:
        self.data = data
        self.port, self.metrics_port = free_port(), free_port()
        env |= {"TRUEBOARD_FEED_PORT": str(self.port), "TRUEBOARD_METRICS_PORT": str(self.metrics_port)}
        self.running = subprocess.Popen([sys.executable, "-m", "push"], env=env)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def token(self, *, ttl_s: int = 60, scope: str = scopes.BOARDS_READ) -> str:
        return keys.issue(
            self.data / KEYS,
            user="ada",
            name="Ada",
            scopes=[scope],
            ttl_s=ttl_s,
            issuer="trueboard",
            audience="trueboard",
        )

    async def until_ready(self) -> None:
        deadline_s = time.monotonic() + 20
        async with httpx.AsyncClient(trust_env=False) as client:
            while time.monotonic() < deadline_s:
                try:
                    if (await client.get(f"http://127.0.0.1:{self.metrics_port}/health/ready")).is_success:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.05)
        raise AssertionError("it did not become ready")


@pytest.fixture
def start(
    database: str, redis_db_url: str, memory_kafka: MockCluster, tmp_path: Path
) -> Iterator[Callable[[], Process]]:
    """Starts a feed on a fresh ledger; it is ended with the test."""
    definitions.apply(database, (resources.files("core") / "catalogue.toml").read_bytes())
    memory_kafka.make_topic(BOARD_CHANGED.name, 3)
    keys.ensure(tmp_path / KEYS)
    env = {
        "PATH": "",
        "TRUEBOARD_DATA": str(tmp_path),
        "TRUEBOARD_KAFKA": memory_kafka.bootstrap,
        "TRUEBOARD_KAFKA_KIND": "memory",
        "TRUEBOARD_REDIS_URL": redis_db_url,
        "TRUEBOARD_POSTGRES_URL": database,
        "TRUEBOARD_JWKS": str(tmp_path / KEYS / keys.JWKS_FILE),
    }
    started: list[Process] = []

    def begin() -> Process:
        started.append(Process(tmp_path, dict(env)))
        return started[-1]

    yield begin
    for process in started:
        if process.running.poll() is None:
            process.running.kill()
        process.running.wait()


async def _next(reader: ClientConnection) -> dict[str, Any]:
    frame: dict[str, Any] = json.loads(await asyncio.wait_for(reader.recv(), 5))
    return frame


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_a_fresh_ledger_is_shown_as_an_empty_board(start: Callable[[], Process]) -> None:
    feed = start()
    await feed.until_ready()

    async with connect(feed.url + "/ws/scores") as reader:
        frame = await _next(reader)

    assert frame["topScores"] == []
    assert frame["revision"] >= 1
    assert len(frame["epoch"]) == 26


async def test_a_signed_token_opens_the_leaderboard_and_no_other(start: Callable[[], Process]) -> None:
    feed = start()
    await feed.until_ready()
    good = feed.token()
    header, payload, signature = good.split(".")
    forged = f"{header}.{payload}.{signature[:-6]}AAAAAA"

    async with connect(feed.url + "/ws/leaderboard", additional_headers=_bearer(good)) as reader:
        welcome, board = await _next(reader), await _next(reader)
    statuses = []
    for token in (forged, feed.token(ttl_s=-60), feed.token(scope=scopes.ACTIONS_WRITE)):
        with pytest.raises(InvalidStatus) as caught:
            await connect(feed.url + "/ws/leaderboard", additional_headers=_bearer(token))
        statuses.append(caught.value.response.status_code)

    assert (welcome["type"], welcome["data"]) == ("connection_success", {"userId": "ada"})
    assert board["data"] == {"leaderboard": []}
    assert statuses == [401, 401, 403]


async def test_a_ticket_from_redis_opens_the_leaderboard_once(
    start: Callable[[], Process], redis_db_url: str
) -> None:
    feed = start()
    await feed.until_ready()
    async with redis.asyncio.Redis.from_url(redis_db_url) as client:
        now_s = int(time.time())
        claims = {
            "sub": "ben",
            "scopes": [scopes.BOARDS_READ],
            "exp_s": now_s + 60,
            "jti": "j",
            "iat_s": now_s,
        }
        ticket = await tickets.issue(client, claims)
    offered = [Subprotocol("trueboard"), Subprotocol(f"ticket.{ticket}")]

    async with connect(feed.url + "/ws/leaderboard", subprotocols=offered) as reader:
        answered, welcome = reader.subprotocol, await _next(reader)
    with pytest.raises(InvalidStatus) as caught:
        await connect(feed.url + "/ws/leaderboard", subprotocols=offered)

    assert (answered, welcome["data"]) == ("trueboard", {"userId": "ben"})
    assert caught.value.response.status_code == 401


async def test_a_restart_is_told_to_who_watches(start: Callable[[], Process]) -> None:
    feed = start()
    await feed.until_ready()
    reader = await connect(feed.url + "/ws/scores")
    await _next(reader)

    feed.running.send_signal(signal.SIGTERM)
    with pytest.raises(ConnectionClosed) as closed:
        await _next(reader)
    code = await asyncio.to_thread(feed.running.wait, 3)

    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, code) == (1012, 0)
