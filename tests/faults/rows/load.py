"""L: unreadable records, hot users, many at once, and what memory and logs there are."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from core.topics import DEAD, SUBMITTED
from tests.acceptance.topics import read
from tests.faults.engine import PROGRESS, Scene, row
from tests.faults.mounts import CANNOT_MOUNT, Ballast, leave_no_room, small_disk
from tests.faults.processes import until
from tests.faults.rig import STARTED
from tests.faults.tools import close_all, direct_user, half_open_sockets, open_files, produce, record
from tests.faults.writers import MOST_OPEN

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
    earlier = {letter.key for letter in read(scene.rig.kafka, DEAD.name)}
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
    # A worker that ended before it moved past an earlier one has sent that one's again, as it must.
    letters = [letter for letter in read(scene.rig.kafka, DEAD.name) if letter.key not in earlier]
    assert len({letter.key for letter in letters}) == len(letters), "a record has two dead letters"
    assert len(letters) == len(UNREADABLE), letters
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
        # More than the connections that writers have open already, so that some must wait to be let in.
        assert 0 in scene.writers.send_at_once(MOST_OPEN + 50), "everybody was let in"


@row("L-9", "the stream has little memory and a great backlog", "I-20 I-22", stack="own", takes_s=1800)
def little_memory(scene: Scene) -> None:
    """What it may take is bounded by the kernel, at what it took before and some more."""
    rig, stream = scene.rig, scene.rig["stream"]
    many = scene.times(20_000, 200_000)
    scene.progress(10 * PROGRESS)
    bound_kib = stream.memory_kib(data=True) + _MORE_MIB * 1024
    scene.strike("SIGKILL stream", stream.kill, target="stream")
    users = [direct_user() for _ in range(5_000)]
    produce(
        rig,
        (
            ((user := users[number % len(users)]).encode(), record(user, f"backlog-{number}"))
            for number in range(many)
        ),
    )
    stream.start(wait=False)
    resource.prlimit(stream.pid, resource.RLIMIT_DATA, (bound_kib * 1024, bound_kib * 1024))
    scene.note_strike(f"started with {many} records to judge, and {_MORE_MIB} MiB more than it had", "stream")
    pid, begun_s = stream.pid, time.monotonic()
    stream.wait_ready(600)
    lag = scene.world.lag()
    scene.observe(backlog=lag)
    until(scene.world.lag_is_short, within_s=2400, what="the backlog judged", every_s=0.5)
    took_s = time.monotonic() - begun_s
    assert (stream.alive, stream.pid) == (True, pid)
    used_mib = stream.memory_kib(data=True) // 1024
    scene.observe(told=f"{many} judged in {took_s:.0f} s with {used_mib} of {bound_kib // 1024} MiB")
    scene.healed()


_MORE_MIB = 96
"""What a backlog may take: batches and what was fetched of all partitions."""


@row("L-10", "the disk for logs is full, nobody reads the logs, their reader is gone", "I-22", stack="own")
def logs_go_nowhere(scene: Scene) -> None:
    """The services go on serving, and say afterwards how many lines were lost."""
    if not CANNOT_MOUNT:
        _full_disk_of_logs(scene)
    for told, leaves in (("nobody reads the logs", False), ("the reader of the logs is gone", True)):
        _nobody_reads(scene, told, leaves=leaves)


def _full_disk_of_logs(scene: Scene) -> None:
    rig = scene.rig
    with _down(scene), small_disk(rig.data / "logs", mib=64):
        rig.start(*STARTED)
        scene.world.as_before(60)
        pids = {name: rig[name].pid for name in STARTED}
        ballast = Ballast(rig.data / "logs" / "ballast")

        def fill() -> None:
            ballast.fill()
            for name in STARTED:
                leave_no_room(rig[name].log)

        scene.strike("the disk for logs is filled up", fill, target="logs")
        _lose_lines(scene)
        _goes_on(scene)
        ballast.empty()
        scene.healed()
        scene.effect(
            "they say what was lost",
            _provoking(scene, lambda: all('"log_lines_lost"' in rig[name].since_start() for name in STARTED)),
        )
        assert pids == {name: rig[name].pid for name in STARTED if rig[name].alive}
        for name in STARTED:
            rig[name].stop()
    rig.start(*STARTED)
    scene.world.as_before(60)


def _nobody_reads(scene: Scene, told: str, *, leaves: bool) -> None:
    """Each service's log is a pipe with little room, whose reader does nothing, or goes."""
    rig = scene.rig
    readers: list[int] = []
    with _down(scene):
        logs = {name: rig[name].log for name in STARTED}
        for log in logs.values():
            log.rename(log.with_suffix(".kept"))
            os.mkfifo(log)
            readers.append(os.open(log, os.O_RDONLY | os.O_NONBLOCK))
            fcntl.fcntl(readers[-1], fcntl.F_SETPIPE_SZ, 4096)
        try:
            for name in STARTED:
                rig[name].start(wait=False)
            for name in STARTED:
                # Not by wait_ready: it would read the log.
                until(rig[name].program.is_ready, within_s=90, what=f"{name} at work")
            if leaves:
                for reader in readers:
                    os.close(reader)
                readers.clear()
            scene.note_strike(told, "logs")
            _lose_lines(scene)
            _goes_on(scene)
            for name in STARTED:
                rig[name].stop()
        finally:
            for reader in readers:
                os.close(reader)
            for log in logs.values():
                log.unlink()
                log.with_suffix(".kept").rename(log)
    rig.start(*STARTED)
    scene.healed()
    scene.world.as_before(60)


