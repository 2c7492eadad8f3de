"""`trueboard up`: what it says, what it leaves, and what it does when something goes wrong."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

import psycopg
import pytest

from tests.devstack.stand_in import is_running
from trueboard import up
from trueboard.devstack.errors import CannotStart
from trueboard.devstack.ports import free_port
from trueboard.devstack.valkey import Valkey
from trueboard.endpoints import Endpoints

pytestmark = pytest.mark.services

ANY_PORTS = ("--http-port=0", "--feed-port=0")


class Up(NamedTuple):
    """A running `up`."""

    process: subprocess.Popen[str]
    data: Path
    output: Path

    @property
    def endpoints(self) -> Endpoints:
        return Endpoints.read(self.data)

    @property
    def text(self) -> str:
        return self.output.read_text()

    def pid(self, name: str) -> int:
        (pid,) = self.endpoints.processes[name]
        return pid

    def env_of(self, service: str) -> dict[str, str]:
        """What the service was started with. One that has just been started may not listen yet."""
        found: dict[str, str] = {}

        def answers() -> bool:
            try:
                with urlopen(self.endpoints.metrics[service], timeout=5) as answer:
                    found.update(json.load(answer))
            except URLError:
                return False
            return True

        wait_until(answers)
        return found


def launch(data: Path, *arguments: str, env: dict[str, str] | None = None) -> Up:
    data.mkdir(exist_ok=True)
    output = data.parent / f"{data.name}-up.log"
    with output.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.devstack.up_with_stand_ins", str(data), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(env or {})},
            cwd=Path(__file__).parents[2],
        )
    return Up(process, data, output)


@contextmanager
def running_up(data: Path, *arguments: str, env: dict[str, str] | None = None) -> Iterator[Up]:
    started = launch(data, *(arguments or ("--kafka=memory", *ANY_PORTS)), env=env)
    try:
        wait_until(lambda: "\nready\n" in started.text or started.process.poll() is not None, 60)
        assert "\nready\n" in started.text, started.text
        yield started
    finally:
        if started.process.poll() is None:
            started.process.terminate()
        started.process.wait(timeout=20)


def wait_until(holds: Callable[[], bool], timeout_s: float = 15) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, "it did not come about in time"
        time.sleep(0.05)


def fails(data: Path, *arguments: str, env: dict[str, str] | None = None) -> str:
    started = launch(data, *arguments, env=env)
    code = started.process.wait(timeout=60)
    assert code == 1, started.text
    assert "Traceback" not in started.text
    return started.text


@pytest.fixture(scope="module")
def stack_with_stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(tmp_path_factory.mktemp("up") / "data") as started:
        yield started


def test_ready_stands_alone_on_the_last_line_and_a_curl_line_with_a_token_before_it(
    stack_with_stand_ins: Up,
):
    lines = stack_with_stand_ins.text.splitlines()
    curl = next(line for line in lines if "curl" in line)

    assert lines.count("ready") == 1
    assert f"{stack_with_stand_ins.endpoints.http}/v1/actions" in curl
    assert "Authorization: Bearer ey" in curl
    assert any(f"{stack_with_stand_ins.endpoints.http}/#token=ey" in line for line in lines)
    assert any("KAFKA IS IN MEMORY" in line for line in lines)
    assert any("raised to 100000/s for loopback" in line for line in lines)


def test_the_endpoints_name_living_processes_and_a_migrated_ledger(stack_with_stand_ins: Up):
    endpoints = stack_with_stand_ins.endpoints
    with psycopg.connect(endpoints.postgres) as connection:
        causes = connection.execute("SELECT cause FROM revisions ORDER BY revision").fetchall()

    assert set(endpoints.processes) == {
        "supervisor",
        "ingest",
        "stream_app",
        "push",
        "kafka",
        "postgres",
        "valkey",
    }
    assert all(is_running(pid) for pids in endpoints.processes.values() for pid in pids)
    assert endpoints.processes["supervisor"] == [stack_with_stand_ins.process.pid]
    assert endpoints.kafka_kind == "memory"
    assert causes == [("definition",)]


def test_the_services_are_told_where_everything_is(stack_with_stand_ins: Up):
    endpoints, env = stack_with_stand_ins.endpoints, stack_with_stand_ins.env_of("ingest")

    assert env["TRUEBOARD_DATA"] == str(stack_with_stand_ins.data)
    assert env["TRUEBOARD_POSTGRES_URL"] == endpoints.postgres
    assert env["TRUEBOARD_REDIS_URL"] == endpoints.redis
    assert (env["TRUEBOARD_KAFKA"], env["TRUEBOARD_KAFKA_KIND"]) == (endpoints.kafka, "memory")
    assert env["TRUEBOARD_HTTP_URL"] == endpoints.http == f"http://127.0.0.1:{env['TRUEBOARD_HTTP_PORT']}"
    assert env["TRUEBOARD_FEED_URL"] == endpoints.feed == f"http://127.0.0.1:{env['TRUEBOARD_FEED_PORT']}"
    assert Path(env["TRUEBOARD_JWKS"]).exists()
    assert env["TRUEBOARD_TOKEN_MAX_LIFE_S"] == "86400"


def test_a_second_up_on_the_same_data_is_refused_in_a_sentence(stack_with_stand_ins: Up):
    data = stack_with_stand_ins.data
    again = subprocess.run(
        [sys.executable, "-m", "trueboard", "up", "--data", str(data)],
        capture_output=True,
        text=True,
        timeout=30,
        stdin=subprocess.DEVNULL,
    )

    assert again.returncode == 1
    assert again.stderr == (
        f"trueboard up: {data} is in use by another `trueboard up` "
        f"(pid {stack_with_stand_ins.process.pid}): stop that one first\n"
    )
    assert stack_with_stand_ins.process.poll() is None
    assert stack_with_stand_ins.endpoints.processes["supervisor"] == [stack_with_stand_ins.process.pid]


def test_a_killed_service_comes_back_and_the_endpoints_follow(stack_with_stand_ins: Up):
    first = stack_with_stand_ins.pid("push")
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: stack_with_stand_ins.endpoints.processes["push"] not in ([], [first]))

    assert is_running(stack_with_stand_ins.pid("push"))
    assert f"push (pid {first}) was ended by SIGKILL; starting it again" in stack_with_stand_ins.text


def test_a_killed_postgres_comes_back_with_its_ledger(stack_with_stand_ins: Up):
    first, url = stack_with_stand_ins.pid("postgres"), stack_with_stand_ins.endpoints.postgres
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: stack_with_stand_ins.endpoints.processes["postgres"] not in ([], [first]), 30)

    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT max(revision) FROM revisions").fetchone() == (1,)


def test_a_memory_broker_that_ended_is_replaced_and_the_services_told(stack_with_stand_ins: Up):
    first, address = stack_with_stand_ins.pid("kafka"), stack_with_stand_ins.endpoints.kafka
    services = [stack_with_stand_ins.pid(name) for name in ("ingest", "stream_app", "push")]
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: stack_with_stand_ins.endpoints.kafka != address)
    wait_until(
        lambda: all(
            pids and pids[0] not in services
            for pids in map(stack_with_stand_ins.endpoints.processes.get, ("ingest", "stream_app", "push"))
        )
    )

    assert (
        stack_with_stand_ins.env_of("stream_app")["TRUEBOARD_KAFKA"] == stack_with_stand_ins.endpoints.kafka
    )
    assert "what the in-memory broker held is lost" in stack_with_stand_ins.text


def test_it_stops_within_ten_seconds_with_exit_code_0_and_takes_the_endpoints_away(tmp_path: Path):
    with running_up(tmp_path / "data") as started:
        pids = [pid for pids in started.endpoints.processes.values() for pid in pids]
        began_at_s = time.monotonic()
        started.process.send_signal(signal.SIGINT)
        code = started.process.wait(timeout=15)

    assert code == 0
    assert time.monotonic() - began_at_s < 10
    assert not (tmp_path / "data" / "endpoints.json").exists()
    assert not any(is_running(pid) for pid in pids)


def test_sigkill_leaves_no_orphan_and_the_next_start_has_the_same_addresses_and_ledger(tmp_path: Path):
    data = tmp_path / "data"
    with running_up(data) as started:
        before = started.endpoints
        with psycopg.connect(before.postgres) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
        started.process.kill()
        started.process.wait()
        wait_until(lambda: not any(is_running(pid) for pids in before.processes.values() for pid in pids))

    with running_up(data) as started:
        after = started.endpoints
        with psycopg.connect(after.postgres) as connection:
            kept = connection.execute("SELECT number FROM kept").fetchone()

    assert (after.http, after.feed, after.postgres, after.redis) == (
        before.http,
        before.feed,
        before.postgres,
        before.redis,
    )
    assert kept == (7,)


def test_a_service_that_ends_at_its_start_is_a_sentence_and_the_end_of_its_log(tmp_path: Path):
    said = fails(tmp_path / "data", "--kafka=memory", *ANY_PORTS, env={"STAND_IN_BREAKS": "stream_app"})

    assert "stream_app ended with exit code 1 before it was ready" in said
    assert "the stand-in broke, as it was asked to" in said


def test_a_taken_port_is_a_sentence(tmp_path: Path, stack_with_stand_ins: Up):
    port = stack_with_stand_ins.endpoints.metrics["push"].split(":")[2].split("/")[0]
    said = fails(tmp_path / "data", "--kafka=memory", f"--http-port={port}", "--feed-port=0")

    assert said.splitlines() == [
        f"trueboard up: port {port} on 127.0.0.1, for http, is taken by another program: "
        "stop it, or choose another with --http-port (0 picks a free one)"
    ]


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--kafka=sometimes", "--kafka is auto, jvm, memory or HOST:PORT, but was 'sometimes'"),
        ("--kafka=127.0.0.1:1", "Kafka does not answer at 127.0.0.1:1"),
        ("--postgres=postgresql://u:secret@127.0.0.1:1/x", "Postgres does not answer at postgresql://u:***@"),
    ],
)
def test_what_does_not_answer_is_a_sentence_without_its_password(
    tmp_path: Path, argument: str, sentence: str
):
    others = [word for word in ("--kafka=memory",) if not argument.startswith("--kafka")]
    said = fails(tmp_path / "data", *others, *ANY_PORTS, argument)

    assert sentence in said
    assert "secret" not in said
    assert len(said.splitlines()) == 1


def test_malformed_settings_are_all_named(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "trueboard.toml").write_text('partitions = "many"\n')
    said = fails(tmp_path / "data", *ANY_PORTS, env={"TRUEBOARD_TOKEN_MAX_LIFE_S": "long"})

    assert "partitions in trueboard.toml" in said
    assert "TRUEBOARD_TOKEN_MAX_LIFE_S" in said


def test_what_a_person_has_set_wins_over_what_up_would_choose(tmp_path: Path):
    data, port = tmp_path / "data", free_port()
    data.mkdir()
    (data / "trueboard.toml").write_text(
        f"loopback_address_rate = 50\nhttp_port = {port}\nkafka = 'memory'\n"
    )
    with running_up(
        data,
        "--feed-port=0",
        env={"TRUEBOARD_PARTITIONS": "3", "TRUEBOARD_ISSUER": "me", "TRUEBOARD_OTHER": "x"},
    ) as started:
        env = started.env_of("push")

    assert env["TRUEBOARD_LOOPBACK_ADDRESS_RATE"] == "50"
    assert env["TRUEBOARD_HTTP_PORT"] == str(port)
    assert env["TRUEBOARD_PARTITIONS"] == "3"
    assert env["TRUEBOARD_ISSUER"] == "me"
    assert env["TRUEBOARD_OTHER"] == "x"


def test_a_catalogue_given_once_holds_for_the_data_and_is_not_changed_under_its_version(tmp_path: Path):
    data, catalogue = tmp_path / "data", tmp_path / "mine.toml"
    catalogue.write_text('version = "mine-1"\n[types.step]\npoints = 3\n')
    options = ("--kafka=memory", *ANY_PORTS)
    with running_up(data, *options, f"--catalogue={catalogue}") as started:
        first = catalogues(started)
    with running_up(data, *options) as started:
        second = catalogues(started)
    catalogue.write_text('version = "mine-1"\n[types.step]\npoints = 4\n')
    said = fails(data, *options, f"--catalogue={catalogue}")

    assert first == second == ["mine-1"]
    assert "mine-1" in said.splitlines()[-1]


def catalogues(started: Up) -> list[str]:
    with psycopg.connect(started.endpoints.postgres) as connection:
        return [
            version for (version,) in connection.execute("SELECT version FROM catalogues ORDER BY revision")
        ]


def test_a_postgres_that_lets_nobody_make_tables_is_a_sentence(tmp_path: Path, stack_with_stand_ins: Up):
    owner = stack_with_stand_ins.endpoints.postgres
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute("CREATE DATABASE narrow")
        connection.execute("CREATE ROLE guest LOGIN PASSWORD 'guest'")
    url = f"postgresql://guest:guest@{owner.split('@')[1].replace('/trueboard', '/narrow')}"
    said = fails(tmp_path / "data", "--kafka=memory", *ANY_PORTS, f"--postgres={url}")

    assert "guest:***@" in said
    assert "may not make tables in its schema public" in said


def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(up.shutil, "disk_usage", lambda _: up.shutil._ntuple_diskusage(10, 9, 1))
    code = up.run(up.Options(data=tmp_path))

    assert code == 1
    assert "the disk of" in capsys.readouterr().err


def test_topics_kept_in_kafka_are_not_left_behind_for_the_memory_broker_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "kafka").mkdir()
    (tmp_path / "kafka" / "formatted").touch()
    monkeypatch.setattr(up, "find_java", lambda: None)
    stack = up.Stack(
        up.Options(data=tmp_path), services={}, set_up=up.SetUp(), say=lambda _: None, complain=lambda _: None
    )

    with pytest.raises(CannotStart, match=r"needs Java 17 or newer.*--kafka memory"):
        stack._choose_kafka("auto")


@pytest.fixture
def stack_alone(tmp_path: Path) -> tuple[up.Stack, list[str]]:
    """A stack that knows its addresses and runs nothing, and what it complains of."""
    said: list[str] = []
    stack = up.Stack(
        up.Options(data=tmp_path), services={}, set_up=up.SetUp(), say=lambda _: None, complain=said.append
    )
    stack._http_port = stack._feed_port = 1
    stack._postgres_url = lambda: "postgresql://127.0.0.1:1/x"
    stack._redis_url = lambda: "redis://127.0.0.1:1/0"
    stack._bootstrap = lambda: "127.0.0.1:1"
    return stack, said


def test_endpoints_that_cannot_be_told_are_complained_of_and_written_the_next_time(
    stack_alone: tuple[up.Stack, list[str]], tmp_path: Path
):
    stack, said = stack_alone
    program = Valkey(tmp_path, free_port())

    def not_yet() -> str:
        raise CannotStart("kafka listens nowhere yet")

    bootstrap, stack._bootstrap = stack._bootstrap, not_yet
    stack._changed(program)
    stack._bootstrap = bootstrap
    first = list(said)
    stack._changed(program)

    assert first == said == ["endpoints.json does not tell of the new valkey: kafka listens nowhere yet"]
    assert Endpoints.read(tmp_path).kafka == "127.0.0.1:1"


def test_a_disk_that_is_full_when_a_program_came_back_stops_nothing(
    stack_alone: tuple[up.Stack, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def write(endpoints: Endpoints, data: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    stack, said = stack_alone
    monkeypatch.setattr(Endpoints, "write", write)
    stack._changed(Valkey(tmp_path, free_port()))

    (line,) = said
    assert line.startswith("endpoints.json does not tell of the new valkey: No space left on device")
