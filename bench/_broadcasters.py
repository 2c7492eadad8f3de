"""The servers of `bench/fanout.py`: the feed and its rivals, each in a process pinned to one core.

All are told to publish from here, so that one clock stamps what is published and what arrives: the
feed by a record on its real topic, the others by a line on their standard input or their own API.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Final
from uuid import UUID

from confluent_kafka import Producer

from bench import _stack
from bench._watchers import CannotRun
from core import events, feed, words
from core.feed import Publication, View
from core.times import format_us
from core.topics import BOARD_CHANGED
from trueboard.devstack.service import Service

FIRST: Final = 1_000_001
"""The first number published: all have seven digits."""

EPOCH: Final = "7y" + 24 * "z"
"""After every epoch of a ledger, so that no board of the real one is newer than what is published."""

PUSH, CENTRIFUGE, FLOOR, CHANNELS, CENTRIFUGO = (
    "push /ws/scores",
    "push /connection/websocket",
    "C epoll",
    "litestar.channels",
    "Centrifugo",
)

SCORES_PATH: Final = "/ws/scores"
CENTRIFUGE_PATH: Final = "/connection/websocket"

HELLOS: Final = ('{"id":1,"connect":{}}', '{"id":2,"subscribe":{"channel":"%s","delta":"%s"}}')
"""How a client of Centrifuge's protocol begins."""

_START_S: Final = 30.0
_STOP_S: Final = 10.0
_BEGAN_US: Final = 1_763_700_000_000_000


@dataclass(frozen=True, slots=True)
class Broadcaster:
    """A running server: `publish` takes the next number, `hellos` is what its clients say first."""

    name: str
    pid: int
    port: int
    path: str
    publish: Callable[[int], None]
    hellos: tuple[str, ...] = ()

    def at(self, path: str, delta: str = "") -> Broadcaster:
        """The same feed by another path; `delta` is what Centrifuge's clients ask for."""
        return replace(self, path=path, hellos=hellos_at(path, delta))


