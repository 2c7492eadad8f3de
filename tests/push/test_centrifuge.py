"""The Centrifuge client protocol, command by command, as a client writes and reads it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from core.errors import Unavailable
from push import conversation
from tests.push.conftest import GOOD_TICKET, RunFeed, Running, ticket_of
from tests.push.views import EPOCH, LATER_EPOCH, page, publication

PATH = "/connection/websocket"
Message = dict[str, Any]


class Client:
    """Says commands, hears replies and pushes; answers pings."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self._ids = itertools.count(1)
        self._heard: list[Message] = []
        self.pings = 0

    async def say(self, *commands: Message) -> list[int]:
        numbered = [{"id": next(self._ids)} | command for command in commands]
        await self.socket.send("\n".join(json.dumps(command) for command in numbered))
        return [command["id"] for command in numbered]

    async def ask(self, **command: Any) -> Message:
        """Say one command; its reply. Pushes heard meanwhile are kept for `push`."""
        (id_,) = await self.say(command)
        kept = []
        while (message := await self.next()).get("id") != id_:
            kept.append(message)
        self._heard = kept + self._heard
        return message

    async def next(self, timeout_s: float = 5.0) -> Message:
        while True:
            if self._heard:
                return self._heard.pop(0)
            for line in str(await asyncio.wait_for(self.socket.recv(), timeout_s)).splitlines():
                if message := json.loads(line):
                    self._heard.append(message)
                else:
                    self.pings += 1
                    await self.socket.send("{}")

    async def push(self, kind: str = "pub") -> Message:
        message = await self.next()
        assert kind in message["push"], message
        return {"channel": message["push"]["channel"]} | message["push"][kind]

    async def close_code(self) -> tuple[int, str]:
        while True:
            try:
                await self.next(20)
            except ConnectionClosed as closed:
                return (0, "") if closed.rcvd is None else (closed.rcvd.code, closed.rcvd.reason)


@asynccontextmanager
async def opened(running: Running, **options: Any) -> AsyncIterator[Client]:
    async with connect(running.url + PATH, **options) as socket:
        yield Client(socket)


@asynccontextmanager
async def connected(running: Running, token: str = "", **options: Any) -> AsyncIterator[Client]:
    async with opened(running, **options) as client:
        reply = await client.ask(connect={"token": token} if token else {})
        assert reply["connect"]["client"]
        yield client


# connecting


async def test_a_connection_is_told_its_id_and_that_it_will_be_pinged(run_feed: RunFeed) -> None:
    async with run_feed() as running, opened(running) as client:
        reply = await client.ask(connect={"name": "js", "version": "5", "headers": {"a": "b"}})

    assert reply["id"] == 1
    assert reply["connect"] | {"client": ""} == {"client": "", "ping": 20, "pong": True}


@pytest.mark.parametrize(
    "by", ["token", "ticket in the command", "ticket in the handshake", "token in the handshake"]
)
async def test_a_user_is_known_by_token_or_ticket(run_feed: RunFeed, by: str) -> None:
    async with run_feed() as running:
        granted = ticket_of("ada")
        running.tickets[GOOD_TICKET] = granted
        options: dict[str, Any] = {}
        token = {"token": "ada;;60", "ticket in the command": f"ticket.{GOOD_TICKET}"}.get(by, "")
        if by == "ticket in the handshake":
            options["subprotocols"] = [Subprotocol("trueboard"), Subprotocol(f"ticket.{GOOD_TICKET}")]
        elif by == "token in the handshake":
            options["additional_headers"] = {"Authorization": "Bearer ada;;60"}
        async with opened(running, **options) as client:
            reply = await client.ask(connect={"token": token})
            own = await client.ask(subscribe={"channel": "user:ada"})

    assert reply["connect"]["expires"] is True
    assert reply["connect"]["ttl"] > 50
    assert "subscribe" in own


async def test_a_bad_token_is_final_and_an_expired_one_asks_for_another(run_feed: RunFeed) -> None:
    async with run_feed() as running:
        async with opened(running) as client:
            await client.say({"connect": {"token": "-"}})
            bad = await client.close_code()
        async with opened(running) as client:
            expired = await client.ask(connect={"token": "expired"})
            renewed = await client.ask(connect={"token": "ada"})

    assert bad == (3500, "invalid token")
    assert expired["error"] == {"code": 109, "message": "token expired"}
    assert renewed["connect"]["client"]


