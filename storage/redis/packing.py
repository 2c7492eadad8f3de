"""One blob for a script: a flat list of byte strings that Lua's cmsgpack can read.

That library knows the old MessagePack, which has no type for bytes: byte strings are written as
its raw strings (fixraw, raw 16, raw 32).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_FIX: Final = 32


def _head(size: int) -> bytes:
    if size < _FIX:
        return bytes((0xA0 | size,))
    return b"\xda" + size.to_bytes(2, "big") if size < 1 << 16 else b"\xdb" + size.to_bytes(4, "big")


_HEADS: Final = tuple(_head(size) for size in range(1024))


def pack(items: Sequence[bytes]) -> bytes:
    """The blob of these byte strings."""
    parts = [b"\xdd" + len(items).to_bytes(4, "big")]
    for item in items:
        size = len(item)
        parts.append(_HEADS[size] if size < 1024 else _head(size))
        parts.append(item)
    return b"".join(parts)
