"""The ledger's transaction: one batch, one revision, in the order that makes it right.

Two locks part the writers. A stream batch holds `plan` shared, every other writer holds it
exclusively, so within a batch definitions and people stand still. The revision lock is taken
last, so that revision order is commit order and what one revision shows includes all before it.
Every lock is taken in a statement of its own: a statement's snapshot is older than the lock
it waits for.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import psycopg

from core import digest, times
from core.errors import TrueboardError, Unavailable
from core.receipts import Reason
from service import metrics
from storage.postgres import arrays, connections
from storage.postgres.arrays import PG_EPOCH_US, InstantArray, Int8Array
from storage.postgres.connections import CHANNEL, PLAN_LOCK, REVISION_LOCK, Connection
from storage.postgres.contents import Row

EXCLUSIVE_WAIT_MS: Final = 1_000
"""How long a writer other than the stream waits for batches to end, at a time."""


class Overtaken(Unavailable):
    """Somebody else wrote what this batch planned to write: read again and judge again."""


BACKFILL: Final = 1
ACCEPTED: Final = 2
_BETWEEN: Final = "\x1f"


class LogLeft(TrueboardError):
    """This log was left for a later one; it is never taken up again."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a partition has been judged: the next offset of which log, and what came before it."""

    log: int
    next_offset: int
    fingerprint: bytes | None


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the history; `digest` covers everything up to it."""

    epoch: str
    revision: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Appended:
    """A batch that was numbered: where it stands, when (µs), and its place in each period's chain.

    `links` maps period → (the period's revision before, its count after).
    """

    position: Position
    committed_us: int
    links: dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class PlayerRow:
    player: int
    pid: str
    username: str | None
    hidden: bool


@dataclass(slots=True)
class LedgerRows:
    """Judged rows of one log, sorted by (action id, player), with what only the ledger has of each."""

    log: int
    rows: list[Row]
    players: list[int]
    backfill: list[bool]
    fingerprints: list[str]
    partitions: list[int]
    offsets: list[int]


@dataclass(slots=True)
class DeltaColumns:
    """What one revision changes in one period; the arrays stay as Postgres sent them."""

    period: str
    grown: int
    players: Int8Array
    old_scores: Int8Array
    new_scores: Int8Array
    old_reached: InstantArray
    new_reached: InstantArray

    def __len__(self) -> int:
        return arrays.length(self.players)

    def whom(self) -> list[int]:
        """The players, decoded."""
        return list(arrays.present(self.players))


@dataclass(frozen=True, slots=True)
class JudgedRow:
    """What the ledger says of one action, for whoever asks again; `epoch` is that in which it said so."""

    user_id: str
    action_id: str
    player: int
    type: str
    verdict: str
    reason: dict[str, Any] | None
    points: int
    fingerprint: str
    received_us: int
    revision: int
    epoch: str


def empty_delta(period: str) -> DeltaColumns:
    none: list[int] = []
    return DeltaColumns(
        period,
        0,
        arrays.int8s(none),
        arrays.int8s(none),
        arrays.int8s(none),
        arrays.instants(none),
        arrays.instants(none),
    )


def merged(period: str, deltas: Sequence[DeltaColumns]) -> DeltaColumns:
    """Deltas of one period over different players as one."""
    if not deltas:
        return empty_delta(period)
    if len(deltas) == 1:
        return deltas[0]
    return DeltaColumns(
        period,
        sum(delta.grown for delta in deltas),
        Int8Array(arrays.joined([delta.players for delta in deltas])),
        Int8Array(arrays.joined([delta.old_scores for delta in deltas])),
        Int8Array(arrays.joined([delta.new_scores for delta in deltas])),
        InstantArray(arrays.joined([delta.old_reached for delta in deltas])),
        InstantArray(arrays.joined([delta.new_reached for delta in deltas])),
    )


class Ledger:
    """A writer's connection. One transaction at a time; not shared between threads."""

    def __init__(self, url: str, *, name: str, before_compared: bool = False) -> None:
        """`before_compared` as in `connections.connect`."""
        self._url, self._name, self._before_compared = url, name, before_compared
        self._connection: Connection | None = None
        self._last: Position | None = None
        self.on_lost: Callable[[Position], None] = lambda _: None
        """Told of a revision that was committed here, and is not in the ledger any more."""

    @property
    def connection(self) -> Connection:
        """The open connection; made anew after a failure.

        Raises:
            Unavailable: the server does not answer, or its ledger lacks what was committed here.
        """
        if self._connection is None or self._connection.closed:
            connection = connections.connect(
                self._url, name=self._name, before_compared=self._before_compared
            )
            try:
                self._see_that_nothing_is_lost(connection)
            except BaseException:
                connection.close()
                raise
            arrays.register(connection.adapters)
            self._connection = connection
        return self._connection

    def _see_that_nothing_is_lost(self, connection: Connection) -> None:
        if self._last is None or self._before_compared:
            # Who begins epochs is the one to go on where what it wrote itself was lost.
            return
        last = self._last
        with connections.unavailable(), connection.transaction():
            row = connection.execute(
                "SELECT EXISTS (SELECT FROM revisions WHERE revision = %s AND epoch = %s AND digest = %s)"
                " OR %s < (SELECT max(epoch) FROM epochs)",
                (last.revision, last.epoch, last.digest, last.epoch),
            ).fetchone()
        if row is None or not row[0]:
            self.on_lost(last)
            raise Unavailable(f"revision {last.revision} of epoch {last.epoch} is not in the ledger any more")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def batch(self, partitions: Sequence[int]) -> Iterator[OpenBatch]:
        """A stream batch over these partitions; commits if the block ends well, else rolls back.

        Raises:
            Unavailable: nothing is known to have been written; repeat the step. (A commit whose
                reply was lost may have happened: the repeat finds its rows by their keys.)
        """
        with self._transaction() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock_shared(%s)", (PLAN_LOCK,))
            cursor.execute(
                "SELECT partition, log, next_offset, fingerprint FROM progress"
                " WHERE partition = ANY(%s) ORDER BY partition FOR UPDATE",
                (list(partitions),),
            )
            progress = {row[0]: Progress(row[1], row[2], row[3]) for row in cursor.fetchall()}
            batch = OpenBatch(cursor, progress)
            yield batch
        self._last = batch.appended or self._last

    @contextmanager
    def exclusive(self) -> Iterator[OpenBatch]:
        """A transaction of any writer but the stream; moves the fence when it ends well.

        Raises:
            Unavailable: batches did not let go within `EXCLUSIVE_WAIT_MS`, or no server.
        """
        with self._transaction() as cursor:
            cursor.execute(f"SET LOCAL lock_timeout = {EXCLUSIVE_WAIT_MS}")
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", (PLAN_LOCK,))
            batch = OpenBatch(cursor, {})
            yield batch
            cursor.execute("UPDATE fence SET version = version + 1")
        self._last = batch.appended or self._last

    @contextmanager
    def looking(self) -> Iterator[psycopg.Cursor[tuple[Any, ...]]]:
        """A transaction that only reads.

        Raises:
            Unavailable: no server.
        """
        with self._transaction() as cursor:
            yield cursor

    @contextmanager
    def _transaction(self) -> Iterator[psycopg.Cursor[tuple[Any, ...]]]:
        with connections.unavailable():
            connection = self.connection
            try:
                with connection.transaction(), connection.cursor(binary=True) as cursor:
                    yield cursor
            except psycopg.Error as error:
                if connections.passes(error):
                    self.close()
                raise


class OpenBatch:
    """The steps of one open transaction, to be taken in the order they stand here."""

    def __init__(self, cursor: psycopg.Cursor[tuple[Any, ...]], progress: dict[int, Progress]) -> None:
        self._cursor = self.cursor = cursor
        self.progress = progress
        self.appended: Position | None = None

    # Which log -----------------------------------------------------------------------------

    def adopt(self, partitions: Sequence[int], topic_id: str) -> tuple[int, dict[int, int]]:
        """Take up these partitions of the log with this topic id; its number and what was left.

        A partition nobody has read begins at offset 0. One that was read from an earlier log goes
        over to this one, from 0; what is left behind comes back as partition → earlier log. A log
        once left is never taken up again.

        Raises:
            LogLeft: the ledger has gone over to a later log than this.
        """
        self._cursor.execute("INSERT INTO logs (topic_id) VALUES (%s) ON CONFLICT DO NOTHING", (topic_id,))
        log = int(self._one("SELECT log FROM logs WHERE topic_id = %s", (topic_id,))[0])
        self._cursor.execute(
            "INSERT INTO progress (partition, log, next_offset)"
            " SELECT p, %s, 0 FROM unnest(%s::bigint[]) p ORDER BY p ON CONFLICT DO NOTHING",
            (log, arrays.int8s(sorted(partitions))),
        )
        self._cursor.execute(
            "SELECT partition, log, next_offset, fingerprint FROM progress"
            " WHERE partition = ANY(%s) ORDER BY partition FOR UPDATE",
            (sorted(partitions),),
        )
        left: dict[int, int] = {}
        for partition, known, next_offset, fingerprint in self._cursor.fetchall():
            if known > log:
                raise LogLeft(f"partition {partition} was taken over from log {log} to log {known}")
            if known < log:
                left[partition] = known
                self.progress[partition] = Progress(log, 0, None)
            else:
                self.progress[partition] = Progress(log, next_offset, fingerprint)
        if left:
            self.move_progress({partition: self.progress[partition] for partition in left})
        return log, left

    # What is known -------------------------------------------------------------------------

    def fence(self) -> int:
        """The version of definitions and people."""
        return int(self._one("SELECT version FROM fence")[0])

    def players(self, user_ids: Sequence[str]) -> dict[str, PlayerRow]:
        """The players of these user ids that exist, hidden ones among them. Ids hold no comma."""
        self._cursor.execute(
            "SELECT p.user_id, p.player, p.pid::text, p.username, p.hidden"
            " FROM unnest(string_to_array(%s, ',')) u(user_id)"
            " CROSS JOIN LATERAL (SELECT * FROM players WHERE user_id = u.user_id) p",
            (",".join(user_ids),),
        )
        return {row[0]: PlayerRow(row[1], row[2], row[3], row[4]) for row in self._cursor.fetchall()}

    def intern(self, people: dict[str, str | None]) -> tuple[dict[str, PlayerRow], dict[str, PlayerRow]]:
        """Give a player to each user id that has none; `people` maps user id → username.

        Answers those made here, and those that somebody else made meanwhile.

        Inserted in byte order, so that two batches that meet the same new people do not
        deadlock; whoever came second reads what the first one wrote.
        """
        user_ids = sorted(people)
        # Usernames hold no control character, so one can stand between them; none is the empty one.
        names = _BETWEEN.join(people[user_id] or "" for user_id in user_ids)
        self._cursor.execute(
            "INSERT INTO players (user_id, username)"
            " SELECT * FROM unnest(string_to_array(%s, ','), string_to_array(%s, chr(31), ''))"
            " ON CONFLICT (user_id) DO NOTHING"
            " RETURNING user_id, player, pid::text, username, hidden",
            (",".join(user_ids), names),
        )
        made = {row[0]: PlayerRow(row[1], row[2], row[3], row[4]) for row in self._cursor.fetchall()}
        if len(made) == len(user_ids):
            return made, {}
        return made, self.players([user_id for user_id in user_ids if user_id not in made])

    def existing(self, action_ids: Sequence[str], players: Sequence[int]) -> set[tuple[str, int]]:
        """Which of these (action id, player) have been judged. Ids hold no comma."""
        # LATERAL with a limit keeps the plan an index look-up whatever the statistics say.
        self._cursor.execute(
            "SELECT k.action_id, k.player"
            " FROM unnest(string_to_array(%s, ','), %s::bigint[]) k(action_id, player)"
            " CROSS JOIN LATERAL (SELECT 1 FROM ledger l WHERE l.action_id = k.action_id"
            "  AND l.player = k.player AND l.seq = 0 LIMIT 1) found",
            (",".join(action_ids), arrays.int8s(players)),
        )
        return {(row[0], row[1]) for row in self._cursor.fetchall()}

    def judged(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], JudgedRow]:
        """What the ledger says of these (user id, action id)."""
        return judged_rows(self._cursor, keys)

    def set_aside_offsets(self, log: int, partition: int, offsets: Sequence[int]) -> set[int]:
        """Which of these offsets were passed over."""
        self._cursor.execute(
            "SELECT record_offset FROM set_aside"
            " WHERE log = %s AND partition = %s AND record_offset = ANY(%s)",
            (log, partition, list(offsets)),
        )
        return {row[0] for row in self._cursor.fetchall()}

    def recent(
        self, players: Sequence[int], since_us: Sequence[int], until_us: Sequence[int], slack_us: int
    ) -> Iterator[tuple[int, int, int, int, int, str]]:
        """The judged actions that occurred or were received within each player's instants.

        Rows are (player, occurred µs, received µs, points, flags, type), by player and then as they
        occurred; flags are `BACKFILL` and `ACCEPTED`. `slack_us` is how long before or after it was
        received an action that is no backfill may have occurred, so the index on (player, occurred)
        finds them all.
        """
        row = self._one(
            "SELECT array_agg(f.player), array_agg(f.occurred_at), array_agg(f.received_at),"
            "  array_agg(f.points), array_agg(f.flags), string_agg(f.type, ',') FROM ("
            " SELECT w.player, l.occurred_at, l.received_at, l.points, l.type,"
            "  CASE WHEN l.backfill THEN 1 ELSE 0 END::bigint"
            "   + CASE l.verdict WHEN 'accepted' THEN 2 ELSE 0 END AS flags"
            " FROM unnest(%s::bigint[], %s::timestamptz[], %s::timestamptz[], %s::timestamptz[],"
            "  %s::timestamptz[]) w(player, since, until, lowest, highest)"
            " CROSS JOIN LATERAL (SELECT * FROM ledger WHERE player = w.player"
            "  AND occurred_at >= w.lowest AND occurred_at <= w.highest AND seq = 0"
            "  AND (occurred_at BETWEEN w.since AND w.until"
            "   OR (received_at BETWEEN w.since AND w.until AND NOT backfill))"
            "  ORDER BY occurred_at) l) f",
            (
                arrays.int8s(players),
                arrays.instants([_writable(since) for since in since_us]),
                arrays.instants([_writable(until) for until in until_us]),
                arrays.instants([_writable(since - slack_us) for since in since_us]),
                arrays.instants([_writable(until + slack_us) for until in until_us]),
            ),
        )
        if row[0] is None:
            return iter(())
        return zip(*(arrays.present(column) for column in row[:5]), row[5].split(","), strict=True)

    def scores(self, period: str, players: Sequence[int]) -> dict[int, int]:
        """The present scores of these players, locked until the transaction ends."""
        self._cursor.execute(
            "SELECT player, score FROM entries WHERE period = %s AND player = ANY(%s::bigint[])"
            " ORDER BY player FOR UPDATE",
            (period, arrays.int8s(players)),
        )
        return {row[0]: row[1] for row in self._cursor.fetchall()}

    # What is written -----------------------------------------------------------------------

    def rename(self, names: dict[int, str]) -> None:
        players = sorted(names)
        self._cursor.execute(
            "UPDATE players p SET username = n.username"
            " FROM unnest(%s::bigint[], %s::text[]) n(player, username) WHERE p.player = n.player",
            (arrays.int8s(players), [names[player] for player in players]),
        )

    def next_batch(self) -> int:
        return int(self._one("SELECT nextval('batches')")[0])

    def insert_rows(self, batch: int, rows: LedgerRows) -> None:
        """Write judged rows, all of them.

        Raises:
            Overtaken: one of them is there already; nothing of this transaction may stay.
        """
        try:
            with self._cursor.copy(_COPY_ROWS) as copy:
                copy.write(_copied(batch, rows))
        except psycopg.errors.UniqueViolation as error:
            raise Overtaken("another batch has judged some of these actions") from error

    def set_aside(self, log: int, partition: int, reasons: dict[int, str]) -> None:
        """Note records that are passed over: offset → reason."""
        offsets = sorted(reasons)
        self._cursor.execute(
            "INSERT INTO set_aside (log, partition, record_offset, reason)"
            " SELECT %s, %s, * FROM unnest(%s::bigint[], %s::text[]) ON CONFLICT DO NOTHING",
            (log, partition, arrays.int8s(offsets), [reasons[offset] for offset in offsets]),
        )

    def add_points(
        self,
        period: str,
        batch: int,
        players: Sequence[int],
        points: Sequence[int],
        reached_us: Sequence[int],
    ) -> DeltaColumns:
        """Add points to entries of a sum, players ascending; what changed comes back.

        `reached_us` is the latest instant among the actions with points. Where an entry's score
        is 0 it may come from actions worth nothing, whose instant does not count once one with
        points is there: only then the ledger is asked.

        Raises:
            psycopg.errors.NumericValueOutOfRange, CheckViolation: a score would leave 64 bits.
        """
        self._cursor.execute(
            _ADD_POINTS,
            {
                "period": period,
                "batch": batch,
                "players": arrays.int8s(players),
                "points": arrays.int8s(points),
                "reached": arrays.instants(reached_us),
            },
        )
        return self._delta(period)

    def add_presence(self, period: str, players: Sequence[int], reached_us: Sequence[int]) -> DeltaColumns:
        """Entries for players whose accepted actions are worth nothing; those that exist stay."""
        self._cursor.execute(
            _ADD_PRESENCE,
            {"period": period, "players": arrays.int8s(players), "reached": arrays.instants(reached_us)},
        )
        return self._delta(period)

    def touch(self, period: str, players: Sequence[int]) -> DeltaColumns:
        """A delta that says old = new, for the entries whose name or visibility changed."""
        self._cursor.execute(_TOUCH, {"period": period, "players": arrays.int8s(sorted(players))})
        return self._delta(period)

    def move_progress(self, moved: dict[int, Progress]) -> None:
        partitions = sorted(moved)
        self._cursor.execute(
            "UPDATE progress p SET log = m.log, next_offset = m.next_offset, fingerprint = m.fingerprint"
            " FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::bytea[])"
            "  m(partition, log, next_offset, fingerprint) WHERE p.partition = m.partition",
            (
                arrays.int8s(partitions),
                arrays.int8s([moved[partition].log for partition in partitions]),
                arrays.int8s([moved[partition].next_offset for partition in partitions]),
                [moved[partition].fingerprint for partition in partitions],
            ),
        )

    def append(
        self,
        batch: int,
        cause: str,
        leaves: Sequence[bytes],
        deltas: Sequence[DeltaColumns],
        people: Sequence[int] = (),
    ) -> Appended:
        """Number the batch: the last step before the commit. Wakes whoever listens.

        The digest is made by the server in the statement that makes the revision, from the
        chain's end that this statement sees. `people` are players seen for the first time, or
        with another name or visibility from this revision on.
        """
        root = digest.root(leaves)
        with metrics.REVISION_WAIT_SECONDS.time():
            self._cursor.execute("SELECT pg_advisory_xact_lock(%s)", (REVISION_LOCK,))
        parameters: list[Any] = [batch, cause, root]
        for delta in deltas:
            parameters += [
                delta.period,
                delta.grown,
                delta.players,
                delta.old_scores,
                delta.new_scores,
                delta.old_reached,
                delta.new_reached,
            ]
        row = self._one(_append_statement(len(deltas)), parameters)
        if people:
            self._cursor.execute(
                "INSERT INTO people_changed (revision, players) VALUES (%s, %s)",
                (row[1], arrays.int8s(sorted(people))),
            )
        links: dict[str, tuple[int, int]] = {}
        if deltas:
            # As text: int8[] comes undecoded on this connection.
            for period, previous, count in zip(row[5], row[6], row[7], strict=True):
                links[period] = (int(previous), int(count))
        self.appended = Position(row[0], row[1], bytes(row[2]))
        return Appended(self.appended, row[3], links)

    # Plumbing ------------------------------------------------------------------------------

    def execute(self, query: str, parameters: Any = None) -> psycopg.Cursor[tuple[Any, ...]]:
        """Any other statement of this transaction (definitions, epochs, logs)."""
        return self._cursor.execute(query, parameters)

    def _one(self, query: str, parameters: Any = None) -> tuple[Any, ...]:
        row = self._cursor.execute(query, parameters).fetchone()
        if row is None:
            raise RuntimeError("a statement that always answers with a row gave none")
        return row

    def _delta(self, period: str) -> DeltaColumns:
        row = self._cursor.fetchone()
        if row is None or row[1] is None:
            return empty_delta(period)
        return DeltaColumns(period, *row)