@pytest.mark.parametrize(
    "said",
    [
        "nonsense",
        "[]",
        "",
        b"\x00",
        '{"id": 1, "subscribe": {"channel": "board:main"}}',
        '{"connect": {}}',
        '{"id": 1, "connect": {}}\n{"id": 2, "connect": {}}',
        '{"id": 1, "connect": {}}\n{"id": 2}',
        '{"id": 1, "connect": {}}\n{"id": 2, "subscribe": {}}',
        '{"id": 1, "connect": {}}\n{"id": 2, "subscribe": {"channel": "board:main", "delta": "xor"}}',
        '{"id": 1, "connect": {}}\n{"id": 2, "refresh": {"token": "ada"}}',
    ],
    ids=repr,
)
async def test_what_is_not_the_protocol_ends_the_connection(run_feed: RunFeed, said: str | bytes) -> None:
    async with run_feed() as running, opened(running) as client:
        await client.socket.send(said)

        assert await client.close_code() == (3501, "bad request")


async def test_what_is_not_served_is_answered_with_the_protocols_error(run_feed: RunFeed) -> None:
    of_channel = {"channel": "board:main"}
    async with run_feed() as running, connected(running) as client:
        answers = [
            await client.ask(**command)
            for command in (
                {"publish": of_channel | {"data": {}}},
                {"presence": of_channel},
                {"presence_stats": of_channel},
                {"history": of_channel | {"limit": 10}},
                {"rpc": {"method": "x", "data": {}}},
                {"sub_refresh": of_channel | {"token": "x"}},
            )
        ]
        pinged = await client.ask(ping={})
        await client.socket.send('{"send": {"data": 1}}')
        code = await client.close_code()

    assert [answer["error"]["code"] for answer in answers] == [108] * 6
    assert pinged["ping"] == {}
    assert code == (3508, "not available")


# boards


@pytest.mark.parametrize("channel", ["board:main", "board:main:all-time"])
async def test_a_board_is_shown_and_then_every_change(run_feed: RunFeed, channel: str) -> None:
    async with run_feed() as running, connected(running) as client:
        subscribed = (await client.ask(subscribe={"channel": channel}))["subscribe"]
        await running.publish(publication(2, user_id="ben"))
        pub = await client.push()

    assert subscribed["data"]["top"][0]["user_id"] == "ada"
    assert "changed" not in subscribed["data"]
    assert (subscribed["epoch"], subscribed["offset"]) == (EPOCH, 1)
    assert subscribed["recoverable"]
    assert subscribed["positioned"]
    assert not subscribed["recovered"]
    assert not subscribed["was_recovering"]
    assert pub["channel"] == channel
    assert pub["offset"] == pub["data"]["revision"] == 2
    assert pub["data"]["previous"] == 1
    assert [change["user_id"] for change in pub["data"]["changed"]] == ["ben"]
    assert pub["data"]["changed_count"] == 1


@pytest.mark.parametrize(
    ("channel", "code"),
    [
        ("board:other", 102),
        ("board:main:last-24h", 102),
        ("board:main:", 102),
        ("news", 102),
        ("user:ben", 103),
        ("user:", 103),
    ],
)
async def test_a_channel_that_is_not_there_or_not_ones_own_is_refused(
    run_feed: RunFeed, channel: str, code: int
) -> None:
    async with run_feed() as running, connected(running, "ada") as client:
        reply = await client.ask(subscribe={"channel": channel})

    assert reply["error"]["code"] == code


async def test_a_channel_is_followed_once_and_left_by_unsubscribing(run_feed: RunFeed) -> None:
    async with run_feed() as running, connected(running) as client:
        await client.ask(subscribe={"channel": "board:main"})
        twice = await client.ask(subscribe={"channel": "board:main"})
        left = await client.ask(unsubscribe={"channel": "board:main"})
        await running.publish(publication(2))
        await running.until(lambda: running.feed.hub.channels["main:all-time"].sequence.version == 2)
        again = await client.ask(subscribe={"channel": "board:main"})

    assert twice["error"]["code"] == 105
    assert left["unsubscribe"] == {}
    assert again["subscribe"]["offset"] == 2


# coming back


async def _three_later(running: Running) -> None:
    await running.publish(*(publication(revision) for revision in (2, 3, 4)))
    await running.until(lambda: running.feed.hub.channels["main:all-time"].sequence.version == 4)


