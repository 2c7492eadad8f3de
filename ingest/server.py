"""uvicorn as this service runs it: deadlines for what a client sends and reads, and an orderly end.

uvicorn's own time-outs begin when a request is whole. A client that dribbles its head or its
body, connects and says nothing, or stops reading, is cut here: by one sweep over the
connections twice a second instead of a timer for every request.

A socket that is closed over bytes nobody read is reset, and the reset can take the answer from a
client that has not read it yet. So whoever is answered for good while still sending is listened
to for a while after the answer's end.

Source: https://www.rfc-editor.org/rfc/rfc9112#section-9.6
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ingest import problems
from ingest.exchange import Exchange
from service import tracing

RECEIVE_S: Final = 5.0
"""For a head, and for a body."""

READ_S: Final = 10.0
"""For a client that has stopped taking in its answer."""

LINGER_S: Final = 5.0
"""For what still comes after the last answer: as long as for a body that is wanted."""

MOST_THROWN_AWAY_BYTES: Final = 125_000_000
"""Of what still comes after the last answer: what 200 Mbit/s bring in LINGER_S."""

KEEP_ALIVE_S: Final = 5
STOP_WITHIN_S: Final = 6

MOST_HEAD_BYTES: Final = 32 * 1024
"""Of a head that is not whole yet, where it is given up; whole ones are looked at by the door."""

LONGEST_KEPT_URL_BYTES: Final = 512

_SWEEP_EVERY_S = 0.5
_BACKLOG = 2048
_ASGI: Final = {"version": "3.0", "spec_version": "2.3"}


class Protocol(HttpToolsProtocol):
    """One connection, with the instants since when it owes us something; 0 when it owes nothing.

    Of uvicorn's protocol it keeps the connection and its end, and has the request to itself.
    """

    cycle: Exchange | None  # type: ignore[assignment]
    pipeline: deque[Exchange]  # type: ignore[assignment]

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.sending_since_s = 0.0
        self.reading_since_s = 0.0
        self.idle_since_s = 0.0
        self.lingering_since_s = 0.0
        self.closing_since_s = 0.0
        self._begun = self._head_open = self._body_came = self._stopping = False
        self._head_bytes = self._thrown_away_bytes = 0

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """What every answer bears: the date."""
        return self.server_state.default_headers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.sending_since_s = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        self._disconnect()
        self.flow.resume_writing()
        if exc is None:
            self.transport.close()
        self.parser = None  # type: ignore[assignment]

    def shutdown(self) -> None:
        """The service stops: finish what is in hand. Who has the last answer is not waited for."""
        self._stopping = True
        if self.lingering_since_s:
            self.transport.close()
        else:
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        if self.lingering_since_s:
            # Not parsed: neither a body's end nor another request changes anything.
            self._thrown_away_bytes += len(data)
            if self._thrown_away_bytes > MOST_THROWN_AWAY_BYTES:
                self.transport.abort()
            return
        self.idle_since_s = 0.0
        if not self.sending_since_s and (self.cycle is None or self.cycle.response_complete):
            self.sending_since_s = self.loop.time()
        self._body_came = False
        super().data_received(data)
        if self._begun and not self._body_came:
            # A head, or what a body has in the place of one: the sizes of its chunks, and trailers. The
            # parser keeps a value until it ends, and takes the longer to go on the longer it is.
            self._head_bytes += len(data)
            if self._head_bytes <= MOST_HEAD_BYTES or self.lingering_since_s:
                return
            status = 431 if self.headers or not self._head_open else 414
            self._answer_and_close(status, "too_large", "The head of the request is too large.")

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._begun = self._head_open = True
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_open:
            # A trailer (RFC 9110 §6.5.1): nothing here is to be said after the body.
            return
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        parser = self.parser
        version = parser.get_http_version()
        # Long ones are not kept: they are few, and refused.
        parts_of = _parts_of if len(self.url) <= LONGEST_KEPT_URL_BYTES else _parts_of.__wrapped__
        path, raw_path, query = parts_of(self.url)
        self.scope = {
            "type": "http",
            "asgi": _ASGI,  # type: ignore[typeddict-item]
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,  # type: ignore[typeddict-item]
            "root_path": "",
            "method": parser.get_method().decode("ascii"),
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": self.headers,
            "state": {},
        }
        before = self.cycle
        self.cycle = Exchange(
            self,
            self.scope,
            keep_alive=version != "1.0" and parser.should_keep_alive(),
            awaits_100=self.expect_100_continue,
        )
        self._head_open = False
        # The body has a deadline of its own.
        self.sending_since_s = self.loop.time()
        if before is None or before.response_complete:
            self.cycle.begin(self.app)
        else:
            # It was sent before the last one was answered, and has to wait for that.
            self.flow.pause_reading()
            self.pipeline.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        self._body_came, self._head_bytes = True, 0
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.take(body)

    def on_message_complete(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.whole()
        else:
            # It was answered before it was whole: only now nothing more is to come.
            self.idle_since_s = self.loop.time()
        self.sending_since_s = 0.0
        self._begun = False

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self.pipeline.popleft().begin(self.app)
            if self.sending_since_s:
                # The rest of its body was not let in until now.
                self.sending_since_s = self.loop.time()
        else:
            self.idle_since_s = self.loop.time()

    def on_last_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self._begun or self.pipeline:
            self._linger()
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.reading_since_s = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.reading_since_s = 0.0

    def send_400_response(self, msg: str) -> None:
        """The parser could not make sense of it; this is not routed to anybody."""
        self._answer_and_close(400, "invalid_request", "The request is not HTTP/1.1 as it should be.")

    def sweep(self, now_s: float) -> None:
        """Cut the connection if it has kept us waiting for too long."""
        if self.transport.is_closing():
            # It is closed once the rest is written, which nobody may ever take in.
            self.closing_since_s = self.closing_since_s or now_s
            if now_s - self.closing_since_s > READ_S:
                self.transport.abort()
        elif self.reading_since_s and now_s - self.reading_since_s > READ_S:
            self.transport.abort()
        elif self.lingering_since_s:
            if now_s - self.lingering_since_s > LINGER_S:
                self.transport.abort()
        elif self.idle_since_s and now_s - self.idle_since_s > KEEP_ALIVE_S and self._is_answered():
            self.transport.close()
        elif self.sending_since_s and now_s - self.sending_since_s > RECEIVE_S and not self.pipeline:
            if not self._begun:
                # Nothing was said at all: there is nothing to answer.
                self.transport.close()
            else:
                self._answer_and_close(408, "request_timeout", "The request did not arrive in time.")

    def _is_answered(self) -> bool:
        """Every request whose head is whole has its answer."""
        return self.cycle is None or self.cycle.response_complete

    def _answer_and_close(self, status: int, code: str, detail: str) -> None:
        """Give up the request that is coming in. One that has its answer gets no second one."""
        if self.transport.is_closing() or self.lingering_since_s:
            return
        answered, in_body = self._is_answered(), self._begun and not self._head_open
        begun = self.cycle is not None and self.cycle.response_started
        if self.pipeline or not (answered or (in_body and not begun)):
            # It would be taken for the answer to a request before, or for a part of one.
            self.transport.abort()
            return
        if not (in_body and answered):
            body = problems.encode(code, status, detail, tracing.make().trace_id)
            reason = HTTPStatus(status).phrase
            self.transport.write(
                (
                    f"HTTP/1.1 {status} {reason}\r\ncontent-type: {problems.CONTENT_TYPE.decode()}\r\n"
                    f"content-length: {len(body)}\r\ncache-control: no-store\r\nconnection: close\r\n\r\n"
                ).encode()
                + body
            )
        self._linger()

    def _linger(self) -> None:
        """End what we send, and throw away what comes until the other side closes too, or it is too much."""
        self._disconnect()
        if self.transport.is_closing():
            return
        if self._stopping:
            self.transport.close()
            return
        self.lingering_since_s = self.loop.time()
        self.transport.write_eof()
        # Who cannot go on sending may never come to read.
        self.flow.resume_reading()

    def _disconnect(self) -> None:
        """Tell who has not answered yet that nobody takes it in any more."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.tell()
        for waiting in self.pipeline:
            waiting.disconnected = True
        self.pipeline.clear()


@lru_cache(maxsize=1024)
def _parts_of(url: bytes) -> tuple[str, bytes, bytes]:
    """Path, the path as sent, and query. Raises what the parser takes for a malformed request."""
    parsed = httptools.parse_url(url)
    raw_path: bytes = parsed.path
    path = raw_path.decode("ascii")
    return unquote(path) if "%" in path else path, raw_path, parsed.query or b""


class Server(uvicorn.Server):
    """A server that ends with status 0 when it is told to stop. `on_stop` is called as it begins to."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn would raise the signal again once it has stopped, before anything else is closed.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def on_tick(self, counter: int) -> bool:
        # Ten ticks a second.
        if counter % int(10 * _SWEEP_EVERY_S) == 0:
            now_s = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Protocol):
                    connection.sweep(now_s)
        return await super().on_tick(counter)

    def _told_to_stop(self) -> None:
        self._on_stop()
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True


def configure(app: Any, host: str, port: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http=Protocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_WITHIN_S,
        backlog=_BACKLOG,
    )


def instance_id() -> str:
    """A name no other instance has: the stream answers to it, and Redis has a channel of it."""
    return os.urandom(8).hex()
