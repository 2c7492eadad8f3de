"""One frame, many readers.

A channel is a period. Its latest view is encoded once per dialect and the same bytes are
written to every reader; a reader whose socket is full is left alone and gets the latest view
when it drains, so nobody waits for it and nothing piles up for it. There is no task, queue or
timer per reader: readers that may not be spoken to yet stand in a wheel of time slots, and one
timer turns it. Every frame sent costs a constant amount of bookkeeping, a publication that
nobody may receive yet costs one assignment.

Two kinds of dialects. Some word the latest view alone. Others word publications, which say what
changed since the one before: there a reader that missed some gets one that covers them all, with
`previous` where that reader stands, so that whoever folds changes is never wrong. It is encoded
once for all who stand at the same place, and almost all do.

No I/O of its own and no clock of its own: sockets are sinks, time is a function, waking up is
somebody else's timer. Not thread-safe: everything happens on one event loop.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from core.feed import Position, View, publication_words
from push.close_codes import CloseCode
from push.frames import text_frame
from push.sequencing import Pace, Sequence, Step
from service.metrics import FRAMES_MERGED, WEBSOCKET_CONNECTIONS

SLOT_MS: Final = 10.0
"""Width of a time slot. A reader is served up to one slot later than it could be."""

MARGIN_MS: Final = 3.0
"""Added to the gap between two frames, so that the reader, too, measures at least the gap."""

BURST: Final = 512
"""Readers served before the event loop gets its turn: some 5 ms of writing at 10 µs each."""

TOKEN_EXPIRED: Final = "token_expired"
UNREADABLE_MESSAGE: Final = "unreadable_message"
BOARD_REBUILDING: Final = "board_rebuilding"

_WELCOME: Final = "welcome"


class Sink(Protocol):
    """Where a reader's frames go."""

    @property
    def compressed(self) -> bool:
        """Whether it takes compressed frames; settled before anything is written."""

    def write(self, frame: bytes) -> None:
        """Write a whole frame, or drop it if the socket is going away. Never waits."""

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
    """A period and who reads it. `idle` are the readers that have seen the latest view and may be sent
    the next one at once."""

    __slots__ = ("_encoded_at", "_frames", "_publications", "idle", "moved", "period", "readers", "sequence")

    def __init__(self, period: str) -> None:
        self.period = period
        self.sequence = Sequence()
        self.readers: dict[Reader, None] = {}
        self.idle: dict[Reader, None] = {}
        self.moved: list[Callable[[], None]] = []
        """Called once each, when the period moves."""
        self._encoded_at = 0
        # By what they depend on beside the version; what a key names by id() is kept in the value.
        self._frames: dict[Any, tuple[bytes, bytes | None]] = {}
        self._publications: dict[int, bytes] = {}

    def frame(self, reader: Reader, view: View) -> bytes:
        """The latest view in this reader's words, encoded when the first such reader needs it."""
        self._forget_older()
        dialect = reader.dialect
        if isinstance(dialect, Dialect):
            key: Any = (dialect, reader.compressed)
        else:
            key = (dialect, reader.compressed, reader.pace.seen, id(reader.kept))
        known = self._frames.get(key)
        if known is None:
            if isinstance(dialect, Dialect):
                words = dialect.frame(view)
            else:
                words = dialect.frame(self.publication(reader.pace.seen), view.position, reader.kept)
            known = dialect.envelope(words, reader.compressed), reader.kept
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


class Reader:
    """One socket's interest in one channel. Made by `Hub.join`.

    `compressed` says that its socket takes compressed frames, `kept` is the publication it was
    sent last, where its dialect needs that.
    """

    __slots__ = (
        "after_notice",
        "channel",
        "compressed",
        "dialect",
        "ending",
        "expires_at_s",
        "gone",
        "kept",
        "notices",
        "pace",
        "queued",
        "sink",
    )

    def __init__(
        self, sink: Sink, dialect: Dialect | Chained, channel: Channel, expires_at_s: float | None
    ) -> None:
        self.sink, self.dialect, self.channel = sink, dialect, channel
        self.expires_at_s = expires_at_s
        self.compressed = sink.compressed
        self.kept: bytes | None = None
        self.pace = Pace()
        # By code, so that a message repeated before it could be sent is sent once.
        self.notices: dict[str, Callable[[Position], bytes]] = {}
        self.after_notice = False
        self.ending: CloseCode | None = None
        self.queued = False
        self.gone = False


