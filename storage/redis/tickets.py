"""One-time tickets: how a browser, which cannot set headers, opens a WebSocket as somebody.

A ticket is 256 random bits. Redis knows only its SHA-256, under `tb:ticket:<hash>`, with the
claims it stands for; taking it deletes it in the same step, so of two takers one gets it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from typing import Any

from redis import exceptions as redis_exceptions
from redis.asyncio import Redis

from core.errors import Unavailable

TTL_S = 30

_TIMEOUT_S = 1.0

_TICKET = re.compile(r"[A-Za-z0-9_-]{43}")


async def issue(redis: Redis, claims_json: Mapping[str, Any], ttl_s: int = TTL_S) -> str:
    """A new ticket (43 characters) for these claims, good once and for `ttl_s` seconds.

    Raises:
        Unavailable: Redis did not take it within a second.
    """
    ticket = secrets.token_urlsafe(32)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await redis.set(_key(ticket), json.dumps(claims_json), ex=ttl_s)
    except (redis_exceptions.RedisError, OSError, TimeoutError) as error:
        raise Unavailable("Tickets cannot be issued now.") from error
    return ticket


async def take(redis: Redis, ticket: str) -> dict[str, Any] | None:
    """The claims of a ticket, which is then used up; None if there is no such ticket (any more).

    Raises:
        Unavailable: Redis did not answer within a second; the ticket may be used up.
    """
    if _TICKET.fullmatch(ticket) is None:
        return None
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            stored = await redis.getdel(_key(ticket))
    except (redis_exceptions.RedisError, OSError, TimeoutError) as error:
        raise Unavailable("Tickets cannot be checked now.") from error
    if stored is None:
        return None
    claims: dict[str, Any] = json.loads(stored)
    return claims


def _key(ticket: str) -> str:
    return f"tb:ticket:{hashlib.sha256(ticket.encode()).hexdigest()}"
