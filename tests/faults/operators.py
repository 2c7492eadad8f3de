"""What an operator does to the ledger: erases people, decides about actions.

No call of the services does either yet, so it is done here over a writer's connection, in the one
transaction that it takes (`Ledger.exclusive`). Postgres may be away or in the middle of dying: it is
done again until it is known to be done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, LiteralString

import msgspec

from core import digest
from core.errors import Unavailable
from core.receipts import Reason
from storage.postgres import epochs
from storage.postgres.ledger import Ledger, OpenBatch
from tests.faults.histories import MAIN
from tests.faults.processes import until
from tests.faults.rig import ERASURE_SECRET, Rig

REVERSED = Reason("reversed", "operator")


def erase(rig: Rig, user: str) -> None:
    """Erase one person, under the key that the stream knows."""
    pid = _told(rig, "SELECT pid::text FROM players WHERE user_id = %s", user)
    _done(rig, lambda ledger: epochs.erase(ledger, ERASURE_SECRET.encode(), [pid]))
    assert rig.one("SELECT erased_at IS NOT NULL FROM players WHERE pid = %s", (pid,))


def decide(rig: Rig, user: str, action: str, verdict: str) -> int:
    """Accept or reject an action by hand, whatever was said of it before: the number of the new row."""
    seq = int(
        _told(
            rig,
            "SELECT max(seq) + 1 FROM ledger JOIN players USING (player)"
            " WHERE user_id = %s AND action_id = %s",
            user,
            action,
        )
    )

    def add(ledger: Ledger) -> None:
        with ledger.exclusive() as batch:
            _add_decision(batch, user, action, seq, verdict)

    _done(rig, add)
    return seq


def _add_decision(batch: OpenBatch, user: str, action: str, seq: int, verdict: str) -> None:
    row = batch.execute(
        "SELECT player, pid::text, l.seq, type, verdict, points, catalogue_version,"
        "  (extract(epoch FROM occurred_at) * 1000000)::bigint,"
        "  (extract(epoch FROM received_at) * 1000000)::bigint"
        " FROM ledger l JOIN players USING (player) WHERE user_id = %s AND action_id = %s"
        " ORDER BY l.seq DESC LIMIT 1",
        (user, action),
    ).fetchone()
    assert row is not None, (user, action)
    player, pid, last, type_, was, points, version, occurred_us, received_us = row
    if last == seq:
        # A commit whose reply was lost.
        return
    number = batch.next_batch()
    reason = None if verdict == "accepted" else msgspec.json.encode(REVERSED).decode()
    batch.execute(
        "INSERT INTO ledger (player, batch, points, occurred_at, received_at, seq, backfill, action_id, kind,"
        "  type, verdict, catalogue_version, fingerprint, reason)"
        " SELECT player, %s, points, occurred_at, received_at, %s, backfill, action_id, 'decision', type, %s,"
        "  catalogue_version, fingerprint, %s::jsonb"
        " FROM ledger WHERE player = %s AND action_id = %s AND seq = %s",
        (number, seq, verdict, reason, player, action, last),
    )
    change = points * ((verdict == "accepted") - (was == "accepted"))
    deltas = [batch.add_points(MAIN, number, [player], [change], [received_us])] if change else []
    leaf = digest.row_leaf(
        pid, action, seq, "decision", type_, verdict, points, occurred_us, received_us, version
    )
    batch.append(number, "operator", [leaf], deltas)


def _told(rig: Rig, query: LiteralString, *arguments: object) -> Any:
    """What Postgres says, once it is there to say it."""
    rows: list[Any] = []

    def ask(ledger: Ledger) -> None:
        with ledger.looking() as cursor:
            rows.append(cursor.execute(query, arguments).fetchone())

    _done(rig, ask)
    assert rows[-1] is not None, arguments
    return rows[-1][0]


def _done(rig: Rig, step: Callable[[Ledger], object]) -> None:
    """Do it until Postgres is known to have it."""
    ledger = Ledger(rig.postgres, name="operator")

    def tried() -> bool:
        try:
            step(ledger)
        except Unavailable:
            time.sleep(0.2)
            return False
        return True

    try:
        until(tried, within_s=90, what="Postgres to take what an operator does")
    finally:
        ledger.close()
