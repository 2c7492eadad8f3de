"""Nobody waits for a log, and nobody fails for want of one."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.log_lines import LogLines

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """(reading end, writing end) of a pipe with little room."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 8192)
    yield reading, writing
    for end in (reading, writing):
        try:
            os.close(end)
        except OSError:
            continue


def _lines_over(descriptor: int) -> LogLines:
    return LogLines(descriptor, lambda lost: f"lost {lost}\n")


def test_a_pipe_that_nobody_reads_stops_nobody_and_says_later_how_much_it_lost(
    pipe: tuple[int, int],
) -> None:
    reading, writing = pipe
    lines = _lines_over(writing)

    for number in range(200):
        lines.write(f"{number:04d} {'x' * 100}\n")
    kept = os.read(reading, 65536).decode().splitlines()
    lines.write("again\n")

    assert [int(line[:4]) for line in kept] == list(range(len(kept)))
    assert 0 < len(kept) < 200
    assert os.read(reading, 65536).decode() == f"lost {200 - len(kept)}\nagain\n"


def test_a_line_longer_than_the_pipe_goes_out_in_part_and_the_next_one_begins_a_line(
    pipe: tuple[int, int],
) -> None:
    reading, writing = pipe
    lines = _lines_over(writing)

    lines.write("x" * 12000 + "\n")
    part = os.read(reading, 65536).decode()
    lines.write("next\n")

    assert part == "x" * 8192
    assert os.read(reading, 65536).decode() == "\nlost 1\nnext\n"


def test_of_many_lines_together_those_that_fit_go_out_whole(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    lines = _lines_over(writing)

    lines.write("".join(f"{number:04d} {'x' * 100}\u2028\n" for number in range(200)))
    kept = os.read(reading, 65536).decode().split("\n")
    lines.write("again\n")

    assert kept.pop() == ""
    assert [int(line[:4]) for line in kept] == list(range(len(kept)))
    assert 40 < len(kept) < 200
    assert os.read(reading, 65536).decode() == f"lost {200 - len(kept)}\nagain\n"


def test_a_reader_that_is_gone_ends_nobody(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.close(reading)

    assert _lines_over(writing).write("line\n") == 5


def test_a_full_disk_ends_nobody() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        lines = _lines_over(descriptor)
        assert lines.write("line\n") == 5
        assert lines.write("line\n") == 5
    finally:
        os.close(descriptor)


_LOGS_MUCH = """
import logging
from service import logs, metrics
logs.configure("test")
for number in range(2000):
    logs.get("here").info("told", number=number, text="x" * 100)
    logging.getLogger("uvicorn.error").warning("said %s", number)
    logs.write('{"event": "written", "service": "test"}\\n' * 50)
print(metrics.LOG_LINES_LOST._value.get())
"""


@pytest.mark.parametrize("whose", ["nobody reads", "nobody is there"])
def test_a_process_goes_on_whoever_takes_its_log(whose: str) -> None:
    reading, writing = os.pipe()
    if whose == "nobody is there":
        os.close(reading)

    done = subprocess.run(
        [sys.executable, "-c", _LOGS_MUCH],
        stdout=subprocess.PIPE,
        stderr=writing,
        cwd=ROOT,
        timeout=120,
        check=True,
    )

    os.close(writing)
    assert float(done.stdout) > 1000
    if whose == "nobody reads":
        kept = os.read(reading, 1 << 20).splitlines()
        assert json.loads(kept[0])["event"] == "told"
        os.close(reading)
