"""The stream's answers on their way to the request that waits for them.

A record names the ingest instance that somebody waits at (`reply_to`). The stream publishes
one message per batch and instance on that instance's sharded channel, `tb:reply:<instance>`:
a JSON array of `core.receipts.Judged`. Nothing is stored: who was not listening looks into the
ledger instead.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

import msgspec
from redis import exceptions as redis_exceptions

from core.receipts import Judged
from service import logs, metrics
from storage.redis import clients

_PING_EVERY_S = 5.0
_BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0)

_decoder = msgspec.json.Decoder(list[Judged])
_encoder = msgspec.json.Encoder()
_log = logs.get("storage.redis.replies")

_Key = tuple[str, str]


def channel(instance: str) -> str:
    """The sharded channel of an ingest instance."""
    return f"tb:reply:{instance}"


def encode(judged: list[Judged]) -> bytes:
    """The message to SPUBLISH on an instance's channel."""
    return _encoder.encode(judged)


class Waiting:
    """One request's wait for one action, from its `with` on: enter it before publishing."""

    __slots__ = ("_future", "_key", "_replies")

    def __init__(self, replies: Replies, key: _Key) -> None:
        self._replies, self._key = replies, key
        self._future: asyncio.Future[Judged] | None = None

    def __enter__(self) -> Self:
        self._future = asyncio.get_running_loop().create_future()
        self._replies._waiting.setdefault(self._key, []).append(self._future)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        others = self._replies._waiting.get(self._key, [])
        if self._future in others:
            others.remove(self._future)
        if not others:
            self._replies._waiting.pop(self._key, None)

    async def reply(self, timeout_s: float) -> Judged | None:
        """The stream's answer, or None if it does not come in time. May be called again."""
        assert self._future is not None
        done, _ = await asyncio.wait([self._future], timeout=max(0.0, timeout_s))
        return self._future.result() if done else None


class Replies:
    """Listens on this instance's channel while it is started, and wakes those who wait.

    A lost connection is made again with a pause; what was said meanwhile is lost.
    """

    def __init__(self, redis_url: str, instance: str) -> None:
        self.instance = instance
        self.listening = asyncio.Event()
        """Set while Redis has confirmed the subscription."""
        self._url = redis_url
        self._waiting: dict[_Key, list[asyncio.Future[Judged]]] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._keep_listening())

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def wait_for(self, user_id: str, action_id: str) -> Waiting:
        """A place for one reply; several may wait for the same action."""
        return Waiting(self, (user_id, action_id))

    def dispatch(self, message: bytes) -> None:
        """Wake those who wait for what is in a message; an unreadable one is only logged."""
        try:
            answers = _decoder.decode(message)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            _log.error("reply_unreadable", detail=str(error)[:200])
            return
        for judged in answers:
            for future in self._waiting.get((judged.user_id, judged.action_id), ()):
                if not future.done():
                    future.set_result(judged)

    async def _keep_listening(self) -> None:
        attempt = 0
        while True:
            try:
                await self._listen()
            except (redis_exceptions.RedisError, OSError, TimeoutError) as error:
                if self.listening.is_set() or attempt == 0:
                    _log.warning("replies_not_heard", error=type(error).__name__, detail=str(error)[:200])
                attempt = 0 if self.listening.is_set() else attempt + 1
                self.listening.clear()
                metrics.RECONNECTS.labels("redis").inc()
            await asyncio.sleep(_BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)])

    async def _listen(self) -> None:
        async with clients.connect(self._url, socket_connect_timeout=2.0, socket_keepalive=True) as redis:
            async with redis.pubsub() as pubsub:
                await pubsub.ssubscribe(channel(self.instance))
                unanswered = 0
                while True:
                    message: dict[str, Any] | None = await pubsub.get_message(timeout=_PING_EVERY_S)
                    if message is None:
                        if unanswered:
                            raise TimeoutError("Redis does not answer")
                        unanswered += 1
                        await pubsub.ping()
                        continue
                    unanswered = 0
                    if message["type"] == "ssubscribe":
                        self.listening.set()
                    elif message["type"] == "smessage":
                        self.dispatch(message["data"])
