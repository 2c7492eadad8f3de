"""A loopback port that says how the process is: `/metrics`, `/health/live`, `/health/ready`.

It runs on threads of its own, beside any event loop, so it answers also while the loop is
busy; that is why `live` must look at something the loop has to move, not only return.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder

from service import logs

_CLIENT_TIMEOUT_S = 5.0

_log = logs.get("service.health")


class HealthServer:
    """Serves the three paths on `host:port` between `start` and `stop`.

    `live` returns what to show; `"ok": False` in it answers 503, and so does raising.
    `ready` returns whether to send this process work, and what to show. Both are called on
    the server's threads and must return quickly, without awaiting anything.
    """

    def __init__(
        self,
        port: int,
        host: str = "127.0.0.1",
        *,
        live: Callable[[], Mapping[str, Any]],
        ready: Callable[[], tuple[bool, Mapping[str, Any]]],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self.host, self.port = host, port
        self._live, self._ready, self._registry = live, ready, registry
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """`http://host:port`; the port is the real one once started, also when asked for 0."""
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        """Listen. Raises OSError if the port is taken."""
        if self._server is not None:
            return
        server = ThreadingHTTPServer((self.host, self.port), self._handler())
        server.daemon_threads = True
        # Waiting for a reader that went silent would hold up the end of the process.
        server.block_on_close = False
        self._server, self.port = server, server.server_address[1]
        self._thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="health", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop listening; nothing happens when it is not started."""
        server, self._server = self._server, None
        if server is None or self._thread is None:
            return
        server.shutdown()
        server.server_close()
        self._thread.join(timeout=_CLIENT_TIMEOUT_S)

    def _liveness(self) -> tuple[int, dict[str, Any]]:
        try:
            shown = dict(self._live())
        except Exception as error:
            _log.exception("liveness_unknown")
            return 503, {"ok": False, "error": type(error).__name__}
        shown.setdefault("ok", True)
        return (200 if shown["ok"] else 503), shown

    def _readiness(self) -> tuple[int, dict[str, Any]]:
        try:
            ok, shown = self._ready()
        except Exception as error:
            _log.exception("readiness_unknown")
            return 503, {"ok": False, "error": type(error).__name__}
        return (200 if ok else 503), {**shown, "ok": ok}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            timeout = _CLIENT_TIMEOUT_S
            server_version, sys_version = "trueboard", ""

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                    self._answer(200, content_type, encode(outer._registry))
                elif path == "/health/live":
                    self._answer_json(*outer._liveness())
                elif path == "/health/ready":
                    self._answer_json(*outer._readiness())
                else:
                    self._answer_json(404, {"ok": False, "error": "not_found"})

            do_HEAD = do_GET

            def _answer_json(self, status: int, shown: dict[str, Any]) -> None:
                self._answer(status, "application/json", json.dumps(shown, default=str).encode() + b"\n")

            def _answer(self, status: int, content_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Probes come every few seconds; they are not worth a line each."""

        return Handler