def _writable(instant_us: int) -> int:
    """The nearest instant that an action may bear."""
    return max(times.LOWEST_US, min(times.HIGHEST_US, instant_us))


def judged_rows(
    cursor: psycopg.Cursor[tuple[Any, ...]], keys: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], JudgedRow]:
    """What the ledger says of these (user id, action id): the last row of each."""
    cursor.execute(
        _JUDGED,
        ([user_id for user_id, _ in keys], [action_id for _, action_id in keys]),
    )
    return {(row[0], row[1]): JudgedRow(*row) for row in cursor.fetchall()}


_COPY_ROWS: Final = """
COPY ledger (player, batch, points, occurred_at, received_at, kafka_offset, kafka_partition, log, seq,
    backfill, action_id, fingerprint, kind, type, verdict, catalogue_version, reason)
FROM STDIN (FORMAT binary)
"""
_COPY_BEGINS: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_ENDS: Final = b"\xff\xff"
_FIXED: Final = struct.Struct(">h iq iq iq iq iq iq ii ii ii i? i")
_SIZE: Final = struct.Struct(">i").pack
_encode_reason: Final = msgspec.json.Encoder().encode


def _copied(batch: int, rows: LedgerRows) -> bytes:
    """Rows as COPY's binary format has them: each value behind its size, in the order of `_COPY_ROWS`.

    Source: https://www.postgresql.org/docs/18/sql-copy.html, "Binary Format".
    """
    pieces = [_COPY_BEGINS]
    fixed, log = _FIXED.pack, rows.log
    ends: dict[tuple[str, str, str, Reason | None], bytes] = {}
    for row, player, backfill, fingerprint, partition, offset in zip(
        rows.rows, rows.players, rows.backfill, rows.fingerprints, rows.partitions, rows.offsets, strict=True
    ):
        kind = row.type, row.verdict, row.catalogue_version, row.reason
        end = ends.get(kind)
        if end is None:
            end = ends[kind] = _end(*kind)
        action_id = row.action_id.encode()
        numbers = fixed(
            17, 8, player, 8, batch, 8, row.points,
            8, row.occurred_us - PG_EPOCH_US, 8, row.received_us - PG_EPOCH_US,
            8, offset, 4, partition, 4, log, 4, row.seq, 1, backfill, len(action_id),
        )  # fmt: skip
        pieces += (numbers, action_id, _text(fingerprint), end)
    pieces.append(_COPY_ENDS)
    return b"".join(pieces)


