"""What is taken from uvicorn without being promised, and the doorstep before the upgrade."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from core.words import MAIN_PERIOD
from push import prepared
from push.channels import Reader
from push.close_codes import CloseCode
from push.prepared import Doorstep, PreparedSocket
from push.server import feed_app, server_for
from tests.push.conftest import RunFeed, raw_reader
from tests.push.views import publication


def test_this_is_the_uvicorn_whose_insides_are_known() -> None:
    assert uvicorn.__version__.split(".")[:2] == ["0", "54"]


@pytest.fixture
def bare() -> Any:
    """A socket's protocol as uvicorn makes it, before any connection."""
    loop = asyncio.new_event_loop()
    server = server_for(feed_app(None, None, None))  # type: ignore[arg-type]
    server.config.load()
    yield PreparedSocket(server.config, server.server_state, {}, loop)
    loop.close()


@pytest.mark.parametrize(
    "attribute",
    [
        "close_sent",
        "close_timeout",
        "close_timer",
        "conn",
        "disconnected",
        "handshake_complete",
        "keepalive_timeout",
        "loop",
        "pending_ping_payload",
        "queue",
        "read_paused",
        "transport",
        "writable",
    ],
)
def test_a_socket_has_the_attributes_leant_on(bare: Any, attribute: str) -> None:
    assert hasattr(bare, attribute)


@pytest.mark.parametrize(
    ("owner", "method", "parameters"),
    [
        (WebSocketsSansIOProtocol, "connection_made", ["self", "transport"]),
        (WebSocketsSansIOProtocol, "connection_lost", ["self", "exc"]),
        (WebSocketsSansIOProtocol, "data_received", ["self", "data"]),
        (WebSocketsSansIOProtocol, "handle_close", ["self", "event"]),
        (WebSocketsSansIOProtocol, "handle_connect", ["self", "event"]),
        (WebSocketsSansIOProtocol, "handle_parser_exception", ["self"]),
        (WebSocketsSansIOProtocol, "keepalive_timeout", ["self"]),
        (WebSocketsSansIOProtocol, "pause_writing", ["self"]),
        (WebSocketsSansIOProtocol, "resume_writing", ["self"]),
        (WebSocketsSansIOProtocol, "send", ["self", "message"]),
        (WebSocketsSansIOProtocol, "shutdown", ["self"]),
        (HttpToolsProtocol, "on_message_begin", ["self"]),
        (HttpToolsProtocol, "on_headers_complete", ["self"]),
        (HttpToolsProtocol, "data_received", ["self", "data"]),
    ],
)
def test_what_is_overridden_is_still_there_to_override(
    owner: Any, method: str, parameters: list[str]
) -> None:
    assert list(inspect.signature(vars(owner)[method]).parameters) == parameters


async def test_the_server_speaks_through_the_prepared_protocols(run_feed: RunFeed) -> None:
    async with run_feed() as running:
        raw = await raw_reader(running.feed.port, "/ws/scores", "ada")
        readers = running.feed.hub.channels[MAIN_PERIOD].readers
        await running.until(lambda: len(readers) == 1)
        (reader,) = readers
        raw.close()
        await running.until(lambda: len(readers) == 0)

    assert isinstance(reader.sink, PreparedSocket)
    assert isinstance(running.feed._server.config.http_protocol_class, type)
    assert running.feed._server.config.http_protocol_class is Doorstep


async def test_a_full_socket_is_seen_by_the_hub_and_a_drained_one_too(run_feed: RunFeed) -> None:
    async with run_feed(frame_gap_ms=1) as running:
        raw = await raw_reader(running.feed.port, "/ws/scores", "ada")
        hub, loop = running.feed.hub, asyncio.get_running_loop()
        await running.until(lambda: len(hub.channels[MAIN_PERIOD].readers) == 1)
        (reader,) = hub.channels[MAIN_PERIOD].readers
        revision = 1
        while reader.pace.blocked_since_ms is None:
            revision += 1
            await running.publish(publication(revision, user_id="a" * 250 * 60))
            await running.until(lambda: hub.channels[MAIN_PERIOD].sequence.position[1] == revision)  # noqa: B023
            await asyncio.sleep(0.02)
        await running.publish(publication(revision + 1), publication(revision + 2))
        await running.until(lambda: hub.channels[MAIN_PERIOD].sequence.position[1] == revision + 2)
        read = bytearray()
        while f'"revision":{revision + 2}}}'.encode() not in read:
            read += await asyncio.wait_for(loop.sock_recv(raw, 1 << 16), 5)
        drained = reader.pace.blocked_since_ms is None
        raw.close()

    assert drained
    assert f'"revision":{revision + 1}}}'.encode() not in read, "only the latest is sent after a stall"


