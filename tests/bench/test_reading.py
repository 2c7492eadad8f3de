"""What the benches' figures are made of: CPU, spreads, drawn traffic, joined instants."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import _actions, _cpu, _report, _sending, _watchers
from bench.feed import STAGES, Track, stages_ms
from bench.stream import REJECTED_SHARE, Traffic
from core import actions
from ingest.submitting import Submitting
from service import tracing

BURN = "import time\nwhile time.process_time() < 0.3: pass\n"


def burn(seconds: float) -> None:
    until_s = time.thread_time() + seconds
    while time.thread_time() < until_s:
        pass


def test_the_work_of_a_living_and_of_an_ended_child_is_counted():
    script = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}])\nprint(flush=True)\n"
    waiting = f"import sys\n{BURN}print(flush=True)\nsys.stdin.read()"
    script += f"subprocess.run([sys.executable, '-c', {waiting!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        ended_s = _cpu.with_children_s([process.pid])
        process.stdout.readline()
        both_s = _cpu.with_children_s([process.pid])
        alone_s = _cpu.alone_s(process.pid)

    assert ended_s >= 0.29
    # The second may have begun before the first look.
    assert both_s >= 2 * 0.29
    assert both_s > ended_s
    assert alone_s < 0.29


def test_a_thread_is_found_by_its_name_and_its_work_counted():
    ready, over = threading.Event(), threading.Event()

    def work() -> None:
        Path("/proc/thread-self/comm").write_text("bench (worker)")
        burn(0.1)
        ready.set()
        over.wait()

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    spent = _cpu.by_thread_s(os.getpid())
    over.set()
    thread.join()

    assert spent["bench (worker)"] >= 0.08


def test_a_process_that_is_gone_costs_nothing():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()

    assert _cpu.with_children_s([process.pid]) == 0
    assert _cpu.alone_s(process.pid) == 0
    assert _cpu.resident_bytes(process.pid) == 0


@given(st.lists(st.floats(0.001, 1e9), min_size=1))
def test_a_median_lies_between_the_least_and_the_most(values):
    spread = _report.Spread.of(values)

    assert min(values) == spread.lowest <= spread.median <= spread.highest == max(values)


def test_columns_stand_under_each_other():
    text = _report.table(("what", "µs"), [("one", "1.50"), ("the other", "12")])

    assert text.splitlines() == ["what         µs", "─────────  ────", "one        1.50", "the other    12"]


def test_a_record_is_the_one_that_the_door_writes():
    nobody: dict = dict.fromkeys(("delivery", "markers", "replies", "found", "standings", "backlog"))
    key, value, headers = _actions.record("user-7", "an-action", 1_764_000_000_000_001)
    theirs = Submitting(**nobody)._item(actions.decode(value), tracing.make(), reply=False)

    assert (key, value) == theirs[:2]
    assert [pair for pair in headers if pair[0] != "traceparent"] == [
        pair for pair in theirs[2] if pair[0] != "traceparent"
    ]
    assert tracing.parse(dict(headers)["traceparent"]) is not None


def test_each_posted_action_has_an_id_of_its_own_and_the_same_length():
    run, at = "bench-0123456789abcdef-", "2026-11-21T09:26:00.000000Z"
    bodies = [_actions.body(run, number, 1000, at) for number in range(2000)]

    assert len({msgspec.json.decode(body)["action_id"] for body in bodies}) == 2000
    assert len({msgspec.json.decode(body)["user_id"] for body in bodies}) == 1000
    assert {len(body) for body in bodies} == {len(bodies[0])}


@pytest.mark.parametrize("uniform", [True, False], ids=["uniform", "zipf"])
def test_about_as_many_are_rejected_as_is_said(uniform):
    traffic = Traffic.draw(20_000, 50, uniform=uniform, duplicates=0, seed=3)
    hard = traffic.hard_limit(rate_per_s=100)
    reach, over = 6_000, 0
    for number, user in enumerate(traffic.users):
        over += traffic.users[max(0, number - reach + 1) : number + 1].count(user) > hard

    assert 0 < over / 20_000 <= REJECTED_SHARE


def test_by_zipf_the_second_user_acts_half_as_often_as_the_first():
    traffic = Traffic.draw(100_000, 1_000, uniform=False, duplicates=0.01, seed=5)

    assert traffic.users.count(1) / traffic.users.count(0) == pytest.approx(0.5, rel=0.1)
    assert len(traffic.repeated) == 1_000


def test_a_place_shows_a_revision_when_it_first_shows_that_or_a_later_one():
    track = Track([(10, 1), (20, 4), (30, 3), (40, 6)])

    assert [track.at_us(revision) for revision in (1, 2, 4, 5, 7)] == [10, 20, 20, 40, None]


def test_an_action_is_followed_through_its_revision():
    done = _sending.Done(
        actions=[(0, 0, 202), (1_000, 3_000, 202), (2_000, 3_000, 202)],
        records=[(6_000, 5)],
        boards=[(5_000, 5)],
        late_ms=0.0,
        cpu_s=0.0,
    )
    seen = _watchers.Seen()
    seen.add(
        {
            "frames": 3,
            "bytes": 0,
            "lost": 0,
            "cpu_s": 0.0,
            "seen": [(4, 1, 8_000, 8_000), (5, 1, 9_000, 9_000), (6, 1, 11_000, 11_000)],
            "all": [(4, 9_000), (5, 11_000)],
        }
    )
    times, missing = stages_ms(done, seen, {1: (4_000, 5), 2: (4_500, 9)}, warm_s=0.001)

    assert times == dict(zip(STAGES, [[2.0], [3.0], [5.0], [4.0], [8.0], [10.0]], strict=True))
    assert missing == 1
