"""The ledger's transaction: what it refuses, what it locks, what may never be said otherwise."""

from __future__ import annotations

import threading

import psycopg
import pytest

from core import digest
from core.errors import Refused, Unavailable
from core.times import US
from storage.postgres import arrays, connections, definitions
from storage.postgres.ledger import Ledger, LogLeft, Overtaken, Progress, empty_delta
from stream_app.carry_out import OutOfStep
from tests.acceptance import naive
from tests.stream_app import world
from tests.stream_app.world import NOW_US, submitted

pytestmark = pytest.mark.services


@pytest.fixture
def ledger(stream):
    made = Ledger(stream.url, name="tests")
    yield made
    made.close()


@pytest.mark.parametrize("table", ["ledger", "revisions", "deltas"])
@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM {}", "TRUNCATE {} CASCADE", "DELETE FROM {} WHERE false"],
)
def test_what_the_ledger_says_is_not_taken_back(stream, table, statement):
    stream.take(submitted("ada", "a1"))

    with psycopg.connect(stream.url) as connection, pytest.raises(psycopg.errors.RestrictViolation):
        connection.execute(statement.format(table))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger SET points = 1000",
        "UPDATE ledger SET verdict = 'accepted'",
        "UPDATE revisions SET cause = 'operator'",
        "UPDATE deltas SET count = 7",
    ],
)
def test_what_the_ledger_says_is_not_changed(stream, statement):
    stream.take(submitted("ada", "a1"))

    with psycopg.connect(stream.url) as connection, pytest.raises(psycopg.errors.RestrictViolation):
        connection.execute(statement)


def test_the_same_key_is_written_once(stream):
    stream.take(submitted("ada", "a1"))

    with psycopg.connect(stream.url) as connection, pytest.raises(psycopg.errors.UniqueViolation):
        connection.execute("INSERT INTO ledger SELECT * FROM ledger")


def test_minus_two_to_the_63_is_no_score(stream):
    with psycopg.connect(stream.url) as connection, pytest.raises(psycopg.errors.CheckViolation):
        connection.execute(
            "INSERT INTO entries VALUES ('main:all-time', 1, -9223372036854775808, clock_timestamp())"
        )


# logs -----------------------------------------------------------------------------------------


def test_a_partition_nobody_has_read_begins_at_its_start(ledger):
    with ledger.batch([5]) as batch:
        number, left = batch.adopt([5], "another topic's id")

        assert left == {}
        assert batch.progress[5] == Progress(number, 0, None)


def test_a_new_log_begins_at_its_start_and_says_what_was_left(stream, ledger):
    stream.take(submitted("ada", "a1"))
    with ledger.batch([0, 1]) as batch:
        number, left = batch.adopt([0, 1], "log-2")

    assert left == {0: stream.log.number, 1: stream.log.number}
    assert stream.rows("SELECT log, next_offset, fingerprint FROM progress") == [(number, 0, None)] * 2


def test_a_log_once_left_is_never_taken_up_again(stream, ledger):
    with ledger.batch([0]) as batch:
        batch.adopt([0], "log-2")

    with pytest.raises(LogLeft), ledger.batch([0]) as batch:
        batch.adopt([0], stream.log.topic_id)

    with pytest.raises(OutOfStep):
        stream.take(submitted("ada", "a1"))


def test_what_was_judged_from_a_log_that_was_left_counts_no_second_time(stream):
    stream.take(submitted("ada", "a1"))
    later = world.Log(topic_id="log-2")
    world.adopt(stream.url, later, [0, 1])
    stream.log = later
    outcome = stream.take(submitted("ada", "a1"), submitted("ada", "a2", at_us=NOW_US + US))

    assert (outcome.judged, outcome.repeated) == (1, 1)
    assert stream.rows("SELECT score FROM entries") == [(20,)]


# two kinds of writers -------------------------------------------------------------------------


def test_a_writer_that_is_not_the_stream_waits_for_batches_and_no_longer_than_a_second(stream, ledger):
    other = Ledger(stream.url, name="operator")
    with ledger.batch([0]), pytest.raises(Unavailable), other.exclusive():
        pass
    with other.exclusive():
        pass
    other.close()


def test_batches_of_two_workers_do_not_wait_for_each_other(stream, ledger):
    other = Ledger(stream.url, name="second worker")
    with ledger.batch([0]), other.batch([1]) as batch:
        assert batch.progress.keys() == {1}
    other.close()


def test_every_writer_but_the_stream_moves_the_fence(stream, ledger):
    before = stream.rows("SELECT version FROM fence")[0][0]
    stream.take(submitted("ada", "a1"))
    assert stream.rows("SELECT version FROM fence") == [(before,)]

    with ledger.exclusive():
        pass

    assert stream.rows("SELECT version FROM fence") == [(before + 1,)]


def test_a_moved_fence_makes_a_worker_read_people_again(stream, ledger):
    stream.take(submitted("ada", "a1", username="Ada"))
    with ledger.exclusive() as batch:
        batch.execute("UPDATE players SET username = 'Renamed by an operator'")
    assert stream.judge.people_at_hand() == 1
    outcome = stream.take(submitted("ada", "a2", at_us=NOW_US + US))

    (change,) = outcome.content.periods[0].changes

    assert change.username == "Renamed by an operator"


