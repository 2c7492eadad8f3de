"""N: links are cut, swallow what is sent, are slow, lose one way; the issuer of tokens is away."""

from __future__ import annotations

import secrets
import time
from functools import partial

import httpx

from service import keys
from tests.acceptance.world import EVERYTHING
from tests.faults.engine import Scene, row
from tests.faults.issuers import Issuer
from tests.faults.processes import until
from tests.faults.proxy import Seen
from tests.faults.rig import Rig
from tests.faults.tools import close_all, direct_user, half_open_sockets, open_files
from tests.faults.writers import ANSWER_S


@row("N-1", "ingest is cut off from Kafka", "I-11", fast=True, wants={"503"})
def cut_from_kafka(scene: Scene) -> None:
    links = scene.rig.kafka_links("ingest")
    with scene.broken("cut", lambda: scene.links.cut(*links), lambda: scene.links.heal(*links), "ingest"):
        scene.refusals(5)
        scene.none_confirmed(for_s=scene.times(3, 25))


@row("N-2", "what ingest sends to Kafka vanishes", "I-11", wants={"503"})
def kafka_blackhole(scene: Scene) -> None:
    links = scene.rig.kafka_links("ingest")
    with scene.broken(
        "read and dropped, both ways",
        lambda: scene.links.blackhole(*links),
        lambda: scene.links.heal(*links),
        "ingest",
    ):
        scene.refusals(5)
        scene.none_confirmed(for_s=3)
        assert scene.links[links[0]].seen.dropped["up"] > 0
    scene.nobody_was_left_hanging()


@row("N-3", "every connection is reset after some bytes", "all")
def reset_after_bytes(scene: Scene) -> None:
    links = scene.rig.links_of("ingest", "stream", "push")
    before = sum(scene.links[name].seen.resets for name in links)
    with scene.broken(
        "each connection reset after 30 kB, for 8 s",
        lambda: scene.links.set(*links, limit_bytes=30_000),
        lambda: scene.links.heal(*links),
    ):
        time.sleep(8)
        scene.observe(resets=sum(scene.links[name].seen.resets for name in links) - before)
    assert scene.result.observed["resets"] > 10


@row("N-4", "every link is slow and hands on small pieces", "I-22")
def slow(scene: Scene) -> None:
    links = scene.rig.links_of("ingest", "stream", "push")
    with scene.broken(
        "50 ± 50 ms, 512 bytes at a time, for 10 s",
        lambda: scene.links.set(*links, latency_ms=50, jitter_ms=50, slice_bytes=512),
        lambda: scene.links.heal(*links),
    ):
        scene.confirmations(50)
        time.sleep(10)
        scene.progress()


@row("N-5", "Postgres hears a commit, its answer vanishes", "I-3 I-4", wants={"redelivered"})
def answer_to_a_commit_vanishes(scene: Scene) -> None:
    stream, link = scene.rig["stream"], "stream-postgres"
    for _ in range(scene.times(1, 5)):
        # Everything is written; in the pause before the commit its answer is taken away.
        scene.rig.failpoints["stream"] = "ledger.numbered=pause:1.5s@5"
        scene.strike("SIGTERM of the worker", stream.stop, target="stream")
        stream.start(wait=False)
        scene.effect("it is about to commit", lambda: "ledger.numbered pause" in stream.since_start())
        dropped = scene.links[link].seen.dropped["down"]
        scene.links.blackhole(link, directions=["down"])
        scene.note_strike("answers of Postgres dropped from before a commit on", "stream")
        time.sleep(3)
        assert scene.links[link].seen.dropped["down"] > dropped, "there was no answer to drop"
        scene.links.heal(link)
        del scene.rig.failpoints["stream"]
        scene.progress()
    scene.healed()


@row("N-6", "Redis hears the stream, its answers vanish", "I-5")
def answers_of_redis_vanish(scene: Scene) -> None:
    _answers_vanish(scene, "stream-redis", times=scene.times(2, 6))


def _answers_vanish(scene: Scene, link: str, times: int) -> None:
    for _ in range(times):
        seen = scene.links[link].seen
        before = seen.dropped["down"]
        with scene.broken(
            f"{link}: answers dropped for 2 s",
            lambda: scene.links.blackhole(link, directions=["down"]),
            lambda: scene.links.heal(link),
            "stream",
        ):
            scene.effect("an answer was dropped", partial(_dropped_since, seen, before))
            time.sleep(2)


def _dropped_since(seen: Seen, before: int) -> bool:
    return seen.dropped["down"] > before


@row("N-7", "a worker is cut off from Kafka alone while another takes over", "I-23")
def worker_cut_from_kafka(scene: Scene) -> None:
    scene.rig.start("stream2")
    links = scene.rig.kafka_links("stream")
    with scene.broken(
        "stream cut from Kafka, not from Postgres and Redis",
        lambda: scene.links.cut(*links),
        lambda: scene.links.heal(*links),
        "stream",
    ):
        scene.effect("the other judges everything", scene.world.lag_is_short)
        scene.progress(100)
    scene.progress(100)
    scene.rig["stream2"].stop()


