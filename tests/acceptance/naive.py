"""The promises of the interface, kept a second time in the slow and obvious way.

Reads rows by SQL, or records of the topics, and shares no code with what it checks but the shape
of a catalogue: its own canonical JSON, its own tree as RFC 9162 writes it down, sums by adding up.
The limits are those of `tests.core.naive`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

from core.catalogue import Catalogue
from core.receipts import Reason
from tests.core import naive

DAY_US = 86_400_000_000
MINUTE_US = 60_000_000
MOST = 2**63 - 1


def us(column: str) -> str:
    """SQL for an instant as whole µs since 1970."""
    return f"(extract(epoch FROM {column}) * 1000000)::bigint"


# The digest ------------------------------------------------------------------------------------


def canonical(value: Any) -> bytes:
    """RFC 8785 for values without floats and keys without characters beyond the first plane."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def tree_hash(leaves: Sequence[bytes]) -> bytes:
    """MTH(D[n]) of RFC 9162 §2.1.1, by its own recursion."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + tree_hash(leaves[:k]) + tree_hash(leaves[k:])).digest()


def leaves_of(connection: psycopg.Connection, revision: int, batch: int) -> list[bytes]:
    """What a revision covers, from the rows that name it."""
    leaves = [
        canonical(["row", *row])
        for row in connection.execute(
            "SELECT p.pid::text, l.action_id, l.seq, l.kind, l.type, l.verdict, l.points,"
            f" {us('l.occurred_at')}, {us('l.received_at')}, l.catalogue_version"
            " FROM ledger l JOIN players p USING (player) WHERE l.batch = %s",
            (batch,),
        )
    ]
    for version, body in connection.execute(
        "SELECT version, body FROM catalogues WHERE revision = %s", (revision,)
    ):
        leaves.append(canonical(["catalogue", version, hashlib.sha256(canonical(body)).hexdigest()]))
    for board, version, body in connection.execute(
        "SELECT board, version, definition FROM boards WHERE revision = %s", (revision,)
    ):
        leaves.append(canonical(["definition", board, version, hashlib.sha256(canonical(body)).hexdigest()]))
    for continues in connection.execute(
        "SELECT e.epoch, e.continues_epoch, e.continues_revision FROM revisions r JOIN epochs e USING (epoch)"
        " WHERE r.revision = %s AND r.cause = 'new_epoch'",
        (revision,),
    ):
        leaves.append(canonical(["epoch", *continues]))
    return leaves


def digest_chain(connection: psycopg.Connection) -> list[tuple[int, str]]:
    """(revision, digest in hex) of the whole history, recounted from nothing but its rows."""
    chain: list[tuple[int, str]] = []
    digest = bytes(32)
    for revision, batch, cause in connection.execute(
        "SELECT revision, batch, cause FROM revisions ORDER BY revision"
    ).fetchall():
        root = tree_hash(sorted(leaves_of(connection, revision, batch)))
        digest = hashlib.sha256(
            b"trueboard/1" + digest + root + revision.to_bytes(8, "big") + cause.encode()
        ).digest()
        chain.append((revision, digest.hex()))
    return chain


# Entries and deltas ----------------------------------------------------------------------------

Standing = tuple[int, int]
"""(score, reached at in µs)."""


def entries(connection: psycopg.Connection) -> dict[str, Standing]:
    """user id → entry of main:all-time, by adding up the ledger.

    Reached at: the latest received of the accepted actions with points; of a player who has none,
    that of the accepted action judged first.
    """
    rows = connection.execute(
        f"SELECT p.user_id, l.points, {us('l.received_at')}"
        " FROM ledger l JOIN players p USING (player) JOIN revisions r USING (batch)"
        " WHERE l.verdict = 'accepted' ORDER BY r.revision, l.log, l.kafka_partition, l.kafka_offset"
    ).fetchall()
    of: dict[str, list[tuple[int, int]]] = {}
    for user_id, points, received_us in rows:
        of.setdefault(user_id, []).append((points, received_us))
    found = {}
    for user_id, accepted in of.items():
        with_points = [received_us for points, received_us in accepted if points]
        reached_us = max(with_points) if with_points else accepted[0][1]
        found[user_id] = (sum(points for points, _ in accepted), reached_us)
    return found


def stored_entries(connection: psycopg.Connection) -> dict[str, Standing]:
    return {
        row[0]: (row[1], row[2])
        for row in connection.execute(
            f"SELECT p.user_id, e.score, {us('e.reached_at')} FROM entries e JOIN players p USING (player)"
            " WHERE e.period = 'main:all-time'"
        )
    }


def folded_deltas(connection: psycopg.Connection, *, until: int = MOST) -> dict[str, Standing]:
    """The period as it was at a revision, by folding its chain from nothing.

    Raises:
        AssertionError: a link's `previous`, `count` or an old value is not what the fold holds.
    """
    steps = [held for _, held in folds(connection, until=until)]
    return steps[-1] if steps else {}


def folds(connection: psycopg.Connection, *, until: int = MOST) -> Iterator[tuple[int, dict[str, Standing]]]:
    """The period at each of its revisions, in their order: what `folded_deltas` holds there."""
    held: dict[int, Standing] = {}
    previous = 0
    links = connection.execute(
        "SELECT revision, previous, count, players, old_scores, new_scores,"
        f" (SELECT array_agg({us('t')} ORDER BY n) FROM unnest(old_reached) WITH ORDINALITY u(t, n)),"
        f" (SELECT array_agg({us('t')} ORDER BY n) FROM unnest(new_reached) WITH ORDINALITY u(t, n))"
        " FROM deltas WHERE period = 'main:all-time' AND revision <= %s ORDER BY revision",
        (until,),
    ).fetchall()
    names: dict[int, str] = dict(connection.execute("SELECT player, user_id FROM players").fetchall())
    for revision, named, count, *columns in links:
        assert named == previous, f"revision {revision} follows {named}, not {previous}"
        previous = revision
        players, old_scores, new_scores, old_us, new_us = (column or [] for column in columns)
        assert len(set(players)) == len(players), f"revision {revision} names a player twice"
        for player, old_score, new_score, old, new in zip(
            players, old_scores, new_scores, old_us, new_us, strict=True
        ):
            before = None if old_score is None else (old_score, old)
            assert held.get(player) == before, f"revision {revision}: {before} was {held.get(player)}"
            if new_score is None:
                held.pop(player, None)
            else:
                held[player] = (new_score, new)
        assert len(held) == count, f"revision {revision} counts {count} of {len(held)}"
        yield revision, {names[player]: standing for player, standing in held.items()}


def ranked(standings: dict[str, Standing]) -> list[tuple[int, str, int, int]]:
    """(rank, user id, score, reached at): more first, then earlier, then the smaller id's bytes."""
    ordered = sorted(standings.items(), key=lambda item: (-item[1][0], item[1][1], item[0].encode()))
    return [(rank, user_id, *standing) for rank, (user_id, standing) in enumerate(ordered, 1)]


