from __future__ import annotations

import asyncio
import hashlib

import pytest
from redis.asyncio import Redis

from core.errors import Unavailable
from storage.redis import tickets
from trueboard.devstack.ports import free_port

CLAIMS = {"sub": "u1", "scopes": ["boards:read"], "exp_s": 1_800_000_000}


@pytest.fixture
async def redis(redis_db_url):
    client = Redis.from_url(redis_db_url)
    yield client
    await client.aclose()


@pytest.mark.services
async def test_a_ticket_is_good_once(redis):
    ticket = await tickets.issue(redis, CLAIMS)

    assert await tickets.take(redis, ticket) == CLAIMS
    assert await tickets.take(redis, ticket) is None


@pytest.mark.services
async def test_of_many_who_take_a_ticket_at_once_one_gets_it(redis):
    ticket = await tickets.issue(redis, CLAIMS)

    taken = await asyncio.gather(*(tickets.take(redis, ticket) for _ in range(20)))

    assert [claims for claims in taken if claims] == [CLAIMS]


@pytest.mark.services
async def test_redis_never_sees_the_ticket_itself_and_forgets_it_soon(redis):
    ticket = await tickets.issue(redis, CLAIMS)

    (key,) = await redis.keys("*")
    assert key.decode() == "tb:ticket:" + hashlib.sha256(ticket.encode()).hexdigest()
    assert ticket.encode() not in await redis.get(key)
    assert 29_000 < await redis.pttl(key) <= 30_000
    assert len(ticket) == 43


@pytest.mark.services
async def test_a_ticket_is_gone_after_its_time(redis):
    ticket = await tickets.issue(redis, CLAIMS, ttl_s=1)
    await asyncio.sleep(1.1)

    assert await tickets.take(redis, ticket) is None


@pytest.mark.parametrize("ticket", ["", "a", "a" * 42, "a" * 44, "a" * 42 + "\n", "{}" + "a" * 41, "é" * 43])
async def test_what_is_no_ticket_is_not_even_looked_up(ticket):
    nowhere = Redis(port=free_port())

    assert await tickets.take(nowhere, ticket) is None


async def test_without_redis_a_ticket_is_unavailable():
    nowhere = Redis(port=free_port())

    with pytest.raises(Unavailable):
        await tickets.issue(nowhere, CLAIMS)
    with pytest.raises(Unavailable):
        await tickets.take(nowhere, "a" * 43)
