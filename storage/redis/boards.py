"""A period's copy in Redis, and how it follows the ledger.

Three keys in one slot: `z` (sorted set, all scores 0; the member is order key and user id), `m`
(user id → order key and username) and `meta` (position and count). The name stands in the copy, so
that a page and its names are of one revision and a reader asks nobody else. Whatever does not fit
(a flush, a stale snapshot, a lost key, an edited score) is found by position, digest and sizes,
and healed by building anew.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
import redis
from redis.exceptions import RedisError

from core import ids
from core.errors import Unavailable
from core.ranking import order_key
from service import failpoints, metrics
from storage.followers import At
from storage.postgres import arrays, connections, deltas, epochs
from storage.postgres.connections import Connection
from storage.postgres.contents import PeriodChange
from storage.postgres.deltas import Change, EntryRow, Link
from storage.postgres.ledger import Ledger
from storage.redis import keys, scripts
from storage.redis.packing import pack

PAGE: Final = 1_000
"""Entries a script puts in at a time: 5–13 µs each, so a page takes at most some 13 ms."""

MOST_LAG: Final = 10_000
"""Revisions; what is further behind is told as so many, since counting them takes of what is short then."""

LIFETIME_S: Final = 15
"""How long an unfinished build is kept after its builder was last heard of: longer than a step may take
(5 s in Postgres, 5 s in Redis), and as long as there is no copy when a builder is killed."""


_FORMS: Final = (
    re.compile(ids.EPOCH.pattern.encode()),
    re.compile(rb"[0-9]{1,18}"),
    re.compile(rb"[0-9a-f]{64}"),
)
"""Epoch, revision and digest: what is written otherwise was written by somebody else."""


@contextmanager
def unavailable() -> Iterator[None]:
    """Turn what Redis cannot do now into Unavailable."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise Unavailable(
            f"Redis: {type(error).__name__}: {error}", code="board_rebuilding", retry_after_s=1
        ) from error


def connect(url: str, *, timeout_s: float = 5.0) -> redis.Redis:
    """A client for one follower. Bytes in, bytes out; every call ends within `timeout_s`."""
    return redis.Redis.from_url(
        url, socket_timeout=timeout_s, socket_connect_timeout=2.0, health_check_interval=30
    )


def position_of(client: redis.Redis, period: str) -> At | None:
    """Where a period's copy stands; None where there is none, or somebody else wrote there."""
    try:
        at: list[Any] = list(client.hmget(keys.board(period)[2], ["epoch", "revision", "digest"]))
    except redis.ResponseError as error:
        if "WRONGTYPE" not in str(error):
            raise
        return None
    if any(part is None or form.fullmatch(part) is None for part, form in zip(at, _FORMS, strict=True)):
        return None
    return At(at[0].decode(), int(at[1]), at[2].decode())