def test_an_exclusive_transaction_that_fails_moves_no_fence(stream, ledger):
    before = stream.rows("SELECT version FROM fence")
    with pytest.raises(ZeroDivisionError), ledger.exclusive():
        raise ZeroDivisionError

    assert stream.rows("SELECT version FROM fence") == before


def test_revisions_of_many_workers_are_one_chain_without_gaps(stream):
    """Commit order is revision order: whoever reads sees no revision without all before it."""
    world.adopt(stream.url, stream.log, range(4))
    failures: list[BaseException] = []
    glimpses: list[list[int]] = []
    over = threading.Event()

    def work(partition: int) -> None:
        judge = world.worker(stream.url)
        try:
            for number in range(25):
                offset = stream.log.append(
                    partition,
                    submitted(f"u{partition}-{number % 3}", f"a{partition}-{number}", "points", points=1),
                )
                judge.carry_out(stream.log.number, [stream.log.slice(partition, offset)])
        except BaseException as error:
            failures.append(error)
        finally:
            judge.ledger.close()

    def glimpse() -> None:
        with psycopg.connect(stream.url, autocommit=True) as connection:
            while not over.is_set():
                rows = connection.execute("SELECT revision FROM revisions ORDER BY revision").fetchall()
                glimpses.append([row[0] for row in rows])

    threads = [threading.Thread(target=work, args=(partition,)) for partition in range(4)]
    watching = threading.Thread(target=glimpse)
    watching.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    watching.join()

    assert failures == []
    assert all(seen == list(range(1, len(seen) + 1)) for seen in glimpses)
    with psycopg.connect(stream.url) as connection:
        stored = connection.execute("SELECT revision, encode(digest, 'hex') FROM revisions ORDER BY 1")
        assert stored.fetchall() == naive.digest_chain(connection)
        assert len(naive.digest_chain(connection)) == 101
        assert (
            naive.folded_deltas(connection) == naive.entries(connection) == naive.stored_entries(connection)
        )


def test_new_people_of_two_batches_at_once_are_one_player_each(stream):
    """Both intern the same users in one order, so the second waits instead of dying."""
    world.adopt(stream.url, stream.log, range(2))
    judges = [world.worker(stream.url) for _ in range(2)]
    failures: list[BaseException] = []

    def work(partition: int) -> None:
        try:
            for round_ in range(10):
                first = stream.log.end(partition)
                users = [f"new{round_}-{number}" for number in range(30)]
                for user_id in users if partition else reversed(users):
                    action_id = f"{partition}-{round_}-{user_id}"
                    stream.log.append(partition, submitted(user_id, action_id, "badge"))
                while True:
                    try:
                        judges[partition].carry_out(stream.log.number, [stream.log.slice(partition, first)])
                        break
                    except Unavailable:
                        continue
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(partition,)) for partition in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for judge in judges:
        judge.ledger.close()

    assert failures == []
    assert stream.rows("SELECT count(*), count(DISTINCT user_id) FROM players") == [(300, 300)]
    assert stream.rows("SELECT count(*) FROM ledger") == [(600,)]


# steps ----------------------------------------------------------------------------------------


def test_rows_that_are_there_already_roll_the_batch_back(stream, ledger):
    stream.take(submitted("ada", "a1"))
    rows = _rows_again(stream)

    with pytest.raises(Overtaken), ledger.batch([0]) as batch:
        batch.insert_rows(batch.next_batch(), rows)

    assert stream.rows("SELECT count(*) FROM ledger") == [(1,)]


def _rows_again(stream):
    """The plan's rows of a group whose judging saw no keys."""
    from core.rates import Recent, Rules
    from stream_app import judging

    piece = stream.log.slice(0)
    ((player, pid),) = stream.rows("SELECT player, pid::text FROM players")
    person = judging.Person(player, pid, None, recent=Recent())
    rules = Rules(world.catalogue("1"))
    return judging.judge(rules, judging.Bounds(0), [person], set(), piece.incoming, stream.log.number).rows


def test_a_revision_without_leaves_has_the_root_of_nothing(stream, ledger):
    with ledger.exclusive() as batch:
        appended = batch.append(batch.next_batch(), "operator", [], [empty_delta("main:all-time")])

    before = bytes.fromhex(
        stream.rows("SELECT encode(digest, 'hex') FROM revisions WHERE revision = 1")[0][0]
    )
    assert appended.position.digest == digest.chained(before, digest.EMPTY_ROOT, 2, "operator")
    assert appended.links == {"main:all-time": (1, 0)}


def test_a_commit_wakes_who_listens(stream):
    with connections.connect(stream.url, name="tests", autocommit=True) as listening:
        listening.execute(f"LISTEN {connections.CHANNEL}")
        stream.take(submitted("ada", "a1"))
        told = list(listening.notifies(timeout=5, stop_after=1))

    assert [notify.payload for notify in told] == ["2"]


