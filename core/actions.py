"""An action as it is submitted: the record of `leaderboard.action.submitted.v1`.

Ingest encodes it, the stream decodes it; both through this module, so the two never
disagree about a field. Instants are kept as µs and written as RFC 3339.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

import msgspec

from core import words
from core.errors import Unreadable
from core.reading import reader
from core.times import format_us, parse_us

MAX_RECORD_BYTES: Final = 16 * 1024

_FINGERPRINT: Final = re.compile(r"[0-9a-f]{32}")
_FINGERPRINTS: Final = re.compile(r"(?:[0-9a-f]{32}\n)*")


class SubmittedRecord(msgspec.Struct, omit_defaults=True):
    """The value of a submitted record, field by field as on the wire."""

    user_id: str
    action_id: str
    type: str
    occurred_at: str
    received_at: str
    contract: str
    client: str
    backfill: bool
    fingerprint: str
    points: int | None = None
    username: str | None = None


_encoder = msgspec.json.Encoder()


def fingerprint(type_: str, points: int | None, occurred_at_as_sent: str | None) -> str:
    """Hex of the first 16 bytes of SHA-256 of `[type, points, occurred_at as sent]` as JSON.

    What makes two submissions of one action id the same submission.
    """
    body = _encoder.encode([type_, points, occurred_at_as_sent])
    return hashlib.sha256(body).digest()[:16].hex()


def encode(record: SubmittedRecord) -> bytes:
    return _encoder.encode(record)


decode = reader(SubmittedRecord)
"""The record in these bytes; raises Unreadable. Its words are not checked yet (see `check_words`)."""


def is_fingerprint(text: str) -> bool:
    return _FINGERPRINT.fullmatch(text) is not None


def all_fingerprints(texts: list[str]) -> bool:
    """Whether all of them are fingerprints, in one match."""
    return words.all_match(_FINGERPRINTS, texts)


def check_words(record: SubmittedRecord) -> None:
    """Refuse ids, names and numbers that may not stand on the wire.

    Raises:
        Unreadable: which field, and why.
    """
    if not words.is_user_id(record.user_id):
        raise Unreadable("shape", "user_id is not a user id")
    if not words.is_action_id(record.action_id):
        raise Unreadable("shape", "action_id is not an action id")
    if not words.is_type(record.type):
        raise Unreadable("shape", "type is not a type")
    if record.username is not None and not words.is_username(record.username):
        raise Unreadable("shape", "username has control characters or is too long")
    if record.points is not None and not -words.SCORE_MAX <= record.points <= words.SCORE_MAX:
        raise Unreadable("shape", "points are beyond 64 bits")
    if not is_fingerprint(record.fingerprint):
        raise Unreadable("shape", "fingerprint is not 32 hex digits")


def instants_us(record: SubmittedRecord) -> tuple[int, int]:
    """(occurred, received) in µs.

    Raises:
        Unreadable: one of them is no instant.
    """
    try:
        return parse_us(record.occurred_at), parse_us(record.received_at)
    except ValueError as error:
        raise Unreadable("shape", f"an instant is not RFC 3339: {error}") from error


def submitted(
    *,
    user_id: str,
    action_id: str,
    type_: str,
    points: int | None,
    occurred_at_us: int,
    received_at_us: int,
    username: str | None,
    contract: str,
    client: str,
    backfill: bool,
    fingerprint_hex: str,
) -> SubmittedRecord:
    """A record to publish, from instants in µs."""
    return SubmittedRecord(
        user_id=user_id,
        action_id=action_id,
        type=type_,
        points=points,
        occurred_at=format_us(occurred_at_us),
        received_at=format_us(received_at_us),
        username=username,
        contract=contract,
        client=client,
        backfill=backfill,
        fingerprint=fingerprint_hex,
    )
