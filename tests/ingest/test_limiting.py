"""Who is counted for what, and what it costs."""

from __future__ import annotations

import pytest

from ingest.limiting import Forwarded
from ingest.settings import Settings
from tests.ingest.world import World, bearer

OWN = "/v1/actions"


def action(number: int) -> dict[str, str]:
    return {"action_id": f"a{number}", "type": "commit"}


async def test_a_user_has_thirty_actions_at_once_and_five_a_second(world: World) -> None:
    token = world.tokens.give("ann", "actions:write")
    first = [
        (await world.client.post(OWN, json=action(n), headers=bearer(token))).status_code for n in range(32)
    ]
    world.clock.advance(1)
    later = [
        (await world.client.post(OWN, json=action(n), headers=bearer(token))).status_code
        for n in range(32, 39)
    ]

    assert first == [202] * 30 + [429] * 2
    assert later == [202] * 5 + [429] * 2


async def test_two_tokens_of_a_user_share_the_user_s_limit(world: World) -> None:
    tokens = [world.tokens.give("ann", "actions:write") for _ in range(2)]
    replies = [await world.client.post(OWN, json=action(n), headers=bearer(tokens[n % 2])) for n in range(31)]

    assert replies[-1].status_code == 429


async def test_a_batch_costs_its_actions(world: World) -> None:
    token = world.tokens.give("ann", "actions:write")
    batch = {"actions": [action(n) for n in range(20)]}
    first = await world.client.post("/v1/actions/batch", json=batch, headers=bearer(token))
    second = await world.client.post("/v1/actions/batch", json=batch, headers=bearer(token))
    ten = {"actions": [action(n) for n in range(10)]}
    third = await world.client.post("/v1/actions/batch", json=ten, headers=bearer(token))

    assert [each.status_code for each in (first, second, third)] == [200, 429, 200]


async def test_a_batch_of_more_than_the_burst_is_told_what_it_may_be(world: World) -> None:
    token = world.tokens.give("ann", "actions:write")
    await world.client.post(OWN, json=action(0), headers=bearer(token))
    batches = [{"actions": [action(n) for n in range(size)]} for size in (31, 500, 30)]
    replies = []
    for batch in batches:
        replies.append(await world.client.post("/v1/actions/batch", json=batch, headers=bearer(token)))
        world.clock.advance(int(replies[-1].headers.get("retry-after", 0)))

    assert [each.status_code for each in replies] == [429, 429, 200]
    assert replies[0].headers["retry-after"] == "1"
    for refused in replies[:2]:
        assert "at most 30 at once" in refused.json()["detail"]


@pytest.mark.parametrize("path", [OWN, "/v1/actions/batch", "/api/v1/scores/update", "/api/scores/update"])
@pytest.mark.parametrize(("content", "media_type"), [(b"{", "application/json"), (b"{}", "text/plain")])
async def test_what_cannot_be_read_counts_for_its_address(
    world: World, path: str, content: bytes, media_type: str
) -> None:
    token = world.tokens.give("ann", "actions:write")
    headers = {**bearer(token), "content-type": media_type}
    statuses = [
        (await world.client.post(path, content=content, headers=headers)).status_code for _ in range(601)
    ]
    good = await world.client_at("192.0.2.2").post(OWN, json=action(0), headers=bearer(token))

    assert statuses[0] in (400, 415)
    assert statuses[-1] == 429
    assert good.status_code == 202


async def test_a_refused_token_counts_once(world: World) -> None:
    statuses = [
        (await world.client.post(OWN, json=action(0), headers=bearer(f"bad-{n}"))).status_code
        for n in range(40)
    ]
    unreadable = await world.client.post(
        "/api/v1/scores/update", content=b"{", headers={"content-type": "application/json"}
    )

    assert statuses == [401] * 40
    assert unreadable.status_code == 400


async def test_a_trusted_token_has_a_class_of_its_own(world: World) -> None:
    token = world.tokens.give("server", "actions:write:any")
    batch = {"actions": [{**action(n), "user_id": f"u{n}"} for n in range(500)]}
    replies = [
        await world.client.post("/v1/actions/batch", json=batch, headers=bearer(token)) for _ in range(41)
    ]

    assert [each.status_code for each in replies] == [200] * 40 + [429]


