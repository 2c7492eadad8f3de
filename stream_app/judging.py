"""From what is known and a group of records to a plan: what the ledger will say of each.

A function of its arguments alone: the rules in force, each player's recent actions as the
ledger has them, which keys it holds already, present scores where a bound could be crossed,
and the records in the order they are to be judged. Nothing here reads a clock or a database.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from core import digest
from core.actions import SubmittedRecord
from core.rates import MAX_EARLY_US, MAX_LATE_US, Judgement, Recent, Rules, effective_backfill
from core.receipts import Reason
from core.words import SCORE_MAX
from storage.postgres.contents import Row
from storage.postgres.ledger import LedgerRows


@dataclass(slots=True)
class Person:
    """A player as one worker knows it.

    `recent` holds its judged actions as of the last batch of the unbroken run `run` of
    `partition`; in any other run it is not believed. None: not read yet.
    """

    player: int
    pid: str
    username: str | None
    hidden: bool = False
    recent: Recent | None = None
    partition: int = -1
    run: int = 0


class Incoming(msgspec.Struct, gc=False):
    """One readable record of the group, with its instants as µs and who waits for its verdict."""

    partition: int
    offset: int
    record: SubmittedRecord
    occurred_us: int
    received_us: int
    reply_to: str | None = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a score may be: from `lowest` to 2^63 − 1. `scores` are the present ones, where known.

    None while nothing in the group could cross a bound without the database noticing.
    """

    lowest: int
    scores: Mapping[int, int] | None = None


@dataclass(slots=True)
class Plan:
    """What one transaction is to write.

    `rows` and `leaves` are in one order. `points` and `reached_us` are per
    player with points, `presence` the first instant per player whose accepted actions are all
    worth nothing; `judged` the index of each record that is new, with its judgement, `repeated`
    the others.
    """

    rows: LedgerRows
    leaves: list[bytes]
    points: dict[int, int] = field(default_factory=dict)
    reached_us: dict[int, int] = field(default_factory=dict)
    presence: dict[int, int] = field(default_factory=dict)
    judged: dict[int, Judgement] = field(default_factory=dict)
    repeated: list[int] = field(default_factory=list)


LEAP: Final = 1 << 40
"""Points of one action up to which a group's sum stays far within 64 bits."""

_New = tuple[str, int, Person, Incoming, Judgement, bool]
"""One that is to be written: action id, player, and what its row is made of; backfill last."""


def could_cross(rules: Rules, incoming: Sequence[Incoming]) -> bool:
    """Whether scores must be known before judging: an action lowers one, or raises it by a leap.

    Where this is false a score can only pass the upper bound in small steps; the database refuses
    the one that would, and then the group is judged again with the scores known.
    """
    worth = rules.catalogue.worth
    kinds = {(item.record.type, item.record.points) for item in incoming}
    return any(not 0 <= worth(type_, points) <= LEAP for type_, points in kinds)


def judge(
    rules: Rules,
    bounds: Bounds,
    people: Sequence[Person],
    existing: Container[tuple[str, int]],
    incoming: Sequence[Incoming],
    log: int,
    *,
    max_late_us: int = MAX_LATE_US,
    max_early_us: int = MAX_EARLY_US,
) -> Plan:
    """The plan for a group; `people[i]` sent `incoming[i]` and each has its `recent`.

    The new judgements are added to each player's `recent`: if the plan is not carried out, those
    are to be forgotten (`forget`).
    """
    judge_one, code_of = rules.judge, rules.code
    version = rules.catalogue.version
    taken: set[tuple[str, int]] = set()
    repeated: list[int] = []
    judged: dict[int, Judgement] = {}
    points_of: dict[int, int] = {}
    reached_of: dict[int, int] = {}
    presence: dict[int, int] = {}
    scores = dict(bounds.scores) if bounds.scores is not None else None
    new: list[_New] = []
    for index, (item, person) in enumerate(zip(incoming, people, strict=True)):
        record, player = item.record, person.player
        key = (record.action_id, player)
        if key in taken or key in existing:
            repeated.append(index)
            continue
        taken.add(key)
        recent = person.recent
        assert recent is not None
        occurred_us, received_us, type_ = item.occurred_us, item.received_us, record.type
        backfill = effective_backfill(occurred_us, received_us, record.backfill, max_late_us, max_early_us)
        judgement = judge_one(
            recent,
            occurred_us=occurred_us,
            received_us=received_us,
            backfill=backfill,
            type=type_,
            client_points=record.points,
        )
        points = judgement.points
        accepted = judgement.verdict == "accepted"
        if accepted and scores is not None:
            judgement = _within_bounds(judgement, scores.get(player, 0), bounds.lowest, version)
            accepted = judgement.verdict == "accepted"
            if accepted:
                scores[player] = scores.get(player, 0) + points
        judged[index] = judgement
        new.append((record.action_id, player, person, item, judgement, backfill))
        recent.add(occurred_us, received_us, backfill, code_of(type_), points, accepted)
        if not accepted:
            continue
        if points:
            points_of[player] = points_of.get(player, 0) + points
            reached_us = reached_of.get(player)
            if reached_us is None or reached_us < received_us:
                reached_of[player] = received_us
        else:
            presence.setdefault(player, received_us)
    for player in points_of.keys() & presence.keys():
        del presence[player]
    # No two have action id and player in common, so nothing beyond those is ever compared.
    new.sort()
    rows, leaves = _rows(new, log, version)
    return Plan(rows, leaves, points_of, reached_of, presence, judged, repeated)


def forget(people: Sequence[Person]) -> None:
    """Believe nothing about these players' recent actions: it is not known what was written."""
    for person in people:
        person.recent = None


def _within_bounds(judgement: Judgement, score: int, lowest: int, version: str) -> Judgement:
    after = score + judgement.points
    if not -SCORE_MAX <= after <= SCORE_MAX:
        reason = Reason(
            "score_overflow", "score", version, SCORE_MAX if after > 0 else -SCORE_MAX, None, None
        )
    elif after < lowest and judgement.points < 0:
        reason = Reason("score_below_minimum", "boards.main.lowest", version, lowest, after, None)
    else:
        return judgement
    return Judgement("rejected", reason, judgement.points)


def _rows(new: Sequence[_New], log: int, version: str) -> tuple[LedgerRows, list[bytes]]:
    """Rows and leaves of what is new, in its order."""
    told: list[Row] = []
    leaves: list[bytes] = []
    tail = f",{digest.canonical(version).decode()}]"
    for action_id, _, person, item, judgement, _ in new:
        pid, type_, occurred_us, received_us = (
            person.pid,
            item.record.type,
            item.occurred_us,
            item.received_us,
        )
        verdict, points = judgement.verdict, judgement.points
        told.append(
            Row(
                pid,
                action_id,
                0,
                type_,
                verdict,
                judgement.reason,
                points,
                occurred_us,
                received_us,
                version,
                item.traceparent,
            )
        )
        # core.digest.row_leaf, with what is the same for the whole group made once.
        leaves.append(
            f'["row","{pid}","{action_id}",0,"judged","{type_}","{verdict}",{points},'
            f"{occurred_us},{received_us}{tail}".encode()
        )
    rows = LedgerRows(
        log,
        told,
        players=[one[1] for one in new],
        backfill=[one[5] for one in new],
        fingerprints=[one[3].record.fingerprint for one in new],
        partitions=[one[3].partition for one in new],
        offsets=[one[3].offset for one in new],
    )
    return rows, leaves
