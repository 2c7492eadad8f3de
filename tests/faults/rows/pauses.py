"""Z: processes that stand still, and clocks."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx

from tests.acceptance.world import written
from tests.faults.clocks import CANNOT_SHIFT_CLOCKS
from tests.faults.engine import Scene, row
from tests.faults.rig import PATIENCE_S, SESSION_TIMEOUT_S
from tests.faults.tools import direct_user, produce, record


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
    rig, stream = scene.rig, scene.worker_meeting(f"{place}=pause:{seconds}s@20")
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


@row("Z-7", "the clock of ingest is 10 minutes ahead, and steps back", "I-3", cannot=CANNOT_SHIFT_CLOCKS)
def ingest_ahead(scene: Scene) -> None:
    with _clock_of(scene, "ingest", 600, "10 minutes ahead"):
        scene.progress(100)


_HOUR_S = 3600
_DAY_S = 86_400
"""How late an action may be before it is a backfill, by the default of the setting."""


@row("Z-8", "the clock of the stream is an hour ahead, an hour behind", "I-15", cannot=CANNOT_SHIFT_CLOCKS)
def stream_skewed(scene: Scene) -> None:
    """Judging goes by the instants in the records, also of those that another clock would take otherwise."""
    for by_s, told in ((_HOUR_S, "an hour ahead"), (-_HOUR_S, "an hour behind")):
        with _clock_of(scene, "stream", by_s, told):
            assert _taken_as_backfills(scene) == [False, False, True, True]
            scene.progress(100)
        scene.progress(100)
    scene.observe(told="what is late and early by event time told apart to the minute")


def _taken_as_backfills(scene: Scene) -> list[bool]:
    """Of four actions just within and just beyond what may be late and early, whether that was seen."""
    now, user = datetime.now(UTC), direct_user()
    offsets_s = (60 - _DAY_S, 50, -60 - _DAY_S, 70)
    for number, offset_s in enumerate(offsets_s):
        at = {"occurred_at": written(now + timedelta(seconds=offset_s)), "received_at": written(now)}
        value = json.dumps(json.loads(record(user, f"edge-{number}")) | at).encode()
        produce(scene.rig, [(user.encode(), value)])
    query = (
        "SELECT l.backfill FROM ledger l JOIN players USING (player) WHERE user_id = %s ORDER BY l.action_id"
    )
    scene.effect("they are judged", lambda: len(scene.rig.ask(query, (user,))) == len(offsets_s))
    return [backfill for (backfill,) in scene.rig.ask(query, (user,))]


_USER_RATE_PER_S, _USER_BURST = 5.0, 30
"""The limit of a user, by default."""
_AT_ONCE = 10


@row("Z-9", "two replicas of ingest whose clocks are 60 s apart", "I-3", cannot=CANNOT_SHIFT_CLOCKS)
def replicas_apart(scene: Scene) -> None:
    """What they grant one user together is what one would: the limits' time is Redis's."""
    rig = scene.rig
    rig.clocks["ingest2"] = 60
    second = rig.another("ingest", "ingest2", http_port=str(http_port := rig.free_port()))
    doors = (rig.http, f"http://127.0.0.1:{http_port}")
    try:
        scene.strike("a second replica, its clock 60 s ahead", second.start, target="ingest2")
        scene.effect("it takes that for the time", lambda: _is_off(second.last_lines(1), 60))
        told = [_taken_in_turns(scene, doors) for _ in range(scene.times(1, 5))]
        scene.observe(told="; ".join(told))
        scene.healed()
    finally:
        second.end()


def _taken_in_turns(scene: Scene, doors: Sequence[str]) -> str:
    """One user sends ten actions at a time, now at one door, now at the other, until both did both."""
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        user, decided_alone = direct_user(), _decided_alone(scene)
        granted, refused = [0, 0], [0, 0]
        headers = {"Authorization": f"Bearer {scene.rig.token(user)}"}
        with httpx.Client(headers=headers, timeout=10, trust_env=False) as client:
            begun_s = time.monotonic()
            while (took_s := time.monotonic() - begun_s) < 4 or min(*granted, *refused) < 2:
                assert took_s < 90, (granted, refused)
                for door in scene.world.dice.sample((0, 1), 2):
                    actions = [{"action_id": secrets.token_hex(8), "type": "commit"} for _ in range(_AT_ONCE)]
                    answer = client.post(f"{doors[door]}/v1/actions/batch", json={"actions": actions})
                    assert answer.status_code in (200, 429, 503), answer.text
                    granted[door] += answer.status_code == 200
                    refused[door] += answer.status_code == 429
            took_s = time.monotonic() - begun_s
        if _decided_alone(scene) > decided_alone:
            # The machine was too slow for 50 ms once, and a door then decided by itself: says nothing here.
            continue
        most = _USER_BURST + _USER_RATE_PER_S * took_s + 1
        assert sum(granted) * _AT_ONCE <= most, (granted, refused, took_s)
        return (
            f"in {took_s:.1f} s {granted[0] * _AT_ONCE} and {granted[1] * _AT_ONCE} actions granted,"
            f" at most {most:.0f} together"
        )
    raise AssertionError("Redis never answered the doors in time")


def _decided_alone(scene: Scene) -> float:
    """How often a door decided without Redis."""
    name = "trueboard_limits_decided_locally_total"
    return scene.rig.metric("ingest", name) + scene.rig.metric("ingest2", name)


@contextmanager
def _clock_of(scene: Scene, name: str, by_s: int, told: str) -> Iterator[None]:
    """While the block runs, a service has another time than the machine."""
    rig, process = scene.rig, scene.rig[name]
    rig.clocks[name] = by_s
    scene.strike(f"{name} started anew with its clock {told}", process.stop, target=name)
    process.start()
    scene.effect("it takes that for the time", lambda: _is_off(process.last_lines(1), by_s))
    yield
    del rig.clocks[name]
    scene.strike(f"{name} started anew with its clock right", process.stop, target=name)
    process.start()
    scene.healed()


def _is_off(line: str, by_s: int) -> bool:
    """Whether a line that a log has just got was written at that distance from now."""
    written_at = datetime.fromisoformat(json.loads(line)["time"])
    return abs((written_at - datetime.now(UTC)).total_seconds() - by_s) < abs(by_s) / 2