class Hub:
    """All channels and their readers.

    `clock_ms` is a monotonic clock. `wake_in` must call `Hub.wake` once, that many ms from now,
    instead of any wake-up asked for before.
    """

    def __init__(
        self,
        periods: Iterable[str],
        *,
        clock_ms: Callable[[], float],
        wake_in: Callable[[float], None],
        gap_ms: float = 100.0,
        tick_ms: float = 50.0,
        stall_limit_ms: float = 10_000.0,
    ) -> None:
        self.channels = {period: Channel(period) for period in periods}
        self._clock_ms, self._wake_in = clock_ms, wake_in
        self._gap_ms = gap_ms + MARGIN_MS if gap_ms else 0.0
        self._tick_ms = tick_ms
        self._stall_limit_ms = stall_limit_ms
        self._due: deque[Reader] = deque()
        self._wheel: dict[int, list[Reader]] = {}
        self._woken_at_ms = math.inf
        self._blocked: dict[Reader, None] = {}
        self._expiring: dict[Reader, None] = {}

    # What is shown

    def publish(self, view: View) -> bool:
        """Show this view to everybody who reads its period, unless it is not news."""
        channel = self.channels.get(view.period)
        if channel is None or not channel.sequence.take(view):
            return False
        for reader in channel.idle:
            reader.queued = True
        self._due.extend(channel.idle)
        channel.idle.clear()
        moved, channel.moved = channel.moved, []
        for call in moved:
            call()
        self.turn()
        return True

    def tell_all(self, period: str, code: str, message: str) -> None:
        """Send an error to every reader of the period whose dialect has errors."""
        for reader in list(self.channels[period].readers):
            self._notify(reader, code, message)
        self.turn()

    def repeat(self, period: str) -> None:
        """Send the latest view once more to every reader that may have been told of an error."""
        for reader in list(self.channels[period].readers):
            if isinstance(reader.dialect, Dialect) and reader.dialect.error is not None:
                reader.pace.forget()
                self._enqueue(reader)
        self.turn()

    def tell(self, reader: Reader, code: str, message: str) -> None:
        """Send an error to one reader, if its dialect has errors."""
        self._notify(reader, code, message)
        self.turn()

    # Who reads

    def join(
        self,
        sink: Sink,
        dialect: Dialect,
        period: str,
        *,
        user_id: str = "",
        expires_at_s: float | None = None,
    ) -> Reader:
        """A new reader; what it is greeted with is written at once.

        `expires_at_s` is when its right to read ends (seconds since 1970), None if it does not.
        """
        channel = self.channels[period]
        reader = Reader(sink, dialect, channel, expires_at_s)
        channel.readers[reader] = None
        if expires_at_s is not None:
            self._expiring[reader] = None
        if (welcome := dialect.welcome) is not None:
            reader.notices[_WELCOME] = lambda position: welcome(user_id, position)
        WEBSOCKET_CONNECTIONS.labels(dialect.name).inc()
        self._enqueue(reader)
        self.turn()
        return reader

    def follow(
        self,
        sink: Sink,
        dialect: Chained,
        period: str,
        *,
        kept: bytes | None = None,
        expires_at_s: float | None = None,
    ) -> Reader:
        """A new reader that has been brought to the latest view already, `kept` being what it was sent.

        `expires_at_s` as in `join`.
        """
        channel = self.channels[period]
        reader = Reader(sink, dialect, channel, expires_at_s)
        reader.kept = kept if dialect.keeps else None
        reader.pace.saw(channel.sequence.version)
        channel.readers[reader] = None
        channel.idle[reader] = None
        if expires_at_s is not None:
            self._expiring[reader] = None
        return reader

    def leave(self, reader: Reader) -> None:
        """Forget a reader; harmless if it is forgotten already."""
        if reader.gone:
            return
        reader.gone = True
        del reader.channel.readers[reader]
        reader.channel.idle.pop(reader, None)
        self._blocked.pop(reader, None)
        self._expiring.pop(reader, None)
        # A socket that speaks in publications may follow several channels: it is counted elsewhere.
        if isinstance(reader.dialect, Dialect):
            WEBSOCKET_CONNECTIONS.labels(reader.dialect.name).dec()

    def end(self, reader: Reader, code: CloseCode) -> None:
        """Close a reader's socket now, and forget it."""
        if not reader.gone:
            self.leave(reader)
            reader.sink.end(code)

    def block(self, reader: Reader) -> None:
        """The reader's socket takes no more bytes."""
        if not reader.gone:
            reader.pace.block(self._clock_ms())
            self._blocked[reader] = None

    def unblock(self, reader: Reader) -> None:
        """The reader's socket takes bytes again: it gets the latest view, if it has not."""
        self._blocked.pop(reader, None)
        if not reader.gone:
            reader.pace.unblock()
            self._enqueue(reader)
            self.turn()

    # Time

    def wake(self) -> None:
        """What `wake_in` calls."""
        self._woken_at_ms = math.inf
        self.turn()

    def turn(self) -> None:
        """Serve who is due, at most `BURST` readers, and ask to be woken for the rest."""
        now_ms = self._clock_ms()
        for slot in [slot for slot in self._wheel if slot * SLOT_MS <= now_ms]:
            self._due.extend(self._wheel.pop(slot))
        merged = 0
        for _ in range(min(len(self._due), BURST)):
            merged += self._serve(self._due.popleft())
        if merged:
            FRAMES_MERGED.inc(merged)
        if self._due:
            self._wake_at(now_ms)
        elif self._wheel:
            self._wake_at(min(self._wheel) * SLOT_MS)

    def sweep(self, now_s: float) -> None:
        """Close who stalled for too long or whose token ran out. Call it about once a second.

        `now_s` is the wall clock, in which tokens expire.
        """
        now_ms = self._clock_ms()
        for reader in list(self._blocked):
            if reader.pace.stalled(now_ms, self._stall_limit_ms):
                self.end(reader, CloseCode.SLOW)
        for reader in [r for r in self._expiring if r.expires_at_s is not None and now_s >= r.expires_at_s]:
            del self._expiring[reader]
            reader.notices.clear()
            self._notify(reader, TOKEN_EXPIRED, "the token has expired: get a new one and connect again")
            reader.ending = CloseCode.UNAUTHENTICATED
            if reader.pace.blocked_since_ms is not None or not reader.notices:
                self.end(reader, reader.ending)
        self.turn()

    # Within

    def _notify(self, reader: Reader, code: str, message: str) -> None:
        error = reader.dialect.error if isinstance(reader.dialect, Dialect) else None
        if error is None or reader.gone or reader.ending is not None:
            return
        reader.notices.setdefault(code, lambda position: error(code, message, position))
        self._enqueue(reader)

    def _enqueue(self, reader: Reader) -> None:
        if not reader.queued:
            reader.queued = True
            reader.channel.idle.pop(reader, None)
            self._due.append(reader)

    def _serve(self, reader: Reader) -> int:
        """Do what is due for one reader; how many frames it was spared by what it was sent."""
        reader.queued = False
        if reader.gone:
            return 0
        pace, channel = reader.pace, reader.channel
        # A clock read per reader: the last of a burst is written ms after the first.
        now_ms = self._clock_ms()
        merged = 0
        step = pace.step(now_ms, channel.sequence.version, has_notice=bool(reader.notices))
        if step is Step.SEND:
            merged = self._send(reader, now_ms)
            if reader not in channel.readers:
                return merged
            step = pace.step(now_ms, channel.sequence.version, has_notice=bool(reader.notices))
        if step is Step.WAIT or step is Step.SEND:
            reader.queued = True
            next_at_ms = max(pace.next_at_ms, now_ms)
            self._wheel.setdefault(math.ceil(next_at_ms / SLOT_MS), []).append(reader)
        elif step is Step.REST:
            channel.idle[reader] = None
        return merged

    def _send(self, reader: Reader, now_ms: float) -> int:
        pace, channel, dialect = reader.pace, reader.channel, reader.dialect
        if isinstance(dialect, Chained):
            return self._send_publication(reader, dialect, now_ms)
        behind = pace.seen != channel.sequence.version and reader.ending is None
        # A board between two notices: who keeps causing errors still sees the board move.
        if reader.notices and not (reader.after_notice and behind):
            code = next(iter(reader.notices))
            words = reader.notices.pop(code)(channel.sequence.position)
            reader.after_notice = True
            pace.spoke(now_ms, self._gap_ms)
            reader.sink.write(dialect.envelope(words, False))
            if reader.ending is not None and not reader.notices:
                self.end(reader, reader.ending)
            return 0
        view = channel.sequence.latest
        reader.after_notice = False
        if view is not None and (pace.seen or dialect.greets_with(view)):
            pace.spoke(now_ms, self._gap_ms)
            reader.sink.write(channel.frame(reader, view))
        return pace.saw(channel.sequence.version)

    def _send_publication(self, reader: Reader, dialect: Chained, now_ms: float) -> int:
        channel, pace = reader.channel, reader.pace
        view = channel.sequence.latest
        if view is None:
            return 0
        pace.spoke(now_ms, self._tick_ms)
        reader.sink.write(channel.frame(reader, view))
        if dialect.keeps:
            reader.kept = channel.publication(pace.seen)
        return pace.saw(channel.sequence.version)

    def _wake_at(self, at_ms: float) -> None:
        if at_ms < self._woken_at_ms:
            self._woken_at_ms = at_ms
            self._wake_in(max(0.0, at_ms - self._clock_ms()))
