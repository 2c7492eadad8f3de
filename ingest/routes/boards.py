"""Standings and players of a board's windows, each at one named revision."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from core import scopes, words
from core.errors import Refused
from core.ranking import member
from core.times import HIGHEST_US, LOWEST_US, format_us
from ingest import cursors
from ingest.boards import LONGEST_READ_S, Boards
from ingest.cursors import HELD_S, Cursor
from ingest.door import Endpoint, Route
from ingest.limiting import Gate, missing_token
from ingest.patience import within
from ingest.ports import Claims, Position
from ingest.requests import HeaderList, Reply, Request, json_reply, position_headers
from storage.standings import RankedEntry

MOST_ENTRIES: Final = 1000
DEFAULT_ENTRIES: Final = 10

_AT_LEAST = re.compile(r"([0-9a-z]{1,64})-([0-9]{1,18})")
_LIMIT = re.compile(r"[1-9][0-9]{0,3}")


class PastEntry(Protocol):
    """An entry as it was at a past revision."""

    @property
    def user_id(self) -> str: ...
    @property
    def username(self) -> str: ...
    @property
    def score(self) -> int: ...
    @property
    def reached_at_us(self) -> int: ...


PastPage = Callable[[str, str, int, bytes, int], Coroutine[Any, Any, list[Any] | None]]
"""period, epoch, revision, member after which it begins, limit → entries, None if no longer held."""


class BoardRoutes:
    """The handlers of the boards' reads. `public` gives the boards that need no token."""

    def __init__(
        self,
        gate: Gate,
        boards: Boards,
        past_page: PastPage,
        public: Callable[[], frozenset[str]],
        *,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        self._gate, self._boards, self._past_page = gate, boards, past_page
        self._public, self._clock_s = public, clock_s

    def routes(self) -> list[Route]:
        return [
            Route("/v1/boards/{board:str}/standings", {"GET": Endpoint(handler=self.standings)}),
            Route("/v1/boards/{board:str}/players/{user:str}", {"GET": Endpoint(handler=self.player)}),
        ]

    async def standings(self, request: Request) -> Reply:
        """A page of a window, from the top or after a cursor."""
        claims = await self._gate.reader(request)
        board, window, period, query = _named(request, "limit", "after", "at_least")
        limit = _limit(query.get("limit"))
        at_least = _position(query.get("at_least"))
        after = query.get("after")
        if after is None:
            page = await self._boards.page(period, limit=limit, at_least=at_least)
            self._allow(board, claims)
            position, count = (page.epoch, page.revision), page.count
            entries = [(entry.rank, entry) for entry in page.entries]
            began_s = int(self._clock_s())
        else:
            cursor = cursors.read(after, period)
            position, count, began_s = (cursor.epoch, cursor.revision), cursor.count, cursor.began_s
            if at_least is not None and position < at_least:
                # What the period showed then may hold at that revision too.
                present = await self._boards.page(period, limit=1, at_least=at_least)
                if (present.epoch, present.revision) != position:
                    raise _expired()
            entries = await self._later_page(cursor, limit)
            self._allow(board, claims)
        headers = _headers(position)
        if _known_already(request, position):
            return Reply(304, b"", headers, None, cacheable=True)
        shown = {
            "board": board,
            "window": window,
            "epoch": position[0],
            "revision": position[1],
            "count": count,
            "entries": [_entry(rank, entry) for rank, entry in entries],
            "next": _next(entries, limit, period, position, count, began_s),
        }
        reply = json_reply(200, shown, headers)
        reply.cacheable = True
        return reply

    async def player(self, request: Request) -> Reply:
        """One player's entry in a window."""
        claims = await self._gate.reader(request)
        board, window, period, query = _named(request, "at_least")
        user_id = request.path_params["user"]
        if words.USER_ID.fullmatch(user_id) is None:
            raise _not_found()
        page, entry = await self._boards.player(period, user_id, _position(query.get("at_least")))
        self._allow(board, claims)
        headers = position_headers(page.epoch, page.revision)
        if entry is None:
            raise Refused(
                "not_found",
                "This player has no entry in this window.",
                status_code=404,
                headers={name.decode(): value.decode() for name, value in headers},
            )
        shown = {
            "board": board,
            "window": window,
            "epoch": page.epoch,
            "revision": page.revision,
            "count": page.count,
            "entry": _entry(entry.rank, entry),
        }
        headers.append((b"cache-control", b"no-cache"))
        reply = json_reply(200, shown, headers)
        reply.cacheable = True
        return reply

    def _allow(self, board: str, claims: Claims | None) -> None:
        """Raises Refused for a board that this reader may not see."""
        if board in self._public():
            return
        if claims is None:
            raise missing_token()
        if scopes.BOARDS_READ not in claims.scopes:
            raise Refused("forbidden", "Reading this board needs the scope boards:read.", status_code=403)

    async def _later_page(self, cursor: Cursor, limit: int) -> list[tuple[int, Any]]:
        """Rank and entry of the page after a cursor, as of the cursor's revision.

        Raises:
            Refused: 410, if that revision is no longer held.
        """
        if self._clock_s() - cursor.began_s > HELD_S:
            raise _expired()
        position = cursor.epoch, cursor.revision
        page = await self._boards.later_page(cursor.period, position, limit=limit, after=cursor.member)
        if page is not None:
            return [(entry.rank, entry) for entry in page.entries]
        past = await within(
            LONGEST_READ_S,
            self._past_page(cursor.period, cursor.epoch, cursor.revision, cursor.member, limit),
        )
        if past is None:
            raise _expired()
        self._boards.count(postgres=True)
        return list(enumerate(past, cursor.rank + 1))


def _named(request: Request, *fields: str) -> tuple[str, str, str, dict[str, str]]:
    """Board, window, period and query of a request."""
    board = request.path_params["board"]
    if words.BOARD_ID.fullmatch(board) is None:
        raise _not_found()
    query = request.query("window", *fields)
    window = query.get("window", words.ALL_TIME)
    if words.WINDOW.fullmatch(window) is None:
        raise Refused("invalid_field", "window must be 1 to 64 of A-Z a-z 0-9 -.")
    return board, window, words.period_id(board, window), query


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_ENTRIES
    if _LIMIT.fullmatch(text) is None or int(text) > MOST_ENTRIES:
        raise Refused("invalid_field", f"limit must be 1 to {MOST_ENTRIES}.")
    return int(text)


def _position(text: str | None) -> Position | None:
    if text is None:
        return None
    match = _AT_LEAST.fullmatch(text)
    if match is None:
        raise Refused("invalid_field", "at_least must be <epoch>-<revision>.")
    return match[1], int(match[2])


def _headers(position: Position) -> HeaderList:
    etag = f'"{position[0]}-{position[1]}"'.encode()
    return [*position_headers(*position), (b"etag", etag), (b"cache-control", b"no-cache")]


def _known_already(request: Request, position: Position) -> bool:
    """Whether the client has this position (RFC 9110 §13.1.2, weak comparison)."""
    wanted = f'"{position[0]}-{position[1]}"'
    for name, value in request.headers:
        if name == b"if-none-match":
            tags = [tag.strip().removeprefix("W/") for tag in value.decode("latin-1").split(",")]
            if wanted in tags or "*" in tags:
                return True
    return False


def _entry(rank: int, entry: RankedEntry | PastEntry) -> dict[str, Any]:
    return {
        "rank": rank,
        "user_id": entry.user_id,
        "username": entry.username,
        "score": entry.score,
        "reached_at": format_us(min(HIGHEST_US, max(LOWEST_US, entry.reached_at_us))),
    }


def _next(
    entries: list[tuple[int, Any]], limit: int, period: str, position: Position, count: int, began_s: int
) -> str | None:
    if len(entries) < limit or entries[-1][0] >= count:
        return None
    rank, last = entries[-1]
    key = member(last.score, last.reached_at_us, last.user_id)
    return cursors.write(Cursor(period, *position, count, rank, key, began_s))


def _not_found() -> Refused:
    return Refused("not_found", "There is no such board, window or player.", status_code=404)


def _expired() -> Refused:
    return Refused("page_expired", "This page is no longer held; start again.", status_code=410)
