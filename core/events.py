"""The records of the topics that follow the ledger, and the headers every record carries.

A record's value is a function of the ledger alone, so a repeat is byte for byte the same.
Headers are CloudEvents 1.0 in Kafka's binary mode, `ce_id` being stable over repeats, and a W3C
`traceparent`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Final

import msgspec

from core.ranking import Entry
from core.receipts import Reason
from core.times import format_us
from core.topics import DEAD, Topic

SOURCE: Final = b"/trueboard"
_JSON: Final = b"application/json"
_BYTES: Final = b"application/octet-stream"
_encoder = msgspec.json.Encoder()
_encode = _encoder.encode

Headers = list[tuple[str, bytes]]


class RankedEntry(msgspec.Struct):
    """One entry of `top`, as in the standings."""

    rank: int
    user_id: str
    username: str
    score: int
    reached_at: str


class ChangedEntry(msgspec.Struct):
    """One entry of `changed`; `score` None says that it is gone."""

    user_id: str
    username: str
    score: int | None
    reached_at: str | None


class BoardChanged(msgspec.Struct):
    """The value of `leaderboard.board.changed.v1`."""

    board: str
    window: str
    epoch: str
    revision: int
    previous: int
    digest: str
    count: int
    changed: list[ChangedEntry]
    top: list[RankedEntry]


class PlayerRecord(msgspec.Struct):
    """The value of `leaderboard.player.v1`."""

    player: str
    user_id: str
    username: str
    hidden: bool


class JudgedRecord(msgspec.Struct, omit_defaults=True):
    """The value of `leaderboard.action.judged.v1`. `decision` is the row's seq where it is a decision."""

    player: str
    action_id: str
    type: str
    verdict: str
    reason: Reason | None
    points: int
    occurred_at: str
    received_at: str
    catalogue_version: str
    epoch: str
    revision: int
    decision: int | msgspec.UnsetType = msgspec.UNSET


class ContinuesRecord(msgspec.Struct):
    """What each partition of `leaderboard.action.judged.v1` carries where an epoch begins.

    The history goes on from `continues`, (epoch, revision): records of that epoch beyond that
    revision are void.
    """

    epoch: str
    revision: int
    continues: tuple[str, int]


def encode(record: BoardChanged | PlayerRecord | JudgedRecord | ContinuesRecord) -> bytes:
    return _encode(record)


def changed_entry(user_id: str, username: str, score: int | None, reached_at_us: int | None) -> ChangedEntry:
    return ChangedEntry(user_id, username, score, None if reached_at_us is None else format_us(reached_at_us))


def ranked(entries: Sequence[Entry]) -> list[RankedEntry]:
    """Entries in rank order, numbered from 1."""
    return [
        RankedEntry(rank, entry.user_id, entry.username, entry.score, format_us(entry.reached_at_us))
        for rank, entry in enumerate(entries, 1)
    ]


def headers(topic: Topic, event_id: str, at: str, traceparent: str) -> Headers:
    """The headers of one record; `at` is RFC 3339."""
    return [
        *_fixed(topic.name),
        ("ce_id", event_id.encode()),
        ("ce_time", at.encode()),
        ("traceparent", traceparent.encode()),
    ]


@cache
def _fixed(topic_name: str) -> tuple[tuple[str, bytes], ...]:
    """What is the same for every record of a topic."""
    return (
        ("ce_specversion", b"1.0"),
        ("ce_source", SOURCE),
        ("ce_type", topic_name.encode()),
        # The original bytes of a dead letter may be anything.
        ("content-type", _BYTES if topic_name == DEAD.name else _JSON),
    )


def derived_traceparent(event_id: str) -> str:
    """A trace of its own for a record whose request is not known any more; the same at every repeat."""
    digest = hashlib.blake2b(event_id.encode(), digest_size=24).hexdigest()
    return f"00-{digest[:32]}-{digest[32:]}-01"