def _text(text: str) -> bytes:
    raw = text.encode()
    return _SIZE(len(raw)) + raw


def _end(type_: str, verdict: str, version: str, reason: Reason | None) -> bytes:
    """A row from its kind on, which many have in common."""
    # A jsonb is its version, which is 1, and the text.
    last = _SIZE(-1) if reason is None else _text("\1" + _encode_reason(reason).decode())
    return b"".join(map(_text, ("judged", type_, verdict, version))) + last


_AGGREGATED: Final = """
SELECT count(*) FILTER (WHERE old_score IS NULL), array_agg(player), array_agg(old_score),
    array_agg(new_score), array_agg(old_reached), array_agg(new_reached)
FROM (SELECT * FROM changed ORDER BY player) c
"""

_ADD_POINTS: Final = f"""
WITH changed AS (
    INSERT INTO entries AS e (period, player, score, reached_at)
    SELECT %(period)s, p.player, p.points, p.reached
    FROM unnest(%(players)s::bigint[], %(points)s::bigint[], %(reached)s::timestamptz[])
        p(player, points, reached)
    ON CONFLICT (period, player) DO UPDATE SET
        score = e.score + excluded.score,
        reached_at = CASE
            WHEN e.score = 0 AND NOT EXISTS (
                SELECT FROM ledger l WHERE l.player = e.player AND l.verdict = 'accepted'
                    AND l.points <> 0 AND l.batch <> %(batch)s)
            THEN excluded.reached_at
            ELSE greatest(e.reached_at, excluded.reached_at)
        END
    RETURNING new.player AS player, old.score AS old_score, new.score AS new_score,
        old.reached_at AS old_reached, new.reached_at AS new_reached
){_AGGREGATED}"""

