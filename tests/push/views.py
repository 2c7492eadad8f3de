"""Publications, views and pages for the tests of the feed."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.events import ChangedEntry, RankedEntry
from core.feed import Publication, View
from core.times import format_us
from core.words import MAIN_PERIOD

EPOCH = "01kaj3p6m8e9vq2d7c5x1w4t0z"
LATER_EPOCH = "01kaj4000000000000000000zz"


def publication(revision: int, *, epoch: str = EPOCH, user_id: str = "ada", padding: str = "") -> Publication:
    """The record of a revision in which one player came to `revision` points."""
    reached_at = format_us(1_700_000_000_000_000 + revision)
    username = f"{user_id}{padding}"
    return Publication(
        board="main",
        window="all-time",
        epoch=epoch,
        revision=revision,
        previous=revision - 1,
        digest="00" * 32,
        count=1,
        changed=[ChangedEntry(user_id, username, revision, reached_at)],
        top=[RankedEntry(1, user_id, username, revision, reached_at)],
    )


def view(revision: int, *, epoch: str = EPOCH, padding: str = "") -> View:
    return View.of_publication(publication(revision, epoch=epoch, padding=padding))


def empty_view(revision: int, *, epoch: str = EPOCH) -> View:
    return View.of_page(MAIN_PERIOD, (epoch, revision), 0, (), before=None)


@dataclass
class Line:
    """A line of a page, as the standings give it."""

    rank: int
    user_id: str
    username: str
    score: int
    reached_at_us: int


@dataclass
class Page:
    """A page of the standings at (epoch, revision)."""

    epoch: str
    revision: int
    count: int
    entries: list[Line] = field(default_factory=list)
    digest: str = "00" * 32


def page(revision: int, *, epoch: str = EPOCH, user_id: str = "ada") -> Page:
    """The page that says what `publication` of this revision says."""
    line = Line(1, user_id, user_id, revision, 1_700_000_000_000_000 + revision)
    return Page(epoch, revision, 1, [line])
