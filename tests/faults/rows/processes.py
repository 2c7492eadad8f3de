"""P: processes are killed."""

from __future__ import annotations

import signal
import time

from tests.faults.engine import Scene, row
from tests.faults.rig import STARTED
from tests.faults.tools import direct_user, produce, record


@row("P-1", "ingest is killed, again and again", "I-1 I-13 I-14", fast=True, wants={"unanswered"})
def ingest_killed(scene: Scene) -> None:
    scene.kill("ingest", scene.times(4, 10))


@row("P-3", "the stream is killed, again and again", "I-1 I-4 I-9", fast=True)
def stream_killed(scene: Scene) -> None:
    scene.kill("stream", scene.times(3, 20))


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
    scene.kill("push", scene.times(2, 5))
    scene.effect("every socket was opened anew", lambda: scene.readers.sockets >= before + 6)


@row("P-12", "everything is killed and started again in another order", "all", recover_within_s=60)
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
