"""Servers for the tests that need them, and the rule that nothing is skipped where it can run.

`--services=embedded` (the default) starts the servers this package brings; `--services=containers`
takes the same ones from images. They are started when the first test asks for them and live as
long as the session. Set TRUEBOARD_FORBID_SKIPS=1 to turn every skip into a failure, but those for
want of a container engine.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import redis

from tests.devstack import containers
from trueboard.devstack.alone import running
from trueboard.devstack.kafka.jars import LEAST_JAVA, Jars, find_java
from trueboard.devstack.kafka.jvm import JvmKafka
from trueboard.devstack.kafka.memory import MockCluster
from trueboard.devstack.ports import free_port
from trueboard.devstack.postgres import SETTINGS, Postgres
from trueboard.devstack.processes import last_lines
from trueboard.devstack.valkey import Valkey
from trueboard.endpoints import Endpoints

CACHE = Path(os.environ.setdefault("TRUEBOARD_CACHE_DIR", str(Path.home() / ".cache" / "trueboard")))
PARTITIONS = 12
MAY_BE_SKIPPED = "no container engine"


@dataclass(frozen=True)
class Kafka:
    """A broker; `kind` is "jvm", "external" or "memory"."""

    bootstrap: str
    kind: str


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--services",
        choices=("embedded", "containers"),
        default="embedded",
        help="where Postgres, Valkey and Kafka come from",
    )


# nothing is skipped where it can run


def _reason(longrepr: object) -> str:
    text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return str(text).removeprefix("Skipped: ")


def _forbid(report: Any) -> None:
    if not os.environ.get("TRUEBOARD_FORBID_SKIPS") or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = _reason(report.longrepr)
    if not reason.startswith(MAY_BE_SKIPPED):
        report.outcome = "failed"
        report.longrepr = f"skipped, though nothing may be skipped here: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _forbid(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _forbid(report)
    return report


# servers, one of each for the session


@pytest.fixture(scope="session")
def in_containers(request: pytest.FixtureRequest) -> bool:
    """Whether servers come from images; skips when they should and no engine answers."""
    if request.config.getoption("--services") != "containers":
        return False
    if reason := containers.why_no_engine():
        pytest.skip(reason)
    return True


@contextmanager
def _scratch() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="trueboard-tests-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_url(in_containers: bool) -> Iterator[str]:
    """A Postgres 18 server of the session: the URL of its database `trueboard`, which stays empty."""
    if in_containers:
        with containers.postgres() as url:
            yield url
        return
    quick = {**SETTINGS, "fsync": "off", "max_connections": "200", "shared_buffers": "128MB"}
    with _scratch() as data:
        server = Postgres(data, free_port(), settings=quick)
        with running(server):
            yield server.url


@pytest.fixture(scope="session")
def _template(postgres_url: str) -> str:
    from storage.postgres import migrate

    name = "template_migrated"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    migrate.apply(_with_database(postgres_url, name))
    return name


def _with_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


@contextmanager
def _database_like(postgres_url: str, template: str) -> Iterator[str]:
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield _with_database(postgres_url, name)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database(postgres_url: str, _template: str) -> Iterator[str]:
    """The URL of a fresh, migrated database of the test's own."""
    with _database_like(postgres_url, _template) as url:
        yield url


@pytest.fixture
def empty_database(postgres_url: str) -> Iterator[str]:
    """The URL of a database of the test's own, without any table."""
    with _database_like(postgres_url, "template1") as url:
        yield url


@pytest.fixture(scope="session")
def redis_url(in_containers: bool) -> Iterator[str]:
    """A Valkey 9 server of the session."""
    if in_containers:
        with containers.valkey() as url:
            yield url
        return
    with _scratch() as data:
        server = Valkey(data, free_port())
        with running(server):
            yield server.url


@pytest.fixture
def redis_db_url(redis_url: str) -> str:
    """The session's Valkey, emptied."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        client.function_flush()
    return redis_url


def _need_kafka() -> None:
    java = find_java()
    if java is None or java.major < LEAST_JAVA or not (Jars(CACHE).are_here() or shutil.which("mvn")):
        pytest.skip("no Java 17 with Maven")


@pytest.fixture(scope="session")
def kafka(in_containers: bool) -> Iterator[Kafka]:
    """A real Apache Kafka of the session, without topics."""
    if in_containers:
        with containers.kafka() as bootstrap:
            yield Kafka(bootstrap, "external")
        return
    _need_kafka()
    with _scratch() as data:
        port = free_port()
        controller_port = free_port(taken=frozenset({port}))
        server = JvmKafka(data, CACHE, port=port, controller_port=controller_port, short_lived=True)
        with running(server):
            yield Kafka(server.bootstrap, server.kind)


@pytest.fixture
def memory_kafka() -> Iterator[MockCluster]:
    """An in-memory broker of the test's own, without topics: `bootstrap`, `kind`, `make_topic`, faults."""
    cluster = MockCluster()
    yield cluster
    cluster.close()


# everything


@pytest.fixture(scope="session")
def stack_data() -> Iterator[Path]:
    """The data directory of `stack`, for commands that take --data."""
    with _scratch() as data:
        yield data


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest, stack_data: Path) -> Iterator[Endpoints]:
    """The whole of `trueboard up` with real Kafka, on free ports; tests that use it are marked `kafka`."""
    _need_kafka()
    yield from _up(request, stack_data)


def _up(request: pytest.FixtureRequest, data: Path) -> Iterator[Endpoints]:
    output = data / "up.log"
    command = [sys.executable, "-P", "-m", "trueboard", "up", f"--data={data}", "--kafka=jvm"]
    with output.open("wb") as log:
        process = subprocess.Popen(
            [*command, "--http-port=0", "--feed-port=0"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline_s = time.monotonic() + 170
        while "\nready\n" not in output.read_text():
            if process.poll() is not None or time.monotonic() > deadline_s:
                pytest.fail(f"`trueboard up` did not get ready:\n{_logs(data)}", pytrace=False)
            time.sleep(0.1)
        yield Endpoints.read(data)
    finally:
        failed = request.session.testsfailed > 0
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail(f"`trueboard up` did not stop within 20 s:\n{_logs(data)}", pytrace=False)
        finally:
            if failed:
                print(_logs(data), file=sys.stderr)


def _logs(data: Path) -> str:
    files = [data / "up.log", *sorted((data / "logs").glob("*.log"))]
    return "\n".join(f"── {file.name}\n{last_lines(file, count=25)}" for file in files)