# Verdicts --------------------------------------------------------------------------------------


@dataclass
class Submitted:
    """One record of the submitted topic; instants in µs."""

    user_id: str
    action_id: str
    type: str
    points: int | None
    occurred_us: int
    received_us: int
    backfill: bool = False
    username: str | None = None


@dataclass
class Expected:
    """What the ledger must say of one action."""

    verdict: str
    reason: Reason | None
    points: int
    catalogue: str
    action: Submitted


@dataclass
class Judged:
    """The ledger's promise by hand: each (action id, user) once, in the order records were taken."""

    lowest: int = 0
    rows: dict[tuple[str, str], Expected] = field(default_factory=dict)
    names: dict[str, str | None] = field(default_factory=dict)
    _history: dict[str, list[naive.Action]] = field(default_factory=dict)
    _scores: dict[str, int] = field(default_factory=dict)

    def take(self, catalogue: Catalogue, action: Submitted) -> Expected:
        """Judge an action, or answer with what was said of it when it came first."""
        key = (action.action_id, action.user_id)
        if key in self.rows:
            return self.rows[key]
        if action.username is not None:
            self.names[action.user_id] = action.username
        self.names.setdefault(action.user_id, None)
        history = self._history.setdefault(action.user_id, [])
        late = not (action.received_us - DAY_US <= action.occurred_us <= action.received_us + MINUTE_US)
        asked = naive.Action(
            action.type,
            action.occurred_us,
            action.received_us,
            # Nothing else than a backfill may lie so far from when it was received.
            action.backfill or late,
            action.points,
        )
        verdict, reason, points = naive.judge(catalogue, history, asked)
        score = self._scores.get(action.user_id, 0)
        if verdict == "accepted":
            after = score + points
            if abs(after) > MOST:
                bound = MOST if after > 0 else -MOST
                verdict, reason = "rejected", Reason("score_overflow", "score", catalogue.version, bound)
            elif after < self.lowest:
                verdict, reason = (
                    "rejected",
                    Reason(
                        "score_below_minimum", "boards.main.lowest", catalogue.version, self.lowest, after
                    ),
                )
            else:
                self._scores[action.user_id] = after
        history.append(
            naive.Action(
                asked.type,
                asked.occurred_us,
                asked.received_us,
                asked.backfill,
                asked.client_points,
                verdict == "accepted",
            )
        )
        self.rows[key] = Expected(verdict, reason, points, catalogue.version, action)
        return self.rows[key]


# Topics ----------------------------------------------------------------------------------------


def top(
    judged: Iterable[dict[str, Any]], players: Iterable[tuple[str, dict[str, Any] | None]], limit: int = 10
) -> list[tuple[str, str, int]]:
    """(user id, username, score) of the leaders, from records of the two topics alone.

    `judged` are values in any order, repeats among them: folded by (player, action id), the highest
    revision wins. `players` are (key, value) in order, the last of a key counts, null is nobody.
    """
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for record in judged:
        if "continues" in record:
            raise NotImplementedError("a history that was restored")
        key = (record["player"], record["action_id"])
        if key not in last or record["revision"] >= last[key]["revision"]:
            last[key] = record
    known = dict(players)
    scores: dict[str, int] = {}
    reached: dict[str, str] = {}
    for record in sorted(last.values(), key=lambda record: record["revision"]):
        if record["verdict"] != "accepted":
            continue
        player = record["player"]
        scores[player] = scores.get(player, 0) + record["points"]
        if record["points"]:
            reached[player] = max(reached.get(player, ""), record["received_at"])
    for record in sorted(last.values(), key=lambda record: record["revision"]):
        if record["verdict"] == "accepted":
            reached.setdefault(record["player"], record["received_at"])
    found = []
    for player, score in scores.items():
        person = known.get(player)
        if person is not None and not person["hidden"]:
            found.append((-score, reached[player], person["user_id"].encode(), person))
    return [
        (person["user_id"], person["username"], -negative)
        for negative, _, _, person in sorted(found, key=lambda f: f[:3])
    ][:limit]
