"""An issuer of tokens that can be down, slow, broken or empty: the server of a key set."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path
from typing import Literal

Mood = Literal["right", "500", "empty", "slow"]

SLOW_S = 20.0
"""Longer than anybody waits for keys."""


class Issuer:
    """Serves a key set at `url`, in the mood it is in; `end` and `begin` take it down and up."""

    def __init__(self, jwks: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/jwks.json"
        self.mood: Mood = "right"
        self.reads = 0
        self._jwks, self._port = jwks, port
        self._ended = threading.Event()
        self._server: http.server.ThreadingHTTPServer | None = None

    def begin(self) -> None:
        issuer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.reads += 1
                if issuer.mood == "slow":
                    issuer._ended.wait(SLOW_S)
                body = b'{"keys": []}' if issuer.mood == "empty" else issuer._jwks.read_bytes()
                self.send_response(500 if issuer.mood == "500" else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Nobody wants to know."""

        self._ended.clear()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def end(self) -> None:
        self._ended.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