class BoardCopy:
    """The follower that keeps one period's copy."""

    def __init__(
        self,
        period: str,
        *,
        postgres_url: str,
        client: redis.Redis,
        in_hand: Callable[[str, int], PeriodChange | None] = lambda _period, _revision: None,
        on_lost: Callable[[At], None] | None = None,
    ) -> None:
        """`in_hand(period, revision)` may give the period's next change without reading it back.

        `on_lost` is told of a position the copy names and the ledger has lost; by default a new epoch
        begins, and nothing else.
        """
        self._in_hand, self._on_lost = in_hand, on_lost or self._begin_epoch
        # The last position that the ledger was seen to have with this digest.
        self._sure: At | None = None
        self.name = f"board {period}"
        self.period = period
        self._url, self._redis = postgres_url, client
        self._connection: Connection | None = None
        self._apply = client.register_script(scripts.source("board_apply"))
        self._fill = client.register_script(scripts.source("board_fill"))
        self._catch_up = client.register_script(scripts.source("board_catch_up"))
        self._swap = client.register_script(scripts.source("board_swap"))
        self._z, self._m, self._meta = keys.board(period)
        self._compared_player = 0
        self._missing_for = "lost"
        """Why there is no copy, if there is none."""
        self._seen_revision = 0

    def close(self) -> None:
        # The next connection may be to a restored ledger.
        self._sure = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def position(self) -> At | None:
        with unavailable():
            at = position_of(self._redis, self.period)
        self._seen_revision = at.revision if at is not None else 0
        return at

    def lag(self) -> int:
        """How many of the period's revisions the copy lacks, as it was last seen; at most `MOST_LAG`.

        Raises:
            Unavailable: the ledger cannot be read.
        """
        with self._cursor() as cursor:
            return deltas.count_after(cursor, self.period, self._seen_revision, most=MOST_LAG)

    def step(self, *, look: bool = True) -> bool:
        at = self.position()
        if at is None:
            self._build_for(self._missing_for)
            self._missing_for = "lost"
            return True
        piece = self._from_hand(at) if at == self._sure else None
        if piece is None and at == self._sure and not look:
            return False
        if piece is None:
            with self._cursor() as cursor:
                known = deltas.link_at(cursor, self.period, at.revision)
                links = deltas.links_after(cursor, self.period, at.revision)
                changes = (
                    deltas.changes_between(cursor, self.period, at.revision, links[-1].at.revision)
                    if links
                    else []
                )
            if known is None or known.at != at:
                self._build_for("not_of_this_history")
                return True
            if any(not change.user_id for change in changes):
                # Who was erased has no user id to be found under.
                self._build_for("erased")
                return True
            self._sure = at
            piece = links, changes
        links, changes = piece
        if not links:
            return False
        if links[0].previous != at.revision:
            raise RuntimeError(
                f"{self.period}: revision {links[0].at.revision} follows {links[0].previous},"
                f" not {at.revision}"
            )
        last = links[-1]
        failpoints.reach("boards.applying")
        said = self._run(self._apply, [self._z, self._m, self._meta], _apply_arguments(at, last, changes))
        failpoints.reach("boards.applied")
        if said == b"broken":
            self._build_for("broken")
        elif said == b"ok":
            self._sure = last.at
        return True

    def _from_hand(self, at: At) -> tuple[list[Link], list[Change]] | None:
        """The revisions after this one that need not be read back; None if there are none."""
        links: list[Link] = []
        merged: dict[int, Change] = {}
        revision, changed = at.revision, 0
        while (part := self._in_hand(self.period, revision)) is not None:
            if part.link.at.epoch != at.epoch:
                break
            changed += len(part.changes)
            if links and changed > deltas.MOST_CHANGES:
                break
            links.append(part.link)
            revision = part.link.at.revision
            for change in part.changes:
                known = merged.get(change.player)
                merged[change.player] = (
                    change
                    if known is None
                    else Change(
                        change.player,
                        change.user_id,
                        change.username,
                        change.visible,
                        known.old_score,
                        known.old_reached_us,
                        change.new_score,
                        change.new_reached_us,
                    )
                )
        return (links, list(merged.values())) if links else None

    def _build_for(self, why: str) -> None:
        metrics.FOLLOWER_BUILDS.labels(self.name, why).inc()
        self.build()

    def build(self) -> None:
        """Make the copy anew in private keys and swap it in, unless something newer is there.

        Where the copy that is there names what the ledger has lost, a new epoch comes first.

        Raises:
            Unavailable: another builder has the lease, or what is needed is away.
        """
        self._see_that_nothing_is_lost()
        token = secrets.token_hex(8)
        build_keys = keys.building(self.period, token)
        lease = keys.build_lease(self.period)
        with unavailable():
            if not self._redis.set(lease, token, nx=True, ex=LIFETIME_S):
                raise Unavailable(f"{self.period} is being built by another", code="board_rebuilding")
        try:
            self._build(token, build_keys, lease)
        except BaseException:
            # Without a lease the half-built keys would be filled by nobody; they expire anyway.
            try:
                with unavailable():
                    self._redis.unlink(*build_keys)
                    if self._redis.get(lease) == token.encode():
                        self._redis.delete(lease)
            except Unavailable:
                pass
            raise

    def _build(self, token: str, build_keys: tuple[str, str, str], lease: str) -> None:
        with self._cursor() as cursor:
            start = deltas.head(cursor, self.period)
        if start is None:
            raise Unavailable(f"{self.period} has no revision yet", code="board_rebuilding")
        page, after = 0, 0
        filling = [*build_keys, lease]
        while True:
            with self._cursor() as cursor:
                rows, after_next = deltas.entries_page(cursor, self.period, after, PAGE)
            if not after_next:
                break
            after = after_next
            self._filled(self._run(self._fill, filling, [page, token, LIFETIME_S, pack(_rows(rows))]), token)
            page += 1
            failpoints.reach("boards.page_filled")
        with self._cursor() as cursor:
            # No page holds anything later than this; up to here the deltas have to be caught up.
            least = deltas.head(cursor, self.period) or start
        at = start
        while True:
            with self._cursor() as cursor:
                links = deltas.links_after(cursor, self.period, at.at.revision)
                changes = (
                    deltas.changes_between(cursor, self.period, at.at.revision, links[-1].at.revision)
                    if links
                    else []
                )
            if not links:
                break
            self._filled(
                self._run(self._catch_up, filling, [page, token, LIFETIME_S, pack(_present(changes))]),
                token,
            )
            page += 1
            at = links[-1]
            if (
                at.at.revision >= least.at.revision
                and sum(link.changes for link in links) < deltas.MOST_CHANGES
            ):
                break
        failpoints.reach("boards.swapping")
        said = self._run(
            self._swap,
            [self._z, self._m, self._meta, *build_keys, lease],
            [token, page, at.at.epoch, at.at.revision, at.at.digest, at.count],
        )
        failpoints.reach("boards.swapped")
        if said not in (b"ok", b"newer"):
            raise Unavailable(f"{self.period}: the build was {said.decode()}", code="board_rebuilding")

    def _see_that_nothing_is_lost(self) -> None:
        """A copy that is to be replaced may name what others were shown and the ledger has lost."""
        standing = self.position()
        if standing is None:
            return
        with self._cursor() as cursor:
            lost = epochs.is_lost(cursor, epochs.Seen(standing.epoch, standing.revision, standing.digest))
        if lost:
            # The next connection is not let in before what was lost is made good.
            self.close()
            self._on_lost(standing)

    def _begin_epoch(self, lost: At) -> None:
        ledger = Ledger(self._url, name="new epoch")
        try:
            epochs.begin(ledger, [epochs.Seen(lost.epoch, lost.revision, lost.digest)])
        finally:
            ledger.close()

    def compare(self, *, most: int) -> int:
        """Compare up to `most` entries with the ledger at the copy's own position.

        Goes on where the last call ended, and begins again at the end. Answers how many entries
        differ; a copy that differs is built anew by the caller. To be called by the thread that
        steps, so that the copy stands still meanwhile.
        """
        differing = self._missing_or_added()
        for _ in range(max(1, most // PAGE)):
            at = self.position()
            if at is None:
                return differing
            with self._cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                rows, after = deltas.entries_page(cursor, self.period, self._compared_player, PAGE)
                moved = deltas.changed_players(cursor, self.period, at.revision, [row.player for row in rows])
            still = [row for row in rows if row.player not in moved]
            differing += self._differing(still)
            self._compared_player = after
            if not after:
                break
        return differing

    @property
    def is_being_compared(self) -> bool:
        """Whether the last comparison ended before the last entry."""
        return self._compared_player > 0

    def _missing_or_added(self) -> int:
        """By how many entries the parts of the copy disagree; readers do not believe it then."""
        if self.position() is None:
            return 0
        with unavailable():
            pipe = self._redis.pipeline(transaction=True)
            pipe.hget(self._meta, "count")
            pipe.hlen(self._m)
            pipe.zcard(self._z)
            try:
                count, *sizes = pipe.execute()
            except redis.ResponseError:
                return 1
        if count is None or not count.isdigit():
            return 1
        return max(abs(int(size) - int(count)) for size in sizes)

    def discard(self) -> None:
        """Let nobody read the copy any more; the next step builds it anew."""
        with unavailable():
            self._redis.delete(self._meta)
        self._missing_for = "drift"

    def _differing(self, rows: list[EntryRow]) -> int:
        if not rows:
            return 0
        with unavailable():
            pipe = self._redis.pipeline(transaction=True)
            pipe.hmget(self._m, [row.user_id for row in rows])
            members: list[Any] = []
            for row in rows:
                members.append(order_key(row.score, row.reached_us) + row.user_id.encode())
            pipe.zmscore(self._z, members)
            try:
                held, scores = pipe.execute()
            except redis.ResponseError:
                return len(rows)
        wanted = [order_key(row.score, row.reached_us) + (row.username or "").encode() for row in rows]
        return sum(
            1 for want, have, score in zip(wanted, held, scores, strict=True) if want != have or score != 0
        )

    def _filled(self, said: bytes, token: str) -> None:
        if said != b"ok":
            raise Unavailable(f"{self.period}: build {token} was {said.decode()}", code="board_rebuilding")

    def _run(self, script: Any, script_keys: list[str], arguments: list[Any]) -> bytes:
        with unavailable():
            try:
                said: bytes = script(keys=script_keys, args=arguments)
            except redis.ResponseError as error:
                if "WRONGTYPE" not in str(error):
                    raise
                # Somebody planted a key of another kind: it goes, and the copy is built anew.
                self._redis.unlink(*script_keys[:3])
                return b"broken"
        return said

    @contextmanager
    def _cursor(self) -> Iterator[psycopg.Cursor[tuple[Any, ...]]]:
        with connections.unavailable():
            if self._connection is None or self._connection.closed:
                self._connection = connections.connect(self._url, name=self.name)
                arrays.register(self._connection.adapters)
            try:
                with self._connection.transaction(), self._connection.cursor(binary=True) as cursor:
                    yield cursor
            except psycopg.Error as error:
                if connections.passes(error):
                    self.close()
                raise


def _apply_arguments(at: At, last: Link, changes: list[Change]) -> list[Any]:
    flat: list[bytes] = []
    for change in changes:
        before = (
            b""
            if change.old_score is None or change.old_reached_us is None
            else order_key(change.old_score, change.old_reached_us)
        )
        flat += (change.user_id.encode(), before, _key_now(change), (change.username or "").encode())
    return [
        at.epoch,
        at.revision,
        at.digest,
        last.at.epoch,
        last.at.revision,
        last.at.digest,
        last.count,
        pack(flat),
    ]


def _key_now(change: Change) -> bytes:
    if change.new_score is None or change.new_reached_us is None or not change.visible:
        return b""
    return order_key(change.new_score, change.new_reached_us)


def _present(changes: list[Change]) -> list[Any]:
    flat: list[bytes] = []
    for change in changes:
        flat += (change.user_id.encode(), _key_now(change), (change.username or "").encode())
    return flat


def _rows(rows: list[EntryRow]) -> list[Any]:
    flat: list[bytes] = []
    for row in rows:
        flat += (row.user_id.encode(), order_key(row.score, row.reached_us), (row.username or "").encode())
    return flat
