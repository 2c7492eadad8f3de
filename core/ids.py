"""Ids made here: UUIDv7 for actions, ULIDs for epochs. Time and randomness are arguments."""

from __future__ import annotations

import re
from typing import Final
from uuid import UUID

from core.errors import Refused

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"

_LAST_MS: Final = (1 << 48) - 1

EPOCH: Final = re.compile(r"(?!7z{9})[0-7][0-9a-hjkmnp-tv-z]{25}")
"""A lower-case ULID that another one can follow; what is written otherwise is no epoch."""


def uuid7(now_us: int, random_bytes: bytes) -> UUID:
    """A UUIDv7 (RFC 9562 §5.7) with the microseconds below the millisecond in rand_a.

    `random_bytes` are 8 bytes; 62 of their bits are used.
    """
    ms, us = divmod(now_us, 1000)
    rand_b = int.from_bytes(random_bytes[:8], "big") & ((1 << 62) - 1)
    sub_ms = us * 4096 // 1000
    return UUID(int=(ms & ((1 << 48) - 1)) << 80 | 0x7 << 76 | sub_ms << 64 | 0b10 << 62 | rand_b)


def ulid(now_us: int, random_bytes: bytes) -> str:
    """A lower-case ULID: 48 bits of milliseconds, then 80 bits of `random_bytes` (10 bytes)."""
    value = (now_us // 1000 & ((1 << 48) - 1)) << 80 | int.from_bytes(random_bytes[:10], "big")
    return "".join(_CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))


def later_ulid(now_us: int, random_bytes: bytes, than: str) -> str:
    """A ULID of now, or where that does not sort after `than`, of the millisecond after it.

    Raises:
        Refused: `than` is no ULID, or the last there can be.
    """
    made = ulid(now_us, random_bytes)
    if made > than:
        return made
    if EPOCH.fullmatch(than) is None:
        raise Refused("no_epoch", f"no epoch can follow {than!r}", status_code=409)
    ms = 0
    for letter in than[:10]:
        ms = ms << 5 | _CROCKFORD.index(letter)
    return ulid(min(ms + 1, _LAST_MS) * 1000, random_bytes)