async def test_the_limits_are_told_in_headers(world: World) -> None:
    token = world.tokens.give("ann", "actions:write")
    reply = await world.client.post(OWN, json=action(0), headers=bearer(token))

    assert reply.headers["ratelimit"] == '"user";r=29;t=1, "address";r=599;t=1'
    assert reply.headers["ratelimit-policy"] == '"user";q=30;w=6, "address";q=600;w=2'


async def test_an_address_has_a_limit_over_all_its_users(world: World) -> None:
    tokens = [world.tokens.give(f"u{n}", "actions:write") for n in range(601)]
    statuses = [
        (await world.client.post(OWN, json=action(0), headers=bearer(token))).status_code for token in tokens
    ]
    other = world.client_at("192.0.2.2")
    elsewhere = await other.post(OWN, json=action(1), headers=bearer(tokens[0]))

    assert statuses == [202] * 600 + [429]
    assert elsewhere.status_code == 202


async def test_bad_tokens_are_soon_turned_away_before_they_are_verified(world: World) -> None:
    statuses = [
        (await world.client.post(OWN, json=action(0), headers=bearer(f"bad-{n}"))).status_code
        for n in range(60)
    ]
    verified = len(world.tokens.verified)
    good = world.tokens.give("ann", "actions:write")
    still_good = await world.client.post(OWN, json=action(0), headers=bearer(good))
    world.clock.advance(2)
    later = await world.client.post(OWN, json=action(0), headers=bearer("bad"))

    assert statuses == [401] * 40 + [429] * 20
    assert verified == 41
    assert still_good.status_code == 202
    assert later.status_code == 401


async def test_readers_without_a_token_have_the_lower_limit(world: World) -> None:
    statuses = [(await world.client.get("/api/scores/top10")).status_code for _ in range(41)]
    token = world.tokens.give("ann")
    with_token = await world.client.get("/v1/boards/main/standings", headers=bearer(token))

    top = await world.client.get("/api/scores/top10", headers=bearer(token))

    assert statuses == [200] * 40 + [429]
    assert [with_token.status_code, top.status_code] == [200, 200]


async def test_loopback_has_the_rate_it_is_given() -> None:
    world = World(
        Settings(kafka="-", redis_url="-", postgres_url="-", jwks="-", loopback_address_rate=1000.0)
    )
    loopback, other = world.client_at("127.0.0.1"), world.client_at("192.0.2.1")

    assert {(await loopback.get("/api/scores/top10")).status_code for _ in range(100)} == {200}
    assert {(await other.get("/api/scores/top10")).status_code for _ in range(100)} == {200, 429}


async def test_what_needs_no_redis_is_not_limited(world: World) -> None:
    for path in ("/openapi.json", "/docs", "/.well-known/jwks.json"):
        assert (await world.client.get(path)).status_code == 200

    assert world.limits.taken == []


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        pytest.param("203.0.113.9", b"6.6.6.6", "203.0.113.9", id="nobody we know forwards"),
        pytest.param("10.0.0.1", b"203.0.113.9", "203.0.113.9", id="one proxy"),
        pytest.param("10.0.0.1", b"6.6.6.6, 203.0.113.9, 10.0.0.2", "203.0.113.9", id="read from the right"),
        pytest.param("10.0.0.1", b"10.0.0.3, 10.0.0.2", "10.0.0.3", id="only proxies"),
        pytest.param("10.0.0.1", b"", "", id="nothing in it"),
        pytest.param("10.0.0.1", None, "10.0.0.1", id="no header"),
        pytest.param("10.0.0.1", b"2001:db8::1", "2001:db8::1", id="IPv6"),
    ],
)
def test_an_address_behind_known_proxies_is_the_first_that_is_none(
    peer: str, forwarded: bytes | None, expected: str
) -> None:
    headers = [] if forwarded is None else [(b"x-forwarded-for", forwarded)]

    assert Forwarded(("10.0.0.0/8",)).address(peer, headers) == expected


def test_without_known_proxies_nobody_is_believed() -> None:
    assert Forwarded(()).address("127.0.0.1", [(b"x-forwarded-for", b"6.6.6.6")]) == "127.0.0.1"
