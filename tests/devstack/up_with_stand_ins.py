"""`trueboard up` with real servers and set-up, but programs of a few lines as its services.

Arguments: the data directory, the options `--name=value`. A stand-in answers every request on its
health port with its environment; the one named by STAND_IN_BREAKS ends at once.
"""

from __future__ import annotations

import sys
from pathlib import Path

from trueboard.up import Options, run

SERVICE = """
import http.server, json, os, signal, sys

signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
if os.environ.get("STAND_IN_BREAKS") == sys.argv[1]:
    raise SystemExit("the stand-in broke, as it was asked to")

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(dict(os.environ)).encode())
    def log_message(self, *_):
        pass

http.server.HTTPServer(("127.0.0.1", int(os.environ["TRUEBOARD_METRICS_PORT"])), Answer).serve_forever()
"""

if __name__ == "__main__":
    words = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[2:])
    options = Options(
        data=Path(sys.argv[1]),
        kafka=words.get("kafka"),
        postgres=words.get("postgres"),
        http_port=int(words["http-port"]) if "http-port" in words else None,
        feed_port=int(words["feed-port"]) if "feed-port" in words else None,
        catalogue=Path(words["catalogue"]) if "catalogue" in words else None,
    )
    services = {name: (sys.executable, "-c", SERVICE, name) for name in ("ingest", "stream_app", "push")}
    sys.exit(run(options, services=services))
