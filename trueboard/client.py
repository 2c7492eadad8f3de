"""What `simulate` and `replay` share: HTTP to the door, tokens, and the verdicts on what was sent.

Actions go in over the public routes, as anybody's would. Verdicts are looked up many at a time in
Postgres, which is exact and cheap, or, where it is not within reach, receipt by receipt over HTTP.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self
from urllib.parse import quote, urlsplit

import httpx
import msgspec
import psycopg

from core.errors import Unavailable
from core.times import parse_us
from service import keys
from service.settings import read_settings
from storage.postgres import connections
from trueboard.endpoints import Endpoints
from trueboard.token import TokenSettings

MOST_ACTIONS: Final = 500
"""In one batch, by the door's rule."""

LONGEST_PAUSE_S: Final = 5.0
"""Longest wait before the same is sent again, whatever Retry-After says beyond it."""

_FIRST_PAUSE_S = 0.1
_ANSWER_S = 20.0
_TOKEN_LIFE_S = 900
_RECEIPTS_AT_ONCE = 32
_ROWS_AT_ONCE = 5_000

Key = tuple[str, str]
"""User id and action id."""


class NoAnswer(Exception):
    """Nothing came back: what was asked may have been done or not."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; `body` is its JSON, None where it has none."""

    status: int
    body: Any
    retry_after_s: float = 0.0

    @property
    def passes(self) -> bool:
        """Whether the same may be sent again: too much, too early, or a fault over there."""
        return self.status == 429 or self.status >= 500

    @property
    def detail(self) -> str:
        """What a problem says, for a person."""
        body = self.body if isinstance(self.body, dict) else {}
        return f"{self.status} {body.get('code', '')}: {body.get('detail', '')}".rstrip(": ")


