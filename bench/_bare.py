"""The floor under `bench/ingest.py`: the least an ASGI application can do on the door's own server.

It reads nothing, decides nothing, keeps nothing, and says 202. `python -P -m bench._bare PORT`.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import uvloop

from ingest import server

_BODY: Final = b'{"status":"submitted"}'
_START: Final = {
    "type": "http.response.start",
    "status": 202,
    "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_BODY))],
}
_REST: Final = {"type": "http.response.body", "body": _BODY}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """202 to everything."""
    await send(_START)
    await send(_REST)


if __name__ == "__main__":
    config = server.configure(app, "127.0.0.1", int(sys.argv[1]))
    uvloop.run(server.Server(config, on_stop=lambda: None).serve())
