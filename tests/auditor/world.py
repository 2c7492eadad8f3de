"""A history by hand: revisions as the topics tell them, and the board after each, the slow way."""

from __future__ import annotations

import copy
import hashlib
import json
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from auditor.audit import Audit, Horizon, Seen
from auditor.comparing import Copy, Page, Shown
from auditor.records import MAIN
from auditor.recount import Wrong
from auditor.report import Report

EPOCH = "01aaaaaaaaaaaaaaaaaaaaaaaa"
LATER_EPOCH = "01bbbbbbbbbbbbbbbbbbbbbbbb"
LATEST_EPOCH = "01cccccccccccccccccccccccc"


def instant(us: int) -> str:
    """The first day of 2026 and some µs."""
    seconds, fraction = divmod(us, 1_000_000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"2026-01-{1 + hours // 24:02}T{hours % 24:02}:{minutes:02}:{seconds:02}.{fraction:06}Z"


def pid(user: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, user))


class Recorder(Report):
    """A report that remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.mismatches: list[tuple[str, int, Wrong]] = []
        self.made: list[tuple[str, int]] = []
        self.not_made: list[str] = []

    def compared(self, what: str, place: str, revision: int, wrong: Wrong | None) -> None:
        self.made.append((what, revision))
        super().compared(what, place, revision, wrong)

    def mismatch(self, what: str, revision: int, wrong: Wrong, **more: Any) -> None:
        self.mismatches.append((what, revision, wrong))

    def skipped(self, what: str, why: str) -> None:
        self.not_made.append(what)


@dataclass
class Revision:
    """What one revision puts on the topics; `people` are (player, value or None)."""

    number: int
    judged: list[dict[str, Any]] = field(default_factory=list)
    people: list[tuple[str, dict[str, Any] | None]] = field(default_factory=list)
    publication: dict[str, Any] | None = None
    epoch: str = EPOCH
    continues: tuple[str, int] | None = None
    """Where the history goes on from, of the first revision of an epoch."""
    board: list[tuple[str, int, str]] = field(default_factory=list)
    """(user id, score, reached at) in rank order, after it."""


@dataclass
class World:
    """A ledger that is counted from all its actions at each revision."""

    epoch: str = EPOCH
    revisions: list[Revision] = field(default_factory=list)
    clock_us: int = 0
    _acts: list[tuple[tuple[Any, ...], ...]] = field(default_factory=list)
    _effects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    _people: dict[str, dict[str, Any]] = field(default_factory=dict)
    _erased: set[str] = field(default_factory=set)
    _before: dict[str, tuple[int, str]] = field(default_factory=dict)
    _previous: int = 0

    # Doing ---------------------------------------------------------------------------------

    def revise(self, *acts: tuple[Any, ...]) -> Revision:
        """One revision: ("act", user, action id, points[, verdict]), ("decide", user, action id,
        verdict[, points]), ("name", user, name), ("hide", user, hidden), ("erase", user)."""
        revision = Revision(len(self.revisions) + 1, epoch=self.epoch)
        for kind, user, *rest in acts:
            getattr(self, f"_{kind}")(revision, user, *rest)
        return self._appended(revision, acts)

    def restored(self, number: int, epoch: str = LATER_EPOCH) -> World:
        """This ledger put back to what it was at a revision, and the first revision of a new epoch.

        Whoever comes afterwards is a player of their own, also where they had come before.
        """
        world = World()
        for before, acts in zip(self.revisions[:number], self._acts, strict=False):
            if before.continues is None:
                world.epoch = before.epoch
                world.revise(*acts)
            else:
                world._begin(before.epoch)
        world._begin(epoch)
        return world

    def _begin(self, epoch: str) -> Revision:
        continues, self.epoch = (self.epoch, len(self.revisions)), epoch
        return self._appended(Revision(continues[1] + 1, epoch=epoch, continues=continues), ())

    def _appended(self, revision: Revision, acts: tuple[tuple[Any, ...], ...]) -> Revision:
        self.revisions.append(revision)
        self._acts.append(acts)
        board = self.count()
        revision.board = sorted(board.values(), key=lambda e: (-e[1], e[2], e[0].encode()))
        revision.publication = self._publication(revision, board)
        return revision

    def _act(
        self, revision: Revision, user: str, action_id: str, points: int, verdict: str = "accepted"
    ) -> None:
        if user not in self._people:
            player = pid(user if self.epoch == EPOCH else f"{user} {self.epoch}")
            self._people[user] = {"player": player, "user_id": user, "username": user, "hidden": False}
            revision.people.append((player, dict(self._people[user])))
        self.clock_us += 7
        record = {
            "player": self._people[user]["player"],
            "action_id": action_id,
            "type": "client_points",
            "verdict": verdict,
            "points": points,
            "occurred_at": instant(self.clock_us),
            "received_at": instant(self.clock_us),
            "catalogue_version": "v",
            "epoch": self.epoch,
            "revision": revision.number,
        }
        self._effects[user, action_id] = record
        revision.judged.append(record)

    def _decide(
        self, revision: Revision, user: str, action_id: str, verdict: str, points: int | None = None
    ) -> None:
        before = self._effects[user, action_id]
        record = before | {
            "verdict": verdict,
            "points": before["points"] if points is None else points,
            "revision": revision.number,
            "decision": before.get("decision", 0) + 1,
        }
        self._effects[user, action_id] = record
        revision.judged.append(record)

    def _name(self, revision: Revision, user: str, name: str) -> None:
        self._people[user]["username"] = name
        revision.people.append((self._people[user]["player"], dict(self._people[user])))

    def _hide(self, revision: Revision, user: str, hidden: bool) -> None:
        self._people[user]["hidden"] = hidden
        revision.people.append((self._people[user]["player"], dict(self._people[user])))

    def _erase(self, revision: Revision, user: str) -> None:
        self._erased.add(user)
        revision.people.append((self._people[user]["player"], None))

    # Counting ------------------------------------------------------------------------------

    def count(self) -> dict[str, tuple[str, int, str]]:
        """user id → (user id, score, reached at) of everybody who is shown."""
        board: dict[str, tuple[str, int, str]] = {}
        for user, person in self._people.items():
            if person["hidden"] or user in self._erased:
                continue
            good = [r for (of, _), r in self._effects.items() if of == user and r["verdict"] == "accepted"]
            if good:
                with_points = [r["received_at"] for r in good if r["points"]]
                reached = max(with_points) if with_points else good[0]["received_at"]
                board[user] = (user, sum(r["points"] for r in good), reached)
        return board

    def _publication(
        self, revision: Revision, board: dict[str, tuple[str, int, str]]
    ) -> dict[str, Any] | None:
        named = {r["user_id"] for r in self._people.values() if (r["player"], r) in revision.people}
        changed = [
            self._line(user, board.get(user))
            for user in sorted(set(board) | set(self._before) | named)
            if board.get(user) != self._before.get(user) or (user in named and user in board)
        ]
        self._before = dict(board)
        if not changed and revision.continues is None:
            return None
        record = {
            "board": "main",
            "window": "all-time",
            "epoch": self.epoch,
            "revision": revision.number,
            "previous": self._previous,
            "digest": hashlib.sha256(f"{self.epoch}{revision.number}".encode()).hexdigest(),
            "count": len(board),
            "changed": changed,
            "top": [
                {"rank": rank, "user_id": user, "username": user, "score": score, "reached_at": reached}
                for rank, (user, score, reached) in enumerate(revision.board[:10], 1)
            ],
        }
        self._previous = revision.number
        return record

    def _line(self, user: str, entry: tuple[str, int, str] | None) -> dict[str, Any]:
        score, reached = (None, None) if entry is None else entry[1:]
        return {"user_id": user, "username": user, "score": score, "reached_at": reached}

    # Showing -------------------------------------------------------------------------------

    @property
    def last(self) -> Revision:
        return self.revisions[-1]

    def page(
        self,
        at: Revision | None = None,
        *,
        start: int = 1,
        limit: int = 10,
        what: str = "page",
        seen_s: float = 0,
    ) -> Seen:
        """What a right page shows at a revision."""
        revision = at or self.last
        lines = revision.board[start - 1 : start - 1 + limit]
        entries = [
            Shown(user, score, micros(reached), rank)
            for rank, (user, score, reached) in enumerate(lines, start)
        ]
        shown = Page(start, entries, len(revision.board), limit)
        return Seen(what, str(start), self.epoch, revision.number, shown, seen_s)

    def read_late(self, revision: Revision, since: Revision) -> dict[str, Any] | None:
        """A revision's publication made after another one: without those who were hidden until then."""
        if revision.publication is None:
            return None
        shown = {player: True for each in self.revisions[: since.number] for player, _ in each.people}
        for each in self.revisions[: since.number]:
            for player, person in each.people:
                shown[player] = person is not None and not person["hidden"]
        publication = copy.deepcopy(revision.publication)
        for line in publication["changed"]:
            if not shown[self._people[line["user_id"]]["player"]]:
                line["score"] = line["reached_at"] = None
        lines = [line for line in revision.board if shown[self._people[line[0]]["player"]]]
        publication["top"] = [
            {"rank": rank, "user_id": user, "username": user, "score": score, "reached_at": reached}
            for rank, (user, score, reached) in enumerate(lines[:10], 1)
        ]
        return publication

    def copy(self) -> Seen:
        """What a right copy in Redis holds now."""
        board, page = self.last.board, self.page(limit=100)
        assert isinstance(page.shown, Page)
        assert self.last.publication is not None
        size = len(board)
        held: dict[str, tuple[int, int] | None] = {user: (score, micros(at)) for user, score, at in board}
        shown = Copy(self.last.publication["digest"], size, size, size, Page(1, page.shown.entries), held)
        return Seen("copy", "1", self.epoch, self.last.number, shown, 0.0)


