"""Sockets that take prepared frames, and the HTTP doorstep before them.

`PreparedSocket` is uvicorn's WebSocket protocol with one thing more: the hub may give a ready
frame straight to its descriptor, and hears when the socket is full and when it drains; and it is
pinged by whoever serves it (`push.keepalive`). The handshake, reading and closing stay uvicorn's.

A transport writes at once what it is given, and is full as soon as it has to keep a byte
(`_bound_buffers`). So where the hub knows of no fullness nothing waits in between, and what goes
past the transport comes in its turn. A connection leaves the hub before it says its last word, and
thereby before its descriptor is closed and becomes another's.

It leans on attributes of uvicorn 0.54 that are not promised (`transport`, `close_sent`, `conn`,
`queue`, …); tests/push/test_prepared.py pins them.
"""

from __future__ import annotations

import asyncio
import random
import socket
from asyncio.transports import BaseTransport
from typing import Any, Final, cast

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.server import ServerProtocol

from push import frames
from push.channels import Flow, Reader
from push.close_codes import OURS, CloseCode, Wording

EXTENSION: Final = "trueboard.prepared"
"""Where an ASGI handler finds the protocol in its scope's `extensions`."""

SEND_BUFFER_BYTES: Final = 64 * 1024
"""What the kernel may hold for one socket (Linux grants twice this). Left to itself it took
4 MB for a reader that does not read, all of it boards that are long out of date."""

UNACKNOWLEDGED_MS: Final = 30_000
"""How long the other side may leave bytes unacknowledged before the kernel takes it for gone."""

PING_BYTES: Final = 4
PING_HEAD: Final = bytes((0x89, PING_BYTES))
TEXT, PONG = 1, 10
"""Opcodes of frames."""

CLOSE_GRACE_S: Final = 10.0
"""How long the other side may take to read and answer a close frame before the connection is cut.
A reader that stalled and comes back within it learns why it was closed."""

SHUTDOWN_GRACE_S: Final = 1.0

NO_FILE: Final = -1
"""No descriptor: what is given to it is refused."""

HEAD_DEADLINE_S: Final = 5.0
"""How long a request's head may take; uvicorn itself would wait for ever."""

MAX_HEAD_BYTES: Final = 16 * 1024
"""Longest request head; a token may be 8 KB of it."""


_DEFLATE: Final = ServerPerMessageDeflateFactory(
    server_no_context_takeover=True,
    client_no_context_takeover=True,
    server_max_window_bits=frames.WINDOW_BITS,
    client_max_window_bits=frames.WINDOW_BITS,
)
"""What is agreed to where a client offers compression: no state is kept for a socket, either way."""


