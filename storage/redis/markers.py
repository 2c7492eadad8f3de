"""What the door remembers of an action it has published, so that a repeat needs no record of its own.

A marker is written only after Kafka's confirmation, so whoever finds one may answer for it. It
is a help and no truth: Redis may lose it, and the ledger's key decides who counted. So nothing
here raises because of Redis, and nothing waits longer than the line's budget.

Key `tb:marker:<hash>`, the first half of the SHA-256 of user id and action id in hex; value
`[fingerprint, type, received_at]`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec
from redis import exceptions as redis_exceptions

from core.actions import SubmittedRecord
from core.errors import Unavailable
from core.receipts import Judged
from storage.redis import scripts
from storage.redis.line import Line
from storage.redis.turns import Turn

TTL_S: Final = 86_400

_MOST_AT_ONCE = 500


class Marker(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What was published under an action id."""

    fingerprint: str
    type: str
    received_at: str


_decoder = msgspec.json.Decoder(Marker)
_encode = msgspec.json.Encoder().encode
_REMEMBER: Final = scripts.source("markers")
_NO_ANSWER = (redis_exceptions.RedisError, OSError)


@lru_cache(maxsize=2048)
def key(user_id: str, action_id: str) -> str:
    """The marker's key; neither id can hold the byte between them. Wanted twice: to look, and to mark."""
    digest = hashlib.sha256(f"{user_id}\0{action_id}".encode("utf-8", "surrogatepass")).digest()
    return "tb:marker:" + digest[:16].hex()


class Markers:
    """Markers by way of a line, each living `ttl_s` seconds."""

    def __init__(self, line: Line, *, ttl_s: int = TTL_S) -> None:
        self._line, self._ttl_s = line, ttl_s
        self._unmarked: list[SubmittedRecord] = []
        self._looking: Turn[str] = Turn(
            lambda keys: line.execute("MGET", *keys),
            lambda _, values: values,
            when_it_ends=line.when_turn_ends,
        )

    def look(self, user_id: str, action_id: str) -> asyncio.Future[Any]:
        """Begin to look; `found` gives what there was. A look may be abandoned."""
        return self._looking.ask(key(user_id, action_id))

    async def found(self, looking: asyncio.Future[Any]) -> Marker | None:
        """The marker a look found; None also where Redis did not answer."""
        try:
            return _read(await looking)
        except _NO_ANSWER:
            return None

    async def found_for_certain(self, looking: asyncio.Future[Any]) -> Marker | None:
        """The marker a look found, for whom none would mean that nothing was published.

        Raises:
            Unavailable: Redis did not answer.
        """
        try:
            return _read(await looking)
        except _NO_ANSWER as error:
            raise Unavailable(f"Redis: {error}", code="board_rebuilding") from error

    async def find_many(self, keys: Sequence[tuple[str, str]]) -> list[Marker | None]:
        """The markers of these (user id, action id), in order; None also where Redis did not answer."""
        if not keys:
            return []
        self._mark()
        looking = self._line.execute("MGET", *(key(user_id, action_id) for user_id, action_id in keys))
        try:
            return [_read(value) for value in await looking]
        except _NO_ANSWER:
            return [None] * len(keys)

    def remember(self, records: Sequence[SubmittedRecord]) -> None:
        """Mark these as published, unless another was before them under the same id.

        The command leaves in this turn of the loop, before or with the reply that follows, and
        whoever looks by this line looks after it; so there is nothing to await.
        """
        if not self._unmarked:
            self._line.when_turn_ends(self._mark)
        self._unmarked += records

    def _mark(self) -> None:
        # One command for all: answering each by itself costs more than the rest of a batch.
        unmarked, self._unmarked = self._unmarked, []
        for begin in range(0, len(unmarked), _MOST_AT_ONCE):
            records = unmarked[begin : begin + _MOST_AT_ONCE]
            keys = [key(record.user_id, record.action_id) for record in records]
            values = [_encode((record.fingerprint, record.type, record.received_at)) for record in records]
            self._line.execute("EVAL", _REMEMBER, len(keys), *keys, self._ttl_s, *values)

    async def correct(self, judged: Judged) -> None:
        """Mark what the ledger says counted, whatever the marker said."""
        value = _encode((judged.fingerprint, judged.type, judged.received_at))
        try:
            await self._line.execute("SET", key(judged.user_id, judged.action_id), value, "EX", self._ttl_s)
        except _NO_ANSWER:
            return


def _read(value: bytes | None) -> Marker | None:
    if value is None:
        return None
    try:
        return _decoder.decode(value)
    except msgspec.DecodeError:
        return None
