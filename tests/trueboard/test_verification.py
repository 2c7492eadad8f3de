from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from confluent_kafka import Producer
from hypothesis import given
from hypothesis import strategies as st

from core import digest
from core.errors import Unavailable
from core.times import US
from core.topics import SUBMITTED
from core.words import MAIN_PERIOD
from storage.postgres.ledger import Ledger
from stream_app.carry_out import Judge
from tests.core.examples import example
from tests.stream_app.world import DAY_US, NOW_US, Log, World, adopt, fresh_database, opened, submitted
from tests.trueboard.ledgers import HeldLog, copied, damaged, follow, written
from trueboard import verify
from trueboard.verification import deltas, digest_chain, ledger_sums, progress, projection, verdicts
from trueboard.verification.report import Check


@pytest.fixture(scope="module")
def world(postgres_url: str, _template: str) -> Iterator[World]:
    """One history for all of these tests: each damages it in a transaction that is undone."""
    with fresh_database(postgres_url, _template) as url, written(url) as made:
        yield made


def check_sums(connection: Any, world: World) -> Check:
    found = Check("ledger_sums")
    ledger_sums.check(connection, found)
    return found


def check_deltas(connection: Any, world: World) -> Check:
    found = Check("deltas")
    deltas.check(connection, found)
    return found


def check_digests(connection: Any, world: World) -> Check:
    found = Check("digest_chain")
    digest_chain.check(connection, found)
    return found


def check_verdicts(connection: Any, world: World) -> Check:
    found = Check("verdicts")
    verdicts.check(connection, found, 100_000)
    return found


def check_progress(connection: Any, world: World, log: HeldLog | None = None) -> Check:
    found = Check("progress")
    progress.check(connection, log or HeldLog(world), found)  # type: ignore[arg-type]
    return found


CHECKS = {
    "ledger_sums": check_sums,
    "deltas": check_deltas,
    "digest_chain": check_digests,
    "verdicts": check_verdicts,
    "progress": check_progress,
}


@pytest.mark.services
@pytest.mark.parametrize("name", CHECKS)
def test_what_the_stream_wrote_is_equal(world: World, name: str) -> None:
    with damaged(world.url) as connection:
        found = CHECKS[name](connection, world)

    assert (found.ok, found.first) == (True, None)
    assert found.compared > 10


@pytest.mark.services
def test_the_history_has_every_kind_of_verdict(world: World) -> None:
    codes = {code for _, code in world.verdicts().values()}

    assert codes >= {
        None,
        "rate",
        "cooldown",
        "too_fast",
        "out_of_bounds",
        "score_below_minimum",
        "unknown_type",
    }
    assert world.rows("SELECT count(*) FROM set_aside") == [(2,)]


@pytest.mark.services
@pytest.mark.parametrize("seed", range(2, 6))
def test_any_history_is_equal(database: str, seed: int) -> None:
    with written(database, seed) as other, damaged(database) as connection:
        found = [check(connection, other) for check in CHECKS.values()]

    assert [(check.name, check.first) for check in found if not check.ok] == []


ONE_ENTRY = "(SELECT min(player) FROM entries WHERE score > 0)"
ONE_ACCEPTED = (
    "(SELECT min(action_id) FROM ledger WHERE verdict = 'accepted' AND points > 0 AND type = 'level')"
)
MIDDLE = "(SELECT revision FROM deltas ORDER BY revision OFFSET 5 LIMIT 1)"

