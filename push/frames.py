"""A WebSocket text frame, ready to be written to any number of sockets.

Compressed frames are those of permessage-deflate without context takeover (RFC 7692): a frame
does not depend on the one before it, so the same bytes do for every socket that agreed to it.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

WINDOW_BITS: Final = 12
"""The window that is compressed with: 4 KB hold a frame, and a smaller one costs less memory on
both sides. Sockets must have agreed to at least as much."""

WORTHWHILE_BYTES: Final = 256
"""Shorter payloads are left as they are: they would fit one packet anyway."""

_LEVEL: Final = 9
_MEM_LEVEL: Final = 9
_STRATEGY: Final = zlib.Z_FILTERED
"""Passes over repetitions of less than six bytes. Among ids that are mostly chance they cost more than
the characters they stand for: a board of UUIDs comes out 2.5 % smaller, others as they were."""

_TEXT_FINAL: Final = 0x81
_COMPRESSED: Final = 0x40
_TAIL: Final = b"\x00\x00\xff\xff"


def text_frame(payload: bytes, compressed: bool = False) -> bytes:
    """One unfragmented, unmasked text frame around UTF-8 bytes (RFC 6455 §5.2)."""
    first = _TEXT_FINAL
    if compressed and len(payload) >= WORTHWHILE_BYTES:
        payload, first = deflated(payload), _TEXT_FINAL | _COMPRESSED
    size_bytes = len(payload)
    if size_bytes < 126:
        return struct.pack("!BB", first, size_bytes) + payload
    if size_bytes < 1 << 16:
        return struct.pack("!BBH", first, 126, size_bytes) + payload
    return struct.pack("!BBQ", first, 127, size_bytes) + payload


def deflated(payload: bytes) -> bytes:
    """The payload of a compressed message (RFC 7692 §7.2.1)."""
    deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -WINDOW_BITS, _MEM_LEVEL, _STRATEGY)
    packed = deflate.compress(payload) + deflate.flush(zlib.Z_SYNC_FLUSH)
    return packed.removesuffix(_TAIL)
