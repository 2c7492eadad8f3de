"""simulate, replay and verify as a person calls them, on a whole stack with real Kafka."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from tests.trueboard.repositories import Made
from trueboard import replay, simulate, verify
from trueboard.endpoints import Endpoints

CHECKS = ["ledger_sums", "deltas", "projection", "digest_chain", "progress", "verdicts"]


def run(command: Any, data: Path, *options: str) -> Result:
    return CliRunner().invoke(command, [*options, "--data", str(data)])


def judged(stack: Endpoints) -> int:
    with psycopg.connect(stack.postgres) as connection:
        row = connection.execute("SELECT count(*) FROM ledger").fetchone()
    assert row
    return int(row[0])


@pytest.fixture
def made(tmp_path: Path) -> Made:
    repository = Made.at(tmp_path / "history.git")
    for n in range(60):
        repository.commit(b"Ann %d" % (n % 7), b"a%d@example.org" % (n % 7), 1_600_000_000 + n)
    repository.commit(b"", b"", 4_000_000_000)
    return repository


@pytest.mark.parametrize("command", [simulate.command, verify.command])
def test_without_a_stack_it_is_one_sentence_and_exit_code_2(tmp_path: Path, command: Any) -> None:
    result = run(command, tmp_path)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert "trueboard up" in result.stderr


def test_replay_without_a_stack_is_one_sentence_and_exit_code_2(tmp_path: Path, made: Made) -> None:
    result = CliRunner().invoke(replay.command, ["git", str(made.path), "--data", str(tmp_path)])

    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("name", ["simulate", "verify", "replay"])
def test_a_stack_that_was_killed_is_one_sentence_and_exit_code_2(
    tmp_path: Path, made: Made, name: str
) -> None:
    from service import keys
    from tests.trueboard.test_client import endpoints

    endpoints().write(tmp_path)
    keys.ensure(tmp_path / "keys")
    arguments = {"simulate": [], "verify": [], "replay": ["git", str(made.path)]}[name]
    module = {"simulate": simulate, "verify": verify, "replay": replay}[name]

    begun_s = time.monotonic()
    result = CliRunner().invoke(module.command, [*arguments, "--data", str(tmp_path)])

    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert time.monotonic() - begun_s < 30


def test_a_verification_that_is_interrupted_found_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.trueboard.test_client import endpoints

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    endpoints().write(tmp_path)
    monkeypatch.setattr(verify, "verify", interrupted)
    result = run(verify.command, tmp_path)

    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "trueboard verify: interrupted\n"


@pytest.mark.kafka
@pytest.mark.services
def test_every_simulated_action_is_accounted_for(stack: Endpoints, stack_data: Path) -> None:
    result = run(
        simulate.command, stack_data, "--json", "--seed=5", "--actions=600", "--rate=400", "--cheaters=0.05"
    )

    told = json.loads(result.stdout)
    assert result.exit_code == 0
    assert list(told) == ["seed", "sent", "answers", "verdicts", "duplicates", "lost", "invented"]
    assert (told["seed"], told["sent"], told["lost"], told["invented"]) == (5, 600, 0, 0)
    assert sum(told["answers"].values()) >= 600 + told["duplicates"]
    assert 0 < told["answers"].get("400", 0) < 100
    assert told["verdicts"]["accepted"] > 400
    assert sum(told["verdicts"].values()) <= 600
    assert told["duplicates"] > 10


@pytest.mark.kafka
@pytest.mark.services
def test_a_simulation_can_be_interrupted_and_is_accounted_for(stack: Endpoints, stack_data: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "trueboard", "simulate", "--json", "--duration=120", f"--data={stack_data}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)

    told = json.loads(output)
    assert (process.returncode, errors, told["lost"], told["invented"]) == (0, "", 0, 0)
    assert told["sent"] > 0


@pytest.mark.kafka
@pytest.mark.services
def test_nothing_is_lost_while_the_services_are_killed(stack: Endpoints, stack_data: Path) -> None:
    before = judged(stack)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "trueboard", "simulate", "--json"),
            *("--duration=8", "--rate=150", f"--data={stack_data}"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    # A door that never answered is said so; one that answered and is gone is waited for.
    while judged(stack) == before:
        time.sleep(0.1)
        assert process.poll() is None
    for name in ("ingest", "stream_app"):
        os.kill(Endpoints.read(stack_data).processes[name][0], signal.SIGKILL)
        time.sleep(2.5)
    output, _ = process.communicate(timeout=120)

    told = json.loads(output)
    assert (process.returncode, told["lost"], told["invented"]) == (0, 0, 0)
    assert told["sent"] > 500


@pytest.mark.kafka
@pytest.mark.services
def test_a_history_counts_once_however_often_it_is_replayed(
    stack: Endpoints, stack_data: Path, made: Made
) -> None:
    first, second = (
        CliRunner().invoke(replay.command, ["git", str(made.path), "--data", str(stack_data), "--json"])
        for _ in range(2)
    )

    told, again = json.loads(first.stdout), json.loads(second.stdout)
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert list(told) == ["commits", "authors", "sent", "replayed", "refused", "epoch", "revision"]
    assert told["commits"] == told["sent"] == 61
    assert (told["authors"], told["replayed"], told["refused"]) == (8, 0, 0)
    assert again == told | {"replayed": 61}


@pytest.mark.kafka
@pytest.mark.services
def test_a_replay_shows_who_leads_and_where_to_look(stack: Endpoints, stack_data: Path, made: Made) -> None:
    result = CliRunner().invoke(replay.command, ["git", str(made.path), "--data", str(stack_data)])

    assert result.exit_code == 0
    assert "61 commits of 8 authors" in result.stdout
    assert f"{stack.http}/v1/boards/main/standings" in result.stdout


@pytest.mark.kafka
@pytest.mark.services
def test_a_stack_that_works_is_equal(stack: Endpoints, stack_data: Path, made: Made) -> None:
    CliRunner().invoke(replay.command, ["git", str(made.path), "--data", str(stack_data)])

    result = run(verify.command, stack_data, "--json", "--wait=20")

    told = json.loads(result.stdout)
    assert [check["name"] for check in told["checks"]] == CHECKS
    assert [check["first"] for check in told["checks"]] == [None] * 6
    assert (result.exit_code, told["ok"]) == (0, True)
    assert all(check["compared"] > 0 for check in told["checks"])
    with psycopg.connect(stack.postgres) as connection:
        head = connection.execute(
            "SELECT epoch, revision, encode(digest, 'hex') FROM revisions ORDER BY revision DESC LIMIT 1"
        ).fetchone()
    assert (told["epoch"], told["revision"], told["digest"]) == head


@pytest.mark.kafka
@pytest.mark.services
def test_a_ledger_that_was_changed_is_found(stack: Endpoints, stack_data: Path) -> None:
    # A hash that no service reads, so that nobody stumbles over it meanwhile.
    change = "UPDATE catalogues SET sha256 = reverse(sha256)"
    with psycopg.connect(stack.postgres, autocommit=True) as connection:
        connection.execute(change)
        try:
            result = run(verify.command, stack_data, "--json")
            shown = run(verify.command, stack_data)
        finally:
            connection.execute(change)

    told = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert (result.exit_code, shown.exit_code) == (1, 1)
    assert [name for name, check in told.items() if not check["ok"]] == ["digest_chain"]
    assert told["digest_chain"]["first"]["what"] == "the hash of a catalogue"
    assert "✗ digest_chain" in shown.stdout
    assert "first:" in shown.stdout
