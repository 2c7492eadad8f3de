"""`python -m push` as a process: how it starts, how it ends, what it says about itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from core.topics import BOARD_CHANGED
from trueboard.devstack.kafka.memory import MockCluster
from trueboard.devstack.ports import free_port


@pytest.fixture
def process(
    memory_kafka: MockCluster, tmp_path: Any
) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """A feed whose Kafka is there and whose Redis and Postgres are not."""
    memory_kafka.make_topic(BOARD_CHANGED.name, 3)
    feed_port, metrics_port, dead_port = free_port(), free_port(), free_port()
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("TRUEBOARD_")},
        "TRUEBOARD_DATA": str(tmp_path),
        "TRUEBOARD_KAFKA": memory_kafka.bootstrap,
        "TRUEBOARD_KAFKA_KIND": "memory",
        "TRUEBOARD_REDIS_URL": f"redis://127.0.0.1:{dead_port}/0",
        "TRUEBOARD_POSTGRES_URL": f"postgresql://x:x@127.0.0.1:{dead_port}/x",
        "TRUEBOARD_JWKS": str(tmp_path / "jwks.json"),
        "TRUEBOARD_FEED_PORT": str(feed_port),
        "TRUEBOARD_METRICS_PORT": str(metrics_port),
    }
    running = subprocess.Popen([sys.executable, "-m", "push"], env=env, stderr=subprocess.PIPE)
    yield running, env
    if running.poll() is None:
        running.kill()
    running.communicate()


def _get(port: str, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as answer:
        return answer.code, answer.read()
    except OSError:
        return 0, b""


def _until(status: int, port: str, path: str) -> bytes:
    deadline_s = time.monotonic() + 20
    while (answer := _get(port, path))[0] != status:
        assert time.monotonic() < deadline_s, answer
        time.sleep(0.05)
    return answer[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_within_three_seconds_and_without_a_fault(
    process: tuple[subprocess.Popen[bytes], dict[str, str]], number: signal.Signals
) -> None:
    running, env = process
    _until(404, env["TRUEBOARD_FEED_PORT"], "/")

    running.send_signal(number)
    code = running.wait(3)

    assert code == 0


def test_it_is_alive_but_not_ready_without_a_board_and_shows_its_metrics(
    process: tuple[subprocess.Popen[bytes], dict[str, str]],
) -> None:
    _, env = process
    port = env["TRUEBOARD_METRICS_PORT"]

    live = json.loads(_until(200, port, "/health/live"))
    ready = json.loads(_until(503, port, "/health/ready"))
    metrics = _until(200, port, "/metrics").decode()

    assert live["ok"]
    assert not ready["board_loaded"]
    assert "trueboard_frames_merged_total" in metrics
    assert "trueboard_websocket_connections" in metrics


def test_settings_that_are_missing_are_all_named() -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("TRUEBOARD_")}

    ended = subprocess.run([sys.executable, "-m", "push"], env=env, capture_output=True, timeout=20)

    assert ended.returncode == 2
    for name in ("KAFKA", "REDIS_URL", "POSTGRES_URL", "JWKS"):
        assert f"TRUEBOARD_{name}".encode() in ended.stderr
