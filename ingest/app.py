"""The one place that joins the parts of the ingest service, opens what they need, and closes it.

Stopping is the list backwards: take no more, finish what is in hand, flush, close.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from litestar import HttpMethod, Litestar, Response, asgi
from litestar import route as litestar_route
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp, Receive, Scope, Send

from core import words
from core.errors import Refused, Unavailable
from core.times import US
from core.topics import SUBMITTED
from ingest import openapi, problems, server
from ingest.attempts import Attempts
from ingest.backlog import Backlog
from ingest.boards import Boards
from ingest.definitions import Definitions
from ingest.door import Asgi, Door, Route
from ingest.limiting import Forwarded, Gate, Rates
from ingest.page import PageRoutes
from ingest.patience import within
from ingest.ports import Delivery, Limits, Markers, Receipts, Replies, Standings, Tickets, Verifier
from ingest.routes.boards import BoardRoutes, PastPage
from ingest.routes.contracts import ContractRoutes
from ingest.routes.documents import DocumentRoutes
from ingest.routes.own import OwnRoutes
from ingest.settings import Settings
from ingest.submission import Tolerance
from ingest.submitting import Submitting
from ingest.taking import Catalogues, Taking, now_us, random_id
from service import logs, tracing
from service.health import HealthServer
from service.revocations import Revocations
from service.tokens import TokenVerifier
from storage.kafka.delivery import Delivery as KafkaDelivery
from storage.kafka.log_ends import LogEnds
from storage.postgres import connections, reading
from storage.postgres import definitions as stored_definitions
from storage.postgres import revocations as stored_revocations
from storage.postgres.receipts import Receipts as LedgerReceipts
from storage.redis import limits as redis_limits
from storage.redis import tickets as redis_tickets
from storage.redis.line import Line
from storage.redis.markers import Markers as RedisMarkers
from storage.redis.replies import Replies as RedisReplies
from storage.standings import Standings as StoredStandings

_NOTE_EVERY_S = 0.25
_LOG_ENDS_EVERY_S = 5.0
_PROGRESS_EVERY_S = 1.0
_KAFKA_RETRY_S = 1.0
_FIRST_READ_S = 2.0
_FLUSH_WITHIN_S = 4.5
_WATCHING_CONNECTIONS = 2

_log = logs.get("ingest.app")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything outside the service that its routes use."""

    verifier: Verifier
    limits: Limits
    markers: Markers
    replies: Replies
    delivery: Delivery
    receipts: Receipts
    standings: Standings
    catalogues: Catalogues
    tickets: Tickets
    past_page: PastPage
    public_boards: Callable[[], frozenset[str]]
    jwks: Callable[[], Any]
    backlog: Backlog
    attempts: Attempts


@dataclass(frozen=True, slots=True, kw_only=True)
class Chance:
    """Time and fresh ids, as the service takes them."""

    clock_us: Callable[[], int] = now_us
    monotonic_s: Callable[[], float] = time.monotonic
    fresh_id: Callable[[], str] = random_id


def routes_of(settings: Settings, world: World, chance: Chance) -> list[Route]:
    """Every route there is, over this world."""
    gate = Gate(world.verifier, world.limits, Rates.of(settings), monotonic_s=chance.monotonic_s)
    boards = Boards(world.standings)
    submitting = Submitting(
        delivery=world.delivery,
        markers=world.markers,
        replies=world.replies,
        found=world.receipts,
        standings=world.standings,
        backlog=world.backlog,
        clock_us=chance.clock_us,
        monotonic_s=chance.monotonic_s,
    )
    tolerance = Tolerance(settings.max_late_s * US, settings.max_early_s * US)
    taking = Taking(
        gate,
        submitting,
        world.catalogues,
        tolerance,
        clock_us=chance.clock_us,
        fresh_id=chance.fresh_id,
    )
    documents = DocumentRoutes(world.jwks, production=settings.production)
    routes = [
        *OwnRoutes(taking, world.markers, world.tickets, world.attempts).routes(),
        *BoardRoutes(
            gate,
            boards,
            world.past_page,
            world.public_boards,
            clock_s=lambda: chance.clock_us() / US,
        ).routes(),
        *ContractRoutes(taking, gate, boards).routes(),
        *documents.routes(),
    ]
    documents.describe(openapi.describe(routes))
    if settings.serves_page:
        routes += PageRoutes(settings.feed_url, world.catalogues).routes()
    return routes


_REAL = Chance()