DAMAGES = [
    ("ledger_sums", "entry", f"UPDATE entries SET score = score + 1 WHERE player = {ONE_ENTRY}"),
    (
        "ledger_sums",
        "entry",
        f"UPDATE entries SET reached_at = reached_at + '1 microsecond' WHERE player = {ONE_ENTRY}",
    ),
    ("ledger_sums", "entry", f"DELETE FROM entries WHERE player = {ONE_ENTRY}"),
    ("ledger_sums", "entry", "INSERT INTO entries VALUES ('main:all-time', 999, 5, now())"),
    ("ledger_sums", "a period", "DELETE FROM periods"),
    ("ledger_sums", "a period", "UPDATE periods SET period = 'another:all-time'"),
    ("ledger_sums", "entry", f"UPDATE ledger SET verdict = 'held' WHERE action_id = {ONE_ACCEPTED}"),
    (
        "ledger_sums",
        "a board that cannot be recounted",
        'UPDATE boards SET definition = definition || \'{"operator": "best"}\'',
    ),
    ("deltas", "the revision before", f"UPDATE deltas SET previous = previous - 1 WHERE revision = {MIDDLE}"),
    ("deltas", "the count after", f"UPDATE deltas SET count = count + 1 WHERE revision = {MIDDLE}"),
    (
        "deltas",
        "a delta whose columns disagree",
        f"UPDATE deltas SET old_scores = old_scores || 1::bigint WHERE revision = {MIDDLE}",
    ),
    (
        "deltas",
        "the value before a change",
        "UPDATE deltas SET old_scores[1] = old_scores[1] + 1 WHERE revision ="
        " (SELECT revision FROM deltas WHERE old_scores[1] IS NOT NULL ORDER BY revision LIMIT 1)",
    ),
    (
        "deltas",
        "the entry that the deltas come to",
        f"UPDATE entries SET score = score + 1 WHERE player = {ONE_ENTRY}",
    ),
    (
        "deltas",
        "the entry that the deltas come to",
        "INSERT INTO entries VALUES ('main:all-time', 999, 5, now())",
    ),
    ("deltas", "the revision before", f"DELETE FROM deltas WHERE revision = {MIDDLE}"),
    (
        "deltas",
        "the count after the last delta",
        f"UPDATE players SET hidden = true WHERE player = {ONE_ENTRY}",
    ),
    ("digest_chain", "digest", f"UPDATE ledger SET points = points + 1 WHERE action_id = {ONE_ACCEPTED}"),
    ("digest_chain", "digest", f"UPDATE ledger SET verdict = 'held' WHERE action_id = {ONE_ACCEPTED}"),
    (
        "digest_chain",
        "digest",
        f"UPDATE ledger SET received_at = received_at + '1 microsecond' WHERE action_id = {ONE_ACCEPTED}",
    ),
    ("digest_chain", "digest", f"DELETE FROM ledger WHERE action_id = {ONE_ACCEPTED}"),
    ("digest_chain", "digest", f"UPDATE players SET pid = gen_random_uuid() WHERE player = {ONE_ENTRY}"),
    ("digest_chain", "digest", f"UPDATE revisions SET cause = 'operator' WHERE revision = {MIDDLE}"),
    ("digest_chain", "digest", f"UPDATE revisions SET digest = sha256('') WHERE revision = {MIDDLE}"),
    (
        "digest_chain",
        "rows of no revision",
        "INSERT INTO ledger (player, batch, points, occurred_at, received_at, seq, action_id, kind, type,"
        " verdict, catalogue_version, fingerprint) SELECT player, 100000, 0, now(), now(), 0, 'orphan', kind,"
        " type, 'held', catalogue_version, fingerprint FROM ledger LIMIT 1",
    ),
    (
        "digest_chain",
        "the number of a revision",
        "UPDATE revisions SET revision = revision + 1 WHERE revision = (SELECT max(revision) FROM revisions)",
    ),
    ("digest_chain", "the epoch", f"UPDATE revisions SET epoch = 'zz' WHERE revision = {MIDDLE}"),
    (
        "digest_chain",
        "the hash of a catalogue",
        "UPDATE catalogues SET body = jsonb_set(body, '{types,level,points}', '11')",
    ),
    (
        "digest_chain",
        "the hash of a definition",
        "UPDATE boards SET definition = jsonb_set(definition, '{lowest}', '-1')",
    ),
    ("verdicts", "verdict", f"UPDATE ledger SET verdict = 'held' WHERE action_id = {ONE_ACCEPTED}"),
    ("verdicts", "verdict", f"UPDATE ledger SET points = points + 1 WHERE action_id = {ONE_ACCEPTED}"),
    (
        "verdicts",
        "verdict",
        "UPDATE ledger SET verdict = 'accepted', reason = NULL WHERE action_id ="
        " (SELECT min(action_id) FROM ledger WHERE reason->>'code' = 'rate')",
    ),
    (
        "verdicts",
        "verdict",
        "UPDATE ledger SET reason = jsonb_set(reason, '{seen}', '1') WHERE reason->>'code' = 'rate'",
    ),
    (
        "verdicts",
        "verdict",
        "UPDATE ledger SET verdict = 'accepted', reason = NULL WHERE reason->>'code' = 'score_below_minimum'",
    ),
    (
        "verdicts",
        "the catalogue",
        f"UPDATE ledger SET catalogue_version = 'none' WHERE action_id = {ONE_ACCEPTED}",
    ),
    (
        "progress",
        "the ends of the log",
        "UPDATE progress SET next_offset = next_offset + 1 WHERE partition = 0",
    ),
    (
        "progress",
        "the last ledger row",
        "UPDATE progress SET next_offset = next_offset - 30 WHERE partition = 0",
    ),
    (
        "progress",
        "the last record set aside",
        "UPDATE set_aside SET record_offset = 100000 WHERE partition = 0",
    ),
    (
        "progress",
        "the record before the next offset",
        "UPDATE progress SET fingerprint = '\\x00' WHERE partition = 0",
    ),
    ("progress", "the record before the next offset", "UPDATE progress SET fingerprint = NULL"),
    ("progress", "a record passed over", f"DELETE FROM ledger WHERE action_id = {ONE_ACCEPTED}"),
    ("progress", "a record passed over", "DELETE FROM set_aside WHERE partition = 1"),
    (
        "progress",
        "a record with two traces",
        "INSERT INTO set_aside SELECT log, kafka_partition, kafka_offset, 'defect' FROM ledger LIMIT 1",
    ),
    (
        "progress",
        "the number of records",
        "INSERT INTO set_aside SELECT 1, 0, -n, 'defect' FROM generate_series(1, 1000) n",
    ),
    ("progress", "the log", "UPDATE logs SET topic_id = 'another'"),
    ("progress", "a partition", "DELETE FROM progress WHERE partition = 1"),
    ("progress", "a partition", "DELETE FROM progress"),
]


