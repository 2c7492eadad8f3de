"""What the live feed shows: a period's leading entries at one position, in each dialect's words.

A publication is one record of `leaderboard.board.changed.v1`; a view is what a channel shows,
made of a publication or of a page of the standings. A view is never changed, so a frame never
mixes two revisions. Frames are bytes of JSON. No clock, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import msgspec

from core import words
from core.errors import Unreadable
from core.events import BoardChanged, ChangedEntry, RankedEntry
from core.ids import EPOCH
from core.reading import reader

TOP: Final = 10
"""How many entries a publication and every dialect show."""

Position = tuple[str, int]
"""(epoch, revision). Epochs sort by time, so positions compare as tuples."""


class Publication(BoardChanged):
    """A record of `board.changed`, as one who shows it reads it.

    `previous` is the period's own revision before this one (0 for its first), `digest` the
    ledger's digest at `revision` in hex, `count` the period's entries after it, `top` its first
    ten.
    """

    @property
    def period(self) -> str:
        return words.period_id(self.board, self.window)

    @property
    def position(self) -> Position:
        return self.epoch, self.revision


@dataclass(frozen=True, slots=True)
class Named:
    """The entry that `/ws/scoreboard` names; `score` None: the player is gone."""

    user_id: str
    score: int | None


@dataclass(frozen=True, slots=True)
class View:
    """A period as a channel shows it: its first entries at one position.

    `publication` is the record it came from; a page of the standings has none, and then `before`
    is what was shown until then. `previous` is the period's own revision before this one, None
    where only a page was seen; `digest` the ledger's at this revision.
    """

    period: str
    position: Position
    count: int
    top: tuple[RankedEntry, ...]
    publication: Publication | None = None
    before: tuple[RankedEntry, ...] = ()
    previous: int | None = None
    digest: str = ""

    @classmethod
    def of_publication(cls, publication: Publication) -> View:
        return cls(
            period=publication.period,
            position=publication.position,
            count=publication.count,
            top=tuple(publication.top[:TOP]),
            publication=publication,
            previous=publication.previous,
            digest=publication.digest,
        )

    @classmethod
    def of_page(
        cls,
        period: str,
        position: Position,
        count: int,
        top: Iterable[RankedEntry],
        before: View | None,
        digest: str = "",
    ) -> View:
        return cls(
            period=period,
            position=position,
            count=count,
            top=tuple(top)[:TOP],
            before=before.top if before else (),
            digest=digest,
        )

    def without_record(self) -> View:
        """The same, without the record it came from: that may be megabytes."""
        return replace(self, publication=None, before=())

    def named(self) -> Named | None:
        """The entry that this revision is named after; None only where there is nobody to name.

        Of the last delta the entry with the latest `reached_at`, then the smaller user id. A page
        does not say what its revision changed: there it is the best guess the page allows.
        """
        if self.publication is not None:
            return named_of_changes(self.publication.changed) or leader(self.top)
        return named_of_pages(self.before, self.top)


@dataclass(frozen=True, slots=True)
class Changes:
    """What led from the revision `since` of a period to a later one, as far as the top shows it.

    `changed` names who was or is among the first ten, `count` says how many entries changed in
    all, one counted again for every revision that changed it.
    """

    since: int
    changed: tuple[ChangedEntry, ...]
    count: int

    @classmethod
    def of(cls, publication: Publication, before: Iterable[RankedEntry]) -> Self:
        """What a publication changed, `before` being the top at the revision before it."""
        leading = {entry.user_id for entry in before} | {entry.user_id for entry in publication.top[:TOP]}
        shown = tuple(change for change in publication.changed if change.user_id in leading)
        return cls(publication.previous, shown, len(publication.changed))

    @classmethod
    def merged(cls, steps: Sequence[Changes]) -> Changes:
        """What consecutive steps (at least one) changed together.

        Who folds `changed` into what it knows comes to the same as by folding step after step:
        a player changed more than once stands with the last change.
        """
        if len(steps) == 1:
            return steps[0]
        latest = {change.user_id: change for step in steps for change in step.changed}
        return cls(steps[0].since, tuple(latest.values()), sum(step.count for step in steps))


_encoder = msgspec.json.Encoder()
_read = reader(Publication)


def decode(value: bytes | None) -> Publication:
    """The publication in a record's value.

    Raises:
        Unreadable: not JSON, not this shape, or empty.
    """
    publication = _read(value)
    if EPOCH.fullmatch(publication.epoch) is None:
        # Whatever sorts after every epoch would be shown for ever.
        raise Unreadable("shape", "epoch is not an epoch")
    return publication


def named_of_changes(changed: Iterable[ChangedEntry]) -> Named | None:
    """Of a revision's changes the one with the latest `reached_at`, then the smaller user id.

    Instants on the wire have one width, so they compare as text. A player who is gone may have
    no instant; such a one is named only if nobody else changed.
    """
    latest: ChangedEntry | None = None
    for change in changed:
        if latest is None or _later(change, latest):
            latest = change
    return None if latest is None else Named(latest.user_id, latest.score)


def _later(one: ChangedEntry, other: ChangedEntry) -> bool:
    one_at, other_at = one.reached_at or "", other.reached_at or ""
    return one_at > other_at or (one_at == other_at and one.user_id < other.user_id)


def named_of_pages(before: Sequence[RankedEntry], after: Sequence[RankedEntry]) -> Named | None:
    """Who changed between two pages, as far as the pages show it.

    The entry with the latest `reached_at` among those whose score or instant differs; if none
    does (the change lies outside the page), the leader; None for an empty page.
    """
    known = {entry.user_id: (entry.score, entry.reached_at) for entry in before}
    changed = [
        ChangedEntry(entry.user_id, entry.username, entry.score, entry.reached_at)
        for entry in after
        if known.get(entry.user_id) != (entry.score, entry.reached_at)
    ]
    return named_of_changes(changed) or leader(after)


def leader(top: Sequence[RankedEntry]) -> Named | None:
    return Named(top[0].user_id, top[0].score) if top else None


def scores_frame(view: View) -> bytes:
    """`/ws/scores`: `{"topScores": [{"userId", "score"}], "epoch", "revision"}`."""
    return _placed({"topScores": [{"userId": e.user_id, "score": e.score} for e in view.top]}, view.position)


def scoreboard_frame(view: View) -> bytes:
    """`/ws/scoreboard`: a `SCORE_UPDATE` that names one entry beside the rankings.

    `user_id` and `new_score` are null only where there is nobody to name: an empty board whose
    last revision changed no entry.
    """
    named = view.named()
    data = {
        "user_id": None if named is None else named.user_id,
        "new_score": None if named is None else named.score,
        "rankings": [{"user_id": e.user_id, "score": e.score} for e in view.top],
    }
    return _placed({"type": "SCORE_UPDATE", "data": data}, view.position)


def leaderboard_frame(view: View) -> bytes:
    """`/ws/leaderboard`: a `leaderboard_update` with names and ranks."""
    lines = [
        {"userId": e.user_id, "username": e.username, "score": e.score, "rank": e.rank} for e in view.top
    ]
    return _placed({"type": "leaderboard_update", "data": {"leaderboard": lines}}, view.position)


def connection_success_frame(user_id: str, position: Position) -> bytes:
    return _placed({"type": "connection_success", "data": {"userId": user_id}}, position)


def error_frame(code: str, message: str, position: Position) -> bytes:
    return _placed({"type": "error", "data": {"code": code, "message": message}}, position)


def publication_words(view: View, changes: Changes | None) -> bytes:
    """The JSON of a publication, or of a snapshot where it is not known what changed.

    `{"board", "window", "epoch", "revision", "previous", "digest", "count", "changed",
    "changed_count", "top"}`. `previous` is the revision that `changed` starts from. A snapshot
    has neither `changed` nor `changed_count`; its `previous` is the period's own, or null.
    """
    board, _, window = view.period.partition(":")
    epoch, revision = view.position
    words: dict[str, Any] = {
        "board": board,
        "window": window,
        "epoch": epoch,
        "revision": revision,
        "previous": view.previous if changes is None else changes.since,
        "digest": view.digest,
        "count": view.count,
    }
    if changes is not None:
        words |= {"changed": changes.changed, "changed_count": changes.count}
    return _encoder.encode(words | {"top": view.top})


def _placed(frame: dict[str, Any], position: Position) -> bytes:
    frame["epoch"], frame["revision"] = position
    return _encoder.encode(frame)
