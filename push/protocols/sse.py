"""The words of `GET /v1/boards/{board}/stream`: server-sent events.

An event is named `board`, its id is `<epoch>-<revision>` and its data a publication. A client
that connects again names the last id it has seen in `Last-Event-ID` and goes on from there.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import re
from typing import Final

from core.feed import Position
from core.ids import EPOCH
from push.channels import Chained

PATH: Final = "/v1/boards/{board}/stream"
NAME: Final = "sse"
MEDIA_TYPE: Final = "text/event-stream"
HEARTBEAT: Final = b":\n\n"
"""A comment: it keeps proxies from closing a quiet stream, and clients pass it over."""

_EVENT_ID: Final = re.compile(rf"({EPOCH.pattern})-([0-9]{{1,18}})")


def event(data: bytes, position: Position, before: bytes | None = None) -> bytes:
    """One event. JSON has no line breaks of its own, so its data is one line."""
    return b"event: board\nid: %s-%d\ndata: %s\n\n" % (position[0].encode(), position[1], data)


def retry(after_ms: int) -> bytes:
    """How long a client waits before it connects again."""
    return b"retry: %d\n\n" % after_ms


def position(last_event_id: str) -> Position | None:
    """The position a client has seen; None if that is none of ours."""
    match = _EVENT_ID.fullmatch(last_event_id)
    return None if match is None else (match[1], int(match[2]))


DIALECT: Final = Chained(NAME, event, envelope=lambda words, compressed: words)
