"""What others show, asked for from outside: pages over HTTP, frames of the feed, Redis' own keys.

Each watcher runs in a thread of its own and hands what it saw to `show`. It compares nothing but
what one connection said before and after. Whatever is away is tried again later.
"""

from __future__ import annotations

import contextlib
import http.client
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import quote, urlsplit

import msgspec
import redis
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from auditor.audit import Seen
from auditor.comparing import TOP, Copy, Page, Shown
from auditor.records import instant_us
from auditor.recount import Wrong
from service import logs

Show = Callable[[Seen], None]
Complain = Callable[[int, Wrong], None]

PAGE: Final = 100
LATER_PAGES: Final = 3
"""How many pages after the first are read in one round; the next round goes on from there."""

TIMEOUT_S: Final = 5.0
_PERIOD: Final = "main:all-time"
LONGEST_FRAME_BYTES: Final = 1 << 20
_HALF: Final = 1 << 63

_log = logs.get("auditor.watching")


class Trouble:
    """Says once that something is away, and once that it is back."""

    def __init__(self, name: str) -> None:
        self._name, self._away = name, False

    def away(self, error: BaseException) -> None:
        if not self._away:
            self._away = True
            _log.warning(f"{self._name}_unavailable", detail=f"{type(error).__name__}: {error}")

    def back(self) -> None:
        if self._away:
            self._away = False
            _log.info(f"{self._name}_available")


# Pages over HTTP --------------------------------------------------------------------------------


class _Entry(msgspec.Struct):
    rank: int
    user_id: str
    score: int
    reached_at: str


class _Standings(msgspec.Struct):
    epoch: str
    revision: int
    count: int
    entries: list[_Entry]
    next: str | None


_read_standings = msgspec.json.Decoder(_Standings).decode


class Pages:
    """Reads the standings as any reader does: the top, and some pages further down.

    A page after a cursor is handed on only if the board is still at its revision afterwards: as of
    a past revision, people who were hidden since are not on it.
    """

    def __init__(self, url: str, show: Show, complain: Complain) -> None:
        self._url = urlsplit(url)
        self._show, self._complain = show, complain
        self._connection: http.client.HTTPConnection | None = None
        self._cursor: tuple[str, int] | None = None

    def look(self) -> None:
        """One round. Raises OSError, HTTPException or ValueError where there is no page."""
        seen_s = time.monotonic()
        first, _ = self._ask("")
        if first is None:
            return
        self._hand_on(first, seen_s)
        at, cursor = (first.epoch, first.revision), first.next
        if self._cursor is not None and self._cursor[1] == first.revision:
            cursor = self._cursor[0]
        pages = []
        for _ in range(LATER_PAGES):
            if cursor is None:
                break
            page, status = self._ask(f"&after={quote(cursor)}")
            if page is None:
                cursor = None if status == 410 else cursor
                break
            pages.append(page)
            cursor = page.next
        self._cursor = None if cursor is None else (cursor, first.revision)
        _, status = self._ask("", etag=f'"{at[0]}-{at[1]}"') if pages else (None, 0)
        if status == 304:
            for page in pages:
                self._hand_on(page, seen_s)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _hand_on(self, page: _Standings, seen_s: float) -> None:
        first = page.entries[0].rank if page.entries else 1
        entries = [Shown(e.user_id, e.score, instant_us(e.reached_at), e.rank) for e in page.entries]
        shown = Page(first, entries, page.count, PAGE)
        self._show(Seen("page", str(first), page.epoch, page.revision, shown, seen_s))

    def _ask(self, more: str, *, etag: str | None = None) -> tuple[_Standings | None, int]:
        if self._connection is None:
            secure = self._url.scheme == "https"
            kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
            self._connection = kind(self._url.netloc, timeout=TIMEOUT_S)
        try:
            path = f"{self._url.path}/v1/boards/main/standings?limit={PAGE}{more}"
            self._connection.request("GET", path, headers={"If-None-Match": etag} if etag else {})
            answer = self._connection.getresponse()
            body = answer.read()
        except BaseException:
            self.close()
            raise
        if answer.status != 200:
            return None, answer.status
        try:
            return _read_standings(body), 200
        except msgspec.DecodeError as error:
            self._complain(0, Wrong("unreadable", None, "standings", str(error)))
            return None, 200


# Frames of the feed -----------------------------------------------------------------------------


class _Score(msgspec.Struct, rename="camel"):
    user_id: str
    score: int


class _Frame(msgspec.Struct, rename={"top_scores": "topScores"}):
    top_scores: list[_Score]
    epoch: str
    revision: int


_read_frame = msgspec.json.Decoder(_Frame).decode


