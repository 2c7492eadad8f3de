"""Where a page of standings ended, as the opaque text a client gives back for the next.

It names the period, the revision that the first page showed, and the last entry's order key; so
later pages go on from there, as of then. It is no secret and not signed: whoever alters one can
only read elsewhere in the same public order.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

import msgspec

from core.errors import Refused
from core.ids import EPOCH
from core.ranking import KEY_BYTES, read_member
from core.times import HIGHEST_US, LOWEST_US
from core.words import SCORE_MAX, USER_ID

HELD_S: Final = 300
"""How long later pages are answered as of the first one's revision."""

_TEXT = re.compile(r"[A-Za-z0-9_-]{1,1024}")


class Cursor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The end of a page: `rank` and `member` are its last entry's, `began_s` when the first was read."""

    period: str
    epoch: str
    revision: int
    count: int
    rank: int
    member: bytes
    began_s: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Cursor).decode


def write(cursor: Cursor) -> str:
    return base64.urlsafe_b64encode(_encode(cursor)).rstrip(b"=").decode()


def read(text: str, period: str) -> Cursor:
    """The cursor of this period's page.

    Raises:
        Refused: 400, if it is none, or one of another period.
    """
    if _TEXT.fullmatch(text) is None:
        raise _no_cursor()
    try:
        cursor = _decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        user_id = cursor.member[KEY_BYTES:].decode("ascii")
    except (msgspec.DecodeError, ValueError, binascii.Error, RecursionError):
        raise _no_cursor() from None
    whole = len(cursor.member) > KEY_BYTES and USER_ID.fullmatch(user_id) is not None
    if not whole or cursor.period != period or cursor.rank < 1 or cursor.revision < 0 or cursor.count < 0:
        raise _no_cursor()
    if max(cursor.rank, cursor.revision, cursor.count) >= 1 << 63 or EPOCH.fullmatch(cursor.epoch) is None:
        raise _no_cursor()
    _, score, reached_at_us = read_member(cursor.member)
    if abs(score) > SCORE_MAX or not LOWEST_US <= reached_at_us <= HIGHEST_US:
        raise _no_cursor()
    return cursor


def _no_cursor() -> Refused:
    return Refused("invalid_field", "after must be the `next` of a page of this board and window.")
