"""The rival of `bench/fanout.py`: a board of `litestar.channels` behind the plugin's own WebSocket route.

Each line on standard input is a number and is published in a message of the size asked for. Compression
is off, as it is for all. `python -P -m bench._channels PORT BYTES`.
"""

from __future__ import annotations

import asyncio
import sys

import uvicorn
from litestar import Litestar
from litestar.channels import ChannelsPlugin
from litestar.channels.backends.memory import MemoryChannelsBackend

CHANNEL = "board"

channels = ChannelsPlugin(MemoryChannelsBackend(), channels=[CHANNEL], create_ws_route_handlers=True)


class Lines(asyncio.Protocol):
    """Standard input, a line a publication."""

    def __init__(self, payload_bytes: int) -> None:
        self._payload_bytes = payload_bytes
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            head = b'{"revision":%s,"pad":"' % line
            channels.publish(head.ljust(self._payload_bytes - 2, b"x") + b'"}', CHANNEL)


async def listen_to_input() -> None:
    """Read standard input on the server's own loop."""
    await asyncio.get_running_loop().connect_read_pipe(lambda: Lines(int(sys.argv[2])), sys.stdin)


if __name__ == "__main__":
    uvicorn.run(
        Litestar(plugins=[channels], on_startup=[listen_to_input], openapi_config=None, logging_config=None),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        log_config=None,
        access_log=False,
        backlog=4096,
    )
