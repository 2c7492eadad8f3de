"""A revoked token, from outside: refused at every door, and gone from every socket.

One stack of its own, so that Postgres can be stopped under it. The command is called as an operator
calls it; a user is another in each test.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from tests.acceptance.stacks import COMMAND, Stack, kill, replaced, run
from tests.acceptance.world import World, is_problem, until
from tests.push.official import in_python
from trueboard.endpoints import Endpoints

pytestmark = pytest.mark.services

CONTRACT_S = 60.0
"""Within so long a revoked token is good for nothing any more."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:  # type: ignore[override]
    """A stack with the broker in memory; shadows the session's."""
    stack = Stack(tmp_path_factory.mktemp("revoked") / "data", "memory")
    try:
        stack.start().close()
        yield stack
    finally:
        stack.end()


@pytest.fixture
def world(stack: Stack) -> Iterator[World]:
    world = World(Endpoints.read(stack.data), stack.data)
    yield world
    world.close()


def act(world: World, token: str) -> httpx.Response:
    return world.send("/v1/actions", {"action_id": secrets.token_hex(8), "type": "level_complete"}, token)


def refused(world: World, token: str) -> None:
    """Wait until the door refuses this token, which it did not before."""
    # Not by actions: a user may send few of them.
    until(
        lambda: world.send("/v1/ws-ticket", {}, token).status_code == 401, patience_s=CONTRACT_S, what="401"
    )
    response = act(world, token)
    assert is_problem(response, 401, "invalid_token")
    assert response.headers["www-authenticate"] == 'Bearer error="invalid_token"'


def revoke(world: World, *arguments: str) -> dict[str, Any]:
    code, said = run(world.data, "revoke", *arguments)
    assert code == 0, said
    return said


def feed(world: World) -> str:
    return world.endpoints.feed.replace("http", "ws", 1)


@contextmanager
def frozen(world: World) -> Iterator[None]:
    """Postgres answers nothing, as if its machine had stopped."""
    [postmaster] = Endpoints.read(world.data).processes["postgres"]
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    pids = [postmaster, *map(int, children)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


# At the door ------------------------------------------------------------------------------------


def test_a_revoked_token_is_refused_and_nobody_elses(world: World) -> None:
    ada, ben = world.user(), world.user()
    token, another, bens = world.token(ada), world.token(ada), world.token(ben)
    assert [act(world, each).status_code for each in (token, another, bens)] == [202, 202, 202]

    said = revoke(world, "--token", token, "--reason", "found in a log", "--by", "ops")

    refused(world, token)
    assert (said["user_id"], said["by"], said["reason"]) == (None, "ops", "found in a log")
    assert [act(world, each).status_code for each in (another, bens)] == [202, 202]
    assert is_problem(world.send("/v1/ws-ticket", {}, token), 401, "invalid_token")
    assert world.get("/api/leaderboard", token).status_code == 401
    s2 = world.send("/api/v1/scores/update", {"userId": ada, "scoreIncrement": 1, "authToken": token})
    assert (s2.status_code, s2.json()["message"]) == (401, "Invalid authentication token.")


def test_all_of_a_users_tokens_are_revoked_and_later_ones_are_good(world: World) -> None:
    ada, ben = world.user(), world.user()
    tokens, bens = [world.token(ada), world.token(ada)], world.token(ben)
    assert {act(world, each).status_code for each in (*tokens, bens)} == {202}

    revoke(world, "--user", ada)

    for token in tokens:
        refused(world, token)
    # The instants in tokens are whole seconds.
    time.sleep(1.1)
    assert act(world, world.token(ada)).status_code == 202
    assert act(world, bens).status_code == 202


def test_what_is_revoked_is_listed(world: World) -> None:
    user = world.user()
    said = revoke(world, "--user", user, "--reason", "stolen laptop")

    _, listed = run(world.data, "revoke", "--list")

    assert said in listed["revocations"]
    assert (said["user_id"], said["jti"], said["reason"]) == (user, None, "stolen laptop")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--jti"),
        (["--jti", "a", "--user", "b"], "one of"),
        (["--token", "not.a.token"], "no token"),
        (["--user", "no such name"], "user id"),
        (["--user", "ada", "--issued-before", "yesterday"], "RFC 3339"),
        (["--jti", "a", "--issued-before", "2026-01-01T00:00:00Z"], "--user"),
        (["--jti", "a", "--until", "2020-01-01T00:00:00Z"], "past"),
    ],
)
def test_what_cannot_be_revoked_is_said(world: World, arguments: list[str], says: str) -> None:
    done = subprocess.run(
        [*COMMAND, "revoke", *arguments, f"--data={world.data}"], capture_output=True, text=True, check=False
    )

    assert done.returncode != 0
    assert says in done.stderr
    assert "Traceback" not in done.stderr


