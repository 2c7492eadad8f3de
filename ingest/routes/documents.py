"""Documents about the service itself: its description, a page that shows it, and the token keys.

The page loads nothing but the description beside it; its policy lets it load nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any

import msgspec

from core.errors import Unavailable
from ingest.door import Endpoint, Route
from ingest.requests import HeaderList, Reply, Request

_CACHED: HeaderList = [(b"cache-control", b"public, max-age=60")]


class DocumentRoutes:
    """The handlers of the documents. `jwks` gives the public key set, `production` leaves the page out."""

    def __init__(self, jwks: Callable[[], Awaitable[bytes]], *, production: bool) -> None:
        self._jwks, self._production = jwks, production
        self._description = b""
        page = resources.files("ingest").joinpath("docs.html").read_text("utf-8")
        self._page = page.encode()
        self._policy = _policy(page)

    def describe(self, document: dict[str, Any]) -> None:
        """Set the description, which is made from the routes, these among them."""
        self._description = msgspec.json.encode(document)

    def routes(self) -> list[Route]:
        routes = [
            Route("/openapi.json", {"GET": Endpoint(handler=self.description)}),
            Route("/.well-known/jwks.json", {"GET": Endpoint(handler=self.keys)}),
        ]
        if not self._production:
            routes.append(Route("/docs", {"GET": Endpoint(handler=self.page)}))
        return routes

    async def description(self, request: Request) -> Reply:
        """The OpenAPI description."""
        return Reply(200, self._description, list(_CACHED), cacheable=True)

    async def keys(self, request: Request) -> Reply:
        """The public keys that tokens are checked with."""
        try:
            body = await self._jwks()
        except OSError as error:
            raise Unavailable("The keys cannot be read now.", retry_after_s=2) from error
        return Reply(200, body, list(_CACHED), b"application/jwk-set+json", cacheable=True)

    async def page(self, request: Request) -> Reply:
        """The page that shows the description."""
        headers = [*_CACHED, (b"content-security-policy", self._policy), (b"referrer-policy", b"no-referrer")]
        return Reply(200, self._page, headers, b"text/html; charset=utf-8", cacheable=True)


def _policy(page: str) -> bytes:
    """Only the page's own style and script, by their hashes, and requests to where it came from."""
    style = _hash(page.partition("<style>")[2].partition("</style>")[0])
    script = _hash(page.partition("<script>")[2].partition("</script>")[0])
    return (
        f"default-src 'none'; style-src '{style}'; script-src '{script}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ).encode()


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
