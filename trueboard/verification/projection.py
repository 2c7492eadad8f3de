"""Whether each copy in Redis is its period as the ledger had it at the copy's own position.

The position is read from the copy, the ledger's entries are rolled back to it, and each answer of
Redis names the position it was given at. A copy that moves on meanwhile is no difference: whoever
looks different then is looked at again, alone, at a new position. Order keys, members, names, sizes
and the digest of the position are compared.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import redis
from redis.exceptions import RedisError

from core.errors import Unavailable
from trueboard.verification.report import Check
from trueboard.verification.snapshots import Connection, microseconds, periods, snapshot, stream

PAGE: Final = 500
"""Players asked of Redis at a time, some 1 ms of it."""

MISSING_S: Final = 3.0
"""How long a copy may be missing before that is a difference: it may be about to be swapped."""

TRIES: Final = 20
"""How often a player whose name has just been changed is looked at again."""

_PAUSE_S: Final = 0.1
_HALF: Final = 1 << 63

_LOOK: Final = """
local at = redis.call('HMGET', KEYS[3], 'epoch', 'revision', 'digest', 'count')
if not at[1] or not at[2] or not at[3] or not at[4] then return false end
local out = { at[1], at[2], at[3], at[4], redis.call('HLEN', KEYS[2]), redis.call('ZCARD', KEYS[1]) }
if #ARGV > 0 then
  for i, held in ipairs(redis.call('HMGET', KEYS[2], unpack(ARGV))) do
    out[#out + 1] = held or ''
    out[#out + 1] = held and redis.call('ZSCORE', KEYS[1], string.sub(held, 1, 16) .. ARGV[i]) or ''
  end
end
return out
"""

_ROLLED_BACK: Final = f"""
WITH since AS MATERIALIZED (
    SELECT DISTINCT ON (u.player) u.player, u.old_score, u.old_reached
    FROM deltas d CROSS JOIN LATERAL unnest(d.players, d.old_scores, d.old_reached)
        u(player, old_score, old_reached)
    WHERE d.period = %(period)s AND d.revision > %(revision)s
        AND (%(players)s::bigint[] IS NULL OR u.player = ANY(%(players)s::bigint[]))
    ORDER BY u.player, d.revision
),
present AS (
    SELECT player, score, reached_at FROM entries WHERE period = %(period)s
        AND (%(players)s::bigint[] IS NULL OR player = ANY(%(players)s::bigint[]))
),
standing AS (
    SELECT player, s.player IS NOT NULL AS changed,
        CASE WHEN s.player IS NULL THEN e.score ELSE s.old_score END AS score,
        CASE WHEN s.player IS NULL THEN e.reached_at ELSE s.old_reached END AS reached_at
    FROM present e FULL JOIN since s USING (player)
)
SELECT player, p.user_id, coalesce(p.username, ''), score, {microseconds("reached_at")}, changed
FROM standing JOIN players p USING (player)
WHERE score IS NOT NULL AND NOT p.hidden AND p.erased_at IS NULL ORDER BY player
"""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a copy stands, and how many entries it says and has."""

    epoch: str
    revision: int
    digest: str
    count: int
    in_hash: int
    in_set: int


@dataclass(frozen=True, slots=True)
class Standing:
    """One visible player as the ledger has it at a revision; `changed` since then, perhaps its name."""

    player: int
    user_id: str
    username: str
    score: int
    reached_us: int
    changed: bool

    @property
    def key(self) -> bytes:
        """The order key, made here once more: both halves big-endian, ascending."""
        return struct.pack(">QQ", _HALF - 1 - self.score, self.reached_us + _HALF)

    def shown(self) -> dict[str, Any]:
        return {"score": self.score, "reached_us": self.reached_us, "username": self.username}


Held = tuple[bytes, bytes]
"""What a copy holds of a user: order key and name, and the score of the member (empty: nothing)."""


@contextmanager
def unavailable() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        raise Unavailable(f"Redis: {type(error).__name__}: {error}") from error


def connect(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=10.0, socket_connect_timeout=2.0)


def keys(period: str) -> tuple[str, str, str]:
    return f"tb:{{{period}}}:z", f"tb:{{{period}}}:m", f"tb:{{{period}}}:meta"


def look(client: redis.Redis, period: str, user_ids: list[str]) -> tuple[Position, list[Held]] | None:
    """The copy's position and what it holds of these users, from one moment; None without a copy."""
    with unavailable():
        try:
            raw: Any = client.eval(_LOOK, 3, *keys(period), *user_ids)
        except redis.ResponseError as error:
            if "WRONGTYPE" in str(error):
                return None
            raise
    if not raw:
        return None
    try:
        at = Position(raw[0].decode(), int(raw[1]), raw[2].decode(), int(raw[3]), int(raw[4]), int(raw[5]))
    except ValueError:
        # What says where it stands is no position.
        return None
    return at, list(zip(raw[6::2], raw[7::2], strict=True))


def check(postgres_url: str, client: redis.Redis, found: Check) -> None:
    """Compare the copy of every period."""
    with snapshot(postgres_url) as connection:
        every = periods(connection)
    for period in every:
        _Comparison(postgres_url, client, found, period).run()


class _Comparison:
    """One period's copy against the ledger."""

    def __init__(self, postgres_url: str, client: redis.Redis, found: Check, period: str) -> None:
        self._url, self._redis, self._found, self._period = postgres_url, client, found, period

    def run(self) -> None:
        # The copy first: a snapshot taken after it has whatever the copy has.
        at = self._position()
        if at is None:
            self._found.differs("the copy", period=self._period, expected="a position", found=None)
            return
        with snapshot(self._url) as connection:
            if not self._is_of_this_history(connection, at):
                return
            suspects, entries = self._compare_all(connection, at)
        if not at.in_hash == at.in_set == at.count == entries:
            self._sizes_differ(at, entries)
        for begin in range(0, len(suspects), PAGE):
            self._look_again(suspects[begin : begin + PAGE])

    def _position(self) -> Position | None:
        until_s = time.monotonic() + MISSING_S
        while True:
            looked = look(self._redis, self._period, [])
            if looked is not None or time.monotonic() > until_s:
                return None if looked is None else looked[0]
            time.sleep(_PAUSE_S)

    def _is_of_this_history(self, connection: Connection, at: Position) -> bool:
        row = connection.execute(
            "SELECT r.epoch, encode(r.digest, 'hex'), d.count FROM deltas d JOIN revisions r USING (revision)"
            " WHERE d.period = %s AND d.revision = %s",
            (self._period, at.revision),
        ).fetchone()
        wanted = None if row is None else {"epoch": row[0], "digest": row[1], "count": row[2]}
        seen = {"epoch": at.epoch, "digest": at.digest, "count": at.count}
        if wanted != seen:
            self._found.differs(
                "the position", period=self._period, revision=at.revision, expected=wanted, found=seen
            )
        return row is not None and row[:2] == (at.epoch, at.digest)

    def _compare_all(self, connection: Connection, at: Position) -> tuple[list[int], int]:
        """Compare every entry; who is to be looked at again, and how many entries there are."""
        suspects: list[int] = []
        entries = 0
        rows = stream(
            connection,
            "rolled_back",
            _ROLLED_BACK,
            {"period": self._period, "revision": at.revision, "players": None},
        )
        while page := [Standing(*row) for row in islice(rows, PAGE)]:
            entries += len(page)
            suspects += self._compare(page, at)
            self._found.saw(len(page))
        return suspects, entries

    def _compare(self, page: list[Standing], at: Position) -> list[int]:
        """Report who differs for certain; the others that do not look alike come back."""
        looked = look(self._redis, self._period, [one.user_id for one in page])
        if looked is None or (looked[0].epoch, looked[0].revision) != (at.epoch, at.revision):
            held = [(b"", b"")] * len(page) if looked is None else looked[1]
            return [one.player for one, has in zip(page, held, strict=True) if not _alike(one, has)]
        suspects = []
        for one, has in zip(page, looked[1], strict=True):
            if _alike(one, has):
                continue
            if one.changed and has[0][:16] == one.key and _number(has[1]) == 0:
                suspects.append(one.player)
            else:
                self._differs(one, has, at)
        return suspects

    def _look_again(self, players: list[int]) -> None:
        """Compare these alone, each time at a position of its own, until nothing is left open."""
        until_s = time.monotonic() + MISSING_S
        for attempt in range(TRIES):
            if attempt:
                time.sleep(_PAUSE_S)
            with snapshot(self._url) as connection:
                user_ids = [
                    row[0]
                    for row in connection.execute(
                        "SELECT user_id FROM players WHERE player = ANY(%s) AND user_id IS NOT NULL"
                        " AND NOT hidden AND erased_at IS NULL ORDER BY player",
                        (players,),
                    )
                ]
            looked = look(self._redis, self._period, user_ids)
            if looked is None:
                if time.monotonic() > until_s:
                    self._found.differs("the copy", period=self._period, expected="a position", found=None)
                    return
                continue
            at, held = looked
            has = dict(zip(user_ids, held, strict=True))
            with snapshot(self._url) as connection:
                rows = connection.execute(
                    _ROLLED_BACK, {"period": self._period, "revision": at.revision, "players": players}
                ).fetchall()
            players = []
            for one in (Standing(*row) for row in rows):
                one_has = has.get(one.user_id)
                if one_has is None or _alike(one, one_has):
                    continue
                if one.changed and one_has[0][:16] == one.key and _number(one_has[1]) == 0:
                    players.append(one.player)
                else:
                    self._differs(one, one_has, at)
            if not players:
                return

    def _differs(self, one: Standing, has: Held, at: Position) -> None:
        held, score = has
        seen: dict[str, Any] | None = None
        if len(held) >= 16:
            inverted, reached = struct.unpack(">QQ", held[:16])
            seen = {
                "score": _HALF - 1 - inverted,
                "reached_us": reached - _HALF,
                "username": held[16:].decode(errors="replace"),
                "member": _number(score),
            }
        self._found.differs(
            "entry",
            period=self._period,
            revision=at.revision,
            user_id=one.user_id,
            expected={**one.shown(), "member": 0.0},
            found=seen,
        )

    def _sizes_differ(self, at: Position, entries: int) -> None:
        extra = self._extra()
        self._found.differs(
            "the number of entries",
            period=self._period,
            revision=at.revision,
            expected={"entries": entries},
            found={"count": at.count, "hash": at.in_hash, "set": at.in_set, "extra": extra},
            count=max(1, abs(at.in_hash - entries), abs(at.in_set - entries)),
        )

    def _extra(self) -> str | None:
        """Something a copy holds and the ledger does not, if it is still there."""
        z, m, _ = keys(self._period)
        with unavailable(), snapshot(self._url) as connection:
            held: Iterator[tuple[bytes, bytes]] = self._redis.hscan_iter(m, count=PAGE)
            while page := dict(islice(held, PAGE)):
                names = [user.decode(errors="replace") for user in page]
                known = {
                    row[0]
                    for row in connection.execute(
                        "SELECT user_id FROM players JOIN entries USING (player) WHERE period = %s"
                        " AND user_id = ANY(%s) AND NOT hidden AND erased_at IS NULL",
                        (self._period, names),
                    )
                }
                for name in names:
                    if name not in known:
                        return name
            members = self._redis.zscan_iter(z, count=PAGE)
            while members_page := [member for member, _ in islice(members, PAGE)]:
                for member, value in zip(
                    members_page,
                    self._redis.hmget(m, [member[16:] for member in members_page]),
                    strict=True,
                ):
                    if value is None or value[:16] != member[:16]:
                        return str(member[16:].decode(errors="replace"))
        return None


def _alike(one: Standing, has: Held) -> bool:
    return has[0] == one.key + one.username.encode() and _number(has[1]) == 0


def _number(score: bytes) -> float | None:
    """A member's score; None where there is no such member."""
    return float(score) if score else None
