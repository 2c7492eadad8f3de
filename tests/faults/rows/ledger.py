"""PG: Postgres is stopped, cut off, full, restored from an older backup, and written to by operators."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import psycopg

from storage.redis.keys import board
from tests.faults.engine import Scene, row
from tests.faults.histories import MAIN
from tests.faults.mounts import CANNOT_MOUNT, Ballast, small_disk
from tests.faults.operators import decide, erase
from tests.faults.tools import copy_tree, direct_user, produce, record


@row("PG-1", "Postgres ends at once and recovers from its log", "I-4 I-22", fast=True)
def immediate_stop(scene: Scene) -> None:
    scene.kill("postgres", scene.times(2, 5))


@row("PG-2", "connections end in the middle of transactions and of commits", "I-3 I-4")
def connections_cut(scene: Scene) -> None:
    rig = scene.rig
    query = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        " AND pid <> pg_backend_pid() AND datname = current_database()"
    )
    for _ in range(scene.times(6, 30)):
        scene.strike("pg_terminate_backend of every connection", lambda: rig.do(query), target="postgres")
        time.sleep(scene.world.dice.random() * 0.2)
        reset = scene.strike(
            "the stream's connections to Postgres reset",
            lambda: rig.links.reset("stream-postgres"),
            target="stream",
        )
        assert reset, "there was nothing to reset"
    scene.healed()


@row("PG-3", "the disk of Postgres is full", "I-1 I-9", stack="own", cannot=CANNOT_MOUNT)
def disk_full(scene: Scene) -> None:
    """The whole of Postgres lies on a small disk that is filled: writing its log, the server panics."""
    postgres = scene.rig["postgres"]
    postgres.stop()
    with small_disk(scene.rig.data / "postgres", mib=700):
        postgres.start()
        scene.world.as_before(40)
        ballast = Ballast(scene.rig.data / "postgres" / "ballast")
        scene.strike("the disk is filled up", ballast.fill, target="postgres")
        scene.effect("Postgres writes no more", lambda: not _can_write(scene))
        scene.confirmations(50)
        ballast.empty()
        if not postgres.alive:
            scene.observe(postgres_ended_with=postgres.exit_code)
            postgres.start()
        scene.healed()
        scene.world.as_before(60)
        scene.world.rest()
        # Off the small disk before it goes.
        postgres.stop()
        copy_tree(scene.rig.data / "postgres", scene.rig.data / "postgres.moved")
    copy_tree(scene.rig.data / "postgres.moved", scene.rig.data / "postgres")
    postgres.start()
    scene.resume()


@row("PG-4", "the tablespace of the ledger is full", "I-10", cannot=CANNOT_MOUNT)
def tablespace_full(scene: Scene) -> None:
    rig = scene.rig
    with small_disk(rig.data / "tablespace", mib=64, owner_of=rig.data / "postgres" / "data") as where:
        rig.do(f"CREATE TABLESPACE small LOCATION '{where}'")
        try:
            rig.do("ALTER TABLE ledger SET TABLESPACE small")
            rig.do("ALTER INDEX ledger_pkey SET TABLESPACE small")
            ballast = Ballast(where / "ballast")
            dead = scene.dead_letters()
            scene.strike("it is filled up", ballast.fill, target="postgres")
            scene.effect(
                "Postgres answers 53100",
                lambda: (
                    "53100" in rig["stream"].since_start() or "No space left" in rig["stream"].since_start()
                ),
                within_s=40,
            )
            scene.confirmations(50)
            ballast.empty()
            scene.healed()
            scene.world.as_before(60)
            assert scene.dead_letters() == dead, "records were set aside"
        finally:
            rig.do("ALTER TABLE ledger SET TABLESPACE pg_default")
            rig.do("ALTER INDEX ledger_pkey SET TABLESPACE pg_default")
            rig.do("DROP TABLESPACE small")


def _can_write(scene: Scene) -> bool:
    try:
        scene.rig.do("CREATE TABLE probe AS SELECT repeat('x', 3000) FROM generate_series(1, 1000)")
        scene.rig.do("DROP TABLE probe")
    except psycopg.Error:
        return False
    return True


@row("PG-5", "somebody holds the rows of the positions", "I-4")
def rows_locked(scene: Scene) -> None:
    with psycopg.connect(scene.rig.postgres) as holder:

        def hold() -> None:
            holder.execute("SELECT * FROM progress FOR UPDATE")

        for _ in range(scene.times(2, 4)):
            with scene.broken("progress locked for 7 s", hold, holder.rollback, "postgres"):
                judged = scene.world.judged()
                scene.confirmations(50)
                time.sleep(7)
                assert scene.world.judged() - judged < 50


_SERVICES = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE backend_type = 'client backend' AND application_name LIKE 'trueboard%'"
)


@row("PG-6", "Postgres takes no more connections", "I-22")
def no_connections(scene: Scene) -> None:
    rig, held = scene.rig, list[psycopg.Connection]()

    def fill() -> bool:
        try:
            while len(held) < 300:
                held.append(psycopg.connect(rig.postgres, connect_timeout=3, autocommit=True))
        except psycopg.OperationalError as error:
            return "too many clients" in str(error) or "remaining connection slots" in str(error)
        return False

    def close_the_door(for_s: float = 0.0) -> None:
        # Whoever is quicker has a slot that becomes free: again and again all are taken.
        until_s, kept = time.monotonic() + for_s, 1
        for _ in range(200):
            fill()
            kept = held[0].execute(_SERVICES).fetchone()[0]
            if kept:
                rig.links.reset(*rig.links.named("-postgres"))
            elif time.monotonic() >= until_s:
                return
            else:
                time.sleep(0.05)
        assert not kept, f"the services kept {kept} connections"

    def open_it() -> None:
        for one in held:
            one.close()

    with scene.broken(
        "every slot taken, every connection reset, for 6 s", close_the_door, open_it, "postgres"
    ):
        scene.effect("it refuses connections", fill)
        begun_s = scene.rig.now_s()
        close_the_door(6)
    scene.observe(judged_meanwhile=scene.judged_between(begun_s + 0.5, begun_s + 6))
    assert scene.result.observed["judged_meanwhile"] < 100, "the stream had its connection all the time"


@row("PG-7", "the way to Postgres is very slow", "I-21")
def slow(scene: Scene) -> None:
    with scene.broken(
        "40 KiB/s between stream and Postgres for 8 s",
        lambda: scene.links.set("stream-postgres", bandwidth_kib_s=40),
        lambda: scene.links.heal("stream-postgres"),
        "stream",
    ):
        scene.confirmations(100)
        time.sleep(8)


@row("PG-8", "the schema is changed under load", "I-22")
def migrated(scene: Scene) -> None:
    rig = scene.rig
    steps = (
        "CREATE INDEX CONCURRENTLY added ON ledger (received_at)",
        "ALTER TABLE ledger ADD COLUMN added integer",
        "DROP INDEX CONCURRENTLY added",
        "ALTER TABLE ledger DROP COLUMN added",
    )
    for step in steps:
        scene.strike(step, lambda step=step: rig.do(step), target="postgres")  # type: ignore[misc]
    scene.healed()


@row("PG-9", "an older backup is restored that leaves no trace", "I-1 I-15", stack="own", recover_within_s=90)
def older_backup(scene: Scene) -> None:
    _restored(scene, to_a_new_timeline=False)


@row("PG-10", "Postgres would lose commits in a crash: synchronous_commit=off", "I-1")
def commits_forgotten(scene: Scene) -> None:
    """Set for the role or for the database: nobody commits like that, and who starts says why not."""
    rig = scene.rig
    role, database = "ALTER ROLE CURRENT_USER", f"ALTER DATABASE {rig.one('SELECT current_database()')}"
    for told, careless, careful in (
        ("of the role", f"{role} SET synchronous_commit = off", f"{role} RESET synchronous_commit"),
        (
            "of the database",
            f"{database} SET synchronous_commit = off",
            f"{database} RESET synchronous_commit",
        ),
    ):
        try:
            _careless(scene, told, careless)
        finally:
            rig.do(careful)
            rig.do("SELECT pg_reload_conf()")
        if not rig["stream"].alive:
            rig["stream"].start()
        scene.healed()
        scene.world.as_before(60)


def _careless(scene: Scene, told: str, careless: str) -> None:
    rig, stream = scene.rig, scene.rig["stream"]

    def forget() -> None:
        rig.do(careless)
        rig.do("SELECT pg_reload_conf()")

    scene.strike(f"synchronous_commit=off {told}", forget, target="postgres")
    scene.effect("new sessions have it", lambda: rig.one("SHOW synchronous_commit") == "off")
    # Sessions that are open keep to what they were let in with.
    scene.progress()
    refused = stream.since_start().count(_REFUSES)
    scene.strike(
        "every connection ended",
        lambda: rig.do(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ),
        target="postgres",
    )
    scene.effect("the stream refuses new ones", lambda: stream.since_start().count(_REFUSES) > refused + 3)
    judged = scene.world.judged()
    scene.confirmations(100)
    assert scene.world.judged() == judged, "something was committed"
    scene.strike("the worker started anew", stream.stop, target="stream", gate=False)
    stream.start(wait=False)
    scene.effect("it ends", lambda: not stream.alive)
    said = stream.since_start().splitlines()
    assert stream.exit_code == 2, f"it ended with {stream.exit_code}"
    assert len(said) == 1, said
    assert _REFUSES in said[0], said
    scene.observe(told=f"it says: {said[0]}")


_REFUSES = "synchronous_commit off"


@row(
    "PG-11",
    "an older backup is restored while Redis and Kafka are ahead, on a new timeline",
    "I-1 I-8 I-15",
    stack="own",
    recover_within_s=90,
)
def older_backup_on_a_new_timeline(scene: Scene) -> None:
    _restored(scene, to_a_new_timeline=True)


def _restored(scene: Scene, *, to_a_new_timeline: bool) -> None:
    rig, postgres = scene.rig, scene.rig["postgres"]
    data, backup = rig.data / "postgres" / "data", rig.data / "backup"
    scene.progress(100)
    scene.strike("Postgres stopped, its files kept", postgres.stop, target="postgres")
    copy_tree(data, backup)
    postgres.start()
    scene.progress(300)
    scene.world.as_before(40)
    ahead = scene.world.copied()

    def restore() -> None:
        postgres.stop()
        copy_tree(backup, data)
        if to_a_new_timeline:
            (data / "recovery.signal").touch()
            with (data / "postgresql.auto.conf").open("a") as settings:
                settings.write("restore_command = '/bin/false'\n")

    scene.strike("the older files put back", restore, target="postgres")
    postgres.start()
    behind = scene.world.position()
    scene.observe(shown_up_to=ahead[1], restored_at=behind[1])
    assert behind < ahead
    scene.healed()
    scene.effect("a new epoch begins", lambda: scene.rig.one("SELECT count(*) FROM epochs") == 2)


@row("PG-12", "people are erased while the stream and Postgres are killed", "I-18")
def erased_meanwhile(scene: Scene) -> None:
    """Each leads the board, so that every page and frame showed them before."""
    for _ in range(scene.times(1, 4)):
        for target in ("stream", "postgres"):
            _erased_around_a_kill(scene, target)


def _erased_around_a_kill(scene: Scene, target: str) -> None:
    rig, users = scene.rig, (_leader(scene), _leader(scene))
    _around_a_kill(scene, target, *(partial(erase, rig, user) for user in users))
    scene.effect("the copy lost them", lambda: not any(_is_copied(scene, user) for user in users))
    aside = _set_aside(scene)
    produce(rig, [(user.encode(), record(user, "later")) for user in users])
    scene.effect("what comes of them later is set aside", lambda: _set_aside(scene) == aside + len(users))


@row("PG-13", "actions are decided about while the stream and Postgres are killed", "I-4 I-19")
def decided_meanwhile(scene: Scene) -> None:
    for _ in range(scene.times(1, 4)):
        for target in ("stream", "postgres"):
            _decided_around_kills(scene, target)
    scene.observe(decisions=scene.rig.one("SELECT count(*) FROM ledger WHERE kind = 'decision'"))


def _decided_around_kills(scene: Scene, target: str) -> None:
    user = _leader(scene)
    score = _score(scene, user)
    for verdict, then in (("rejected", 0), ("accepted", score)):
        decisions = (partial(decide, scene.rig, user, action, verdict) for action in ("most", "little"))
        _around_a_kill(scene, target, *decisions)
        assert _score(scene, user) == then, (user, verdict)


def _around_a_kill(
    scene: Scene, target: str, before: Callable[[], object], after: Callable[[], object]
) -> None:
    """One thing is done; the target is killed while others follow it; the other is done meanwhile."""
    process = scene.rig[target]
    before()
    scene.strike(f"SIGKILL {target} right after", process.kill, target=target, gate=False)
    if target == "stream":
        after()
        process.start()
    else:
        process.start(wait=False)
        after()
        process.wait_ready()
    scene.healed()
    scene.world.as_before(60)


def _leader(scene: Scene) -> str:
    """Somebody new at the top of the board, of two actions."""
    user = direct_user()
    highest = scene.rig.one("SELECT coalesce(max(score), 0) FROM entries")
    actions = {"most": highest + 1000, "little": 10}
    produce(
        scene.rig,
        [(user.encode(), record(user, action, "vast", points)) for action, points in actions.items()],
    )
    scene.progress()
    scene.effect(
        f"{user} is shown", lambda: _is_copied(scene, user) and _score(scene, user) == highest + 1010
    )
    return user


def _score(scene: Scene, user: str) -> int:
    return int(
        scene.rig.one("SELECT score FROM entries JOIN players USING (player) WHERE user_id = %s", (user,))
    )


def _is_copied(scene: Scene, user: str) -> bool:
    with scene.rig.redis_client() as client:
        return bool(client.hexists(board(MAIN)[1], user))


def _set_aside(scene: Scene) -> int:
    return int(scene.rig.one("SELECT count(*) FROM set_aside WHERE reason = 'erased'"))
