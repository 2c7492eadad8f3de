"""Each bench runs as `make bench` runs it, at sizes that measure nothing, and its numbers agree."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import _need_kafka

pytestmark = [pytest.mark.services, pytest.mark.kafka, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _with_kafka() -> None:
    _need_kafka()


def result_of(bench: str, *options: str) -> Any:
    ended = subprocess.run(
        [sys.executable, str(ROOT / "bench" / f"{bench}.py"), "--quick", "--json", *options],
        capture_output=True,
        text=True,
        timeout=280,
    )

    assert ended.returncode == 0, ended.stderr[-3000:]
    result = json.loads(ended.stdout)
    assert result["bench"] == bench
    assert result["command"].startswith(f"python bench/{bench}.py --quick --json")
    assert result["machine"]["cores"] > 0
    assert {"python", "postgres", "valkey", "kafka"} <= set(result["versions"])
    return result


def test_every_file_is_tried_here():
    names = {path.stem for path in (ROOT / "bench").glob("*.py") if not path.stem.startswith("_")}

    assert names == {"ingest", "stream", "feed", "fanout"}


def test_ingest():
    result = result_of("ingest")

    checks = result["checks"]
    assert checks["sent"] == checks["in_kafka"] == checks["in_the_ledger"] > 0
    for way in (*result["alone"].values(), *result["beside_the_stream"].values()):
        assert set(way["statuses"]) <= {"200", "202"}
    assert result["times_the_floor"]["median"] > 0
    assert len(result["bars"]) == 2


def test_stream():
    result = result_of("stream", "--duplicates", "0.02")

    assert result["settings"]["records"] == 3_060
    assert result["checks"]["judged"] == result["checks"]["records_on_action_judged"] == 3_000
    assert result["stream"]["revisions"] > 0
    assert set(result["stream"]["done_after_s"]) == {
        "ledger",
        "board in Valkey",
        "records on the topics",
        "topics' cursor",
    }
    assert "judge_0" in result["stream"]["threads_us_per_action"]
    assert result["rival"]["total_us"]["median"] > 0


@pytest.mark.parametrize("options", [(), ("--centrifuge", "--batch", "5")], ids=["scores", "centrifuge"])
def test_feed(options):
    result = result_of("feed", *options)

    assert result["checks"]["counted"] > 0
    assert result["checks"]["never_seen_by_all"] == 0
    assert set(result["checks"]["answers"]) == {"202"}
    for stage in result["stages"].values():
        assert 0 < stage["p50_ms"] <= stage["p99_ms"] <= stage["most_ms"]


def test_fanout():
    result = result_of("fanout")

    assert set(result["broadcast"]) == {
        "push /ws/scores",
        "push /connection/websocket",
        "C epoll",
        "litestar.channels",
    }
    for server in result["broadcast"].values():
        assert server["missing"]["median"] == 0
        assert server["last_ms"]["median"] > 0
        assert server["fast_per_s"]["median"] > 0
    assert result["stalled"]["missing"] == 0
    assert result["stalled"]["deliveries"] == 30 * 19
    sizes = {way: each["bytes_per_delivery"] for way, each in result["packed"].items()}
    assert sizes["/ws/scores, compressed"] < sizes["/ws/scores"] / 2
    assert sizes["/connection/websocket, differences"] < sizes["/connection/websocket"] / 2
    assert result["storm"]["served_s"] > 0
    assert len(result["bars"]) == 11
