"""Programs are started together, started again when they end, and stopped in order."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.devstack.stand_in import IGNORES_SIGTERM, StandIn, is_running
from trueboard.devstack.errors import CannotStart
from trueboard.devstack.supervision import BackOff, Stopping, Supervisor, ending

QUICK = BackOff(first_s=0.05, most_s=0.2)


def supervisor(heard: list[str]) -> Supervisor:
    return Supervisor(say=heard.append, complain=heard.append, back_off=QUICK, grace_s=1.0, stop_within_s=2.0)


def after(delay_s: float, act: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(delay_s, act)
    timer.start()
    return timer


def ask_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_all_programs_of_a_tier_run_when_start_returns(tmp_path: Path):
    heard: list[str] = []
    with supervisor(heard) as watched:
        watched.start([StandIn(name, tmp_path / name) for name in ("one", "two")])
        pids = watched.pids("one") + watched.pids("two")

        assert len(pids) == 2
        assert all(is_running(pid) for pid in pids)
    assert not any(is_running(pid) for pid in pids)


def test_a_program_that_is_killed_is_started_again_and_said_so(tmp_path: Path):
    heard: list[str] = []
    program = StandIn("one", tmp_path / "one")
    again: list[list[int]] = []
    with supervisor(heard) as watched:
        watched.start([program])
        first = watched.pids("one")

        def changed(_: object) -> None:
            again.append(watched.pids("one"))
            ask_to_stop()

        after(0.1, lambda: os.kill(first[0], signal.SIGKILL))
        watched.watch(changed)

    assert program.starts == 2
    assert again[0] != first
    assert any("was ended by SIGKILL; starting it again in 0.05 s" in line for line in heard)
    assert any("runs again" in line for line in heard)


def test_a_program_that_keeps_ending_is_started_ever_more_slowly(tmp_path: Path):
    heard: list[str] = []
    # the first start holds, every later one ends at once
    source = "import time\nprint('up', flush=True)\ntime.sleep(0.3 if START == 1 else 0)\nraise SystemExit(3)"

    def delays() -> list[str]:
        return [line.rpartition(" in ")[2] for line in heard if "exit code 3" in line]

    def ask_after_four() -> None:
        until_s = time.monotonic() + 30
        while len(delays()) < 4 and time.monotonic() < until_s:
            time.sleep(0.01)
        ask_to_stop()

    with supervisor(heard) as watched:
        watched.start([StandIn("one", tmp_path / "one", source)])
        after(0.0, ask_after_four)
        watched.watch(lambda _: None)

    assert delays()[:4] == ["0.05 s", "0.1 s", "0.2 s", "0.2 s"]


@pytest.mark.parametrize(
    ("failures", "delay_s"), [(1, 0.5), (2, 1.0), (3, 2.0), (5, 8.0), (6, 10.0), (4000, 10.0)]
)
def test_the_wait_doubles_up_to_ten_seconds(failures: int, delay_s: float):
    assert BackOff().delay_s(failures) == delay_s


def test_a_program_asked_to_be_replaced_comes_back_without_waiting(tmp_path: Path):
    heard: list[str] = []
    program = StandIn("one", tmp_path / "one")
    with supervisor(heard) as watched:
        watched.start([program])
        watched.replace(["one"])
        watched.watch(lambda _: ask_to_stop())

    assert program.starts == 2
    assert not any("starting it again" in line for line in heard)


def test_a_program_that_ends_before_it_is_ready_is_an_error_with_the_end_of_its_log(tmp_path: Path):
    broken = StandIn("broken", tmp_path / "broken", "raise SystemExit('the reason')")
    with supervisor([]) as watched, pytest.raises(CannotStart, match=r"exit code 1 (?s:.)*the reason"):
        watched.start([StandIn("fine", tmp_path / "fine"), broken])


def test_a_program_that_ends_for_want_of_space_is_one_sentence(tmp_path: Path):
    source = "print('FATAL: could not write: No space left on device', flush=True)\nraise SystemExit(1)"
    with supervisor([]) as watched, pytest.raises(CannotStart) as caught:
        watched.start([StandIn("one", tmp_path / "one", source)])

    assert str(caught.value) == "the disk is full: one needs space to start; free some and start again"


def test_a_full_disk_while_preparing_is_one_sentence(tmp_path: Path):
    full = OSError(errno.ENOSPC, "No space left on device", "/data/x")
    with supervisor([]) as watched, pytest.raises(CannotStart, match="disk is full"):
        watched.start([StandIn("one", tmp_path / "one", preparing=full)])


def test_a_signal_while_starting_stops_what_was_started(tmp_path: Path):
    slow = StandIn("slow", tmp_path / "slow", "import time; time.sleep(600)")
    watched = supervisor([])
    began_at_s = time.monotonic()
    with watched:
        after(0.3, ask_to_stop)
        with pytest.raises(Stopping):
            watched.start([slow])

    assert time.monotonic() - began_at_s < 5
    assert slow.exit_codes == [-signal.SIGTERM]


def test_the_later_tier_stops_first_and_who_does_not_is_killed(tmp_path: Path):
    server, stubborn = (
        StandIn("server", tmp_path / "server"),
        StandIn("stubborn", tmp_path / "stubborn", IGNORES_SIGTERM),
    )
    heard: list[str] = []
    order: list[str] = []
    server.stopped = lambda code: order.append(f"server {code}")  # type: ignore[method-assign]
    with supervisor(heard) as watched:
        watched.start([server])
        watched.start([stubborn])
        pids = watched.pids("server") + watched.pids("stubborn")

    assert not any(is_running(pid) for pid in pids)
    assert "stubborn did not stop in time: killing it" in heard
    assert order == [f"server {-signal.SIGTERM}"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_sigkill_of_the_supervisor_leaves_no_orphan(tmp_path: Path):
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.devstack.supervise_two", tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
    )
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 2
    assert all(is_running(pid) for pid in pids)
    process.kill()
    process.communicate()
    deadline_s = time.monotonic() + 5
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline_s:
        time.sleep(0.05)

    assert not any(is_running(pid) for pid in pids)


@pytest.mark.parametrize(
    ("code", "words"), [(0, "ended with exit code 0"), (-9, "was ended by SIGKILL"), (-250, "signal 250")]
)
def test_an_ending_is_said_in_words(code: int, words: str):
    assert words in ending(code)
