"""Ids made here: UUIDv7 for actions, ULIDs for epochs. Time and randomness are arguments."""

from __future__ import annotations

from uuid import UUID

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"


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