class PreparedSocket(WebSocketsSansIOProtocol):
    """One WebSocket connection; a `push.hub.Sink` for any number of readers."""

    # The dictionary of uvicorn's own attributes is full: one more would double it.
    __slots__ = ("_flow", "_pong", "_readers", "awaited", "closing", "compressed", "file")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.close_timeout = CLOSE_GRACE_S
        self.compressed = False
        self.file = NO_FILE
        self.closing: Wording = OURS
        """In which protocol's words this socket is closed."""
        self._flow: Flow | None = None
        self._pong = b""
        """What is owed to the latest ping that came while the socket was full."""
        self._readers: tuple[Reader, ...] = ()
        self.awaited: bytes | None = None
        """A short text that the client is to say, only to show that it is there: it is taken here."""
        self.conn = ServerProtocol(
            extensions=[_DEFLATE], max_size=self.config.ws_max_size, logger=self.logger
        )

    # For the hub

    def attach(self, flow: Flow, reader: Reader) -> None:
        self._flow = flow
        self._readers = (*self._readers, reader)
        # Asked of the transport: a socket that was full before the upgrade told the doorstep.
        if self.waiting_bytes:
            flow.block(reader)

    def detach(self, reader: Reader) -> None:
        self._readers = tuple(known for known in self._readers if known is not reader)

    def write(self, frame: bytes) -> None:
        if not (self.close_sent or self.disconnected or self.transport.is_closing()):
            self.transport.write(frame)

    @property
    def waiting_bytes(self) -> int:
        """What has been written and the kernel has not taken yet."""
        return 0 if self.disconnected else self.transport.get_write_buffer_size()

    def end(self, code: CloseCode) -> None:
        self._leave()
        if self.disconnected:
            return
        if not (self.close_sent or self.transport.is_closing()):
            self._say_last(code)
            if self.read_paused:
                self.read_paused = False
                self.transport.resume_reading()
        # Cut, not closed: closing waits for a full buffer to drain, and it may never.
        if self.close_timer is not None:
            self.close_timer.cancel()
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.abort)

    def _say_last(self, code: CloseCode) -> None:
        """Tell both sides, the client's and the handler's, that this is closed, and why."""
        number, reason = self.closing[code]
        self.queue.put_nowait({"type": "websocket.disconnect", "code": number, "reason": reason})
        self.conn.send_close(number, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True

    def visit(self) -> None:
        """Ping the other side; one that has not answered the last ping is gone."""
        if self.close_sent or self.disconnected or self.transport.is_closing():
            return
        if self.pending_ping_payload is not None:
            self.keepalive_timeout()
            return
        self.pending_ping_payload = random.randbytes(PING_BYTES)
        self.transport.write(PING_HEAD + self.pending_ping_payload)

    def _leave(self) -> None:
        readers, self._readers = self._readers, ()
        if self._flow is not None:
            for reader in readers:
                self._flow.leave(reader)

    # What uvicorn calls

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        self.file = _bound_buffers(self.transport)

    def data_received(self, data: bytes) -> None:
        # Almost all that readers ever say. That something else looks like it is as good as impossible:
        # it would have to be a piece of a message, alone in its packet, masked to just these bytes.
        if self.pending_ping_payload is not None and _is_frame(data, PONG, self.pending_ping_payload):
            self.pending_ping_payload = None
        elif self.awaited is not None and _is_frame(data, TEXT, self.awaited):
            self.awaited = None
        else:
            super().data_received(data)
            if self.conn.handshake_exc is not None and not self.handshake_complete:
                self._turn_away()

    def _turn_away(self) -> None:
        """Say what is wrong with a head that is not taken, and close; uvicorn would leave it unsaid."""
        self.handshake_complete = self.close_sent = True
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.transport.close()

    def handle_ping(self) -> None:
        pongs = self.conn.data_to_send()
        if not pongs:
            return
        if self.writable.is_set():
            self.write(b"".join(pongs))
        else:
            # Who pings and reads nothing would have all of them kept. To answer the latest is enough
            # (RFC 6455 §5.5.3).
            self._pong = pongs[-1]

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        # A client may insist on a smaller window than frames are compressed with: then they stay plain.
        self.compressed = any(
            isinstance(extension, PerMessageDeflate) and extension.local_max_window_bits >= frames.WINDOW_BITS
            for extension in self.conn.extensions
        )
        if hasattr(self, "scope"):
            # The task that reads the scope has been made but has not run yet.
            extensions = cast("dict[str, Any]", self.scope["extensions"])
            extensions[EXTENSION] = self

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if message["type"] == "websocket.accept":
            # The handshake is over: what it said would stay in memory as long as the socket.
            del self.request, self.response
        if message["type"] == "websocket.http.response.body" and self.close_sent:
            # Refused by an HTTP answer. uvicorn would take the handshake for forgotten, and say so.
            self.handshake_complete = True

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._flow is not None:
            for reader in self._readers:
                self._flow.block(reader)

    def resume_writing(self) -> None:
        super().resume_writing()
        pong, self._pong = self._pong, b""
        if pong:
            self.write(pong)
        if self._flow is not None:
            for reader in self._readers:
                # What one of them is sent may fill it again.
                if self.writable.is_set():
                    self._flow.unblock(reader)

    def handle_close(self, event: Frame) -> None:
        self._leave()
        super().handle_close(event)

    def handle_parser_exception(self) -> None:
        self._leave()
        super().handle_parser_exception()

    def keepalive_timeout(self) -> None:
        self._leave()
        super().keepalive_timeout()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self.file = NO_FILE
        super().connection_lost(exc)

    def shutdown(self) -> None:
        self._leave()
        if self.disconnected:
            # It left after the stop began.
            return
        if not self.transport.is_closing():
            if self.handshake_complete and not self.close_sent:
                self._say_last(CloseCode.RESTART)
            super().shutdown()
        # A reader that does not read would keep the process waiting.
        self.loop.call_later(SHUTDOWN_GRACE_S, self.transport.abort)


def _is_frame(data: bytes, opcode: int, payload: bytes) -> bool:
    """Whether this is one whole, masked frame with this short payload (RFC 6455 §5.2)."""
    size = len(payload)
    if len(data) != 6 + size or data[0] != 0x80 | opcode or data[1] != 0x80 | size:
        return False
    mask, masked = int.from_bytes(data[2 : 2 + size]), int.from_bytes(data[6:])
    return size <= 4 and mask ^ masked == int.from_bytes(payload)


def _bound_buffers(transport: asyncio.Transport) -> int:
    """Full as soon as the kernel takes no more, and that soon: then at most one frame waits here.

    The transport's descriptor.
    """
    transport.set_write_buffer_limits(high=0)
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        # A peer that vanished acknowledges nothing: the kernel gives up instead of trying for minutes.
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
    return NO_FILE if sock is None else int(sock.fileno())


class Stream:
    """A response that goes on until its reader leaves; a `push.hub.Sink`. Made by `Doorstep.begin_stream`."""

    compressed = False

    def __init__(self, transport: asyncio.Transport) -> None:
        self.file = _bound_buffers(transport)
        self.ended = asyncio.Event()
        self._transport = transport
        self._flow: Flow | None = None
        self._reader: Reader | None = None

    def attach(self, flow: Flow, reader: Reader) -> None:
        self._flow, self._reader = flow, reader
        if self._transport.get_write_buffer_size():
            flow.block(reader)

    def write(self, frame: bytes) -> None:
        if not self.ended.is_set() and not self._transport.is_closing():
            self._transport.write(frame)

    def end(self, code: CloseCode) -> None:
        if code is CloseCode.SLOW:
            # Closing would wait for a buffer to drain that does not.
            self.leave()
            self._transport.abort()
        else:
            self.close()

    def close(self) -> None:
        """End it after what was written; cut it if that is not taken in time."""
        self.leave()
        self._transport.close()
        asyncio.get_running_loop().call_later(SHUTDOWN_GRACE_S, self._transport.abort)

    def leave(self) -> None:
        """Nothing is written any more."""
        self.ended.set()
        if self._flow is not None and self._reader is not None:
            self._flow.leave(self._reader)

    def fill(self) -> None:
        if self._flow is not None and self._reader is not None:
            self._flow.block(self._reader)

    def drain(self) -> None:
        if self._flow is not None and self._reader is not None:
            self._flow.unblock(self._reader)


class Doorstep(HttpToolsProtocol):
    """HTTP before the upgrade, with a deadline and a size for the head of a request; and streams."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._stream: Stream | None = None

    def begin_stream(self, head: bytes) -> Stream:
        """Answer the present request with this head and a body that goes on.

        From here on the connection is the stream's: uvicorn takes the response for complete, and
        what the client says is not read.
        """
        self._unset_keepalive_if_required()
        self.cycle.response_started = True
        self.cycle.response_complete = True
        self.cycle.keep_alive = False
        self._stream = Stream(self.transport)
        self.transport.write(head)
        return self._stream

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        if self._stream is not None:
            return
        if self._head_timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._head_arrived()
                self.transport.close()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_timer is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        self._head_arrived()
        # The task that reads the scope is made by what follows.
        cast("dict[str, Any]", self.scope)["extensions"] = {EXTENSION: self}
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        if self._stream is not None:
            self._stream.leave()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stream is not None:
            self._stream.fill()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stream is not None:
            self._stream.drain()

    def shutdown(self) -> None:
        if self._stream is not None:
            self._stream.close()
        else:
            super().shutdown()

    def _expect_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(HEAD_DEADLINE_S, self.transport.close)

    def _head_arrived(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
