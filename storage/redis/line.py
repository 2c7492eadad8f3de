"""One connection to Redis that many requests share: commands of one turn of the loop travel together.

For the few commands that stand on a request's way. A command costs some 5 µs of CPU here and
some 60 µs through redis-py's asyncio client, which takes a connection and a lock for each. An
answer comes within `budget_s` or not at all: then the command may still have been carried out.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

import hiredis
from redis import exceptions as redis_exceptions
from redis.asyncio.connection import parse_url

from service import logs, metrics

MAX_PENDING: Final = 20_000
"""Commands under way; one more is refused at once."""

_CONNECT_TIMEOUT_S = 2.0
_SWEEP_SHARE = 0.1
_BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0)

_log = logs.get("storage.redis.line")

Argument = str | bytes | int | float


class Line:
    """Belongs to the loop that called `start`; connects, and connects again, by itself.

    `execute` never raises and never blocks: what is wrong stands in its future, as redis-py's
    exceptions. While there is no connection it fails at once.
    """

    def __init__(self, url: str, *, name: str = "trueboard", budget_s: float = 0.05) -> None:
        self._parts: dict[str, Any] = dict(parse_url(url))
        self._name = name
        self.budget_s = budget_s
        """Within this time, and at most a tenth more, every command has its answer or its error."""
        self._wire: _Wire | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        return self._wire is not None

    async def start(self) -> None:
        """Try once to connect, then keep at it in the background; never raises because of Redis."""
        first = asyncio.Event()
        self._task = asyncio.create_task(self._keep_connected(first))
        await first.wait()

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def execute(self, *arguments: Argument) -> asyncio.Future[Any]:
        """The answer to one command."""
        wire = self._wire
        if wire is None:
            return _failed(redis_exceptions.ConnectionError("there is no connection to Redis"))
        return wire.send(hiredis.pack_command(arguments))  # type: ignore[arg-type]  # any length, in fact

    def when_turn_ends(self, call: Callable[[], None]) -> None:
        """Call when the commands of this turn of the loop are about to leave: what it adds goes with them."""
        if self._wire is None:
            asyncio.get_running_loop().call_soon(call)
        else:
            self._wire.before_leaving(call)

    # The two commands by which storage.redis.limits speaks to a client of redis-py.

    def evalsha(self, sha: str, keys: int, *arguments: Argument) -> asyncio.Future[Any]:
        return self.execute("EVALSHA", sha, keys, *arguments)

    def eval(self, script: str, keys: int, *arguments: Argument) -> asyncio.Future[Any]:
        return self.execute("EVAL", script, keys, *arguments)

    async def _keep_connected(self, first: asyncio.Event) -> None:
        attempt = 0
        while True:
            try:
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    wire = await self._connect()
            except (OSError, TimeoutError, redis_exceptions.RedisError) as error:
                first.set()
                if attempt == 0:
                    _log.warning("redis_unreachable", error=type(error).__name__, detail=str(error)[:200])
                await asyncio.sleep(_BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)])
                attempt += 1
                continue
            attempt = 0
            self._wire = wire
            first.set()
            try:
                await wire.lost
            finally:
                self._wire = None
                wire.close()
            metrics.RECONNECTS.labels("redis").inc()
            _log.warning("redis_connection_lost")

    async def _connect(self) -> _Wire:
        loop = asyncio.get_running_loop()
        parts = self._parts
        if path := parts.get("path"):
            _, wire = await loop.create_unix_connection(lambda: _Wire(loop, self.budget_s), path)
        else:
            secure = parts.get("connection_class") is not None
            _, wire = await loop.create_connection(
                lambda: _Wire(loop, self.budget_s),
                parts.get("host", "localhost"),
                parts.get("port", 6379),
                ssl=ssl.create_default_context() if secure else None,
            )
        try:
            for command in self._greeting():
                await wire.send(hiredis.pack_command(command), _CONNECT_TIMEOUT_S)  # type: ignore[arg-type]
        except BaseException:
            wire.close()
            raise
        return wire

    def _greeting(self) -> list[tuple[Argument, ...]]:
        parts = self._parts
        commands: list[tuple[Argument, ...]] = []
        if password := parts.get("password"):
            user = parts.get("username")
            commands.append(("AUTH", user, password) if user else ("AUTH", password))
        if database := parts.get("db"):
            commands.append(("SELECT", int(database)))
        commands.append(("CLIENT", "SETNAME", self._name))
        return commands


class _Wire(asyncio.Protocol):
    """One connection. Answers come in the order of the commands, so a queue of futures is enough."""

    def __init__(self, loop: asyncio.AbstractEventLoop, budget_s: float) -> None:
        self.lost: asyncio.Future[None] = loop.create_future()
        self._loop, self._budget_s = loop, budget_s
        self._reader = hiredis.Reader(replyError=_reply_error)
        self._transport: asyncio.Transport | None = None
        self._outgoing: list[bytes] = []
        self._before_leaving: list[Callable[[], None]] = []
        self._leaving = False
        self._pending: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._sweeping = False

    def send(self, packed: bytes, budget_s: float | None = None) -> asyncio.Future[Any]:
        if self._transport is None or len(self._pending) >= MAX_PENDING:
            return _failed(redis_exceptions.ConnectionError("the connection to Redis is lost or full"))
        future = self._loop.create_future()
        self._pending.append((future, self._loop.time() + (budget_s or self._budget_s)))
        self._outgoing.append(packed)
        self._leave_soon()
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(self._budget_s * _SWEEP_SHARE, self._sweep)
        return future

    def before_leaving(self, call: Callable[[], None]) -> None:
        self._before_leaving.append(call)
        self._leave_soon()

    def _leave_soon(self) -> None:
        if not self._leaving:
            self._leaving = True
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's by behaviour, not by inheritance.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        pending = self._pending
        try:
            while (answer := self._reader.gets()) is not False:
                future, _ = pending.popleft()
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                    # Whoever asked may have been turned away meanwhile and never look.
                    future.exception()
                else:
                    future.set_result(answer)
        except (hiredis.ProtocolError, IndexError):
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        while self._pending:
            future, _ = self._pending.popleft()
            _fail(future, redis_exceptions.ConnectionError("the connection to Redis was lost"))
        if not self.lost.done():
            self.lost.set_result(None)

    def _flush(self) -> None:
        calls, self._before_leaving = self._before_leaving, []
        for call in calls:
            call()
        self._leaving = False
        outgoing, self._outgoing = self._outgoing, []
        if outgoing and self._transport is not None:
            self._transport.write(b"".join(outgoing))

    def _sweep(self) -> None:
        """Give up what has waited too long; its answer, should it come, is then left unread."""
        now_s = self._loop.time()
        for future, deadline_s in self._pending:
            if deadline_s > now_s:
                break
            _fail(future, redis_exceptions.TimeoutError("Redis did not answer in time"))
        # A server that is a whole second behind is frozen, or the connection is: begin anew.
        if self._pending and self._pending[0][1] < now_s - 1.0:
            self.close()
        self._sweeping = bool(self._pending) and self._transport is not None
        if self._sweeping:
            self._loop.call_later(self._budget_s * _SWEEP_SHARE, self._sweep)


def _reply_error(text: str) -> Exception:
    if text.startswith("NOSCRIPT"):
        return redis_exceptions.NoScriptError(text)
    return redis_exceptions.ResponseError(text)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()


def _failed(error: Exception) -> asyncio.Future[Any]:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    _fail(future, error)
    return future