@row("N-8", "push is cut off from Kafka and still sees the standings", "I-7")
def push_cut_from_kafka(scene: Scene) -> None:
    links = scene.rig.kafka_links("push")
    with scene.broken("cut", lambda: scene.links.cut(*links), lambda: scene.links.heal(*links), "push"):
        late = []
        for _ in range(5):
            scene.progress()
            late.append(scene.world.feed_delay_s(within_s=20))
        scene.observe(feed_late_s=round(max(late), 1))


@row("N-9", "the issuer's keys cannot be read: down, slow, an error, none", "I-11", wants={"503"})
def keys_away(scene: Scene) -> None:
    """Who has keys goes on with them; who has none yet answers 503 until there are some."""
    rig, ingest = scene.rig, scene.rig["ingest"]
    issuer = Issuer(rig.data / "keys" / keys.JWKS_FILE, rig.free_port())
    issuer.begin()
    rig.tell("ingest", jwks=issuer.url)
    ingest.stop()
    ingest.start()
    stranger = _token_of_a_stranger(rig)
    slowest_s = 0.0
    try:
        for mood in ("down", "slow", "500", "empty"):
            with scene.broken(
                _MOODS[mood],
                lambda mood=mood: _bring(issuer, mood),  # type: ignore[misc]
                lambda: _bring(issuer, "right"),
                "the issuer",
            ):
                slowest_s = max(slowest_s, _goes_on_without(scene, stranger))
        ingest.stop()
        for mood in ("down", "slow", "500", "empty"):
            _begins_without(scene, issuer, mood)
    finally:
        issuer.end()
    scene.observe(slowest_s=round(slowest_s, 1))


_MOODS = {
    "down": "it does not listen",
    "slow": "it answers after 20 s",
    "500": "it answers 500",
    "empty": "it answers with an empty set",
}


def _bring(issuer: Issuer, mood: str) -> None:
    issuer.end()
    if mood != "down":
        issuer.mood = mood  # type: ignore[assignment]
        issuer.begin()


def _goes_on_without(scene: Scene, stranger: str) -> float:
    """Until a read of the keys has failed, all are answered as ever; the longest that took, in seconds."""
    failed = scene.rig.metric("ingest", _READS, 'result="failed"')
    slowest_s = 0.0
    with httpx.Client(base_url=scene.rig.http, timeout=ANSWER_S, trust_env=False) as door:

        def asked() -> bool:
            nonlocal slowest_s
            begun_s = time.monotonic()
            # Keys are read again because of one that is not known, twice a minute.
            assert _act(door, stranger) == 401
            assert _act(door, scene.rig.token(direct_user())) == 202
            slowest_s = max(slowest_s, time.monotonic() - begun_s)
            return scene.rig.metric("ingest", _READS, 'result="failed"') > failed

        before = scene.writers.counts.confirmed
        took_s = until(asked, within_s=60, what="a read of the keys that fails", every_s=0.5)
        scene.rig.event("effect", text="a read of the keys failed", took_s=round(took_s, 3))
        scene.effect("actions go on", lambda: scene.writers.counts.confirmed > before)
    return slowest_s


def _begins_without(scene: Scene, issuer: Issuer, mood: str) -> None:
    """A process that has never seen a key says that it is not ready, and blames no token."""
    rig, ingest = scene.rig, scene.rig["ingest"]
    _bring(issuer, mood)
    if ingest.alive:
        scene.strike(f"ingest started anew while {_MOODS[mood]}", ingest.stop, target="ingest", gate=False)
    else:
        scene.note_strike(f"ingest started anew while {_MOODS[mood]}", "ingest")
    ingest.start(wait=False)
    with httpx.Client(base_url=rig.http, timeout=ANSWER_S, trust_env=False) as door:
        scene.effect("it answers 503", lambda: _act(door, rig.token(direct_user())) == 503)
        scene.effect("also later", lambda: _act(door, rig.token(direct_user())) == 503)
    assert not ingest.program.is_ready(), "it says that it is ready, without keys"
    before = scene.writers.counts.confirmed
    _bring(issuer, "right")
    ingest.wait_ready()
    scene.effect("actions are taken", lambda: scene.writers.counts.confirmed > before)
    scene.healed()


_READS = "trueboard_key_fetches_total"


def _act(door: httpx.Client, token: str) -> int:
    """The status of one action with this token."""
    action = {"action_id": secrets.token_hex(8), "type": "commit"}
    headers = {"Authorization": f"Bearer {token}"}
    return door.post("/v1/actions", json=action, headers=headers).status_code


def _token_of_a_stranger(rig: Rig) -> str:
    """Signed by a key that the issuer never had."""
    keys.ensure(rig.data / "stranger")
    return keys.issue(
        rig.data / "stranger",
        user=direct_user(),
        scopes=EVERYTHING,
        ttl_s=80_000,
        issuer="trueboard",
        audience="trueboard",
    )


@row("N-10", "readers of the feed vanish without a word", "I-20")
def half_open_readers(scene: Scene) -> None:
    rig, push = scene.rig, scene.rig["push"]
    rig.tell("push", ping_interval_s="2")
    push.stop()
    push.start()
    before = open_files(push.pid)
    sockets = half_open_sockets(rig.feed, "/ws/scores", 50)
    try:
        scene.effect("they are open", lambda: open_files(push.pid) >= before + 50)
        scene.strike("50 sockets that never answer a ping", lambda: None, target="push")
        scene.effect("their files are given back", lambda: open_files(push.pid) <= before + 8)
        scene.healed()
    finally:
        close_all(sockets)
