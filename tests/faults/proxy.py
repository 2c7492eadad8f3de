"""A TCP proxy for one link between two processes, with the faults of a bad network.

The words are Toxiproxy's. Faults hold per direction: `up` is what the one who connects sends, `down`
what is sent back. Links live on one event loop; `Links` is the handle of other threads.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import uvloop

Direction = Literal["up", "down"]
BOTH: tuple[Direction, ...] = ("up", "down")
T = TypeVar("T")

_CHUNK = 65_536
_CALL_S = 20.0


@dataclass(slots=True)
class Weather:
    """What happens to the bytes of one direction; as made, nothing."""

    blackhole: bool = False
    """Read and dropped."""
    frozen: bool = False
    """Neither read nor written, the sockets stay: a half-open connection."""
    latency_ms: float = 0.0
    jitter_ms: float = 0.0
    bandwidth_kib_s: float = 0.0
    """0: any."""
    slice_bytes: int = 0
    """Written in pieces of this many bytes, 0: as they come."""
    slice_delay_ms: float = 0.0
    limit_bytes: int = 0
    """Reset once so many bytes of a connection have passed, 0: never."""


@dataclass(slots=True)
class Seen:
    """What a link has carried; a test of a fault's effect."""

    connections: int = 0
    resets: int = 0
    passed: dict[Direction, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    dropped: dict[Direction, int] = field(default_factory=lambda: {"up": 0, "down": 0})


class _Pair:
    """One connection: the two sockets and what was lost of it."""

    def __init__(self, writers: dict[Direction, asyncio.StreamWriter]) -> None:
        self.writers = writers
        self.torn = False
        """Bytes were dropped: what follows would make no sense any more."""

    def reset(self) -> None:
        for writer in self.writers.values():
            raw = writer.get_extra_info("socket")
            # ValueError: the other end was quicker, and it is closed.
            with suppress(OSError, AttributeError, ValueError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class Link:
    """One listening port in front of one server. All of it belongs to the loop."""

    def __init__(self, name: str, port: int, upstream: tuple[str, int]) -> None:
        self.name, self.port, self.upstream = name, port, upstream
        self.seen = Seen()
        self.weather: dict[Direction, Weather] = {"up": Weather(), "down": Weather()}
        self._thawed: dict[Direction, asyncio.Event] = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        """Take connections; those that are there stay."""
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=_CHUNK)

    async def close(self) -> None:
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # faults

    def cut(self) -> None:
        """Close every connection and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for pair in list(self._pairs):
            for writer in pair.writers.values():
                writer.close()
            pair.reset()

    def reset(self) -> int:
        """Reset every connection; new ones are taken. How many there were."""
        pairs = list(self._pairs)
        for pair in pairs:
            pair.reset()
        self.seen.resets += len(pairs)
        return len(pairs)

    def set(self, directions: Iterable[Direction], **changes: Any) -> None:
        """Change the weather of these directions; see `Weather`."""
        for direction in directions:
            weather = self.weather[direction]
            for name, value in changes.items():
                setattr(weather, name, value)
            self._thaw(direction)

    async def heal(self) -> None:
        """As made. Connections that lost bytes are reset, as they could only carry nonsense."""
        for direction in BOTH:
            self.weather[direction] = Weather()
            self._thaw(direction)
        for pair in list(self._pairs):
            if pair.torn:
                pair.reset()
        await self.listen()

    def _thaw(self, direction: Direction) -> None:
        if self.weather[direction].frozen:
            self._thawed[direction].clear()
        else:
            self._thawed[direction].set()

    # bytes

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.seen.connections += 1
        for direction in BOTH:
            self._thaw(direction)
        try:
            there, back = await asyncio.open_connection(*self.upstream, limit=_CHUNK)
        except OSError:
            _Pair({"down": writer}).reset()
            return
        pair = _Pair({"up": back, "down": writer})
        self._pairs.add(pair)
        pumps = [
            asyncio.create_task(self._pump("up", reader, back, pair)),
            asyncio.create_task(self._pump("down", there, writer, pair)),
        ]
        self._tasks.update(pumps)
        try:
            await asyncio.wait(pumps)
        finally:
            for pump in pumps:
                pump.cancel()
                self._tasks.discard(pump)
            self._pairs.discard(pair)
            for one in pair.writers.values():
                one.close()

    async def _pump(
        self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: _Pair
    ) -> None:
        carried = 0
        try:
            while True:
                await self._thawed[direction].wait()
                data = await reader.read(_CHUNK)
                await self._thawed[direction].wait()
                weather = self.weather[direction]
                if not data:
                    break
                if weather.blackhole:
                    self.seen.dropped[direction] += len(data)
                    pair.torn = True
                    continue
                carried += len(data)
                if 0 < weather.limit_bytes < carried:
                    self.seen.resets += 1
                    pair.reset()
                    return
                await self._slowly(weather, data, writer)
                self.seen.passed[direction] += len(data)
            # What ends without having been told to: the other side hears of it, unless nothing passes.
            while self.weather[direction].blackhole:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            with suppress(OSError, RuntimeError):
                writer.write_eof()
        except (OSError, asyncio.IncompleteReadError):
            pair.reset()

    async def _slowly(self, weather: Weather, data: bytes, writer: asyncio.StreamWriter) -> None:
        if weather.latency_ms or weather.jitter_ms:
            delay_ms = weather.latency_ms + random.uniform(-weather.jitter_ms, weather.jitter_ms)
            await asyncio.sleep(max(0.0, delay_ms) / 1000)
        if weather.bandwidth_kib_s:
            await asyncio.sleep(len(data) / 1024 / weather.bandwidth_kib_s)
        step = weather.slice_bytes or len(data)
        for begin in range(0, len(data), step):
            writer.write(data[begin : begin + step])
            await writer.drain()
            if weather.slice_delay_ms:
                await asyncio.sleep(weather.slice_delay_ms / 1000)


class Loop:
    """An event loop in a thread of its own; `call` runs a coroutine there and waits for it."""

    def __init__(self, name: str) -> None:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def call(self, work: Coroutine[Any, Any, T], *, within_s: float = _CALL_S) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(within_s)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_CALL_S)


class Links:
    """The links of a rig by name, for whoever is not on the loop."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._links: dict[str, Link] = {}

    def __getitem__(self, name: str) -> Link:
        return self._links[name]

    def add(self, name: str, port: int, upstream: tuple[str, int]) -> int:
        """A new link that listens on `port`; the port."""
        link = Link(name, port, upstream)
        self._links[name] = link
        self._loop.call(link.listen())
        return port

    def named(self, *patterns: str) -> list[str]:
        """The links whose names begin or end with one of these."""
        return [name for name in self._links if any(name.startswith(p) or name.endswith(p) for p in patterns)]

    def cut(self, *names: str) -> None:
        self._each(names, lambda link: link.cut())

    def reset(self, *names: str) -> int:
        return sum(self._each(names, lambda link: link.reset()))

    def blackhole(self, *names: str, directions: Iterable[Direction] = BOTH) -> None:
        self.set(*names, directions=directions, blackhole=True)

    def half_open(self, *names: str) -> None:
        self.set(*names, frozen=True)

    def set(self, *names: str, directions: Iterable[Direction] = BOTH, **changes: Any) -> None:
        """Change the weather on these links; see `Weather`."""
        self._each(names, lambda link: link.set(directions, **changes))

    def heal(self, *names: str) -> None:
        """These links (none named: all) as made."""
        for name in names or self._links:
            self._loop.call(self._links[name].heal())

    def turn(self, suffix: str, upstream: tuple[str, int]) -> None:
        """Let the links with this suffix lead elsewhere, and reset what is open."""
        for name in self.named(suffix):
            self._links[name].upstream = upstream
        self.reset(*self.named(suffix))

    def close(self) -> None:
        for link in self._links.values():
            self._loop.call(link.close())

    def _each(self, names: Iterable[str], act: Callable[[Link], T]) -> list[T]:
        async def there() -> list[T]:
            return [act(self._links[name]) for name in names]

        return self._loop.call(there())
