"""Which history the ledger is, whether it lost revisions, and how another epoch begins.

A position that somebody was shown and the ledger does not have says that the ledger lost revisions
(restored from an older backup, a lossy fail-over); so does another server or timeline than the one
the epoch began on. Then a revision of cause `new_epoch` comes before anything else, so that no
(epoch, revision) is ever shown with two contents. Many who notice make one epoch: each looks again
under the lock.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import psycopg

from core import digest, ids
from core.errors import Refused
from storage.postgres.connections import INCARNATION, patiently, schema_awaited
from storage.postgres.ledger import Ledger, OpenBatch, Position, empty_delta

MOST_PEOPLE: Final = 2_000
"""People erased, or told of again, in one revision."""

_UNHEARD_OF: Final = "greatest(version, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)"
"""A version of the fence that no process can have kept from a history that was lost."""

Cursor = psycopg.Cursor[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Seen:
    """A position that a topic or a copy names; `digest` hex, None where it names none."""

    epoch: str
    revision: int
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Present:
    """What a look at the ledger finds.

    `epoch` is None before the first revision, `continues` where it goes on from. `same_server`: it is
    the server and the timeline that the epoch began on. `compared`: nothing has to be done before
    anybody may read and write. `erasures_due`: lost erasures are still to be carried out again.
    """

    epoch: str | None
    continues: tuple[str, int] | None
    same_server: bool
    incarnation: str
    compared: bool
    erasures_due: bool
    is_standby: bool


@dataclass(frozen=True, slots=True)
class Begun:
    """A new epoch: the position of its first revision, and where it goes on from."""

    at: Position
    continues: tuple[str, int]
    committed_before_us: int
    """When the last revision of the epoch before was committed."""


_PRESENT: Final = f"""
SELECT e.epoch, e.continues_epoch, e.continues_revision,
    pg_is_in_recovery() OR (e.system_identifier = split_part(i.incarnation, '/', 1)
        AND e.timeline = ('x' || split_part(i.incarnation, '/', 2))::bit(32)::integer),
    i.incarnation, i.incarnation = c.incarnation, c.erasures_due, pg_is_in_recovery()
FROM compared c CROSS JOIN (SELECT {INCARNATION} AS incarnation) i
LEFT JOIN (SELECT * FROM epochs ORDER BY epoch DESC LIMIT 1) e ON true
"""


def look(cursor: Cursor) -> Present:
    """What this connection's ledger is."""
    with schema_awaited():
        row = cursor.execute(_PRESENT).fetchone()
    if row is None:
        raise RuntimeError("a statement that always answers with a row gave none")
    epoch, from_epoch, from_revision, same, incarnation, compared, due, standby = row
    continues = None if from_epoch is None else (from_epoch, from_revision)
    return Present(epoch, continues, bool(same), incarnation, bool(compared) and not due, due, standby)


