"""What revisions changed in a period, read back to be followed.

All reads name the period's own chain: revision r's delta says which of the period's revisions
came before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import psycopg

from storage.followers import At

MOST_CHANGES: Final = 2_000
"""Most changed entries that are read, or applied, in one piece. No revision changes more."""

_MOST_REVISIONS: Final = 500


class Link(msgspec.Struct, frozen=True, gc=False):
    """One revision of a period: its position, the period's revision before, its count after."""

    at: At
    previous: int
    count: int
    changes: int


class Change(msgspec.Struct, gc=False):
    """One player over a stretch of revisions: what it was before them and is after them.

    Scores and instants (µs) are None where there is no entry. `user_id` is the empty one for a
    player who was erased meanwhile.
    """

    player: int
    user_id: str
    username: str | None
    visible: bool
    old_score: int | None
    old_reached_us: int | None
    new_score: int | None
    new_reached_us: int | None


def epoch(cursor: psycopg.Cursor[tuple[Any, ...]]) -> str:
    """The present epoch; the empty string before the first."""
    row = cursor.execute("SELECT coalesce(max(epoch), '') FROM epochs").fetchone()
    return "" if row is None else str(row[0])


def head(cursor: psycopg.Cursor[tuple[Any, ...]], period: str) -> Link | None:
    """The period's last revision."""
    rows = _links(cursor, period, "ORDER BY d.revision DESC LIMIT 1", ())
    return rows[0] if rows else None


def link_at(cursor: psycopg.Cursor[tuple[Any, ...]], period: str, revision: int) -> Link | None:
    """The period's revision with this number."""
    rows = _links(cursor, period, "AND d.revision = %s", (revision,))
    return rows[0] if rows else None


def links_after(
    cursor: psycopg.Cursor[tuple[Any, ...]], period: str, revision: int, *, most: int = MOST_CHANGES
) -> list[Link]:
    """The period's next revisions, as many as change at most `most` entries, one at least."""
    links = _links(
        cursor, period, "AND d.revision > %s ORDER BY d.revision LIMIT %s", (revision, _MOST_REVISIONS)
    )
    kept: list[Link] = []
    changes = 0
    for link in links:
        changes += link.changes
        if kept and changes > most:
            break
        kept.append(link)
    return kept


def count_after(cursor: psycopg.Cursor[tuple[Any, ...]], period: str, revision: int, *, most: int) -> int:
    """How many revisions of the period come after this one; counted up to `most`."""
    cursor.execute(
        "SELECT count(*) FROM (SELECT FROM deltas WHERE period = %s AND revision > %s LIMIT %s) d",
        (period, revision, most),
    )
    (count,) = cursor.fetchone() or (0,)
    return int(count)


def _links(
    cursor: psycopg.Cursor[tuple[Any, ...]], period: str, rest: str, parameters: tuple[Any, ...]
) -> list[Link]:
    cursor.execute(
        "SELECT r.epoch, d.revision, encode(r.digest, 'hex'), d.previous, d.count, cardinality(d.players)"
        f" FROM deltas d JOIN revisions r USING (revision) WHERE d.period = %s {rest}",
        (period, *parameters),
    )
    return [Link(At(row[0], row[1], row[2]), row[3], row[4], row[5]) for row in cursor.fetchall()]


def changes_between(
    cursor: psycopg.Cursor[tuple[Any, ...]], period: str, after: int, until: int
) -> list[Change]:
    """What the period's revisions in (after, until] come to, one `Change` a player.

    In the order in which the revisions name them, so that a record made of them is the same again.
    Names and visibility are the latest.
    """
    cursor.execute(
        "SELECT u.player, coalesce(p.user_id, ''), p.username, NOT p.hidden AND p.erased_at IS NULL,"
        "  u.old_score, u.old_reached, u.new_score, u.new_reached"
        " FROM deltas d CROSS JOIN LATERAL unnest(d.players, d.old_scores, d.old_reached, d.new_scores,"
        "  d.new_reached) WITH ORDINALITY u(player, old_score, old_reached, new_score, new_reached, place)"
        " CROSS JOIN LATERAL (SELECT * FROM players WHERE player = u.player) p"
        " WHERE d.period = %s AND d.revision > %s AND d.revision <= %s"
        " ORDER BY d.revision, u.place",
        (period, after, until),
    )
    changes: dict[int, Change] = {}
    for row in cursor.fetchall():
        known = changes.get(row[0])
        if known is None:
            changes[row[0]] = Change(*row)
        else:
            known.new_score, known.new_reached_us = row[6], row[7]
    return list(changes.values())


@dataclass(frozen=True, slots=True)
class EntryRow:
    player: int
    user_id: str
    username: str | None
    score: int
    reached_us: int


def entries_page(
    cursor: psycopg.Cursor[tuple[Any, ...]], period: str, after_player: int, limit: int
) -> tuple[list[EntryRow], int]:
    """Visible entries by player, and the last player looked at (0: there were no more)."""
    cursor.execute(
        "SELECT e.player, coalesce(p.user_id, ''), p.username, e.score, e.reached_at,"
        "  NOT p.hidden AND p.erased_at IS NULL"
        " FROM (SELECT * FROM entries WHERE period = %s AND player > %s ORDER BY player LIMIT %s) e"
        " JOIN players p USING (player) ORDER BY e.player",
        (period, after_player, limit),
    )
    rows = cursor.fetchall()
    return [EntryRow(*row[:5]) for row in rows if row[5]], rows[-1][0] if rows else 0


def periods(cursor: psycopg.Cursor[tuple[Any, ...]]) -> list[tuple[str, str, str]]:
    """(period, board, window) of every period there is."""
    cursor.execute('SELECT period, board, "window" FROM periods ORDER BY period')
    return [(row[0], row[1], row[2]) for row in cursor.fetchall()]


def changed_players(
    cursor: psycopg.Cursor[tuple[Any, ...]], period: str, after: int, players: Sequence[int]
) -> set[int]:
    """Which of these players a revision later than `after` changed."""
    cursor.execute(
        "SELECT DISTINCT u.player FROM deltas d CROSS JOIN LATERAL unnest(d.players) u(player)"
        " WHERE d.period = %s AND d.revision > %s AND u.player = ANY(%s::bigint[])",
        (period, after, list(players)),
    )
    return {row[0] for row in cursor.fetchall()}