@pytest.mark.services
@pytest.mark.parametrize(
    ("name", "what", "damage"),
    [pytest.param(*each, id=f"{each[0]}-{each[1]}-{n}") for n, each in enumerate(DAMAGES)],
)
def test_every_damage_is_found_with_a_witness(world: World, name: str, what: str, damage: str) -> None:
    with damaged(world.url, damage) as connection:
        found = CHECKS[name](connection, world)

    assert not found.ok
    assert found.first is not None
    assert found.first["what"] == what
    assert found.first["expected"] != found.first["found"]
    assert json.loads(json.dumps(found.body())) == found.body()


@pytest.mark.services
def test_a_witness_names_where_and_what(world: World) -> None:
    ((player, user_id, score),) = world.rows(
        f"SELECT player, user_id, score FROM entries JOIN players USING (player) WHERE player = {ONE_ENTRY}"
    )

    with damaged(world.url, f"UPDATE entries SET score = score + 1 WHERE player = {player}") as connection:
        found = check_sums(connection, world)

    assert found.differences == 1
    assert found.first is not None
    assert (found.first["period"], found.first["player"], found.first["user_id"]) == (
        MAIN_PERIOD,
        player,
        user_id,
    )
    assert (found.first["expected"]["score"], found.first["found"]["score"]) == (score, score + 1)


@pytest.mark.services
def test_differences_are_counted(world: World) -> None:
    ((entries,),) = world.rows("SELECT count(*) FROM entries")

    with damaged(world.url, "UPDATE entries SET score = score + 1") as connection:
        found = check_sums(connection, world)

    assert found.differences == found.compared == entries


@pytest.mark.services
def test_the_last_decision_about_an_action_counts(world: World) -> None:
    ((player, action_id, points),) = world.rows(
        "SELECT l.player, l.action_id, l.points FROM ledger l JOIN entries e USING (player)"
        f" WHERE l.action_id = {ONE_ACCEPTED}"
    )
    decision = (
        "INSERT INTO ledger (player, batch, points, occurred_at, received_at, seq, action_id, kind, type,"
        " verdict, catalogue_version, fingerprint) SELECT player, 100000, points, now(), now(), 1,"
        f" action_id, 'decision', type, 'rejected', catalogue_version, fingerprint FROM ledger"
        f" WHERE action_id = '{action_id}'"
    )

    with damaged(world.url, decision) as connection:
        found = check_sums(connection, world)

    assert found.first is not None
    assert found.first["player"] == player
    assert found.first["found"]["score"] - found.first["expected"]["score"] == points


@pytest.mark.services
def test_a_released_action_is_reached_when_it_was_received(database: str) -> None:
    with written(database) as other:
        other.take(submitted("late-one", "held-1", "unknown", at_us=NOW_US))
        release = (
            "INSERT INTO ledger (player, batch, points, occurred_at, received_at, seq, action_id, kind, type,"
            " verdict, catalogue_version, fingerprint) SELECT player, 100000, 7, now(), now(), 1, action_id,"
            " 'decision', type, 'accepted', catalogue_version, fingerprint FROM ledger"
            " WHERE action_id = 'held-1'"
        )
        with damaged(database, release) as connection:
            found = check_sums(connection, other)

    assert found.first is not None
    assert found.first["expected"] == {"score": 7, "reached_us": NOW_US}


