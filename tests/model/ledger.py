"""What every writer has in common: one revision, and what it says of each period."""

from __future__ import annotations

from collections.abc import Iterable

from core import digest
from tests.model.servers import Delta, Revision, Row, Standing, Tables

Changes = dict[int, tuple[Standing | None, Standing | None]]
"""Player → standing before and after; None for gone."""


def leaves(tables: Tables, rows: Iterable[Row]) -> list[bytes]:
    return [
        digest.row_leaf(
            tables.people[row.player].pid,
            row.action_id,
            row.seq,
            "judged" if row.seq == 0 else "decision",
            "step",
            row.verdict,
            row.points,
            row.received_us,
            row.received_us,
            row.catalogue,
        )
        for row in rows
    ]


def append(
    tables: Tables,
    cause: str,
    changed: dict[str, Changes],
    *,
    rows: tuple[Row, ...] = (),
    people: tuple[int, ...] = (),
    extra: tuple[bytes, ...] = (),
    every_period: bool = False,
) -> None:
    """The next revision and its deltas, as the writer believes them to be.

    `every_period` writes a delta in each, empty where nothing changed.
    """
    number = tables.revision + 1
    place = (tables.epoch, number)
    root = digest.root([*leaves(tables, rows), *extra])
    chained = digest.chained(tables.digest, root, number, cause)
    tables.revisions.append(Revision(place, chained, cause, rows, people))
    for period, chain in tables.deltas.items():
        changes = {player: (old, new) for player, (old, new) in changed.get(period, {}).items() if old != new}
        if changes or every_period:
            previous, count = (chain[-1].place[1], chain[-1].count) if chain else (0, 0)
            count += sum((new is not None) - (old is not None) for old, new in changes.values())
            chain.append(Delta(place, previous, count, changes))


def effect(tables: Tables, player: int, period: str) -> Standing | None:
    """A player's entry in a period, recomputed from its effective rows."""
    score, reached_us, accepted = 0, 0, False
    for action_id, of, seq in tables.ledger:
        if of != player or seq != 0:
            continue
        row = tables.effective(action_id, player)
        assert row is not None
        if row.verdict == "accepted" and not (period == "recent" and row.received_us < tables.edge_us):
            accepted = True
            score, reached_us = score + row.points, max(reached_us, row.received_us)
    return (score, reached_us) if accepted else None
