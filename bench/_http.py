"""A keep-alive connection that sends ready-made requests and tells how each was answered.

As little as a load generator can do, so that it takes little of the machine it shares: no
pipelining, no chunked bodies, every answer with a Content-Length.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Final, cast

_LENGTH: Final = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: *([0-9]+)\r\n")
_END: Final = b"\r\n\r\n"


class Connection(asyncio.Protocol):
    """`answered(connection, status, body)` is called for each; `lost` once, if it was closed over there."""

    def __init__(
        self,
        answered: Callable[[Connection, int, bytes], None],
        lost: Callable[[], None],
    ) -> None:
        self._answered, self._lost = answered, lost
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self.sent_s = 0.0
        """For whoever times it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport is not None:
            self._lost()

    def send(self, request: bytes) -> None:
        assert self._transport is not None
        self._transport.write(request)

    def close(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def data_received(self, data: bytes) -> None:
        received = self._received + data if self._received else data
        head = received.find(_END)
        if head >= 0:
            length = _LENGTH.search(received, 0, head + 2)
            whole = head + 4 + (int(length[1]) if length else 0)
            if len(received) >= whole:
                self._received = received[whole:]
                self._answered(self, int(received[9:12]), received[head + 4 : whole])
                return
        self._received = received


def head(host: str, path: str, *headers: str) -> bytes:
    """A request's head but for its last line, `Content-Length`."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {host}",
        "User-Agent: trueboard-bench",
        "Accept: application/json",
        "Content-Type: application/json",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\nContent-Length: "


def request(head: bytes, body: bytes) -> bytes:
    return b"%s%d\r\n\r\n%s" % (head, len(body), body)
