"""The auditor beside a running stack: silent while all is right, and not when somebody lays hand on it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis

from tests.acceptance.audits import PATIENCE_S, audited, caught_up, lines
from tests.acceptance.stacks import Stack, is_gone, kill, replaced, run
from tests.acceptance.world import World, until
from trueboard.endpoints import Endpoints

pytestmark = pytest.mark.kafka

Z, M = "tb:{main:all-time}:z", "tb:{main:all-time}:m"
HALF = 1 << 63


def test_of_cheaters_duplicates_and_late_actions_nothing_differs(world: World):
    before = audited(world)
    code, account = run(
        world.data,
        "simulate",
        "--duration=6",
        "--rate=120",
        "--users=200",
        "--cheaters=0.1",
        "--duplicates=0.2",
    )
    assert code == 0, account

    after = caught_up(world)

    assert after["mismatches"] == before["mismatches"], lines(world.data, "audit_mismatch")
    for what in ("publication", "chain", "digest", "page", "frame", "channel", "copy"):
        assert after[what] > before[what], what


def test_it_begins_anew_after_it_was_killed_and_stops_in_time(world: World):
    world.give([{"action_id": "a", "user_id": world.user(), "type": "level_complete"}])
    replaced(world, "auditor", kill(world, "auditor"))

    after = caught_up(world)

    assert after["mismatches"] == 0, lines(world.data, "audit_mismatch")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A stack of the test's own that heals nothing by itself."""
    monkeypatch.setenv("TRUEBOARD_RECONCILE_INTERVAL_S", "100000")
    stack = Stack(tmp_path / "data", "memory")
    try:
        yield stack.start()
    finally:
        stack.end()


def test_a_hand_in_redis_is_noticed_with_what_it_did(own: World):
    users = [own.user() for _ in range(3)]
    own.give([{"action_id": "a", "user_id": user, "type": "level_complete"} for user in users])
    caught_up(own)
    assert audited(own)["mismatches"] == 0
    with redis.Redis.from_url(own.endpoints.redis) as client:
        (member,) = [each for each in client.zrange(Z, 0, -1) if each[16:] == users[0].encode()]
        key = struct.pack(">QQ", HALF - 1 - 1_000_000, HALF + 5)
        name = client.hget(M, users[0])[16:]
        with client.pipeline(transaction=True) as hand:
            hand.zrem(Z, member).zadd(Z, {key + users[0].encode(): 0}).hset(M, users[0], key + name).execute()

    until(lambda: audited(own)["mismatches"], patience_s=PATIENCE_S, what="a mismatch")

    first = lines(own.data, "audit_mismatch")[0]
    assert first["what"] in ("copy", "page")
    assert first["user_id"] == users[0]
    assert 1_000_000 in (first["found"], *(first["found"] if isinstance(first["found"], list) else ()))


def test_topics_made_anew_are_counted_anew(own: World):
    own.give([{"action_id": "a", "user_id": own.user(), "type": "level_complete"}])
    caught_up(own)
    [auditor] = Endpoints.read(own.data).processes["auditor"]
    replaced(own, "kafka", kill(own, "kafka"))
    until(lambda: is_gone(auditor), patience_s=PATIENCE_S, what="the end of the auditor")
    replaced(own, "auditor", auditor)
    own.again()
    user, token = own.user(), own.trusted()
    body = {"action_id": "b", "user_id": user, "type": "level_complete"}

    def taken() -> bool:
        try:
            return own.send("/v1/actions", body, token).status_code == 202
        except httpx.TransportError:
            return False

    until(taken, patience_s=PATIENCE_S, what="an action on the new broker")
    own.judged_later("b", user)

    assert caught_up(own)["mismatches"] == 0, lines(own.data, "audit_mismatch")
