"""Rows for clauses that no row of the matrix needs: each is one coincidence, made certain.

The product as it is has to hold on all of them (`test_mutants.py`); they stand here and not in the matrix,
because they say nothing about a fault of a kind of its own.
"""

from __future__ import annotations

import time
from itertools import count
from typing import Final

from core.topics import SUBMITTED
from storage.redis.boards import PAGE
from storage.redis.keys import board, building
from tests.faults.engine import Row, Scene, row
from tests.faults.histories import MAIN
from tests.faults.rig import ERASURE_SECRET, MORE_TYPES, SESSION_TIMEOUT_S
from tests.faults.tools import ALL_PARTITIONS, direct_user, move_group, produce, record

ROWS: Final[dict[str, Row]] = {}

Z, M, META = board(MAIN)


@row("M-1", "the group's offsets are set to the end while records wait", "I-1 I-9", into=ROWS)
def offsets_at_the_end(scene: Scene) -> None:
    stream = scene.rig["stream"]
    scene.strike("SIGKILL of the worker", stream.kill, target="stream")
    scene.confirmations(150)
    ends = scene.world.ends()
    at_the_end = {p: ends[SUBMITTED.name, p] for p in ALL_PARTITIONS}
    scene.strike(
        "the group's offsets set to the log's end", lambda: move_group(scene.rig, at_the_end), gate=False
    )
    stream.start()
    scene.healed()


@row("M-2", "ingest is cut off from Kafka, and killed before it is whole again", "I-1 I-12", into=ROWS)
def cut_and_killed(scene: Scene) -> None:
    ingest, links = scene.rig["ingest"], scene.rig.kafka_links("ingest")
    scene.strike("cut", lambda: scene.links.cut(*links), target="ingest")
    time.sleep(3)
    scene.strike("SIGKILL ingest", ingest.kill, target="ingest", gate=False)
    scene.links.heal(*links)
    ingest.start()
    scene.healed()


_LATE_S: Final = 30

_UNCOMPARED: Final = {"reconcile_interval_s": "3600"}
"""Or the comparison with the ledger may have made good what went wrong before anybody saw it."""


@row("M-3", "a keeper of the boards goes on after another has taken its place", "I-5 I-8", into=ROWS)
def late_keeper(scene: Scene) -> None:
    """Its lock is lost with the connection that held it, while it stands still before it writes.

    Somebody earns something in every revision, before and after it, but not once it goes on.
    """
    rig = scene.rig
    for worker in ("stream", "stream2"):
        rig.tell(worker, **_UNCOMPARED)
    stream = scene.worker_meeting(f"boards.applying=pause:{_LATE_S}s@100,boards.applied=pause:3s@100")
    user, earned = direct_user(), count()

    def earn() -> None:
        produce(rig, [(user.encode(), record(user, f"a-{next(earned)}", "vast", 100))])

    def stands_still() -> bool:
        earn()
        return "boards.applying pause" in stream.since_start()

    rig["stream2"].start(wait=False)
    scene.effect("it stands still", stands_still)
    goes_on_s = time.monotonic() + _LATE_S
    rig["stream2"].wait_ready()
    stood_at = scene.world.copied()
    rig.do(
        "SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
        " WHERE l.locktype = 'advisory' AND l.granted AND a.application_name LIKE '%boards%'"
    )
    scene.note_strike("the connection with its lock ended", "stream")
    scene.effect("the other keeps the copy", lambda: scene.world.copied() > stood_at)
    for _ in range(20):
        earn()
        time.sleep(0.05)
    scene.effect("all of it is in the copy", lambda: scene.world.copied() >= scene.world.position())
    assert time.monotonic() < goes_on_s - 1, "it went on too soon"
    stood_at = scene.world.copied()
    time.sleep(goes_on_s - 1 - time.monotonic())
    # Neither of them makes good what it did, for a moment.
    with scene.broken("SIGSTOP of the other", rig["stream2"].pause, rig["stream2"].go_on, "stream2"):
        time.sleep(goes_on_s + 1 - time.monotonic())
        stands_at = scene.world.copied()
        # One that has lost its place is shown to nobody, and built anew.
        assert stands_at >= stood_at or stands_at[1] < 0, "the copy went back"
    scene.progress()
    scene.healed()
    rig["stream2"].stop()


@row("M-4", "a copy names another digest at its revision", "I-5", into=ROWS, stack="own", comes_to_rest=False)
def another_digest(scene: Scene) -> None:
    """As a copy of another history would, at rest: no later revision comes to put it right."""
    scene.progress()
    scene.world.rest()

    def right() -> bytes:
        # Of the board's own last change: an epoch that begins is followed by what tells names again.
        return str(
            scene.rig.one(
                "SELECT encode(digest, 'hex') FROM deltas JOIN revisions USING (revision)"
                f" WHERE period = '{MAIN}' ORDER BY revision DESC LIMIT 1"
            )
        ).encode()

    with scene.rig.redis_client() as client:
        scene.strike("another digest", lambda: client.hset(META, "digest", "0" * 64), gate=False)
        assert right() != b"0" * 64
        scene.effect(
            "the copy is of the ledger's history again",
            lambda: client.hget(META, "digest") == right(),
            within_s=60,
        )


