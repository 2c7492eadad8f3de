"""What to send a reader that has seen r, and when. No I/O; the clock is an argument.

Three rules meet here. What is shown never goes back: a channel takes a view only if its
(epoch, revision) is newer, whoever brings it, so one position never has two contents. A reader
gets the latest view, or nothing if it has it: what it missed in between was merged. And two
frames to one reader are at least a gap apart.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Final

from core.feed import Changes, Position, View

LINKS_MOST: Final = 256
"""How many recent publications of a period are kept to bring readers forward from."""


@dataclass(frozen=True, slots=True)
class Link:
    """One recent publication: what was shown, and what changed since the one before it."""

    view: View
    changes: Changes


class Sequence:
    """The views of one period: the latest, and the recent publications that led to it.

    `version` counts the views taken, 0 before the first: what a reader has seen is a version,
    so that "how many did it miss" is a difference. The links are an unbroken chain that ends at
    the latest view: each one's `previous` is the revision of the one before. A view that does
    not link to what was shown (a page, a publication after a gap, another epoch) ends the chain,
    and readers from before it get a snapshot.
    """

    __slots__ = ("_links", "latest", "version")

    def __init__(self) -> None:
        self.latest: View | None = None
        self.version = 0
        self._links: deque[Link] = deque(maxlen=LINKS_MOST)

    @property
    def position(self) -> Position:
        """Where the period stands, ("", 0) before the first view; less than any real one."""
        return ("", 0) if self.latest is None else self.latest.position

    def is_news(self, position: Position) -> bool:
        return self.latest is None or position > self.latest.position

    def take(self, view: View) -> bool:
        """Show this view from now on, if it is newer than what is shown."""
        if not self.is_news(view.position):
            return False
        before, publication = self.latest, view.publication
        if before and publication and before.position == (publication.epoch, publication.previous):
            self._links.append(Link(view.without_record(), Changes.of(publication, before.top)))
        else:
            self._links.clear()
        self.latest = view
        self.version += 1
        return True

    def changes_since(self, version: int) -> Changes | None:
        """What changed since a version was shown; None if the chain does not reach back to it."""
        missed = self.version - version
        if not 0 < missed <= len(self._links):
            return None
        return Changes.merged([self._links[n].changes for n in range(-missed, 0)])

    def links_after(self, position: Position) -> list[Link] | None:
        """The publications a reader at this position has missed, oldest first.

        None: they are not all known, or the position is of another history.
        """
        if position == self.position:
            return []
        found: list[Link] = []
        for link in reversed(self._links):
            found.append(link)
            if (link.view.position[0], link.changes.since) == position:
                return found[::-1]
        return None


class Step(Enum):
    """What to do about one reader now."""

    REST = "nothing to say"
    SEND = "say it now"
    WAIT = "say it at `next_at_ms`"
    HOLD = "its socket takes nothing: ask again when it does"


class Pace:
    """When one reader may be sent something, and what it has seen.

    `seen` is the version of its channel's sequence that it was sent last, `blocked_since_ms`
    when its socket stopped taking bytes, None while it takes them.
    """

    __slots__ = ("blocked_since_ms", "next_at_ms", "seen")

    def __init__(self) -> None:
        self.seen = 0
        self.next_at_ms = float("-inf")
        self.blocked_since_ms: float | None = None

    def copy(self) -> Pace:
        """One that begins where this one is."""
        other = Pace()
        other.seen, other.next_at_ms = self.seen, self.next_at_ms
        other.blocked_since_ms = self.blocked_since_ms
        return other

    def step(self, now_ms: float, version: int, *, has_notice: bool) -> Step:
        """What to do with `version` being the latest and maybe a notice waiting."""
        if version == self.seen and not has_notice:
            return Step.REST if now_ms >= self.next_at_ms else Step.WAIT
        if self.blocked_since_ms is not None:
            return Step.HOLD
        return Step.SEND if now_ms >= self.next_at_ms else Step.WAIT

    def spoke(self, now_ms: float, gap_ms: float) -> None:
        """A frame was written at `now_ms`: the next one not before `gap_ms` from then."""
        self.next_at_ms = now_ms + gap_ms

    def saw(self, version: int) -> int:
        """This version was written to the reader. How many it was spared since the one before.

        The first frame after connecting spares nobody anything: it is where the reader starts.
        """
        merged = version - self.seen - 1 if self.seen else 0
        self.seen = version
        return merged

    def forget(self) -> None:
        """Take it that the reader has not seen its last view: it is sent the latest again."""
        self.seen = max(0, self.seen - 1)

    def block(self, now_ms: float) -> None:
        if self.blocked_since_ms is None:
            self.blocked_since_ms = now_ms

    def unblock(self) -> None:
        self.blocked_since_ms = None

    def stalled(self, now_ms: float, limit_ms: float) -> bool:
        """Whether the socket has taken nothing for longer than the limit."""
        return self.blocked_since_ms is not None and now_ms - self.blocked_since_ms > limit_ms
