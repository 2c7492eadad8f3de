"""Whether verdicts are those that the rules give, judged again from the ledger alone.

A sample of rows, the same for the same revision: a quarter of it from those not accepted, where there are
so many. Each is judged by the catalogue it names, in view of the player's rows judged before it: of
earlier revisions, or of the same one and earlier in the partition.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from core.catalogue import from_body
from core.rates import Judgement, Recent, Rules, read_range_us
from core.times import EPOCH, HIGHEST_US, LOWEST_US
from core.words import SCORE_MAX
from trueboard.verification.report import Check
from trueboard.verification.snapshots import Connection, microseconds, one, stream

_COLUMNS: Final = f"""
l.player, l.action_id, l.type, l.verdict, l.reason, l.points, {microseconds("l.occurred_at")},
    {microseconds("l.received_at")}, l.backfill, l.catalogue_version, r.revision,
    coalesce(l.kafka_partition, -1), coalesce(l.kafka_offset, -1)
"""

# Erasing leaves nothing to judge by, and a final period is of its own history.
_SAMPLE: Final = f"""
SELECT {_COLUMNS} FROM (
    SELECT * FROM ledger WHERE seq = 0 AND kind = 'judged' AND (verdict = 'accepted') = %(accepted)s
        AND coalesce(reason->>'code', '') NOT IN ('erased', 'period_final')
    ORDER BY hashtextextended(action_id || ':' || player, %(seed)s), action_id, player LIMIT %(size)s
) l JOIN revisions r USING (batch)
"""

_FURTHEST: Final = f"""
SELECT greatest(0, {microseconds("max(received_at - occurred_at)")}),
    greatest(0, {microseconds("max(occurred_at - received_at)")})
FROM ledger WHERE seq = 0 AND NOT backfill
"""
"""How late and how early an action came that was no backfill, whatever the settings were when it did."""

# The window by received has no index: its rows are found by when they can have occurred.
_BEFORE: Final = f"""
SELECT {microseconds("l.occurred_at")}, {microseconds("l.received_at")}, l.backfill, l.type, l.points,
    l.verdict = 'accepted'
FROM ledger l JOIN revisions r USING (batch)
WHERE l.player = %(player)s AND l.seq = 0
    AND l.occurred_at BETWEEN %(lowest)s AND %(highest)s
    AND (l.occurred_at BETWEEN %(since)s AND %(until)s
        OR (NOT l.backfill AND l.received_at BETWEEN %(since)s AND %(until)s))
    AND (r.revision, coalesce(l.kafka_partition, -1), coalesce(l.kafka_offset, -1))
        < (%(revision)s, %(partition)s, %(offset)s)
ORDER BY l.occurred_at
"""

_SCORE_BEFORE: Final = """
SELECT coalesce(sum(l.points), 0)::text
FROM ledger l JOIN revisions r USING (batch)
WHERE l.player = %(player)s AND l.verdict = 'accepted'
    AND (r.revision, coalesce(l.kafka_partition, -1), coalesce(l.kafka_offset, -1))
        < (%(revision)s, %(partition)s, %(offset)s)
    AND NOT EXISTS (SELECT FROM ledger n JOIN revisions o USING (batch)
        WHERE n.action_id = l.action_id AND n.player = l.player AND n.seq > l.seq
            AND o.revision < %(revision)s)
