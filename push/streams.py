"""One server-sent stream's life: ask, be admitted, read events, leave.

A stream is a reader like any socket: events go from the hub to its connection, one that takes
nothing is left alone and gets what covers all it missed, and is cut if it goes on. What a socket
is told by a close frame, a stream is told by its end: the browser connects again by itself.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from typing import Any, Final
from urllib.parse import parse_qs

from core.errors import Refused, Unavailable
from core.feed import Position, publication_words
from push import boards
from push.admission import Admission, Admitted, Entrance, Knock
from push.arrival import Abreast, arrived
from push.channels import Reader
from push.hub import Hub
from push.identified import Identified
from push.prepared import EXTENSION, Doorstep, Stream
from push.protocols import sse
from push.recovery import missed
from push.sockets import Receive, Send, refuse
from service import logs
from service.metrics import WEBSOCKET_CONNECTIONS

ARRIVAL_TIMEOUT_S: Final = 3.0
"""How long one that is ahead of this replica waits before it is told to come again."""

RETRY_MS: Final = (1_000, 5_000)
"""Readers of one replica are spread over this when it goes away."""

LAST_EVENT_ID_BYTES: Final = 64

_log = logs.get("push.streams")


class Streams:
    """Serves `GET /v1/boards/{board}/stream`."""

    def __init__(
        self,
        hub: Hub,
        admission: Admission,
        abreast: Abreast,
        *,
        heartbeat_s: float,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hub, self._admission, self._abreast = hub, admission, abreast
        self._heartbeat_s, self._clock_s = heartbeat_s, clock_s
        self._open: dict[Stream, float] = {}
        self._identified = Identified(hub, admission)

    async def serve(self, scope: Mapping[str, Any], receive: Receive, send: Send, board: str) -> None:
        """An ASGI request, until its stream has ended."""
        knock = Knock.of_scope(scope)
        try:
            origin = self._admission.open_to(knock, Entrance.PUBLIC)
        except Refused as error:
            await refuse(scope, send, error)
            return
        headers = _cors(origin)
        if scope["method"] == "OPTIONS" and knock.all("access-control-request-method"):
            await _allow(send, headers)
            return
        try:
            if scope["method"] != "GET":
                raise Refused(
                    "method_not_allowed",
                    "This path is read with GET.",
                    status_code=405,
                    headers={"allow": "GET, OPTIONS"},
                )
            period, watched = _period(board, scope["query_string"])
            if self._hub.channels[period].sequence.latest is None:
                raise Unavailable("The board is being loaded.", code="board_rebuilding")
            entrance = Entrance.PUBLIC if watched.public else Entrance.READERS
            admitted = await self._admission.admit(knock, entrance)
        except (Refused, Unavailable) as error:
            await refuse(scope, send, error, headers)
            return
        try:
            await self._stream(scope, period, knock, admitted, headers)
        finally:
            self._admission.release(admitted)

    def sweep(self) -> None:
        """Write heartbeats where they are due. Call it about twice a second."""
        clock_s = self._clock_s()
        for stream, due_s in list(self._open.items()):
            if clock_s >= due_s:
                stream.write(sse.HEARTBEAT)
                self._open[stream] = clock_s + self._heartbeat_s

    def end_revoked(self) -> None:
        """End the streams whose token is revoked."""
        self._identified.end_revoked()

    async def _stream(
        self,
        scope: Mapping[str, Any],
        period: str,
        knock: Knock,
        admitted: Admitted,
        headers: dict[str, str],
    ) -> None:
        doorstep: Doorstep = scope["extensions"][EXTENSION]
        said = "".join(knock.all("last-event-id")[:1])[:LAST_EVENT_ID_BYTES]
        asked = sse.position(said)
        stream = doorstep.begin_stream(_head(headers))
        opened_at_s = self._clock_s()
        WEBSOCKET_CONNECTIONS.labels(sse.NAME).inc()
        self._open[stream] = opened_at_s + self._heartbeat_s * random.uniform(0.5, 1.0)
        reader = None
        try:
            stream.write(sse.retry(random.randint(*RETRY_MS)))
            await self._abreast.reach(period)
            if asked is None or await arrived(self._hub, period, asked, ARRIVAL_TIMEOUT_S):
                reader = self._follow(stream, period, asked, admitted)
                await stream.ended.wait()
            else:
                stream.close()
        finally:
            del self._open[stream]
            if reader is not None:
                self._identified.remove(reader)
            WEBSOCKET_CONNECTIONS.labels(sse.NAME).dec()
            _log.info(
                "stream_closed",
                period=period,
                user_id=admitted.user_id or None,
                resumed=asked is not None,
                open_s=round(self._clock_s() - opened_at_s, 3),
            )

    def _follow(
        self, stream: Stream, period: str, asked: Position | None, admitted: Admitted
    ) -> Reader | None:
        """The stream's reader; None if the stream has ended."""
        channel = self._hub.channels[period]
        view = channel.sequence.latest
        if view is None or stream.ended.is_set():
            stream.close()
            return None
        to_send = None if asked is None else missed(channel, asked)
        if to_send is None:
            to_send = [(publication_words(view, None), view.position)]
        stream.write(b"".join(sse.event(*one) for one in to_send))
        reader = self._hub.follow(stream, sse.DIALECT, period, expires_at_s=admitted.expires_at_s)
        self._identified.add(reader, admitted)
        return reader


def _period(board: str, query: bytes) -> tuple[str, boards.Watched]:
    try:
        windows = parse_qs(query.decode("latin-1"), max_num_fields=16).get("window", [None])
    except ValueError:
        raise Refused("invalid_field", "The query has too many fields.") from None
    found = boards.find(board, windows[0]) if len(windows) == 1 else None
    if found is None:
        raise Refused("not_found", "There is no such board or window.", status_code=404)
    return found


def _cors(origin: str | None) -> dict[str, str]:
    """What lets a page of another origin read the answer; it was let in before."""
    return {"vary": "origin"} | ({} if origin is None else {"access-control-allow-origin": origin})


async def _allow(send: Send, headers: dict[str, str]) -> None:
    allowed = {
        "access-control-allow-methods": "GET",
        "access-control-allow-headers": "authorization, last-event-id",
        "access-control-max-age": "600",
    }
    raw = [(name.encode(), value.encode("latin-1")) for name, value in (headers | allowed).items()]
    await send({"type": "http.response.start", "status": 204, "headers": raw})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _head(headers: dict[str, str]) -> bytes:
    """The head of the response. Its body ends with the connection, in HTTP/1.0 as in 1.1."""
    lines = {
        "date": formatdate(usegmt=True),
        "content-type": sse.MEDIA_TYPE,
        "cache-control": "no-store, no-transform",
        "connection": "close",
        # Asks nginx, and those who took the header over from it, to pass events on at once.
        "x-accel-buffering": "no",
    } | headers
    return "".join(
        ["HTTP/1.1 200 OK\r\n", *(f"{name}: {value}\r\n" for name, value in lines.items()), "\r\n"]
    ).encode("latin-1")
