"""Our own calls, by the letter of the interface."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import Refused
from ingest.app import Readiness
from ingest.door import Door
from ingest.requests import Request
from tests.ingest.world import World, bearer


async def test_an_action_is_answered_with_a_receipt(world: World) -> None:
    token = world.tokens.give("ann", "actions:write")
    reply = await world.client.post(
        "/v1/actions", json={"action_id": "a1", "type": "level_complete"}, headers=bearer(token)
    )

    assert reply.status_code == 202, reply.text
    assert reply.headers["trueboard-action"] == "a1"


async def test_nobody_is_told_that_an_action_is_unknown_while_redis_is_away(world: World) -> None:
    token = world.tokens.give("ann", "actions:write")
    world.stream.judging = False
    taken = await world.client.post(
        "/v1/actions", json={"action_id": "a1", "type": "level_complete"}, headers=bearer(token)
    )
    world.markers.away = True
    away = await world.client.get(taken.headers["location"], headers=bearer(token))
    world.markers.away = False
    back = await world.client.get(taken.headers["location"], headers=bearer(token))

    assert (away.status_code, away.json()["code"]) == (503, "board_rebuilding")
    assert back.status_code == 200


async def test_a_refusal_that_was_answered_holds_on_to_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frames it came by hold the whole body, and it hangs on them."""
    refusals: list[Any] = []
    refused = Door.refused

    def noted(door: Door, request: Request, error: Any) -> Any:
        refusals.append(error)
        return refused(door, request, error)

    monkeypatch.setattr(Door, "refused", noted)
    token = world.tokens.give("ann", "actions:write")
    for body in ({"actions": 0, "x": ["a"] * 100}, {"actions": []}):
        reply = await world.client.post("/v1/actions/batch", json=body, headers=bearer(token))
        assert reply.status_code == 400

    assert [type(refusal) for refusal in refusals] == [Refused, Refused]
    for refusal in refusals:
        assert (refusal.__traceback__, refusal.__context__, refusal.__cause__) == (None, None, None)


def test_once_warm_a_process_is_ready_without_kafka() -> None:
    delivery = SimpleNamespace(ready=False)
    known: Any = SimpleNamespace(known=True, age_s=0.0)
    readiness = Readiness(SimpleNamespace(time=lambda: 0.0), delivery, known, known)  # type: ignore[arg-type]
    readiness.keys_known = readiness.serving = True
    seen = []
    for delivery.ready in (False, True, False):
        seen.append(readiness.ready()[0])

    assert seen == [False, True, True]