class Client:
    """HTTP to a running stack. Use with `async with`; belongs to one event loop."""

    def __init__(self, endpoints: Endpoints, *, connections_most: int = 32) -> None:
        # A proxy of the environment has no way to this machine's own loopback.
        near = urlsplit(endpoints.http).hostname in ("127.0.0.1", "localhost", "::1")
        self._http = httpx.AsyncClient(
            base_url=endpoints.http,
            timeout=_ANSWER_S,
            trust_env=not near,
            limits=httpx.Limits(max_connections=connections_most, max_keepalive_connections=connections_most),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def post(
        self, path: str, body: bytes, *, token: str, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send JSON.

        Raises:
            NoAnswer: refused, reset or too slow.
        """
        sent = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", **(headers or {})}
        return await self._ask("POST", path, content=body, headers=sent)

    async def get(
        self, path: str, *, token: str | None = None, query: Mapping[str, str] | None = None
    ) -> Answer:
        """Read something. Raises NoAnswer as `post`."""
        sent = {} if token is None else {"Authorization": f"Bearer {token}"}
        return await self._ask("GET", path, params=query, headers=sent)

    async def _ask(self, method: str, path: str, **rest: Any) -> Answer:
        try:
            response = await self._http.request(method, path, **rest)
        except httpx.HTTPError as error:
            raise NoAnswer(f"{type(error).__name__}: {error}".rstrip(": ")) from error
        try:
            body = msgspec.json.decode(response.content) if response.content else None
        except msgspec.DecodeError:
            body = None
        return Answer(response.status_code, body, _seconds(response.headers.get("Retry-After")))


def _seconds(retry_after: str | None) -> float:
    """Retry-After as seconds; 0 where it is missing or names a date."""
    try:
        seconds = float(retry_after or 0)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def pause_s(attempt: int, answer: Answer | None) -> float:
    """How long to wait before attempt `attempt` + 1: what the answer asks for, else ever longer."""
    asked_s = answer.retry_after_s if answer is not None else 0.0
    return min(LONGEST_PAUSE_S, max(asked_s, _FIRST_PAUSE_S * 2.0 ** min(attempt, 10)))


class Tokens:
    """Tokens of one user by the data directory's own keys, made anew before they end."""

    def __init__(self, data: Path, endpoints: Endpoints, *, user: str, scopes: Sequence[str]) -> None:
        self._data, self._endpoints = data, endpoints
        self._user, self._scopes = user, tuple(scopes)
        self._token, self._until_s = "", 0.0
        settings = read_settings(TokenSettings, os.environ, data_dir=data)
        self._life_s = min(_TOKEN_LIFE_S, settings.token_max_life_s)

    def current(self) -> str:
        """A token that holds for half of its life more.

        Raises:
            SettingsError: the data directory has no keys.
        """
        if time.monotonic() >= self._until_s:
            self._token = keys.issue(
                self._data / "keys",
                user=self._user,
                scopes=self._scopes,
                ttl_s=self._life_s,
                issuer=self._endpoints.issuer,
                audience=self._endpoints.audience,
            )
            self._until_s = time.monotonic() + self._life_s / 2
        return self._token


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the ledger says of an action. `code` is the reason's, `received_us` when the one that
    counts was received."""

    type: str
    verdict: str
    code: str | None
    received_us: int
    epoch: str
    revision: int


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Of tasks that fail for one cause, one tells it."""
    first = group.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first


class Verdicts(Protocol):
    """Somebody who knows verdicts; `source` says who, for a person."""

    source: str

    async def of(self, wanted: Sequence[Key]) -> dict[Key, Verdict]:
        """The verdicts there are on these actions; those not judged yet are left out.

        Raises:
            Unavailable: they cannot be read now.
        """

    async def close(self) -> None: ...


_JUDGED: Final = """
SELECT p.user_id, l.action_id, l.type, l.verdict, l.reason->>'code',
    (extract(epoch FROM f.received_at) * 1000000)::bigint, r.epoch, r.revision
FROM unnest(%s::text[], %s::text[]) k(user_id, action_id)
CROSS JOIN LATERAL (SELECT player, user_id FROM players WHERE user_id = k.user_id) p
CROSS JOIN LATERAL (
    SELECT * FROM ledger WHERE action_id = k.action_id AND player = p.player ORDER BY seq DESC LIMIT 1) l
CROSS JOIN LATERAL (
    SELECT received_at FROM ledger WHERE action_id = k.action_id AND player = p.player AND seq = 0) f
JOIN revisions r ON r.batch = l.batch
"""

_BETWEEN: Final = """
SELECT coalesce(p.user_id, ''), l.action_id, l.verdict FROM ledger l JOIN players p USING (player)
WHERE l.action_id > %s AND l.action_id < %s AND l.seq = 0
"""


class InLedger:
    """Verdicts by a connection to Postgres that only reads."""

    source = "Postgres"

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: psycopg.AsyncConnection[tuple[Any, ...]] | None = None

    async def of(self, wanted: Sequence[Key]) -> dict[Key, Verdict]:
        rows = await self._rows(_JUDGED, ([user for user, _ in wanted], [action for _, action in wanted]))
        return {(row[0], row[1]): Verdict(*row[2:]) for row in rows}

    async def between(self, after: str, before: str) -> AsyncIterator[tuple[str, str, str]]:
        """(user id, action id, verdict) of every judged action whose id lies between these, by bytes.

        Raises:
            Unavailable: they cannot be read now.
        """
        with self._answering():
            connection = await self._connected()
            async with connection.transaction(), connection.cursor(name="between") as cursor:
                cursor.itersize = _ROWS_AT_ONCE
                await cursor.execute(_BETWEEN, (after, before))
                async for row in cursor:
                    yield row[0], row[1], row[2]

    async def _rows(self, query: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        with self._answering():
            return await (await (await self._connected()).execute(query, parameters)).fetchall()

    async def _connected(self) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        if self._connection is None or self._connection.closed:
            self._connection = await psycopg.AsyncConnection.connect(
                self._url,
                autocommit=True,
                connect_timeout=connections.CONNECT_TIMEOUT_S,
                application_name="trueboard client",
                options="-c default_transaction_read_only=on -c timezone=UTC -c jit=off",
            )
        return self._connection

    @contextmanager
    def _answering(self) -> Iterator[None]:
        with connections.unavailable():
            try:
                yield
            except psycopg.OperationalError:
                # The next question asks on a connection of its own.
                self._connection = None
                raise

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


class ByReceipt:
    """Verdicts by asking the door for each receipt."""

    source = "receipts over HTTP"

    def __init__(self, client: Client, tokens: Tokens) -> None:
        self._client, self._tokens = client, tokens
        self._free = asyncio.Semaphore(_RECEIPTS_AT_ONCE)

    async def of(self, wanted: Sequence[Key]) -> dict[Key, Verdict]:
        found = await asyncio.gather(*(self._one(key) for key in wanted))
        return {key: verdict for key, verdict in zip(wanted, found, strict=True) if verdict is not None}

    async def _one(self, key: Key) -> Verdict | None:
        user_id, action_id = key
        async with self._free:
            try:
                answer = await self._client.get(
                    f"/v1/actions/{quote(action_id, safe='')}",
                    token=self._tokens.current(),
                    query={"user_id": user_id},
                )
            except NoAnswer as error:
                raise Unavailable(f"the door does not answer: {error}") from error
        if answer.status == 404 or (answer.status == 200 and answer.body["status"] == "submitted"):
            return None
        if answer.status != 200:
            raise Unavailable(f"the door gives no receipt: {answer.detail}")
        receipt = answer.body
        return Verdict(
            receipt["type"],
            receipt["status"],
            None if receipt["reason"] is None else receipt["reason"]["code"],
            parse_us(receipt["received_at"]),
            receipt["epoch"],
            receipt["judged_revision"],
        )

    async def close(self) -> None: ...


async def verdicts(endpoints: Endpoints, client: Client, tokens: Tokens) -> InLedger | ByReceipt:
    """Whoever is within reach: the ledger itself, else receipts."""
    ledger = InLedger(endpoints.postgres)
    try:
        await ledger.of([])
    except (Unavailable, psycopg.Error):
        await ledger.close()
        return ByReceipt(client, tokens)
    return ledger
