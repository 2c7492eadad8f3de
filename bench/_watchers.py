"""Thousands of WebSocket clients in one process of C, and what they saw.

The sources beside this file are compiled when a bench runs. Instants are the wall clock's, in µs.
"""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

AT_ONCE: Final = 256
"""Handshakes under way, where a crowd comes politely."""

KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="
"""The one key whose answer `_broadcaster.c` knows (RFC 6455 §1.3)."""

MARK: Final = '"revision":'
OFFSET_MARK: Final = '"offset":'
"""What comes before a frame's number; the second in Centrifuge's frames, differences too."""

DEFLATE: Final = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
"""What browsers offer."""

LOOK_EVERY_S: Final = 0.02

_PATIENCE_S: Final = 180.0
_SETTLE_S: Final = 10.0
_SOURCES: Final = Path(__file__).parent


class CannotRun(Exception):
    """Something that the bench needs is not there, or a process of it ended."""


def compiled(name: str, into: Path) -> Path:
    """The program of `bench/_<name>.c`, made anew.

    Raises:
        CannotRun: there is no C compiler, or it refused.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise CannotRun("no C compiler: install gcc")
    program = into / name
    source = _SOURCES / f"_{name}.c"
    argv = [compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(source)]
    ended = subprocess.run(argv, capture_output=True, text=True)
    if ended.returncode:
        raise CannotRun(ended.stderr)
    return program


@dataclass(slots=True)
class Shown:
    """One publication as the watchers saw it: how many did, and when the first and the last."""

    clients: int
    first_us: int
    last_us: int


@dataclass(slots=True)
class Seen:
    """What came to all watchers: `by_number` has every frame that could be read, `all_at_least` the
    instants since when everybody who reads has seen at least a number, as (instant, number)."""

    frames: int = 0
    bytes: int = 0
    lost: int = 0
    cpu_s: float = 0.0
    by_number: dict[int, Shown] = field(default_factory=dict)
    all_at_least: list[tuple[int, int]] = field(default_factory=list)

    def add(self, report: Any) -> None:
        """Add what came since the last report."""
        self.frames += report["frames"]
        self.bytes += report["bytes"]
        self.lost, self.cpu_s = report["lost"], report["cpu_s"]
        for number, clients, first_us, last_us in report["seen"]:
            known = self.by_number.setdefault(number, Shown(0, first_us, last_us))
            known.clients += clients
            known.last_us = max(known.last_us, last_us)
        self.all_at_least += [(at_us, number) for number, at_us in report["all"]]


class Watchers:
    """A running crowd. `connected_s` and `served_s` are since it began to connect."""

    def __init__(self, process: subprocess.Popen[bytes], clients: int) -> None:
        self._process, self.clients = process, clients
        assert process.stdout is not None
        self._output, self._received = process.stdout.fileno(), b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._output, selectors.EVENT_READ)
        self.connected_s = float(self._line(_PATIENCE_S)["connected_s"])
        self.served_s: float | None = None

    def wait_served(self) -> float:
        """Seconds until each that reads had its first frame."""
        if self.served_s is None:
            self.served_s = float(self._line(_PATIENCE_S)["served_s"])
        return self.served_s

    def report(self, seen: Seen) -> None:
        """Add to `seen` what came since the last report."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"report\n")
        self._process.stdin.flush()
        while "seen" not in (answer := self._line(_PATIENCE_S)):
            self.served_s = float(answer["served_s"])
        seen.add(answer)

    def until_shown(self, seen: Seen, number: int, clients: int) -> bool:
        """Report until so many have seen this number; False if nothing has come for a while."""
        frames, since_s = -1, time.monotonic()
        while True:
            self.report(seen)
            shown = seen.by_number.get(number)
            if shown is not None and shown.clients >= clients:
                return True
            if seen.frames != frames:
                frames, since_s = seen.frames, time.monotonic()
            elif time.monotonic() - since_s > _SETTLE_S:
                return False
            time.sleep(LOOK_EVERY_S)

    def until_frames(self, seen: Seen, frames: int) -> bool:
        """Report until so many frames have come; False if none has for a while."""
        had, since_s = -1, time.monotonic()
        while seen.frames < frames:
            self.report(seen)
            if seen.frames != had:
                had, since_s = seen.frames, time.monotonic()
            elif time.monotonic() - since_s > _SETTLE_S:
                return False
            time.sleep(LOOK_EVERY_S)
        return True

    def _line(self, patience_s: float) -> Any:
        # Read here rather than by `readline`: what waits in its buffer no selector sees.
        while b"\n" not in self._received:
            if not self._selector.select(patience_s):
                raise CannotRun(f"the watchers said nothing for {patience_s:.0f} s")
            came = os.read(self._output, 1 << 16)
            if not came:
                raise CannotRun(f"the watchers ended with code {self._process.wait()}")
            self._received += came
        line, _, self._received = self._received.partition(b"\n")
        return msgspec.json.decode(line)


@contextmanager
def watching(
    program: Path,
    port: int,
    path: str,
    clients: int,
    *,
    hellos: Sequence[str] = (),
    mark: str = MARK,
    headers: Sequence[str] = (),
    silent: int = 0,
    at_once: int = AT_ONCE,
) -> Iterator[Watchers]:
    """Connect so many, read until the end of the context, then cut them all off."""
    lines = (
        f"GET {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {KEY}",
        "Sec-WebSocket-Version: 13",
        *headers,
    )
    head = "".join(f"{line}\r\n" for line in lines) + "\r\n"
    numbers = map(str, (port, clients, at_once, silent))
    argv = [str(program), *numbers, mark, head, *hellos]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield Watchers(process, clients)
        finally:
            process.kill()
