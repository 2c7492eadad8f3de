"""What a revision holds, as the topics say it: judged rows, changed entries, changed people."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import psycopg

from core.ranking import Entry
from core.receipts import Reason
from storage.followers import At
from storage.postgres.deltas import Change, Link, changes_between

MOST_ROWS: Final = 5_000
"""About how many ledger rows are read in one piece."""

MOST_REVISIONS: Final = 25
"""In one piece: those in which many actions change few entries are not small by their changes."""


class Row(msgspec.Struct, frozen=True, gc=False):
    """One ledger row; instants are µs."""

    pid: str
    action_id: str
    seq: int
    type: str
    verdict: str
    reason: Reason | None
    points: int
    occurred_us: int
    received_us: int
    catalogue_version: str
    traceparent: str | None = None


class PersonRow(msgspec.Struct, frozen=True, gc=False):
    """`user_id` is None for one who is erased."""

    pid: str
    user_id: str | None
    username: str | None
    hidden: bool


class PeriodChange(msgspec.Struct, frozen=True):
    """One period's part of a revision."""

    board: str
    window: str
    link: Link
    changes: list[Change]


@dataclass(slots=True)
class Content:
    """One revision. `traceparent` is that of a request that led to it, where it is known.

    `continues` is where the history goes on from, if an epoch begins with this revision.
    """

    at: At
    committed_us: int
    rows: list[Row] = field(default_factory=list)
    people: list[PersonRow] = field(default_factory=list)
    periods: list[PeriodChange] = field(default_factory=list)
    traceparent: str | None = None
    continues: tuple[str, int] | None = None


def read(cursor: psycopg.Cursor[tuple[Any, ...]], after: int, *, most: int = MOST_ROWS) -> list[Content]:
    """The revisions after this one, in order; as many as have about `most` changes, few at a time.

    To be called in one transaction of REPEATABLE READ, on a connection that reads instants as µs.
    """
    cursor.execute(
        "SELECT r.revision, r.epoch, encode(r.digest, 'hex'), r.committed_at, r.batch,"
        "  coalesce((SELECT sum(cardinality(players)) FROM deltas d WHERE d.revision = r.revision), 0)"
        "   ::bigint, e.continues_epoch, e.continues_revision"
        " FROM revisions r LEFT JOIN epochs e ON r.cause = 'new_epoch' AND e.epoch = r.epoch"
        " WHERE r.revision > %s ORDER BY r.revision LIMIT %s",
        (after, MOST_REVISIONS),
    )
    contents: list[Content] = []
    batches: dict[int, Content] = {}
    size = 0
    for revision, epoch, digest, committed_us, batch, changes, *from_ in cursor.fetchall():
        size += changes
        if contents and size > most:
            break
        content = Content(At(epoch, revision, digest), committed_us)
        if from_[0] is not None:
            content.continues = (from_[0], from_[1])
        contents.append(content)
        batches[batch] = content
    if not contents:
        return []
    first, last = contents[0].at.revision, contents[-1].at.revision
    by_revision = {content.at.revision: content for content in contents}
    _read_rows(cursor, batches)
    _read_people(cursor, first, last, by_revision)
    _read_periods(cursor, first, last, by_revision)
    return contents


def _read_rows(cursor: psycopg.Cursor[tuple[Any, ...]], batches: dict[int, Content]) -> None:
    # One range instead of a look-up a batch: the BRIN index answers ranges, and what it has not
    # summarised yet is read once.
    cursor.execute(
        "SELECT l.batch, p.pid::text, l.action_id, l.seq, l.type, l.verdict, l.reason, l.points,"
        "  l.occurred_at, l.received_at, l.catalogue_version"
        " FROM ledger l JOIN players p USING (player) WHERE l.batch BETWEEN %s AND %s"
        " ORDER BY l.batch, l.action_id, l.player, l.seq",
        (min(batches), max(batches)),
    )
    for batch, pid, action_id, seq, type_, verdict, reason, *numbers in cursor.fetchall():
        content = batches.get(batch)
        if content is not None:
            read_reason = None if reason is None else msgspec.convert(reason, Reason)
            content.rows.append(Row(pid, action_id, seq, type_, verdict, read_reason, *numbers))


