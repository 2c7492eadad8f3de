"""What it costs to show a board to ten thousand watchers.

The feed as it runs elsewhere, on one core, its publications coming by Kafka; on the other core
everything else, above all the watchers: one C program with a socket for each. Beside it, in turns
and with as many watchers: a C program that gives one ready frame to one send() after another, which
is the floor; a bare application with `litestar.channels`, which is what one would do without it; and
Centrifugo, if its program is named. Each publication is 1 KB to everybody, first one a second, then
as fast as makes 100,000 deliveries a second. Then, of the feed alone: a reader that never reads, a
broadcast that is compressed once, and all watchers coming back at once.

A publication's time is from the call that publishes it to the last watcher's read; for the feed that
has Kafka in it. CPU is the whole server process's. The floor never waits between two frames; the
feed does, and its gap is made 50 ms for the fast part.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import click

from bench import _broadcasters, _cpu, _stack
from bench._broadcasters import (
    CENTRIFUGE,
    CENTRIFUGE_PATH,
    CENTRIFUGO,
    CHANNELS,
    FIRST,
    FLOOR,
    PUSH,
    SCORES_PATH,
    Broadcaster,
)
from bench._report import Bar, Spread, circumstances, progress, publish, shown, table
from bench._watchers import DEFLATE, MARK, OFFSET_MARK, Seen, Watchers, compiled, watching
from core import catalogue
from push.sequencing import LINKS_MOST

FRAME_BYTES: Final = 1024
OFFERED_PER_S: Final = 100_000
FAST_GAP_MS: Final = 50.0
SETTLE_S: Final = 1.0

Run = Callable[[], AbstractContextManager[Broadcaster]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much of everything."""

    clients: int = 10_000
    rounds: int = 3
    slow: int = 8
    """Publications at one a second."""

    fast_s: float = 5.0
    stalled_clients: int = 200
    kept: int = LINKS_MOST
    stalled: int = 200
    packed_clients: int = 5_000
    packed: int = 20
    storm_clients: int = 5_000


TINY: Final = Sizes(
    clients=40,
    rounds=1,
    slow=2,
    fast_s=0.5,
    stalled_clients=20,
    kept=5,
    stalled=30,
    packed_clients=20,
    packed=4,
    storm_clients=40,
)


@dataclass(slots=True)
class Burst:
    """Publications at a rate, and what became of them. `missing`: deliveries that never came."""

    deliveries: int
    missing: int
    seconds: float
    server_cpu_s: float
    watchers_cpu_s: float
    bytes: int
    last_ms: list[float]

    @property
    def us_per_delivery(self) -> float:
        return self.server_cpu_s / self.deliveries * 1e6 if self.deliveries else 0.0


class Bench:
    """What all parts of the bench share."""

    def __init__(self, stack: _stack.Stack, sizes: Sizes, server_core: int) -> None:
        self.stack, self.sizes, self.core = stack, sizes, server_core
        self.watchers = compiled("watchers", stack.data)
        self.broadcaster = compiled("broadcaster", stack.data)
        self._number = FIRST

    def push(
        self,
        path: str = SCORES_PATH,
        *,
        gap_ms: float | None = None,
        frame_bytes: int = FRAME_BYTES,
    ) -> AbstractContextManager[Broadcaster]:
        return _broadcasters.push(
            self.stack, core=self.core, frame_bytes=frame_bytes, path=path, gap_ms=gap_ms
        )

    def floor(self) -> AbstractContextManager[Broadcaster]:
        return _broadcasters.floor(
            self.broadcaster,
            self.stack.port(),
            core=self.core,
            frame_bytes=FRAME_BYTES,
            data=self.stack.data,
        )

    def channels(self) -> AbstractContextManager[Broadcaster]:
        return _broadcasters.channels(
            self.stack.port(), core=self.core, frame_bytes=FRAME_BYTES, data=self.stack.data
        )

    def centrifugo(self, program: Path) -> AbstractContextManager[Broadcaster]:
        return _broadcasters.centrifugo(
            program, self.stack.port(), core=self.core, frame_bytes=FRAME_BYTES, data=self.stack.data
        )

    def watching(self, server: Broadcaster, clients: int, **options: Any) -> AbstractContextManager[Watchers]:
        return watching(self.watchers, server.port, server.path, clients, hellos=server.hellos, **options)

    def burst(
        self,
        server: Broadcaster,
        watchers: Watchers,
        publications: int,
        per_s: float | None = None,
        *,
        silent: int = 0,
        compressed: bool = False,
    ) -> Burst:
        """Publish at this rate whatever comes of it, and wait until the last is everywhere.

        Without a rate the next one waits until everybody who reads has the last. Frames that are
        compressed are counted and not read, so nothing is known of their times.
        """
        watchers.report(before := Seen())
        seen, reading = Seen(), watchers.clients - silent
        published_us: dict[int, int] = {}
        server_before_s, begun_s = _cpu.alone_s(server.pid), time.monotonic()
        for index in range(publications):
            if per_s is not None:
                time.sleep(max(0.0, begun_s + index / per_s - time.monotonic()))
            elif index and not self._has_come(watchers, seen, index, reading, compressed):
                break
            self._number += 1
            published_us[self._number] = time.time_ns() // 1000
            server.publish(self._number)
        self._has_come(watchers, seen, publications, reading, compressed)
        ours = {number: seen.by_number[number] for number in published_us if number in seen.by_number}
        deliveries = seen.frames if compressed else sum(each.clients for each in ours.values())
        last_us = max((each.last_us for each in ours.values()), default=0)
        return Burst(
            deliveries=deliveries,
            missing=publications * reading - deliveries,
            seconds=(last_us - min(published_us.values())) / 1e6,
            server_cpu_s=_cpu.alone_s(server.pid) - server_before_s,
            watchers_cpu_s=seen.cpu_s - before.cpu_s,
            bytes=seen.bytes,
            last_ms=[
                (each.last_us - published_us[number]) / 1000
                for number, each in ours.items()
                if each.clients >= reading
            ],
        )

    def _has_come(
        self, watchers: Watchers, seen: Seen, publications: int, reading: int, compressed: bool
    ) -> bool:
        """Wait until everybody who reads has the last publication, or nothing comes any more."""
        if compressed:
            return watchers.until_frames(seen, publications * reading)
        return watchers.until_shown(seen, self._number, reading)