class Line:
    """One connection's rule: (epoch, revision) never goes back, and has one content."""

    def __init__(self, complain: Complain) -> None:
        self._complain = complain
        self._at: tuple[str, int] = ("", 0)
        self._content: object = None

    def take(self, at: tuple[str, int], content: object) -> None:
        if at < self._at:
            self._complain(at[1], Wrong("went_back", None, list(self._at), list(at)))
        elif at == self._at and content != self._content:
            self._complain(at[1], Wrong("two_contents", None, repr(self._content), repr(content)))
        else:
            self._at, self._content = at, content


class Frames:
    """One reader of `/ws/scores` among the others."""

    def __init__(self, url: str, show: Show, complain: Complain, stopping: threading.Event) -> None:
        self._url = "ws" + url.removeprefix("http") + "/ws/scores"
        self._show, self._complain, self._stopping = show, complain, stopping

    def look(self) -> None:
        """Watch until the connection ends. Raises OSError or WebSocketException."""
        line = Line(self._complain)
        with connect(
            self._url, open_timeout=TIMEOUT_S, close_timeout=0.5, max_size=LONGEST_FRAME_BYTES, proxy=None
        ) as socket:
            while not self._stopping.is_set():
                with contextlib.suppress(TimeoutError):
                    self._take(socket.recv(timeout=0.5), line)

    def _take(self, text: str | bytes, line: Line) -> None:
        try:
            frame = _read_frame(text)
        except msgspec.DecodeError:
            # Something else than a board, as an error to all.
            return
        if not frame.epoch:
            return
        entries = [Shown(entry.user_id, entry.score) for entry in frame.top_scores]
        line.take((frame.epoch, frame.revision), entries)
        count = len(entries) if len(entries) < TOP else None
        shown = Page(1, entries, count, TOP)
        self._show(Seen("frame", "scores", frame.epoch, frame.revision, shown, time.monotonic()))


# Redis ------------------------------------------------------------------------------------------


class Copies:
    """Redis' copy of the board: its sizes, its top, the next slice of `z` and some fields of `m`."""

    def __init__(self, url: str, show: Show, some_users: Callable[[], Sequence[str]]) -> None:
        self._redis: redis.Redis = redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
        )
        self._show, self._some_users, self._next = show, some_users, 0

    def look(self) -> None:
        """Read once, position and content in one transaction. Raises RedisError."""
        z, m, meta = (f"tb:{{{_PERIOD}}}:{part}" for part in ("z", "m", "meta"))
        seen_s, start, users = time.monotonic(), self._next, list(self._some_users())
        with self._redis.pipeline(transaction=True) as asked:
            asked.hmget(meta, ["epoch", "revision", "digest", "count"])
            asked.zcard(z)
            asked.hlen(m)
            asked.zrange(z, start, start + PAGE - 1)
            asked.hmget(m, users or [""])
            at, members, fields, slice_, held = asked.execute()
        self._next = start + PAGE if len(slice_) == PAGE else 0
        if any(part is None for part in at) or not at[1].isdigit() or not at[3].isdigit():
            return
        shown = Copy(
            at[2].decode("utf-8", "replace"),
            int(at[3]),
            members,
            fields,
            Page(start + 1, [_member(member, start + n) for n, member in enumerate(slice_, 1)]),
            {user: None if raw is None else _key(raw) for user, raw in zip(users, held, strict=False)},
        )
        epoch = at[0].decode("utf-8", "replace")
        self._show(Seen("copy", str(start), epoch, int(at[1]), shown, seen_s))

    def close(self) -> None:
        self._redis.close()


def _key(raw: bytes) -> tuple[int, int]:
    """(score, reached at µs) of the 16 bytes that order entries: both inverted to unsigned."""
    if len(raw) < 16:
        return 0, 0
    score, at = struct.unpack_from(">QQ", raw)
    return _HALF - 1 - score, at - _HALF


def _member(raw: bytes, rank: int) -> Shown:
    score, at = _key(raw)
    return Shown(raw[16:].decode("utf-8", "replace"), score, at, rank)


AWAY: Final[tuple[type[BaseException], ...]] = (
    OSError,
    ValueError,
    http.client.HTTPException,
    redis.RedisError,
    WebSocketException,
)


def keep_looking(
    name: str, look: Callable[[], None], every_s: float, stopping: threading.Event, ended: Callable[[], Any]
) -> threading.Thread:
    """A thread that looks every so often until `stopping`; errors of what is away are said once."""

    def run() -> None:
        trouble = Trouble(name)
        while not stopping.wait(every_s):
            try:
                look()
                trouble.back()
            except AWAY as error:
                trouble.away(error)
            except Exception:
                _log.exception("defect")
                ended()
                return

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
