"""N: links are cut, swallow what is sent, are slow, lose one way."""

from __future__ import annotations

import time

from tests.faults.engine import Scene, row
from tests.faults.tools import close_all, half_open_sockets, open_files


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


@row("N-5", "Postgres hears a commit, its answer vanishes", "I-3 I-4", fast=True, wants={"redelivered"})
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
            time.sleep(2)
            assert seen.dropped["down"] > before, "there was no answer to drop"


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