class Flow:
    """Remembers what a socket says of itself; whoever is unblocked first fills the socket again."""

    def __init__(self) -> None:
        self.blocked: list[Any] = []
        self.unblocked: list[Any] = []
        self.refill: Callable[[], None] = lambda: None

    def block(self, reader: Any) -> None:
        self.blocked.append(reader)

    def unblock(self, reader: Any) -> None:
        self.unblocked.append(reader)
        self.refill()

    def leave(self, reader: Any) -> None:
        raise AssertionError("nobody leaves here")


@dataclass
class Transport:
    """As much of one as tells how full it is."""

    waiting_bytes: int = 0

    def get_write_buffer_size(self) -> int:
        return self.waiting_bytes


def test_a_socket_that_was_full_before_it_had_readers_says_so(bare: Any) -> None:
    bare.transport, flow = Transport(1), Flow()

    bare.attach(flow, "ada")

    assert flow.blocked == ["ada"]


def test_a_socket_that_is_full_again_unblocks_no_more_of_its_readers(bare: Any) -> None:
    bare.transport, flow = Transport(), Flow()
    bare.attach(flow, "ada")
    bare.attach(flow, "eve")
    bare.pause_writing()
    flow.refill = bare.pause_writing

    bare.resume_writing()

    assert flow.unblocked == ["ada"]
    assert flow.blocked[-2:] == ["ada", "eve"]


async def test_frames_go_to_a_descriptor_that_never_waits(run_feed: RunFeed) -> None:
    async with run_feed() as running:
        raw = await raw_reader(running.feed.port, "/ws/scores", "ada")
        readers = running.feed.hub.channels[MAIN_PERIOD].readers
        await running.until(lambda: len(readers) == 1)
        (reader,) = readers
        open_file, waits = reader.sink.file, os.get_blocking(reader.sink.file)
        raw.close()
        await running.until(lambda: reader.sink.file != open_file)

    assert not waits
    assert reader.sink.file == prepared.NO_FILE


@dataclass
class Recorder:
    """A transport that notes, at each write, whether the reader was still in the hub."""

    transport: Any
    reader: Reader
    in_hub: list[bool] = field(default_factory=list)

    def write(self, data: bytes) -> None:
        self.in_hub.append(not self.reader.gone)
        self.transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"\x88\x80\0\0\0\0", id="the client says goodbye"),
        pytest.param(b"\x81\x01a", id="the client says what no client may"),
        pytest.param(None, id="the client answers no ping"),
    ],
)
async def test_a_socket_has_left_the_hub_when_it_says_its_last_word(
    run_feed: RunFeed, said: bytes | None
) -> None:
    async with run_feed() as running:
        raw = await raw_reader(running.feed.port, "/ws/scores", "ada")
        readers = running.feed.hub.channels[MAIN_PERIOD].readers
        await running.until(lambda: len(readers) == 1)
        (reader,) = readers
        sink: Any = reader.sink
        recorder = sink.transport = Recorder(sink.transport, reader)
        if said is None:
            sink.visit()
            sink.visit()
        else:
            await asyncio.get_running_loop().sock_sendall(raw, said)
        await running.until(lambda: reader.gone)
        raw.close()

    assert recorder.in_hub[-1] is False


