"""The listener: a Litestar app on uvicorn, set up for sockets that mostly listen."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
from collections.abc import Generator, Iterable
from typing import Any, Final

import uvicorn
from litestar import Litestar, asgi
from litestar.types import ASGIApp, Receive, Scope, Send

from core.errors import Refused
from core.words import MAIN_PERIOD
from push.channels import Dialect
from push.conversations import Conversations
from push.prepared import Doorstep, PreparedSocket
from push.protocols import centrifuge, leaderboard, scoreboard, scores, sse
from push.sockets import Sockets, refuse
from push.streams import Streams
from service import logs

DIALECTS = (scores.DIALECT, scoreboard.DIALECT, leaderboard.DIALECT)
"""What the default board's three paths speak."""

FEED_PATHS: Final = (*(dialect.path for dialect in DIALECTS), centrifuge.PATH, sse.PATH)
"""Every path that the feed serves."""

DRAIN_GAP_S: Final = 0.002
"""Between two connections that a stop closes, where there are few."""

_log = logs.get("push.server")

_STREAM: Final = re.compile(sse.PATH.replace("{board}", "([a-z0-9-]{1,64})"))

MAX_MESSAGE_BYTES = 32 * 1024
"""Longest message of a client, unpacked: a token of 8 KB and some channels fit."""


class Server(uvicorn.Server):
    """uvicorn's server, leaving signals to whoever runs the process.

    uvicorn would raise a signal again after it has stopped, so that the process ended as
    killed; here a stop that was asked for ends with exit code 0.
    """

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    drain_s = 0.0
    """Over how long a stop spreads the closing of connections, at most."""

    def stop(self) -> None:
        """Take no more connections, close those there are for a restart, then end."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, but the connections are closed one after the other.

        Readers connect again as soon as they are closed: all at once they would be a storm for
        the other replicas.
        """
        for listening in self.servers:
            listening.close()
        for bound in sockets or []:
            bound.close()
        connections = list(self.server_state.connections)
        random.shuffle(connections)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        gap_s = min(self.drain_s / max(1, len(connections)), DRAIN_GAP_S)
        for n, connection in enumerate(connections):
            if (early_s := began_s + n * gap_s - loop.time()) > 0:
                await asyncio.sleep(early_s)
            try:
                connection.shutdown()
            except Exception:
                # The others are still to be closed in good order.
                _log.exception("connection_not_closed")
        await super().shutdown(sockets)


def feed_app(sockets: Sockets, conversations: Conversations, streams: Streams) -> Litestar:
    """The routes of the feed's port; anything else is a 404 problem."""

    def route(dialect: Dialect) -> Any:
        async def speak(scope: Scope, receive: Receive, send: Send) -> None:
            if not _is_websocket(scope):
                detail = "This path speaks WebSocket."
                await refuse(scope, send, Refused("not_found", detail, status_code=404))  # type: ignore[arg-type]
            else:
                await sockets.serve(scope, receive, send, dialect, MAIN_PERIOD)  # type: ignore[arg-type]

        return asgi(dialect.path, copy_scope=False)(speak)

    @asgi(centrifuge.PATH, copy_scope=False)
    async def converse(scope: Scope, receive: Receive, send: Send) -> None:
        if not _is_websocket(scope):
            detail = "This path speaks WebSocket."
            await refuse(scope, send, Refused("not_found", detail, status_code=404))  # type: ignore[arg-type]
        else:
            await conversations.serve(scope, receive, send)  # type: ignore[arg-type]

    @asgi("/", is_mount=True, copy_scope=False)
    async def elsewhere(scope: Scope, receive: Receive, send: Send) -> None:
        # Streams too: Litestar asks a mount at the root before any route with parameters.
        # The path as it was sent: the mount has changed the other one.
        stream = _STREAM.fullmatch(scope["raw_path"].decode("latin-1"))
        if stream is not None and not _is_websocket(scope):
            await streams.serve(scope, receive, send, stream[1])  # type: ignore[arg-type]
            return
        if _is_websocket(scope):
            await receive()
        await refuse(scope, send, Refused("not_found", "No such path.", status_code=404))  # type: ignore[arg-type]

    return Litestar(
        route_handlers=[*(route(dialect) for dialect in DIALECTS), converse, elsewhere],
        openapi_config=None,
        logging_config=None,
    )


def _is_websocket(scope: Scope) -> bool:
    kind: str = scope["type"]
    return kind == "websocket"


def server_for(
    app: ASGIApp,
    *,
    trusted_proxies: Iterable[str] = (),
    drain_s: float = 1.0,
) -> Server:
    """A server for this app, not listening yet.

    `trusted_proxies` are the addresses or networks whose forwarded headers are believed.
    uvicorn's own compression is off: every socket would have a state of its own. What is agreed
    to instead is `push.prepared`'s.
    """
    trusted = list(trusted_proxies)
    server = Server(
        uvicorn.Config(
            app,
            http=Doorstep,
            ws=PreparedSocket,
            ws_max_size=MAX_MESSAGE_BYTES,
            # Whoever serves a socket pings it.
            ws_ping_interval=None,
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=bool(trusted),
            forwarded_allow_ips=trusted,
            server_header=False,
            backlog=4096,
            # Longer than the grace a socket gets to answer its close frame, shorter than 3 s.
            timeout_graceful_shutdown=2,
        )
    )
    server.drain_s = drain_s
    return server
