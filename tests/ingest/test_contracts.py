"""Every contract by its golden records: the same requests, replies and records as written down."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.core.examples import cases
from tests.ingest.golden import run
from tests.ingest.world import World, at, bearer


@pytest.mark.parametrize("case", cases("contracts"))
async def test_a_contract_is_kept_to_the_letter(world: World, case: dict[str, Any]) -> None:
    replies, records = await run(world, case)

    assert replies == [step["reply"] for step in case["steps"]]
    assert records == case["records"]


SCORE = {"user_id": "ann", "score_delta": 1}
CALLS: dict[str, tuple[str, dict[str, Any], str | None, tuple[str, Any]]] = {
    "S0": ("/api/v0/scores/update", SCORE, "authorization_token", ("status", "failure")),
    "S1": ("/update-score", {"userId": "ann", "actionId": "commit"}, None, ("type", "/problems/{code}")),
    "S2": ("/api/v1/scores/update", {"userId": "ann", "scoreIncrement": 1}, "authToken", ("success", False)),
    "S3": ("/api/scores/update", SCORE, "auth_token", ("type", "/problems/{code}")),
    "S4": ("/api/scores/update", {"actionId": "commit", "timestamp": at(0)}, None, ("success", False)),
}
"""By specification: path, body, in which member the token is (else in a header), what errors begin with."""


@pytest.fixture(params=CALLS)
def call(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def submit(world: World, call: str, token: str) -> httpx.Response:
    path, body, member, _ = CALLS[call]
    if member is None:
        return await world.client.post(path, json=body, headers=bearer(token))
    return await world.client.post(path, json={**body, member: token})


def told(reply: httpx.Response, call: str) -> tuple[int, str]:
    """Status and code of an error in the call's own shape."""
    body = reply.json()
    first, value = CALLS[call][3]
    expected = value.format(code=body["code"]) if isinstance(value, str) else value
    assert next(iter(body.items())) == (first, expected)
    assert (reply.headers["content-type"] == "application/problem+json") == (first == "type")
    return reply.status_code, body["code"]


async def test_who_asks_too_often_is_told_so_in_the_call_s_own_shape(world: World, call: str) -> None:
    token = world.tokens.give("ann", "actions:write", "scores:write")
    replies = [await submit(world, call, token) for _ in range(31)]

    assert all(reply.status_code < 300 for reply in replies[:30])
    assert told(replies[30], call) == (429, "rate_limited")
    assert int(replies[30].headers["retry-after"]) >= 1


async def test_what_kafka_does_not_confirm_is_told_in_the_call_s_own_shape(world: World, call: str) -> None:
    token = world.tokens.give("ann", "actions:write", "scores:write")
    world.delivery.down = True
    reply = await submit(world, call, token)

    assert told(reply, call) == (503, "queue_unavailable")
    assert int(reply.headers["retry-after"]) >= 1
    assert reply.headers["trueboard-action"]


async def test_a_defect_is_told_in_the_call_s_own_shape(
    world: World, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a secret of the house")

    token = world.tokens.give("ann", "actions:write", "scores:write")
    monkeypatch.setattr(world.delivery, "send", broken)
    reply = await submit(world, call, token)

    assert told(reply, call) == (500, "internal")
    assert "secret" not in reply.text
