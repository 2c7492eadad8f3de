"""The smallest follower: a dictionary in memory. What the suite is held against, right and wrong."""

from __future__ import annotations

from typing import Any

import psycopg

from storage.followers import At
from storage.postgres import arrays, connections, deltas
from stream_app.hand import Hand
from tests.storage.followers_conformance import PERIOD, Fault, Seen, Subject


class Shelf:
    """What all followers of one subject share, as they would share a Redis."""

    def __init__(self) -> None:
        self.at: At | None = None
        self.entries: dict[str, tuple[int, int, str]] = {}
        self.count = 0
        self.earlier: tuple[At | None, dict[str, tuple[int, int, str]], int] | None = None


class Reference:
    """Steps if it stands where the ledger says, else builds. `forgets` leaves one clause out."""

    name = "reference"

    def __init__(self, url: str, shelf: Shelf, forgets: str = "") -> None:
        self._url, self._shelf, self._forgets = url, shelf, forgets

    def position(self) -> At | None:
        return self._shelf.at

    def step(self) -> bool:
        shelf = self._shelf
        whole = len(shelf.entries) == shelf.count or self._forgets == "count"
        if shelf.at is None or not whole:
            self.build()
            return True
        with self._cursor() as cursor:
            known = deltas.link_at(cursor, PERIOD, shelf.at.revision)
            links = deltas.links_after(cursor, PERIOD, shelf.at.revision)
            if self._forgets != "digest" and (known is None or known.at != shelf.at):
                self.build()
                return True
            if not links:
                return False
            changes = deltas.changes_between(cursor, PERIOD, shelf.at.revision, links[-1].at.revision)
        shelf.earlier = (shelf.at, dict(shelf.entries), shelf.count)
        for change in changes:
            if change.new_score is None or change.new_reached_us is None:
                shelf.entries.pop(change.user_id, None)
            elif self._forgets != "names" or change.old_score is None:
                shelf.entries[change.user_id] = (
                    change.new_score, change.new_reached_us, change.username or change.user_id,
                )  # fmt: skip
        last = links[0] if self._forgets == "position" else links[-1]
        shelf.at, shelf.count = last.at, links[-1].count
        return True

    def build(self) -> None:
        with self._cursor() as cursor:
            head = deltas.head(cursor, PERIOD)
            rows, _ = deltas.entries_page(cursor, PERIOD, 0, 10_000)
        assert head is not None
        shelf = self._shelf
        shelf.at, shelf.count = head.at, head.count
        shelf.entries = {
            row.user_id: (row.score, row.reached_us, row.username or row.user_id) for row in rows
        }

    def _cursor(self) -> Any:
        return _Cursor(self._url)


class _Cursor:
    def __init__(self, url: str) -> None:
        self._connection = connections.connect(url, name="reference")
        arrays.register(self._connection.adapters)

    def __enter__(self) -> psycopg.Cursor[tuple[Any, ...]]:
        return self._connection.cursor(binary=True)

    def __exit__(self, *_: object) -> None:
        self._connection.close()


class ReferenceSubject(Subject):
    def __init__(self, url: str, forgets: str = "") -> None:
        super().__init__(url)
        self._shelf, self._forgets = Shelf(), forgets

    def follower(self, hand: Hand | None = None) -> Reference:
        return Reference(self.url, self._shelf, self._forgets)

    def seen(self) -> Seen | None:
        shelf = self._shelf
        if shelf.at is None or len(shelf.entries) != shelf.count:
            return None
        return Seen(shelf.at, dict(shelf.entries))

    def faults(self) -> dict[str, Fault]:
        return {
            "lost": Fault(self._lose),
            "stale": Fault(self._put_back),
            "one entry lost": Fault(self._lose_one),
            "another digest": Fault(self._another_digest, "step"),
        }

    def _lose(self) -> None:
        self._shelf.__init__()  # type: ignore[misc]

    def _put_back(self) -> None:
        if self._shelf.earlier is not None:
            at, entries, count = self._shelf.earlier
            self._shelf.at, self._shelf.entries, self._shelf.count = at, dict(entries), count

    def _lose_one(self) -> None:
        if self._shelf.entries:
            self._shelf.entries.popitem()

    def _another_digest(self) -> None:
        """The copy of a history that is no more; nobody may read it as that of this one."""
        if self._shelf.at is not None:
            self._shelf.entries.clear()
            self._shelf.at = At(self._shelf.at.epoch, self._shelf.at.revision, "00" * 32)
            self._shelf.count = 0
