"""A WebSocket text frame, ready to be written to any number of sockets."""

from __future__ import annotations

import struct

_TEXT_FINAL = 0x81


def text_frame(payload: bytes) -> bytes:
    """One unfragmented, unmasked text frame around UTF-8 bytes (RFC 6455 §5.2)."""
    size_bytes = len(payload)
    if size_bytes < 126:
        return struct.pack("!BB", _TEXT_FINAL, size_bytes) + payload
    if size_bytes < 1 << 16:
        return struct.pack("!BBH", _TEXT_FINAL, 126, size_bytes) + payload
    return struct.pack("!BBQ", _TEXT_FINAL, 127, size_bytes) + payload
