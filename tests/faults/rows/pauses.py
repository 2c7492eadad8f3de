"""Z: processes that stand still, and clocks."""

from __future__ import annotations

import time

from tests.faults.engine import Scene, row
from tests.faults.rig import SESSION_TIMEOUT_S


@row("Z-1", "a worker stands still past its session, another takes over, it wakes", "I-8 I-23", fast=True)
def zombie_worker(scene: Scene) -> None:
    rig = scene.rig
    rig.start("stream2")
    for _ in range(scene.times(1, 3)):
        scene.strike("SIGSTOP stream", rig["stream"].pause, target="stream")
        paused_s = time.monotonic()
        scene.effect("the other judges everything", lambda: scene.world.lag_is_short(), within_s=30)
        time.sleep(max(0.0, SESSION_TIMEOUT_S + 2 - (time.monotonic() - paused_s)))
        scene.progress()
        rig["stream"].go_on()
        scene.healed()
        scene.progress()
    rig["stream2"].stop()


@row("Z-3", "ingest stands still for 10 s", "I-13", wants={"unanswered"})
def ingest_paused(scene: Scene) -> None:
    ingest = scene.rig["ingest"]
    with scene.broken("SIGSTOP ingest for 10 s", ingest.pause, ingest.go_on, "ingest"):
        time.sleep(10)


@row("Z-4", "Postgres stands still for 15 s", "I-11 I-20", fast=True)
def postgres_paused(scene: Scene) -> None:
    postgres = scene.rig["postgres"]
    with scene.broken("SIGSTOP Postgres for 15 s", postgres.pause, postgres.go_on, "postgres"):
        refused = scene.writers.counts.statuses[503]
        scene.confirmations(100, within_s=12)
        time.sleep(8)
        assert scene.writers.counts.statuses[503] == refused, "ingest refused actions"
        scene.observe(lag=scene.world.record_lag())


@row("Z-5", "Redis stands still for 10 s", "I-5 I-11")
def redis_paused(scene: Scene) -> None:
    valkey = scene.rig["valkey"]
    with scene.broken("SIGSTOP Redis for 10 s", valkey.pause, valkey.go_on, "valkey"):
        refused = scene.writers.counts.statuses[503]
        scene.confirmations(100, within_s=10)
        time.sleep(6)
        scene.progress()
        assert scene.writers.counts.statuses[503] == refused, "ingest refused actions"


@row("Z-6", "Kafka stands still for 10 s", "I-11 I-13", fast=True, wants={"503", "duplicates"})
def kafka_paused(scene: Scene) -> None:
    kafka = scene.rig["kafka-1"]
    with scene.broken("SIGSTOP Kafka for 10 s", kafka.pause, kafka.go_on, "kafka-1"):
        scene.refusals(5, within_s=8)
        scene.none_confirmed(for_s=4)
    assert scene.writers.counts.slowest_refusal_s < 6, scene.writers.counts.slowest_refusal_s