async def test_a_client_is_brought_forward_publication_by_publication(run_feed: RunFeed) -> None:
    async with run_feed() as running, connected(running) as client:
        await _three_later(running)
        since = {"recover": True, "epoch": EPOCH, "offset": 2}
        subscribed = (await client.ask(subscribe={"channel": "board:main"} | since))["subscribe"]

    assert subscribed["recovered"]
    assert subscribed["was_recovering"]
    assert "data" not in subscribed
    assert [pub["offset"] for pub in subscribed["publications"]] == [3, 4]
    assert [pub["data"]["previous"] for pub in subscribed["publications"]] == [2, 3]


@pytest.mark.parametrize(
    ("epoch", "offset"),
    [("01kaj00000000000000000000z", 3), ("_", 0), ("", 0), (EPOCH, 0), (26 * "z", 5)],
    ids=str,
)
async def test_a_client_whose_position_is_not_known_gets_the_board(
    run_feed: RunFeed, epoch: str, offset: int
) -> None:
    async with run_feed() as running, connected(running) as client:
        await _three_later(running)
        since = {"recover": True, "epoch": epoch, "offset": offset}
        subscribed = (await client.ask(subscribe={"channel": "board:main"} | since))["subscribe"]

    assert (subscribed["was_recovering"], subscribed["recovered"]) == (True, False)
    assert subscribed["data"]["revision"] == subscribed["offset"] == 4
    assert "publications" not in subscribed


async def test_a_client_with_nothing_missed_is_recovered_with_nothing(run_feed: RunFeed) -> None:
    async with run_feed() as running, connected(running) as client:
        since = {"recover": True, "epoch": EPOCH, "offset": 1}
        subscribed = (await client.ask(subscribe={"channel": "board:main"} | since))["subscribe"]

    assert subscribed["recovered"]
    assert "publications" not in subscribed
    assert "data" not in subscribed


async def test_a_replica_that_is_behind_its_client_catches_up_first(run_feed: RunFeed) -> None:
    async with run_feed() as running, connected(running) as client:
        since = {"recover": True, "epoch": EPOCH, "offset": 3}
        await client.say({"subscribe": {"channel": "board:main"} | since})
        await asyncio.sleep(0.2)
        await _three_later(running)
        subscribed = (await client.next())["subscribe"]
        # The last of the three may also come after the reply that the one before it made possible.
        later = subscribed.get("publications") or [await client.push()]

    assert subscribed["recovered"]
    assert [pub["offset"] for pub in later] == [4]


async def test_a_replica_that_stays_behind_asks_the_client_to_come_again(run_feed: RunFeed) -> None:
    async with run_feed() as running, connected(running) as client:
        since = {"recover": True, "epoch": LATER_EPOCH, "offset": 3}
        reply = await client.ask(subscribe={"channel": "board:main"} | since)

    assert reply["error"]["temporary"] is True


async def test_of_many_missed_publications_one_is_sent_that_covers_them_all(run_feed: RunFeed) -> None:
    async with run_feed() as running, connected(running) as client:
        await running.publish(*(publication(n, user_id=f"u{n % 3}") for n in range(2, 60)))
        await running.until(lambda: running.feed.hub.channels["main:all-time"].sequence.version == 59)
        since = {"recover": True, "epoch": EPOCH, "offset": 2}
        subscribed = (await client.ask(subscribe={"channel": "board:main"} | since))["subscribe"]

    (pub,) = subscribed["publications"]
    assert subscribed["recovered"]
    assert (pub["offset"], pub["data"]["previous"]) == (59, 2)
    assert {change["user_id"]: change["score"] for change in pub["data"]["changed"]} == {
        "u0": 57,
        "u1": 58,
        "u2": 59,
    }


async def test_what_the_standings_bring_is_shown_as_a_snapshot(run_feed: RunFeed) -> None:
    async with run_feed() as running, connected(running) as client:
        await client.ask(subscribe={"channel": "board:main"})
        running.standings.page_now = page(9)
        pub = await client.push()

    assert pub["offset"] == pub["data"]["revision"] == 9
    assert pub["data"]["previous"] is None
    assert "changed" not in pub["data"]


# own verdicts