_ADD_PRESENCE: Final = f"""
WITH changed AS (
    INSERT INTO entries AS e (period, player, score, reached_at)
    SELECT %(period)s, p.player, 0, p.reached
    FROM unnest(%(players)s::bigint[], %(reached)s::timestamptz[]) p(player, reached)
    ON CONFLICT (period, player) DO NOTHING
    RETURNING new.player AS player, old.score AS old_score, new.score AS new_score,
        old.reached_at AS old_reached, new.reached_at AS new_reached
){_AGGREGATED}"""

_TOUCH: Final = f"""
WITH changed AS (
    SELECT player, score AS old_score, score AS new_score, reached_at AS old_reached,
        reached_at AS new_reached
    FROM entries WHERE period = %(period)s AND player = ANY(%(players)s::bigint[])
    ORDER BY player FOR UPDATE
){_AGGREGATED}"""

_JUDGED: Final = """
SELECT k.user_id, k.action_id, p.player, l.type, l.verdict, l.reason, l.points, l.fingerprint,
    l.received_at, r.revision, (SELECT max(epoch) FROM epochs)
FROM unnest(%s::text[], %s::text[]) k(user_id, action_id)
CROSS JOIN LATERAL (SELECT player FROM players WHERE user_id = k.user_id) p
CROSS JOIN LATERAL (
    SELECT * FROM ledger WHERE action_id = k.action_id AND player = p.player
    ORDER BY seq DESC LIMIT 1) l
CROSS JOIN LATERAL (SELECT revision FROM revisions WHERE batch = l.batch) r
"""


