"""What a submitter is told about an action: the receipt, before and after it was judged."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Status = Literal["submitted", "accepted", "rejected", "held"]


class Reason(msgspec.Struct, frozen=True):
    """Why an action was not simply accepted: the rule, its version and the numbers it saw.

    `rule` names the rule within the catalogue (`types.level_complete.limits.0`, `limits.points`),
    `rule_version` the catalogue's version. `limit`, `seen` and `window_s` are None where the rule
    has no such number.
    """

    code: str
    rule: str | None = None
    rule_version: str | None = None
    limit: int | float | None = None
    seen: int | float | None = None
    window_s: int | float | None = None


class Judged(msgspec.Struct, frozen=True):
    """The stream's answer about one action; also the message an ingest instance waits for.

    `fingerprint`, `type`, `points`, `received_at` are those of the submission that counted, so a
    second submission with another fingerprint can be told that it reused an id. `score` and
    `rank` hold at (epoch, revision) ≥ judged_revision; both are None where the player has no
    entry.
    """

    user_id: str
    action_id: str
    type: str
    received_at: str
    fingerprint: str
    status: Status
    points: int
    reason: Reason | None
    judged_revision: int
    epoch: str
    revision: int
    score: int | None
    rank: int | None


def submitted_receipt(
    user_id: str, action_id: str, type_: str, received_at: str, fingerprint: str, *, replayed: bool = False
) -> dict[str, Any]:
    """The receipt of an action that Kafka confirmed and nobody has judged yet."""
    return {
        "action_id": action_id,
        "user_id": user_id,
        "type": type_,
        "received_at": received_at,
        "fingerprint": fingerprint,
        "status": "submitted",
        "replayed": replayed,
    }


def judged_receipt(judged: Judged, *, replayed: bool = False) -> dict[str, Any]:
    """The receipt of a judged action."""
    return submitted_receipt(
        judged.user_id,
        judged.action_id,
        judged.type,
        judged.received_at,
        judged.fingerprint,
        replayed=replayed,
    ) | {
        "status": judged.status,
        "points": judged.points,
        "reason": msgspec.to_builtins(judged.reason),
        "judged_revision": judged.judged_revision,
        "epoch": judged.epoch,
        "revision": judged.revision,
        "score": judged.score,
        "rank": judged.rank,
    }
