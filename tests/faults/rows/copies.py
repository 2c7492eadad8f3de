"""R: Redis is killed, emptied, set back and tampered with."""

from __future__ import annotations

import shutil
import time
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from storage.redis.keys import board
from tests.faults.engine import Scene, row
from tests.faults.histories import MAIN, read_member
from tests.faults.processes import Process
from tests.faults.tools import copy_tree, direct_user, produce, record
from trueboard.devstack.ports import free_port
from trueboard.devstack.valkey import Valkey

Z, M, META = board(MAIN)


@row("R-1", "Redis is killed and comes back from its append-only file", "I-5 I-17", fast=True)
def killed(scene: Scene) -> None:
    scene.kill("valkey", scene.times(2, 5))


@row("R-2", "Redis is killed and comes back empty", "I-6 I-17", fast=True)
def killed_and_empty(scene: Scene) -> None:
    valkey = scene.rig["valkey"]
    for _ in range(scene.times(1, 3)):
        scene.strike("SIGKILL Redis, its directory wiped", valkey.kill, target="valkey")
        shutil.rmtree(scene.rig.data / "valkey" / "appendonlydir")
        valkey.start()
    scene.healed()


@row("R-3", "FLUSHALL, also while the copy is being built", "I-6 I-17", fast=True)
def flushed(scene: Scene) -> None:
    with scene.rig.redis_client() as client:

        def flush() -> None:
            client.set("witness", "here")
            for _ in range(4):
                client.flushall()
                time.sleep(0.004)
            assert client.get("witness") is None

        for _ in range(scene.times(5, 15)):
            scene.strike("FLUSHALL, 4 times within 16 ms", flush, target="valkey")
    scene.healed()


@row("R-4", "DEL of only z, only m, only meta", "I-5", fast=True)
def one_key_deleted(scene: Scene) -> None:
    with scene.rig.redis_client() as client:
        for key in (Z, M, META) * scene.times(1, 3):

            def delete(key: str = key) -> None:
                assert client.delete(key) == 1

            scene.strike(f"DEL {key}", delete, target="valkey")
            _whole_again(scene, client)
    scene.healed()


@row("R-13", "while nothing is written, each single key of a copy goes", "I-5 I-8")
def one_key_deleted_at_rest(scene: Scene) -> None:
    """Without new revisions nothing steps over the copy, so only looking at it finds the loss."""
    with scene.rig.redis_client() as client:
        for key in (Z, M, META):
            scene.progress()
            scene.world.rest()

            def delete(key: str = key) -> None:
                assert client.delete(key) == 1

            scene.strike(f"DEL {key} at rest", delete, target="valkey", gate=False)
            time.sleep(0.5)
            _whole_again(scene, client)
            scene.resume()
    scene.healed()


@row("R-5", "an older dump is put back", "I-5")
def older_dump(scene: Scene) -> None:
    valkey, home = scene.rig["valkey"], scene.rig.data / "valkey"
    kept = scene.rig.data / "valkey.kept"
    scene.strike("Redis stopped, its files kept", valkey.stop, target="valkey")
    copy_tree(home / "appendonlydir", kept)
    kept_at = scene.world.position()
    valkey.start()
    scene.strike("Redis stopped, the older files put back", valkey.stop, target="valkey")
    copy_tree(kept, home / "appendonlydir")
    shutil.rmtree(kept)
    assert scene.world.position() > kept_at
    valkey.start()
    scene.healed()


@row("R-6", "a lagging replica is promoted, and later the old master again", "I-5")
def lagging_replica(scene: Scene) -> None:
    rig = scene.rig
    (rig.data / "replica" / "logs").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(rig.data / "valkey.password", rig.data / "replica" / "valkey.password")
    replica = Process("replica", Valkey(rig.data / "replica", free_port()))
    replica.start()
    port = int(replica.program.url.rsplit(":", 1)[1].split("/")[0])  # type: ignore[attr-defined]
    try:
        with Redis.from_url(replica.program.url) as client:  # type: ignore[attr-defined]
            client.config_set("masterauth", rig.valkey_program.url.split(":")[2].split("@")[0])
            client.replicaof("127.0.0.1", rig.redis_at[1])
            scene.effect("it replicates", lambda: client.info("replication")["master_link_status"] == "up")
            client.replicaof("NO", "ONE")
            stale = int(client.hget(META, "revision") or 0)
            scene.progress(100)
            scene.strike(
                "the links lead to a replica that stopped replicating 100 actions ago",
                lambda: rig.links.turn("-redis", ("127.0.0.1", port)),
            )
            rig.links.named("-redis")
            scene.effect(
                "the replica's copy goes on", lambda: int(client.hget(META, "revision") or 0) > stale + 5
            )
        scene.strike("and back to the old master", lambda: rig.links.turn("-redis", rig.redis_at))
        scene.healed()
    finally:
        rig.links.turn("-redis", rig.redis_at)
        replica.end()


