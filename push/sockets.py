"""One socket's life: knock, be admitted, read frames, leave.

What is sent goes from the hub to the socket without passing here; this side only hears what
the client says and when it goes. The three dialects give a client nothing to say, so whatever
it says cannot be read.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

from core.errors import Refused, Unavailable
from push import problems
from push.admission import Admission, Admitted, Entrance, Knock
from push.channels import Dialect
from push.close_codes import CloseCode
from push.hub import UNREADABLE_MESSAGE, Hub
from push.identified import Identified
from push.keepalive import Rounds
from push.prepared import EXTENSION, PreparedSocket
from service import logs, tracing

MAX_MESSAGES: Final = 20
MESSAGES_WINDOW_S: Final = 10.0
"""A client that says more than this many things within the window is closed."""

LOGGED_PATH_BYTES: Final = 200

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_log = logs.get("push.sockets")


class Sockets:
    """Serves every socket of the process. One is refused while its period has not been loaded."""

    def __init__(
        self,
        hub: Hub,
        admission: Admission,
        *,
        ping_interval_s: float = 20.0,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hub, self._admission, self._clock_s = hub, admission, clock_s
        self._rounds = Rounds(ping_interval_s, clock_s=clock_s)
        self._identified = Identified(hub, admission)

    def sweep(self) -> None:
        """Ping who is due, close who has not answered. Call it about twice a second."""
        self._rounds.sweep()

    def end_revoked(self) -> None:
        """Close the sockets whose token is revoked."""
        self._identified.end_revoked()

    async def serve(
        self, scope: Mapping[str, Any], receive: Receive, send: Send, dialect: Dialect, period: str
    ) -> None:
        """An ASGI conversation from `websocket.connect` to `websocket.disconnect`."""
        await receive()
        try:
            if self._hub.channels[period].sequence.latest is None:
                raise Unavailable("The board is being loaded.", code="board_rebuilding")
            entrance = Entrance.PUBLIC if dialect.public else Entrance.READERS
            admitted = await self._admission.admit(Knock.of_scope(scope), entrance)
        except (Refused, Unavailable) as error:
            await refuse(scope, send, error)
            return
        try:
            await self._read(scope, receive, send, dialect, period, admitted)
        finally:
            self._admission.release(admitted)

    async def _read(
        self,
        scope: Mapping[str, Any],
        receive: Receive,
        send: Send,
        dialect: Dialect,
        period: str,
        admitted: Admitted,
    ) -> None:
        await send({"type": "websocket.accept", "subprotocol": admitted.subprotocol, "headers": []})
        socket: PreparedSocket = scope["extensions"][EXTENSION]
        reader = self._hub.join(
            socket, dialect, period, user_id=admitted.user_id, expires_at_s=admitted.expires_at_s
        )
        self._rounds.add(socket)
        self._identified.add(reader, admitted)
        opened_at_s, said = self._clock_s(), 0
        _log.debug("socket_opened", dialect=dialect.name, user_id=admitted.user_id)
        window_began_s = opened_at_s
        code = None
        try:
            while (message := await receive())["type"] != "websocket.disconnect":
                now_s = self._clock_s()
                if now_s - window_began_s > MESSAGES_WINDOW_S:
                    window_began_s, said = now_s, 0
                said += 1
                if said > MAX_MESSAGES:
                    self._hub.end(reader, CloseCode.TOO_MANY)
                else:
                    self._hub.tell(
                        reader, UNREADABLE_MESSAGE, "this socket only sends: the message was not read"
                    )
            code = message.get("code")
        finally:
            self._rounds.remove(socket)
            self._identified.remove(reader)
            self._hub.leave(reader)
            _log.info(
                "socket_closed",
                dialect=dialect.name,
                user_id=admitted.user_id or None,
                code=code,
                open_s=round(self._clock_s() - opened_at_s, 3),
            )


async def refuse(
    scope: Mapping[str, Any],
    send: Send,
    error: Refused | Unavailable,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Answer a request or a handshake with a problem. Nothing was read and nothing is open.

    `headers` go with the problem's own.
    """
    trace = tracing.child(tracing.parse(_header(scope, b"traceparent")))
    answer = problems.answer(error, trace.trace_id)
    _log.info(
        "request_refused",
        path=scope["raw_path"][:LOGGED_PATH_BYTES].decode("latin-1"),
        status=answer.status_code,
        code=error.code,
        trace_id=trace.trace_id,
    )
    prefix = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    raw = [(name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    head = {"status": answer.status_code, "headers": answer.raw_headers + raw}
    await send({"type": f"{prefix}.start"} | head)
    await send({"type": f"{prefix}.body", "body": answer.body, "more_body": False})


def _header(scope: Mapping[str, Any], name: bytes) -> bytes | None:
    return next((value for header, value in scope["headers"] if header == name), None)
