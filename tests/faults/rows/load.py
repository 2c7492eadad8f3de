"""L: unreadable records, hot users, many at once."""

from __future__ import annotations

import json
import resource
import socket
import time

from core.topics import DEAD, SUBMITTED
from tests.acceptance.topics import read
from tests.faults.engine import Scene, row
from tests.faults.tools import close_all, direct_user, half_open_sockets, open_files, produce, record

_GOOD = json.loads(record("direct-x", "y"))


def _changed(**fields: object) -> bytes:
    return json.dumps({**_GOOD, **fields}).encode()


UNREADABLE: dict[str, bytes | None] = {
    "no JSON": b"{",
    "null": None,
    "empty": b"",
    "1 MiB": b"x" * (1 << 20),
    "invalid UTF-8": b'{"user_id": "\xff"}',
    "a field missing": json.dumps({k: v for k, v in _GOOD.items() if k != "type"}).encode(),
    "NUL in a name": _changed(username="a\x00b"),
    "a number beyond 64 bits": _changed(points=2**70),
    "a number as text": _changed(points="7"),
    "no instant": _changed(received_at="yesterday"),
    "cut off": record("direct-x", "y")[:-20],
    "nested 5,000 deep": b"[" * 5000 + b"]" * 5000,
    "a list": b"[]",
}


@row("L-1", "unreadable records come in between", "I-10 I-21", fast=True)
def poison(scene: Scene) -> None:
    user = direct_user()
    before = scene.dead_letters()
    records = []
    for number, value in enumerate(UNREADABLE.values()):
        records += [(user.encode(), value), (user.encode(), record(user, f"after-{number}"))]
    scene.strike(f"{len(UNREADABLE)} kinds of unreadable records", lambda: produce(scene.rig, records))
    scene.healed()
    begun_s = time.monotonic()
    scene.effect(
        "each has one dead letter", lambda: scene.dead_letters() == before + len(UNREADABLE), within_s=15
    )
    scene.effect(
        "what stood between them counts",
        lambda: (
            scene.rig.one(
                "SELECT count(*) FROM ledger JOIN players USING (player) WHERE user_id = %s", (user,)
            )
            == len(UNREADABLE)
        ),
    )
    scene.observe(stalled_s=round(time.monotonic() - begun_s, 1))
    letters = read(scene.rig.kafka, DEAD.name)
    assert len({letter.key for letter in letters}) == len(letters), "a record has two dead letters"
    for letter in letters:
        assert letter.header("reason"), letter
        assert letter.header("origin_topic") == SUBMITTED.name
        place = f"{SUBMITTED.name}-{letter.header('origin_partition')}-{letter.header('origin_offset')}"
        assert letter.key == place.encode(), (letter.key, place)


@row("L-2", "nothing but unreadable records", "I-10", stack="own", comes_to_rest=False)
def poison_only(scene: Scene) -> None:
    rig = scene.rig
    many = 10_000
    scene.strike(
        f"{many} unreadable records in a row on one partition",
        lambda: produce(rig, ((b"x", b"{") for _ in range(many)), partition=3),
    )
    scene.effect(
        "the partition is stopped, with an alarm",
        lambda: rig.metric("stream", "trueboard_partition_stopped", 'partition="3"') == 1,
        within_s=60,
    )
    letters = scene.dead_letters()
    assert letters < many, f"{letters} dead letters"
    scene.observe(dead_letters=letters)
    scene.healed()
    scene.progress(100)
    assert rig.metric("stream", "trueboard_partition_stopped") == 1


@row("L-3", "one user acts 2,000 times a second", "I-21")
def hot_user(scene: Scene) -> None:
    hot = scene.writers.new_user()

    def burst() -> None:
        for _ in range(scene.times(10, 50)):
            scene.writers.send_batch(hot, "commit", 200)

    scene.writers.forget_slow()
    scene.strike("batches of 200 actions of one user", burst)
    scene.healed()
    scene.observe(slowest_confirmation_s=round(scene.writers.counts.slowest_confirmation_s, 1))
    scene.nobody_was_left_hanging()


@row("L-4", "the same action from 50 clients at once", "I-3", fast=True, wants={"duplicates"})
def same_at_once(scene: Scene) -> None:
    for _ in range(scene.times(5, 20)):
        statuses = scene.strike("one action, 50 requests at once", lambda: scene.writers.send_at_once(50))
        assert set(statuses) <= {200, 202}, statuses
    scene.healed()


@row("L-5", "a score would leave 64 bits", "I-4", fast=True)
def overflow(scene: Scene) -> None:
    user = scene.writers.new_user()
    highest = 2**63 - 1

    def score() -> list[str | None]:
        return [scene.writers.send_one(user, "vast", points) for points in (highest - 1, 1, 5, 1)]

    verdicts = scene.strike("2^63 - 2 points, then 1, 5 and 1", score)
    scene.healed()
    assert verdicts == ["accepted", "accepted", "rejected", "rejected"], verdicts


@row("L-6", "200 sockets that never read beside those that do", "I-20 I-21")
def slow_readers(scene: Scene) -> None:
    rig, push = scene.rig, scene.rig["push"]
    before, memory = open_files(push.pid), push.memory_kib()
    sockets = half_open_sockets(rig.feed, "/ws/scores", 200)
    try:
        scene.strike("200 sockets that do not read", lambda: None, target="push")
        scene.effect("they are open", lambda: open_files(push.pid) >= before + 200)
        late = []
        for _ in range(4):
            scene.progress()
            late.append(scene.world.feed_delay_s(within_s=20))
        grown = push.memory_kib() - memory
        scene.observe(feed_late_s=round(max(late), 1), grown_kib=grown)
        assert grown < 64 * 1024
        scene.healed()
    finally:
        close_all(sockets)


@row("L-7", "push is killed and 300 sockets come back at once", "I-22")
def reconnect_storm(scene: Scene) -> None:
    rig, push = scene.rig, scene.rig["push"]
    scene.strike("SIGKILL push", push.kill, target="push")
    push.start()
    before = open_files(push.pid)
    sockets = half_open_sockets(rig.feed, "/ws/scores", 300, receive_bytes=65536)
    try:
        scene.effect("all are open", lambda: open_files(push.pid) >= before + 300)
        scene.healed()
    finally:
        close_all(sockets)


@row("L-8", "no more files may be opened", "I-22", wants={"unanswered"})
def no_files(scene: Scene) -> None:
    pid = scene.rig["ingest"].pid
    usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    sockets: list[socket.socket] = []

    def tighten() -> None:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_files(pid) + 2, usual[1]))

    def loosen() -> None:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)
        close_all(sockets)

    with scene.broken("ingest may open 2 more files, 60 connections come", tighten, loosen, "ingest"):
        sockets += half_open_sockets(scene.rig.http, "/v1/boards/main/standings", 60)
        time.sleep(6)
