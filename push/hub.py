"""One frame, many readers.

A channel is a period. Its latest view is encoded once per dialect and the same bytes are
written to every reader; a reader whose socket is full is left alone and gets the latest view
when it drains, so nobody waits for it and nothing piles up for it. There is no task, queue or
timer per reader: readers that have been sent the same stand together in a cohort, and cohorts that
may not be spoken to yet in a wheel of time slots, which one timer turns. A frame to a reader of a
cohort costs its write and no more, a publication that nobody may receive yet one assignment.

No I/O of its own and no clock of its own: sockets are sinks and descriptors, giving bytes to one and
time are functions, waking up is somebody else's timer. Not thread-safe: everything happens on one
event loop.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from core.feed import View
from push.channels import BURST, Chained, Channel, Cohort, Dialect, Reader, Sink
from push.close_codes import CloseCode
from push.sequencing import Step
from service import failpoints
from service.metrics import FRAMES_MERGED, WEBSOCKET_CONNECTIONS

SLOT_MS: Final = 10.0
"""Width of a time slot. A reader is served up to one slot later than it could be."""

MARGIN_MS: Final = 3.0
"""Added to the gap between two frames, so that the reader, too, measures at least the gap."""

TOKEN_EXPIRED: Final = "token_expired"
TOKEN_REVOKED: Final = "token_revoked"
UNREADABLE_MESSAGE: Final = "unreadable_message"
BOARD_REBUILDING: Final = "board_rebuilding"

_WELCOME: Final = "welcome"


class Hub:
    """All channels and their readers.

    `clock_ms` is a monotonic clock. `wake_in` must call `Hub.wake` once, that many ms from now,
    instead of any wake-up asked for before. A reader of a `Dialect` is sent frames at least `gap_ms`
    apart, one of a `Chained` at most one in each tick of `tick_ms`. `give` gives a frame to a descriptor
    and says how many bytes it took, or raises OSError: it takes none now, or never again.
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
        give: Callable[[int, bytes], int] = os.write,
    ) -> None:
        self.channels = {period: Channel(period) for period in periods}
        self._clock_ms, self._wake_in = clock_ms, wake_in
        self._gap_ms = gap_ms + MARGIN_MS if gap_ms else 0.0
        self._tick_ms = tick_ms
        self._stall_limit_ms = stall_limit_ms
        self._give = give
        self._due: deque[Cohort] = deque()
        self._wheel: dict[int, list[Cohort]] = {}
        self._woken_at_ms = math.inf
        self._blocked: dict[Reader, None] = {}
        self._expiring: dict[Reader, None] = {}

    # What is shown

    def publish(self, view: View) -> bool:
        """Show this view to everybody who reads its period, unless it is not news."""
        channel = self.channels.get(view.period)
        if channel is None or not channel.sequence.take(view):
            return False
        for cohort in channel.idle:
            cohort.queued = True
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
        for cohort in {reader.cohort: None for reader in self.channels[period].readers}:
            if isinstance(cohort.dialect, Dialect) and cohort.dialect.error is not None:
                cohort.pace.forget()
                self._enqueue(cohort)
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
        self._enter(reader)
        if (welcome := dialect.welcome) is not None:
            reader.notices[_WELCOME] = lambda position: welcome(user_id, position)
        WEBSOCKET_CONNECTIONS.labels(dialect.name).inc()
        self._enqueue(reader.apart())
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
        reader = Reader(sink, dialect, channel, expires_at_s, kept if dialect.keeps else None)
        reader.pace.saw(channel.sequence.version)
        channel.idle[reader.cohort] = None
        self._enter(reader)
        return reader

    def leave(self, reader: Reader) -> None:
        """Forget a reader; harmless if it is forgotten already."""
        if reader.gone:
            return
        reader.gone = True
        channel, cohort = reader.channel, reader.cohort
        del channel.readers[reader]
        cohort.drop(reader)
        if not cohort.readers:
            channel.idle.pop(cohort, None)
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

    def revoke(self, reader: Reader) -> None:
        """Close the socket of a reader whose token was revoked; harmless if it is closed or about to be."""
        if not reader.gone and reader.ending is None:
            why = "the token was revoked: connecting again with it changes nothing"
            self._dismiss(reader, CloseCode.BAD_TOKEN, TOKEN_REVOKED, why)
            self.turn()

    def block(self, reader: Reader) -> None:
        """The reader's socket takes no more bytes."""
        if not reader.gone:
            reader.apart().pace.block(self._clock_ms())
            self._blocked[reader] = None

    def unblock(self, reader: Reader) -> None:
        """The reader's socket takes bytes again: it gets the latest view, if it has not."""
        self._blocked.pop(reader, None)
        if not reader.gone:
            reader.pace.unblock()
            self._enqueue(reader.apart())
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
        served = merged = 0
        likes: dict[Any, Cohort] = {}
        for _ in range(len(self._due)):
            cohort = self._due.popleft()
            served += len(cohort.readers)
            merged += self._serve(cohort, likes)
            if served >= BURST:
                break
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
            why = "the token has expired: get a new one and connect again"
            self._dismiss(reader, CloseCode.UNAUTHENTICATED, TOKEN_EXPIRED, why)
        self.turn()

    # Within

    def _dismiss(self, reader: Reader, code: CloseCode, error: str, message: str) -> None:
        """Close a reader's socket once it has been told why, if its dialect has words and its socket room."""
        self._expiring.pop(reader, None)
        reader.notices.clear()
        self._notify(reader, error, message)
        reader.ending = code
        if reader.pace.blocked_since_ms is not None or not reader.notices:
            self.end(reader, code)

    def _enter(self, reader: Reader) -> None:
        reader.channel.readers[reader] = None
        if reader.expires_at_s is not None:
            self._expiring[reader] = None
        reader.sink.attach(self, reader)

    def _notify(self, reader: Reader, code: str, message: str) -> None:
        error = reader.dialect.error if isinstance(reader.dialect, Dialect) else None
        if error is None or reader.gone or reader.ending is not None:
            return
        reader.notices.setdefault(code, lambda position: error(code, message, position))
        self._enqueue(reader.apart())

    def _enqueue(self, cohort: Cohort) -> None:
        if not cohort.queued:
            cohort.queued = True
            cohort.channel.idle.pop(cohort, None)
            self._due.append(cohort)

    def _serve(self, cohort: Cohort, likes: dict[Any, Cohort]) -> int:
        """Do what is due for one cohort; how many frames its readers were spared by what they were sent.

        `likes` are the cohorts that were served in the same turn and have room.
        """
        cohort.queued = False
        if not cohort.readers:
            return 0
        pace, sequence = cohort.pace, cohort.channel.sequence
        now_ms = self._clock_ms()
        merged = 0
        step = pace.step(now_ms, sequence.version, has_notice=cohort.has_notice)
        if step is Step.SEND:
            merged = self._send(cohort, now_ms)
            if not cohort.readers:
                return merged
            step = pace.step(now_ms, sequence.version, has_notice=cohort.has_notice)
        if step is Step.WAIT or step is Step.SEND:
            cohort.queued = True
            slot = math.ceil(max(pace.next_at_ms, now_ms) / SLOT_MS)
            if not self._joined(cohort, slot, likes):
                self._wheel.setdefault(slot, []).append(cohort)
        elif step is Step.REST and not self._joined(cohort, None, likes):
            cohort.channel.idle[cohort] = None
        return merged

    def _joined(self, cohort: Cohort, slot: int | None, likes: dict[Any, Cohort]) -> bool:
        """Make a cohort part of one of its likeness that waits at the same place, if one has room."""
        if cohort.apart is not None:
            busy = cohort.has_notice or cohort.apart.ending is not None
            if busy or cohort.pace.blocked_since_ms is not None:
                return False
            cohort.apart = None
        key = (slot, cohort.likeness)
        like = likes.get(key)
        # One that was alone may have been held up since: who joined it would be held up with it.
        if like is not None and like.apart is None and 0 < len(like.readers) <= BURST - len(cohort.readers):
            like.take(cohort)
            return True
        likes[key] = cohort
        return False

    def _send(self, cohort: Cohort, now_ms: float) -> int:
        pace, channel, dialect = cohort.pace, cohort.channel, cohort.dialect
        view = channel.sequence.latest
        if isinstance(dialect, Dialect):
            if (reader := cohort.apart) is not None:
                behind = pace.seen != channel.sequence.version and reader.ending is None
                # A board between two notices: who keeps causing errors still sees the board move.
                if reader.notices and not (reader.after_notice and behind):
                    self._send_notice(reader, dialect, now_ms)
                    return 0
                reader.after_notice = False
            gap_ms = self._gap_ms
            if view is None or not (pace.seen or dialect.greets_with(view)):
                return pace.saw(channel.sequence.version)
        else:
            gap_ms = self._tick_ms
            if view is None:
                return 0
        frame = channel.frame(cohort, view)
        failpoints.reach("push.encoded")
        if isinstance(dialect, Chained) and dialect.keeps:
            cohort.kept = channel.publication(pace.seen)
        merged = pace.saw(channel.sequence.version) * len(cohort.readers)
        pace.spoke(now_ms, gap_ms)
        self._write(cohort, frame)
        failpoints.reach("push.written")
        # The last was written ms after the first.
        done_ms = self._clock_ms()
        if isinstance(dialect, Dialect):
            pace.spoke(done_ms, gap_ms)
        else:
            pace.next_at_ms = self._next_tick_ms(done_ms)
        return merged

    def _next_tick_ms(self, now_ms: float) -> float:
        """The ticks are everybody's: the last reader then waits for the next one no longer than the first."""
        tick_ms = self._tick_ms
        return (now_ms // tick_ms + 1) * tick_ms if tick_ms else now_ms

    def _write(self, cohort: Cohort, frame: bytes) -> None:
        """Give a frame to every reader of a cohort.

        Nothing waits to be written to any of them, else its sink were full and the reader apart: so the
        frame goes straight to the descriptors. What one does not take its sink must keep.
        """
        give, size_bytes = self._give, len(frame)
        short: list[tuple[int, int]] = []
        for place, file in enumerate(cohort.files):
            try:
                taken = give(file, frame)
            except OSError:
                taken = 0
            if taken != size_bytes:
                short.append((place, taken))
        if short:
            # A socket that is full leaves its cohort.
            readers = list(cohort.readers)
            for place, taken in short:
                readers[place].sink.write(frame[taken:])

    def _send_notice(self, reader: Reader, dialect: Dialect, now_ms: float) -> None:
        code = next(iter(reader.notices))
        words = reader.notices.pop(code)(reader.channel.sequence.position)
        reader.after_notice = True
        reader.pace.spoke(now_ms, self._gap_ms)
        reader.sink.write(dialect.envelope(words, False))
        if reader.ending is not None and not reader.notices:
            self.end(reader, reader.ending)

    def _wake_at(self, at_ms: float) -> None:
        if at_ms < self._woken_at_ms:
            self._woken_at_ms = at_ms
            self._wake_in(max(0.0, at_ms - self._clock_ms()))