@pytest.mark.services
def test_a_log_whose_start_has_gone_is_no_difference(world: World) -> None:
    log = HeldLog(world)
    log.first = {partition: world.log.end(partition) for partition in world.log.records}

    with damaged(world.url) as connection:
        found = check_progress(connection, world, log)

    assert found.first is None


@pytest.mark.services
def test_a_log_that_lost_what_was_not_read_is_a_difference(world: World) -> None:
    log = HeldLog(world)
    log.first = {partition: world.log.end(partition) + 1 for partition in world.log.records}

    with damaged(world.url) as connection:
        found = check_progress(connection, world, log)

    assert found.first is not None
    assert found.first["what"] == "the ends of the log"


@pytest.mark.services
@pytest.mark.parametrize(
    ("present", "topic", "adopted", "what"),
    [
        pytest.param("log-2", [0], [0], None, id="a log of fewer partitions"),
        pytest.param("log-2", [0], [], "the log", id="of fewer, and not taken up yet"),
        pytest.param("log-2", [0, 1], [0], "the log", id="one that is there was not taken up"),
        pytest.param("log-1", [0], [0, 1], "the log", id="a log that the ledger has left"),
    ],
)
def test_a_partition_that_a_later_log_does_not_have_is_no_difference(
    database: str, present: str, topic: list[int], adopted: list[int], what: str | None
) -> None:
    with written(database) as other:
        if adopted:
            other.log = Log(topic_id="log-2")
            adopt(database, other.log, adopted)
            other.take(submitted("ann", "later", at_us=NOW_US))
        other.log = Log(topic_id=present, records={n: other.log.records.get(n, []) for n in topic})

        with damaged(database) as connection:
            found = check_progress(connection, other)

    assert (found.first and found.first["what"]) == what


@pytest.mark.services
@pytest.mark.parametrize(
    "occurred_us",
    [
        pytest.param(NOW_US - 3 * DAY_US, id="later than the default allows"),
        pytest.param(NOW_US + 3600 * US, id="earlier than the default allows"),
    ],
)
def test_what_counts_by_when_it_was_received_is_seen_whenever_it_occurred(
    database: str, occurred_us: int
) -> None:
    lenient = Judge(
        Ledger(database, name="tests"),
        most_people=10,
        most_rows=100,
        max_late_us=7 * DAY_US,
        max_early_us=7200 * US,
    )
    with opened(database) as other, closing(lenient.ledger):
        far = [
            submitted("ann", f"far-{n}", at_us=occurred_us - n * 120 * US, received_us=NOW_US)
            for n in range(3)
        ]
        other.take(*far, by=lenient)
        other.take(submitted("ann", "now", at_us=NOW_US + US), by=lenient)
        with damaged(database) as connection:
            found = check_verdicts(connection, other)

    assert other.verdicts()["now"] == ("held", "rate")
    assert found.first is None


@pytest.mark.services
def test_a_sample_is_the_same_at_the_same_revision_and_has_those_not_accepted(world: World) -> None:
    with damaged(world.url) as connection:
        first, second = (verdicts.sample(connection, 40) for _ in range(2))

    assert first == second
    assert len(first) == len({(row.player, row.action_id) for row in first}) == 40
    assert sum(row.verdict != "accepted" for row in first) == 10


# Redis


@pytest.fixture
def client(world: World, redis_db_url: str) -> Iterator[Any]:
    made = copied(world, redis_db_url)
    yield made
    made.close()


Z, M, META = projection.keys(MAIN_PERIOD)


def compared(world: World, client: Any) -> Check:
    found = Check("projection")
    projection.check(world.url, client, found)
    return found


@pytest.mark.services
def test_a_copy_of_the_ledger_is_equal(world: World, client: Any) -> None:
    found = compared(world, client)

    ((entries,),) = world.rows("SELECT count(*) FROM entries")
    assert (found.first, found.compared) == (None, entries)


def edit_score(client: Any) -> None:
    client.zadd(Z, {client.zrange(Z, 0, 0)[0]: 5})


def edit_name(client: Any) -> None:
    user, value = next(client.hscan_iter(M))
    client.hset(M, user, value + b"!")


