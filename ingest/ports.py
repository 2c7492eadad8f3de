"""What the routes need from the world, as the shapes they use of it.

The real ones are in `storage` and `service`; tests put fakes in their place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from core.actions import SubmittedRecord
from core.receipts import Judged
from storage.redis.markers import Marker
from storage.standings import Page, RankedEntry

Headers = Sequence[tuple[str, bytes]]
Position = tuple[str, int]
"""(epoch, revision)."""


class Claims(Protocol):
    """What a good token says; `exp_s` and `iat_s` are seconds since 1970."""

    @property
    def sub(self) -> str: ...
    @property
    def name(self) -> str | None: ...
    @property
    def scopes(self) -> frozenset[str]: ...
    @property
    def exp_s(self) -> int: ...
    @property
    def jti(self) -> str: ...
    @property
    def iat_s(self) -> int: ...


class Verifier(Protocol):
    def cached(self, token: bytes | str) -> Claims | None: ...
    async def verify(self, token: bytes | str) -> Claims: ...


class Rule(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def key(self) -> str: ...


class Decision(Protocol):
    @property
    def allowed(self) -> bool: ...
    @property
    def retry_after_s(self) -> int: ...
    @property
    def rate_limit(self) -> str: ...
    @property
    def rate_limit_policy(self) -> str: ...
    def refusal(self) -> Exception: ...


class Limits(Protocol):
    async def take(self, rules: Sequence[Any], cost: int = 1) -> Decision: ...


class Delivery(Protocol):
    @property
    def ready(self) -> bool: ...
    @property
    def acknowledged(self) -> dict[tuple[str, int], int]: ...
    def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()
    ) -> asyncio.Future[int]: ...
    def send_many(
        self, topic: str, items: Sequence[tuple[bytes | None, bytes | None, Headers]]
    ) -> asyncio.Future[Any]: ...


class Markers(Protocol):
    def look(self, user_id: str, action_id: str) -> asyncio.Future[Any]: ...
    async def found(self, looking: asyncio.Future[Any]) -> Marker | None: ...
    async def found_for_certain(self, looking: asyncio.Future[Any]) -> Marker | None: ...
    async def find_many(self, keys: Sequence[tuple[str, str]]) -> list[Marker | None]: ...
    def remember(self, records: Sequence[SubmittedRecord]) -> object: ...
    async def correct(self, judged: Judged) -> None: ...


class Waiting(Protocol):
    """A place in the queue for one reply, held inside its `with`."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
    async def reply(self, timeout_s: float) -> Judged | None: ...


class Replies(Protocol):
    @property
    def instance(self) -> str: ...
    def wait_for(self, user_id: str, action_id: str) -> Waiting: ...


class Receipts(Protocol):
    async def find(self, user_id: str, action_id: str) -> Judged | None: ...


class Standings(Protocol):
    async def page(
        self, period: str, *, limit: int, after: bytes | None = None, at_least: Position | None = None
    ) -> Page: ...
    async def player(
        self, period: str, user_id: str, *, at_least: Position | None = None
    ) -> tuple[Page, RankedEntry | None]: ...


class Tickets(Protocol):
    def __call__(self, claims: Mapping[str, Any]) -> Awaitable[str]: ...