@row("M-5", "a build loses what it has built", "I-6 I-17", into=ROWS)
def build_lost(scene: Scene) -> None:
    """One of two pages; the first, in which everybody stands who has played so far."""
    rig = scene.rig
    rig.tell("stream", **_UNCOMPARED)
    stream = scene.worker_meeting("boards.page_filled=pause:4s@1")
    users = [direct_user() for _ in range(PAGE)]
    scene.progress()
    produce(rig, [(user.encode(), record(user, "one")) for user in users])
    scene.effect("all have entries", lambda: rig.one("SELECT count(*) FROM entries") > PAGE)
    with rig.redis_client() as client:
        scene.strike("DEL of the copy's meta", lambda: client.delete(META))
        scene.effect("a build stands still", lambda: "boards.page_filled pause" in stream.since_start())
        built = list(client.scan_iter(match=building(MAIN, "*")[0][:-1] + "*"))
        scene.strike("DEL of what it has built", lambda: client.delete(*built), gate=False)
        scene.effect(
            "the copy is whole again",
            lambda: client.zcard(Z) == client.hlen(M) == int(client.hget(META, "count") or -1),
        )
    scene.healed()


@row("M-7", "two people use the same action id", "I-3 I-9", into=ROWS)
def same_action_id(scene: Scene) -> None:
    for _ in range(4):
        for user in (direct_user(), direct_user()):
            records = [(user.encode(), record(user, "the-same"))]
            scene.strike("an action under an id that others used", lambda r=records: produce(scene.rig, r))  # type: ignore[misc]
            scene.effect("it is read", scene.world.lag_is_short)
    scene.healed()


_APPLY: Final = """
import importlib.resources, sys
from storage.postgres import definitions
text = (importlib.resources.files("core") / "catalogue.toml").read_bytes() + sys.argv[3].encode()
text = text.replace(b'\\nversion = "', b'\\nversion = "' + sys.argv[2].encode(), 1)
text = text.replace(b"[types.commit]\\npoints = 1", b"[types.commit]\\npoints = 2", 1)
definitions.apply(sys.argv[1], text)
"""


@row("M-8", "a catalogue comes into force while a batch is under way", "I-3 I-15", into=ROWS)
def catalogue_changed(scene: Scene) -> None:
    rig, stream = scene.rig, scene.worker_meeting("ledger.judged=pause:3s@20")
    scene.effect("a batch is judged, and not written", lambda: "ledger.judged pause" in stream.since_start())
    scene.strike(
        "a catalogue put in force",
        lambda: rig.operate(_APPLY, rig.postgres, "later-", MORE_TYPES.decode()),
        gate=False,
    )
    scene.healed()
    scene.progress(100)
    after = (
        "SELECT count(*) FROM ledger l JOIN revisions r USING (batch)"
        " WHERE r.revision > (SELECT max(revision) FROM catalogues) AND l.catalogue_version {} 'later-%'"
    )
    earlier = rig.one(after.format("NOT LIKE"))
    assert earlier == 0, f"{earlier} actions were judged by a catalogue that was not in force any more"
    assert rig.one(after.format("LIKE")) > 0


_ERASE: Final = """
import sys
from storage.postgres.epochs import erase
from storage.postgres.ledger import Ledger
ledger = Ledger(sys.argv[1], name="erase")
assert erase(ledger, sys.argv[2].encode(), sys.argv[3:]) == 2
ledger.close()
"""


@row("M-9", "people are erased", "I-18", into=ROWS)
def erased(scene: Scene) -> None:
    rig = scene.rig
    scene.progress(100)
    users = [direct_user(), direct_user()]
    produce(rig, [(user.encode(), record(user, "a", "vast", 10_000)) for user in users])
    find = "SELECT pid::text FROM players WHERE user_id = ANY(%s)"
    scene.effect("they have entries", lambda: len(rig.ask(find, (users,))) == 2)
    scene.effect("and are shown", lambda: scene.world.copied() >= scene.world.position())
    pids = [pid for (pid,) in rig.ask(find, (users,))]
    scene.strike("two people erased", lambda: rig.operate(_ERASE, rig.postgres, ERASURE_SECRET, *pids))
    scene.healed()


@row("M-10", "a user is judged by two workers in turn", "I-15 I-23", into=ROWS)
def two_workers_in_turn(scene: Scene) -> None:
    """5,000 points an hour are let through; each of the two sees less of them than there are."""
    rig, user = scene.rig, direct_user()
    stream, other = rig["stream"], rig["stream2"]
    judged = (
        "SELECT l.verdict FROM ledger l JOIN players p USING (player)"
        " WHERE p.user_id = %s ORDER BY l.received_at"
    )

    def earn(times: int) -> None:
        for _ in range(times):
            many = len(rig.ask(judged, (user,)))
            produce(rig, [(user.encode(), record(user, f"a-{many}", "client_points", 1000))])
            scene.effect("it is judged", lambda many=many: len(rig.ask(judged, (user,))) > many)  # type: ignore[misc]

    earn(3)
    rig.start("stream2")
    scene.strike("SIGSTOP stream", stream.pause, target="stream")
    time.sleep(SESSION_TIMEOUT_S + 1)
    scene.effect("the other judges everything", scene.world.lag_is_short)
    earn(2)
    stream.go_on()
    scene.strike("the first goes on, SIGKILL of the other", other.kill, target="stream2")
    scene.effect("the first judges everything", scene.world.lag_is_short)
    earn(2)
    scene.healed()
    scene.progress()
    verdicts = [verdict for (verdict,) in rig.ask(judged, (user,))]
    assert verdicts == ["accepted"] * 5 + ["held"] * 2, f"the verdicts are {verdicts}"
