"""redis-py's asyncio client, whose broken connections are told of as such.

uvloop says RuntimeError when something is written to a socket that the other side has closed since.
redis-py knows only OSError there, so a connection that was reset between two commands came out as
a defect: a 500, and the end of a feed.
"""

from __future__ import annotations

from typing import Any

from redis.asyncio import Connection, ConnectionPool, Redis, SSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError


class _Tells(Connection):
    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        try:
            await super().send_packed_command(command, check_health)
        except RuntimeError as error:
            raise RedisConnectionError(f"the connection was closed: {error}") from error


class _TellsOverTls(_Tells, SSLConnection):
    pass


def connect(url: str, **options: Any) -> Redis:
    """A client with a pool of its own; connects when it is first used. `options` are redis-py's."""
    pool = ConnectionPool.from_url(url, **options)
    encrypted = issubclass(pool.connection_class, SSLConnection)
    pool.connection_class = _TellsOverTls if encrypted else _Tells
    return Redis.from_pool(pool)
