"""What this worker has just committed, for its followers, so that they need not read it back.

The same content as `storage.postgres.contents.read` gives for the revision; what is not here, or
no longer, is read there. Bounded; filled by the judging thread, read by the followers'.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

from core import words
from storage.followers import At
from storage.postgres import arrays
from storage.postgres.connections import Connection, schema_awaited
from storage.postgres.contents import Content, PeriodChange, PersonRow
from storage.postgres.deltas import Change, Link
from storage.postgres.ledger import Appended, DeltaColumns, Position
from stream_app.judging import Incoming, Person, Plan

MOST_REVISIONS: Final = 200
MOST_ROWS: Final = 20_000

COMING_S: Final = 0.5
"""Longest that anybody waits for the content of a revision just committed."""


def content_of(
    appended: Appended,
    plan: Plan,
    delta: DeltaColumns,
    incoming: Sequence[Incoming],
    people: Sequence[Person],
    introduced: Sequence[int],
) -> Content:
    """A stream revision's content, from what made it. `introduced` are players new or renamed."""
    position = appended.position
    at = At(position.epoch, position.revision, position.digest.hex())
    content = Content(at, appended.committed_us)
    content.rows = plan.rows.rows
    content.traceparent = next((item.traceparent for item in incoming if item.traceparent), None)
    who: dict[int, tuple[str, Person]] = {
        person.player: (item.record.user_id, person) for item, person in zip(incoming, people, strict=True)
    }
    for player in introduced:
        user_id, person = who[player]
        content.people.append(PersonRow(person.pid, user_id, person.username, person.hidden))
    if delta.period in appended.links:
        previous, count = appended.links[delta.period]
        board, window = delta.period.split(":", 1)
        changes = []
        for player, old_score, old_reached, new_score, new_reached in zip(
            arrays.present(delta.players),
            arrays.values(delta.old_scores),
            arrays.values(delta.old_reached),
            arrays.values(delta.new_scores),
            arrays.values(delta.new_reached),
            strict=True,
        ):
            user_id, person = who[player]
            changes.append(
                Change(
                    player,
                    user_id,
                    person.username,
                    not person.hidden,
                    old_score,
                    old_reached,
                    new_score,
                    new_reached,
                )
            )
        content.periods.append(PeriodChange(board, window, Link(at, previous, count, len(changes)), changes))
    return content


class Hand:
    """The last revisions of this worker, by number and by each period's chain."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._expected: tuple[str, int, bytes] | None = None
        self._contents: dict[int, Content] = {}
        self._next: dict[tuple[str, int], PeriodChange] = {}
        self._rows = 0

    def prove(self, connection: Connection) -> None:
        """Forget what the ledger behind this connection has not got: it may be a restored one."""
        with self._lock:
            revisions = list(self._contents)
        if not revisions:
            return
        with schema_awaited():
            digests: dict[int, str] = dict(
                connection.execute(
                    "SELECT revision, encode(digest, 'hex') FROM revisions WHERE revision = ANY(%s)",
                    (revisions,),
                ).fetchall()
            )
        with self._lock:
            for revision in revisions:
                content = self._contents.get(revision)
                if content is not None and digests.get(revision) != content.at.digest:
                    self._forget(revision)

    def expect(self, position: Position) -> None:
        """This revision is about to be committed; its content comes right after."""
        with self._lock:
            self._expected = position.epoch, position.revision, position.digest

    def put(self, content: Content) -> None:
        with self._lock:
            self._expected = None
            self._lock.notify_all()
            if content.at.revision <= max(self._contents, default=0):
                # Numbers that come again are those of another history: what is here was lost with its own.
                self._contents.clear()
                self._next.clear()
                self._rows = 0
            self._contents[content.at.revision] = content
            self._rows += len(content.rows)
            for part in content.periods:
                self._next[words.period_id(part.board, part.window), part.link.previous] = part
            while len(self._contents) > MOST_REVISIONS or self._rows > MOST_ROWS:
                self._forget(min(self._contents))

    def _forget(self, revision: int) -> None:
        content = self._contents.pop(revision)
        self._rows -= len(content.rows)
        for part in content.periods:
            self._next.pop((words.period_id(part.board, part.window), part.link.previous), None)

    def content(self, revision: int) -> Content | None:
        """The revision, if this worker made it lately, or is committing it this very moment."""
        with self._lock:
            if self._expected is not None and self._expected[1] == revision:
                self._await_expected()
            return self._contents.get(revision)

    def has(self, revision: int) -> bool:
        """Whether this worker made it lately, or is committing it this very moment."""
        with self._lock:
            expected = self._expected is not None and self._expected[1] == revision
            return expected or revision in self._contents

    def held(self, at: At) -> Content | None:
        """The content of a revision that the ledger shows, if this worker made it lately."""
        with self._lock:
            if self._expected == (at.epoch, at.revision, bytes.fromhex(at.digest)):
                self._await_expected()
            content = self._contents.get(at.revision)
        return content if content is not None and content.at == at else None

    def link_after(self, period: str, revision: int) -> PeriodChange | None:
        """The period's next change after one of its revisions, if this worker made it lately."""
        with self._lock:
            if self._expected is not None and self._expected[1] > revision:
                self._await_expected()
            return self._next.get((period, revision))

    def _await_expected(self) -> None:
        """Wait for what is being committed: the commit wakes the followers before `put` is called.

        Otherwise they would read back what is here a moment later, and their records would lack
        the requests' traces, which only this worker knows.
        """
        if not self._lock.wait_for(lambda: self._expected is None, COMING_S):
            # It was not committed after all.
            self._expected = None
