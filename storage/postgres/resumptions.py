"""Telling a partition that had stopped to go on, and the record of it.

Going back is always safe: what is judged already is found by its key. Going ahead leaves records
unjudged for good, and says which.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from storage.postgres import arrays
from storage.postgres.ledger import OpenBatch, Progress


@dataclass(frozen=True, slots=True)
class Resumption:
    """One partition of one log, where it stood and where it goes on."""

    resumption: int
    log: int
    partition: int
    was: int
    from_offset: int

    @property
    def lost(self) -> int:
        """How many records are never judged: those from `was` to before `from_offset`."""
        return max(0, self.from_offset - self.was)


def resume(batch: OpenBatch, partition: int, seen: Progress, to: Progress) -> Resumption | None:
    """Let the partition go on at `to`, if it still stands where it was `seen`; None if it does not.

    In an exclusive transaction. What was set aside or tried from there on may be judged again.
    """
    row = batch.execute(
        "SELECT log, next_offset, fingerprint FROM progress WHERE partition = %s FOR UPDATE", (partition,)
    ).fetchone()
    if row is None or Progress(*row) != seen:
        return None
    batch.move_progress({partition: to})
    for table in ("set_aside", "attempts"):
        batch.execute(
            f"DELETE FROM {table} WHERE log = %s AND partition = %s AND record_offset >= %s",
            (to.log, partition, to.next_offset),
        )
    made = batch.execute(
        "INSERT INTO resumptions (log, partition, was, from_offset, batch)"
        " VALUES (%s, %s, %s, %s, nextval('batches'))"
        " RETURNING resumption, log, partition, was, from_offset",
        (to.log, partition, seen.next_offset, to.next_offset),
    ).fetchone()
    assert made is not None
    return Resumption(*made)


def last(batch: OpenBatch) -> int:
    """The number of the latest one, 0 before there is any."""
    row = batch.execute("SELECT coalesce(max(resumption), 0) FROM resumptions").fetchone()
    return 0 if row is None else int(row[0])


def since(batch: OpenBatch, resumption: int, partitions: Iterable[int]) -> list[Resumption]:
    """Those of these partitions after that one, in order."""
    rows = batch.execute(
        "SELECT resumption, log, partition, was, from_offset FROM resumptions"
        " WHERE resumption > %s AND partition = ANY(%s::bigint[]) ORDER BY resumption",
        (resumption, arrays.int8s(sorted(partitions))),
    ).fetchall()
    return [Resumption(*row) for row in rows]