def build(settings: Settings, world: World, chance: Chance = _REAL) -> Asgi:
    """The ASGI application."""
    door = Door(
        world.attempts,
        Forwarded(settings.trusted_proxies),
        hosts=settings.hosts,
        monotonic_s=chance.monotonic_s,
    )
    routes = routes_of(settings, world, chance)
    served = {route.path: door.serve(route) for route in routes}
    app = Litestar(
        route_handlers=[_mount(route, served[route.path]) for route in routes],
        openapi_config=None,
        exception_handlers={HTTPException: _routing_error},
        logging_config=None,
    )
    return door.guard(app, {path: handler for path, handler in served.items() if "{" not in path})


def _mount(route: Route, served: Asgi) -> Any:
    """The route as Litestar knows it; what it does with a request is ours alone.

    A fixed path is a handler of Litestar's that passes the request on as it is, at half the cost
    of any other. Those have no parameters in their paths, so a path with some is an ordinary
    handler, of every method there is, that hands over to the same.
    """
    if "{" not in route.path:

        @asgi(route.path, copy_scope=False, name=route.path)
        async def passing_on(scope: Scope, receive: Receive, send: Send) -> None:
            await served(scope, receive, send)

        return passing_on

    @litestar_route(route.path, http_method=list(HttpMethod), name=route.path, sync_to_thread=False)
    def handing_over() -> ASGIApp:
        return served

    return handing_over


def _routing_error(request: Any, error: HTTPException) -> Response[bytes]:
    """What the router itself refuses: a path that is none, a method that HTTP does not have."""
    code, status, detail = "not_found", 404, "There is nothing at this path."
    if error.status_code == 405:
        code, status, detail = "method_not_allowed", 405, "This path does not have this method."
    elif error.status_code == 400:
        code, status, detail = "invalid_request", 400, "The request is malformed."
    trace = tracing.child(tracing.parse(request.headers.get("traceparent")))
    headers = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
    if status == 405:
        headers["allow"] = "GET, HEAD"
    return Response(
        content=problems.encode(code, status, detail, trace.trace_id),
        status_code=status,
        media_type=problems.CONTENT_TYPE.decode(),
        headers=headers,
    )


