"""Who reads what, in which words: dialects, channels, and readers in cohorts.

Two kinds of dialects. Some word the latest view alone. Others word publications, which say what
changed since the one before: there a reader that missed some gets one that covers them all, with
`previous` where that reader stands, so that whoever folds changes is never wrong. It is encoded
once for all who stand at the same place, and almost all do.

Nothing is sent here: `push.hub` does that.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from core.feed import Position, View, publication_words
from push.close_codes import CloseCode
from push.frames import text_frame
from push.sequencing import Pace, Sequence

BURST: Final = 512
"""Readers served before the event loop gets its turn, and most of one cohort: some 5 ms of writing at
10 µs each. A turn may serve almost twice as many."""


class Flow(Protocol):
    """What a sink tells of its socket; `push.hub.Hub` hears it."""

    def block(self, reader: Reader) -> None:
        """The reader's socket takes no more bytes."""

    def unblock(self, reader: Reader) -> None:
        """It takes bytes again."""

    def leave(self, reader: Reader) -> None:
        """It takes no more frames."""


class Sink(Protocol):
    """Where a reader's frames go."""

    @property
    def file(self) -> int:
        """The descriptor that frames are given to while the reader is not blocked; it stays open until
        the reader has left."""

    @property
    def compressed(self) -> bool:
        """Whether it takes compressed frames; settled before anything is written."""

    def attach(self, flow: Flow, reader: Reader) -> None:
        """From now on, and at once if it is full, say how its socket does, on the reader's behalf."""

    def write(self, frame: bytes) -> None:
        """Write a whole frame, or what its descriptor has not taken of one; or drop it if the socket is
        going away. Never waits: what cannot be written now is kept, and the hub told."""

    def end(self, code: CloseCode) -> None:
        """Begin to close; nothing is written afterwards, and its readers leave the hub."""


@dataclass(frozen=True, slots=True, eq=False)
class Dialect:
    """How one protocol words what a channel shows.

    `name` is its label in the metrics. `frame` words a view; `greets_with` says whether a new
    reader is sent this view, or only the next one. `welcome` words the first frame for a user,
    `error` a code and a message; None where the protocol has no such frame. `envelope` turns
    the words into what goes over the wire, compressed where the reader asked for it.
    """

    name: str
    path: str
    public: bool
    frame: Callable[[View], bytes]
    greets_with: Callable[[View], bool] = lambda view: True
    welcome: Callable[[str, Position], bytes] | None = None
    error: Callable[[str, str, Position], bytes] | None = None
    envelope: Callable[[bytes, bool], bytes] = text_frame


@dataclass(frozen=True, slots=True, eq=False)
class Chained:
    """How one protocol words publications: what changed since what a reader has seen.

    `frame` is given a publication's JSON, its position, and the JSON this reader was sent before
    (None: none, or the reader does not keep it). `keeps` says whether readers keep what they were
    sent, to be sent differences to it.
    """

    name: str
    frame: Callable[[bytes, Position, bytes | None], bytes]
    keeps: bool = False
    envelope: Callable[[bytes, bool], bytes] = text_frame


class Channel:
    """A period and who reads it. `idle` are the cohorts that have seen the latest view and may be sent
    the next one at once."""

    __slots__ = ("_encoded_at", "_frames", "_publications", "idle", "moved", "period", "readers", "sequence")

    def __init__(self, period: str) -> None:
        self.period = period
        self.sequence = Sequence()
        self.readers: dict[Reader, None] = {}
        self.idle: dict[Cohort, None] = {}
        self.moved: list[Callable[[], None]] = []
        """Called once each, when the period moves."""
        self._encoded_at = 0
        # By what they depend on beside the version; what a key names by id() is kept in the value.
        self._frames: dict[Any, tuple[bytes, bytes | None]] = {}
        self._publications: dict[int, bytes] = {}

    def frame(self, cohort: Cohort, view: View) -> bytes:
        """The latest view in this cohort's words, encoded when the first such cohort needs it."""
        self._forget_older()
        dialect = cohort.dialect
        if isinstance(dialect, Dialect):
            key: Any = (dialect, cohort.compressed)
        else:
            key = (dialect, cohort.compressed, cohort.pace.seen, id(cohort.kept))
        known = self._frames.get(key)
        if known is None:
            if isinstance(dialect, Dialect):
                words = dialect.frame(view)
            else:
                words = dialect.frame(self.publication(cohort.pace.seen), view.position, cohort.kept)
            known = dialect.envelope(words, cohort.compressed), cohort.kept
            self._frames[key] = known
        return known[0]

    def publication(self, seen: int) -> bytes:
        """The JSON that brings a reader from the version it has seen to the latest."""
        self._forget_older()
        known = self._publications.get(seen)
        if known is None:
            latest = self.sequence.latest
            if latest is None:
                raise ValueError(f"nothing was shown of {self.period} yet")
            known = publication_words(latest, self.sequence.changes_since(seen))
            self._publications[seen] = known
        return known

    def _forget_older(self) -> None:
        if self._encoded_at != self.sequence.version:
            self._encoded_at = self.sequence.version
            self._frames.clear()
            self._publications.clear()


