"""What one connection says before and after, and what Redis' bytes mean."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import redis

from auditor.audit import Seen
from auditor.comparing import Copy, Page, Shown
from auditor.recount import Wrong
from auditor.watching import Copies, Line, Pages
from core.ranking import member, order_key
from tests.auditor.world import EPOCH, LATER_EPOCH, instant

FIRST, SECOND = (EPOCH, 1), (EPOCH, 2)


@pytest.mark.parametrize(
    ("said", "kinds"),
    [
        pytest.param([(FIRST, "a"), (SECOND, "b"), (SECOND, "b")], [], id="forward, and the same again"),
        pytest.param([(FIRST, "a"), ((LATER_EPOCH, 1), "b")], [], id="another history"),
        pytest.param([(SECOND, "b"), (FIRST, "a"), (SECOND, "b")], ["went_back"], id="back"),
        pytest.param([((LATER_EPOCH, 1), "b"), (SECOND, "a")], ["went_back"], id="back to an older history"),
        pytest.param([(SECOND, "b"), (SECOND, "a")], ["two_contents"], id="one revision, two contents"),
    ],
)
def test_a_connection_never_goes_back_and_a_revision_has_one_content(
    said: list[tuple[tuple[str, int], str]], kinds: list[str]
):
    found: list[Wrong] = []
    line = Line(lambda _, wrong: found.append(wrong))
    for at, content in said:
        line.take(at, content)

    assert [wrong.kind for wrong in found] == kinds


# Redis


@pytest.mark.services
def test_a_copy_is_read_with_its_position_and_decoded_without_the_keepers_code(redis_db_url: str):
    entries = {"ada": (2**62, 7), "bob": (-5, 8), "eve": (3, 9)}
    z, m, meta = (f"tb:{{main:all-time}}:{part}" for part in ("z", "m", "meta"))
    with redis.Redis.from_url(redis_db_url) as client:
        for user, (score, at) in entries.items():
            client.zadd(z, {member(score, at, user): 0})
            client.hset(m, user, order_key(score, at) + b"Name")
        client.hset(meta, mapping={"epoch": EPOCH, "revision": 4, "digest": "ab", "count": 3})
    seen: list[Seen] = []
    copies = Copies(redis_db_url, seen.append, lambda: ["bob", "nobody"])
    copies.look()
    copies.close()

    (one,) = seen
    assert (one.epoch, one.revision) == (EPOCH, 4)
    assert isinstance(one.shown, Copy)
    assert one.shown.page.entries == [
        Shown("ada", 2**62, 7, 1),
        Shown("eve", 3, 9, 2),
        Shown("bob", -5, 8, 3),
    ]
    assert one.shown.held == {"bob": (-5, 8), "nobody": None}
    assert (one.shown.count, one.shown.members, one.shown.fields) == (3, 3, 3)


@pytest.mark.services
def test_an_empty_redis_shows_nothing(redis_db_url: str):
    seen: list[Seen] = []
    copies = Copies(redis_db_url, seen.append, lambda: [])
    copies.look()
    copies.close()

    assert seen == []


# pages


class Door:
    """Standings of 250 players at one revision after the other, as told by the test."""

    def __init__(self) -> None:
        self.revision, self.moves_after, self.asked = 1, 10**9, list[str]()
        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                door.asked.append(self.path)
                if len(door.asked) > door.moves_after:
                    door.revision = 2
                if self.headers.get("If-None-Match") == f'"{EPOCH}-{door.revision}"':
                    self._answer(304, b"")
                else:
                    self._answer(200, door.page(self.path))

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def page(self, path: str) -> bytes:
        start = int(path.partition("after=")[2] or 0)
        ranks = range(start + 1, min(start + 100, 250) + 1)
        return json.dumps(
            {
                "board": "main",
                "window": "all-time",
                "epoch": EPOCH,
                "revision": self.revision if not start else 1,
                "count": 250,
                "entries": [
                    {
                        "rank": rank,
                        "user_id": f"u{rank}",
                        "username": "x",
                        "score": 1000 - rank,
                        "reached_at": instant(rank),
                    }
                    for rank in ranks
                ],
                "next": str(start + 100) if start + 100 < 250 else None,
            }
        ).encode()


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    yield door
    door.server.shutdown()
    door.server.server_close()


def _look(door: Door, times: int = 1) -> list[Seen]:
    seen: list[Seen] = []
    pages = Pages(door.url, seen.append, lambda _, wrong: pytest.fail(str(wrong)))
    for _ in range(times):
        pages.look()
    pages.close()
    return seen


def test_pages_are_read_to_the_end_of_the_board(door: Door):
    seen = _look(door)

    assert [(one.place, len(one.shown.entries)) for one in seen if isinstance(one.shown, Page)] == [
        ("1", 100),
        ("101", 100),
        ("201", 50),
    ]


def test_later_pages_of_a_board_that_went_on_meanwhile_are_not_compared(door: Door):
    door.moves_after = 3
    seen = _look(door)

    assert [one.place for one in seen] == ["1"]


def test_a_page_that_cannot_be_read_is_complained_of(door: Door, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(door, "page", lambda _: b'{"entries": 3}')
    found: list[Wrong] = []
    pages = Pages(door.url, lambda _: None, lambda _, wrong: found.append(wrong))
    pages.look()
    pages.close()

    assert [wrong.kind for wrong in found] == ["unreadable"]