def _read_people(
    cursor: psycopg.Cursor[tuple[Any, ...]], first: int, last: int, by_revision: dict[int, Content]
) -> None:
    cursor.execute(
        "SELECT c.revision, p.pid::text, p.user_id, p.username, p.hidden"
        " FROM people_changed c CROSS JOIN LATERAL unnest(c.players) u(player)"
        " CROSS JOIN LATERAL (SELECT * FROM players WHERE player = u.player) p"
        " WHERE c.revision BETWEEN %s AND %s ORDER BY c.revision, p.player",
        (first, last),
    )
    for revision, *person in cursor.fetchall():
        by_revision[revision].people.append(PersonRow(*person))


def _read_periods(
    cursor: psycopg.Cursor[tuple[Any, ...]], first: int, last: int, by_revision: dict[int, Content]
) -> None:
    cursor.execute(
        'SELECT d.period, q.board, q."window", d.revision, d.previous, d.count, cardinality(d.players)'
        " FROM deltas d JOIN periods q USING (period) WHERE d.revision BETWEEN %s AND %s"
        " ORDER BY d.revision, d.period",
        (first, last),
    )
    for period, board, window, revision, previous, count, size in cursor.fetchall():
        content = by_revision[revision]
        changes = changes_between(cursor, period, revision - 1, revision) if size else []
        content.periods.append(PeriodChange(board, window, Link(content.at, previous, count, size), changes))


def leading_at(
    cursor: psycopg.Cursor[tuple[Any, ...]], period: str, revision: int, most: int
) -> tuple[list[Entry], int]:
    """The period's best entries and its count as they were at this revision.

    Rolls today's entries back: who was changed since stands as the first change since found it.
    To be called in one transaction of REPEATABLE READ.
    """
    cursor.execute(
        "SELECT count FROM deltas WHERE period = %s AND revision <= %s ORDER BY revision DESC LIMIT 1",
        (period, revision),
    )
    row = cursor.fetchone()
    if row is None:
        return [], 0
    cursor.execute(
        "WITH since AS MATERIALIZED ("
        "  SELECT DISTINCT ON (u.player) u.player, u.old_score, u.old_reached"
        "  FROM deltas d CROSS JOIN LATERAL unnest(d.players, d.old_scores, d.old_reached)"
        "    u(player, old_score, old_reached)"
        "  WHERE d.period = %(period)s AND d.revision > %(revision)s ORDER BY u.player, d.revision),"
        " back AS ("
        "  SELECT player, old_score AS score, old_reached AS reached_at FROM since"
        "   WHERE old_score IS NOT NULL"
        "  UNION ALL"
        "  SELECT e.player, e.score, e.reached_at FROM entries e"
        "   WHERE e.period = %(period)s AND NOT EXISTS (SELECT FROM since s WHERE s.player = e.player))"
        " SELECT p.user_id, coalesce(p.username, p.user_id), t.score, t.reached_at"
        " FROM back t JOIN players p USING (player) WHERE NOT p.hidden AND p.erased_at IS NULL"
        " ORDER BY t.score DESC, t.reached_at, p.user_id LIMIT %(most)s",
        {"period": period, "revision": revision, "most": most},
    )
    return [Entry(*found) for found in cursor.fetchall()], row[0]


def summarise(cursor: psycopg.Cursor[tuple[Any, ...]]) -> None:
    """Let the BRIN index cover what was written lately, before much of it is read back."""
    # Not in a server that is still recovering, as one put back does: there it is refused.
    cursor.execute("SELECT brin_summarize_new_values('ledger_batch') WHERE NOT pg_is_in_recovery()")
