"""Ingest: an action is accepted when Kafka has confirmed it, and not before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.model.running import Steps
from tests.model.servers import Record

if TYPE_CHECKING:
    from tests.model.world import World


@dataclass
class Attempt:
    """One try of a client; `kafka` is what will come of it: confirmed, unconfirmed or refused."""

    user_id: str
    action_id: str
    number: int
    kafka: str


def door(world: World) -> Steps:
    while True:
        yield lambda: bool(world.attempts)
        attempt = world.attempts.pop(0)
        key = (attempt.user_id, attempt.action_id)
        yield None
        if key in world.redis.markers:
            world.answered(attempt, log=world.redis.markers[key])
            continue
        if not world.clauses.marker_after_acknowledgement:
            world.redis.markers[key] = world.kafka.submitted_id
        yield None
        log = world.kafka.submitted_id
        if attempt.kafka != "refused":
            record = Record(attempt.user_id, attempt.action_id, world.now_us(), attempt.number)
            world.kafka.submitted[world.partition_of(attempt.user_id)].append(record)
        yield None
        if attempt.kafka == "confirmed":
            if world.clauses.marker_after_acknowledgement:
                world.redis.markers[key] = log
            world.answered(attempt, log=log)
        # Else 503: the client comes again.
