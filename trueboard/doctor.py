"""`trueboard doctor`: what runs, what answers, in which version, and which settings hold.

It looks from outside, as a client would, and changes nothing. Each check has two seconds or so;
passwords are masked.
"""

from __future__ import annotations

import http.client
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import click

from core.errors import TrueboardError
from service.settings import data_directory, describe, mask, read_settings
from trueboard import options
from trueboard.devstack.kafka.jars import LEAST_JAVA, find_java, kafka_version
from trueboard.devstack.settings import StackSettings
from trueboard.endpoints import Endpoints

_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing looked at: `ok` says whether it answers as it should, `detail` what was seen."""

    name: str
    ok: bool
    detail: str


class _NotAsItShould(Exception):
    """Something answers, but with something else than it should."""


@click.command()
@options.data
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
def command(data: Path | None, as_json: bool) -> None:
    """Look at what runs, what answers, and which settings hold.

    The exit code is 0 if everything answers, else 1.
    """
    directory = data_directory(os.environ, data)
    checks = list(look(directory))
    ok = all(check.ok for check in checks)
    if as_json:
        report = {
            "ok": ok,
            "data": str(directory),
            "checks": [asdict(check) for check in checks],
            "tools": tools(),
            "settings": _settings(directory),
        }
        click.echo(json.dumps(report, indent=2))
    else:
        for check in checks:
            click.echo(f"{'ok   ' if check.ok else 'FAILS'}  {check.name:<12} {check.detail}")
        click.echo()
        for name, version in tools().items():
            click.echo(f"       {name:<12} {version}")
        click.echo()
        for line in _settings(directory):
            if line["source"] != "default":
                click.echo(f"       {line['variable']} = {line['value']}  (from {line['source']})")
    sys.exit(0 if ok else 1)


def look(data: Path) -> Iterator[Check]:
    """Every check in turn; only the first if nothing is ready on this data directory."""
    try:
        read_settings(StackSettings, os.environ, data_dir=data)
        endpoints = Endpoints.read(data)
    except TrueboardError as error:
        yield Check(name="stack", ok=False, detail=str(error))
        return
    yield _check("supervisor", lambda: _processes(endpoints))
    yield _check("postgres", lambda: _postgres(endpoints.postgres))
    yield _check("redis", lambda: _redis(endpoints.redis))
    yield _check("kafka", lambda: _kafka(endpoints))
    for name, url in endpoints.metrics.items():
        yield _check(name, lambda url=url: _ready(url))  # type: ignore[misc]  # bound now, not later
    yield _check("http", lambda: _boards(endpoints.http))
    yield _check("feed", lambda: _connects(endpoints.feed))
    yield _check("jwks", lambda: _keys(endpoints.jwks))


def _check(name: str, look_at: Callable[[], str]) -> Check:
    try:
        return Check(name=name, ok=True, detail=look_at())
    except (_NotAsItShould, TrueboardError) as error:
        return Check(name=name, ok=False, detail=str(error))
    except Exception as error:
        # whatever a client library raises is what this command is there to show
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Check(name=name, ok=False, detail=mask(name, f"does not answer: {lines[0]}"))


def _processes(endpoints: Endpoints) -> str:
    gone = [name for name, pids in endpoints.processes.items() for pid in pids if not _alive(pid)]
    if gone:
        raise _NotAsItShould(f"ended without a word: {', '.join(gone)} (a killed stack leaves this behind)")
    return ", ".join(f"{name} {pid}" for name, pids in endpoints.processes.items() for pid in pids)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _postgres(url: str) -> str:
    import psycopg

    with psycopg.connect(url, connect_timeout=int(_TIMEOUT_S)) as connection:
        connection.execute("SET statement_timeout = '3s'")
        (version,) = connection.execute("SELECT current_setting('server_version')").fetchone() or ("?",)
        (head,) = connection.execute("SELECT coalesce(max(revision), 0) FROM revisions").fetchone() or (0,)
    return f"PostgreSQL {version} at {mask('postgres', url)}, revision {head}"


def _redis(url: str) -> str:
    import redis

    with redis.Redis.from_url(
        url, socket_connect_timeout=_TIMEOUT_S, socket_timeout=_TIMEOUT_S, decode_responses=True
    ) as client:
        facts = client.info("server")
    name = "Valkey" if "valkey_version" in facts else "Redis"
    version = facts.get("valkey_version") or facts.get("redis_version")
    return f"{name} {version} at {mask('redis', url)}"


def _kafka(endpoints: Endpoints) -> str:
    from storage.kafka import topics

    counts = topics.verify(endpoints.kafka, kind=endpoints.kafka_kind, timeout_s=_TIMEOUT_S)
    kinds = {"jvm": f"Apache Kafka {kafka_version()}", "memory": "the in-memory broker (forgets everything)"}
    kind = kinds.get(endpoints.kafka_kind, "Kafka")
    partitions = " or ".join(map(str, sorted(set(counts.values()))))
    return f"{kind} at {endpoints.kafka}, {len(counts)} topics of {partitions} partitions"


def _get(url: str) -> tuple[int, bytes]:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", parts.path or "/")
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _ready(metrics_url: str) -> str:
    url = metrics_url.removesuffix("/metrics") + "/health/ready"
    status, body = _get(url)
    if status != 200:
        raise _NotAsItShould(f"not ready ({status}): {body[:200].decode(errors='replace').strip()}")
    return f"ready, metrics at {metrics_url}"


def _boards(http_url: str) -> str:
    status, body = _get(f"{http_url}/v1/boards/main/standings")
    if status != 200:
        raise _NotAsItShould(f"{http_url} answers {status}: {body[:200].decode(errors='replace').strip()}")
    shown = json.loads(body)
    return f"{http_url}, board main: {shown.get('count')} players at revision {shown.get('revision')}"


def _connects(feed_url: str) -> str:
    # a path nobody serves: any answer at all says that the feed listens
    _get(f"{feed_url}/")
    return f"{feed_url} answers"


def _keys(url: str) -> str:
    status, body = _get(url)
    keys = json.loads(body).get("keys", []) if status == 200 else []
    if not keys:
        raise _NotAsItShould(f"{url} answers {status} without keys")
    return f"{len(keys)} keys at {url}"


def tools() -> dict[str, str]:
    """The versions of what runs underneath; "missing" where something is not installed."""
    java = find_java()
    return {
        "python": platform.python_version(),
        "java": java.version if java else f"missing (Kafka needs {LEAST_JAVA} or newer)",
        "maven": _first_line(["mvn", "--version"]),
        "git": _first_line(["git", "--version"]),
        "system": platform.platform(),
    }


def _first_line(argv: list[str]) -> str:
    executable = shutil.which(argv[0])
    if executable is None:
        return "missing"
    try:
        told = subprocess.run(
            [executable, *argv[1:]], capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return "does not run"
    lines = told.stdout.strip().splitlines()
    return click.unstyle(lines[0]) if lines else "says nothing"


def _settings(data: Path) -> list[dict[str, str]]:
    try:
        settings = read_settings(StackSettings, os.environ, data_dir=data)
    except TrueboardError:
        return []  # the first check names what is wrong
    return [
        {"name": line.name, "variable": line.variable, "value": line.value, "source": line.source}
        for line in describe(settings, os.environ, data_dir=data)
    ]