class Cohort:
    """Readers of one channel that are served as one: they were sent the same at the same time, so they
    will be sent the same again.

    `pace` and `kept`, the publication they were sent last where their dialect needs that, are
    theirs together. A reader with something of its own, a full socket or a notice, is a cohort
    by itself until it has caught up: `apart` is that reader.
    """

    __slots__ = ("_files", "apart", "channel", "compressed", "dialect", "kept", "pace", "queued", "readers")

    def __init__(self, reader: Reader, pace: Pace, kept: bytes | None = None) -> None:
        self.channel, self.dialect = reader.channel, reader.dialect
        self.compressed = reader.sink.compressed
        self.readers: dict[Reader, None] = {reader: None}
        self.pace, self.kept = pace, kept
        self.apart: Reader | None = None
        self.queued = False
        self._files: array[int] | None = None

    @property
    def files(self) -> array[int]:
        """The descriptors of the readers' sinks, in their order.

        Kept side by side: a frame for everybody finds its way cold, and each object that has to be
        looked at on it costs as much as a hundred instructions.
        """
        if self._files is None:
            self._files = array("i", [reader.sink.file for reader in self.readers])
        return self._files

    @property
    def likeness(self) -> Any:
        """Cohorts of one likeness may become one."""
        return self.channel, self.dialect, self.compressed, self.pace.seen, id(self.kept)

    @property
    def has_notice(self) -> bool:
        return self.apart is not None and bool(self.apart.notices)

    def take(self, other: Cohort) -> None:
        """Make the other's readers this one's."""
        for reader in other.readers:
            reader.cohort = self
        self.readers.update(other.readers)
        self.pace.next_at_ms = max(self.pace.next_at_ms, other.pace.next_at_ms)
        other.readers = {}
        self._files = other._files = None

    def drop(self, reader: Reader) -> None:
        """Let a reader go."""
        del self.readers[reader]
        self._files = None


class Reader:
    """One socket's interest in one channel. Made by `Hub.join` and `Hub.follow`."""

    __slots__ = (
        "after_notice",
        "channel",
        "cohort",
        "dialect",
        "ending",
        "expires_at_s",
        "gone",
        "notices",
        "sink",
    )

    def __init__(
        self,
        sink: Sink,
        dialect: Dialect | Chained,
        channel: Channel,
        expires_at_s: float | None,
        kept: bytes | None = None,
    ) -> None:
        self.sink, self.dialect, self.channel = sink, dialect, channel
        self.expires_at_s = expires_at_s
        # By code, so that a message repeated before it could be sent is sent once.
        self.notices: dict[str, Callable[[Position], bytes]] = {}
        self.after_notice = False
        self.ending: CloseCode | None = None
        self.gone = False
        self.cohort = Cohort(self, Pace(), kept)

    @property
    def pace(self) -> Pace:
        return self.cohort.pace

    def apart(self) -> Cohort:
        """A cohort of this reader alone, as far as its old one was."""
        cohort = self.cohort
        if len(cohort.readers) > 1:
            cohort.drop(self)
            cohort = self.cohort = Cohort(self, cohort.pace.copy(), cohort.kept)
        cohort.apart = self
        return cohort