def test_a_paused_writers_transaction_is_ended_by_the_server(stream):
    with connections.connect(stream.url, name="tests", timeout_ms=100) as connection:
        connection.execute("SELECT pg_advisory_xact_lock_shared(%s)", (connections.PLAN_LOCK,))
        with pytest.raises(Unavailable), connections.unavailable():
            connection.execute("SELECT pg_sleep(1)")


def test_instants_at_the_ends_of_what_can_be_written_are_judged(stream):
    from core.times import HIGHEST_US, LOWEST_US

    stream.take(
        submitted("ada", "a1", "slow", at_us=LOWEST_US, received_us=NOW_US, backfill=True),
        submitted("ada", "a2", "slow", at_us=HIGHEST_US, received_us=NOW_US, backfill=True),
    )
    other = world.worker(stream.url)
    stream.take(
        submitted("ada", "a3", "slow", at_us=LOWEST_US + US, received_us=NOW_US, backfill=True), by=other
    )
    other.ledger.close()

    assert stream.verdicts() == {
        "a1": ("accepted", None),
        "a2": ("accepted", None),
        "a3": ("rejected", "cooldown"),
    }
    with psycopg.connect(stream.url) as connection:
        connection.execute("SELECT * FROM score_updates").fetchall()


# the specifications' views --------------------------------------------------------------------


def test_the_views_say_what_counts_of_visible_players(stream):
    stream.take(
        submitted("ada", "a1", "points", points=5, username="Ada"),
        submitted("ada", "a2", "unheard_of"),
        submitted("bob", "b1", "points", points=7),
        submitted("cyd", "c1", "points", points=9),
        submitted("dee", "d1", "badge"),
    )
    with psycopg.connect(stream.url) as connection:
        connection.execute("UPDATE players SET hidden = true WHERE user_id = 'cyd'")

    assert stream.rows("SELECT user_id, username, score FROM user_scores ORDER BY 1") == [
        ("ada", "Ada", 5),
        ("bob", "bob", 7),
        ("dee", "dee", 0),
    ]
    assert stream.rows("SELECT user_id, action_id, score_change FROM score_updates ORDER BY 2") == [
        ("ada", "a1", 5),
        ("bob", "b1", 7),
        ("dee", "d1", 0),
    ]
    assert stream.rows("SELECT user_id, score FROM users ORDER BY 1") == [("ada", 5), ("bob", 7), ("dee", 0)]
    assert stream.rows("SELECT user_id, score_delta, action_id FROM scores ORDER BY 3") == [
        ("ada", 5, "a1"),
        ("bob", 7, "b1"),
        ("dee", 0, "d1"),
    ]


def test_the_views_sum_up_to_the_entries_after_later_decisions(stream):
    stream.take(submitted("ada", "a1", "points", points=40), submitted("ada", "a2", "points", points=60))
    with psycopg.connect(stream.url) as connection:
        for seq, verdict, points in [(1, "rejected", 40), (2, "accepted", 35)]:
            connection.execute(
                "INSERT INTO ledger (player, batch, points, occurred_at, received_at, seq, action_id, kind,"
                "  type, verdict, catalogue_version, fingerprint)"
                " SELECT player, batch, %s, occurred_at, received_at, %s, action_id, 'decision', type, %s,"
                "  catalogue_version, fingerprint FROM ledger WHERE action_id = 'a1' AND seq = 0",
                (points, seq, verdict),
            )

    assert stream.rows("SELECT score_change FROM score_updates WHERE action_id = 'a1' ORDER BY 1") == [
        (-40,),
        (35,),
        (40,),
    ]
    assert stream.rows("SELECT sum(score_delta), count(DISTINCT score_id) FROM scores") == [(95, 4)]


def test_ids_and_names_are_compared_bytewise(stream):
    stream.take(*[submitted(user_id, "a1", "badge") for user_id in ("b", "B", "a-", "a.", "a", "_")])

    ordered = [row[0] for row in stream.rows("SELECT user_id FROM players ORDER BY user_id")]

    assert ordered == sorted(ordered, key=str.encode)


def test_a_refused_definition_leaves_nothing_behind(stream):
    before = stream.rows("SELECT * FROM fence"), stream.rows("SELECT revision FROM revisions")

    with pytest.raises(Refused):
        definitions.apply(stream.url, b"version = 'x'")

    assert (stream.rows("SELECT * FROM fence"), stream.rows("SELECT revision FROM revisions")) == before


def test_arrays_of_a_delta_come_back_as_they_were(stream):
    stream.take(submitted("ada", "a1", "points", points=5), submitted("bob", "b1", "points", points=6))
    with connections.connect(stream.url, name="tests") as connection:
        arrays.register(connection.adapters)
        cursor = connection.cursor(binary=True)
        cursor.execute("SELECT players, old_scores, new_scores, new_reached FROM deltas WHERE revision = 2")
        row = cursor.fetchone()

    players, old, new, reached = (arrays.values(column) for column in row)
    assert len(set(players)) == 2
    assert (old, sorted(new), reached) == ([None, None], [5, 6], [NOW_US, NOW_US])
