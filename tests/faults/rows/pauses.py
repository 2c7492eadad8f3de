"""Z: processes that stand still, and clocks."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

from tests.faults.engine import Scene, row
from tests.faults.processes import CANNOT_FAKE_TIME
from tests.faults.rig import SESSION_TIMEOUT_S


@row("Z-1", "a worker stands still past its session, another takes over, it wakes", "I-8 I-23", fast=True)
def zombie_worker(scene: Scene) -> None:
    rig = scene.rig
    rig.start("stream2")
    for _ in range(scene.times(1, 3)):
        scene.strike("SIGSTOP stream", rig["stream"].pause, target="stream")
        paused_s = time.monotonic()
        scene.effect("the other judges everything", lambda: scene.world.lag_is_short())
        time.sleep(max(0.0, SESSION_TIMEOUT_S + 2 - (time.monotonic() - paused_s)))
        scene.progress()
        rig["stream"].go_on()
        scene.healed()
        scene.progress()
    rig["stream2"].stop()


@row("Z-2", "a worker stands still between its commit and Redis while another goes on", "I-5 I-8")
def paused_before_redis(scene: Scene) -> None:
    _stands_still_at(scene, "boards.applying", 6.0)


@row("K-10", "a transaction takes longer than a session and than the server allows", "I-23")
def paused_in_a_transaction(scene: Scene) -> None:
    _stands_still_at(scene, "ledger.numbered", 7.0)


def _stands_still_at(scene: Scene, place: str, seconds: float) -> None:
    rig, stream = scene.rig, scene.rig["stream"]
    rig.failpoints["stream"] = f"{place}=pause:{seconds}s@20"
    scene.strike("SIGTERM of the worker", stream.stop, target="stream")
    stream.start()
    del rig.failpoints["stream"]
    rig.start("stream2")
    scene.effect(f"it stands still at {place}", lambda: f"{place} pause" in stream.since_start())
    scene.note_strike(f"{seconds:g} s at {place}", "stream")
    time.sleep(seconds)
    scene.progress()
    scene.healed()
    rig["stream2"].stop()


@row("Z-3", "ingest stands still for 10 s", "I-13", wants={"unanswered"})
def ingest_paused(scene: Scene) -> None:
    ingest = scene.rig["ingest"]
    with scene.broken("SIGSTOP ingest for 10 s", ingest.pause, ingest.go_on, "ingest"):
        time.sleep(10)


@row("Z-4", "Postgres stands still for 15 s", "I-11 I-20")
def postgres_paused(scene: Scene) -> None:
    postgres = scene.rig["postgres"]
    with scene.broken("SIGSTOP Postgres for 15 s", postgres.pause, postgres.go_on, "postgres"):
        refused = scene.writers.counts.statuses[503]
        scene.confirmations(100)
        time.sleep(8)
        assert scene.writers.counts.statuses[503] == refused, "ingest refused actions"
        scene.observe(lag=scene.world.record_lag())


@row("Z-5", "Redis stands still for 10 s", "I-5 I-11")
def redis_paused(scene: Scene) -> None:
    valkey = scene.rig["valkey"]
    with scene.broken("SIGSTOP Redis for 10 s", valkey.pause, valkey.go_on, "valkey"):
        refused = scene.writers.counts.statuses[503]
        scene.confirmations(100)
        time.sleep(6)
        scene.progress()
        assert scene.writers.counts.statuses[503] == refused, "ingest refused actions"


@row("Z-6", "Kafka stands still for 10 s", "I-11 I-13", fast=True, wants={"503", "duplicates"})
def kafka_paused(scene: Scene) -> None:
    kafka = scene.rig["kafka-1"]
    with scene.broken("SIGSTOP Kafka for 10 s", kafka.pause, kafka.go_on, "kafka-1"):
        scene.refusals(5)
        scene.none_confirmed(for_s=4)
    scene.nobody_was_left_hanging()


@row("Z-7", "the clock of ingest is 10 minutes ahead, and steps back", "I-3", cannot=CANNOT_FAKE_TIME)
def ingest_ahead(scene: Scene) -> None:
    _with_clock(scene, "ingest", "+10m")


@row(
    "Z-8",
    "the clock of the stream is an hour ahead, an hour behind",
    "I-15",
    cannot="under libfaketime librdkafka's consumers stand still (judging itself reads no clock)",
)
def stream_skewed(scene: Scene) -> None:
    _with_clock(scene, "stream", "+1h")
    _with_clock(scene, "stream", "-1h")


def _with_clock(scene: Scene, name: str, offset: str) -> None:
    rig, process = scene.rig, scene.rig[name]
    rig.clocks[name] = offset
    scene.strike(f"{name} started anew with its clock at {offset}", process.stop, target=name)
    process.start()
    scene.effect("it takes that for the time", lambda: _skewed(process.last_lines(1)))
    scene.progress(100)
    del rig.clocks[name]
    scene.strike(f"{name} started anew with its clock right", process.stop, target=name)
    process.start()
    scene.healed()


def _skewed(line: str) -> bool:
    """Whether a line of a log is of another time."""
    written_at = datetime.fromisoformat(json.loads(line)["time"])
    return abs((written_at - datetime.now(UTC)).total_seconds()) > 300
