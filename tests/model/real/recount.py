"""What the ledger says at each of its revisions, recounted from its rows in the slow and obvious way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import psycopg

from core.catalogue import Catalogue
from storage.followers import At
from tests.acceptance import naive
from tests.acceptance.naive import Standing, Submitted, us

PERIOD = "main:all-time"


class Wrong(AssertionError):
    """Something was counted, kept or shown that must not be."""


def must(holds: bool, what: Callable[[], str] | str) -> None:
    if not holds:
        raise Wrong(what if isinstance(what, str) else what())


@dataclass
class Row:
    revision: int
    pid: str
    action_id: str
    seq: int
    kind: str
    type: str
    verdict: str
    reason: Any
    points: int
    catalogue: str
    occurred_us: int
    received_us: int


@dataclass
class Count:
    """One history, recounted: `shown[at]` is what the period shows at a position, by pid."""

    head: At
    line: list[At]
    rows: list[Row]
    chain: list[At]
    shown: dict[At, dict[str, Standing]]
    previous: dict[At, int]
    names: dict[str, tuple[str | None, str | None]]
    """pid → (user id, username), both None for who is erased."""
    entries: dict[str, Standing] = field(default_factory=dict)


def recount(connection: psycopg.Connection[Any], catalogue: Callable[[str], Catalogue]) -> Count:
    """Count the ledger again, and see that all that stands beside its rows says the same.

    Raises:
        Wrong: entries, deltas, digests or a verdict are not what the rows come to.
    """
    revisions = connection.execute(
        "SELECT revision, epoch, encode(digest, 'hex'), cause, batch FROM revisions ORDER BY revision"
    ).fetchall()
    must([row[0] for row in revisions] == list(range(1, len(revisions) + 1)), "revisions have gaps")
    digests = [(revision, digest) for revision, _, digest, _, _ in revisions]
    must(digests == naive.digest_chain(connection), "the digests are not those of the rows")
    at = {revision: At(epoch, revision, digest) for revision, epoch, digest, _, _ in revisions}
    people = connection.execute("SELECT pid::text, player, user_id, username FROM players").fetchall()
    pid_of = {player: pid for pid, player, _, _ in people}
    # Of who is erased nothing is said after that; before it a person may be told of again.
    gone = {
        pid_of[player]: revision
        for player, revision in connection.execute(
            "SELECT player, max(revision) FROM people_changed JOIN revisions USING (revision)"
            " CROSS JOIN LATERAL unnest(players) u(player) JOIN players p USING (player)"
            " WHERE cause = 'person' AND p.erased_at IS NOT NULL GROUP BY player"
        ).fetchall()
    }
    rows = _rows(connection)
    _verdicts(connection, rows, catalogue)
    links = connection.execute(
        "SELECT revision, previous, count, players, old_scores, new_scores,"
        f" (SELECT array_agg({us('t')} ORDER BY n) FROM unnest(old_reached) WITH ORDINALITY u(t, n)),"
        f" (SELECT array_agg({us('t')} ORDER BY n) FROM unnest(new_reached) WITH ORDINALITY u(t, n))"
        " FROM deltas WHERE period = %s ORDER BY revision",
        (PERIOD,),
    ).fetchall()
    folded: dict[str, Standing] = {}
    before = 0
    count = Count(
        at[len(revisions)],
        list(at.values()),
        rows,
        [at[link[0]] for link in links],
        {},
        {at[link[0]]: link[1] for link in links},
        {pid: (user_id, username) for pid, _, user_id, username in people},
    )
    for revision, previous, size, *columns in links:
        must(previous == before, f"revision {revision} follows {previous}, not {before}")
        before = revision
        for player, old, new, old_us, new_us in zip(*(column or [] for column in columns), strict=True):
            pid = pid_of[player]
            was = None if old is None else (old, old_us)
            must(folded.get(pid) == was, f"revision {revision}: {was} of {pid} was {folded.get(pid)}")
            folded[pid] = (new, new_us)
        sums = standings(rows, revision)
        must(folded == sums, lambda at=revision, sums=sums: f"deltas up to {at} come to {folded}, not {sums}")  # type: ignore[misc]
        visible = {pid: one for pid, one in sums.items() if gone.get(pid, revision + 1) > revision}
        must(size == len(visible), f"revision {revision} counts {size} of {len(visible)}")
        count.shown[at[revision]] = visible
    count.entries = standings(rows, len(revisions))
    stored = {
        pid_of[player]: (score, reached_us)
        for player, score, reached_us in connection.execute(
            f"SELECT player, score, {us('reached_at')} FROM entries WHERE period = %s", (PERIOD,)
        ).fetchall()
    }
    must(stored == count.entries, lambda: f"entries are {stored}, the rows come to {count.entries}")
    return count


def _rows(connection: psycopg.Connection[Any]) -> list[Row]:
    return [
        Row(*row)
        for row in connection.execute(
            "SELECT r.revision, p.pid::text, l.action_id, l.seq, l.kind, l.type, l.verdict, l.reason,"
            f" l.points, l.catalogue_version, {us('l.occurred_at')}, {us('l.received_at')}"
            " FROM ledger l JOIN players p USING (player) JOIN revisions r USING (batch)"
            " ORDER BY r.revision, l.log, l.kafka_partition, l.kafka_offset"
        ).fetchall()
    ]


def standings(rows: list[Row], until: int) -> dict[str, Standing]:
    """pid → entry at this revision: the last word on each action counts, hidden and erased ones too.

    Reached at: the latest received of the actions that ever changed the score; of a player who has
    none, that of the accepted action judged first.
    """
    last: dict[tuple[str, str], Row] = {}
    reached: dict[str, int] = {}
    present: dict[str, int] = {}
    for row in rows:
        if row.revision > until:
            break
        key = (row.pid, row.action_id)
        before = last.get(key)
        last[key] = row
        counted = before is not None and before.verdict == "accepted"
        if row.points and (row.verdict == "accepted") != counted:
            reached[row.pid] = max(reached.get(row.pid, row.received_us), row.received_us)
        if row.verdict == "accepted":
            present.setdefault(row.pid, row.received_us)
    scores: dict[str, int] = defaultdict(int)
    for (pid, _), row in last.items():
        scores[pid] += row.points if row.verdict == "accepted" else 0
    return {pid: (scores[pid], reached.get(pid, first)) for pid, first in present.items()}


def _verdicts(
    connection: psycopg.Connection[Any], rows: list[Row], catalogue: Callable[[str], Catalogue]
) -> None:
    """Each judged row is what somebody would have said who knows all that was judged before it."""
    catalogues = connection.execute("SELECT revision, version FROM catalogues ORDER BY revision").fetchall()
    judged = naive.Judged()
    taken: set[tuple[str, str]] = set()
    for row in rows:
        if row.seq:
            continue
        in_force = [version for revision, version in catalogues if revision < row.revision][-1]
        must(row.catalogue == in_force, f"{row} is judged by a catalogue that was not in force: {in_force}")
        key = (row.pid, row.action_id)
        must(key not in taken, f"{row} is there twice")
        taken.add(key)
        points = row.points if row.type == "points" else None
        action = Submitted(row.pid, row.action_id, row.type, points, row.occurred_us, row.received_us)
        expected = judged.take(catalogue(in_force), action)
        must(
            (row.verdict, row.points, row.reason)
            == (expected.verdict, expected.points, msgspec.to_builtins(expected.reason)),
            lambda row=row, expected=expected: f"{row} must be {expected}",  # type: ignore[misc]
        )
