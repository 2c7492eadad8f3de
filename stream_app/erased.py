"""Records of people who were erased: they count for nobody, and bring no name back.

What is kept of such a person is a keyed hash of the user id (`storage.postgres.epochs`). A record of
theirs is set aside, so that no row of the ledger and no player leads to them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from storage.postgres.epochs import user_hash
from storage.postgres.ledger import OpenBatch
from stream_app.judging import Incoming

REASON = "erased"


class Erased:
    """Who was erased, as far as a worker has to ask."""

    def __init__(self, key: Callable[[], bytes]) -> None:
        """`key` is asked for once somebody was erased."""
        self._key_of = key
        self._key: bytes | None = None
        self._any = False

    def look(self, batch: OpenBatch) -> None:
        """See whether anybody was erased; to be called when the fence has moved."""
        row = batch.execute("SELECT EXISTS (SELECT FROM erased_users)").fetchone()
        self._any = row is not None and bool(row[0])

    def among(self, batch: OpenBatch, user_ids: Iterable[str]) -> set[str]:
        """Which of these user ids were erased."""
        if not self._any:
            return set()
        if self._key is None:
            self._key = self._key_of()
        key = self._key
        hashes = {user_hash(key, user_id): user_id for user_id in user_ids}
        if not hashes:
            return set()
        rows = batch.execute(
            "SELECT user_hash FROM erased_users WHERE user_hash = ANY(%s::bytea[])", (list(hashes),)
        ).fetchall()
        return {hashes[bytes(row[0])] for row in rows}


def judged_before(batch: OpenBatch, incoming: Sequence[Incoming]) -> set[str]:
    """Which of these actions were judged of somebody who was erased since."""
    rows = batch.execute(
        "SELECT l.action_id FROM ledger l JOIN players p USING (player)"
        " WHERE l.action_id = ANY(%s::text[]) AND p.erased_at IS NOT NULL",
        ([item.record.action_id for item in incoming],),
    ).fetchall()
    return {row[0] for row in rows}
