"""The topics: their names, what their keys are, and how they are kept.

Partition counts are an argument of whoever declares them (12 in dev, 64 in production)
and never change afterwards: more partitions are a new version of the topic.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_RECORD_BYTES = 8 * 1024 * 1024
"""Largest record of `board.changed`; set on the topic, its producer and its consumers."""

_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic; `config` are Kafka's own topic settings."""

    name: str
    key: str
    config: dict[str, str] = field(default_factory=dict)


SUBMITTED = Topic(
    "leaderboard.action.submitted.v1",
    "user id",
    {"cleanup.policy": "delete", "retention.ms": str(7 * _DAY_MS)},
)
JUDGED = Topic(
    "leaderboard.action.judged.v1",
    "player",
    {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"},
)
PLAYER = Topic(
    "leaderboard.player.v1",
    "player",
    {"cleanup.policy": "compact", "delete.retention.ms": str(90 * _DAY_MS)},
)
BOARD_CHANGED = Topic(
    "leaderboard.board.changed.v1",
    "period id",
    {
        "cleanup.policy": "delete",
        "retention.ms": str(_DAY_MS),
        "max.message.bytes": str(MAX_RECORD_BYTES),
    },
)
DEAD = Topic(
    "leaderboard.action.dead.v1",
    "topic-partition-offset",
    {
        "cleanup.policy": "delete",
        "retention.ms": str(30 * _DAY_MS),
        # The original bytes whatever their size, and the headers on top.
        "max.message.bytes": str(MAX_RECORD_BYTES),
    },
)

ALL = (SUBMITTED, JUDGED, PLAYER, BOARD_CHANGED, DEAD)
