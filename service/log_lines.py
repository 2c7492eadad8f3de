"""Log lines on their way out: written at once, or lost and counted, never waited for.

A service whose log nobody takes (a full disk, a pipe that is not read or has no reader) goes on
serving. A pipe is asked for room before each piece, so that no write stands still; what does not fit
is lost. The first line that goes out again is told by one that says how many were lost before it.
"""

from __future__ import annotations

import os
import re
import select
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, TextIO

from service import metrics

_ROOM_BYTES: Final = 4096
"""What a pipe that is ready takes without standing still: PIPE_BUF of Linux."""
_LINE: Final = re.compile(rb"[^\n]*\n|[^\n]+$")
_PATIENCE_S: Final = 0.05
"""How long a line waits for a reader that kept up so far."""


class LogLines:
    """A text stream for whole lines over a file descriptor; any thread may write."""

    def __init__(self, descriptor: int, told: Callable[[int], str]) -> None:
        """`told` makes the line that says how many were lost."""
        self._descriptor, self._told = descriptor, told
        self._lock = threading.Lock()
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._lost = 0
        self._torn = False

    def write(self, text: str) -> int:
        """Write whole lines, their ends included; each of them goes out or is lost."""
        with self._lock:
            for lines in _pieces(text.encode(errors="backslashreplace")):
                self._write(lines)
        return len(text)

    def _write(self, lines: bytes) -> None:
        if self._lost and self._put(self._told(self._lost).encode()):
            self._lost = 0
        if self._lost or not self._put(lines):
            count = max(1, lines.count(b"\n"))
            self._lost += count
            metrics.LOG_LINES_LOST.inc(count)

    def flush(self) -> None:
        """Nothing is held back."""

    def _put(self, lines: bytes) -> bool:
        """Whether all of it went out. After a part of a line, the next one begins on a line of its own."""
        left = memoryview(b"\n" + lines if self._torn else lines)
        until_s = time.monotonic() + (0.0 if self._lost else _PATIENCE_S)
        try:
            while left:
                ready = self._poll.poll(max(0.0, until_s - time.monotonic()) * 1000)
                if not ready or not ready[0][1] & select.POLLOUT:
                    return False
                written = os.write(self._descriptor, left[:_ROOM_BYTES])
                self._torn = True
                left = left[written:]
        except OSError:
            return False
        self._torn = False
        return True


def _pieces(text: bytes) -> Iterator[bytes]:
    """Whole lines, as many together as a pipe takes at once."""
    if len(text) <= _ROOM_BYTES:
        yield text
        return
    piece: list[bytes] = []
    size = 0
    for line in _LINE.findall(text):
        if piece and size + len(line) > _ROOM_BYTES:
            yield b"".join(piece)
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    yield b"".join(piece)


def over(stream: TextIO, told: Callable[[int], str]) -> LogLines | TextIO:
    """Lines over the stream's descriptor; the stream itself if it is over none."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError, AttributeError):
        return stream
    return LogLines(descriptor, told)
