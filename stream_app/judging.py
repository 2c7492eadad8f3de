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

    `rows` and `leaves` stand in the `order` of these indices. `points` and `reached_us` are per
    player with points, `presence` the first instant per player whose accepted actions are all
    worth nothing; `judged` the index of each record that is new, with its judgement, `repeated`
    the others.
    """

    rows: LedgerRows
    leaves: list[bytes]
    order: list[int] = field(default_factory=list)
    points: dict[int, int] = field(default_factory=dict)
    reached_us: dict[int, int] = field(default_factory=dict)
    presence: dict[int, int] = field(default_factory=dict)
    judged: dict[int, Judgement] = field(default_factory=dict)
    repeated: list[int] = field(default_factory=list)


LEAP: Final = 1 << 40
"""Points of one action up to which a group's sum stays far within 64 bits."""

_encode_reason = msgspec.json.Encoder().encode


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
    backfills: dict[int, bool] = {}
    for index, item in enumerate(incoming):
        person, record = people[index], item.record
        player = person.player
        key = (record.action_id, player)
        if key in taken or key in existing:
            repeated.append(index)
            continue
        taken.add(key)
        recent = person.recent
        assert recent is not None
        occurred_us, received_us = item.occurred_us, item.received_us
        backfill = effective_backfill(occurred_us, received_us, record.backfill, max_late_us, max_early_us)
        judgement = judge_one(
            recent,
            occurred_us=occurred_us,
            received_us=received_us,
            backfill=backfill,
            type=record.type,
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
        backfills[index] = backfill
        recent.add(occurred_us, received_us, backfill, code_of(record.type), points, accepted)
        if not accepted:
            continue
        if points:
            points_of[player] = points_of.get(player, 0) + points
            reached_of[player] = max(reached_of.get(player, received_us), received_us)
        else:
            presence.setdefault(player, received_us)
    for player in points_of.keys() & presence.keys():
        del presence[player]
    rows, leaves, order = _rows(people, incoming, judged, backfills, log, version)
    return Plan(rows, leaves, order, points_of, reached_of, presence, judged, repeated)


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


def _rows(
    people: Sequence[Person],
    incoming: Sequence[Incoming],
    judged: Mapping[int, Judgement],
    backfills: Mapping[int, bool],
    log: int,
    version: str,
) -> tuple[LedgerRows, list[bytes], list[int]]:
    """Rows and leaves of the new judgements sorted by (action id, player), and that order's indices."""
    keys = {index: (incoming[index].record.action_id, people[index].player) for index in judged}
    order = sorted(judged, key=keys.__getitem__)
    items = [incoming[index] for index in order]
    records = [item.record for item in items]
    judgements = [judged[index] for index in order]
    reasons: dict[Reason | None, str] = {None: ""}
    for judgement in judgements:
        if judgement.reason not in reasons:
            reasons[judgement.reason] = _encode_reason(judgement.reason).decode()
    rows = LedgerRows(
        action_ids=[record.action_id for record in records],
        players=[people[index].player for index in order],
        types=[record.type for record in records],
        verdicts=[judgement.verdict for judgement in judgements],
        reasons=[reasons[judgement.reason] for judgement in judgements],
        points=[judgement.points for judgement in judgements],
        occurred_us=[item.occurred_us for item in items],
        received_us=[item.received_us for item in items],
        backfill=[backfills[index] for index in order],
        fingerprints=[record.fingerprint for record in records],
        logs=[log] * len(order),
        partitions=[item.partition for item in items],
        offsets=[item.offset for item in items],
        catalogue_version=version,
    )
    tail = f",{digest.canonical(version).decode()}]"
    # core.digest.row_leaf, with what is the same for the whole group made once.
    leaves = [
        (
            f'["row","{people[index].pid}","{item.record.action_id}",0,"judged","{item.record.type}",'
            f'"{judgement.verdict}",{judgement.points},{item.occurred_us},{item.received_us}{tail}'
        ).encode()
        for index, item, judgement in zip(order, items, judgements, strict=True)
    ]
    return rows, leaves, order
