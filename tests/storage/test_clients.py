"""A connection that was closed under a client is an error of Redis, on either kind of loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop
from redis.asyncio import SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from storage.redis import clients

pytestmark = pytest.mark.services


@pytest.mark.parametrize(
    "make_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
def test_a_command_after_a_reset_is_a_connection_error(
    redis_db_url: str, make_loop: Callable[[], asyncio.AbstractEventLoop]
):
    async def look() -> None:
        async with clients.connect(redis_db_url) as client:
            connection = await client.connection_pool.get_connection()
            await connection.send_command("PING")
            assert await connection.read_response() == b"PONG"
            connection._writer.transport.abort()
            await asyncio.sleep(0.05)

            with pytest.raises(RedisConnectionError):  # noqa: PT012 (which of the two is the kernel's choice)
                await connection.send_command("PING")
                await connection.read_response()

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(look())


def test_a_client_that_may_try_twice_never_notices(redis_db_url: str):
    async def look() -> None:
        async with clients.connect(redis_db_url, retry=Retry(NoBackoff(), 1)) as client:
            await client.ping()
            connection = await client.connection_pool.get_connection()
            connection._writer.transport.abort()
            await asyncio.sleep(0.05)
            await client.connection_pool.release(connection)

            assert await client.ping()

    uvloop.run(look())


def test_an_encrypted_url_is_encrypted():
    client = clients.connect("rediss://localhost:1/0")

    assert issubclass(client.connection_pool.connection_class, SSLConnection)
