"""The leading entries of a period, kept up by what changes.

Holds the best `capacity` entries at the most, and knows when it no longer can say who leads:
after enough of the leaders fell or left, it has to be loaded again.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import Final

from core.ranking import KEY_BYTES, Entry, member

CAPACITY: Final = 100


class Leading:
    """Entries in rank order: all of a short period, the best of a long one.

    Every entry that is not held ranks after every one that is.
    """

    def __init__(self, entries: Iterable[Entry], count: int, *, capacity: int = CAPACITY) -> None:
        """`entries` are the best `capacity` of the period's `count`."""
        self._capacity = capacity
        self._members = sorted(member(e.score, e.reached_at_us, e.user_id) for e in entries)
        self._entries = {e.user_id: e for e in entries}
        self._complete = len(self._members) >= count or len(self._members) < capacity
        self.count = count

    def change(self, user_id: str, after: Entry | None) -> None:
        """A player's entry is now `after`; None: it is gone."""
        # All that is not held ranks after this one, and still does when it leaves.
        last = self._members[-1] if self._members else b""
        held = self._entries.pop(user_id, None)
        if held is not None:
            raw = member(held.score, held.reached_at_us, user_id)
            del self._members[bisect_left(self._members, raw)]
        if after is None:
            return
        raw = member(after.score, after.reached_at_us, user_id)
        if self._complete or raw < last:
            insort(self._members, raw)
            self._entries[user_id] = after
            if len(self._members) > self._capacity:
                del self._entries[self._members.pop()[KEY_BYTES:].decode()]
                self._complete = False

    def top(self, limit: int) -> list[Entry] | None:
        """The first `limit` entries in rank order; None if they cannot be known from here."""
        if not self._complete and len(self._members) < min(limit, self.count):
            return None
        return [self._entries[raw[KEY_BYTES:].decode()] for raw in self._members[:limit]]
