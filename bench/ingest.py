"""What taking an action in costs: one by one, in batches, and with the verdict waited for.

The real door (`python -m ingest`) with token, validation, limits in Valkey and Kafka's awaited
confirmation, beside the floor: a bare ASGI application on the door's own server that reads nothing
and says 202. Both get the same requests from the same load, a closed loop over
keep-alive connections, in turns. The load's token is a trusted back end's, with its rate set out
of the way, so no limit refuses; each is asked all the same.

Then with a worker of the stream beside it: the same actions with and without `Prefer: wait=2`.
There each round ends when the ledger, Valkey and the topics have all of it, so that what an
answer in time costs further on is counted too.

CPU is that of the whole process, per action. Bars: one action ≤ 2.0 times the floor; one of a
batch of 100 ≤ 1/10 of one alone.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.request import urlopen

import click
import msgspec

from bench import _cpu, _load, _stack
from bench._report import Bar, Spread, circumstances, progress, publish, table
from core import catalogue

BATCH: Final = 100
WAIT_S: Final = 2
MOST_TIMES_THE_FLOOR: Final = 2.0
MOST_OF_A_SINGLE: Final = 0.1

_ENV: Final = {
    # No limit refuses, and none is left out: each request still asks for all of its own.
    "TRUSTED_RATE_PER_S": "1000000",
    # Without a stream nothing is judged, which is not what is measured here.
    "SHED_AFTER_S": "1000000",
}
_PROCESSES: Final = ("ingest", "stream_app", "postgres", "valkey", "kafka")
_GENTLE: Final = ("ingest", "valkey", "kafka")


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to send. `of` is the process whose CPU counts first."""

    name: str
    of: str
    batch: int = 0
    wait_s: int = 0
    connections: int


@dataclass(slots=True)
class Rounds:
    """What the rounds of one way came to; CPU in µs per action, by process."""

    per_s: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    cpu_us: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    statuses: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))

    def row(self) -> dict[str, Any]:
        return {
            "actions_per_s": Spread.of(self.per_s),
            "p50_ms": Spread.of(self.p50_ms),
            "p99_ms": Spread.of(self.p99_ms),
            "cpu_us_per_action": {name: Spread.of(values) for name, values in self.cpu_us.items()},
            "statuses": dict(self.statuses),
        }


class Bench:
    """Sends round after round and keeps the books."""

    def __init__(self, stack: _stack.Stack, looking: _stack.Looking, bare_port: int, users: int) -> None:
        self._stack, self._looking, self._users = stack, looking, users
        self._ports = {"bare": bare_port, "ingest": stack.http_port}
        self._token, self._run = stack.token(), _stack.run_id()
        self._next = 0
        self.sent = 0

    def play(self, way: Way, seconds: float, into: Rounds | None, *, to_the_end: bool = False) -> None:
        """One round; its figures go `into`. With `to_the_end` it lasts until all is judged and shown."""
        pids = self._stack.pids("bare", *_PROCESSES)
        before = _cpu.spent_s(pids)
        done = self._send(way, seconds)
        if to_the_end:
            self._looking.until_done()
        spent = _cpu.between(before, _cpu.spent_s(pids))
        if into is None:
            return
        into.per_s.append(done.actions / done.seconds)
        into.p50_ms.append(done.p50_ms)
        into.p99_ms.append(done.p99_ms)
        for name, cpu_s in spent.items():
            if pids[name] and (name == "bare") == (way.of == "bare"):
                into.cpu_us[name].append(cpu_s / done.actions * 1e6)
        into.cpu_us["load"].append(done.cpu_s / done.actions * 1e6)
        for status, count in done.statuses.items():
            into.statuses[status] += count

    def _send(self, way: Way, seconds: float) -> _load.Done:
        task = _load.Task(
            host=_stack.HOST,
            port=self._ports[way.of],
            token=self._token,
            run=self._run,
            first=self._next,
            seconds=seconds,
            connections=way.connections,
            users=self._users,
            batch=way.batch,
            wait_s=way.wait_s,
        )
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "bench._load"],
            input=msgspec.json.encode(task),
            stdout=subprocess.PIPE,
            check=True,
            timeout=seconds + 60,
        )
        done = msgspec.json.decode(ended.stdout, type=_load.Done)
        self._next += done.actions
        if way.of == "ingest":
            self.sent += done.actions
        return done

    def decided_locally(self) -> float:
        """How many limits the door decided without Valkey: then it did less than it is said to do."""
        url = f"http://{_stack.HOST}:{self._stack.metrics_ports['ingest']}/metrics"
        with urlopen(url, timeout=5) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith("trueboard_limits_decided_locally_total "):
                    return float(line.split()[1])
        raise LookupError("the door does not count the limits it decides alone")


