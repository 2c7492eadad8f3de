"""A reader of the default board's channel over the Centrifuge protocol, among the others.

A publication is held against the recount like any top; beside that it must follow from what this
reader was told before: `previous` is where it stands, and whoever is shown with another score than
before is among `changed`.

Source: github.com/centrifugal/protocol, definitions/client.proto
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Final

import msgspec
from websockets.sync.client import connect

from auditor.audit import Seen
from auditor.comparing import TOP, Page, Shown
from auditor.records import instant_us
from auditor.recount import Wrong
from auditor.watching import LONGEST_FRAME_BYTES, TIMEOUT_S, Complain, Line, Show

_GREETING: Final = '{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"board:main"}}'
_PING: Final = "{}"


class _Ranked(msgspec.Struct, gc=False):
    rank: int
    user_id: str
    score: int
    reached_at: str


class _Changed(msgspec.Struct, gc=False):
    user_id: str | None
    score: int | None


class Told(msgspec.Struct):
    """What a publication says; without `changed` it is a snapshot."""

    epoch: str
    revision: int
    count: int
    top: list[_Ranked]
    previous: int | None = None
    changed: list[_Changed] | None = None


class _Publication(msgspec.Struct):
    data: Told


class _Push(msgspec.Struct):
    pub: _Publication | None = None


class _Subscribed(msgspec.Struct):
    data: Told | None = None


class _Reply(msgspec.Struct):
    subscribe: _Subscribed | None = None
    push: _Push | None = None
    error: msgspec.Raw | None = None


_read_reply = msgspec.json.Decoder(_Reply).decode


class Reader:
    """What one connection is told, one publication after the other."""

    def __init__(self, show: Show, complain: Complain) -> None:
        self._show, self._complain = show, complain
        self._line = Line(complain)
        self._at: tuple[str, int] = ("", 0)
        self._top: dict[str, Shown] = {}

    def take(self, told: Told) -> None:
        """Raises ValueError: an instant that is none."""
        at = told.epoch, told.revision
        entries = [Shown(e.user_id, e.score, instant_us(e.reached_at), e.rank) for e in told.top]
        self._line.take(at, (told.count, entries))
        top = {entry.user: entry for entry in entries}
        unnamed = None
        if told.changed is not None and at[0] == self._at[0]:
            if told.previous != self._at[1]:
                self._complain(at[1], Wrong("previous", None, self._at[1], told.previous))
            unnamed = self._unnamed(top, {line.user_id for line in told.changed})
        self._at, self._top = at, top
        page = Page(1, entries, told.count, TOP, unnamed)
        self._show(Seen("channel", "board:main", *at, page, time.monotonic()))

    def _unnamed(self, top: dict[str, Shown], named: set[str | None]) -> str | None:
        """Somebody who stood in the top before, has another score or instant now, and is not named."""
        for user, entry in top.items():
            before = self._top.get(user, entry)
            changed = (before.score, before.reached_us) != (entry.score, entry.reached_us)
            if changed and user not in named:
                return user
        return None


class Channel:
    """One subscriber of `board:main`."""

    def __init__(self, url: str, show: Show, complain: Complain, stopping: threading.Event) -> None:
        self._url = "ws" + url.removeprefix("http") + "/connection/websocket"
        self._show, self._complain, self._stopping = show, complain, stopping

    def look(self) -> None:
        """Watch until the connection ends. Raises OSError, WebSocketException or ValueError."""
        reader = Reader(self._show, self._complain)
        with connect(
            self._url, open_timeout=TIMEOUT_S, close_timeout=0.5, max_size=LONGEST_FRAME_BYTES, proxy=None
        ) as socket:
            socket.send(_GREETING)
            while not self._stopping.is_set():
                with contextlib.suppress(TimeoutError):
                    if self._take(str(socket.recv(timeout=0.5, decode=True)), reader):
                        socket.send(_PING)

    def _take(self, text: str, reader: Reader) -> bool:
        """Whether it is a ping, which wants the same back."""
        if text == _PING:
            return True
        for line in text.splitlines():
            try:
                reply = _read_reply(line)
            except msgspec.DecodeError as error:
                self._complain(0, Wrong("unreadable", None, "board:main", str(error)))
                continue
            if reply.error is not None:
                raise ValueError(f"the feed answers {bytes(reply.error).decode()}")
            told = reply.subscribe.data if reply.subscribe is not None else None
            if reply.push is not None and reply.push.pub is not None:
                told = reply.push.pub.data
            if told is not None and told.epoch:
                reader.take(told)
        return False
