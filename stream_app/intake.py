"""From raw records to slices: what can be read is decoded, what cannot is named.

No I/O: whoever calls sends the unreadable ones to the dead-letter topic before the ledger moves
past them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from core import actions, words
from core.errors import Unreadable
from stream_app.carry_out import Slice, record_fingerprint
from stream_app.judging import Incoming


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An unreadable record with where it stood and why it cannot be read."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    reason: str
    detail: str


def read_slice(records: Sequence[Any]) -> tuple[Slice, list[DeadLetter]]:
    """A contiguous run of one partition's records (key, value, headers, offset, partition, topic)."""
    incoming: list[Incoming] = []
    dead: list[DeadLetter] = []
    decode, instants_us = actions.decode, actions.instants_us
    for record in records:
        try:
            value = record.value
            if value is not None and len(value) > actions.MAX_RECORD_BYTES:
                raise Unreadable("too_large", f"{len(value)} bytes")
            submitted = decode(value)
            occurred_us, received_us = instants_us(submitted)
        except Unreadable as error:
            dead.append(_dead(record, error))
            continue
        reply_to = traceparent = None
        for name, content in record.headers:
            if content is None:
                continue
            if name == "reply_to":
                reply_to = content.decode("ascii", "ignore")
            elif name == "traceparent":
                traceparent = content.decode("ascii", "ignore")
        incoming.append(
            Incoming(
                record.partition, record.offset, submitted, occurred_us, received_us, reply_to, traceparent
            )
        )
    if not _all_words(incoming):
        by_offset = {record.offset: record for record in records}
        kept = []
        for item in incoming:
            try:
                actions.check_words(item.record)
                kept.append(item)
            except Unreadable as error:
                dead.append(_dead(by_offset[item.offset], error))
        incoming = kept
    last = records[-1]
    piece = Slice(
        last.partition,
        records[0].offset,
        last.offset,
        incoming,
        {letter.offset: letter.reason for letter in dead},
        record_fingerprint(last.key, last.value),
    )
    return piece, dead


def _all_words(incoming: Iterable[Incoming]) -> bool:
    """Whether every record's words may stand on the wire; some 0.3 µs a record."""
    user_ids, action_ids, types, fingerprints = [], [], [], []
    for item in incoming:
        record = item.record
        user_ids.append(record.user_id)
        action_ids.append(record.action_id)
        types.append(record.type)
        fingerprints.append(record.fingerprint)
        if record.username is not None and not words.is_username(record.username):
            return False
        if record.points is not None and not -words.SCORE_MAX <= record.points <= words.SCORE_MAX:
            return False
    return words.all_words(user_ids, action_ids, types) and actions.all_fingerprints(fingerprints)


def _dead(record: Any, error: Unreadable) -> DeadLetter:
    return DeadLetter(
        record.topic,
        record.partition,
        record.offset,
        record.key,
        record.value,
        record.headers,
        error.reason,
        error.detail,
    )
