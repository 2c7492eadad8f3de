"""The web page: its files, and where it finds the feed.

The files lie under a path that names this version of all of them, so a browser keeps them for
ever and never mixes two versions; only the document at `/` is asked for anew. The document's
policy lets it run and load what lies beside it and nothing else, and connect to the feed.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from core.catalogue import ActionType
from core.errors import Refused
from ingest.door import Endpoint, Route
from ingest.requests import HeaderList, Reply, Request
from ingest.taking import Catalogues

MEDIA_TYPES: Final = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".svg": b"image/svg+xml",
    ".txt": b"text/plain; charset=utf-8",
    ".woff2": b"font/woff2",
}
"""By the ends of names; a file with another end is not served."""

_DOCUMENT = "index.html"
_FOLDERS = ("", "vendor")
_FOR_EVER = (b"cache-control", b"public, max-age=31536000, immutable")
_ASK_ANEW = (b"cache-control", b"no-cache")
_NOT_WORTH_IT = frozenset({b"font/woff2"})
"""Media types that are compressed already."""

_GZIP = re.compile(rb"(?:^|,)[ \t]*gzip[ \t]*(?:,|;[ \t]*q=(?:1|0\.[0-9]*[1-9])|$)", re.I)


class PageRoutes:
    """The handlers of the page. `feed_url` is the feed's base URL as browsers see it.

    Without one the feed is looked for where the page came from, as behind a proxy that joins both.
    """

    def __init__(self, feed_url: str | None, catalogues: Catalogues) -> None:
        self._feed_url, self._catalogues = feed_url, catalogues
        bodies = dict(_files())
        self.version = _digest(bodies)
        document = bodies.pop(_DOCUMENT).replace(b'"/web/', f'"/web/{self.version}/'.encode())
        self._files = {name: _File(name, body, [_FOR_EVER]) for name, body in bodies.items()}
        policy = _policy(feed_url)
        self._document = _File(
            _DOCUMENT,
            document,
            [
                _ASK_ANEW,
                (b"etag", f'"{_digest({_DOCUMENT: document, "policy": policy})}"'.encode()),
                (b"content-security-policy", policy),
                (b"referrer-policy", b"no-referrer"),
                (b"cross-origin-opener-policy", b"same-origin"),
                (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
            ],
        )

    def routes(self) -> list[Route]:
        return [
            Route("/", {"GET": Endpoint(handler=self.document)}),
            Route("/page.json", {"GET": Endpoint(handler=self.about)}),
            Route("/web/{version:str}/{file:str}", {"GET": Endpoint(handler=self.file)}),
            Route("/web/{version:str}/vendor/{file:str}", {"GET": Endpoint(handler=self.vendored)}),
        ]

    async def document(self, request: Request) -> Reply:
        """The page itself."""
        etag = dict(self._document.headers)[b"etag"]
        if etag in re.split(rb"[ \t]*,[ \t]*(?:W/)?", b"," + (request.header(b"if-none-match") or b"")):
            return Reply(304, b"", list(self._document.headers), None, cacheable=True)
        return self._document.reply(request)

    async def about(self, request: Request) -> Reply:
        """`{"feed": base URL or null, "types": [{"type", "points"} or {"type", "min", "max"}]}`."""
        types = sorted(self._catalogues.current.types.values(), key=_most_telling_first)
        shown = {"feed": self._feed_url, "types": [_type(each) for each in types]}
        return Reply(200, msgspec.json.encode(shown), [_ASK_ANEW], cacheable=True)

    async def file(self, request: Request) -> Reply:
        """A file of the page."""
        return self._found(request, request.path_params["file"])

    async def vendored(self, request: Request) -> Reply:
        """A file that somebody else wrote."""
        return self._found(request, f"vendor/{request.path_params['file']}")

    def _found(self, request: Request, name: str) -> Reply:
        file = self._files.get(name)
        # Another version's document needs that version's files: these would not fit it.
        if file is None or request.path_params["version"] != self.version:
            raise Refused("not_found", "There is nothing at this path.", status_code=404)
        return file.reply(request)


class _File:
    """A file as it is sent, with a compressed copy where that is smaller."""

    def __init__(self, name: str, body: bytes, headers: HeaderList) -> None:
        self._body, self._media_type = body, _media_type(name)
        packed = b"" if self._media_type in _NOT_WORTH_IT else gzip.compress(body, mtime=0)
        self._packed = packed if len(packed) < len(body) else b""
        self.headers = [*headers, (b"vary", b"accept-encoding")] if self._packed else headers

    def reply(self, request: Request) -> Reply:
        accepted = request.header(b"accept-encoding") or b""
        if self._packed and _GZIP.search(accepted):
            headers = [*self.headers, (b"content-encoding", b"gzip")]
            return Reply(200, self._packed, headers, self._media_type, cacheable=True)
        return Reply(200, self._body, list(self.headers), self._media_type, cacheable=True)


def websocket_origin(feed_url: str) -> str:
    """`ws://host:port` of the feed's base URL. Raises ValueError if it is no http(s) URL."""
    parts = urlsplit(feed_url)
    if parts.scheme not in ("http", "https") or not re.fullmatch(r"[A-Za-z0-9.:\[\]-]+", parts.netloc):
        raise ValueError(f"{feed_url!r} is no http:// or https:// URL of a host")
    return f"{'wss' if parts.scheme == 'https' else 'ws'}://{parts.netloc}"


def _policy(feed_url: str | None) -> bytes:
    feed = f" {websocket_origin(feed_url)}" if feed_url else ""
    return (
        f"default-src 'self'; connect-src 'self'{feed}; object-src 'none'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ).encode()


def _most_telling_first(each: ActionType) -> tuple[bool, int, str]:
    """What needs no points of the client's before what does, the dearest first."""
    return each.points is None, -(each.points or 0), each.name


def _type(each: ActionType) -> dict[str, Any]:
    if each.points is not None:
        return {"type": each.name, "points": each.points}
    return {"type": each.name, "min": each.lowest, "max": each.highest}


def _files() -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of what is served, `vendor/` before the names of others' files."""
    root = resources.files("web")
    for folder in _FOLDERS:
        place: Traversable = root.joinpath(folder) if folder else root
        for each in sorted(place.iterdir(), key=lambda each: each.name):
            if each.is_file() and _media_type(each.name):
                yield (f"{folder}/{each.name}" if folder else each.name), each.read_bytes()


def _media_type(name: str) -> bytes:
    return MEDIA_TYPES.get(name[name.rfind(".") :], b"")


def _digest(bodies: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, body in sorted(bodies.items()):
        digest.update(f"{name}\0{len(body)}\0".encode())
        digest.update(body)
    return digest.hexdigest()[:16]