def micros(text: str) -> int:
    """µs since 1970."""
    since = datetime.fromisoformat(text) - datetime.fromisoformat("1970-01-01T00:00:00+00:00")
    return since // timedelta(microseconds=1)


def encoded(value: Any) -> bytes | None:
    return None if value is None else json.dumps(value).encode()


def take(audit: Audit, revision: Revision, *, now_s: float = 0.0) -> None:
    """Hand on everything that a revision put on the topics."""
    if revision.continues is not None:
        begins = {"epoch": revision.epoch, "revision": revision.number, "continues": revision.continues}
        audit.take_judged(encoded(begins))
    for player, person in revision.people:
        audit.take_person(player, encoded(person), (revision.epoch, revision.number), now_s)
    for record in revision.judged:
        audit.take_judged(encoded(record))
    if revision.publication is not None:
        audit.take_publication(MAIN, encoded(revision.publication))


def horizon(
    revision: int,
    *,
    asked_s: float,
    ledger_end: int | None = None,
    epoch: str = EPOCH,
    ledger_epoch: str | None = None,
) -> Horizon:
    return Horizon(epoch, revision, ledger_epoch or epoch, ledger_end or revision, asked_s, -1.0, {})


class Watch:
    """An audit of a world: what is taken, how far it goes, and what it says."""

    def __init__(
        self, world: World, *, until: int = 0, continues: dict[str, tuple[str, int]] | None = None
    ) -> None:
        self.world, self.report = world, Recorder()
        self.audit = Audit(self.report, world.epoch, until, continues or {})
        self.now_s = 1e12
        for revision in world.revisions[:until]:
            take(self.audit, revision)
        self.go_on(until)
        self.go_on(until)

    def go_on(self, until: int | None = None, *, ledger_end: int | None = None) -> None:
        """Reach a horizon, asked for after everything that was taken."""
        self.now_s += 1.0
        revision = self.world.last.number if until is None and self.world.revisions else until or 0
        self.audit.advance(
            horizon(revision, asked_s=self.now_s, ledger_end=ledger_end, epoch=self.world.epoch)
        )

    def take_rest(self) -> None:
        """Everything after where the audit stands, and the horizon that covers it."""
        for revision in self.world.revisions[self.audit.at :]:
            take(self.audit, revision)
        self.go_on()

    @property
    def wrong(self) -> list[tuple[str, int, str, str | None]]:
        """(what, revision, kind, user) of each mismatch, all of them confirmed."""
        for _ in range(2):
            self.go_on(self.audit.at)
        return [(what, at, wrong.kind, wrong.user) for what, at, wrong in self.report.mismatches]


def mutated(revision: Revision) -> Revision:
    """A revision to be made wrong without touching the world's."""
    return copy.deepcopy(revision)


def of_twelve() -> World:
    """Twelve players of whom two share a score, in three revisions."""
    world = World()
    world.revise(*[("act", f"u{n:02}", f"a{n}", 10 * n) for n in range(1, 13)])
    world.revise(("act", "u03", "b", 5), ("act", "u01", "b", 1, "rejected"))
    world.revise(("act", "u11", "c", 10), ("act", "u05", "c", 100))
    return world


def watched(world: World, *, seen: int = 1) -> Watch:
    """An audit that has taken the first revisions and may compare from now on."""
    return Watch(world, until=seen)