def broadcast(bench: Bench, run: Run) -> dict[str, float]:
    """One server with all the watchers: connecting, memory, the slow and the fast part."""
    sizes = bench.sizes
    with run() as server:
        before_bytes = _cpu.resident_bytes(server.pid)
        with bench.watching(server, sizes.clients) as watchers:
            time.sleep(SETTLE_S)
            kb = (_cpu.resident_bytes(server.pid) - before_bytes) / sizes.clients / 1024
            slow = bench.burst(server, watchers, sizes.slow, 1.0)
            per_s = OFFERED_PER_S / sizes.clients
            fast = bench.burst(server, watchers, max(1, int(per_s * sizes.fast_s)), per_s)
    return {
        "connect_s": watchers.connected_s,
        "kb_per_connection": kb,
        "cpu_us_per_delivery": slow.us_per_delivery,
        "last_ms": statistics.median(slow.last_ms) if slow.last_ms else float("inf"),
        "missing": slow.missing,
        "fast_cpu_us_per_delivery": fast.us_per_delivery,
        "fast_per_s": fast.deliveries / fast.seconds if fast.seconds else 0.0,
        "fast_last_ms": statistics.median(fast.last_ms) if fast.last_ms else float("inf"),
        "fast_missing": fast.missing,
    }


def stalled(bench: Bench) -> dict[str, float]:
    """One reader of many never reads: who misses what, and what it costs in memory."""
    sizes = bench.sizes
    with bench.push(gap_ms=10.0, frame_bytes=16 * 1024) as server:
        with bench.watching(server, sizes.stalled_clients, silent=1) as watchers:
            watchers.wait_served()
            # What is kept of recent publications is kept for all, and is there before.
            bench.burst(server, watchers, sizes.kept, silent=1)
            before_bytes = _cpu.resident_bytes(server.pid)
            burst = bench.burst(server, watchers, sizes.stalled, silent=1)
            grown_bytes = _cpu.resident_bytes(server.pid) - before_bytes
    return {
        "deliveries": burst.deliveries,
        "missing": burst.missing,
        "unread_mb": sizes.stalled * 16 / 1024,
        "grown_mb": grown_bytes / 2**20,
        "last_ms": statistics.median(burst.last_ms) if burst.last_ms else float("inf"),
    }


