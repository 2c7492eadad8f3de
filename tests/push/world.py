"""A hub in a world whose clock the test moves, with sockets that remember what was written."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from core.words import MAIN_PERIOD
from push.channels import Chained, Dialect, Flow, Reader
from push.close_codes import CloseCode
from push.hub import Hub


@dataclass(frozen=True)
class Written:
    """A frame, when it was written, and where the board stood then."""

    at_ms: float
    frame: dict[str, Any]
    latest: tuple[str, int]

    @property
    def position(self) -> tuple[str, int]:
        return self.frame["epoch"], self.frame["revision"]

    @property
    def is_board(self) -> bool:
        return self.frame.get("type") not in ("error", "connection_success")


@dataclass(eq=False)
class Socket:
    """A sink; once `room` frames are in it, it tells the hub that it is full.

    Of the frame that fills it, its descriptor takes but a part, or nothing at all: the rest waits in
    the sink, and whatever comes before that has left would be read as a part of it.
    """

    world: World
    file: int
    room: float = math.inf
    written: list[Written] = field(default_factory=list)
    closed: CloseCode | None = None
    compressed: bool = False
    reader: Reader | None = None
    taken: bytes = b""

    def attach(self, flow: Flow, reader: Reader) -> None:
        assert flow is self.world.hub
        self.reader = reader

    def give(self, frame: bytes) -> int:
        """What the descriptor does with a frame: how many bytes of it are taken."""
        assert self.room > 0, "what waits goes first"
        assert self.reader is not None
        assert not self.reader.gone, "the descriptor may be another's by now"
        if self.room > 1:
            self._read(frame)
            return len(frame)
        if self.file % 2:
            raise BlockingIOError
        self.taken = frame[:-1]
        return len(self.taken)

    def write(self, frame: bytes) -> None:
        self._read(self.taken + frame)
        self.taken = b""

    def _read(self, frame: bytes) -> None:
        assert self.closed is None, "nothing is written after the close frame"
        body = json.loads(frame[2:] if frame[1] < 126 else frame[4:] if frame[1] == 126 else frame[10:])
        self.written.append(Written(self.world.now_ms, body, self.world.position))
        self.room -= 1
        if self.room <= 0 and self.reader is not None:
            self.world.hub.block(self.reader)

    def end(self, code: CloseCode) -> None:
        assert self.closed is None, "a socket is closed once"
        self.closed = code

    @property
    def boards(self) -> list[dict[str, Any]]:
        return [written.frame for written in self.written if written.is_board]


class World:
    """A hub, its clock (ms) and the wall clock (s), and its one timer."""

    def __init__(self, *, gap_ms: float = 100.0, stall_limit_ms: float = 10_000.0) -> None:
        self.now_ms = 1_000_000.0
        self._wake_at_ms = math.inf
        self.turns = 0
        self.sockets: list[Socket] = []
        self.hub = Hub(
            [MAIN_PERIOD],
            clock_ms=lambda: self.now_ms,
            wake_in=self._wake_in,
            gap_ms=gap_ms,
            stall_limit_ms=stall_limit_ms,
            give=lambda file, frame: self.sockets[file].give(frame),
        )

    @property
    def now_s(self) -> float:
        return 1_700_000_000 + self.now_ms / 1000

    @property
    def position(self) -> tuple[str, int]:
        return self.hub.channels[MAIN_PERIOD].sequence.position

    def join(self, dialect: Dialect, *, room: float = math.inf, expires_in_s: float | None = None) -> Socket:
        socket = Socket(self, len(self.sockets), room)
        self.sockets.append(socket)
        expires_at_s = None if expires_in_s is None else self.now_s + expires_in_s
        self.hub.join(socket, dialect, MAIN_PERIOD, user_id="ada", expires_at_s=expires_at_s)
        return socket

    def follow(self, dialect: Chained) -> Socket:
        socket = Socket(self, len(self.sockets))
        self.sockets.append(socket)
        self.hub.follow(socket, dialect, MAIN_PERIOD)
        return socket

    def drain(self, socket: Socket, room: float = math.inf) -> None:
        """The socket's other side reads all there is."""
        socket.room = room
        if socket.reader is not None:
            self.hub.unblock(socket.reader)

    def pass_ms(self, duration_ms: float) -> None:
        """Let time pass, firing the hub's timer when it is due."""
        until_ms = self.now_ms + duration_ms
        while self._wake_at_ms <= until_ms:
            self.now_ms = max(self.now_ms, self._wake_at_ms)
            self._wake_at_ms = math.inf
            self.turns += 1
            self.hub.wake()
        self.now_ms = until_ms

    def _wake_in(self, delay_ms: float) -> None:
        # As the loop's timers do: whole milliseconds, never too early.
        self._wake_at_ms = self.now_ms + math.ceil(delay_ms)
