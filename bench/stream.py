"""How fast the stream judges a backlog, and what an action costs from the log to everything that follows.

The records are in Kafka before the clock starts, as the door writes them, keyed by user. Then one
worker (`python -m stream_app`) takes them up; the clock runs from that moment until the ledger is
at the log's end, the board in Valkey at the ledger's, and the topics' cursor too (it is saved once
a second, so the last part is told up to 1 s late). Users are drawn by Zipf's law, the k-th in
proportion to 1/k, or uniformly; some may send the same action twice. The actions were received
`--rate` a second up to now, and the one rate limit is set so that about 0.5 % are rejected.

The rival on the same Postgres, before and after: one transaction per action by a plain psycopg
loop with prepared statements, which writes the same row, the same entry and the same revision, and
leaves out what else the stream does (rules, windows, deltas, digests, Valkey, topics). Of it only
its own backend and client are counted, of ours everything that Postgres and the worker spent, so
the ratio is understated. Bar: ours costs at most a fifth.
"""

from __future__ import annotations

import random
import secrets
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any, Final

import click
import psycopg
from confluent_kafka import Producer

from bench import _actions, _cpu, _stack
from bench._report import Bar, Spread, circumstances, progress, publish, shown, table
from core import ids, topics
from core.times import US
from core.words import MAIN_PERIOD
from storage.postgres import definitions, migrate

PROCESSES: Final = ("stream_app", "postgres", "valkey", "kafka")
REJECTED_SHARE: Final = 0.005
WINDOW_S: Final = 60
LEAST_TIMES_CHEAPER: Final = 5.0

_LOOK_EVERY_S = 0.1
_RIVAL: Final = "rival"

_CATALOGUE: Final = """
version = "bench"
[types.{type}]
points = 10
[[types.{type}.limits]]
window_s = {window_s}
hard = {hard}
[limits.points]
types = ["{type}"]
window_s = 3600
hard = 1000000000000
"""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Who acts, in order: the number of each action's user, and which actions are sent twice."""

    users: list[int]
    repeated: frozenset[int]

    @classmethod
    def draw(cls, actions: int, users: int, *, uniform: bool, duplicates: float, seed: int) -> Traffic:
        dice = random.Random(seed)
        if uniform:
            drawn = dice.choices(range(users), k=actions)
        else:
            weights = list(accumulate(1 / rank for rank in range(1, users + 1)))
            drawn = dice.choices(range(users), cum_weights=weights, k=actions)
        return cls(drawn, frozenset(dice.sample(range(actions), round(duplicates * actions))))

    def hard_limit(self, rate_per_s: float) -> int:
        """The limit per window above which the given share of the actions lies."""
        reach = int(WINDOW_S * rate_per_s)
        recent: defaultdict[int, deque[int]] = defaultdict(deque)
        seen = []
        for number, user in enumerate(self.users):
            window = recent[user]
            window.append(number)
            while window[0] <= number - reach:
                window.popleft()
            seen.append(len(window))
        seen.sort()
        return max(1, seen[min(len(seen) - 1, int((1 - REJECTED_SHARE) * len(seen)))])


@dataclass(slots=True)
class Taken:
    """The stream's run. CPU in seconds, `at_s` in seconds from its begin."""

    cpu_s: dict[str, float] = field(default_factory=dict)
    threads_s: dict[str, float] = field(default_factory=dict)
    at_s: dict[str, float] = field(default_factory=dict)
    resident_mb: list[float] = field(default_factory=list)
    revisions: int = 0
    wal_bytes: int = 0


@dataclass(slots=True)
class Rival:
    """One transaction per action. CPU in µs per action."""

    per_s: list[float] = field(default_factory=list)
    postgres_us: list[float] = field(default_factory=list)
    client_us: list[float] = field(default_factory=list)

    @property
    def total_us(self) -> list[float]:
        return [sum(both) for both in zip(self.postgres_us, self.client_us, strict=True)]


