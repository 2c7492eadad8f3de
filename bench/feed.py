"""How long an action takes from the sender to everybody who watches.

The whole of it on real servers: actions of many users, posted one by one or `--batch` at a time,
100 clients on `/ws/scores` or, with `--centrifuge`, on `/connection/websocket`, a stock Kafka consumer on
`board.changed`. Each stage is told from the instant the action was due to be sent: the answer, the
commit of its revision in the ledger, that revision on `board.changed`, on the board in Valkey, and
in the frames of the first and of the last client to get one that shows it. Two frames to one client
are 100 ms apart by rule (50 ms on Centrifuge's path), which alone is half of that on average.
Commits are stamped by Postgres just before they happen; Valkey is looked at every 5 ms. The clients
are one process of C, the sender is another. What comes before `--warm-s` is left out: a broker's
machine code, prepared statements and caches are made meanwhile.
"""

from __future__ import annotations

import subprocess
import sys
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any, Final

import click
import msgspec
import psycopg

from bench import _cpu, _sending, _stack, _watchers
from bench._broadcasters import CENTRIFUGE_PATH, SCORES_PATH, hellos_at
from bench._report import Bar, circumstances, progress, publish, quantile, shown, table
from bench._sending import Seen
from bench._watchers import MARK, OFFSET_MARK
from core import catalogue

PROCESSES: Final = ("ingest", "stream_app", "push", "postgres", "valkey", "kafka")
STAGES: Final = (
    "answer over HTTP",
    "commit in the ledger",
    "record on board.changed",
    "board in Valkey",
    "frame, first client",
    "frame, last client",
)


@click.command(help=(__doc__ or "").partition("\n\n")[0])
@click.option("--per-s", type=click.FloatRange(1), default=200.0, show_default=True, help="Actions a second.")
@click.option("--batch", type=click.IntRange(1, 500), default=1, show_default=True, help="Posted together.")
@click.option("--clients", type=click.IntRange(1, 10_000), help="Who watch (default 100).")
@click.option("--centrifuge", is_flag=True, help="They watch board:main on /connection/websocket.")
@click.option("--seconds", type=click.FloatRange(1), help="So long (default 30).")
@click.option("--warm-s", type=click.FloatRange(0), help="Left out at the begin (default 10).")
@click.option("--users", type=click.IntRange(1, 9_999_999), default=10_000, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--quick", is_flag=True, help="Tiny sizes: shows that it runs, measures nothing.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON; the tables go to standard error.")
def main(
    per_s: float,
    batch: int,
    clients: int | None,
    centrifuge: bool,
    seconds: float | None,
    warm_s: float | None,
    users: int,
    seed: int,
    quick: bool,
    as_json: bool,
) -> None:
    clients = clients or (5 if quick else 100)
    seconds = seconds or (2.0 if quick else 30.0)
    warm_s = (0.5 if quick else 10.0) if warm_s is None else warm_s
    path = CENTRIFUGE_PATH if centrifuge else SCORES_PATH
    with _stack.stack(progress) as stack:
        progress("starting Postgres, Valkey, Kafka and the three services")
        stack.start_servers(catalogue.shipped())
        facts = circumstances("feed", stack.data, stack.versions())
        stack.start_services("ingest", "stream_app", "push", env={"LOOPBACK_MAX_SOCKETS": str(2 * clients)})
        run = _stack.run_id()
        task = _sending.Task(
            host=_stack.HOST,
            http_port=stack.http_port,
            bootstrap=stack.bootstrap,
            redis_url=stack.redis_url,
            token=stack.token(),
            run=run,
            per_s=per_s,
            seconds=warm_s + seconds,
            users=users,
            seed=seed,
            batch=batch,
        )
        progress(f"{shown(per_s)} actions/s for {shown(warm_s + seconds)} s, {clients} clients")
        seen = _watchers.Seen()
        with _watchers.watching(
            _watchers.compiled("watchers", stack.data),
            stack.feed_port,
            path,
            clients,
            hellos=hellos_at(path) if centrifuge else (),
            mark=OFFSET_MARK if centrifuge else MARK,
        ) as crowd:
            pids = stack.pids(*PROCESSES)
            before = _cpu.spent_s(pids)
            done = _sent(task)
            spent = _cpu.between(before, _cpu.spent_s(pids))
            crowd.report(seen)
        if seen.lost:
            raise _watchers.CannotRun(f"the feed closed {seen.lost} of {clients} sockets")
        commits = _commits(stack.postgres_url, run)
    settings = {
        "per_s": per_s,
        "batch": batch,
        "clients": clients,
        "path": path,
        "seconds": seconds,
        "warm_s": warm_s,
        "users": users,
    }
    _tell({**facts, "settings": settings}, done, seen, commits, spent, as_json=as_json)


def _sent(task: _sending.Task) -> _sending.Done:
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "bench._sending"],
        input=msgspec.json.encode(task),
        stdout=subprocess.PIPE,
        check=True,
        timeout=task.seconds + 90,
    )
    return msgspec.json.decode(ended.stdout, type=_sending.Done)


