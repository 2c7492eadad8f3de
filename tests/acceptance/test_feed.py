"""The live feed as a stock WebSocket client sees it: three dialects, the Centrifuge protocol, SSE."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.acceptance.world import ENTRY_KEYS, World, until

pytestmark = pytest.mark.kafka

Frame = dict[str, Any]
PUBLICATION_KEYS = {
    "board",
    "window",
    "epoch",
    "revision",
    "previous",
    "digest",
    "count",
    "changed",
    "changed_count",
    "top",
}


@contextmanager
def feed(world: World, path: str, **rest: Any) -> Iterator[ClientConnection]:
    address = world.endpoints.feed.replace("http://", "ws://", 1) + path
    with connect(address, proxy=None, open_timeout=10, close_timeout=2, **rest) as socket:
        yield socket


def frame(socket: ClientConnection, timeout_s: float = 10) -> Frame:
    found: Frame = json.loads(socket.recv(timeout=timeout_s))
    return found


def position(shown: Frame) -> tuple[str, int]:
    return shown["epoch"], shown["revision"]


def frame_at(socket: ClientConnection, revision: int) -> Frame:
    """The first frame that shows this revision or a later one."""
    while (found := frame(socket))["revision"] < revision:
        pass
    return found


def scores(world: World) -> list[Frame]:
    return [{"user_id": entry["user_id"], "score": entry["score"]} for entry in world.standings()["entries"]]


def as_s1(rows: list[Frame]) -> list[Frame]:
    return [{"userId": row["user_id"], "score": row["score"]} for row in rows]


@pytest.fixture(scope="module", autouse=True)
def ten_in_front(world: World) -> list[str]:
    """Ten users ahead of whoever a test adds."""
    users = [world.user() for _ in range(10)]
    world.give(
        [
            {"action_id": f"front-{user}", "user_id": user, "type": "client_points", "points": 500 + n}
            for n, user in enumerate(users)
        ]
    )
    return users


# /ws/scores ------------------------------------------------------------------------------------


def test_scores_shows_the_board_on_connect_and_on_every_update(world: World):
    board = world.standings()
    before = scores(world)

    with feed(world, "/ws/scores") as socket:
        first = frame_at(socket, board["revision"])
        receipt = world.act(world.user())
        update = frame_at(socket, receipt["judged_revision"])

    assert first == {"topScores": as_s1(before), "epoch": board["epoch"], "revision": board["revision"]}
    assert set(update) == {"topScores", "epoch", "revision"}
    assert update["topScores"] == as_s1(scores(world))
    assert position(update) == (receipt["epoch"], receipt["judged_revision"])


@pytest.mark.parametrize("path", ["/ws/scores", "/ws/scoreboard"])
def test_frames_are_100_ms_apart_the_latest_and_never_older(world: World, path: str):
    users = [world.user() for _ in range(4)]
    with feed(world, path) as socket:
        arrived = [(time.monotonic(), frame(socket))]
        last = 0
        for n in range(60):
            user = users[n % 4]
            response = world.send(
                "/v1/actions",
                {"action_id": f"burst-{n}", "type": "client_points", "points": 1 + n},
                world.token(user),
                Prefer="wait=10" if n == 59 else "respond-async",
            )
            assert response.status_code in (200, 202)
        last = response.json()["judged_revision"]
        while arrived[-1][1]["revision"] < last:
            arrived.append((time.monotonic(), frame(socket)))

    # The socket holds what came meanwhile, so only the whole stretch can be timed from here.
    positions = [position(shown) for _, shown in arrived]
    assert positions == sorted(positions)
    assert len(set(positions)) == len(positions)
    assert len(arrived) >= 2
    final = arrived[-1][1]
    rows = final["topScores"] if path == "/ws/scores" else final["data"]["rankings"]
    assert rows == (as_s1(scores(world)) if path == "/ws/scores" else scores(world))


@pytest.mark.parametrize("path", ["/ws/scores", "/ws/scoreboard"])
def test_frames_arrive_100_ms_apart(world: World, path: str):
    token = world.trusted()
    user = world.user()
    with feed(world, path) as socket:
        frame(socket)
        arrivals_s: list[float] = []
        until_s = time.monotonic() + 1.5
        n = 0
        while time.monotonic() < until_s:
            action = {"action_id": f"{user}-{n}", "user_id": user, "type": "client_points", "points": 1}
            assert world.send("/v1/actions", action, token).status_code == 202
            n += 1
            try:
                while True:
                    socket.recv(timeout=0.005)
                    arrivals_s.append(time.monotonic())
            except TimeoutError:
                pass

    # One frame may be late and the next in time; n frames need n - 1 gaps all the same.
    assert len(arrivals_s) >= 3, f"{n} actions made {len(arrivals_s)} frames"
    assert arrivals_s[-1] - arrivals_s[0] >= 0.1 * (len(arrivals_s) - 1) - 0.06


# /ws/scoreboard --------------------------------------------------------------------------------


def test_scoreboard_names_the_user_who_scored(world: World):
    user = world.user()

    with feed(world, "/ws/scoreboard") as socket:
        frame(socket)
        receipt = world.act(user, "client_points", points=999)
        update = frame_at(socket, receipt["judged_revision"])

    assert update == {
        "type": "SCORE_UPDATE",
        "data": {"user_id": user, "new_score": 999, "rankings": scores(world)},
        "epoch": receipt["epoch"],
        "revision": receipt["judged_revision"],
    }


def test_scoreboard_tells_of_a_change_outside_the_top_ten(world: World):
    user = world.user()

    with feed(world, "/ws/scoreboard") as socket:
        before = frame(socket)
        receipt = world.act(user, "client_points", points=1)
        update = frame_at(socket, receipt["judged_revision"])

    assert update["data"] == {"user_id": user, "new_score": 1, "rankings": before["data"]["rankings"]}
    assert user not in [row["user_id"] for row in update["data"]["rankings"]]


def test_scoreboard_shows_the_latest_change_on_connect(world: World):
    user = world.user()
    receipt = world.act(user, "client_points", points=3)

    with feed(world, "/ws/scoreboard") as socket:
        shown = frame_at(socket, receipt["judged_revision"])

    assert shown["data"] == {"user_id": user, "new_score": 3, "rankings": scores(world)}


# /ws/leaderboard -------------------------------------------------------------------------------


def _with_ticket(world: World, user: str) -> dict[str, Any]:
    ticket = world.send("/v1/ws-ticket", b"", world.token(user)).json()["ticket"]
    return {"subprotocols": [Subprotocol("trueboard"), Subprotocol(f"ticket.{ticket}")]}


def _with_header(world: World, user: str) -> dict[str, Any]:
    return {"additional_headers": {"Authorization": f"Bearer {world.token(user)}"}}


@pytest.mark.parametrize("by", [_with_header, _with_ticket], ids=["header", "ticket"])
def test_leaderboard_greets_and_then_shows_names_and_ranks(world: World, by: Any):
    user = world.user()

    with feed(world, "/ws/leaderboard", **by(world, user)) as socket:
        protocol = socket.subprotocol
        greeting = frame(socket)
        receipt = world.act(user)
        update = frame_at(socket, receipt["judged_revision"])

    board = world.standings()
    assert protocol == ("trueboard" if by is _with_ticket else None)
    assert greeting == {
        "type": "connection_success",
        "data": {"userId": user},
        "epoch": board["epoch"],
        "revision": greeting["revision"],
    }
    assert update == {
        "type": "leaderboard_update",
        "data": {
            "leaderboard": [
                {
                    "userId": entry["user_id"],
                    "username": entry["username"],
                    "score": entry["score"],
                    "rank": entry["rank"],
                }
                for entry in board["entries"]
            ]
        },
        "epoch": receipt["epoch"],
        "revision": receipt["judged_revision"],
    }


def _refused(world: World, path: str, **rest: Any) -> int:
    """The status of a refused handshake, or the code of a close before anything was shown."""
    try:
        with feed(world, path, **rest) as socket:
            shown = frame(socket)
            assert shown.get("type") == "error", shown
            frame(socket)
    except InvalidStatus as error:
        return error.response.status_code
    except ConnectionClosed as error:
        return error.rcvd.code if error.rcvd else 0
    raise AssertionError("nobody refused it")


def test_leaderboard_is_closed_to_who_brings_nothing_good(world: World):
    bad = {"additional_headers": {"Authorization": "Bearer bad"}}
    expired = {
        "additional_headers": {
            "Authorization": f"Bearer {world.token(world.user(), now_s=int(time.time()) - 3600)}"
        }
    }
    forged = {"subprotocols": [Subprotocol("trueboard"), Subprotocol("ticket.none-of-yours")]}

    for rest in ({}, bad, expired, forged):
        status = _refused(world, "/ws/leaderboard", **rest)
        assert status == 401 or 4000 <= status < 5000, rest


def test_leaderboard_says_that_a_token_has_expired(world: World):
    user = world.user()
    token = world.token(user, ttl_s=3)

    with feed(world, "/ws/leaderboard", additional_headers={"Authorization": f"Bearer {token}"}) as socket:
        shown = frame(socket)
        until_s = time.monotonic() + 45
        while shown["type"] != "error" and time.monotonic() < until_s:
            shown = frame(socket, timeout_s=45)

    assert shown["type"] == "error"
    assert set(shown) == {"type", "data", "epoch", "revision"}
    assert set(shown["data"]) == {"code", "message"}


@pytest.mark.parametrize("message", ["nonsense", '{"type": "?"}', b"\x00\xff"], ids=repr)
def test_leaderboard_answers_an_unreadable_message_to_its_sender_alone(world: World, message: Any):
    with feed(world, "/ws/leaderboard", **_with_header(world, world.user())) as other:
        with feed(world, "/ws/leaderboard", **_with_header(world, world.user())) as socket:
            frame(socket)
            socket.send(message)
            shown = frame(socket)
            while shown["type"] == "leaderboard_update":
                shown = frame(socket)
        receipt = world.act(world.user())
        seen = [frame(other)]
        while seen[-1]["revision"] < receipt["judged_revision"]:
            seen.append(frame(other))

    assert shown["type"] == "error"
    assert set(shown["data"]) == {"code", "message"}
    assert {"epoch", "revision"} < set(shown)
    assert "error" not in [shown["type"] for shown in seen]


# Centrifuge ------------------------------------------------------------------------------------


def _commands(socket: ClientConnection, *commands: Frame) -> None:
    socket.send("\n".join(json.dumps(command) for command in commands))


def _messages(socket: ClientConnection) -> Iterator[Frame]:
    """Replies and pushes; pings are answered."""
    while True:
        for line in str(socket.recv(timeout=10)).splitlines():
            message = json.loads(line)
            if message:
                yield message
            else:
                socket.send("{}")


def test_centrifuge_shows_a_board_and_its_publications(world: World):
    user = world.user()
    for _ in range(3):
        # Among the ten first, whoever has played before: only they are named in a publication.
        leading = world.act(user, "client_points", points=1000)
    with feed(world, "/ws/scores") as socket:
        # Kafka may bring the feed a moment later what the board in Redis shows already.
        frame_at(socket, leading["judged_revision"])
    board = world.standings()

    with feed(world, "/connection/websocket") as socket:
        messages = _messages(socket)
        _commands(socket, {"id": 1, "connect": {}})
        connected = next(messages)
        _commands(socket, {"id": 2, "subscribe": {"channel": "board:main"}})
        subscribed = next(message for message in messages if message.get("id") == 2)["subscribe"]
        receipt = world.act(user, "client_points", points=1000)
        pub = next(
            message["push"]["pub"]
            for message in messages
            if "pub" in message.get("push", {})
            and message["push"]["pub"]["offset"] >= receipt["judged_revision"]
        )

    assert connected["id"] == 1
    assert connected["connect"]["client"]
    snapshot = subscribed["data"]
    assert set(snapshot) == PUBLICATION_KEYS - {"changed", "changed_count"} or set(
        snapshot
    ) == PUBLICATION_KEYS - {"changed"}
    assert (snapshot["revision"], snapshot["top"]) == (board["revision"], board["entries"])
    assert (subscribed["epoch"], subscribed["offset"]) == (board["epoch"], board["revision"])
    assert set(pub["data"]) == PUBLICATION_KEYS
    assert pub["offset"] == pub["data"]["revision"] == receipt["judged_revision"]
    assert pub["data"]["previous"] == board["revision"]
    assert pub["data"]["top"] == world.standings()["entries"]
    assert pub["data"]["changed_count"] == 1
    assert [(row["user_id"], row["score"]) for row in pub["data"]["changed"]] == [(user, 4000)]
    for entry in pub["data"]["top"]:
        assert set(entry) == ENTRY_KEYS


def test_centrifuge_resumes_without_a_gap(world: World):
    seen: list[Frame] = []
    with feed(world, "/connection/websocket") as socket:
        messages = _messages(socket)
        _commands(socket, {"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": "board:main"}})
        first = next(message for message in messages if message.get("id") == 2)["subscribe"]
    missed = [world.act(world.user())["judged_revision"] for _ in range(3)]

    with feed(world, "/connection/websocket") as socket:
        messages = _messages(socket)
        resume = {
            "channel": "board:main",
            "recover": True,
            "epoch": first["epoch"],
            "offset": first["offset"],
        }
        _commands(socket, {"id": 1, "connect": {}}, {"id": 2, "subscribe": resume})
        again = next(message for message in messages if message.get("id") == 2)["subscribe"]
        seen = again.get("publications", [])

    assert again.get("recovered") is True
    assert [pub["offset"] for pub in seen] == missed
    assert [pub["data"]["previous"] for pub in seen] == [first["offset"], *missed[:-1]]


def test_centrifuge_tells_a_user_of_own_verdicts_and_nobody_of_others(world: World):
    user = world.user()

    with feed(world, "/connection/websocket") as socket:
        messages = _messages(socket)
        _commands(socket, {"id": 1, "connect": {"token": world.token(user)}})
        assert "connect" in next(messages)
        _commands(
            socket,
            {"id": 2, "subscribe": {"channel": f"user:{user}"}},
            {"id": 3, "subscribe": {"channel": "user:somebody-else"}},
        )
        replies = {message["id"]: message for message in (next(messages), next(messages))}
        receipt = world.act(user)
        pub = next(message["push"]["pub"] for message in messages if "pub" in message.get("push", {}))

    assert "subscribe" in replies[2]
    assert "error" in replies[3]
    assert pub["data"]["receipt"]["action_id"] == receipt["action_id"]
    assert pub["data"]["receipt"]["status"] == "accepted"


# SSE -------------------------------------------------------------------------------------------


def _events(response: httpx.Response) -> Iterator[dict[str, str]]:
    event: dict[str, str] = {}
    for line in response.iter_lines():
        if not line:
            if event.get("data"):
                yield event
            event = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            event[name] = event.get(name, "") + value.removeprefix(" ")


def test_sse_shows_a_snapshot_then_publications_and_resumes(world: World):
    board = world.standings()
    with feed(world, "/ws/scores") as socket:
        frame_at(socket, board["revision"])
    address = world.endpoints.feed + "/v1/boards/main/stream"

    with world.http.stream("GET", address) as response:
        kind = response.headers["content-type"]
        events = _events(response)
        snapshot = next(events)
        receipt = world.act(world.user())
        update = next(
            event for event in events if json.loads(event["data"])["revision"] >= receipt["judged_revision"]
        )
    later = world.act(world.user())
    with world.http.stream("GET", address, headers={"Last-Event-ID": update["id"]}) as response:
        resumed = next(_events(response))

    assert kind.split(";")[0] == "text/event-stream"
    assert (snapshot["event"], snapshot["id"]) == ("board", f"{board['epoch']}-{board['revision']}")
    assert json.loads(snapshot["data"])["top"] == board["entries"]
    assert (update["event"], update["id"]) == ("board", f"{receipt['epoch']}-{receipt['judged_revision']}")
    assert set(json.loads(update["data"])) == PUBLICATION_KEYS
    assert resumed["id"] == f"{later['epoch']}-{later['judged_revision']}"
    assert json.loads(resumed["data"])["previous"] == receipt["judged_revision"]


def test_connections_are_counted_by_dialect(world: World):
    def counted() -> float:
        # Without `/ws/scores`, which the auditor watches too.
        page = world.http.get(world.endpoints.metrics["push"]).text
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in page.splitlines()
            if line.startswith("trueboard_websocket_connections{") and '"scores"' not in line
        )

    # The auditor subscribes to the board's channel, once and for all.
    before = until(lambda: (found := counted()) == 1 and [found], what="all other sockets closed")[0]
    with feed(world, "/connection/websocket") as one, feed(world, "/ws/scoreboard") as two:
        _commands(one, {"id": 1, "connect": {}})
        frame(one), frame(two)
        during = counted()
    after = until(lambda: counted() == before, what="both sockets closed")

    assert during == before + 2
    assert after
