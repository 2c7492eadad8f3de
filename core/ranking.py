"""Who stands before whom.

A period's order is score (higher first), then the instant the score was reached (earlier
first), then the user id's bytes. The order key writes that as bytes that compare the same
way: 8 bytes of inverted score, 8 bytes of instant, so a sorted set with equal scores keeps
it exactly, beyond 2^53 too. Ranks are 1, 2, 3: the user id makes every order strict.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

KEY_BYTES: Final = 16
_HALF: Final = 1 << 63
_pack = struct.Struct(">QQ").pack
_unpack = struct.Struct(">QQ").unpack_from


@dataclass(frozen=True, slots=True)
class Entry:
    """A player's place in a period: score and the instant it was reached (µs)."""

    user_id: str
    username: str
    score: int
    reached_at_us: int


def order_key(score: int, reached_at_us: int) -> bytes:
    """16 bytes whose ascending order is rank order (ties are left to the user id)."""
    return _pack(_HALF - 1 - score, reached_at_us + _HALF)


def read_key(key: bytes) -> tuple[int, int]:
    """(score, reached at in µs) of an order key."""
    score, reached = _unpack(key)
    return _HALF - 1 - score, reached - _HALF


def member(score: int, reached_at_us: int, user_id: str) -> bytes:
    """A sorted set's member: order key, then the user id's bytes."""
    return _pack(_HALF - 1 - score, reached_at_us + _HALF) + user_id.encode()


def read_member(raw: bytes) -> tuple[str, int, int]:
    """(user id, score, reached at in µs) of a member."""
    score, reached = _unpack(raw)
    return raw[KEY_BYTES:].decode(), _HALF - 1 - score, reached - _HALF