def _commits(url: str, run: str) -> dict[int, Seen]:
    """By the actions' numbers, when their revision was committed, and which one it is."""
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT action_id, (extract(epoch FROM committed_at) * 1000000)::bigint, revision"
            " FROM ledger JOIN revisions USING (batch)"
            " WHERE starts_with(action_id, %s) AND verdict = 'accepted'",
            (run,),
        ).fetchall()
    return {int(action_id[len(run) :]): (at_us, revision) for action_id, at_us, revision in rows}


class Track:
    """What one place showed, in order: when did it show at least this revision?"""

    def __init__(self, seen: Iterable[Seen]) -> None:
        listed = list(seen)
        self._revisions = list(accumulate((revision for _, revision in listed), max))
        self._instants_us = [at_us for at_us, _ in listed]

    def at_us(self, revision: int) -> int | None:
        place = bisect_left(self._revisions, revision)
        return self._instants_us[place] if place < len(self._instants_us) else None


def stages_ms(
    done: _sending.Done, seen: _watchers.Seen, commits: Mapping[int, Seen], warm_s: float
) -> tuple[dict[str, list[float]], int]:
    """For each stage the sorted times since the action was due, and how many never came to all."""
    records, boards = Track(done.records), Track(done.boards)
    first = Track(sorted((shown.first_us, number) for number, shown in seen.by_number.items()))
    last = Track(seen.all_at_least)
    times: dict[str, list[float]] = {stage: [] for stage in STAGES}
    missing = 0
    from_us = done.actions[0][0] + warm_s * 1e6 if done.actions else 0.0
    for number, (due_us, answered_us, _) in enumerate(done.actions):
        if due_us < from_us:
            continue
        commit = commits.get(number)
        if commit is None:
            missing += 1
            continue
        committed_us, revision = commit
        at_us = [
            answered_us,
            committed_us,
            *(track.at_us(revision) for track in (records, boards, first, last)),
        ]
        if None in at_us:
            missing += 1
            continue
        for stage, instant in zip(STAGES, at_us, strict=True):
            assert instant is not None
            times[stage].append((instant - due_us) / 1000)
    return {stage: sorted(values) for stage, values in times.items()}, missing


def _tell(
    facts: Mapping[str, Any],
    done: _sending.Done,
    seen: _watchers.Seen,
    commits: Mapping[int, Seen],
    spent: Mapping[str, float],
    *,
    as_json: bool,
) -> None:
    settings = facts["settings"]
    times, missing = stages_ms(done, seen, commits, settings["warm_s"])
    seconds = settings["seconds"] + settings["warm_s"]
    stages = {
        stage: {
            "p50_ms": quantile(values, 0.5),
            "p99_ms": quantile(values, 0.99),
            "most_ms": values[-1] if values else 0.0,
        }
        for stage, values in times.items()
    }
    counted = len(next(iter(times.values())))
    statuses: dict[str, int] = {}
    for _, _, status in done.actions:
        statuses[str(status)] = statuses.get(str(status), 0) + 1
    revisions = len({revision for _, revision in commits.values()})
    every = {**spent, "sender": done.cpu_s, "clients": seen.cpu_s}
    busy = {name: cpu_s / seconds for name, cpu_s in every.items()}
    result = {
        **facts,
        "stages": stages,
        "checks": {
            "actions": len(done.actions),
            "counted": counted,
            "never_seen_by_all": missing,
            "answers": statuses,
            "frames": seen.frames,
            "revisions": revisions,
            "sent_late_ms_at_most": done.late_ms,
        },
        "cores_busy": busy,
    }
    bars = []
    if settings["path"] == CENTRIFUGE_PATH:
        p99_ms = stages["frame, last client"]["p99_ms"]
        bars = [Bar("p99 of the last client's frame, ms", p99_ms, "≤ 150", 0 < p99_ms <= 150)]
        result["bars"] = bars
    publish(
        result,
        [
            table(
                (f"ms from the instant due, {counted:,} actions", "p50", "p99", "most"),
                [
                    (stage, shown(each["p50_ms"]), shown(each["p99_ms"]), shown(each["most_ms"]))
                    for stage, each in stages.items()
                ],
            ),
            f"answers {statuses}, {revisions:,} revisions, {seen.frames:,} frames to "
            f"{settings['clients']} clients on {settings['path']}, "
            f"{missing} actions not seen by all; sent at most {shown(done.late_ms)} ms late\n"
            "cores busy: " + ", ".join(f"{name} {share:.1%}" for name, share in busy.items()),
            *map(str, bars),
        ],
        as_json=as_json,
    )


if __name__ == "__main__":
    main()
