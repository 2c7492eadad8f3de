"""Failpoints do what the variable says, and nothing without it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service import failpoints

ROOT = Path(__file__).parents[2]
PACKAGES = ("service", "storage", "ingest", "stream_app", "push")

REACH_THRICE = """
from service.failpoints import reach
for n in range(1, 4):
    reach("ledger.numbered")
    print(n, flush=True)
"""


def run(told: str | None, code: str = REACH_THRICE) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != failpoints.VARIABLE}
    if told is not None:
        env[failpoints.VARIABLE] = told
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("told", [None, "", "ledger.judged=kill"], ids=["unset", "empty", "another place"])
def test_nothing_happens_elsewhere(told: str | None):
    done = run(told)

    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["1", "2", "3"], "")


@pytest.mark.parametrize(
    ("told", "passed"),
    [
        ("ledger.numbered=kill", 0),
        ("ledger.numbered=kill@3", 2),
        ("ledger.numbered=kill@2+", 1),
        ("a.b=raise,ledger.numbered=kill", None),
    ],
    ids=["the first time", "the third time", "from the second time on", "a place nobody knows"],
)
def test_a_process_kills_itself_at_the_time_it_was_told(told: str, passed: int | None):
    done = run(told)

    if passed is None:
        assert done.returncode == 1
        assert "a.b=raise" in done.stderr
    else:
        assert done.returncode == -signal.SIGKILL
        assert len(done.stdout.split()) == passed


STAND_STILL_ALONE = """
import asyncio
from service.failpoints import reach_alone

async def main():
    standing = asyncio.create_task(reach_alone("stream.brought"))
    await asyncio.sleep(0.05)
    print(standing.done())

asyncio.run(main())
"""


def test_on_a_loop_one_stands_still_and_the_others_go_on():
    told = run("stream.brought=pause:600s", STAND_STILL_ALONE)

    assert told.stdout.split() == ["False"]
    assert run(None, STAND_STILL_ALONE).stdout.split() == ["True"]


def test_a_place_can_raise_what_nobody_expects():
    done = run("ledger.numbered=raise@2")

    assert done.returncode == 1
    assert done.stdout.split() == ["1"]
    assert "Reached: ledger.numbered" in done.stderr


def test_a_place_can_stand_still_each_time():
    done = run("ledger.numbered=pause:0.05s@*")

    assert done.returncode == 0
    assert done.stderr.count("failpoint ledger.numbered pause") == 3


def test_every_place_is_passed_exactly_once_in_the_code_and_no_other():
    passed: list[str] = []
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            passed += re.findall(r'failpoints\.reach(?:_alone)?\("([a-z._]+)"\)', path.read_text())

    assert sorted(passed) == sorted(failpoints.PLACES)
