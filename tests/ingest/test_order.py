"""The order of checks: of several faults, the one that comes first in it is told."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.ingest.world import World, at, bearer

OWN = "/v1/actions"
S0 = "/api/v0/scores/update"
S1 = "/update-score"
S2 = "/api/v1/scores/update"
S3 = "/api/scores/update"
BATCH = "/v1/actions/batch"
CALLS = [OWN, BATCH, S0, S1, S2, S3]

JSON = {"content-type": "application/json"}


async def send(
    world: World, path: str, content: bytes, headers: dict[str, str] | None = None
) -> httpx.Response:
    return await world.client.post(path, content=content, headers={**JSON, **(headers or {})})


def code(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["code"]


@pytest.mark.parametrize("path", CALLS)
async def test_the_size_comes_before_the_token_and_the_json(world: World, path: str) -> None:
    most = 512 * 1024 if path == BATCH else 16 * 1024
    reply = await send(world, path, b"{" + b" " * most)

    assert code(reply) == (413, "too_large")
    assert reply.headers["connection"] == "close"


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": "application/jsonx"},
        {"content-encoding": "gzip"},
    ],
)
async def test_the_media_type_comes_before_the_token(
    world: World, path: str, headers: dict[str, str]
) -> None:
    reply = await send(world, path, b"{", headers)

    assert code(reply) == (415, "unsupported_media_type")


async def test_a_body_without_a_media_type_is_not_taken(world: World) -> None:
    reply = await world.client.post(OWN, content=b"{}")

    assert code(reply) == (415, "unsupported_media_type")


@pytest.mark.parametrize("label", ["application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"'])
async def test_utf_8_may_be_named(world: World, label: str) -> None:
    token = world.tokens.give("ann", "actions:write")
    reply = await send(
        world, OWN, b'{"action_id":"a","type":"commit"}', {**bearer(token), "content-type": label}
    )

    assert reply.status_code == 202


@pytest.mark.parametrize("path", [OWN, BATCH, S1])
async def test_a_bearer_token_comes_before_the_json(world: World, path: str) -> None:
    reply = await send(world, path, b"{", bearer("no-good"))

    assert code(reply) == (401, "invalid_token")


@pytest.mark.parametrize("path", [S0, S2, S3])
async def test_the_json_comes_before_a_token_in_the_body(world: World, path: str) -> None:
    reply = await send(world, path, b'{"auth_token":')

    assert code(reply) == (400, "invalid_json")


async def test_on_the_shared_path_the_body_is_read_before_the_header(world: World) -> None:
    unreadable = await send(world, S3, b"{", bearer("no-good"))
    neither = await send(world, S3, b"{}", bearer("no-good"))
    fourth = await send(world, S3, b'{"actionId":"commit"}', bearer("no-good"))

    assert [code(each) for each in (unreadable, neither, fourth)] == [
        (400, "invalid_json"),
        (400, "invalid_field"),
        (401, "invalid_token"),
    ]


def _faulty(path: str, token: str) -> dict[str, Any]:
    """A body whose shape, rights and rules are all wrong."""
    return {
        OWN: {"action_id": "", "type": "flying", "user_id": "bob"},
        S0: {"user_id": "", "score_delta": 5, "authorization_token": token},
        S1: {"userId": "", "actionId": "flying"},
        S2: {"userId": "", "scoreIncrement": 5, "authToken": token},
        S3: {"user_id": "", "score_delta": 5, "auth_token": token},
    }[path]


@pytest.mark.parametrize("path", [OWN, S0, S1, S2, S3])
async def test_the_limits_come_before_the_shape_and_refused_requests_count(world: World, path: str) -> None:
    token = world.tokens.give("ann")
    body = json.dumps(_faulty(path, token)).encode()
    replies = [await send(world, path, body, bearer(token)) for _ in range(31)]

    assert {each.status_code for each in replies[:30]} == {400}
    assert code(replies[30]) == (429, "rate_limited")
    assert int(replies[30].headers["retry-after"]) >= 1


async def test_unreadable_json_is_told_even_beyond_the_limit(world: World) -> None:
    token = world.tokens.give("ann")
    for _ in range(31):
        await send(world, OWN, b"{}", bearer(token))
    reply = await send(world, OWN, b"{", bearer(token))

    assert code(reply) == (400, "invalid_json")


async def test_shape_comes_before_rights_and_rights_before_rules(world: World) -> None:
    token = world.tokens.give("ann", "actions:write")
    asked = [
        {"action_id": "", "type": "flying", "user_id": "bob"},
        {"action_id": "a", "type": "flying", "user_id": "bob"},
        {"action_id": "a", "type": "flying"},
    ]
    replies = [await world.client.post(OWN, json=body, headers=bearer(token)) for body in asked]

    assert [code(each) for each in replies] == [
        (400, "invalid_field"),
        (403, "forbidden"),
        (422, "unknown_type"),
    ]


async def test_rules_come_before_a_reused_id_and_that_before_kafka(world: World) -> None:
    token = world.tokens.give("ann", "actions:write")
    await world.client.post(OWN, json={"action_id": "a", "type": "commit"}, headers=bearer(token))
    world.delivery.down = True
    asked = [
        {"action_id": "a", "type": "commit", "occurred_at": at(100)},
        {"action_id": "a", "type": "level_complete"},
        {"action_id": "b", "type": "level_complete"},
    ]
    replies = [await world.client.post(OWN, json=body, headers=bearer(token)) for body in asked]

    assert [code(each) for each in replies] == [
        (422, "outside_window"),
        (409, "id_reused"),
        (503, "queue_unavailable"),
    ]


async def test_nothing_that_is_refused_reaches_the_topic(world: World) -> None:
    token = world.tokens.give("ann", "actions:write")
    for path in (OWN, S0, S1, S2, S3):
        await send(world, path, json.dumps(_faulty(path, token)).encode(), bearer(token))

    assert world.records == []


async def test_a_batch_of_too_many_is_413_and_one_of_none_400(world: World) -> None:
    token = world.tokens.give("server", "actions:write:any")
    action = {"action_id": "a", "type": "commit"}
    too_many = await world.client.post(BATCH, json={"actions": [action] * 501}, headers=bearer(token))
    none = await world.client.post(BATCH, json={"actions": []}, headers=bearer(token))
    most = await world.client.post(BATCH, json={"actions": [action] * 500}, headers=bearer(token))

    assert [code(too_many), code(none)] == [(413, "too_large"), (400, "invalid_field")]
    assert most.status_code == 200
    assert len(world.records) == 1
