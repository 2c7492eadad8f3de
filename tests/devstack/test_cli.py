"""The command's frame: help, commands loaded when asked for, and errors as sentences."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from core import topics
from trueboard import cli, doctor
from trueboard.devstack.kafka.memory import MockCluster
from trueboard.endpoints import Endpoints


def test_help_names_what_to_do_first_and_every_command_that_is_here():
    shown = CliRunner().invoke(cli.trueboard, ["--help"])

    assert shown.exit_code == 0
    assert "Begin with `trueboard up`" in shown.output
    assert {"up", "doctor"} <= {line.split()[0] for line in shown.output.splitlines() if line.strip()}


def test_a_command_whose_module_is_missing_is_a_sentence_and_the_others_work(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(cli._COMMANDS, "verify", ("trueboard.not_there", "Nothing."))
    missing = CliRunner().invoke(cli.trueboard, ["verify"])
    shown = CliRunner().invoke(cli.trueboard, ["--help"])

    assert missing.exit_code == 1
    assert missing.stderr == "Error: this installation does not have `trueboard verify`\n"
    assert "verify" not in [line.split()[0] for line in shown.output.splitlines() if line.strip()]


def test_an_unknown_command_is_refused():
    assert CliRunner().invoke(cli.trueboard, ["frobnicate"]).exit_code == 2


def test_starting_the_command_loads_no_service_and_no_server_library():
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, trueboard.cli; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout.split()

    assert not {"litestar", "psycopg", "faust", "confluent_kafka", "trueboard.up"} & set(loaded)


def test_doctor_where_nothing_runs_says_how_to_start_and_fails(tmp_path: Path):
    told = CliRunner().invoke(doctor.command, ["--data", str(tmp_path), "--json"])
    report = json.loads(told.output)

    assert told.exit_code == 1
    assert report["ok"] is False
    assert [check["name"] for check in report["checks"]] == ["stack"]
    assert "trueboard up" in report["checks"][0]["detail"]
    assert report["tools"]["python"].startswith("3.")


def test_doctor_names_everything_that_does_not_answer_and_shows_no_password(tmp_path: Path):
    Endpoints(
        http="http://127.0.0.1:1",
        feed="http://127.0.0.1:1",
        kafka="127.0.0.1:1",
        kafka_kind="jvm",
        postgres="postgresql://u:secret@127.0.0.1:1/x",
        redis="redis://:secret@127.0.0.1:1/0",
        jwks="http://127.0.0.1:1/.well-known/jwks.json",
        issuer="trueboard",
        audience="trueboard",
        metrics={"ingest": "http://127.0.0.1:1/metrics"},
        processes={"supervisor": [2**22 + 1]},
    ).write(tmp_path)
    told = CliRunner().invoke(doctor.command, ["--data", str(tmp_path)])
    fails = {line.split()[1] for line in told.output.splitlines() if line.startswith("FAILS")}

    assert told.exit_code == 1
    assert fails == {"supervisor", "postgres", "redis", "kafka", "ingest", "http", "feed", "jwks"}
    assert "secret" not in told.output


def kafka_looked_at(cluster: MockCluster) -> doctor.Check:
    endpoints = Endpoints(
        http="http://127.0.0.1:1",
        feed="http://127.0.0.1:1",
        kafka=cluster.bootstrap,
        kafka_kind=cluster.kind,
        postgres="postgresql://u:secret@127.0.0.1:1/x",
        redis="redis://:secret@127.0.0.1:1/0",
        jwks="http://127.0.0.1:1/.well-known/jwks.json",
        issuer="trueboard",
        audience="trueboard",
        metrics={},
        processes={},
    )
    return doctor._check("kafka", lambda: doctor._kafka(endpoints))


@pytest.mark.parametrize(("submitted", "shown"), [(2, "2"), (5, "2 or 5")])
def test_doctor_lets_the_submitted_topic_have_grown(memory_kafka: MockCluster, submitted: int, shown: str):
    for topic in topics.ALL:
        memory_kafka.make_topic(topic.name, submitted if topic is topics.SUBMITTED else 2)

    check = kafka_looked_at(memory_kafka)

    assert check.ok
    assert check.detail.endswith(f"{len(topics.ALL)} topics of {shown} partitions")


def test_doctor_says_what_is_wrong_with_topics_in_their_own_words(memory_kafka: MockCluster):
    for topic in topics.ALL[1:]:
        memory_kafka.make_topic(topic.name, 2)

    check = kafka_looked_at(memory_kafka)

    assert (check.ok, check.detail) == (False, f"topic {topics.ALL[0].name} does not exist")


@pytest.mark.kafka
def test_doctor_finds_a_running_stack_well(stack: Endpoints, stack_data: Path):
    told = CliRunner().invoke(doctor.command, ["--data", str(stack_data), "--json"])
    report = json.loads(told.output)

    assert [check for check in report["checks"] if not check["ok"]] == []
    assert told.exit_code == 0