def begin_history(batch: OpenBatch) -> None:
    """The first epoch of a fresh ledger, tied to the server that holds it."""
    if batch.execute("SELECT 1 FROM epochs").fetchone() is not None:
        return
    epoch = ids.ulid(time.time_ns() // 1000, secrets.token_bytes(10))
    _insert(batch, epoch, None)
    batch.execute(f"UPDATE compared SET incarnation = {INCARNATION}")


def _insert(batch: OpenBatch, epoch: str, continues: tuple[str, int] | None) -> None:
    batch.execute(
        "INSERT INTO epochs (epoch, system_identifier, timeline, continues_epoch, continues_revision)"
        " SELECT %s, split_part(i, '/', 1), ('x' || split_part(i, '/', 2))::bit(32)::integer, %s, %s"
        f" FROM (SELECT {INCARNATION}) s(i)",
        (epoch, *(continues or (None, None))),
    )


def is_lost(cursor: Cursor, seen: Seen) -> bool:
    """Whether this position says that the ledger lost revisions.

    So says one of a later epoch than there is, and one of the present epoch that is not in the
    ledger or has another digest there. An earlier epoch's says nothing: it went over already.
    """
    row = cursor.execute(
        "SELECT (SELECT max(epoch) FROM epochs), encode(r.digest, 'hex')"
        " FROM (SELECT 1) one LEFT JOIN revisions r ON r.revision = %s AND r.epoch = %s",
        (seen.revision, seen.epoch),
    ).fetchone()
    if row is None or row[0] is None or seen.epoch < row[0]:
        return False
    known: str | None = row[1]
    return known is None or (seen.digest is not None and known != seen.digest)


def has(cursor: Cursor, epoch: str, revision: int) -> bool:
    """Whether this revision of this epoch is in the ledger."""
    row = cursor.execute(
        "SELECT EXISTS (SELECT FROM revisions WHERE revision = %s AND epoch = %s)", (revision, epoch)
    ).fetchone()
    return row is not None and bool(row[0])


def begin(
    ledger: Ledger, seen: Sequence[Seen] = (), *, asked: bool = False, then_good: bool = False
) -> Begun | None:
    """Begin a new epoch if `asked`, if the server is another, or if one of these positions is lost.

    The new epoch sorts after all that were seen, also where a clock was wrong. `then_good`: nobody
    may open a connection before the caller has made good what was lost (`made_good`). None if
    there is no reason, or another process was first.

    Raises:
        Refused: nothing is in the ledger yet, the server is a standby, or no later epoch can be named.
        Unavailable: no Postgres, or batches that do not end.
    """

    def step() -> Begun | None:
        with ledger.looking() as cursor:
            if not _has_reason(cursor, seen, asked):
                return None
        return _begun(ledger, seen, asked, then_good)

    return patiently(step)


def _has_reason(cursor: Cursor, seen: Sequence[Seen], asked: bool) -> bool:
    present = look(cursor)
    if present.is_standby:
        raise Refused("is_standby", "this Postgres is a standby: it cannot begin an epoch", status_code=409)
    if present.epoch is None:
        if asked:
            raise Refused("no_history", "there is nothing in this ledger yet", status_code=409)
        return False
    return asked or not present.same_server or any(is_lost(cursor, one) for one in seen)


def _begun(ledger: Ledger, seen: Sequence[Seen], asked: bool, then_good: bool) -> Begun | None:
    with ledger.exclusive() as batch:
        if not _has_reason(batch.cursor, seen, asked):
            return None
        row = batch.execute(
            "SELECT epoch, revision, committed_at FROM revisions ORDER BY revision DESC LIMIT 1"
        ).fetchone()
        known = batch.execute("SELECT max(epoch) FROM epochs").fetchone()
        if row is None or known is None:
            raise RuntimeError("a ledger with an epoch has a revision")
        from_epoch, from_revision, committed_us = row
        epoch = ids.later_ulid(
            time.time_ns() // 1000,
            secrets.token_bytes(10),
            max([known[0], *(one.epoch for one in seen)]),
        )
        _insert(batch, epoch, (from_epoch, from_revision))
        periods = batch.execute("SELECT period FROM periods ORDER BY period").fetchall()
        appended = batch.append(
            batch.next_batch(),
            "new_epoch",
            [digest.epoch_leaf(epoch, from_epoch, from_revision)],
            [empty_delta(period) for (period,) in periods],
        )
        if then_good:
            batch.execute("UPDATE compared SET incarnation = '', erasures_due = true")
        batch.execute(f"UPDATE fence SET version = {_UNHEARD_OF}")
        return Begun(appended.position, (from_epoch, from_revision), committed_us)


def last_begun(cursor: Cursor) -> Begun | None:
    """How the present epoch began; None for a ledger's first."""
    row = cursor.execute(
        "SELECT e.epoch, n.revision, n.digest, e.continues_epoch, e.continues_revision, b.committed_at"
        " FROM (SELECT * FROM epochs ORDER BY epoch DESC LIMIT 1) e"
        " JOIN revisions n ON n.revision = e.continues_revision + 1"
        " JOIN revisions b ON b.revision = e.continues_revision"
    ).fetchone()
    if row is None:
        return None
    return Begun(Position(row[0], row[1], bytes(row[2])), (row[3], row[4]), row[5])


def made_good(cursor: Cursor, incarnation: str) -> None:
    """The ledger behind this connection was compared, and what it lost carried out again.

    Where it is another run of the server, definitions and people are read anew by everybody: a restore of
    which nobody was shown what it lost begins no epoch, and the fence counts on from what the backup had.
    """
    cursor.execute(
        f"WITH anew AS (UPDATE fence SET version = {_UNHEARD_OF}"
        "  WHERE EXISTS (SELECT FROM compared WHERE incarnation <> %s))"
        " UPDATE compared SET incarnation = %s, erasures_due = false",
        (incarnation, incarnation),
    )


# Erasing --------------------------------------------------------------------------------------


def user_hash(key: bytes, user_id: str) -> bytes:
    """What is kept of an erased person's user id: HMAC-SHA-256."""
    return hmac.digest(key, user_id.encode(), "sha256")


def erase(ledger: Ledger, key: bytes, pids: Sequence[str], user_ids: Sequence[str] = ()) -> int:
    """Erase these people (by pid, those not erased yet), and refuse these user ids from now on.

    The row in `players` loses user id and name, every period gets the delta that makes followers
    drop the entry; what was judged stays, and leads to nobody. How many were erased.

    Raises:
        Unavailable: no Postgres, or batches that do not end; some may be erased already.
    """
    erased = _in_parts(pids, partial(_erased, ledger, key))
    hashes = [user_hash(key, user_id) for user_id in user_ids]
    if hashes:
        patiently(partial(_refused, ledger, hashes))
    return erased


def tell_again(ledger: Ledger, pids: Sequence[str]) -> int:
    """Let `player` say once more what holds of these people, as far as the ledger knows them; of how many.

    Raises:
        Unavailable: no Postgres, or batches that do not end; of some it may say so already.
    """
    return _in_parts(pids, partial(_told_again, ledger))


def _in_parts(pids: Sequence[str], revise: Callable[[list[str]], int]) -> int:
    """Revise these people, a revision's worth at a time; of how many it came to something."""
    parts = [list(pids[start : start + MOST_PEOPLE]) for start in range(0, len(pids), MOST_PEOPLE)]
    return sum(patiently(partial(revise, part)) for part in parts)


def _told_again(ledger: Ledger, pids: list[str]) -> int:
    with ledger.exclusive() as batch:
        people = batch.execute(
            "SELECT player FROM players WHERE pid = ANY(%s::text[]::uuid[]) AND erased_at IS NULL", (pids,)
        ).fetchall()
        if people:
            batch.append(batch.next_batch(), "person", [], [], [player for (player,) in people])
        return len(people)


def _refused(ledger: Ledger, hashes: Sequence[bytes]) -> None:
    with ledger.exclusive() as batch:
        batch.execute(
            "INSERT INTO erased_users (user_hash) SELECT unnest(%s::bytea[]) ON CONFLICT DO NOTHING",
            (list(hashes),),
        )


def _erased(ledger: Ledger, key: bytes, pids: list[str]) -> int:
    with ledger.looking() as cursor:
        if cursor.execute(_TO_ERASE, (pids,)).fetchone() is None:
            return 0
    with ledger.exclusive() as batch:
        people = batch.execute(f"{_TO_ERASE} ORDER BY player FOR UPDATE", (pids,)).fetchall()
        if not people:
            return 0
        players = [row[0] for row in people]
        visible = {row[0] for row in people if not row[2]}
        deltas = []
        for (period,) in batch.execute("SELECT period FROM periods ORDER BY period").fetchall():
            delta = batch.touch(period, players)
            if len(delta):
                delta.grown = -sum(1 for player in delta.whom() if player in visible)
                deltas.append(delta)
        batch.execute(
            "INSERT INTO erased_users (user_hash) SELECT unnest(%s::bytea[]) ON CONFLICT DO NOTHING",
            ([user_hash(key, row[1]) for row in people],),
        )
        batch.execute(
            "UPDATE players SET user_id = NULL, username = NULL, erased_at = clock_timestamp()"
            " WHERE player = ANY(%s)",
            (players,),
        )
        batch.append(batch.next_batch(), "person", [], deltas, players)
        return len(players)


_TO_ERASE: Final = (
    "SELECT player, user_id, hidden FROM players"
    " WHERE pid = ANY(%s::text[]::uuid[]) AND erased_at IS NULL AND user_id IS NOT NULL"
)