"""

_LOWEST: Final = """
SELECT (definition->>'lowest')::bigint FROM boards WHERE board = 'main' AND revision <= %s
ORDER BY version DESC LIMIT 1
"""


class Sampled(msgspec.Struct, frozen=True):
    """One ledger row to be judged again; instants are µs."""

    player: int
    action_id: str
    type: str
    verdict: str
    reason: dict[str, Any] | None
    points: int
    occurred_us: int
    received_us: int
    backfill: bool
    catalogue_version: str
    revision: int
    partition: int
    offset: int

    @property
    def place(self) -> dict[str, int]:
        return {
            "player": self.player,
            "revision": self.revision,
            "partition": self.partition,
            "offset": self.offset,
        }


def check(connection: Connection, found: Check, size: int) -> None:
    """Judge `size` rows of this snapshot again, or all there are."""
    furthest_us = one(connection, _FURTHEST)
    rules: dict[str, Rules] = {}
    for version, body in connection.execute("SELECT version, body FROM catalogues"):
        rules[version] = Rules(from_body(body))
    for row in sample(connection, size):
        found.saw()
        of_row = rules.get(row.catalogue_version)
        if of_row is None:
            found.differs(
                "the catalogue",
                action_id=row.action_id,
                player=row.player,
                expected=sorted(rules),
                found=row.catalogue_version,
            )
            continue
        wanted = _judged_again(connection, of_row, row, furthest_us)
        if not any(_same(judgement, row) for judgement in wanted):
            found.differs(
                "verdict",
                action_id=row.action_id,
                player=row.player,
                revision=row.revision,
                expected=_shown(wanted[0].verdict, wanted[0].points, msgspec.to_builtins(wanted[0].reason)),
                found=_shown(row.verdict, row.points, row.reason),
            )


def sample(connection: Connection, size: int) -> list[Sampled]:
    """Rows chosen by the last revision's number, so that a second look sees the same."""
    (seed,) = one(connection, "SELECT coalesce(max(revision), 0) FROM revisions")
    rows: list[Sampled] = []
    for accepted, most in ((False, size // 4), (True, size)):
        wanted = {"accepted": accepted, "seed": seed, "size": most - len(rows) if accepted else most}
        rows += [Sampled(*row) for row in connection.execute(_SAMPLE, wanted)]
    return rows


def _judged_again(
    connection: Connection, rules: Rules, row: Sampled, furthest_us: tuple[int, int]
) -> list[Judgement]:
    """What the rules say: one judgement, or two where the ledger does not tell whether points were sent."""
    recent = Recent()
    needed = rules.needed_us(
        row.type, occurred_us=row.occurred_us, received_us=row.received_us, backfill=row.backfill
    )
    if needed is not None:
        recent = Recent(*needed)
        lowest_us, highest_us = read_range_us(*needed, *furthest_us)
        instants = {"since": needed[0], "until": needed[1], "lowest": lowest_us, "highest": highest_us}
        moments = {name: _moment(instant_us) for name, instant_us in instants.items()}
        for occurred_us, received_us, backfill, type_, points, accepted in stream(
            connection, "before", _BEFORE, row.place | moments
        ):
            recent.add(occurred_us, received_us, backfill, rules.code(type_), points, accepted)
    type_of = rules.catalogue.types.get(row.type)
    sent: list[int | None] = [row.points]
    if row.points == 0 and type_of is not None and type_of.points is None:
        sent.append(None)
    return [
        _bounded(
            connection,
            row,
            rules.judge(
                recent,
                occurred_us=row.occurred_us,
                received_us=row.received_us,
                backfill=row.backfill,
                type=row.type,
                client_points=points,
            ),
        )
        for points in sent
    ]


def _moment(instant_us: int) -> datetime:
    """The instant, or the nearest that can be written: beyond it nothing occurred."""
    return EPOCH + timedelta(microseconds=min(max(instant_us, LOWEST_US), HIGHEST_US))


def _bounded(connection: Connection, row: Sampled, judgement: Judgement) -> Judgement:
    """The same, or the refusal of what would take the score out of its bounds."""
    code = (row.reason or {}).get("code")
    could_cross = not 0 <= judgement.points <= SCORE_MAX >> 20
    if judgement.verdict != "accepted" or not (
        could_cross or code in ("score_overflow", "score_below_minimum")
    ):
        return judgement
    (before,) = one(connection, _SCORE_BEFORE, row.place)
    (lowest,) = one(connection, _LOWEST, (row.revision,))
    after = int(before) + judgement.points
    if abs(after) > SCORE_MAX:
        code, limit, seen = "score_overflow", SCORE_MAX if after > 0 else -SCORE_MAX, None
    elif after < lowest and judgement.points < 0:
        code, limit, seen = "score_below_minimum", lowest, after
    else:
        return judgement
    reason = {"code": code, "limit": limit, "seen": seen, "rule_version": row.catalogue_version}
    return Judgement("rejected", msgspec.convert(reason, _Bound), judgement.points)  # type: ignore[arg-type]


class _Bound(msgspec.Struct, frozen=True):
    """The reason of a bound; the rule's name is the board's affair and not compared."""

    code: str
    limit: int
    seen: int | None
    rule_version: str


def _same(judgement: Judgement, row: Sampled) -> bool:
    if (judgement.verdict, judgement.points) != (row.verdict, row.points):
        return False
    wanted = msgspec.to_builtins(judgement.reason)
    if wanted is None or row.reason is None:
        return wanted is row.reason
    return all(row.reason.get(name) == value for name, value in wanted.items())


def _shown(verdict: str, points: int, reason: Any) -> dict[str, Any]:
    return {"verdict": verdict, "points": points, "reason": reason}
