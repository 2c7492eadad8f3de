"""Runs a golden record of `core/examples/contracts` against the world.

`given` sets it up: tokens (name → user, scopes, name), verdicts (action id → status, code), a `stream`
that is `silent`, `kafka` that is `down`, `scores` that are there. In a request `$name` is the token of
that name. Each step is a request and the reply to it; `records` is what reached the topic in the end.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import msgspec

from tests.ingest.world import NOW_US, World

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SHOWN = (
    "allow",
    "etag",
    "location",
    "preference-applied",
    "retry-after",
    "trueboard-action",
    "trueboard-epoch",
    "trueboard-revision",
    "www-authenticate",
    "content-type",
    "cache-control",
)


async def run(world: World, case: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The replies of a case's steps, and the records on the topic."""
    given = case.get("given", {})
    tokens = {
        name: world.tokens.give(token["user"], *token["scopes"], name=token.get("name"))
        for name, token in given.get("tokens", {}).items()
    }
    world.stream.verdicts = {name: tuple(verdict) for name, verdict in given.get("verdicts", {}).items()}
    world.stream.judging = given.get("stream") != "silent"
    world.delivery.down = given.get("kafka") == "down"
    for number, (user, score) in enumerate(given.get("scores", {}).items()):
        world.stream.scores[user] = (score, NOW_US - 1000 + number)
    replies = []
    for step in case["steps"]:
        asked = _with_tokens(step["request"], tokens)
        reply = await _send(world.client, asked)
        replies.append(
            {
                "status": reply.status_code,
                "headers": {name: reply.headers[name] for name in SHOWN if name in reply.headers},
                "body": reply.json() if reply.content else None,
            }
        )
    return replies, [msgspec.to_builtins(record) for record in world.records]


async def _send(client: httpx.AsyncClient, asked: dict[str, Any]) -> httpx.Response:
    body = asked.get("body")
    headers = {"traceparent": TRACEPARENT, **asked.get("headers", {})}
    content = None
    if body is not None:
        content = json.dumps(body).encode()
        headers.setdefault("content-type", "application/json")
    return await client.request(asked["method"], asked["path"], content=content, headers=headers)


def _with_tokens(value: Any, tokens: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: _with_tokens(each, tokens) for name, each in value.items()}
    if isinstance(value, list):
        return [_with_tokens(each, tokens) for each in value]
    if isinstance(value, str):
        for name, token in tokens.items():
            value = value.replace(f"${name}", token)
    return value
