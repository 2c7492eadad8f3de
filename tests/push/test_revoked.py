"""Sockets and streams whose token is revoked while they are open, and tickets that stand for one."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from core.errors import Unavailable
from core.words import MAIN_BOARD
from push import boards
from push.close_codes import CloseCode
from push.protocols.leaderboard import DIALECT as LEADERBOARD
from tests.push.conftest import GOOD_TICKET, RunFeed, Running, ticket_of
from tests.push.test_streams import reading
from tests.push.views import publication, view
from tests.push.world import World

TICKET = [Subprotocol("trueboard"), Subprotocol(f"ticket.{GOOD_TICKET}")]
END_S = 20.0


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def _heard(socket: ClientConnection) -> list[dict[str, Any]]:
    """What is said until it is closed."""
    heard = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            heard.append(json.loads(await asyncio.wait_for(socket.recv(), END_S)))
    return heard


async def _connected(running: Running, token: str = "", **options: Any) -> ClientConnection:
    client = await connect(running.url + "/connection/websocket", **options)
    await client.send(json.dumps({"id": 1, "connect": {"token": token}}))
    assert "connect" in json.loads(await client.recv())
    return client


async def _is_open(socket: ClientConnection) -> bool:
    await asyncio.wait_for(await socket.ping(), END_S)
    return True


@pytest.mark.parametrize("by", ["token", "ticket"])
async def test_a_leaderboard_of_a_revoked_token_is_told_why_and_closed(run_feed: RunFeed, by: str) -> None:
    async with run_feed() as running:
        running.tickets[GOOD_TICKET] = ticket_of("ada")
        shown: dict[str, Any] = {"subprotocols": TICKET} if by == "ticket" else {}
        path = running.url + "/ws/leaderboard"
        adas = await connect(path, additional_headers={} if shown else _bearer("ada"), **shown)
        bens = await connect(path, additional_headers=_bearer("ben"))
        running.revoked.user("ada")
        heard = await _heard(adas)

        assert (adas.close_code, adas.close_reason) == (4401, "token_revoked")
        assert (heard[-1]["type"], heard[-1]["data"]["code"]) == ("error", "token_revoked")
        assert await _is_open(bens)
        await bens.close()


async def test_a_stream_of_a_revoked_token_ends(run_feed: RunFeed, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = replace(boards.BOARDS[MAIN_BOARD], public=False)
    monkeypatch.setattr(boards, "BOARDS", {MAIN_BOARD: closed})
    async with (
        run_feed() as running,
        reading(running, **_bearer("ada")) as adas,
        reading(running, **_bearer("ben")) as bens,
    ):
        for events in (adas, bens):
            await events.board()
        running.revoked.user("ada")
        with pytest.raises(EOFError):
            await adas.next(END_S)
        await running.publish(publication(2))

        assert (await bens.board())["revision"] == 2


async def test_what_shows_no_token_stays_open(run_feed: RunFeed) -> None:
    async with run_feed() as running:
        public = await connect(running.url + "/ws/scores", additional_headers=_bearer("ada"))
        nobody = await _connected(running)
        known = await _connected(running, "ada")
        async with reading(running, **_bearer("ada")) as events:
            await events.board()
            running.revoked.user("ada")
            await _heard(known)
            await running.publish(publication(2))

            assert (await events.board())["revision"] == 2
            assert await _is_open(public)
            assert await _is_open(nobody)
        await public.close()
        await nobody.close()


@pytest.mark.parametrize("by", ["command", "ticket in the command", "handshake"])
async def test_a_centrifuge_client_of_a_revoked_token_is_told_to_stay_away(
    run_feed: RunFeed, by: str
) -> None:
    async with run_feed() as running:
        running.tickets[GOOD_TICKET] = ticket_of("ada")
        token = {"command": "ada", "ticket in the command": f"ticket.{GOOD_TICKET}"}.get(by, "")
        options = {"additional_headers": _bearer("ada")} if by == "handshake" else {}
        adas, bens = await _connected(running, token, **options), await _connected(running, "ben")
        running.revoked.user("ada")
        await _heard(adas)

        assert (adas.close_code, adas.close_reason) == (3500, "invalid token")
        assert await _is_open(bens)
        await bens.close()
        # The user's seats are free again.
        await running.until(lambda: running.feed.admission.seat("ada"))


async def test_who_has_not_connected_yet_is_sent_away_too(run_feed: RunFeed) -> None:
    async with run_feed() as running:
        adas = await connect(running.url + "/connection/websocket", additional_headers=_bearer("ada"))
        running.revoked.user("ada")
        await _heard(adas)

    assert adas.close_code == 3500


async def test_who_is_revoked_while_being_let_in_does_not_stay(
    run_feed: RunFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the check at the door and the first moment at which the socket can be found."""
    async with run_feed() as running:
        admit = running.feed.admission.admit

        async def slowly(*args: Any) -> Any:
            admitted = await admit(*args)
            running.revoked.user("ada")
            await running.feed.revocations.refresh()
            return admitted

        monkeypatch.setattr(running.feed.admission, "admit", slowly)
        s4 = await connect(running.url + "/ws/leaderboard", additional_headers=_bearer("ada"))
        centrifuge = await connect(running.url + "/connection/websocket", additional_headers=_bearer("ada"))
        await _heard(s4)
        await _heard(centrifuge)

    assert (s4.close_code, centrifuge.close_code) == (4401, 3500)