class Readiness:
    """What the health port says; set by the loop, read by its threads."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        delivery: Delivery,
        definitions: Definitions,
        revocations: Revocations,
    ) -> None:
        self.keys_known = False
        self.serving = False
        self.stopping = False
        self._warm = False
        self._loop, self._delivery, self._definitions = loop, delivery, definitions
        self._revocations = revocations
        self._beat_s = loop.time()

    def beat(self) -> None:
        """The loop is moving."""
        self._beat_s = self._loop.time()

    def live(self) -> Mapping[str, Any]:
        behind_s = self._loop.time() - self._beat_s
        return {"ok": behind_s < 10.0, "loop_behind_s": round(behind_s, 2)}

    def ready(self) -> tuple[bool, Mapping[str, Any]]:
        # Without Kafka this process still answers all reads, and says of the others when to come again.
        self._warm = self._warm or self._delivery.ready
        shown = {
            "kafka": self._warm,
            "keys": self.keys_known,
            "catalogue": self._definitions.known,
            "revocations": self._revocations.known,
            "serving": self.serving and not self.stopping,
        }
        return all(shown.values()), shown | {"revocations_age_s": round(self._revocations.age_s, 1)}


async def serve(settings: Settings) -> None:
    """Run until told to stop."""
    async with AsyncExitStack() as stack:
        loop = asyncio.get_running_loop()
        instance = server.instance_id()
        attempts = Attempts()
        stack.callback(attempts.flush)
        standings = await stack.enter_async_context(
            StoredStandings.connect(settings.redis_url, settings.postgres_url, name="ingest")
        )
        pool = standings.pool
        # What everything else hangs on waits for no reader of old pages.
        watching = await stack.enter_async_context(
            connections.pool(settings.postgres_url, name="ingest watch", most=_WATCHING_CONNECTIONS)
        )
        line = Line(settings.redis_url, name="trueboard-ingest")
        await line.start()
        stack.push_async_callback(line.stop)
        replies = RedisReplies(settings.redis_url, instance)
        await replies.start()
        stack.push_async_callback(replies.stop)
        delivery = KafkaDelivery(settings.kafka, client_id=f"trueboard-ingest-{instance}")
        stack.push_async_callback(delivery.stop, _FLUSH_WITHIN_S)
        revocations = Revocations(
            lambda first: stored_revocations.read(watching, first), interval_s=settings.revocations_interval_s
        )
        verifier = TokenVerifier(
            settings.jwks,
            issuer=settings.issuer,
            audience=settings.audience,
            algorithms=settings.token_algorithms,
            max_life_s=settings.token_max_life_s,
            revocations=revocations,
        )
        definitions = Definitions(
            lambda: reading.fence(watching),
            lambda: stored_definitions.current_catalogue_async(watching),
            lambda: reading.public_boards(watching),
        )
        backlog = Backlog(
            delivery.acknowledged, late_after_s=settings.late_after_s, shed_after_s=settings.shed_after_s
        )
        readiness = Readiness(loop, delivery, definitions, revocations)
        health = HealthServer(settings.metrics_port, live=readiness.live, ready=readiness.ready)
        health.start()
        stack.callback(health.stop)
        app = build(
            settings,
            World(
                verifier=verifier,
                # The line speaks the two commands that limits use.
                limits=redis_limits.Limits(line, replicas=settings.ingest_replicas),  # type: ignore[arg-type]
                markers=RedisMarkers(line, ttl_s=settings.marker_ttl_s),
                replies=replies,
                delivery=delivery,
                receipts=LedgerReceipts(pool),
                standings=standings,
                catalogues=definitions,
                tickets=lambda claims: redis_tickets.issue(standings.redis, claims),
                past_page=lambda *asked: reading.past_page(pool, *asked),
                public_boards=definitions.public,
                jwks=lambda: _published(verifier),
                backlog=backlog,
                attempts=attempts,
            ),
        )
        for task in (
            definitions.watch(),
            revocations.run(),
            _warm(delivery, verifier, standings, readiness),
            _watch_backlog(backlog, readiness),
            _watch_progress(backlog, watching),
            _watch_log_ends(backlog, settings.kafka, settings.late_after_s),
        ):
            await stack.enter_async_context(_running(task))
        config = server.configure(app, settings.host, settings.http_port)
        readiness.serving = True
        await server.Server(config, on_stop=lambda: setattr(readiness, "stopping", True)).serve()


@asynccontextmanager
async def _running(work: Any) -> AsyncIterator[None]:
    """A task for as long as this is open; if it fails, that is a defect and ends the process."""
    task = asyncio.create_task(work)
    task.add_done_callback(_end_if_failed)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _end_if_failed(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.critical("defect", task=task.get_name(), exc_info=error)
        # Through the same door as a stop from outside, so that what is in hand is finished.
        os.kill(os.getpid(), signal.SIGTERM)


async def _warm(
    delivery: KafkaDelivery, verifier: TokenVerifier, standings: StoredStandings, readiness: Readiness
) -> None:
    """Have keys, a producer and the windows there are before the first request needs them."""
    while True:
        with contextlib.suppress(Refused, Unavailable):
            await within(_FIRST_READ_S, standings.page(words.MAIN_PERIOD, limit=1))
        readiness.keys_known = await verifier.keys_known()
        try:
            if not delivery.ready:
                await delivery.start()
        except Unavailable:
            _log.warning("kafka_unreachable")
        if delivery.ready and readiness.keys_known:
            return
        await asyncio.sleep(_KAFKA_RETRY_S)


async def _watch_backlog(backlog: Backlog, readiness: Readiness) -> None:
    while True:
        readiness.beat()
        backlog.note()
        await asyncio.sleep(_NOTE_EVERY_S)


async def _watch_progress(backlog: Backlog, pool: Any) -> None:
    """Beside the notes, and not among them: Postgres may freeze, and then the oldest action gets older."""
    while True:
        with contextlib.suppress(Unavailable):
            backlog.judged_up_to(await reading.progress(pool))
        await asyncio.sleep(_PROGRESS_EVERY_S)


async def _watch_log_ends(backlog: Backlog, kafka: str, late_after_s: float) -> None:
    """Where confirmed actions wait for long, see that their log still has them.

    Twice in a row, for a broker that has just taken a log over may not know yet how far it goes.
    """
    short: set[int] = set()
    while True:
        await asyncio.sleep(_LOG_ENDS_EVERY_S)
        before, short = short, set()
        if not (waiting := backlog.waiting(late_after_s)):
            continue
        with contextlib.suppress(Unavailable):
            ends = await asyncio.to_thread(_log_ends, kafka, set(waiting))
            short = {partition for partition, end in ends.items() if end <= waiting[partition]}
            backlog.ended(waiting, {partition: ends[partition] for partition in short & before})


def _log_ends(kafka: str, partitions: set[int]) -> dict[int, int]:
    log = LogEnds(kafka, SUBMITTED.name)
    try:
        return {partition: high for partition, (_, high) in log.ends(partitions).items()}
    finally:
        log.close()


async def _published(verifier: TokenVerifier) -> bytes:
    """The key set that tokens are checked with. Raises OSError where none was ever read."""
    document = await verifier.key_set()
    if document is None:
        raise OSError("no key set was read yet")
    return msgspec.json.encode(document)