def edit_key(client: Any) -> None:
    user, value = next(client.hscan_iter(M))
    client.hset(M, user, bytes(16) + value[16:])


def move_member(client: Any) -> None:
    member = client.zrange(Z, 0, 0)[0]
    client.zrem(Z, member)
    client.zadd(Z, {bytes(16) + member[16:]: 0})


def add_player(client: Any) -> None:
    client.hset(M, "nobody", bytes(16))
    client.zadd(Z, {bytes(16) + b"nobody": 0})


def add_member(client: Any) -> None:
    client.zadd(Z, {bytes(16) + b"user-1": 0})


def drop_player(client: Any) -> None:
    member = client.zrange(Z, 0, 0)[0]
    client.zrem(Z, member)
    client.hdel(M, member[16:])


def edit_count(client: Any) -> None:
    client.hincrby(META, "count", 1)


def edit_digest(client: Any) -> None:
    client.hset(META, "digest", "00" * 32)


def edit_epoch(client: Any) -> None:
    client.hset(META, "epoch", "zz")


def edit_revision(client: Any) -> None:
    client.hincrby(META, "revision", 1)


def spoil_revision(client: Any) -> None:
    client.hset(META, "revision", "x")


def drop_copy(client: Any) -> None:
    client.delete(META)


def plant_another_kind(client: Any) -> None:
    client.delete(M)
    client.set(M, "x")


@pytest.mark.services
@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (edit_score, "entry"),
        (edit_name, "entry"),
        (edit_key, "entry"),
        (move_member, "entry"),
        (add_player, "the number of entries"),
        (add_member, "the number of entries"),
        (drop_player, "entry"),
        (edit_count, "the position"),
        (edit_digest, "the position"),
        (edit_epoch, "the position"),
        (edit_revision, "the position"),
        (spoil_revision, "the copy"),
        (drop_copy, "the copy"),
        (plant_another_kind, "the copy"),
    ],
)
def test_a_damaged_copy_is_found(
    world: World, client: Any, damage: Any, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection, "MISSING_S", 0.2)
    damage(client)

    found = compared(world, client)

    assert not found.ok
    assert found.first is not None
    assert found.first["what"] == what
    json.dumps(found.body())


@pytest.mark.services
def test_an_extra_player_is_named(world: World, client: Any) -> None:
    add_player(client)

    found = compared(world, client)

    assert found.first is not None
    assert found.first["found"]["extra"] == "nobody"


@pytest.mark.services
def test_a_copy_that_is_behind_is_compared_at_its_own_position(database: str, redis_db_url: str) -> None:
    with written(database) as other:
        behind = copied(other, redis_db_url)
        other.take(
            *[submitted(f"user-{n}", f"later-{n}", "points", points=5, username="New") for n in range(6)],
            submitted("new-one", "later-x", "points", points=5),
        )
        found = compared(other, behind)
        edit_score(behind)
        edited = compared(other, behind)
        behind.zadd(Z, {behind.zrange(Z, 0, 0)[0]: 0})
        follow(other, behind)
        caught_up = compared(other, behind)
        behind.close()

    assert (found.first, caught_up.first) == (None, None)
    assert caught_up.compared == found.compared + 1
    assert edited.first is not None


