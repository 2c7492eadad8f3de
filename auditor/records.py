"""The records of the topics as the auditor reads them: only the fields it counts with."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import msgspec

JUDGED: Final = "leaderboard.action.judged.v1"
PLAYER: Final = "leaderboard.player.v1"
BOARD_CHANGED: Final = "leaderboard.board.changed.v1"

MAIN: Final = b"main:all-time"
"""The period that is recounted: the sum over every accepted action."""


class Judged(msgspec.Struct, gc=False):
    """A verdict or a later decision; or, with `continues`, where a new history goes on from."""

    epoch: str
    revision: int
    player: str = ""
    action_id: str = ""
    verdict: str = ""
    points: int = 0
    received_at: str = ""
    decision: int | None = None
    continues: tuple[str, int] | None = None


class Person(msgspec.Struct, gc=False):
    user_id: str
    username: str
    hidden: bool


class Line(msgspec.Struct, gc=False):
    """An entry of `changed` or `top`; `score` None: gone, `user_id` None: erased since."""

    user_id: str | None
    score: int | None
    reached_at: str | None


class Publication(msgspec.Struct):
    epoch: str
    revision: int
    previous: int
    digest: str
    count: int
    changed: list[Line]
    top: list[Line]


Unreadable: Final = (msgspec.DecodeError, ValueError)

read_judged = msgspec.json.Decoder(Judged).decode
read_person = msgspec.json.Decoder(Person).decode
read_publication = msgspec.json.Decoder(Publication).decode

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MOST_SECONDS: Final = 8192
_seconds: dict[str, int] = {}


def instant_us(text: str) -> int:
    """µs since 1970 of `2026-11-21T09:26:00.000001Z`.

    Raises:
        ValueError: it is written in another way.
    """
    head = text[:19]
    second = _seconds.get(head)
    if second is None:
        moment = datetime.strptime(head + "+0000", "%Y-%m-%dT%H:%M:%S%z") - _EPOCH
        second = (moment.days * 86_400 + moment.seconds) * 1_000_000
        if len(_seconds) >= _MOST_SECONDS:
            _seconds.clear()
        _seconds[head] = second
    if len(text) != 27 or text[19] != "." or text[26] != "Z":
        raise ValueError("an instant is written with six digits of fraction and Z")
    return second + int(text[20:26])
