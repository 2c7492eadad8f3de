"""The difference between two texts, in Fossil's delta format.

What a follower of a board is sent is mostly what it was sent before. A delta says which bytes of
the earlier text to copy and which to insert. Inserted bytes and copied ones begin and end between
characters, so that a delta of UTF-8 texts is UTF-8 itself and fits into JSON.

Source: https://fossil-scm.org/home/doc/trunk/www/delta_format.wiki
"""

from __future__ import annotations

from typing import Final

_DIGITS: Final = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~"

BLOCK_BYTES: Final = 16
"""Texts are compared by blocks of this size; shorter repetitions are not worth a copy."""


def delta(before: bytes, after: bytes) -> bytes:
    """What makes `after` of `before`, both UTF-8. Cost: O(len(before) + len(after)).

    It may be longer than `after` where the two have little in common.
    """
    parts = [_number(len(after)), b"\n"]
    inserted_from = position = 0
    blocks = _blocks(before)
    while position + BLOCK_BYTES <= len(after):
        source = blocks.get(after[position : position + BLOCK_BYTES])
        if source is None:
            position += 1
            continue
        source, start, end = _widened(before, after, source, position, inserted_from)
        if end - start < BLOCK_BYTES:
            position += 1
            continue
        parts += _insert(after[inserted_from:start])
        parts += (_number(end - start), b"@", _number(source), b",")
        inserted_from = position = end
    parts += _insert(after[inserted_from:])
    parts += (_number(checksum(after)), b";")
    return b"".join(parts)


def checksum(text: bytes) -> int:
    """The sum of the text's big-endian 32-bit words, filled up with zeros, modulo 2^32."""
    padded = text + bytes(-len(text) % 4)
    total = 0
    for start in range(0, len(padded), 4):
        total += int.from_bytes(padded[start : start + 4], "big")
    return total & 0xFFFFFFFF


def _blocks(text: bytes) -> dict[bytes, int]:
    """Where each whole block stands; of equal ones the first."""
    return {
        text[start : start + BLOCK_BYTES]: start
        for start in range(len(text) - len(text) % BLOCK_BYTES - BLOCK_BYTES, -1, -BLOCK_BYTES)
    }


def _widened(before: bytes, after: bytes, source: int, start: int, least: int) -> tuple[int, int, int]:
    """The longest match around an equal block, cut to whole characters: (source, start, end)."""
    end, source_end = start + BLOCK_BYTES, source + BLOCK_BYTES
    while start > least and source > 0 and after[start - 1] == before[source - 1]:
        start, source = start - 1, source - 1
    while (
        end + BLOCK_BYTES <= len(after)
        and after[end : end + BLOCK_BYTES] == before[source_end : source_end + BLOCK_BYTES]
    ):
        end, source_end = end + BLOCK_BYTES, source_end + BLOCK_BYTES
    while end < len(after) and source_end < len(before) and after[end] == before[source_end]:
        end, source_end = end + 1, source_end + 1
    while start < end and _within_character(after, start):
        start, source = start + 1, source + 1
    while end > start and _within_character(after, end):
        end -= 1
    return source, start, end


def _within_character(text: bytes, position: int) -> bool:
    return position < len(text) and text[position] & 0xC0 == 0x80


def _insert(text: bytes) -> tuple[bytes, ...]:
    return (_number(len(text)), b":", text) if text else ()


def _number(value: int) -> bytes:
    """An unsigned integer in Fossil's 64 digits, most significant first."""
    digits = bytearray()
    while True:
        digits.append(_DIGITS[value & 63])
        value >>= 6
        if not value:
            digits.reverse()
            return bytes(digits)
