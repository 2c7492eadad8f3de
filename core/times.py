"""Instants as microseconds since the Unix epoch, and how they are written.

On the wire an instant is RFC 3339 in UTC with `Z` and six digits of fraction.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

US = 1_000_000
"""Microseconds in a second."""

LOWEST_US = -62_135_596_800 * US
"""0001-01-01T00:00:00Z, the first instant a datetime can hold."""

HIGHEST_US = 253_402_300_800 * US - 1
"""9999-12-31T23:59:59.999999Z, the last."""

_RFC3339 = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})[Tt](\d{2}):(\d{2}):(\d{2})(?:\.(\d{1,9}))?(?:([Zz])|([+-])(\d{2}):(\d{2}))",
    re.ASCII,
)


_PREFIXES: dict[int, str] = {}
_SECONDS: dict[str, int] = {}
_MOST_SECONDS = 8192


def format_us(instant_us: int) -> str:
    """`2026-11-21T09:26:00.000001Z`.

    The text of a second is remembered, since actions come many to a second: 0.3 µs instead of 1.5.
    """
    second, fraction_us = divmod(instant_us, US)
    prefix = _PREFIXES.get(second)
    if prefix is None:
        moment = EPOCH + timedelta(seconds=second)
        prefix = (
            f"{moment.year:04d}-{moment.month:02d}-{moment.day:02d}"
            f"T{moment.hour:02d}:{moment.minute:02d}:{moment.second:02d}"
        )
        if len(_PREFIXES) >= _MOST_SECONDS:
            _PREFIXES.clear()
        _PREFIXES[second] = prefix
    return f"{prefix}.{fraction_us:06d}Z"


def parse_us(text: str) -> int:
    """The instant an RFC 3339 string names, with an offset, cut to microseconds.

    The form that `format_us` writes is read by remembering the second it names: 0.3 µs
    instead of 3, and actions come many to a second.

    Raises:
        ValueError: no offset, not RFC 3339, a leap second, or a day that does not exist.
    """
    if len(text) == 27 and text[26] == "Z" and text[19] == ".":
        fraction = text[20:26]
        second_us = _SECONDS.get(text[:19])
        if second_us is None:
            second_us = _parse_any_us(text[:19] + "Z")
            if len(_SECONDS) >= _MOST_SECONDS:
                _SECONDS.clear()
            _SECONDS[text[:19]] = second_us
        if fraction.isdecimal() and fraction.isascii():
            return second_us + int(fraction)
    return _parse_any_us(text)


def _parse_any_us(text: str) -> int:
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError("not an RFC 3339 instant with an offset")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    fraction_us = int((match[7] or "0").ljust(6, "0")[:6])
    moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC) - EPOCH
    offset_s = 0
    if match[9]:
        offset_h, offset_m = int(match[10]), int(match[11])
        if offset_h > 23 or offset_m > 59:
            raise ValueError("offset out of range")
        offset_s = (offset_h * 3600 + offset_m * 60) * (1 if match[9] == "+" else -1)
    instant_us = moment.days * 86_400 * US + (moment.seconds - offset_s) * US + fraction_us
    if not LOWEST_US <= instant_us <= HIGHEST_US:
        raise ValueError("instant out of range")
    return instant_us