async def test_nothing_follows_a_close_frame(run_feed: RunFeed) -> None:
    async with run_feed() as running:
        raw = await raw_reader(running.feed.port, "/ws/scores", "ada")
        hub, loop = running.feed.hub, asyncio.get_running_loop()
        await running.until(lambda: len(hub.channels[MAIN_PERIOD].readers) == 1)
        (reader,) = hub.channels[MAIN_PERIOD].readers
        await asyncio.sleep(0.05)
        while b"topScores" not in await asyncio.wait_for(loop.sock_recv(raw, 1 << 16), 5):
            pass
        hub.end(reader, CloseCode.SLOW)
        reader.sink.write(b"late")
        reader.sink.end(CloseCode.SLOW)
        answer = await asyncio.wait_for(loop.sock_recv(raw, 1 << 16), 5)
        raw.close()

    assert answer == b"\x88\x06\x11\x3aslow"


async def test_a_silent_connection_is_closed(run_feed: RunFeed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "HEAD_DEADLINE_S", 0.2)
    async with run_feed() as running:
        loop = asyncio.get_running_loop()
        answers = []
        for head in (b"", b"GET /ws/scores HT", b"GET /ws/scores HTTP/1.1\r\nHost: x\r\nUpgr"):
            raw = socket.socket()
            raw.setblocking(False)
            await loop.sock_connect(raw, ("127.0.0.1", running.feed.port))
            await loop.sock_sendall(raw, head)
            answers.append(await asyncio.wait_for(loop.sock_recv(raw, 1024), 3))
            raw.close()

    assert answers == [b"", b"", b""]


async def test_a_head_without_end_is_closed(run_feed: RunFeed) -> None:
    async with run_feed() as running:
        loop = asyncio.get_running_loop()
        raw = socket.socket()
        raw.setblocking(False)
        await loop.sock_connect(raw, ("127.0.0.1", running.feed.port))
        await loop.sock_sendall(raw, b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-A: " + b"a" * 17_000)
        try:
            answer = await asyncio.wait_for(loop.sock_recv(raw, 1024), 3)
        except ConnectionResetError:
            answer = b""
        raw.close()

    assert answer == b""


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(
            "GET /ws/scores HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            id="no key",
        ),
        pytest.param(
            "GET /ws/scores HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n",
            id="a bad key",
        ),
        pytest.param(
            f"GET /ws/scores HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {'A' * 22}==\r\nSec-WebSocket-Version: 8\r\n\r\n",
            id="an old version",
        ),
        pytest.param("GET /ws/scores HTTP/9.9\r\n\r\n", id="another HTTP"),
        pytest.param("\x16\x03\x01", id="TLS"),
    ],
)  # fmt: skip
async def test_a_broken_handshake_is_answered_with_4xx(run_feed: RunFeed, head: str) -> None:
    async with run_feed() as running:
        loop = asyncio.get_running_loop()
        raw = socket.socket()
        raw.setblocking(False)
        await loop.sock_connect(raw, ("127.0.0.1", running.feed.port))
        await loop.sock_sendall(raw, head.encode("latin-1"))
        answer = await asyncio.wait_for(loop.sock_recv(raw, 1024), 3)
        raw.close()

    assert answer.startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize(
    ("more", "status"),
    [("a: b\r\n" * 130, b" 431 "), (f"Cookie: {'c' * 9_000}\r\n", b" 431 ")],
    ids=["many lines", "a long line"],
)
async def test_a_head_that_the_protocol_does_not_take_is_answered_and_closed(
    run_feed: RunFeed, more: str, status: bytes
) -> None:
    head = (
        "GET /ws/scores HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {'A' * 22}==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
    )
    async with run_feed() as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.feed.port)
        writer.write(head.encode())
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()

    assert status in answer.partition(b"\r\n")[0]


@pytest.mark.parametrize("has_room", [True, False])
def test_of_pings_that_come_while_a_socket_is_full_the_latest_is_answered(bare: Any, has_room: bool) -> None:
    written: list[bytes] = []
    bare.transport = SimpleNamespace(write=written.append, is_closing=lambda: False)
    said = [[b"one", b"two"], [], [b"three"]]
    bare.conn = SimpleNamespace(data_to_send=lambda: said.pop(0))
    if not has_room:
        bare.writable.clear()
    for _ in range(3):
        bare.handle_ping()
    before = list(written)
    bare.resume_writing()
    bare.resume_writing()

    assert before == ([b"onetwo", b"three"] if has_room else [])
    assert written == ([b"onetwo", b"three"] if has_room else [b"three"])
