"""The feed as its readers meet it: real sockets, a broker in memory, standings the test writes."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import struct
import time
from contextlib import suppress
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidState, InvalidStatus
from websockets.typing import Origin, Subprotocol

from core.errors import Refused, Unavailable
from core.words import MAIN_PERIOD
from push import server
from push.server import MAX_MESSAGE_BYTES
from tests.push.conftest import GOOD_TICKET, RunFeed, Running, raw_reader, ticket_of
from tests.push.views import EPOCH, page, publication

PATHS = ("/ws/scores", "/ws/scoreboard", "/ws/leaderboard")


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def _next(reader: ClientConnection, timeout_s: float = 3.0) -> dict[str, Any]:
    frame: dict[str, Any] = json.loads(await asyncio.wait_for(reader.recv(), timeout_s))
    return frame


async def _until_revision(reader: ClientConnection, revision: int) -> list[dict[str, Any]]:
    frames = [await _next(reader)]
    while frames[-1]["revision"] != revision:
        frames.append(await _next(reader))
    return frames


async def _refusal(url: str, **options: Any) -> tuple[int, dict[str, Any], dict[str, str]]:
    """The status, problem and headers of a handshake that is refused."""
    with pytest.raises(InvalidStatus) as caught:
        await connect(url, **options)
    response = caught.value.response
    headers = {name.lower(): value for name, value in response.headers.raw_items()}
    return response.status_code, json.loads(bytes(response.body or b"{}")), headers


async def _close_code(reader: ClientConnection, frames: list[dict[str, Any]] | None = None) -> int | None:
    """Read until the server closes; the code it closes with. Frames read on the way are appended."""
    try:
        while True:
            frame = await _next(reader, 5)
            if frames is not None:
                frames.append(frame)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else None


# what is shown


async def test_every_dialect_shows_the_board_on_connect_and_on_every_update(run_feed: RunFeed) -> None:
    async with run_feed() as running:
        readers = [await connect(running.url + path, additional_headers=_bearer("ada")) for path in PATHS]
        first = [await _until_revision(reader, 1) for reader in readers]
        welcome, board = await _next(readers[2]), first[2][0]

        await running.publish(publication(2, user_id="ben"))

        scores, scoreboard, leaderboard = [(await _until_revision(r, 2))[-1] for r in readers]
        at = {"epoch": EPOCH, "revision": 2}
        assert scores == {"topScores": [{"userId": "ben", "score": 2}]} | at
        rankings = [{"user_id": "ben", "score": 2}]
        data = {"user_id": "ben", "new_score": 2, "rankings": rankings}
        assert scoreboard == {"type": "SCORE_UPDATE", "data": data} | at
        lines = [{"userId": "ben", "username": "ben", "score": 2, "rank": 1}]
        assert leaderboard == {"type": "leaderboard_update", "data": {"leaderboard": lines}} | at
        assert [board["type"], welcome["type"]] == ["connection_success", "leaderboard_update"]
        for reader in readers:
            await reader.close()


async def test_a_publication_is_shown_as_soon_as_kafka_has_it(run_feed: RunFeed) -> None:
    async with run_feed() as running, connect(running.url + "/ws/scores") as reader:
        await _next(reader)
        took_s = []
        for revision in range(2, 12):
            await asyncio.sleep(0.15)
            began_s = time.monotonic()
            await running.publish(publication(revision))
            await _next(reader)
            took_s.append(time.monotonic() - began_s)

    assert sorted(took_s)[len(took_s) // 2] < 0.08, "the in-memory broker alone takes some 10 ms"


async def test_a_start_knows_from_kafka_what_the_last_change_was(run_feed: RunFeed) -> None:
    async def earlier(running: Running) -> None:
        old = publication(6, user_id="old")
        await running.publish(old, publication(7, user_id="last"))
        running.standings.page_now = page(7, user_id="leader")

    async with run_feed(before=earlier) as running, connect(running.url + "/ws/scoreboard") as reader:
        frame = await _next(reader)

    assert (frame["data"]["user_id"], frame["revision"]) == ("last", 7)


async def test_standings_newer_than_kafka_are_shown_within_two_seconds(run_feed: RunFeed) -> None:
    async with run_feed() as running, connect(running.url + "/ws/scores") as reader:
        await _next(reader)
        running.cluster.take_down(1)
        running.standings.page_now = page(5)
        began_s = time.monotonic()

        frame = await _next(reader)
        took_s = time.monotonic() - began_s
        running.standings.page_now = page(6)
        later = await _next(reader)

    assert (frame["revision"], later["revision"]) == (5, 6)
    assert took_s <= 2.0


async def test_kafka_is_followed_again_after_it_was_away(run_feed: RunFeed) -> None:
    async with run_feed() as running, connect(running.url + "/ws/scores") as reader:
        await _next(reader)
        running.cluster.take_down(1)
        running.standings.page_now = page(5)
        await _until_revision(reader, 5)

        running.cluster.bring_up(1)
        await running.publish(publication(4), publication(5, user_id="other"), publication(6))
        frames = await asyncio.wait_for(_until_revision(reader, 6), 10)

    assert [frame["revision"] for frame in frames] == [6]


async def test_a_record_that_cannot_be_read_is_passed_over(run_feed: RunFeed) -> None:
    async with run_feed() as running, connect(running.url + "/ws/scores") as reader:
        await _next(reader)
        for value in (b"{", None, b"\xff"):
            running.producer.produce("leaderboard.board.changed.v1", value, key=MAIN_PERIOD.encode())
        await running.publish(publication(2))

        frame = await _next(reader)

    assert frame["revision"] == 2


async def test_a_record_of_no_epoch_hides_none_of_the_ledgers(run_feed: RunFeed) -> None:
    foreign = publication(1, epoch="zzz", user_id="eve")

    async with run_feed() as running, connect(running.url + "/ws/scores") as reader:
        before = await _next(reader)
        await running.publish(foreign, publication(2, user_id="ben"))
        after = await _next(reader)
    async with run_feed() as anew, connect(anew.url + "/ws/scores") as reader:
        after_a_restart = await _next(reader)

    assert [before["epoch"], before["revision"]] == [EPOCH, 1]
    assert [after["epoch"], after["revision"]] == [EPOCH, 2]
    assert after_a_restart == after


async def test_two_frames_to_one_reader_are_a_tenth_of_a_second_apart(run_feed: RunFeed) -> None:
    async with run_feed() as running, connect(running.url + "/ws/scores") as reader:
        arrivals = []

        async def read() -> None:
            while (await _next(reader))["revision"] != 60:
                arrivals.append(time.monotonic())
            arrivals.append(time.monotonic())

        reading = asyncio.create_task(read())
        for revision in range(2, 61):
            await running.publish(publication(revision))
            await asyncio.sleep(0.01)
        await asyncio.wait_for(reading, 5)

    gaps_s = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
    assert len(arrivals) <= 14
    assert min(gaps_s) >= 0.095, "measured here, where both sides share one loop"


async def test_one_stalled_reader_of_fifty_costs_the_others_nothing(run_feed: RunFeed) -> None:
    rounds, padding = 40, "x" * 12_000
    async with run_feed(frame_gap_ms=5, max_sockets_per_address=60, stall_limit_s=1.0) as running:
        stalled = await raw_reader(running.feed.port, "/ws/leaderboard", "stalled")
        readers = [
            await connect(running.url + "/ws/leaderboard", additional_headers=_bearer("ada"))
            for _ in range(49)
        ]
        await asyncio.gather(*(_shown(reader, 1) for reader in readers))
        (sink,) = [r.sink for r in _readers(running) if r.sink.scope["headers"][-1][1] == b"Bearer stalled"]
        seen, buffered_bytes = [], 0

        for revision in range(2, 2 + rounds):
            await running.publish(publication(revision, padding=padding))
            seen.append(await asyncio.gather(*(_next(reader) for reader in readers)))
            buffered_bytes = max(buffered_bytes, sink.transport.get_write_buffer_size())
        await running.until(lambda: len(_readers(running)) == 49)
        code = await _close_code_of(stalled)
        for reader in readers:
            await reader.close()

    assert [{frame["revision"] for frame in frames} for frames in seen] == [
        {revision} for revision in range(2, 2 + rounds)
    ]
    assert 0 < buffered_bytes < 2 * len(padding), "what waits in this process is one frame"
    assert code == 4410


async def _shown(reader: ClientConnection, revision: int) -> None:
    while (frame := await _next(reader))["revision"] != revision or frame["type"] != "leaderboard_update":
        pass


def _readers(running: Running) -> Any:
    return running.feed.hub.channels[MAIN_PERIOD].readers


async def _close_code_of(raw: socket.socket) -> int:
    """Read all that is left on the socket; the code of the close frame at its end."""
    loop, read = asyncio.get_running_loop(), bytearray()
    while chunk := await asyncio.wait_for(loop.sock_recv(raw, 1 << 16), 5):
        read += chunk
        if (at := read.rfind(b"\x88\x06")) >= 0 and len(read) == at + 8:
            break
    raw.close()
    code: int = struct.unpack_from("!H", read, len(read) - 6)[0]
    return code


# who may read


async def test_a_ticket_opens_one_socket_and_only_one(run_feed: RunFeed) -> None:
    offered = [Subprotocol("trueboard"), Subprotocol(f"ticket.{GOOD_TICKET}")]
    async with run_feed() as running:
        running.tickets[GOOD_TICKET] = ticket_of("ben")
        async with connect(running.url + "/ws/leaderboard", subprotocols=offered) as reader:
            answered, welcome = reader.subprotocol, await _next(reader)
        again = await _refusal(running.url + "/ws/leaderboard", subprotocols=offered)

    assert answered == "trueboard"
    assert welcome["data"] == {"userId": "ben"}
    assert again[0] == 401


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="none"),
        pytest.param(_bearer("-"), id="a bad token"),
        pytest.param({"Authorization": "Basic YTpi"}, id="another scheme"),
        pytest.param({"Authorization": "Bearer "}, id="an empty token"),
        pytest.param({"Cookie": "token=ada"}, id="a cookie"),
        pytest.param([("Authorization", "Bearer ada"), ("Authorization", "Bearer ben")], id="two tokens"),
    ],
)
async def test_who_shows_no_good_token_is_refused_at_the_handshake(run_feed: RunFeed, headers: Any) -> None:
    async with run_feed() as running:
        status, problem, sent = await _refusal(running.url + "/ws/leaderboard", additional_headers=headers)

    assert (status, problem["code"], problem["type"]) == (401, "invalid_token", "/problems/invalid_token")
    assert sent["content-type"] == "application/problem+json"
    assert "www-authenticate" in sent
    assert "server" not in sent


async def test_a_token_in_the_query_is_no_token(run_feed: RunFeed) -> None:
    async with run_feed() as running:
        status, _, _ = await _refusal(running.url + "/ws/leaderboard?token=ada&access_token=ada")

    assert status == 401


async def test_a_token_without_the_right_to_read_is_refused(run_feed: RunFeed) -> None:
    async with run_feed() as running:
        status, problem, _ = await _refusal(
            running.url + "/ws/leaderboard", additional_headers=_bearer("ada;actions:write")
        )

    assert (status, problem["code"]) == (403, "forbidden")


async def test_an_address_may_open_so_many_sockets_and_again_when_one_closes(run_feed: RunFeed) -> None:
    async with run_feed(max_sockets_per_address=3) as running:
        readers = [await connect(running.url + "/ws/scores") for _ in range(3)]
        status, problem, headers = await _refusal(running.url + "/ws/scores")
        await readers.pop().close()
        await running.until(lambda: len(_readers(running)) == 2)
        readers.append(await connect(running.url + "/ws/scores"))
        for reader in readers:
            await reader.close()
        await running.until(lambda: running.feed.admission.addresses == 0)

    assert (status, problem["code"]) == (429, "rate_limited")
    assert "retry-after" in headers


async def test_refusals_are_limited_per_address(run_feed: RunFeed) -> None:
    async with run_feed(refused_rate_per_s=1.0) as running:
        statuses = [(await _refusal(running.url + "/ws/leaderboard"))[0] for _ in range(3)]

    assert statuses == [401, 401, 429]


async def test_the_address_is_the_proxys_word_only_if_the_proxy_is_trusted(run_feed: RunFeed) -> None:
    def forwarded(address: str) -> dict[str, str]:
        return {"X-Forwarded-For": address}

    async with run_feed(max_sockets_per_address=1) as running:
        first = await connect(running.url + "/ws/scores", additional_headers=forwarded("192.0.2.1"))
        status, _, _ = await _refusal(running.url + "/ws/scores", additional_headers=forwarded("192.0.2.2"))
        await first.close()

    assert status == 429


async def test_a_trusted_proxy_tells_readers_apart(run_feed: RunFeed) -> None:
    async with run_feed(max_sockets_per_address=1, trusted_proxies=("127.0.0.1",)) as running:
        readers = [
            await connect(running.url + "/ws/scores", additional_headers={"X-Forwarded-For": f"192.0.2.{n}"})
            for n in range(3)
        ]
        status, _, _ = await _refusal(
            running.url + "/ws/scores", additional_headers={"X-Forwarded-For": "203.0.113.9, 192.0.2.1"}
        )
        for reader in readers:
            await reader.close()

    assert status == 429


@pytest.mark.parametrize(
    ("origins", "path", "origin", "status"),
    [
        pytest.param((), "/ws/scores", "https://anywhere.example", 101, id="public, no list"),
        pytest.param((), "/ws/leaderboard", "http://localhost:3000", 101, id="own host, no list"),
        pytest.param((), "/ws/leaderboard", "https://anywhere.example", 403, id="foreign, no list"),
        pytest.param((), "/ws/leaderboard", "null", 403, id="null, no list"),
        pytest.param(("https://a.example",), "/ws/scores", "https://a.example", 101, id="on the list"),
        pytest.param(("https://a.example",), "/ws/scores", "https://b.example", 403, id="not on the list"),
        pytest.param(
            ("https://a.example",), "/ws/scores", "https://a.example.evil.example", 403, id="looks alike"
        ),
        pytest.param(("https://a.example",), "/ws/scores", "http://a.example", 403, id="other scheme"),
        pytest.param(("https://a.example",), "/ws/leaderboard", None, 101, id="no browser"),
    ],
)
async def test_pages_of_these_origins_may_open_sockets(
    run_feed: RunFeed, origins: tuple[str, ...], path: str, origin: str | None, status: int
) -> None:
    options: dict[str, Any] = {"additional_headers": _bearer("ada")}
    if origin is not None:
        options["origin"] = Origin(origin)
    async with run_feed(origins=origins) as running:
        if status == 101:
            async with connect(running.url + path, **options) as reader:
                frame = await _next(reader)
            assert frame["revision"] == 1
        else:
            answered, problem, _ = await _refusal(running.url + path, **options)
            assert (answered, problem["code"]) == (status, "forbidden")


# what happens to an open socket


async def test_a_token_that_expires_while_open_says_so_and_closes(run_feed: RunFeed) -> None:
    async with run_feed() as running:
        reader = await connect(
            running.url + "/ws/leaderboard", additional_headers=_bearer("ada;boards:read;2")
        )
        frames: list[dict[str, Any]] = []
        code = await _close_code(reader, frames)

    assert frames[-1]["type"] == "error"
    assert frames[-1]["data"]["code"] == "token_expired"
    assert code == 4401


@pytest.mark.parametrize("message", ["", "hello", "{}", b"\x00", '{"type":"leaderboard_update"}'])
async def test_what_a_client_says_cannot_be_read(run_feed: RunFeed, message: str | bytes) -> None:
    async with run_feed() as running:
        async with (
            connect(running.url + "/ws/leaderboard", additional_headers=_bearer("ada")) as one,
            connect(running.url + "/ws/leaderboard", additional_headers=_bearer("ben")) as other,
        ):
            for reader in (one, other):
                await _next(reader)
                await _next(reader)
            await one.send(message)
            frame = await _next(one)
            await running.publish(publication(2))
            next_of_other = await _next(other)

    assert frame["data"]["code"] == "unreadable_message"
    assert (frame["epoch"], frame["revision"]) == (EPOCH, 1)
    assert next_of_other["type"] == "leaderboard_update"


async def test_a_client_that_talks_on_is_closed(run_feed: RunFeed) -> None:
    async with run_feed() as running, connect(running.url + "/ws/scores") as reader:
        await _next(reader)
        for _ in range(21):
            await reader.send("hello")
        code = await _close_code(reader)

    assert code == 4429


@pytest.mark.parametrize("compression", [None, "deflate"])
async def test_a_message_too_large_once_unpacked_closes(run_feed: RunFeed, compression: str | None) -> None:
    async with run_feed() as running:
        async with connect(running.url + "/ws/scores", compression=compression) as reader:
            await _next(reader)
            await reader.send("x" * (MAX_MESSAGE_BYTES + 1))
            code = await _close_code(reader)

    assert code == 1009


async def test_who_offers_compression_is_sent_the_same_frames_compressed_once(run_feed: RunFeed) -> None:
    long = publication(2, padding="x" * 1_000)
    async with run_feed() as running:
        plain = await connect(running.url + "/ws/scores", compression=None)
        packed = [await connect(running.url + "/ws/leaderboard", additional_headers=_bearer(u)) for u in "ab"]
        (extension,) = packed[0].protocol.extensions
        await running.publish(long)
        shown = [(await _until_revision(reader, 2))[-1] for reader in (plain, *packed)]
        for reader in (plain, *packed):
            await reader.close()

    assert not plain.protocol.extensions
    assert extension.remote_no_context_takeover
    assert extension.local_no_context_takeover
    assert [frame["revision"] for frame in shown] == [2, 2, 2]
    assert len(shown[1]["data"]["leaderboard"][0]["username"]) > 1_000


async def test_a_stop_closes_every_socket_for_a_restart(run_feed: RunFeed) -> None:
    async with run_feed() as running:
        readers = [await connect(running.url + "/ws/scores") for _ in range(5)]
        stalled = await raw_reader(running.feed.port, "/ws/leaderboard", "stalled")
        for reader in readers:
            await _next(reader)
        began_s = time.monotonic()
        running.feed.stop()
        codes = [await _close_code(reader) for reader in readers]
    took_s = time.monotonic() - began_s
    stalled.close()

    assert codes == [1012] * 5
    assert took_s < 3


async def test_readers_who_leave_during_a_stop_disturb_nobodys(
    run_feed: RunFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "DRAIN_GAP_S", 0.05)
    async with run_feed(drain_s=2.0) as running:
        raws = [await raw_reader(running.feed.port, "/ws/scores", f"raw{n}") for n in range(12)]
        leaving = [await connect(running.url + "/ws/scores") for _ in range(12)]
        staying = [await connect(running.url + "/ws/scores") for _ in range(12)]
        running.feed.stop()
        await asyncio.wait(
            [asyncio.create_task(reader.wait_closed()) for reader in staying],
            return_when=asyncio.FIRST_COMPLETED,
        )
        for raw, reader in zip(raws, leaving, strict=True):
            # Cut off, and by the book; neither waits for an answer.
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raw.close()
            # Some were closed already.
            with suppress(InvalidState):
                reader.protocol.send_close(1000)
                reader.transport.write(b"".join(reader.protocol.data_to_send()))
        codes = [await _close_code(reader) for reader in staying]
        for reader in leaving:
            await reader.close()

    assert codes == [1012] * 12


# before it is ready, and elsewhere


async def test_before_a_board_is_loaded_sockets_are_told_to_come_back(run_feed: RunFeed) -> None:
    missing = Refused("not_found", "there is no such period", status_code=404)
    async with run_feed(error=missing, wait_ready=False) as running:
        await running.until(lambda: running.feed.publications.assigned)
        ready, shown = running.feed.ready()
        status, problem, headers = await _refusal(running.url + "/ws/scores")
        running.standings.error = None
        await running.until(lambda: running.feed.ready()[0])
        async with connect(running.url + "/ws/scores") as reader:
            frame = await _next(reader)

    assert not ready
    assert shown["kafka_assigned"]
    assert (status, problem["code"]) == (503, "board_rebuilding")
    assert "retry-after" in headers
    assert frame["revision"] == 1


async def test_a_board_being_rebuilt_is_an_error_to_all_and_the_board_comes_back(run_feed: RunFeed) -> None:
    async with (
        run_feed(compare_interval_s=0.1) as running,
        connect(running.url + "/ws/leaderboard", additional_headers=_bearer("ada")) as reader,
    ):
        await _next(reader)
        await _next(reader)
        running.standings.error = Unavailable("being rebuilt", code="board_rebuilding")
        told = await _next(reader)
        running.standings.error = None
        back = await _next(reader)

    assert told["data"]["code"] == "board_rebuilding"
    assert (back["type"], back["revision"]) == ("leaderboard_update", 1)


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/ws/scores", "/ws", "/metrics", "/health/live", "/a/b?c=d"])
async def test_http_finds_nothing_here(run_feed: RunFeed, method: str, path: str) -> None:
    async with run_feed() as running:
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.request(method, f"http://127.0.0.1:{running.feed.port}{path}")

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert "server" not in answer.headers
    problem = answer.json()
    assert (problem["code"], problem["status"]) == ("not_found", 404)
    assert len(problem["trace_id"]) == 32


async def test_an_unknown_path_refuses_the_handshake(run_feed: RunFeed) -> None:
    async with run_feed() as running:
        status, problem, _ = await _refusal(running.url + "/ws/elsewhere")

    assert (status, problem["code"]) == (404, "not_found")


async def test_a_user_has_so_many_sockets_and_no_more(run_feed: RunFeed) -> None:
    url = "/ws/leaderboard"
    async with run_feed(max_sockets_per_user=1) as running:
        async with connect(running.url + url, additional_headers=_bearer("ada")):
            status, problem, _ = await _refusal(running.url + url, additional_headers=_bearer("ada"))
            async with connect(running.url + url, additional_headers=_bearer("ben")):
                pass
        await running.until(lambda: not running.feed.connections)
        async with connect(running.url + url, additional_headers=_bearer("ada")) as again:
            assert await _next(again)

    assert (status, problem["code"]) == (429, "rate_limited")