@click.command(help=(__doc__ or "").partition("\n\n")[0])
@click.option("--rounds", type=click.IntRange(1), help="Of each way (default 5).")
@click.option("--seconds", type=click.FloatRange(0.2), help="A round lasts so long (default 5).")
@click.option("--connections", type=click.IntRange(1), default=32, show_default=True, help="Of the load.")
@click.option(
    "--batch-connections",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Of the load that sends batches: so many actions more are under way.",
)
@click.option("--users", type=click.IntRange(1, 9_999_999), default=100_000, show_default=True)
@click.option("--quick", is_flag=True, help="Tiny sizes: shows that it runs, measures nothing.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON; the tables go to standard error.")
def main(
    rounds: int | None,
    seconds: float | None,
    connections: int,
    batch_connections: int,
    users: int,
    quick: bool,
    as_json: bool,
) -> None:
    rounds = rounds or (1 if quick else 5)
    seconds = seconds or (0.5 if quick else 5.0)
    bare = Way(name="bare ASGI", of="bare", connections=connections)
    single = Way(name="one action", of="ingest", connections=connections)
    batch = Way(name=f"one of a batch of {BATCH}", of="ingest", batch=BATCH, connections=batch_connections)
    wait = Way(name=f"one action, wait={WAIT_S}", of="ingest", wait_s=WAIT_S, connections=connections)
    with _stack.stack(progress) as stack:
        progress("starting Postgres, Valkey, Kafka and the door")
        stack.start_servers(catalogue.shipped())
        facts = circumstances("ingest", stack.data, stack.versions())
        bare_port = stack.port()
        stack.start(
            _stack.ServerOf(
                "bare",
                (sys.executable, "-P", "-m", "bench._bare", str(bare_port)),
                port=bare_port,
                log=stack.data / "logs" / "bare.log",
            )
        )
        stack.start_services("ingest", env=_ENV)
        looking = _stack.Looking(stack)
        bench = Bench(stack, looking, bare_port, users)
        alone = _in_turns(bench, (bare, single, batch), rounds, seconds)
        local_alone = bench.decided_locally()
        progress("starting the stream, which works off what was sent so far")
        stack.start_stream(lambda: None)
        looking.until_done()
        beside = _in_turns(bench, (single, wait), rounds, seconds, to_the_end=True)
        checks = {
            "sent": bench.sent,
            "in_kafka": looking.log_end(),
            "in_the_ledger": looking.one("SELECT count(*) FROM ledger"),
            "limits_decided_without_valkey": bench.decided_locally(),
            "of_these_before_the_stream": local_alone,
        }
        looking.close()
    _tell(facts, alone, beside, checks, as_json=as_json)


def _in_turns(
    bench: Bench, ways: Sequence[Way], rounds: int, seconds: float, *, to_the_end: bool = False
) -> dict[str, Rounds]:
    """The rounds of all ways, one of each after the other, beginning with another one each time."""
    kept = {way.name: Rounds() for way in ways}
    for way in ways:
        bench.play(way, min(1.0, seconds), None, to_the_end=to_the_end)
    for number in range(rounds):
        begin = number % len(ways)
        for way in (*ways[begin:], *ways[:begin]):
            begun_s = time.monotonic()
            bench.play(way, seconds, kept[way.name], to_the_end=to_the_end)
            shown = Spread.of(kept[way.name].cpu_us[way.of][-1:])
            progress(
                f"round {number + 1} of {rounds}: {way.name}, {shown} µs ({time.monotonic() - begun_s:.0f} s)"
            )
    return kept


def _tell(
    facts: Mapping[str, Any],
    alone: Mapping[str, Rounds],
    beside: Mapping[str, Rounds],
    checks: Mapping[str, float],
    *,
    as_json: bool,
) -> None:
    (_, bare), (single_name, single), (batch_name, batch) = alone.items()
    times_the_floor = _ratio(single.cpu_us["ingest"], bare.cpu_us["bare"])
    of_a_single = _ratio(batch.cpu_us["ingest"], single.cpu_us["ingest"])
    bars = [
        Bar(
            f"{single_name}, times the floor",
            times_the_floor.median,
            f"≤ {MOST_TIMES_THE_FLOOR}",
            times_the_floor.median <= MOST_TIMES_THE_FLOOR,
        ),
        Bar(
            f"{batch_name}, share of one alone",
            of_a_single.median,
            f"≤ {MOST_OF_A_SINGLE}",
            of_a_single.median <= MOST_OF_A_SINGLE,
        ),
    ]
    result = {
        **facts,
        "alone": {name: each.row() for name, each in alone.items()},
        "beside_the_stream": {name: each.row() for name, each in beside.items()},
        "times_the_floor": times_the_floor,
        "batch_share_of_single": of_a_single,
        "bars": bars,
        "checks": checks,
    }
    publish(
        result,
        [
            "CPU µs per action, by process; median (least–most) of the rounds\n"
            + _table(alone, ("bare", *_GENTLE, "load")),
            "With a worker of the stream, until all is judged and shown\n"
            + _table(beside, (*_PROCESSES, "load")),
            "\n".join(
                [
                    *map(str, bars),
                    f"{single_name}, times the floor: {times_the_floor}",
                    f"{batch_name}, share of one alone: {of_a_single}",
                    *(f"{name}: {value:,.0f}" for name, value in checks.items()),
                    *(
                        f"answers to {name}: {dict(each.statuses)}"
                        for name, each in (*alone.items(), *beside.items())
                    ),
                ]
            ),
        ],
        as_json=as_json,
    )


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Round by round, since what disturbs one round disturbs its neighbour."""
    return Spread.of(mine / other for mine, other in zip(ours, theirs, strict=True) if other)


def _table(ways: Mapping[str, Rounds], processes: Sequence[str]) -> str:
    return table(
        ("", "actions/s", *processes, "p50 ms", "p99 ms"),
        (
            (
                name,
                Spread.of(each.per_s),
                *(Spread.of(each.cpu_us[p]) if each.cpu_us.get(p) else "–" for p in processes),
                Spread.of(each.p50_ms),
                Spread.of(each.p99_ms),
            )
            for name, each in ways.items()
        ),
    )


if __name__ == "__main__":
    main()
