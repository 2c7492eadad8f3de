"""Every Centrifuge client's socket: let in, listened to, pinged, and let go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.errors import Refused, Unavailable
from push.admission import Admitted, Entrance, Knock
from push.close_codes import CENTRIFUGE
from push.conversation import Conversation, House
from push.prepared import EXTENSION, PreparedSocket
from push.protocols import centrifuge
from push.sockets import Receive, Send, refuse
from service import logs
from service.metrics import WEBSOCKET_CONNECTIONS

_log = logs.get("push.conversations")


class Conversations:
    """Serves `/connection/websocket`."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._open: dict[Conversation, None] = {}

    async def serve(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """An ASGI conversation from `websocket.connect` to `websocket.disconnect`."""
        await receive()
        knock = Knock.of_scope(scope)
        try:
            admitted = await self._house.admission.admit(knock, Entrance.EITHER)
        except (Refused, Unavailable) as error:
            await refuse(scope, send, error)
            return
        try:
            await self._listen(scope, receive, send, knock, admitted)
        finally:
            self._house.admission.release(admitted)

    def sweep(self, now_s: float) -> None:
        """Ping who is due, close who is silent or expired. Call it about twice a second."""
        clock_s = self._house.clock_s()
        for conversation in [each for each in self._open if clock_s >= each.due_s]:
            conversation.sweep(now_s)

    def end_revoked(self) -> None:
        """Close the sockets whose token is revoked."""
        for conversation in list(self._open):
            conversation.end_if_revoked()

    async def _listen(
        self, scope: Mapping[str, Any], receive: Receive, send: Send, knock: Knock, admitted: Admitted
    ) -> None:
        await send({"type": "websocket.accept", "subprotocol": admitted.subprotocol, "headers": []})
        socket: PreparedSocket = scope["extensions"][EXTENSION]
        socket.closing = CENTRIFUGE
        conversation = Conversation(self._house, socket, knock, admitted)
        self._open[conversation] = None
        # It may have been revoked since it was let in.
        conversation.end_if_revoked()
        opened_at_s = self._house.clock_s()
        WEBSOCKET_CONNECTIONS.labels(centrifuge.NAME).inc()
        code = None
        try:
            while (message := await receive())["type"] != "websocket.disconnect":
                if not conversation.ended:
                    await conversation.hear(message.get("text"))
            code = message.get("code")
        finally:
            conversation.leave()
            del self._open[conversation]
            WEBSOCKET_CONNECTIONS.labels(centrifuge.NAME).dec()
            _log.info(
                "socket_closed",
                dialect=centrifuge.NAME,
                user_id=conversation.user_id or None,
                client=conversation.client or None,
                code=code,
                open_s=round(self._house.clock_s() - opened_at_s, 3),
            )