@contextmanager
def _down(scene: Scene) -> Iterator[None]:
    """While the block begins, no service runs."""
    scene.progress()
    for name in STARTED:
        scene.rig[name].stop()
    yield


def _goes_on(scene: Scene) -> None:
    judged = scene.world.judged()
    scene.effect("200 more verdicts", lambda: scene.world.judged() >= judged + 200, within_s=90)


_BETWEEN_RESETS_S = 3.0


def _lose_lines(scene: Scene) -> None:
    """Wait until every service has lost some of its lines."""
    rig = scene.rig
    scene.effect(
        "every service loses lines",
        _provoking(
            scene, lambda: all(rig.metric(name, "trueboard_log_lines_lost_total") > 0 for name in STARTED)
        ),
    )


def _provoking(scene: Scene, seen: Callable[[], bool]) -> Callable[[], bool]:
    """Ask for something, and make every service say something meanwhile: one that is well is silent."""
    links, last_s = scene.rig.links, 0.0

    def ask() -> bool:
        nonlocal last_s
        if time.monotonic() - last_s > _BETWEEN_RESETS_S:
            last_s = time.monotonic()
            links.reset(*links.named("-redis"), *links.named("-postgres"))
            links.reset(*(link for name in STARTED for link in scene.rig.kafka_links(name)))
            # A line for each that closes.
            close_all(half_open_sockets(scene.rig.feed, "/ws/scores", 40, receive_bytes=65536))
        return seen()

    return ask


_GROWS_MIB = 64
"""What any service may grow by while something is away; L-6 allows as much."""


@row("L-12", "Postgres is away for a long time", "I-20 I-22", stack="own", takes_s=1800)
def postgres_away_for_long(scene: Scene) -> None:
    _away_for_long(scene, "postgres", "Postgres")


@row("L-13", "Redis is away for a long time", "I-20 I-22", stack="own", takes_s=1800)
def redis_away_for_long(scene: Scene) -> None:
    _away_for_long(scene, "valkey", "Redis")


@row("L-14", "Kafka is away for a long time", "I-20 I-22", stack="own", takes_s=1800)
def kafka_away_for_long(scene: Scene) -> None:
    _away_for_long(scene, "kafka-1", "Kafka")


def _away_for_long(scene: Scene, target: str, server: str) -> None:
    """Resident memory from before the strike to its highest until all is as before, backlog included."""
    rig, process, away_s = scene.rig, scene.rig[target], scene.times(60, 600)
    scene.progress(4 * PROGRESS)
    before = {name: rig[name].memory_kib() for name in STARTED}
    pids = {name: rig[name].pid for name in STARTED}
    for name in STARTED:
        rig[name].forget_most_memory()

    def grown() -> dict[str, float]:
        return {name: (rig[name].most_memory_kib() - before[name]) / 1024 for name in STARTED}

    with scene.broken(f"{server} away for {away_s} s", process.kill, process.start, target):
        until_s = time.monotonic() + away_s
        if server == "Kafka":
            scene.refusals(20)
        else:
            scene.confirmations(20)
        while time.monotonic() < until_s:
            time.sleep(1)
            gone = [name for name in STARTED if not rig[name].alive]
            assert not gone, f"{gone} ended while {server} was away"
        meanwhile = grown()
        scene.observe(told=_as_text("grown while it was away", meanwhile))
    scene.world.as_before(60)
    afterwards = grown()
    scene.observe(told=f"{_as_text('grown while it was away', meanwhile)}; {_as_text('in all', afterwards)}")
    assert pids == {name: rig[name].pid for name in STARTED}
    assert max(afterwards.values()) <= _GROWS_MIB, afterwards


def _as_text(what: str, mib: dict[str, float]) -> str:
    return f"{what}: " + ", ".join(f"{name} {grown:+.0f} MiB" for name, grown in mib.items())
