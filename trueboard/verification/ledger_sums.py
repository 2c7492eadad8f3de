"""Whether every entry is what the ledger's accepted actions come to.

An action's effect is that of its last row. A score is the sum of the points; it was reached when
the latest action with points was received, or, where none has points, the first one in the
ledger's order. The server adds up and joins, so memory here stays small.
"""

from __future__ import annotations

from typing import Final

from core.words import MAIN_PERIOD
from trueboard.verification.report import Check
from trueboard.verification.snapshots import Connection, microseconds, one

_RECOUNTED: Final = f"""
WITH decided AS MATERIALIZED (
    SELECT action_id, player, max(seq) AS seq FROM ledger WHERE seq > 0 GROUP BY action_id, player
),
effective AS MATERIALIZED (
    SELECT player, points, received_at, batch, kafka_partition, kafka_offset
    FROM ledger l
    WHERE seq = 0 AND verdict = 'accepted' AND NOT EXISTS (
        SELECT FROM decided d WHERE d.action_id = l.action_id AND d.player = l.player)
    UNION ALL
    SELECT last.player, last.points, judged.received_at, judged.batch, judged.kafka_partition,
        judged.kafka_offset
    FROM decided
    JOIN ledger last USING (action_id, player, seq)
    JOIN ledger judged ON judged.action_id = decided.action_id AND judged.player = decided.player
        AND judged.seq = 0
    WHERE last.verdict = 'accepted'
),
with_points AS (
    SELECT player, sum(points) AS score, max(received_at) FILTER (WHERE points <> 0) AS reached_at
    FROM effective GROUP BY player
),
without_points AS (
    SELECT DISTINCT ON (player) player, received_at
    FROM effective JOIN revisions USING (batch)
    WHERE points = 0 ORDER BY player, revision, kafka_partition, kafka_offset
),
recounted AS (
    SELECT w.player, w.score, coalesce(w.reached_at, o.received_at) AS reached_at
    FROM with_points w LEFT JOIN without_points o USING (player)
),
compared AS MATERIALIZED (
    SELECT player, r.score AS wanted_score, {microseconds("r.reached_at")} AS wanted_us,
        e.score AS found_score, {microseconds("e.reached_at")} AS found_us
    FROM recounted r FULL JOIN (SELECT * FROM entries WHERE period = %(period)s) e USING (player)
),
differing AS (
    SELECT * FROM compared
    WHERE (wanted_score, wanted_us) IS DISTINCT FROM (found_score::numeric, found_us)
)
SELECT (SELECT count(*) FROM compared), (SELECT count(*) FROM differing),
    f.player, p.user_id, f.wanted_score, f.wanted_us, f.found_score, f.found_us
FROM (SELECT 1) always
LEFT JOIN (SELECT * FROM differing ORDER BY player LIMIT 1) f ON true
LEFT JOIN players p USING (player)
"""

_BOARDS: Final = """
SELECT DISTINCT ON (q.period) q.period, q."window", b.definition
FROM periods q LEFT JOIN boards b USING (board) ORDER BY q.period, b.version DESC
"""

_UNLISTED: Final = """
SELECT period FROM (SELECT %s UNION SELECT period FROM deltas UNION SELECT period FROM entries) k(period)
EXCEPT SELECT period FROM periods ORDER BY period
"""
"""Periods that `periods` has to name, since all that is checked is found by it, and does not."""


def check(connection: Connection, found: Check) -> None:
    """Recount every period of this snapshot."""
    for (period,) in connection.execute(_UNLISTED, (MAIN_PERIOD,)).fetchall():
        found.differs("a period", period=period, expected="a row of periods", found=None)
    for period, window, definition in connection.execute(_BOARDS).fetchall():
        wanted = {"operator": "sum", "types": "all", "window": "all-time"}
        shape = dict(definition or {}, window=window)
        if any(shape.get(name) != value for name, value in wanted.items()):
            shown = {name: shape.get(name) for name in wanted}
            found.differs("a board that cannot be recounted", period=period, expected=wanted, found=shown)
            continue
        compared, differing, player, user_id, wanted_score, wanted_us, score, reached_us = one(
            connection, _RECOUNTED, {"period": period}
        )
        found.saw(compared)
        found.differs(
            "entry",
            count=differing,
            period=period,
            player=player,
            user_id=user_id,
            expected=_entry(wanted_score, wanted_us),
            found=_entry(score, reached_us),
        )


def _entry(score: object, reached_us: object) -> dict[str, object] | None:
    return None if score is None else {"score": int(str(score)), "reached_us": reached_us}