async def _refusal(running: Running) -> int:
    with pytest.raises(InvalidStatus) as caught:
        await connect(running.url + "/ws/leaderboard", subprotocols=TICKET)
    return int(caught.value.response.status_code)


async def test_a_ticket_of_a_revoked_token_opens_nothing(run_feed: RunFeed) -> None:
    async with run_feed() as running:
        running.tickets[GOOD_TICKET] = ticket_of("ada")
        running.revoked.user("ada")
        await running.feed.revocations.refresh()

        assert await _refusal(running) == 401


@pytest.mark.parametrize("lacks", ["jti", "iat_s"])
async def test_a_ticket_that_does_not_say_which_token_it_stands_for_opens_nothing(
    run_feed: RunFeed, lacks: str
) -> None:
    async with run_feed() as running:
        running.tickets[GOOD_TICKET] = ticket_of("ada")
        del running.tickets[GOOD_TICKET][lacks]

        assert await _refusal(running) == 401


async def test_without_knowing_what_is_revoked_only_those_are_served_who_need_no_token(
    run_feed: RunFeed,
) -> None:
    async def away(running: Running) -> None:
        running.revoked.away = Unavailable("Postgres: away")

    async with run_feed(before=away) as running:
        running.tickets[GOOD_TICKET] = ticket_of("ada")
        refused = await _refusal(running)
        public = await connect(running.url + "/ws/scores")
        ready, shown = running.feed.ready()
        running.revoked.away = None
        await running.until(lambda: running.feed.revocations.known, timeout_s=END_S)
        running.tickets[GOOD_TICKET] = ticket_of("ada")
        taken = await connect(running.url + "/ws/leaderboard", subprotocols=TICKET)

        assert (refused, ready, shown["revocations"]) == (503, True, False)
        assert await _is_open(public)
        assert await _is_open(taken)
        assert running.feed.ready()[1]["revocations"] is True
        await public.close()
        await taken.close()


def test_a_reader_that_does_not_read_is_closed_without_waiting() -> None:
    world = World()
    world.hub.publish(view(1))
    stalled, reading_on = world.join(LEADERBOARD, room=1, expires_in_s=60), world.join(LEADERBOARD)
    assert stalled.reader is not None

    world.hub.revoke(stalled.reader)
    world.hub.revoke(stalled.reader)

    assert stalled.closed is CloseCode.BAD_TOKEN
    assert reading_on.closed is None