@pytest.mark.services
def test_a_copy_that_moves_while_it_is_read_is_no_difference(
    database: str, redis_db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with written(database) as other:
        moving = copied(other, redis_db_url)
        looks = 0
        look = projection.look

        def look_at_what_moves(client: Any, period: str, user_ids: list[str]) -> Any:
            nonlocal looks
            looks += 1
            if looks < 6:
                other.take(
                    *[
                        submitted(
                            f"user-{n}", f"moving-{looks}-{n}", "points", points=3, username=f"N{looks}"
                        )
                        for n in range(6)
                    ],
                    submitted(f"new-{looks}", f"moving-{looks}-x", "points", points=5),
                )
                follow(other, moving)
            return look(client, period, user_ids)

        monkeypatch.setattr(projection, "look", look_at_what_moves)
        found = compared(other, moving)
        moving.close()

    assert looks >= 3
    assert found.first is None


# all of it, as the command does


def report(world: World, client: Any) -> dict[str, Any]:
    log: Any = HeldLog(world)
    return verify._checked(world.url, client, log, 100, lambda _: lambda _: None)


def not_equal(told: dict[str, Any]) -> set[str]:
    return {check["name"] for check in told["checks"] if not check["ok"]}


@pytest.mark.services
@pytest.mark.parametrize(
    ("gone", "finds"),
    [("periods", {"ledger_sums"}), ("progress WHERE partition = 1", {"progress"})],
)
def test_a_row_that_all_is_found_by_is_missed_when_it_is_gone(
    database: str, redis_db_url: str, gone: str, finds: set[str]
) -> None:
    with written(database) as other, closing(copied(other, redis_db_url)) as client:
        before = report(other, client)
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute(f"DELETE FROM {gone}")
        told = report(other, client)

    assert (before["ok"], told["ok"]) == (True, False)
    assert not_equal(told) >= finds


@pytest.mark.services
def test_a_position_that_is_none_leaves_the_other_checks_as_they_are(
    world: World, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection, "MISSING_S", 0.2)
    spoil_revision(client)

    told = report(world, client)

    assert (told["ok"], not_equal(told)) == (False, {"projection"})


@pytest.mark.services
def test_a_partition_that_progress_does_not_know_yet_is_waited_for(database: str, redis_db_url: str) -> None:
    with opened(database) as other:
        other.take(submitted("ann", "a-1"))
        log: Any = HeldLog(other)
        with closing(copied(other, redis_db_url)) as client:
            still = [verify._is_still(database, client, log)]
            other.log.records[2] = []
            still.append(verify._is_still(database, client, log))
            other.log.append(2, submitted("bob", "b-1"))
            still.append(verify._is_still(database, client, log))

    assert still == [True, True, False]


# Kafka


@pytest.fixture
def log(memory_kafka: Any) -> Iterator[progress.Log]:
    """A log of two partitions with ten records in the first, looked at as verify does."""
    memory_kafka.make_topic(SUBMITTED.name, 2)
    producer = Producer({"bootstrap.servers": memory_kafka.bootstrap})
    for n in range(10):
        producer.produce(SUBMITTED.name, key=b"k%d" % n, value=b"v%d" % n, partition=0)
    assert producer.flush(10) == 0
    made = progress.Log(memory_kafka.bootstrap, kind=memory_kafka.kind)
    yield made
    made.close()


def test_a_log_has_an_id_and_ends(log: progress.Log) -> None:
    assert log.topic_id() == log.topic_id() != ""
    assert (log.ends(0), log.ends(1)) == ((0, 10), (0, 0))
    assert log.partitions() == [0, 1]


def test_records_are_read_where_they_stand(log: progress.Log) -> None:
    found = log.records({0: [2, 7, 9], 1: []})
    again = log.records({0: [0]})

    assert found == {0: {2: (b"k2", b"v2"), 7: (b"k7", b"v7"), 9: (b"k9", b"v9")}, 1: {}}
    assert again == {0: {0: (b"k0", b"v0")}}


def test_a_log_that_gives_nothing_is_unavailable(log: progress.Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_ANSWER_S", 0.5)

    with pytest.raises(Unavailable):
        log.records({1: [0]})


# The second implementations agree with the first ones.

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(VALUES)
def test_both_canonical_forms_are_one(value: Any) -> None:
    try:
        first = digest.canonical(value)
    except UnicodeEncodeError:
        return

    assert digest_chain.canonical(value).encode() == first


@given(st.lists(st.binary(max_size=8)))
def test_both_trees_are_one(leaves: list[bytes]) -> None:
    assert digest_chain.merkle(sorted(leaves)) == digest.root(leaves)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 7, 8, 9])
def test_the_tree_is_that_of_halves(size: int) -> None:
    leaves = [bytes([n]) for n in range(size)]

    def hashed(part: list[bytes]) -> bytes:
        if not part:
            return hashlib.sha256(b"").digest()
        if len(part) == 1:
            return hashlib.sha256(b"\0" + part[0]).digest()
        half = max(1 << n for n in range(10) if 1 << n < len(part))
        return hashlib.sha256(b"\1" + hashed(part[:half]) + hashed(part[half:])).digest()

    assert digest_chain.merkle(leaves) == hashed(leaves)


def test_golden_records_are_what_the_second_implementation_makes() -> None:
    canonical = example("digest", "canonical")["cases"]
    trees = example("digest", "trees")["roots"]

    assert [digest_chain.canonical(case["value"]) for case in canonical] == [
        case["canonical"] for case in canonical
    ]
    assert [
        digest_chain.merkle(sorted(leaf.encode() for leaf in case["leaves"])).hex() for case in trees
    ] == [case["root"] for case in trees]