def packed(bench: Bench, server: Broadcaster) -> dict[str, dict[str, float]]:
    """The same board plain, compressed once for all, as differences, and as both."""
    sizes, found = bench.sizes, {}
    for path, delta, compressed in (
        (SCORES_PATH, "", False),
        (SCORES_PATH, "", True),
        (CENTRIFUGE_PATH, "", False),
        (CENTRIFUGE_PATH, "", True),
        (CENTRIFUGE_PATH, "fossil", False),
        (CENTRIFUGE_PATH, "fossil", True),
    ):
        options: dict[str, Any] = {"headers": (DEFLATE,)} if compressed else {}
        mark = OFFSET_MARK if delta else MARK
        with bench.watching(server.at(path, delta), sizes.packed_clients, mark=mark, **options) as watchers:
            watchers.wait_served()
            # The first one that is sent as a difference follows one that was sent whole.
            bench.burst(server, watchers, 2, compressed=compressed)
            burst = bench.burst(server, watchers, sizes.packed, compressed=compressed)
        words = (path, "differences" if delta else "", "compressed" if compressed else "")
        found[", ".join(filter(None, words))] = {
            "bytes_per_delivery": burst.bytes / burst.deliveries if burst.deliveries else 0.0,
            "cpu_us_per_delivery": burst.us_per_delivery,
            "deliveries": burst.deliveries,
        }
    return found


def storm(bench: Bench, server: Broadcaster) -> dict[str, float]:
    """All watchers are cut off and come back at once: until the last has its board."""
    clients = bench.sizes.storm_clients
    with bench.watching(server, clients) as watchers:
        watchers.wait_served()
    before_s = _cpu.alone_s(server.pid)
    with bench.watching(server, clients, at_once=clients) as watchers:
        served_s = watchers.wait_served()
    cpu_s = _cpu.alone_s(server.pid) - before_s
    return {"clients": clients, "served_s": served_s, "cpu_ms_per_client": cpu_s / clients * 1000}


@click.command(help=(__doc__ or "").partition("\n\n")[0])
@click.option("--clients", type=click.IntRange(1, 25_000), help="Watchers of the broadcast (default 10,000).")
@click.option("--rounds", type=click.IntRange(1), help="Turns of each server (default 3).")
@click.option(
    "--centrifugo",
    "centrifugo_program",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A binary of Centrifugo 6, to be measured in the same turns.",
)
@click.option("--quick", is_flag=True, help="Tiny sizes: shows that it runs, measures nothing.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON; the tables go to standard error.")
def main(
    clients: int | None, rounds: int | None, centrifugo_program: Path | None, quick: bool, as_json: bool
) -> None:
    sizes = TINY if quick else Sizes()
    sizes = replace(sizes, clients=clients or sizes.clients, rounds=rounds or sizes.rounds)
    server_core, others = _cores()
    # Inherited by all that is started here, but for the servers measured.
    os.sched_setaffinity(0, others)
    _allow_many_sockets()
    with _stack.stack(progress) as stack:
        progress("starting Postgres, Valkey and Kafka")
        stack.start_servers(catalogue.shipped())
        facts = circumstances("fanout", stack.data, stack.versions())
        facts["machine"]["cores"] = os.cpu_count()
        # It makes the board that the feed compares with; nothing is judged.
        stack.start_services("stream_app")
        bench = Bench(stack, sizes, server_core)
        runs: dict[str, Run] = {
            PUSH: lambda: bench.push(gap_ms=FAST_GAP_MS),
            CENTRIFUGE: lambda: bench.push(CENTRIFUGE_PATH),
            FLOOR: bench.floor,
            CHANNELS: bench.channels,
        }
        if centrifugo_program is not None:
            runs[CENTRIFUGO] = lambda: bench.centrifugo(centrifugo_program)
        measured = _in_turns(bench, runs)
        progress("a reader that never reads")
        unread = stalled(bench)
        progress("compressed, and as differences")
        with bench.push(gap_ms=FAST_GAP_MS) as server:
            small = packed(bench, server)
            progress(f"{sizes.storm_clients:,} come back at once")
            back = storm(bench, server)
    settings = {**asdict(sizes), "frame_bytes": FRAME_BYTES, "server_core": server_core}
    _tell({**facts, "settings": settings}, measured, unread, small, back, as_json=as_json)


def _in_turns(bench: Bench, runs: Mapping[str, Run]) -> dict[str, dict[str, Spread]]:
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for number in range(bench.sizes.rounds):
        for name, run in runs.items():
            progress(f"round {number + 1}: {name}")
            rounds[name].append(broadcast(bench, run))
    return {
        name: {figure: Spread.of(each[figure] for each in listed) for figure in listed[0]}
        for name, listed in rounds.items()
    }


def _cores() -> tuple[int, set[int]]:
    """The core of the server, and those of everything else; one core must do for both if there is one."""
    available = sorted(os.sched_getaffinity(0))
    return available[0], set(available[1:2] or available)


