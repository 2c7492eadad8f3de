"""Counting revision by revision, and holding what others showed against the count at that revision.

*When a revision is complete.* Records of one revision stand on many partitions, are sent side by
side, and after a failure are sent again; so no record on any topic proves that another one is
there. The publisher's cursor does: it is saved at revision c only after the brokers have confirmed
every record up to c. So whoever reads the cursor first, then asks where each partition ends, and
has then read to those ends, has read every record of every revision up to c. Such a `Horizon` is
the only thing that lets the recount go on; revisions up to it are applied one by one and compared
in between, and nothing is ever compared at a revision that is not complete.

*When a difference is one.* Whoever reads a revision back late leaves out people who were hidden or
erased since. So a difference is held until everything is counted that the ledger held when it was
found, and dropped if anybody was hidden or erased in between; what is really wrong stays wrong.

Until the first horizon is reached, and when more waits than may be kept, records are folded as
they come, without comparing. A record that comes below the horizon says nothing new, or something
is wrong.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from auditor import comparing, records
from auditor.comparing import Copy, Page
from auditor.records import Judged, Person, Publication
from auditor.recount import Recount, Wrong
from auditor.report import Report

MOST_WAITING: Final = 200_000
"""Records and lines of records that may wait for their revision to be complete."""

MOST_SEEN: Final = 1_000
"""Pages, frames and copies that may wait for their revision."""

MOST_DIGESTS: Final = 50_000
MOST_PUBLICATIONS: Final = 500

BEYOND: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Horizon:
    """Everything up to `revision` stands on the topics before `ends`: (topic, partition) → offset.

    `ledger_epoch` and `ledger_end` are the ledger's last position. Both were asked for at once, after
    `asked_s`, over a connection opened at `connected_s`, and the ends after both.
    """

    epoch: str
    revision: int
    ledger_epoch: str
    ledger_end: int
    asked_s: float
    connected_s: float
    ends: Mapping[tuple[str, int], int]


@dataclass(frozen=True, slots=True)
class Seen:
    """What somebody showed as the board at (epoch, revision), seen at `seen_s`."""

    what: str
    place: str
    epoch: str
    revision: int
    shown: Page | Copy
    seen_s: float


@dataclass(slots=True)
class _Suspect:
    """A difference that is not counted yet; `until` is the revision up to which people are awaited."""

    revision: int
    wrong: Wrong
    found_s: float
    doubts_raised: int
    until: int | None = None


@dataclass(slots=True)
class _Waiting:
    """The records of one revision."""

    judged: list[Judged] = field(default_factory=list)
    people: list[tuple[str, Person | None, float]] = field(default_factory=list)
    publications: list[Publication] = field(default_factory=list)


class Audit:
    """One history: from the start of the topics on, until they or the history change."""

    def __init__(
        self, report: Report, epoch: str, until: int, continues: Mapping[str, tuple[str, int]]
    ) -> None:
        """`until` is a revision that is complete on the topics; `continues` what is known of
        histories that go on from an older one: epoch → (epoch before, its last revision that counts).
        """
        self.epoch, self.at, self.recount = epoch, 0, Recount()
        self.continues = dict(continues)
        self.counted = 0
        self._report = report
        self._fold_until, self._gathering = until, True
        self._floor: int | None = None
        self._gathered_s = 0.0
        self._cuts = _cuts(epoch, continues)
        self._waiting: dict[int, _Waiting] = {}
        self._size = 0
        self._seen: list[tuple[int, int, Seen]] = []
        self._order = itertools.count()
        self._digests: dict[int, str] = {}
        self._publications: dict[int, Publication] = {}
        self._suspects: dict[tuple[str, str], _Suspect] = {}
        self._last_publication: int | None = None
        self._lost: tuple[float, int | None] | None = None

    @property
    def is_full(self) -> bool:
        """Whether no more records may be read until there is a horizon."""
        return self._size >= MOST_WAITING

    # Records -------------------------------------------------------------------------------

    def take_judged(self, value: bytes | None) -> None:
        """A record of `action.judged`."""
        try:
            record = records.read_judged(value or b"")
            if record.continues is not None:
                self.continues[record.epoch] = record.continues
                return
            if record.revision > self._cuts.get(record.epoch, 0):
                return
            if record.revision > self._fold_until:
                self._wait(record.revision, 1).judged.append(record)
            else:
                self._fold(record)
        except records.Unreadable as error:
            self._unreadable(records.JUDGED, error)

    def take_person(self, key: str, value: bytes | None, event: tuple[str, int] | None, now_s: float) -> None:
        """A record of `player`; `event` is its epoch and revision, None where it does not tell."""
        try:
            person = None if value is None else records.read_person(value)
        except records.Unreadable as error:
            self._unreadable(records.PLAYER, error)
            return
        epoch, revision = event or (self.epoch, self._fold_until)
        if revision > self._cuts.get(epoch, 0):
            # What a void history said of somebody may still be all that the topic says of them.
            self.recount.person(key, person, 0, math.inf)
        elif revision > self._fold_until:
            self._wait(revision, 1).people.append((key, person, now_s))
        else:
            self.recount.person(key, person, revision, now_s)

    def take_publication(self, key: bytes | None, value: bytes | None) -> None:
        """A record of `board.changed`, of any period."""
        try:
            record = records.read_publication(value or b"")
        except records.Unreadable as error:
            self._unreadable(records.BOARD_CHANGED, error)
            return
        if record.revision > self._cuts.get(record.epoch, 0):
            return
        self._check_digest(record.revision, record.digest)
        if key != records.MAIN:
            return
        if record.revision > self._fold_until:
            size = 1 + len(record.changed) + len(record.top)
            self._wait(record.revision, size).publications.append(record)
        elif self._gathering:
            self._last_publication = max(self._last_publication or 0, record.revision)
        else:
            self._repeated(record)

    def publications_lost(self) -> None:
        """Some records of `board.changed` are gone before they were read."""
        self._lost = time.monotonic(), None

    def _wait(self, revision: int, size: int) -> _Waiting:
        self._size += size
        waiting = self._waiting.get(revision)
        if waiting is None:
            waiting = self._waiting[revision] = _Waiting()
        return waiting

    def _fold(self, record: Judged) -> None:
        known = len(self.recount.actions)
        wrong = self.recount.judged(record)
        if not self._gathering and len(self.recount.actions) > known:
            wrong = Wrong("late", f"{record.player} {record.action_id}", self.at, record.revision)
        if wrong is not None:
            self._report.mismatch("action", record.revision, wrong)

    def _unreadable(self, topic: str, error: Exception) -> None:
        self._report.mismatch("record", self.at, Wrong("unreadable", None, topic, str(error)))

    # Going on ------------------------------------------------------------------------------

    def catch_up(self, horizon: Horizon) -> None:
        """Too much waits: what is complete at the horizon is folded, and not compared."""
        self._fold_until, self._gathering, self._floor = horizon.revision, True, None
        for revision in sorted(r for r in self._waiting if r <= horizon.revision):
            waiting = self._take(revision)
            for key, person, now_s in waiting.people:
                self.recount.person(key, person, revision, now_s)
            for record in waiting.judged:
                self._count(record)
            if waiting.publications:
                self._last_publication = max(self._last_publication or 0, revision)
                self._report.skipped("publication", "too much waits")

    def advance(self, horizon: Horizon) -> None:
        """Everything before the horizon's ends has been taken."""
        if self._gathering:
            self.at, self._gathering = self._fold_until, False
            self._gathered_s = time.monotonic()
        for revision in sorted(r for r in self._waiting if r <= horizon.revision):
            self._apply(revision)
        self.at = self._fold_until = max(self.at, horizon.revision)
        if self._floor is None and horizon.asked_s > self._gathered_s:
            # What was read of people until then may have known of revisions up to here.
            self._floor = horizon.ledger_end
        self._forget_loss(horizon)
        self.recount.settle_doubts(horizon.asked_s, horizon.ledger_end, self.at)
        self._settle(self.at)
        self._confirm(horizon)
        self._beyond(horizon)

    def _forget_loss(self, horizon: Horizon) -> None:
        """What was lost was of revisions up to the ledger's end as asked for afterwards."""
        if self._lost is None:
            return
        since_s, until = self._lost
        if until is None and since_s < horizon.asked_s:
            self._lost = since_s, horizon.ledger_end
        elif until is not None and until <= self.at:
            self._lost = None

    def _take(self, revision: int) -> _Waiting:
        waiting = self._waiting.pop(revision)
        self._size -= len(waiting.judged) + len(waiting.people)
        self._size -= sum(1 + len(p.changed) + len(p.top) for p in waiting.publications)
        return waiting

    def _apply(self, revision: int) -> None:
        waiting = self._take(revision)
        if self._seen and (waiting.judged or waiting.people):
            self._settle(revision - 1)
        self.at = revision
        self.recount.touched.clear()
        for key, person, now_s in waiting.people:
            self.recount.person(key, person, revision, now_s)
        for record in waiting.judged:
            self._count(record)
        self._publication(revision, waiting.publications)

    def _count(self, record: Judged) -> None:
        try:
            wrong = self.recount.judged(record)
        except ValueError as error:
            self._unreadable(records.JUDGED, error)
            return
        self.counted += 1
        if wrong is not None:
            self._report.mismatch("action", record.revision, wrong)

    # Comparing -----------------------------------------------------------------------------

    def _may_compare(self, revision: int) -> bool:
        return self._floor is not None and revision >= self._floor

    def _publication(self, revision: int, found: list[Publication]) -> None:
        if not found:
            self._missing(revision)
            return
        first, *again = found
        last = self._last_publication
        if last is not None and self._lost is None:
            chain = None if first.previous == last else Wrong("previous", None, last, first.previous)
            self._report.compared("chain", "", revision, chain)
        self._last_publication = revision
        if self._may_compare(revision):
            try:
                wrong = comparing.publication(self.recount, first)
            except ValueError as error:
                wrong = Wrong("unreadable", None, "an instant", str(error))
            self._compared("publication", "", revision, wrong)
        else:
            self._report.skipped("publication", "people are not certain yet")
        self._publications[revision] = first
        if len(self._publications) > MOST_PUBLICATIONS:
            del self._publications[next(iter(self._publications))]
        for record in again:
            self._repeated(record)

    def _missing(self, revision: int) -> None:
        """No record of `board.changed` says what this revision did."""
        if self._last_publication is None or self._lost is not None or not self._may_compare(revision):
            return
        for player in sorted(self.recount.touched - self.recount.in_doubt()):
            if (entry := self.recount.entry(player)) is not None:
                wrong = Wrong("missing", self.recount.users[player], entry[0], None)
                self._compared("publication", "", revision, wrong)
                return

    def _repeated(self, record: Publication) -> None:
        before = self._publications.get(record.revision)
        if before is None:
            self._report.skipped("publication", "forgotten")
            return
        wrong = comparing.repeated(self.recount, before, record)
        self._compared("publication", f"repeat {record.revision}", record.revision, wrong)

    def _check_digest(self, revision: int, digest: str) -> None:
        known = self._digests.setdefault(revision, digest)
        if len(self._digests) > MOST_DIGESTS:
            del self._digests[next(iter(self._digests))]
        wrong = None if known == digest else Wrong("digest", None, known, digest)
        self._report.compared("digest", "", revision, wrong)

    def observe(self, seen: Seen) -> None:
        """Compare this when the recount is at its revision; never, if that is past."""
        if seen.epoch < self.epoch:
            self._report.skipped(seen.what, "of an older history")
            return
        heapq.heappush(self._seen, (seen.revision, next(self._order), seen))
        if len(self._seen) > MOST_SEEN:
            _, _, dropped = self._seen.pop()
            self._report.skipped(dropped.what, "too many wait")
        if not self._gathering:
            self._settle(self.at)

    def _settle(self, at: int) -> None:
        """Compare what was seen at revisions up to `at`, where the recount stands."""
        while self._seen and self._seen[0][0] <= at:
            revision, _, seen = heapq.heappop(self._seen)
            if seen.epoch != self.epoch or revision < self.recount.last_changed:
                self._report.skipped(seen.what, "overtaken")
            elif not self._may_compare(at):
                self._report.skipped(seen.what, "people are not certain yet")
            elif isinstance(seen.shown, Page):
                wrong = comparing.page(self.recount, seen.shown)
                self._compared(seen.what, seen.place, revision, wrong)
            else:
                self._copy(seen, seen.shown)

    def _copy(self, seen: Seen, shown: Copy) -> None:
        for place, wrong in (
            ("sizes", comparing.sizes(self.recount, shown)),
            (seen.place, comparing.page(self.recount, shown.page)),
            ("fields", comparing.fields(self.recount, shown)),
        ):
            self._compared(seen.what, place, seen.revision, wrong)
        known = self._digests.get(seen.revision)
        if known is not None:
            differs = None if known == shown.digest else Wrong("digest", None, known, shown.digest)
            self._report.compared("digest", "copy", seen.revision, differs)

    def _compared(self, what: str, place: str, revision: int, wrong: Wrong | None) -> None:
        if wrong is None:
            self._report.compared(what, place, revision, None)
        elif len(self._suspects) < MOST_SEEN:
            suspect = _Suspect(revision, wrong, time.monotonic(), self.recount.doubts_raised)
            self._suspects.setdefault((what, place), suspect)

    def _confirm(self, horizon: Horizon) -> None:
        """Count the differences that no hidden or erased person explains."""
        for (what, place), suspect in list(self._suspects.items()):
            if suspect.until is None:
                if suspect.found_s < horizon.asked_s:
                    suspect.until = horizon.ledger_end
            elif suspect.until <= self.at:
                del self._suspects[what, place]
                if suspect.doubts_raised == self.recount.doubts_raised:
                    self._report.compared(what, place, suspect.revision, suspect.wrong)
                else:
                    self._report.skipped(what, "people changed")

    def _beyond(self, horizon: Horizon) -> None:
        """Nobody may have shown a revision that the ledger, asked later, does not have.

        Not asked of what was seen before this connection: the ledger may have been restored since. Nor
        once it is in another epoch: what was lost is shown until everybody has gone over.
        """
        if horizon.ledger_epoch != self.epoch:
            return
        kept = []
        for entry in self._seen:
            revision, _, seen = entry
            asked_later = horizon.connected_s < seen.seen_s < horizon.asked_s
            if asked_later and revision > horizon.ledger_end and seen.epoch == self.epoch:
                wrong = Wrong("not_in_ledger", None, horizon.ledger_end, revision)
                self._report.mismatch("position", revision, wrong, place=seen.what)
            else:
                kept.append(entry)
        if len(kept) != len(self._seen):
            heapq.heapify(kept)
            self._seen = kept


def _cuts(epoch: str, continues: Mapping[str, tuple[str, int]]) -> dict[str, int]:
    """How far each epoch's records count in the history that this epoch names."""
    cuts = {epoch: BEYOND}
    while (before := continues.get(epoch)) is not None and before[0] not in cuts:
        epoch, cuts[before[0]] = before
    return cuts
