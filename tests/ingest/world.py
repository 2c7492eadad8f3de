"""The ingest service over a world of fakes: a clock the test moves, a stream that judges when told to."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

from core import actions, catalogue, words
from core.actions import SubmittedRecord
from core.catalogue import Catalogue
from core.errors import Refused, Unavailable
from core.ranking import member
from core.receipts import Judged, Reason
from core.times import US, format_us, parse_us
from ingest.app import Chance, build
from ingest.app import World as Outside
from ingest.attempts import Attempts
from ingest.backlog import Backlog
from ingest.settings import Settings
from service.tokens import Claims, InvalidToken
from storage.redis import replies
from storage.redis.limits import Decision, Limits, Rule
from storage.redis.markers import Marker
from tests.ingest.described import Description

NOW_US = parse_us("2026-11-21T09:26:00Z")
EPOCH = "01kaj3zs0g0000000000000000"

CATALOGUE = catalogue.read(
    b"""
version = "test-1"
[types.level_complete]
points = 10
[types.client_points]
min = 1
max = 1000
[types.commit]
points = 1
"""
)


@dataclass
class Clock:
    """Wall clock and steady clock in one; they move only by `advance`."""

    now_us: int = NOW_US

    def us(self) -> int:
        return self.now_us

    def s(self) -> float:
        return self.now_us / US

    def advance(self, seconds: float) -> None:
        self.now_us += round(seconds * US)


class Tokens:
    """A verifier that knows the tokens it gave out."""

    def __init__(self) -> None:
        self._known: dict[str, Claims] = {}
        self.verified: list[str] = []

    def give(self, user: str, *scopes: str, name: str | None = None) -> str:
        token = f"token-{len(self._known)}"
        self._known[token] = Claims(
            user, name, frozenset(scopes), NOW_US // US + 3600, f"jti-{token}", NOW_US // US
        )
        return token

    def cached(self, token: bytes | str) -> Claims | None:
        return self._known.get(token.decode("latin-1") if isinstance(token, bytes) else token)

    async def verify(self, token: bytes | str) -> Claims:
        self.verified.append(str(token))
        if claims := self.cached(token):
            return claims
        raise InvalidToken("signature")


class FakeLimits:
    """The limiter's own arithmetic, without Redis."""

    def __init__(self, clock: Clock) -> None:
        self._limits = Limits(None, monotonic_s=clock.s)  # type: ignore[arg-type]
        self.taken: list[tuple[tuple[str, ...], int]] = []

    async def take(self, rules: Sequence[Rule], cost: int = 1) -> Decision:
        self.taken.append((tuple(rule.name for rule in rules), cost))
        return self._limits.take_locally(rules, cost)


