"""A reader who goes away changes no exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
import click
from rich.console import Console
from trueboard.output import telling

with telling("verify", could_not=2):
    {says}
sys.exit({code})
"""
SAYS = ["print('one')", "print('much' * 50_000)", "click.echo('one')", "Console().print('one')"]


def run(says: str, code: int, stdout: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(says=says, code=code)],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.parametrize("code", [0, 1])
@pytest.mark.parametrize("says", SAYS)
def test_a_reader_who_has_gone_away_changes_nothing(says: str, code: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        told = run(says, code, writing)
    finally:
        os.close(writing)

    assert (told.returncode, told.stderr) == (code, "")


@pytest.mark.parametrize("says", SAYS)
def test_a_reader_who_stays_is_told(says: str) -> None:
    told = run(says, 1, subprocess.PIPE)

    assert (told.returncode, told.stderr) == (1, "")
    assert told.stdout.startswith(("one", "much"))


def test_where_there_is_no_output_at_all_nothing_changes() -> None:
    script = SCRIPT.format(says="click.echo('one')", code=0)
    told = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, script],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=Path(__file__).parents[2],
    )

    assert (told.returncode, told.stderr) == (0, "")


def test_what_else_goes_wrong_is_seen() -> None:
    told = run("raise ValueError('seen')", 0, subprocess.DEVNULL)

    assert told.returncode == 1
    assert "ValueError: seen" in told.stderr


@pytest.mark.parametrize("says", SAYS)
def test_a_report_that_cannot_be_written_is_no_report(says: str) -> None:
    with Path("/dev/full").open("wb") as full:
        told = run(says, 1, full.fileno())

    assert told.returncode == 2
    assert told.stderr == "trueboard verify: the report cannot be written: No space left on device\n"