# On sockets -------------------------------------------------------------------------------------


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def _ended(socket: ClientConnection) -> tuple[int, str, list[dict[str, Any]]]:
    """(close code, reason, what was said before)."""
    async with asyncio.timeout(CONTRACT_S):
        said = [json.loads(message) async for message in _until_closed(socket)]
    return socket.close_code or 0, socket.close_reason or "", said


async def _until_closed(socket: ClientConnection) -> AsyncIterator[str | bytes]:
    with contextlib.suppress(ConnectionClosed):
        while True:
            yield await socket.recv()


@asynccontextmanager
async def _centrifuge(world: World, token: str) -> AsyncIterator[ClientConnection]:
    async with connect(feed(world) + "/connection/websocket") as socket:
        await socket.send(json.dumps({"id": 1, "connect": {"token": token}}))
        assert "connect" in json.loads(await socket.recv())
        yield socket


async def test_sockets_of_a_revoked_token_are_closed_and_no_others(world: World) -> None:
    ada, ben = world.user(), world.user()
    token, another, bens = world.token(ada), world.token(ada), world.token(ben)
    url = feed(world) + "/ws/leaderboard"
    async with (
        connect(url, additional_headers=_bearer(token)) as s4,
        connect(url, additional_headers=_bearer(another)) as s4_another,
        connect(url, additional_headers=_bearer(bens)) as s4_bens,
        connect(feed(world) + "/ws/scores", additional_headers=_bearer(token)) as public,
        _centrifuge(world, token) as centrifuge,
        _centrifuge(world, bens) as centrifuge_bens,
        in_python(feed(world) + "/connection/websocket", f"user:{ada}", token=token) as official,
    ):
        await official.next("subscribed")
        await asyncio.to_thread(revoke, world, "--token", token)

        code, reason, said = await _ended(s4)
        assert (code, reason) == (4401, "token_revoked")
        assert (said[-1]["type"], said[-1]["data"]["code"]) == ("error", "token_revoked")
        assert (await _ended(centrifuge))[:2] == (3500, "invalid token")
        # From 3500 on a client stays away: it neither connects nor asks for another token.
        assert (await official.next("disconnected"))["code"] == 3500
        for untouched in (s4_another, s4_bens, public, centrifuge_bens):
            await asyncio.wait_for(await untouched.ping(), 20)

        with pytest.raises(InvalidStatus) as at_the_door:
            await connect(url, additional_headers=_bearer(token))
        assert at_the_door.value.response.status_code == 401
        async with connect(feed(world) + "/connection/websocket") as again:
            await again.send(json.dumps({"id": 1, "connect": {"token": token}}))
            assert (await _ended(again))[:2] == (3500, "invalid token")


async def test_a_ticket_of_a_revoked_token_opens_nothing_and_its_sockets_are_closed(world: World) -> None:
    token = world.token(world.user())

    def ticket() -> str:
        response = world.send("/v1/ws-ticket", {}, token)
        assert response.status_code == 201
        return f"ticket.{response.json()['ticket']}"

    def offered(name: str) -> list[Subprotocol]:
        return [Subprotocol("trueboard"), Subprotocol(name)]

    url = feed(world) + "/ws/leaderboard"
    async with connect(url, subprotocols=offered(ticket())) as by_ticket:
        await by_ticket.recv()
        kept = ticket()
        await asyncio.to_thread(revoke, world, "--token", token)
        assert (await _ended(by_ticket))[0] == 4401
    # Another socket of the same process was closed, so it knows; the ticket itself still lives.
    with pytest.raises(InvalidStatus) as refusal:
        await connect(url, subprotocols=offered(kept))
    assert refusal.value.response.status_code == 401


# When servers are away ---------------------------------------------------------------------------


def test_what_is_revoked_stays_so_while_postgres_is_away_and_after_a_start(world: World) -> None:
    ada, ben = world.user(), world.user()
    token, bens = world.token(ada), world.token(ben)
    assert act(world, token).status_code == 202
    revoke(world, "--token", token)
    refused(world, token)

    with frozen(world):
        assert act(world, token).status_code == 401
        assert act(world, bens).status_code == 202

    pid = kill(world, "ingest")
    replaced(world, "ingest", pid)
    world.again()
    assert act(world, token).status_code == 401
    assert act(world, bens).status_code == 202
