"""Whether the deltas of a period, one after the other, come to its entries.

Each names the one before it, says how many entries there are after it, and changes every player
from what the deltas before it made of him. Folded on the server, by window functions.
"""

from __future__ import annotations

from typing import Any, Final

from trueboard.verification.report import Check
from trueboard.verification.snapshots import Connection, microseconds, one, periods

_LINKS: Final = """
WITH links AS MATERIALIZED (
    SELECT d.revision, d.previous, d.count, r.cause,
        coalesce(lag(d.revision) OVER w, 0) AS wanted_previous,
        coalesce(lag(d.count) OVER w, 0) + g.grown AS wanted_count,
        cardinality(d.players) AS size,
        cardinality(d.players) = ALL (ARRAY[cardinality(d.old_scores), cardinality(d.new_scores),
            cardinality(d.old_reached), cardinality(d.new_reached)]) AND g.whole AS whole
    FROM deltas d JOIN revisions r USING (revision)
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE old_score IS NULL AND new_score IS NOT NULL)
             - count(*) FILTER (WHERE old_score IS NOT NULL AND new_score IS NULL) AS grown,
            coalesce(bool_and((old_score IS NULL) = (old_reached IS NULL)
                AND (new_score IS NULL) = (new_reached IS NULL)), true)
                AND count(DISTINCT player) = count(*) AS whole
        FROM unnest(d.players, d.old_scores, d.new_scores, d.old_reached, d.new_reached)
            u(player, old_score, new_score, old_reached, new_reached)
    ) g
    WHERE d.period = %(period)s WINDOW w AS (ORDER BY d.revision)
),
-- Who is hidden or shown again changes the count without a change of score.
differing AS (
    SELECT * FROM links
    WHERE previous <> wanted_previous OR (count <> wanted_count AND cause <> 'person') OR NOT whole
)
SELECT (SELECT count(*) FROM links), (SELECT count(*) FROM differing), f.revision, f.previous,
    f.wanted_previous, f.count, f.wanted_count, f.whole,
    (SELECT count FROM links ORDER BY revision DESC LIMIT 1)
FROM (SELECT 1) always LEFT JOIN (SELECT * FROM differing ORDER BY revision LIMIT 1) f ON true
"""

_STEPS: Final = f"""
WITH steps AS MATERIALIZED (
    SELECT u.player, d.revision, u.old_score, u.old_reached, u.new_score, u.new_reached,
        lag(u.new_score) OVER w AS wanted_score, lag(u.new_reached) OVER w AS wanted_reached,
        lead(d.revision) OVER w IS NULL AS is_last
    FROM deltas d CROSS JOIN LATERAL
        unnest(d.players, d.old_scores, d.new_scores, d.old_reached, d.new_reached)
        u(player, old_score, new_score, old_reached, new_reached)
    WHERE d.period = %(period)s WINDOW w AS (PARTITION BY u.player ORDER BY d.revision)
),
differing AS (
    SELECT * FROM steps
    WHERE (old_score, old_reached) IS DISTINCT FROM (wanted_score, wanted_reached)
),
folded AS MATERIALIZED (
    SELECT player, s.new_score AS wanted_score, s.new_reached AS wanted_reached, e.score, e.reached_at
    FROM (SELECT * FROM steps WHERE is_last AND new_score IS NOT NULL) s
    FULL JOIN (SELECT * FROM entries WHERE period = %(period)s) e USING (player)
),
unlike AS (
    SELECT * FROM folded
    WHERE (score, reached_at) IS DISTINCT FROM (wanted_score, wanted_reached)
)
SELECT (SELECT count(*) FROM steps), (SELECT count(*) FROM differing),
    d.revision, d.player, d.wanted_score, {microseconds("d.wanted_reached")}, d.old_score,
    {microseconds("d.old_reached")},
    (SELECT count(*) FROM folded), (SELECT count(*) FROM unlike),
    u.player, u.wanted_score, {microseconds("u.wanted_reached")}, u.score, {microseconds("u.reached_at")}
FROM (SELECT 1) always
LEFT JOIN (SELECT * FROM differing ORDER BY revision, player LIMIT 1) d ON true
LEFT JOIN (SELECT * FROM unlike ORDER BY player LIMIT 1) u ON true
"""

_VISIBLE: Final = """
SELECT count(*) FROM entries JOIN players USING (player)
WHERE period = %s AND NOT hidden AND erased_at IS NULL
"""


def check(connection: Connection, found: Check) -> None:
    """Fold every period of this snapshot."""
    for period in periods(connection):
        _links(connection, found, period)
        _steps(connection, found, period)


def _links(connection: Connection, found: Check, period: str) -> None:
    links, differing, revision, previous, wanted_previous, count, wanted_count, whole, last_count = one(
        connection, _LINKS, {"period": period}
    )
    found.saw(links)
    if whole is False:
        what, wanted, seen = "a delta whose columns disagree", "one old and one new value a player", None
    elif previous != wanted_previous:
        what, wanted, seen = "the revision before", wanted_previous, previous
    else:
        what, wanted, seen = "the count after", wanted_count, count
    found.differs(what, count=differing, period=period, revision=revision, expected=wanted, found=seen)
    (visible,) = one(connection, _VISIBLE, (period,))
    if (last_count or 0) != visible:
        found.differs("the count after the last delta", period=period, expected=visible, found=last_count)


def _steps(connection: Connection, found: Check, period: str) -> None:
    row = one(connection, _STEPS, {"period": period})
    steps, differing, revision, player, wanted_score, wanted_us, old_score, old_us = row[:8]
    found.saw(steps)
    found.differs(
        "the value before a change",
        count=differing,
        period=period,
        revision=revision,
        player=player,
        expected=_value(wanted_score, wanted_us),
        found=_value(old_score, old_us),
    )
    entries, unlike, player, wanted_score, wanted_us, score, reached_us = row[8:]
    found.saw(entries)
    found.differs(
        "the entry that the deltas come to",
        count=unlike,
        period=period,
        player=player,
        expected=_value(wanted_score, wanted_us),
        found=_value(score, reached_us),
    )


def _value(score: Any, reached_us: Any) -> dict[str, Any] | None:
    return None if score is None else {"score": score, "reached_us": reached_us}
