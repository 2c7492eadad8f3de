"""A running feed with a broker in memory, standings the test writes, and sockets to read it with."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import uvloop
from confluent_kafka import Producer
from redis.asyncio import Redis

from core import events, scopes
from core.errors import Refused, Unavailable
from core.feed import Publication
from core.receipts import Judged, Status
from core.topics import BOARD_CHANGED
from core.words import MAIN_PERIOD
from push.feed import Feed, Sources, listen
from push.settings import Settings
from push.verdicts import Verdicts
from service.revocations import Revocation, Revocations
from service.tokens import Claims, InvalidToken
from storage import standings
from storage.postgres.verdicts import Found
from storage.redis.limits import Limits
from tests.push.views import EPOCH, Page, page
from trueboard.devstack.kafka.memory import MockCluster

GOOD_TICKET = "t" * 43
ISSUED_AT_S = 1_700_000_000


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the feed runs on."""
    return {"uvloop": uvloop.new_event_loop}


@dataclass
class Standings:
    """What the feed compares with; `error` is raised instead of an answer."""

    page_now: Page
    error: Refused | Unavailable | None = None

    async def page(self, period: str, *, limit: int) -> Page:
        if self.error is not None:
            raise self.error
        return self.page_now


@dataclass
class Ledger:
    """The verdicts there are, in order, and where everybody stands; `away` is raised instead."""

    epoch: str = EPOCH
    revision: int = 1
    judged: list[Judged] = field(default_factory=list)
    away: Unavailable | None = None

    def judge(self, user_id: str, action_id: str, *, revision: int, status: Status = "accepted") -> None:
        self.revision = revision
        self.judged.append(
            Judged(
                user_id=user_id,
                action_id=action_id,
                type="level_complete",
                received_at="2026-11-21T12:00:00.000000Z",
                fingerprint="00",
                status=status,
                points=10,
                reason=None,
                judged_revision=revision,
                epoch=self.epoch,
                revision=revision,
                score=None,
                rank=None,
            )
        )

    async def position(self) -> tuple[str, int]:
        self._answer()
        return self.epoch, self.revision

    async def after(self, revision: int, user_ids: Collection[str]) -> Found:
        self._answer()
        judged = [it for it in self.judged if it.user_id in user_ids and it.judged_revision > revision]
        return Found(judged, max(revision, self.revision), (self.epoch, self.revision))

    async def player(
        self, period: str, user_id: str, *, at_least: tuple[str, int] | None = None
    ) -> tuple[standings.Page, standings.RankedEntry | None]:
        entry = standings.RankedEntry(3, user_id, user_id, 70, 0)
        return standings.Page(self.epoch, self.revision, 9, [entry]), entry

    def _answer(self) -> None:
        if self.away is not None:
            raise self.away


@dataclass
class Revoked:
    """What Postgres keeps of revoked tokens; `away` is raised instead."""

    kept: list[Revocation] = field(default_factory=list)
    away: Unavailable | None = None

    def user(self, user_id: str) -> None:
        """All of this user's tokens so far. The fake ones all are of the same instant."""
        number = len(self.kept) + 1
        self.kept.append(Revocation(number, number, None, user_id, ISSUED_AT_S + 1, 4_000_000_000))

    async def read(self, first: int) -> list[Revocation]:
        if self.away is not None:
            raise self.away
        return [each for each in self.kept if each.number >= first]


@dataclass
class Running:
    """A feed under test. Tokens are `<user>` or `<user>;<scope>;<life in s>`; `-` is not good."""

    feed: Feed
    standings: Standings
    cluster: MockCluster
    producer: Producer
    tickets: dict[str, dict[str, Any]]
    ledger: Ledger
    brought: list[str]
    """The tokens that clients brought, in order."""
    revoked: Revoked

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.feed.port}"

    async def publish(self, *publications: Publication) -> None:
        """Bring publications by Kafka alone; returns once the broker has them."""
        for publication in publications:
            self.producer.produce(
                BOARD_CHANGED.name, events.encode(publication), key=publication.period.encode()
            )
        assert await asyncio.to_thread(self.producer.flush, 5) == 0

    async def until(self, holds: Callable[[], bool], timeout_s: float = 20.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < deadline_s, "it did not come to hold"
            await asyncio.sleep(0.01)


async def _verify(token: str) -> Claims:
    user_id, _, rest = token.partition(";")
    scope, _, life_s = rest.partition(";")
    if user_id == "-":
        raise InvalidToken("signature")
    if user_id == "expired":
        raise InvalidToken("expired")
    granted = frozenset({scope or scopes.BOARDS_READ})
    return Claims(user_id, None, granted, int(time.time() + float(life_s or 60)), "id", ISSUED_AT_S)


def ticket_of(user_id: str) -> dict[str, Any]:
    """What a ticket of this user's stands for."""
    granted = {"sub": user_id, "scopes": [scopes.BOARDS_READ], "exp_s": int(time.time()) + 60}
    return granted | {"jti": "id", "iat_s": ISSUED_AT_S}


RunFeed = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def run_feed(memory_kafka: MockCluster) -> RunFeed:
    """Runs a feed with these settings, ready unless `wait_ready` says otherwise. Several are replicas."""
    memory_kafka.make_topic(BOARD_CHANGED.name, 3)

    @asynccontextmanager
    async def run(
        *,
        error: Refused | Unavailable | None = None,
        wait_ready: bool = True,
        before: Callable[[Running], Awaitable[None]] | None = None,
        **changed: Any,
    ) -> AsyncIterator[Running]:
        settings = replace(
            Settings(
                kafka=memory_kafka.bootstrap,
                kafka_kind="memory",
                redis_url="",
                postgres_url="",
                jwks="",
            ),
            **changed,
        )
        shown = Standings(page(1), error)
        tickets: dict[str, dict[str, Any]] = {}
        ledger = Ledger()
        brought: list[str] = []
        revoked = Revoked()

        async def verify(token: str) -> Claims:
            brought.append(token)
            return await _verify(token)

        async def take_ticket(ticket: str) -> Mapping[str, Any] | None:
            return tickets.pop(ticket, None)

        listener = listen("127.0.0.1", 0)
        sources = Sources(
            standings=shown,
            verdicts=Verdicts(ledger, ledger, MAIN_PERIOD),
            verify=verify,
            take_ticket=take_ticket,
            revocations=Revocations(revoked.read, interval_s=0.05),
            limits=Limits(Redis()),
        )
        producer = Producer({"bootstrap.servers": memory_kafka.bootstrap, "linger.ms": 0})
        feed = Feed(settings, sources, listener)
        running = Running(feed, shown, memory_kafka, producer, tickets, ledger, brought, revoked)
        if before is not None:
            await before(running)
        serving = asyncio.create_task(running.feed.run())
        try:
            if wait_ready:
                await running.until(lambda: running.feed.ready()[0])
            yield running
        finally:
            running.feed.stop()
            await asyncio.wait_for(serving, 5)
            listener.close()

    return run


async def raw_reader(port: int, path: str, token: str) -> socket.socket:
    """A socket that has shaken hands and reads nothing from then on; its own buffer is small."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(raw, ("127.0.0.1", port))
    head = (
        f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {'A' * 22}==\r\nSec-WebSocket-Version: 13\r\n"
        f"Authorization: Bearer {token}\r\n\r\n"
    )
    await loop.sock_sendall(raw, head.encode())
    return raw