class FakeMarkers:
    """Markers in a dict; `away` is Redis without an answer."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], Marker] = {}
        self.away = False

    def look(self, user_id: str, action_id: str) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.set_result(self.held.get((user_id, action_id)))
        return future

    async def found(self, looking: asyncio.Future[Any]) -> Marker | None:
        marker: Marker | None = await looking
        return None if self.away else marker

    async def found_for_certain(self, looking: asyncio.Future[Any]) -> Marker | None:
        if self.away:
            raise Unavailable("Redis: away", code="board_rebuilding")
        return await self.found(looking)

    async def find_many(self, keys: Sequence[tuple[str, str]]) -> list[Marker | None]:
        return [None if self.away else self.held.get(key) for key in keys]

    def remember(self, records: Sequence[SubmittedRecord]) -> None:
        for record in records:
            if not self.away:
                marker = Marker(record.fingerprint, record.type, record.received_at)
                self.held.setdefault((record.user_id, record.action_id), marker)

    async def correct(self, judged: Judged) -> None:
        if not self.away:
            marker = Marker(judged.fingerprint, judged.type, judged.received_at)
            self.held[judged.user_id, judged.action_id] = marker


@dataclass
class Sent:
    """A record as it was handed to Kafka."""

    topic: str
    key: bytes
    record: SubmittedRecord
    headers: dict[str, bytes]


class FakeDelivery:
    """Keeps what is sent; `down` confirms nothing, `refuses` names action ids it does not confirm."""

    def __init__(self, stream: Stream) -> None:
        self.sent: list[Sent] = []
        self.down = False
        self.refuses: set[str] = set()
        self.ready = True
        self.acknowledged: dict[tuple[str, int], int] = {}
        self._stream = stream

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        failure = self._take(topic, key, value, headers)
        if failure is not None:
            future.set_exception(failure)
        else:
            future.set_result(len(self.sent) - 1)
        return future

    def send_many(
        self, topic: str, items: Sequence[tuple[bytes | None, bytes | None, Sequence[tuple[str, bytes]]]]
    ) -> asyncio.Future[list[Unavailable | None]]:
        future: asyncio.Future[list[Unavailable | None]] = asyncio.get_running_loop().create_future()
        future.set_result([self._take(topic, *item) for item in items])
        return future

    def _take(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> Unavailable | None:
        record = actions.decode(value)
        if self.down or record.action_id in self.refuses:
            return Unavailable("not confirmed")
        assert key is not None
        self.sent.append(Sent(topic, key, record, dict(headers)))
        self.acknowledged[topic, 0] = len(self.sent) - 1
        self._stream.receive(self.sent[-1])
        return None


@dataclass
class Entry:
    rank: int
    user_id: str
    username: str
    score: int
    reached_at_us: int


@dataclass
class Page:
    epoch: str
    revision: int
    count: int
    entries: list[Entry]
    source: str = "redis"


class Stream:
    """Ledger, standings and the stream's replies, as simple as they can be.

    `judging` says whether records are judged at once; `verdicts` overrules by action id.
    """

    def __init__(self, listener: replies.Replies) -> None:
        self.judging = True
        self.replying = True
        self.away = False
        self.board_away = False
        self.verdicts: dict[str, tuple[str, str]] = {}
        self.revision = 1
        self.changed_at = 1
        self.epoch = EPOCH
        self.source = "redis"
        self.judged: dict[tuple[str, str], Judged] = {}
        self.names: dict[str, str] = {}
        self.scores: dict[str, tuple[int, int]] = {}
        self.past: dict[int, list[Entry]] = {}
        self.reads = 0
        self._waiting: list[Sent] = []
        self._listener = listener

    def receive(self, sent: Sent) -> None:
        if self.judging:
            self.judge(sent)
        else:
            self._waiting.append(sent)

    def judge_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for sent in waiting:
            self.judge(sent)

    def judge(self, sent: Sent) -> None:
        record = sent.record
        key = (record.user_id, record.action_id)
        if key not in self.judged:
            self._write(record, key)
        judged = self._with_score(self.judged[key])
        if self.replying and sent.headers.get("reply_to", b"").decode() == self._listener.instance:
            message = replies.encode([judged])
            asyncio.get_running_loop().call_soon(self._listener.dispatch, message)

    def _write(self, record: SubmittedRecord, key: tuple[str, str]) -> None:
        self.past[self.revision] = self.entries()
        status, code = self.verdicts.get(record.action_id, ("accepted", ""))
        points = CATALOGUE.worth(record.type, record.points)
        self.revision += 1
        if record.username is not None:
            self.names[record.user_id] = record.username
        if status == "accepted":
            score, _ = self.scores.get(record.user_id, (0, 0))
            self.scores[record.user_id] = (score + points, parse_us(record.received_at))
            self.changed_at = self.revision
        self.judged[key] = Judged(
            user_id=record.user_id,
            action_id=record.action_id,
            type=record.type,
            received_at=record.received_at,
            fingerprint=record.fingerprint,
            status=status,  # type: ignore[arg-type]
            points=points,
            reason=Reason(code) if code else None,
            judged_revision=self.revision,
            epoch=self.epoch,
            revision=self.revision,
            score=None,
            rank=None,
        )

    def _with_score(self, judged: Judged) -> Judged:
        mine = next((entry for entry in self.entries() if entry.user_id == judged.user_id), None)
        return msgspec.structs.replace(
            judged,
            revision=self.revision,
            score=None if mine is None else mine.score,
            rank=None if mine is None else mine.rank,
        )

    def entries(self) -> list[Entry]:
        ordered = sorted(self.scores.items(), key=lambda item: member(*item[1], item[0]))
        return [
            Entry(rank, user_id, self.names.get(user_id, user_id), score, reached_at_us)
            for rank, (user_id, (score, reached_at_us)) in enumerate(ordered, 1)
        ]

    # as receipts, standings and past pages

    async def find(self, user_id: str, action_id: str) -> Judged | None:
        if self.away:
            raise Unavailable("Postgres is away")
        return self.judged.get((user_id, action_id))

    async def page(
        self, period: str, *, limit: int, after: bytes | None = None, at_least: tuple[str, int] | None = None
    ) -> Page:
        self._look(period)
        entries = self.entries()
        if after is not None:
            entries = [e for e in entries if member(e.score, e.reached_at_us, e.user_id) > after]
        if at_least is not None and at_least > (self.epoch, self.revision):
            raise Unavailable("not there yet", code="board_rebuilding")
        return Page(self.epoch, self.changed_at, len(self.scores), entries[:limit], self.source)

    async def player(
        self, period: str, user_id: str, *, at_least: tuple[str, int] | None = None
    ) -> tuple[Page, Entry | None]:
        self._look(period)
        mine = next((entry for entry in self.entries() if entry.user_id == user_id), None)
        return Page(self.epoch, self.changed_at, len(self.scores), [], self.source), mine

    async def past_page(
        self, period: str, epoch: str, revision: int, after: bytes, limit: int
    ) -> list[Entry] | None:
        if epoch != self.epoch or revision not in self.past:
            return None
        entries = [
            entry
            for entry in self.past[revision]
            if member(entry.score, entry.reached_at_us, entry.user_id) > after
        ]
        return entries[:limit]

    def _look(self, period: str) -> None:
        self.reads += 1
        if self.board_away:
            raise Unavailable("being built", code="board_rebuilding")
        if period not in (words.MAIN_PERIOD, "secret:all-time"):
            raise Refused("not_found", f"there is no board window {period}", status_code=404)


class FakeReplies(replies.Replies):
    """Replies without Redis. Where none is on its way, waiting for one moves the clock and no more."""

    def __init__(self, clock: Clock) -> None:
        super().__init__("redis://-", "instance-1")
        self._clock = clock

    def wait_for(self, user_id: str, action_id: str) -> replies.Waiting:
        return _Waiting(self, (user_id, action_id), self._clock)


class _Waiting(replies.Waiting):
    def __init__(self, owner: FakeReplies, key: tuple[str, str], clock: Clock) -> None:
        super().__init__(owner, key)
        self._clock = clock

    async def reply(self, timeout_s: float) -> Judged | None:
        judged = await super().reply(0.001)
        if judged is None:
            self._clock.advance(timeout_s)
        return judged


class Catalogues:
    current: Catalogue = CATALOGUE


@dataclass
class World:
    """The service and everything around it; `client` speaks to it."""

    settings: Settings = field(
        default_factory=lambda: Settings(kafka="-", redis_url="-", postgres_url="-", jwks="-")
    )

    def __post_init__(self) -> None:
        self.clock = Clock()
        self.tokens = Tokens()
        self.limits = FakeLimits(self.clock)
        self.markers = FakeMarkers()
        self.replies = FakeReplies(self.clock)
        self.stream = Stream(self.replies)
        self.delivery = FakeDelivery(self.stream)
        self.backlog = Backlog(self.delivery.acknowledged, clock_s=self.clock.s)
        self.lines: list[dict[str, Any]] = []
        self.attempts = Attempts(self._keep_lines)
        self.tickets: list[Mapping[str, Any]] = []
        self.tickets_away = False
        self.public = frozenset({"main"})
        self._ids = itertools.count(1)
        self._description: Description | None = None
        self.app = build(
            self.settings,
            Outside(
                verifier=self.tokens,
                limits=self.limits,
                markers=self.markers,
                replies=self.replies,
                delivery=self.delivery,
                receipts=self.stream,
                standings=self.stream,
                catalogues=Catalogues(),
                tickets=self._ticket,
                past_page=self.stream.past_page,
                public_boards=lambda: self.public,
                jwks=self._jwks,
                backlog=self.backlog,
                attempts=self.attempts,
            ),
            Chance(
                clock_us=self.clock.us,
                monotonic_s=self.clock.s,
                fresh_id=lambda: f"fresh-{next(self._ids)}",
            ),
        )
        self.client = self.client_at("192.0.2.1")

    def client_at(self, address: str) -> httpx.AsyncClient:
        """A client whose every reply is held against the description."""
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, client=(address, 4000)),
            base_url="http://test",
            event_hooks={"response": [self._check]},
        )

    @property
    def records(self) -> list[SubmittedRecord]:
        """What reached the topic."""
        return [sent.record for sent in self.delivery.sent]

    def logged(self) -> list[dict[str, Any]]:
        self.attempts.flush()
        return self.lines

    async def _check(self, reply: httpx.Response) -> None:
        await reply.aread()
        if self._description is None:
            routes = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test")
            self._description = Description((await routes.get("/openapi.json")).json())
        self._description.check(reply)

    def _keep_lines(self, lines: bytes) -> None:
        self.lines += [msgspec.json.decode(line) for line in lines.splitlines()]

    async def _ticket(self, claims: Mapping[str, Any]) -> str:
        if self.tickets_away:
            raise Unavailable("Tickets cannot be issued now.")
        self.tickets.append(claims)
        return "t" * 43

    async def _jwks(self) -> bytes:
        return b'{"keys":[]}'


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def at(seconds: float) -> str:
    """An instant this far from the world's beginning, as on the wire."""
    return format_us(NOW_US + round(seconds * US))