@click.command(help=(__doc__ or "").partition("\n\n")[0])
@click.option("--actions", type=click.IntRange(100), help="How many (default 1,000,000).")
@click.option("--users", type=click.IntRange(1), default=200_000, show_default=True)
@click.option("--uniform", is_flag=True, help="All users alike, instead of by Zipf's law.")
@click.option("--duplicates", type=click.FloatRange(0, 0.5), default=0.0, help="Share sent a second time.")
@click.option(
    "--rate", type=click.FloatRange(1), default=20_000.0, show_default=True, help="Received a second."
)
@click.option("--rival-actions", type=click.IntRange(10), help="By one transaction each (default 5,000).")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--quick", is_flag=True, help="Tiny sizes: shows that it runs, measures nothing.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON; the tables go to standard error.")
def main(
    actions: int | None,
    users: int,
    uniform: bool,
    duplicates: float,
    rate: float,
    rival_actions: int | None,
    seed: int,
    quick: bool,
    as_json: bool,
) -> None:
    actions = actions or (3_000 if quick else 1_000_000)
    rival_actions = rival_actions or (200 if quick else 5_000)
    if quick:
        users = min(users, 1_000)
    progress(f"drawing {actions:,} actions of {users:,} users")
    traffic = Traffic.draw(actions, users, uniform=uniform, duplicates=duplicates, seed=seed)
    hard = traffic.hard_limit(rate)
    toml = _CATALOGUE.format(type=_actions.TYPE, window_s=WINDOW_S, hard=hard).encode()
    with _stack.stack(progress) as stack:
        progress("starting Postgres, Valkey and Kafka")
        stack.start_servers(toml)
        facts = circumstances("stream", stack.data, stack.versions())
        _make_rival(stack, toml, users)
        progress("writing the records")
        records = _write(stack, traffic, rate)
        rival = Rival()
        half = max(1, rival_actions // 2)
        _one_by_one(stack, traffic.users[:half], rival)
        looking = _stack.Looking(stack)
        progress("starting the stream")
        taken = _take(stack, looking, records)
        _one_by_one(stack, traffic.users[half : 2 * half], rival)
        checks = _check(looking, actions, records)
        looking.close()
    settings = {
        "actions": actions,
        "records": records,
        "users": users,
        "drawn": "uniformly" if uniform else "by Zipf's law, 1/k",
        "rate_per_s": rate,
        "hard_limit_per_minute": hard,
        "rival_actions": 2 * half,
    }
    _tell({**facts, "settings": settings}, taken, rival, checks, as_json=as_json)


def _write(stack: _stack.Stack, traffic: Traffic, rate_per_s: float) -> int:
    """Put all records into Kafka; how many. A repeated action comes again a while later."""
    producer = Producer(
        {
            "bootstrap.servers": stack.bootstrap,
            "partitioner": "murmur2_random",
            "compression.type": "lz4",
            "linger.ms": 20,
            "queue.buffering.max.messages": 500_000,
        }
    )
    gap_us = US / rate_per_s
    begin_us = time.time_ns() // 1000 - int(len(traffic.users) * gap_us)
    again: deque[tuple[int, tuple[Any, Any, Any]]] = deque()
    written = 0
    for number, user in enumerate(traffic.users):
        at_us = begin_us + int(number * gap_us)
        action_id = str(ids.uuid7(at_us, secrets.token_bytes(8)))
        record = _actions.record(f"user-{user}", action_id, at_us)
        if number in traffic.repeated:
            again.append((number + 5_000, record))
        while again and again[0][0] <= number:
            written += _produced(producer, again.popleft()[1])
        written += _produced(producer, record)
    while again:
        written += _produced(producer, again.popleft()[1])
    if producer.flush(120):
        raise _stack.Stuck("Kafka did not take the records")
    return written


def _produced(producer: Producer, record: tuple[Any, Any, Any]) -> int:
    key, value, headers = record
    while True:
        try:
            producer.produce(topics.SUBMITTED.name, value, key, headers=headers)
            return 1
        except BufferError:
            producer.poll(0.1)


def _take(stack: _stack.Stack, looking: _stack.Looking, records: int) -> Taken:
    """Have one worker work off the log, and count."""
    taken = Taken()
    if looking.log_end() != records:
        raise _stack.Stuck(f"the log ends at {looking.log_end()}, not at {records}")
    before: dict[str, Any] = {}

    def taken_up() -> None:
        pids = stack.pids(*PROCESSES)
        (pid,) = pids["stream_app"]
        before.update(
            pids=pids,
            pid=pid,
            s=time.monotonic(),
            cpu=_cpu.spent_s(pids),
            threads=_cpu.by_thread_s(pid),
            revision=looking.revision(),
            wal=looking.wal_bytes(),
        )

    stack.start_stream(taken_up)
    since_s: float = before["s"]
    pid: int = before["pid"]
    for name, is_there in _milestones(looking, records):
        _stack.wait_until(_sampling(is_there, taken, pid, since_s), looking.judged)
        taken.at_s[name] = time.monotonic() - since_s
    taken.resident_mb.append(_cpu.resident_bytes(pid) / 2**20)
    taken.cpu_s = _cpu.between(before["cpu"], _cpu.spent_s(before["pids"]))
    taken.threads_s = _cpu.between(before["threads"], _cpu.by_thread_s(pid))
    taken.revisions = looking.revision() - before["revision"]
    taken.wal_bytes = looking.wal_bytes(before["wal"])
    return taken


def _milestones(looking: _stack.Looking, records: int) -> Iterator[tuple[str, Any]]:
    yield "ledger", lambda: looking.judged() == records
    changed, last = looking.changed_revision(), looking.revision()
    yield "board in Valkey", lambda: looking.copied_revision() >= changed
    rows = looking.one("SELECT count(*) FROM ledger")
    yield "records on the topics", lambda: looking.log_end(topics.JUDGED.name) >= rows
    yield "topics' cursor", lambda: looking.published_revision() >= last


def _sampling(is_there: Any, taken: Taken, pid: int, since_s: float) -> Any:
    """The same question; on the way the worker's memory is noted once a second."""

    def asked() -> bool:
        if time.monotonic() - since_s >= len(taken.resident_mb):
            taken.resident_mb.append(_cpu.resident_bytes(pid) / 2**20)
        return bool(is_there())

    return asked


# the rival


def _make_rival(stack: _stack.Stack, toml: bytes, users: int) -> None:
    """A database with the same tables, in which all players are known already."""
    with psycopg.connect(stack.postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {_RIVAL}")
    url = stack.url_of(_RIVAL)
    migrate.apply(url)
    definitions.apply(url, toml)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO players (player, user_id)"
            " SELECT n, 'user-' || n FROM generate_series(0, %s::bigint) n",
            (users - 1,),
        )
        connection.execute("INSERT INTO logs (topic_id) VALUES ('rival')")
        connection.execute("VACUUM ANALYZE players")


_ROW: Final = f"""
INSERT INTO ledger (action_id, player, seq, kind, type, verdict, points, catalogue_version, fingerprint,
                    occurred_at, received_at, log, kafka_partition, kafka_offset, batch)
VALUES (%s, %s, 0, 'judged', '{_actions.TYPE}', 'accepted', 10, 'bench', %s, %s, %s, 1, 0, %s, %s)
ON CONFLICT DO NOTHING
"""
_ENTRY: Final = f"""
INSERT INTO entries AS e (period, player, score, reached_at) VALUES ('{MAIN_PERIOD}', %s, 10, %s)
ON CONFLICT (period, player) DO UPDATE
SET score = e.score + excluded.score, reached_at = greatest(e.reached_at, excluded.reached_at)
RETURNING score
"""
_REVISION: Final = """
INSERT INTO revisions (revision, epoch, batch, cause, definitions, digest)
VALUES (%s, %s, %s, 'stream', 1, %s)
"""


def _one_by_one(stack: _stack.Stack, users: Sequence[int], into: Rival) -> None:
    progress(f"the rival: {len(users):,} transactions")
    with psycopg.connect(stack.url_of(_RIVAL)) as connection:
        cursor = connection.cursor()
        row = cursor.execute("SELECT max(revision), max(epoch), max(batch) FROM revisions").fetchone()
        assert row is not None
        revision, epoch, batch = row
        connection.commit()
        backend = connection.info.backend_pid
        # Statements are prepared before the clock starts.
        warm = min(20, len(users))
        begun_s = client_s = postgres_s = 0.0
        for number, user in enumerate((*users[:warm], *users)):
            if number == warm:
                begun_s, client_s = time.monotonic(), time.process_time()
                postgres_s = _cpu.alone_s(backend)
            now = datetime.now(UTC)
            action_id = str(ids.uuid7(int(now.timestamp() * US), secrets.token_bytes(8)))
            revision, batch = revision + 1, batch + 1
            cursor.execute(_ROW, (action_id, user, "0" * 32, now, now, revision, batch), prepare=True)
            cursor.execute(_ENTRY, (user, now), prepare=True)
            cursor.fetchone()
            cursor.execute(_REVISION, (revision, epoch, batch, secrets.token_bytes(32)), prepare=True)
            connection.commit()
        into.per_s.append(len(users) / (time.monotonic() - begun_s))
        into.client_us.append((time.process_time() - client_s) / len(users) * 1e6)
        into.postgres_us.append((_cpu.alone_s(backend) - postgres_s) / len(users) * 1e6)


# the end


def _check(looking: _stack.Looking, actions: int, records: int) -> dict[str, int]:
    """Numbers that have to agree. Raises Stuck if they do not: then nothing was measured."""
    verdicts = {
        verdict: int(looking.one("SELECT count(*) FROM ledger WHERE verdict = %s", verdict))
        for verdict in ("accepted", "held", "rejected")
    }
    checks = {
        "judged": sum(verdicts.values()),
        "repeated": records - actions,
        **verdicts,
        "points": int(looking.one("SELECT sum(points) FROM ledger WHERE verdict = 'accepted'")),
        "scores": int(looking.one("SELECT sum(score) FROM entries WHERE period = %s", MAIN_PERIOD)),
        "entries": int(looking.one("SELECT count(*) FROM entries WHERE period = %s", MAIN_PERIOD)),
        "entries_in_valkey": looking.copied_entries(),
        "records_on_action_judged": looking.log_end(topics.JUDGED.name),
    }
    if (
        checks["judged"] != actions
        or checks["points"] != checks["scores"]
        or checks["entries"] != checks["entries_in_valkey"]
        or checks["records_on_action_judged"] < actions
    ):
        raise _stack.Stuck(f"what came out is wrong: {checks}")
    return checks


def _tell(
    facts: Mapping[str, Any], taken: Taken, rival: Rival, checks: Mapping[str, int], *, as_json: bool
) -> None:
    records = facts["settings"]["records"]
    cpu_us = {name: seconds / records * 1e6 for name, seconds in taken.cpu_s.items()}
    threads_us = {
        name: seconds / records * 1e6
        for name, seconds in sorted(taken.threads_s.items(), key=lambda pair: -pair[1])
        if seconds > 0
    }
    seconds = max(taken.at_s.values())
    ours_us = cpu_us["stream_app"] + cpu_us["postgres"]
    theirs_us = Spread.of(rival.total_us)
    cheaper = theirs_us.median / ours_us if ours_us else 0.0
    memory = taken.resident_mb
    ours = {
        "actions_per_s": records / seconds,
        "seconds": seconds,
        "done_after_s": taken.at_s,
        "cpu_us_per_action": {**cpu_us, "total": sum(cpu_us.values())},
        "threads_us_per_action": threads_us,
        "revisions": taken.revisions,
        "actions_per_revision": records / max(1, taken.revisions),
        "wal_bytes_per_action": taken.wal_bytes / records,
        "resident_mb": {
            "start": memory[0],
            "middle": memory[len(memory) // 2],
            "end": memory[-1],
            "most": max(memory),
        },
    }
    bars = [
        Bar(
            "times cheaper than one transaction per action",
            cheaper,
            f"≥ {LEAST_TIMES_CHEAPER}",
            cheaper >= LEAST_TIMES_CHEAPER,
        )
    ]
    result = {
        **facts,
        "stream": ours,
        "rival": {
            "actions_per_s": Spread.of(rival.per_s),
            "postgres_us": Spread.of(rival.postgres_us),
            "client_us": Spread.of(rival.client_us),
            "total_us": theirs_us,
        },
        "bars": bars,
        "checks": checks,
    }
    settings = facts["settings"]
    rejected = checks["rejected"] / max(1, checks["judged"])
    publish(
        result,
        [
            f"{records:,} records of {settings['users']:,} users ({settings['drawn']}) in {seconds:.1f} s: "
            f"{shown(records / seconds)} actions/s; {rejected:.2%} rejected, "
            f"{checks['repeated']:,} repeated; {taken.revisions:,} revisions, "
            f"{shown(taken.wal_bytes / records)} B of WAL per action\n"
            "done after: " + ", ".join(f"{name} {at_s:.1f} s" for name, at_s in taken.at_s.items()) + "\n"
            "the worker's memory, MB: "
            + ", ".join(f"{name} {size:.0f}" for name, size in ours["resident_mb"].items()),
            table(
                ("CPU µs per action", "µs"),
                [
                    *((name, shown(us)) for name, us in cpu_us.items()),
                    ("total", shown(sum(cpu_us.values()))),
                    *((f"  stream_app, thread {name}", shown(us)) for name, us in threads_us.items()),
                ],
            ),
            table(
                ("one transaction per action", "actions/s", "postgres µs", "client µs", "both"),
                [
                    (
                        f"{settings['rival_actions']:,} of them",
                        Spread.of(rival.per_s),
                        Spread.of(rival.postgres_us),
                        Spread.of(rival.client_us),
                        theirs_us,
                    ),
                    (
                        "the stream, of these two",
                        shown(records / seconds),
                        shown(cpu_us["postgres"]),
                        shown(cpu_us["stream_app"]),
                        shown(ours_us),
                    ),
                ],
            ),
            "\n".join(map(str, bars)),
        ],
        as_json=as_json,
    )


if __name__ == "__main__":
    main()