def _allow_many_sockets() -> None:
    """A socket is an open file; what is started from here may have as many as we may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _bars(
    measured: Mapping[str, Mapping[str, Spread]],
    unread: Mapping[str, float],
    small: Mapping[str, Mapping[str, float]],
) -> list[Bar]:
    ours, floor, channels = measured[PUSH], measured[FLOOR], measured[CHANNELS]

    def against(name: str, figure: str, rival: Mapping[str, Spread], most: float) -> Bar:
        ratio = ours[figure].median / rival[figure].median if rival[figure].median else float("inf")
        return Bar(name, ratio, f"≤ {most}", ratio <= most)

    def of_plain(path: str, name: str, figure: str, most: float) -> Bar:
        plain, compressed = (small[way][figure] for way in (path, f"{path}, compressed"))
        ratio = compressed / plain if plain else float("inf")
        return Bar(f"{path}, {name} compressed, times plain", ratio, f"≤ {shown(most)}", ratio <= most)

    bars = [
        against("CPU per delivery, times the C program's", "cpu_us_per_delivery", floor, 1.6),
        against("CPU per delivery, times litestar.channels'", "cpu_us_per_delivery", channels, 0.5),
        against("last watcher, times the C program's", "last_ms", floor, 1.7),
        at_least("deliveries/s of one core, 100,000 offered", ours["fast_per_s"].median, 80_000),
        at_most("KB a connection that is idle", ours["kb_per_connection"].median, 25.0),
        at_most("frames others missed beside a reader that never reads", unread["missing"], 0),
        at_most("MB the server grew by it", unread["grown_mb"], 1.0),
        *(of_plain(path, "CPU", "cpu_us_per_delivery", 1.15) for path in (SCORES_PATH, CENTRIFUGE_PATH)),
        *(of_plain(path, "bytes", "bytes_per_delivery", 1 / 3) for path in (SCORES_PATH, CENTRIFUGE_PATH)),
    ]
    if CENTRIFUGO in measured:
        rival = measured[CENTRIFUGO]
        bars += [
            against("CPU per delivery, times Centrifugo's", "cpu_us_per_delivery", rival, 0.5),
            against("memory a connection, times Centrifugo's", "kb_per_connection", rival, 0.5),
        ]
    return bars


def at_most(name: str, value: float, most: float) -> Bar:
    return Bar(name, value, f"≤ {most:g}", value <= most)


def at_least(name: str, value: float, least: float) -> Bar:
    return Bar(name, value, f"≥ {least:,.0f}", value >= least)


def _tell(
    facts: Mapping[str, Any],
    measured: Mapping[str, Mapping[str, Spread]],
    unread: Mapping[str, float],
    small: Mapping[str, Mapping[str, float]],
    back: Mapping[str, float],
    *,
    as_json: bool,
) -> None:
    bars = _bars(measured, unread, small)
    settings = facts["settings"]
    publish(
        {**facts, "broadcast": measured, "stalled": unread, "packed": small, "storm": back, "bars": bars},
        [
            table(
                (
                    f"{settings['clients']:,} watchers × 1 KB, {settings['rounds']} rounds",
                    "µs CPU/delivery",
                    "last, ms",
                    f"µs CPU at {OFFERED_PER_S:,}/s",
                    "deliveries/s",
                    "last, ms",
                    "KB/connection",
                    "connect, s",
                ),
                [
                    (
                        name,
                        each["cpu_us_per_delivery"],
                        each["last_ms"],
                        each["fast_cpu_us_per_delivery"],
                        each["fast_per_s"],
                        each["fast_last_ms"],
                        each["kb_per_connection"],
                        each["connect_s"],
                    )
                    for name, each in measured.items()
                ],
            ),
            table(
                ("the same board", "bytes/delivery", "µs CPU/delivery"),
                [
                    (name, shown(each["bytes_per_delivery"]), shown(each["cpu_us_per_delivery"]))
                    for name, each in small.items()
                ],
            ),
            f"one of {settings['stalled_clients']} never reads: the others missed {unread['missing']:.0f} of "
            f"{unread['deliveries'] + unread['missing']:,.0f} frames, the server grew by "
            f"{shown(unread['grown_mb'])} MB; {shown(unread['unread_mb'])} MB were for it\n"
            f"{back['clients']:,.0f} come back at once: all have their board after "
            f"{shown(back['served_s'])} s, {shown(back['cpu_ms_per_client'])} ms of CPU each",
            "\n".join(map(str, bars)),
        ],
        as_json=as_json,
    )


if __name__ == "__main__":
    main()