async def test_a_user_is_told_of_own_verdicts_alone(run_feed: RunFeed) -> None:
    async with run_feed() as running, connected(running, "ada") as client:
        subscribed = (await client.ask(subscribe={"channel": "user:ada"}))["subscribe"]
        running.ledger.judge("ben", "b-1", revision=2)
        running.ledger.judge("ada", "a-1", revision=3)
        running.ledger.judge("ada", "a-2", revision=3, status="held")
        first, second = await client.push(), await client.push()

    assert (subscribed["epoch"], subscribed["offset"]) == (EPOCH, 1)
    assert first["data"]["receipt"]["action_id"] == "a-1"
    assert first["data"]["receipt"] | {"status": "", "action_id": ""} == {
        "action_id": "",
        "user_id": "ada",
        "type": "level_complete",
        "received_at": "2026-11-21T12:00:00.000000Z",
        "fingerprint": "00",
        "status": "",
        "replayed": False,
        "points": 10,
        "reason": None,
        "judged_revision": 3,
        "epoch": EPOCH,
        "revision": 3,
        "score": 70,
        "rank": 3,
    }
    assert (second["data"]["receipt"]["status"], second["offset"]) == ("held", 3)
    assert "offset" not in first, "a break between the two must not lose the second"


async def test_verdicts_missed_are_told_to_who_comes_back(run_feed: RunFeed) -> None:
    async with run_feed() as running, connected(running, "ada") as client:
        for revision in (2, 3, 4):
            running.ledger.judge("ada", f"a-{revision}", revision=revision)
        since = {"recover": True, "epoch": EPOCH, "offset": 2}
        subscribed = (await client.ask(subscribe={"channel": "user:ada"} | since))["subscribe"]
        told = [await client.push(), await client.push()]

    assert subscribed["recovered"]
    assert [pub["data"]["receipt"]["action_id"] for pub in told] == ["a-3", "a-4"]


async def test_a_new_epoch_makes_a_listener_begin_anew(run_feed: RunFeed) -> None:
    async with run_feed() as running, connected(running, "ada") as client:
        await client.ask(subscribe={"channel": "user:ada"})
        running.ledger.epoch = LATER_EPOCH
        told = await client.push("unsubscribe")
        since = {"recover": True, "epoch": EPOCH, "offset": 1}
        again = (await client.ask(subscribe={"channel": "user:ada"} | since))["subscribe"]

    assert told["code"] >= 2500, "so that a client subscribes again by itself"
    assert (again["recovered"], again["epoch"]) == (False, LATER_EPOCH)


# limits, silence and slowness


async def test_a_fresh_replica_brings_forward_who_comes_from_another(run_feed: RunFeed) -> None:
    async def earlier(running: Running) -> None:
        await running.publish(*(publication(revision) for revision in range(1, 6)))
        running.standings.page_now = page(5)

    async with run_feed(before=earlier) as running, connected(running) as client:
        since = {"recover": True, "epoch": EPOCH, "offset": 2}
        subscribed = (await client.ask(subscribe={"channel": "board:main"} | since))["subscribe"]

    assert subscribed["recovered"]
    assert [pub["offset"] for pub in subscribed["publications"]] == [3, 4, 5]


async def test_a_user_has_so_many_sockets_and_no_more(run_feed: RunFeed) -> None:
    async with run_feed(max_sockets_per_user=1) as running:
        async with connected(running, "ada"), connected(running, "ben"), opened(running) as third:
            await third.say({"connect": {"token": "ada"}})
            code = await third.close_code()
        await running.until(lambda: not running.feed.connections)
        async with connected(running, "ada") as again:
            assert again

    assert code == (3429, "connection limit")


async def test_a_full_process_takes_no_more_sockets(run_feed: RunFeed) -> None:
    async with run_feed(max_sockets=1) as running, connected(running):
        with pytest.raises(InvalidStatus) as refused:
            await connect(running.url + PATH)

    assert refused.value.response.status_code == 503
    assert refused.value.response.headers["Retry-After"] == "5"


async def test_so_many_channels_and_no_more(run_feed: RunFeed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "MOST_CHANNELS", 1)
    async with run_feed() as running, connected(running, "ada") as client:
        await client.ask(subscribe={"channel": "board:main"})
        reply = await client.ask(subscribe={"channel": "user:ada"})

    assert reply["error"]["code"] == 106


async def test_who_says_too_much_is_closed(run_feed: RunFeed) -> None:
    async with run_feed() as running, connected(running) as client:
        await client.say(*({"ping": {}} for _ in range(conversation.COMMANDS_MOST)))

        assert await client.close_code() == (3013, "too many requests")


async def test_who_does_not_answer_pings_is_closed(run_feed: RunFeed) -> None:
    async with run_feed(ping_interval_s=0.3) as running, opened(running) as client:
        await client.ask(connect={})
        heard = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                heard.append(await asyncio.wait_for(client.socket.recv(), 20))

    assert heard == ["{}"]
    assert client.socket.close_code == 3012