def _append_statement(periods: int) -> str:
    rows = ",".join(
        [
            "(%s::text, %s::bigint, %s::bigint[], %s::bigint[], %s::bigint[], %s::timestamptz[],"
            " %s::timestamptz[])"
        ]
        * periods
    )
    deltas = f"""
, written AS (
    INSERT INTO deltas (period, revision, previous, count, players, old_scores, new_scores,
        old_reached, new_reached)
    SELECT d.period, m.revision, coalesce(l.revision, 0), coalesce(l.count, 0) + d.grown, d.players,
        d.old_scores, d.new_scores, d.old_reached, d.new_reached
    FROM made m CROSS JOIN (VALUES {rows})
        d(period, grown, players, old_scores, new_scores, old_reached, new_reached)
    LEFT JOIN LATERAL (SELECT revision, count FROM deltas WHERE period = d.period
        ORDER BY revision DESC LIMIT 1) l ON true
    RETURNING period, previous, count
)"""
    links = """,
    (SELECT array_agg(period) FROM written), (SELECT array_agg(previous)::text[] FROM written),
    (SELECT array_agg(count)::text[] FROM written)"""
    return f"""
WITH given AS (SELECT %s::bigint AS batch, %s::text AS cause, %s::bytea AS root),
head AS (
    (SELECT revision, digest, definitions FROM revisions ORDER BY revision DESC LIMIT 1)
    UNION ALL
    SELECT 0, '\\x{"00" * 32}'::bytea, 0 WHERE NOT EXISTS (SELECT FROM revisions)
),
made AS (
    INSERT INTO revisions (revision, epoch, batch, cause, definitions, digest)
    SELECT h.revision + 1, (SELECT epoch FROM epochs ORDER BY epoch DESC LIMIT 1), g.batch, g.cause,
        CASE g.cause WHEN 'definition' THEN h.revision + 1 ELSE h.definitions END,
        sha256('trueboard/1'::bytea || h.digest || g.root || int8send(h.revision + 1)
            || convert_to(g.cause, 'UTF8'))
    FROM head h, given g
    RETURNING epoch, revision, digest, committed_at
){deltas if periods else ""}
SELECT m.epoch, m.revision, m.digest, m.committed_at, pg_notify('{CHANNEL}', m.revision::text)
    {links if periods else ""} FROM made m
"""