class Boards:
    """Publications of a board that moves: each time one to three of its ten leaders gain points.

    User ids are a UUID and a realm, as long as makes a frame of `/ws/scores` `frame_bytes` long.
    """

    def __init__(self, frame_bytes: int, *, seed: int = 1) -> None:
        self._dice = Random(seed)
        self._ids = [str(UUID(int=self._dice.getrandbits(128), version=4)) + "@" for _ in range(feed.TOP)]
        self._scores = [20_000_000 - 1_000 * place for place in range(feed.TOP)]
        missing = frame_bytes - len(feed.scores_frame(View.of_publication(self.next(FIRST))))
        realm = "players.example.com." * (max(0, missing) // (feed.TOP * 20) + 1)
        for place in range(feed.TOP):
            self._ids[place] += realm[: max(0, missing + place) // feed.TOP]

    def next(self, number: int) -> Publication:
        """The publication of this revision; instants rise with it."""
        movers = self._dice.sample(range(feed.TOP), self._dice.randint(1, 3))
        for mover in movers:
            self._scores[mover] += self._dice.randint(1, 900)
        order = sorted(range(feed.TOP), key=lambda place: (-self._scores[place], place))
        at = format_us(_BEGAN_US + number * 1_000)
        return Publication(
            board=words.MAIN_BOARD,
            window=words.ALL_TIME,
            epoch=EPOCH,
            revision=number,
            previous=number - 1,
            digest=f"{number:064x}",
            count=10_000,
            changed=[events.ChangedEntry(*self._who(mover), self._scores[mover], at) for mover in movers],
            top=[
                events.RankedEntry(rank, *self._who(place), self._scores[place], at)
                for rank, place in enumerate(order, 1)
            ],
        )

    def _who(self, place: int) -> tuple[str, str]:
        return self._ids[place], f"player-{place}"


@contextmanager
def push(
    stack: _stack.Stack,
    *,
    core: int,
    frame_bytes: int,
    path: str = SCORES_PATH,
    gap_ms: float | None = None,
) -> Iterator[Broadcaster]:
    """The feed as it runs elsewhere, but for its limits per address; the topic is empty of other news."""
    port, metrics_port = stack.port(), stack.port()
    env = {"LOOPBACK_MAX_SOCKETS": "100000", "FEED_PORT": str(port), "METRICS_PORT": str(metrics_port)}
    if gap_ms is not None:
        env["FRAME_GAP_MS"] = str(gap_ms)
    service = Service(
        "push", (), metrics_port=metrics_port, log=stack.data / "logs" / "push.log", env=dict[str, str]
    )
    boards = Boards(frame_bytes)
    producer = Producer({"bootstrap.servers": stack.bootstrap, "linger.ms": 0, "log_level": 2})

    def publish(number: int) -> None:
        producer.produce(BOARD_CHANGED.name, events.encode(boards.next(number)), key=words.MAIN_PERIOD)
        if producer.flush(_STOP_S):
            raise CannotRun("Kafka did not take a publication")

    argv = (sys.executable, "-P", "-m", "push")
    with _running("push", argv, core, stack.data, stack.environment(env), service.is_ready) as process:
        name = CENTRIFUGE if path == CENTRIFUGE_PATH else PUSH
        yield Broadcaster(name, process.pid, port, path, publish, hellos_at(path))


@contextmanager
def floor(program: Path, port: int, *, core: int, frame_bytes: int, data: Path) -> Iterator[Broadcaster]:
    """`_broadcaster.c`: the least that can be done."""
    argv = (str(program), str(port), str(frame_bytes))
    with _running("floor", argv, core, data, os.environ, lambda: _listens(port)) as process:
        yield Broadcaster(FLOOR, process.pid, port, "/", _by_line(process))


@contextmanager
def channels(port: int, *, core: int, frame_bytes: int, data: Path) -> Iterator[Broadcaster]:
    """`_channels.py`: what a Litestar application comes with."""
    argv = (sys.executable, "-P", "-m", "bench._channels", str(port), str(frame_bytes))
    with _running("channels", argv, core, data, os.environ, lambda: _listens(port)) as process:
        yield Broadcaster(CHANNELS, process.pid, port, "/board", _by_line(process))


@contextmanager
def centrifugo(program: Path, port: int, *, core: int, frame_bytes: int, data: Path) -> Iterator[Broadcaster]:
    """A binary of Centrifugo 6, with a channel open to everybody and no history."""
    configuration = {
        "http_server": {"address": _stack.HOST, "port": str(port)},
        "http_api": {"insecure": True},
        "client": {"insecure": True},
        "channel": {"without_namespace": {"allow_subscribe_for_client": True}},
        "log": {"level": "error"},
    }
    file = data / "centrifugo.json"
    file.write_text(json.dumps(configuration))
    connection = http.client.HTTPConnection(_stack.HOST, port, timeout=_STOP_S)

    def publish(number: int) -> None:
        board = {"revision": number, "pad": "x" * (frame_bytes - len('{"revision":1000001,"pad":""}'))}
        body = json.dumps({"channel": "board", "data": board}, separators=(",", ":"))
        connection.request("POST", "/api/publish", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != 200 or b'"error"' in said:
            raise CannotRun(f"Centrifugo refused a publication: {answer.status} {said!r}")

    argv = (str(program), "--config", str(file))
    env = {**os.environ, "GOMAXPROCS": "1"}
    with _running("centrifugo", argv, core, data, env, lambda: _listens(port)) as process:
        yield Broadcaster(CENTRIFUGO, process.pid, port, CENTRIFUGE_PATH, publish, _hellos("board"))


def hellos_at(path: str, delta: str = "") -> tuple[str, ...]:
    """What a client of the feed says first, by this path."""
    return _hellos("board:main", delta) if path == CENTRIFUGE_PATH else ()


def _hellos(channel: str, delta: str = "") -> tuple[str, ...]:
    return HELLOS[0], HELLOS[1] % (channel, delta)


def _by_line(process: subprocess.Popen[bytes]) -> Callable[[int], None]:
    def publish(number: int) -> None:
        assert process.stdin is not None
        process.stdin.write(b"%d\n" % number)
        process.stdin.flush()

    return publish


def _listens(port: int) -> bool:
    return _stack.ServerOf("", (), port=port, log=Path(os.devnull)).is_ready()


@contextmanager
def _running(
    name: str, argv: Sequence[str], core: int, data: Path, env: Any, ready: Callable[[], bool]
) -> Iterator[subprocess.Popen[bytes]]:
    log = data / "logs" / f"{name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *argv], stdin=subprocess.PIPE, stdout=output, stderr=output, env=env
        )
    try:
        deadline_s = time.monotonic() + _START_S
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise CannotRun(f"{name} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
