"""How the feed answers when it opens no socket: a problem, over HTTP, before the upgrade.

Source: RFC 9457.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from core.errors import Refused, Unavailable

MEDIA_TYPE = "application/problem+json"

_TITLES = {
    "invalid_token": "The access token is missing or not good",
    "forbidden": "The token does not allow this",
    "not_found": "There is no such thing here",
    "rate_limited": "Too many requests",
    "queue_unavailable": "This cannot be checked now",
    "board_rebuilding": "The standings cannot be read now",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer: its status, what its headers say, and a JSON body."""

    status_code: int
    headers: dict[str, str]
    body: bytes

    @property
    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]


def answer(error: Refused | Unavailable, trace_id: str) -> Answer:
    """The problem that tells a client about this error."""
    if isinstance(error, Refused):
        status_code, headers = error.status_code, dict(error.headers)
    else:
        status_code, headers = 503, {"retry-after": str(error.retry_after_s)}
    body = msgspec.json.encode(
        {
            "type": f"/problems/{error.code}",
            "title": _TITLES.get(error.code) or HTTPStatus(status_code).phrase,
            "status": status_code,
            "detail": error.detail,
            "code": error.code,
            "trace_id": trace_id,
        }
    )
    # Nothing here needs the connection again, and a request's body is never read.
    fixed = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), "connection": "close"}
    return Answer(status_code, headers | fixed | {"cache-control": "no-store"}, body)
