"""One request and its answer on a connection: what uvicorn's own cycle does, at half the cost.

It is as an application expects by ASGI 2.3. An answer's head waits for the first of its body, so
that both leave in one write; and nothing is made for a request (an event, a timer, a check of each
header by itself) that most requests never need.

Source: https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final, Protocol

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl

from ingest import problems
from service import logs, tracing

_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
_WITHOUT_BODY: Final = frozenset({204, 304})

_log = logs.get("ingest.exchange")

App = Callable[[Any, Any, Any], Awaitable[None]]


class Connection(Protocol):
    """What an exchange needs of the connection it is on."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    flow: FlowControl
    tasks: set[asyncio.Task[None]]

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]: ...
    def on_response_complete(self) -> None: ...
    def on_last_response_complete(self) -> None: ...


class Exchange:
    """`take` and `whole` bring the body in, `run` lets the application answer."""

    __slots__ = (
        "_awaited",
        "_awaits_100",
        "_chunked",
        "_connection",
        "_left_bytes",
        "_news",
        "_parts",
        "_size",
        "_start",
        "_task",
        "disconnected",
        "keep_alive",
        "more_body",
        "response_complete",
        "response_started",
        "scope",
    )

    def __init__(self, connection: Connection, scope: Any, *, keep_alive: bool, awaits_100: bool) -> None:
        self._connection, self.scope = connection, scope
        self.keep_alive, self._awaits_100 = keep_alive, awaits_100
        self.disconnected = self.response_started = self.response_complete = False
        self.more_body = True
        self._parts: list[bytes] = []
        self._size = 0
        self._news = False
        self._awaited: asyncio.Future[None] | None = None
        self._start: Any = None
        self._chunked = False
        self._left_bytes = 0
        self._task: asyncio.Task[None] | None = None

    def begin(self, app: App) -> None:
        """Let the application answer, from the loop's next turn on."""
        connection = self._connection
        self._task = connection.loop.create_task(self._run(app))
        connection.tasks.add(self._task)

    def take(self, body: bytes) -> None:
        """A part of the body; too much of it unread stops the reading."""
        self._parts.append(body)
        self._size += len(body)
        if self._size > HIGH_WATER_LIMIT:
            self._connection.flow.pause_reading()
        self.tell()

    def whole(self) -> None:
        """The body has ended."""
        self.more_body = False
        self.tell()

    def tell(self) -> None:
        """Something is new for whoever waits in `receive`."""
        self._news = True
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(None)

    async def _run(self, app: App) -> None:
        try:
            await app(self.scope, self.receive, self.send)
            if not self.response_complete and not self.disconnected:
                raise RuntimeError("the application ended without a whole answer")
        except Exception:
            _log.exception("application_failed")
            if self.response_started:
                self._connection.transport.close()
            else:
                await self._send_500()
        finally:
            if self._task is not None:
                self._connection.tasks.discard(self._task)
                self._task = None

    async def _send_500(self) -> None:
        detail = "The request met a defect."
        body = problems.encode("internal", 500, detail, tracing.make().trace_id)
        headers = [
            (b"content-type", problems.CONTENT_TYPE),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        self._start = None
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    async def receive(self) -> dict[str, Any]:
        """The next message to the application."""
        connection = self._connection
        if self._awaits_100 and not (
            self.response_started or self.disconnected or connection.transport.is_closing()
        ):
            connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._awaits_100 = False
        if not (self._news or self.disconnected or self.response_complete):
            connection.flow.resume_reading()
            self._awaited = connection.loop.create_future()
            await self._awaited
            self._awaited = None
        self._news = False
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        parts, self._parts, self._size = self._parts, [], 0
        return {"type": "http.request", "body": b"".join(parts), "more_body": self.more_body}

    async def send(self, message: Any) -> None:
        """Take a message of the application's.

        Raises:
            RuntimeError: it is out of order, or not what its head says.
        """
        connection = self._connection
        if connection.flow.write_paused and not self.disconnected:
            await connection.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if kind == "http.response.start" and self._start is None:
            self._start = message
            return
        if kind != "http.response.body" or self._start is None or self.response_complete:
            raise RuntimeError(f"{kind} out of order")
        body, more = message.get("body", b""), message.get("more_body", False)
        head = b"" if self.response_started else self._head()
        self.response_started = True
        connection.transport.write(head + self._framed(body, more))
        if not more:
            if self._left_bytes:
                raise RuntimeError("the answer is shorter than its Content-Length")
            self.response_complete = True
            self.tell()
            if self.keep_alive:
                connection.on_response_complete()
            else:
                connection.on_last_response_complete()

    def _head(self) -> bytes:
        """Status line and headers, and from them how the body is framed."""
        status, headers = self._start["status"], self._start.get("headers", ())
        lines = [_STATUS_LINES[status]]
        for name, value in self._connection.default_headers:
            lines += (name, b": ", value, b"\r\n")
        for name, value in headers:
            lines += (name, b": ", value, b"\r\n")
        count = 1 + len(self._connection.default_headers) + len(headers)
        fields = dict(headers)
        closing = b"close" in fields.get(b"connection", b"").lower()
        if closing:
            self.keep_alive = False
        elif not self.keep_alive:
            lines.append(b"connection: close\r\n")
            count += 1
        if self.scope["method"] != "HEAD" and status not in _WITHOUT_BODY:
            length = fields.get(b"content-length")
            if length is not None:
                self._left_bytes = int(length)
            else:
                self._chunked = True
                lines.append(b"transfer-encoding: chunked\r\n")
                count += 1
        lines.append(b"\r\n")
        head = b"".join(lines)
        # Whatever a header was made of, it does not begin another one.
        if head.count(b"\n") != count + 1 or head.count(b"\r") != count + 1 or b"\0" in head:
            raise RuntimeError("a header of the answer holds a line end or a NUL")
        return head

    def _framed(self, body: bytes, more: bool) -> bytes:
        if self._chunked:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            return chunk if more else chunk + b"0\r\n\r\n"
        if self.scope["method"] == "HEAD":
            return b""
        if len(body) > self._left_bytes:
            raise RuntimeError("the answer is longer than its Content-Length")
        self._left_bytes -= len(body)
        return body