async def test_who_never_connects_is_closed(run_feed: RunFeed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "CONNECT_WITHIN_S", 0.3)
    async with run_feed() as running, opened(running) as client:
        assert (await client.close_code())[0] == 3012


async def test_a_token_that_is_not_renewed_ends_the_connection(
    run_feed: RunFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "REFRESH_WITHIN_S", 0.3)
    async with run_feed() as running, connected(running, "ada;;1") as client:
        assert await client.close_code() == (3005, "connection expired")


async def test_a_token_is_renewed_for_the_same_user_alone(run_feed: RunFeed) -> None:
    async with run_feed() as running, connected(running, "ada;;60") as client:
        renewed = (await client.ask(refresh={"token": "ada;;600"}))["refresh"]
        await client.say({"refresh": {"token": "ben;;600"}})
        code = await client.close_code()

    assert renewed["expires"] is True
    assert renewed["ttl"] > 500
    assert code[0] == 3500


@pytest.mark.parametrize("token", ["expired", "ticket.used"])
async def test_who_renews_with_what_is_over_comes_again(run_feed: RunFeed, token: str) -> None:
    async with run_feed() as running, connected(running, "ada;;60") as client:
        await client.say({"refresh": {"token": token}})

        assert await client.close_code() == (3005, "connection expired")


@pytest.mark.parametrize("token", ["expired", "ticket.used"])
async def test_who_connects_with_what_is_over_is_told_to_fetch_another(run_feed: RunFeed, token: str) -> None:
    async with run_feed() as running, opened(running) as client:
        answer = await client.ask(connect={"token": token})
        again = (await client.ask(connect={"token": "ada;;60"}))["connect"]

    assert answer["error"]["code"] == 109
    assert again["expires"] is True


async def test_what_is_nested_too_deep_is_unreadable(run_feed: RunFeed) -> None:
    async with run_feed() as running, opened(running) as client:
        await client.socket.send('{"id":1,"x":' + "[" * 5_000 + "]" * 5_000 + "}")

        assert (await client.close_code())[0] == 3501


async def test_a_reader_that_was_away_gets_one_publication_that_covers_all(run_feed: RunFeed) -> None:
    async with run_feed(tick_ms=300) as running, connected(running) as client:
        await client.ask(subscribe={"channel": "board:main"})
        await running.publish(*(publication(n, user_id=f"u{n % 3}") for n in range(2, 40)))
        seen, score_of = 1, {}
        while seen < 39:
            data = (await client.push())["data"]
            assert data["previous"] == seen
            assert data["revision"] - data["previous"] == data["changed_count"]
            score_of |= {change["user_id"]: change["score"] for change in data["changed"]}
            seen = data["revision"]

    assert score_of == {"u0": 39, "u1": 37, "u2": 38}


async def test_verdicts_wait_while_the_ledger_is_away(run_feed: RunFeed) -> None:
    async with run_feed() as running, connected(running, "ada") as client:
        await client.ask(subscribe={"channel": "user:ada"})
        running.ledger.away = Unavailable("gone")
        running.ledger.judge("ada", "a-1", revision=2)
        await asyncio.sleep(0.5)
        refused = await client.ask(unsubscribe={"channel": "user:ada"})
        again = await client.ask(subscribe={"channel": "user:ada"})
        running.ledger.away = None
        since = {"recover": True, "epoch": EPOCH, "offset": 1}
        await client.ask(subscribe={"channel": "user:ada"} | since)
        told = await client.push()

    assert refused["unsubscribe"] == {}
    assert again["error"]["temporary"] is True
    assert told["data"]["receipt"]["action_id"] == "a-1"


async def test_who_begins_is_shown_what_the_standings_show(run_feed: RunFeed) -> None:
    async with run_feed(compare_interval_s=60) as running, connected(running) as client:
        running.standings.page_now = page(2)
        await client.say({"subscribe": {"channel": "board:main"}})
        await asyncio.sleep(0.1)
        await running.publish(publication(2))
        subscribed = (await client.next())["subscribe"]

    assert subscribed["offset"] == subscribed["data"]["revision"] == 2


async def test_standings_that_do_not_answer_keep_nobody_waiting(run_feed: RunFeed) -> None:
    async with run_feed() as running, connected(running) as client:
        running.standings.error = Unavailable("gone")
        subscribed = (await client.ask(subscribe={"channel": "board:main"}))["subscribe"]

    assert subscribed["offset"] == 1
