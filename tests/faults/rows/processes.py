"""P: processes are killed."""

from __future__ import annotations

import signal
import time

from service.failpoints import PLACES
from storage.redis.keys import board
from tests.faults.engine import Scene, row
from tests.faults.histories import MAIN
from tests.faults.rig import STARTED
from tests.faults.tools import direct_user, produce, record

COMMITTED = "ledger.committed"


@row("P-1", "ingest is killed, again and again", "I-1 I-13 I-14", fast=True, wants={"unanswered"})
def ingest_killed(scene: Scene) -> None:
    scene.kill("ingest", scene.times(4, 10))


@row("P-2", "ingest ends between asking Kafka and answering", "I-3 I-13 I-14", wants={"unanswered"})
def ingest_between_steps(scene: Scene) -> None:
    scene.die_at("ingest", ["ingest.publishing", "ingest.published", "ingest.marked"])


@row("P-3", "the stream is killed, again and again", "I-1 I-4 I-9", fast=True)
def stream_killed(scene: Scene) -> None:
    scene.kill("stream", scene.times(2, 20))


@row("P-4", "the stream ends with records in hand, and after a dead letter", "I-4 I-10")
def stream_with_records_in_hand(scene: Scene) -> None:
    poison = {"stream.letters_sent": lambda: produce(scene.rig, [(b"x", b"{")])}
    scene.die_at("stream", ["stream.fetched", "stream.letters_sent"], poison)


@row("P-5", "the stream ends at every step of its transaction", "I-4 I-5 I-15")
def stream_within_its_transaction(scene: Scene) -> None:
    scene.die_at("stream", [place for place in PLACES if place.startswith("ledger.") and place != COMMITTED])


@row("P-6", "the stream ends after its commit, before Redis", "I-5 I-7")
def stream_after_its_commit(scene: Scene) -> None:
    scene.die_at("stream", [COMMITTED, "boards.applying"])


@row("P-7", "the stream ends after Redis, before the topics", "I-7")
def stream_after_redis(scene: Scene) -> None:
    scene.die_at("stream", ["boards.applied", "topics.sending"])


@row("P-8", "the stream ends after the topics, before acknowledging", "I-15 I-24")
def stream_after_the_topics(scene: Scene) -> None:
    scene.die_at("stream", ["topics.sent", "topics.saved", "stream.told"])


@row("P-9", "the stream ends after acknowledging, before the group's offset", "I-15")
def stream_after_acknowledging(scene: Scene) -> None:
    scene.die_at("stream", ["stream.acknowledged"])


@row("P-10", "the stream is killed while it builds the copy, and two build at once", "I-17")
def killed_while_building(scene: Scene) -> None:
    scene.rig.start("stream2")
    with scene.rig.redis_client() as client:
        for name in ("stream", "stream2") * scene.times(2, 5):

            def flush_and_kill(name: str = name) -> None:
                client.flushall()
                scene.rig[name].kill()

            scene.strike("FLUSHALL, then SIGKILL of a worker", flush_and_kill, target=name)
            scene.effect(f"{name} is gone", lambda name=name: not scene.rig[name].alive)  # type: ignore[misc]
            scene.rig[name].start()
    scene.healed()


@row("P-11", "push is killed with its sockets open", "I-7 I-8", fast=True)
def push_killed(scene: Scene) -> None:
    before = scene.readers.sockets
    scene.kill("push", scene.times(1, 5))
    scene.effect("every socket was opened anew", lambda: scene.readers.sockets >= before + 6)


@row("P-15", "a batch meets a defect, once", "I-1 I-9")
def defect(scene: Scene) -> None:
    stream = scene.rig["stream"]
    scene.rig.failpoints["stream"] = "ledger.judged=raise@3"
    scene.strike("SIGTERM of the worker, which then meets a defect", stream.stop, target="stream")
    stream.start(wait=False)
    scene.effect("the defect", lambda: "failpoint ledger.judged raise" in stream.since_start())
    time.sleep(2)
    scene.observe(ended=stream.exit_code is not None)
    del scene.rig.failpoints["stream"]
    if not stream.alive:
        assert stream.exit_code != 0
        stream.start()
    scene.healed()


@row("P-17", "the stream ends at every step of building a copy", "I-17")
def stream_while_building(scene: Scene) -> None:
    def lose_the_copy() -> None:
        with scene.rig.redis_client() as client:
            assert client.delete(board(MAIN)[2]) == 1

    places = ["boards.page_filled", "boards.swapping", "boards.swapped"]
    scene.die_at("stream", places, dict.fromkeys(places, lose_the_copy))


@row("P-18", "push ends in the middle of a broadcast", "I-7 I-8")
def push_in_a_broadcast(scene: Scene) -> None:
    scene.die_at("push", ["push.encoded", "push.written"])


@row("P-12", "everything is killed and started again in another order", "all")
def everything_killed(scene: Scene) -> None:
    rig = scene.rig
    names = ["postgres", "valkey", "kafka-1", *STARTED]

    def kill_all() -> None:
        for name in names:
            rig[name].kill()

    scene.strike("SIGKILL of all six processes", kill_all)
    scene.effect("all are gone", lambda: not any(rig[name].alive for name in names))
    for name in scene.shuffled(names):
        rig[name].start(wait=False)
        time.sleep(0.3)
    for name in names:
        rig[name].wait_ready(60)
    scene.healed()


@row("P-13", "a rolling restart of each service by SIGTERM", "I-11 I-20")
def rolling_restart(scene: Scene) -> None:
    codes = scene.readers.close_codes
    for name in STARTED:
        took_s = scene.strike("SIGTERM", scene.rig[name].stop, target=name)
        assert scene.rig[name].exit_code == 0, f"{name} ended with {scene.rig[name].exit_code}"
        scene.observe(**{f"{name}_stopped_in_s": round(took_s, 1)})
        scene.rig[name].start()
    scene.healed()
    assert codes[1012] >= 6, f"sockets were closed with {dict(codes)}"


@row("P-14", "services are killed while they end in order", "I-1")
def killed_while_ending(scene: Scene) -> None:
    for name in STARTED:
        process = scene.rig[name]

        def end_and_kill(process=process) -> None:  # type: ignore[no-untyped-def]
            process.signal(signal.SIGTERM)
            time.sleep(0.05)
            if process.alive:
                process.kill()

        scene.strike("SIGTERM, SIGKILL 50 ms later", end_and_kill, target=name)
        scene.effect(f"{name} is gone", lambda process=process: not process.alive)  # type: ignore[misc]
        process.start()
    scene.healed()


@row("P-16", "records of a later version of the format come in between", "I-10")
def later_version(scene: Scene) -> None:
    user = direct_user()
    good = record(user, "with-a-later-field")

    def write() -> None:
        extended = good[:-1] + b', "added_later": {"deep": [1, 2]}}'
        produce(scene.rig, [(user.encode(), extended)])

    dead = scene.dead_letters()
    scene.strike("a record with a field nobody knows", write, gate=True)
    scene.healed()
    scene.effect("it has its place: counted, or set aside with a reason", lambda: _placed(scene, user, dead))


def _placed(scene: Scene, user: str, dead: int) -> bool:
    counted = scene.rig.one("SELECT count(*) FROM players WHERE user_id = %s", (user,))
    return bool(counted) or scene.dead_letters() > dead