@row("R-7", "SCRIPT FLUSH", "I-22")
def scripts_flushed(scene: Scene) -> None:
    with scene.rig.redis_client() as client:
        for _ in range(5):
            scene.strike("SCRIPT FLUSH", lambda: client.script_flush("SYNC"), target="valkey")
    scene.healed()


@row("R-8", "Redis has no memory left", "I-5")
def out_of_memory(scene: Scene) -> None:
    with scene.rig.redis_client() as client:

        def refuses() -> bool:
            try:
                client.set("witness", "x" * 1000)
            except RedisError as error:
                return "maxmemory" in str(error)
            return False

        with scene.broken(
            "CONFIG SET maxmemory 1mb for 6 s",
            lambda: client.config_set("maxmemory", "1mb"),
            lambda: client.config_set("maxmemory", "0"),
            "valkey",
        ):
            scene.effect("it refuses to write", refuses)
            time.sleep(6)
            scene.progress()
        client.delete("witness")


@row("R-9", "keys of another kind are planted", "I-22", fast=True)
def wrong_kind(scene: Scene) -> None:
    with scene.rig.redis_client() as client:
        for key in (Z, M, META):

            def plant(key: str = key) -> None:
                pipe = client.pipeline(transaction=True)
                pipe.delete(key)
                pipe.set(key, "planted")
                pipe.execute()

            scene.strike(f"{key} becomes a string", plant, target="valkey")
            _whole_again(scene, client)
    scene.healed()


@row("R-10", "a score is edited by hand", "I-5")
def edited(scene: Scene) -> None:
    user = direct_user()
    produce(scene.rig, [(user.encode(), record(user, "one"))])
    with scene.rig.redis_client() as client:

        def member() -> Any:
            found: Any = client.hget(M, user)
            return None if found is None else found[:16] + user.encode()

        scene.effect("the user is in the copy", lambda: member() is not None)
        right = member()
        wrong = right[:7] + bytes([right[7] - 1]) + right[8:]

        def edit() -> None:
            pipe = client.pipeline(transaction=True)
            pipe.zrem(Z, right)
            pipe.zadd(Z, {wrong: 0})
            pipe.hset(M, user, wrong[:16])
            assert pipe.execute()[:2] == [1, 1]

        scene.strike("ZREM, ZADD and HSET that fit together", edit, target="valkey")
        assert read_member(wrong)[1] == read_member(right)[1] + 1
        scene.effect("the comparison has found it", lambda: client.zscore(Z, right) is not None)
        assert client.zscore(Z, wrong) is None
    scene.healed()


@row("R-11", "Redis is away", "I-1 I-17")
def away(scene: Scene) -> None:
    valkey = scene.rig["valkey"]
    with scene.broken("Redis is down", valkey.kill, valkey.start, "valkey"):
        refused = scene.writers.counts.statuses[503]
        time.sleep(scene.times(6, 60))
        scene.progress(100)
        assert scene.writers.counts.statuses[503] == refused, "ingest refused actions"


@row("R-12", "Redis takes no more connections", "I-20")
def no_connections(scene: Scene) -> None:
    rig = scene.rig
    with rig.redis_client() as client:
        client.ping()

        def close_the_door() -> None:
            client.config_set("maxclients", 3)
            rig.links.reset(*rig.links.named("-redis"))

        def refuses() -> bool:
            try:
                with rig.redis_client() as another:
                    another.ping()
            except (RedisError, OSError):
                return True
            return False

        def fill() -> bool:
            held.append(rig.redis_client())
            try:
                held[-1].ping()
            except (RedisError, OSError):
                return True
            return refuses()

        held: list[Redis] = []
        with scene.broken(
            "maxclients 3, every connection reset, for 6 s",
            close_the_door,
            lambda: client.config_set("maxclients", 10_000),
            "valkey",
        ):
            scene.effect("it refuses connections", fill)
            time.sleep(6)
            scene.progress()
        for one in held:
            one.close()


def _whole_again(scene: Scene, client: Redis) -> None:
    def whole() -> bool:
        try:
            count: Any = client.hget(META, "count")
            return count is not None and client.zcard(Z) == client.hlen(M) == int(count)
        except RedisError:
            return False

    scene.effect("the copy is whole again", whole)
