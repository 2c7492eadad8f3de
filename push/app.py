"""Where the parts of the feed are joined, and taken apart again in reverse."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from core.words import MAIN_PERIOD
from push.feed import Feed, Sources, listen
from push.settings import Settings
from push.verdicts import Verdicts
from service.health import HealthServer
from service.revocations import Revocations
from service.tokens import TokenVerifier
from storage.postgres import revocations as stored_revocations
from storage.postgres.verdicts import VerdictReader
from storage.redis import clients, tickets
from storage.redis.limits import Limits
from storage.standings import Standings

REDIS_TIMEOUT_S: Final = 2.0


@asynccontextmanager
async def joined(settings: Settings) -> AsyncIterator[Feed]:
    """A feed with everything it needs connected, its port bound and its health port open.

    Raises:
        OSError: a port cannot be had.
        Unavailable: the standings cannot be reached.
    """
    async with AsyncExitStack() as stack:
        listener = listen(settings.host, settings.feed_port)
        stack.callback(listener.close)
        redis = clients.connect(
            settings.redis_url, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S
        )
        stack.push_async_callback(redis.aclose)
        standings = await stack.enter_async_context(
            Standings.connect(settings.redis_url, settings.postgres_url)
        )
        revocations = Revocations(
            lambda first: stored_revocations.read(standings.pool, first),
            interval_s=settings.revocations_interval_s,
        )
        verifier = TokenVerifier(
            settings.jwks,
            settings.issuer,
            settings.audience,
            algorithms=settings.token_algorithms,
            max_life_s=settings.token_max_life_s,
            revocations=revocations,
        )

        async def take_ticket(ticket: str) -> Mapping[str, Any] | None:
            return await tickets.take(redis, ticket)

        feed = Feed(
            settings,
            Sources(
                standings=standings,
                verdicts=Verdicts(VerdictReader(standings.pool), standings, MAIN_PERIOD),
                verify=verifier.verify,
                take_ticket=take_ticket,
                revocations=revocations,
                limits=Limits(redis),
            ),
            listener,
        )
        health = HealthServer(settings.metrics_port, live=feed.live, ready=feed.ready)
        health.start()
        stack.callback(health.stop)
        yield feed
