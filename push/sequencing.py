"""What to send a reader that has seen r, and when. No I/O; the clock is an argument.

Three rules meet here. What is shown never goes back: a channel takes a view only if its
(epoch, revision) is newer, whoever brings it, so one position never has two contents. A reader
gets the latest view, or nothing if it has it: what it missed in between was merged. And two
frames to one reader are at least a gap apart.
"""

from __future__ import annotations

from enum import Enum

from core.feed import Position, View


class Sequence:
    """The views of one period, of which only the latest is kept.

    `version` counts the views taken, 0 before the first: what a reader has seen is a version,
    so that "how many did it miss" is a difference.
    """

    __slots__ = ("latest", "version")

    def __init__(self) -> None:
        self.latest: View | None = None
        self.version = 0

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
        self.latest = view
        self.version += 1
        return True


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
