"""Postgres and Redis as the interface describes them, looked at by SQL and by Redis commands alone."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg
import pytest
import redis

from tests.acceptance import naive
from tests.acceptance.topics import CHANGED, read
from tests.acceptance.world import ULID, World, as_us, until

pytestmark = pytest.mark.kafka

PERIOD = "main:all-time"

TABLES = {
    "players": {"player", "pid", "user_id", "username", "hidden", "created_at", "erased_at"},
    "ledger": {
        "action_id",
        "player",
        "seq",
        "kind",
        "type",
        "verdict",
        "reason",
        "points",
        "catalogue_version",
        "fingerprint",
        "occurred_at",
        "received_at",
        "log",
        "kafka_partition",
        "kafka_offset",
        "batch",
    },
    "revisions": {"revision", "epoch", "batch", "committed_at", "cause", "definitions", "digest"},
    "deltas": {
        "period",
        "revision",
        "previous",
        "count",
        "players",
        "old_scores",
        "new_scores",
        "old_reached",
        "new_reached",
    },
    "progress": {"partition", "log", "next_offset", "fingerprint"},
    "logs": {"log", "topic_id", "first_seen"},
    "boards": set(),
    "periods": set(),
    "catalogues": {"version", "body", "sha256", "revision"},
    "entries": {"period", "player", "score", "reached_at"},
    "epochs": {
        "epoch",
        "system_identifier",
        "timeline",
        "continues_epoch",
        "continues_revision",
        "started_at",
    },
    "cursors": set(),
    "attempts": set(),
    "set_aside": {"log", "partition", "record_offset", "reason"},
    "erased_users": {"user_hash"},
}

VIEWS = {
    "user_scores": ["user_id", "username", "score", "last_updated"],
    "score_updates": ["id", "user_id", "action_id", "score_change", "timestamp"],
    "users": ["user_id", "username", "score", "created_at", "updated_at"],
    "scores": ["score_id", "user_id", "score_delta", "action_id", "created_at"],
}


@pytest.fixture(scope="module", autouse=True)
def some_history(world: World) -> None:
    """Accepted, held and rejected actions, several of a user, and a changed name."""
    users = [world.user() for _ in range(5)]
    for name in ("Before", "After"):
        world.give(
            [
                {
                    "action_id": f"{name}-{user}",
                    "user_id": user,
                    "type": "client_points",
                    "points": 60 + n,
                    "username": f"{name} {n}",
                }
                for n, user in enumerate(users)
            ]
        )
    world.give(
        [
            {"action_id": f"fast-{n}-{users[0]}", "user_id": users[0], "type": "level_complete"}
            for n in range(65)
        ]
    )


def columns(connection: psycopg.Connection, name: str) -> dict[str, str]:
    return dict(
        connection.execute(
            "SELECT column_name, data_type FROM information_schema.columns"
            " WHERE table_schema = 'public' AND table_name = %s ORDER BY ordinal_position",
            (name,),
        ).fetchall()
    )


@pytest.mark.parametrize("name", TABLES)
def test_tables_have_the_columns_of_the_page(world: World, name: str):
    with world.ledger() as connection:
        found = columns(connection, name)

    assert found, f"no table {name}"
    assert set(found) >= TABLES[name]


def test_columns_have_the_types_of_the_page(world: World):
    with world.ledger() as connection:
        players, ledger, deltas, entries = (
            columns(connection, name) for name in ("players", "ledger", "deltas", "entries")
        )

    assert (players["player"], players["pid"]) == ("bigint", "uuid")
    assert (ledger["points"], ledger["reason"]) == ("bigint", "jsonb")
    assert {deltas[name] for name in ("players", "old_scores", "new_scores", "old_reached")} == {"ARRAY"}
    assert (entries["score"], entries["reached_at"]) == ("bigint", "timestamp with time zone")


def test_an_action_is_in_the_ledger_once(world: World):
    user = world.user()
    receipt = world.act(user)
    with world.ledger() as connection:
        rows = connection.execute(
            "SELECT l.seq, l.kind, l.type, l.verdict, l.reason, l.points, l.catalogue_version,"
            f" {naive.us('l.received_at')}, r.revision, r.epoch, r.cause"
            " FROM ledger l JOIN players p USING (player) JOIN revisions r USING (batch)"
            " WHERE p.user_id = %s",
            (user,),
        ).fetchall()
        keys = connection.execute(
            "SELECT count(*) - count(DISTINCT (action_id, player, seq)) FROM ledger"
        ).fetchone()

    assert rows == [
        (
            0,
            "judged",
            "level_complete",
            "accepted",
            None,
            10,
            "2026-11-21",
            as_us(receipt["received_at"]),
            receipt["judged_revision"],
            receipt["epoch"],
            "stream",
        )
    ]
    assert keys == (0,)


def test_revisions_are_numbered_without_gaps_and_begin_with_the_definitions(world: World):
    with world.ledger() as connection:
        rows = connection.execute("SELECT revision, epoch, cause FROM revisions ORDER BY revision").fetchall()
        catalogue = connection.execute("SELECT version, revision FROM catalogues").fetchall()
        boards = connection.execute("SELECT board, revision FROM boards").fetchall()

    assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[0][2] == "definition"
    assert {row[2] for row in rows[1:]} <= {"stream", "person"}
    assert len({row[1] for row in rows}) == 1
    assert ULID.fullmatch(rows[0][1])
    assert catalogue == [("2026-11-21", 1)]
    assert boards == [("main", 1)]


def test_the_digest_chain_is_recounted_from_rows(world: World):
    with world.ledger() as connection:
        with connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            stored = connection.execute(
                "SELECT revision, encode(digest, 'hex') FROM revisions ORDER BY revision"
            ).fetchall()
            recounted = naive.digest_chain(connection)

    assert len(stored) > 2
    assert recounted == stored


def test_entries_are_the_ledgers_sums_and_the_folded_deltas(world: World):
    with world.ledger() as connection:
        with connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            summed = naive.entries(connection)
            stored = naive.stored_entries(connection)
            folded = naive.folded_deltas(connection)

    shown = world.everybody()
    assert stored == summed
    assert folded == summed
    assert [
        (entry["rank"], entry["user_id"], entry["score"], as_us(entry["reached_at"])) for entry in shown
    ] == naive.ranked(summed)


@pytest.mark.parametrize("name", VIEWS)
def test_views_have_the_columns_of_the_page(world: World, name: str):
    with world.ledger() as connection:
        found = columns(connection, name)
        kind = connection.execute(
            "SELECT table_type FROM information_schema.tables"
            " WHERE table_schema = 'public' AND table_name = %s",
            (name,),
        ).fetchone()

    assert list(found) == VIEWS[name]
    assert kind == ("VIEW",)
    for column in ("score", "score_change", "score_delta"):
        assert found.get(column, "bigint") == "bigint"


def test_views_add_up_to_the_standings(world: World):
    shown = {entry["user_id"]: entry for entry in world.everybody()}
    with world.ledger() as connection:
        user_scores = connection.execute("SELECT user_id, username, score FROM user_scores").fetchall()
        users = connection.execute("SELECT user_id, username, score FROM users").fetchall()
        updates = connection.execute(
            "SELECT user_id, sum(score_change)::bigint FROM score_updates GROUP BY 1"
        ).fetchall()
        scores = connection.execute(
            "SELECT user_id, sum(score_delta)::bigint FROM scores GROUP BY 1"
        ).fetchall()
        ids = connection.execute("SELECT id::text FROM score_updates").fetchall()
        counted = connection.execute(
            "SELECT count(*), count(*) FILTER (WHERE verdict = 'accepted') FROM ledger WHERE seq = 0"
        ).fetchone()

    assert {row[0]: row[1:] for row in user_scores} == {
        user: (entry["username"], entry["score"]) for user, entry in shown.items()
    }
    # People without an entry may stand there with nothing.
    assert {row[0]: row[1:] for row in users if row[0] in shown} == {
        user: (entry["username"], entry["score"]) for user, entry in shown.items()
    }
    assert all(row[2] in (0, None) for row in users if row[0] not in shown)
    wanted = {user: entry["score"] for user, entry in shown.items()}
    assert {user: total for user, total in updates if total} == wanted
    assert {user: total for user, total in scores if total} == wanted
    assert len({uuid.UUID(row[0]) for row in ids}) == len(ids)
    assert counted
    assert counted[0] > counted[1]
    assert len(ids) in (counted[0], counted[1])


@pytest.mark.parametrize("name", VIEWS)
def test_views_cannot_be_written(world: World, name: str):
    with psycopg.connect(world.endpoints.postgres, autocommit=True) as connection:
        with pytest.raises(psycopg.Error):
            connection.execute(f"DELETE FROM {name}")


@pytest.mark.parametrize("name", ["ledger", "revisions", "deltas"])
def test_history_is_never_updated_nor_deleted(world: World, name: str):
    with world.ledger() as connection:
        before = connection.execute(f"SELECT count(*) FROM {name}").fetchone()
    with psycopg.connect(world.endpoints.postgres) as connection:
        with pytest.raises(psycopg.Error):
            connection.execute(f"DELETE FROM {name}")
        connection.rollback()
    with world.ledger() as connection:
        after = connection.execute(f"SELECT count(*) FROM {name}").fetchone()

    assert after == before


def test_progress_follows_every_partition(world: World):
    with world.ledger() as connection:
        rows = connection.execute("SELECT partition, log, next_offset FROM progress").fetchall()
        highest = connection.execute(
            "SELECT kafka_partition, log, max(kafka_offset) FROM ledger GROUP BY 1, 2"
        ).fetchall()
        logs = connection.execute("SELECT log, topic_id FROM logs").fetchall()

    progress = {(partition, log): offset for partition, log, offset in rows}
    assert all(progress[partition, log] > offset for partition, log, offset in highest)
    assert len(logs) == 1
    assert {log for _, log in progress} <= {log for log, _ in logs}


# Redis -----------------------------------------------------------------------------------------


def test_redis_holds_the_board_at_a_position_of_the_ledger(world: World):
    revision = world.standings()["revision"]
    with redis.Redis.from_url(world.endpoints.redis) as client, world.ledger() as connection:
        z, m, meta = (f"tb:{{{PERIOD}}}:{name}" for name in ("z", "m", "meta"))
        until(
            lambda: int(client.hget(meta, "revision") or 0) >= revision,
            what="the copy at the board's revision",
        )
        held: dict[bytes, Any] = client.hgetall(meta)
        members = client.zrange(z, 0, -1, withscores=True)
        digest = connection.execute(
            "SELECT epoch, encode(digest, 'hex') FROM revisions WHERE revision = %s",
            (int(held[b"revision"]),),
        ).fetchone()
        count = connection.execute("SELECT count(*) FROM entries WHERE period = %s", (PERIOD,)).fetchone()

        assert set(held) >= {b"epoch", b"revision", b"digest", b"count"}
        assert digest == (held[b"epoch"].decode(), _hex(held[b"digest"]))
        assert int(held[b"revision"]) == revision
        assert {score for _, score in members} == {0.0}
        assert client.zcard(z) == client.hlen(m) == int(held[b"count"]) == len(members) == (count or [0])[0]
        assert client.type(z) == b"zset"


def test_redis_holds_nothing_under_another_prefix(world: World):
    with redis.Redis.from_url(world.endpoints.redis) as client:
        keys = {key.decode(errors="replace") for key in client.scan_iter(count=1000)}

    assert keys
    assert all(key.startswith("tb:") for key in keys)
    assert all(
        key.split(":")[1] in ("limit", "ticket", "reply", "marker") or f"{{{PERIOD}}}" in key for key in keys
    )


def test_the_order_is_that_of_the_members_beyond_the_numbers_a_double_can_tell_apart(world: World):
    """Two scores that are one as doubles: the copy is read in ledger order all the same."""
    with redis.Redis.from_url(world.endpoints.redis) as client:
        ordered = client.zrange(f"tb:{{{PERIOD}}}:z", 0, -1)

    whole = world.everybody()
    assert ordered == sorted(ordered)
    assert len(ordered) == len(whole)


def _hex(digest: bytes) -> str:
    return digest.hex() if len(digest) == 32 else digest.decode()


def test_the_three_places_say_the_same_revision(world: World):
    receipt = world.act(world.user())
    revision = receipt["judged_revision"]
    records = until(
        lambda: [
            record.value
            for record in read(world.endpoints.kafka, CHANGED)
            if record.value["revision"] == revision
        ],
        what=f"revision {revision} on the topic",
    )
    with world.ledger() as connection:
        stored = connection.execute(
            "SELECT encode(r.digest, 'hex'), d.previous, d.count"
            " FROM revisions r JOIN deltas d USING (revision) WHERE revision = %s AND period = %s",
            (revision, PERIOD),
        ).fetchone()

    assert [(record["digest"], record["previous"], record["count"]) for record in records] == [stored]
