"""The ledger held against topics and copies: what makes it go on in a new epoch, and what is made good."""

from __future__ import annotations

import json
import threading
from typing import Any

import psycopg
import pytest
from confluent_kafka import Producer

from core import ids, topics
from core.errors import Refused, Unavailable
from storage import histories as module
from storage.followers import At
from storage.histories import Histories
from storage.postgres import connections, definitions, epochs
from storage.postgres.connections import NotCompared
from storage.postgres.ledger import Ledger as PostgresLedger
from storage.standings import Standings
from tests.acceptance import naive
from tests.storage.followers_conformance import PERIOD, Ledger, end, settle
from tests.storage.reading_topics import Reader
from tests.storage.test_boards import META, BoardSubject
from tests.storage.test_publishing import TopicsSubject, made
from tests.stream_app.world import submitted, toml, worker

pytestmark = pytest.mark.services

KEY = b"0123456789abcdef"


@pytest.fixture
def broker(memory_kafka):
    return made(memory_kafka)


@pytest.fixture
def histories(stream, broker, redis_db_url):
    """Of processes on this ledger, as many as a test asks for."""
    opened: list[Histories] = []

    def one(**given: Any) -> Histories:
        opened.append(
            Histories(
                **{
                    "postgres_url": stream.url,
                    "bootstrap": broker.bootstrap,
                    "kafka_kind": "memory",
                    "redis_url": redis_db_url,
                    "erasure_key": lambda: KEY,
                }
                | given
            )
        )
        return opened[-1]

    yield one
    for histories in opened:
        histories.close()


@pytest.fixture
def topic(stream, broker):
    subject = TopicsSubject(stream.url, broker.bootstrap, "memory")
    yield subject
    subject.close()


@pytest.fixture
def copy(stream, redis_db_url):
    subject = BoardSubject(stream.url, redis_db_url)
    yield subject
    subject.close()


@pytest.fixture
def ledger(stream):
    return Ledger(stream)


def say(broker: Any, topic: topics.Topic, key: str, value: Any) -> None:
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    producer.produce(topic.name, key=key, value=None if value is None else json.dumps(value).encode())
    assert producer.flush(10) == 0


def started_anew(url: str) -> None:
    """As after a restart of the server: nobody has compared this run of it."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE compared SET incarnation = 'an earlier one'")


def all_epochs(stream: Any) -> list[tuple[str, str | None, int | None]]:
    return stream.rows("SELECT epoch, continues_epoch, continues_revision FROM epochs ORDER BY epoch")


def placed(epoch: str, revision: int) -> dict[str, Any]:
    return {"epoch": epoch, "revision": revision, "player": "p", "action_id": "a", "verdict": "accepted"}


# who may read and write -----------------------------------------------------------------------


async def test_nobody_reads_or_writes_before_a_server_started_anew_was_compared(
    stream, histories, ledger, redis_db_url
):
    ledger.grow(1, 5)
    stream.judge.ledger.close()
    started_anew(stream.url)

    with pytest.raises(NotCompared), PostgresLedger(stream.url, name="tests").batch([0]):
        pass
    async with Standings.connect(redis_db_url, stream.url) as reader:
        with pytest.raises(Unavailable):
            await reader.page(PERIOD, limit=10)
        settled = histories().settle()
        assert (await reader.page(PERIOD, limit=10)).revision == 2
    assert settled is not None
    assert settled.begun is None
    assert stream.take(submitted("ada", "a1")).position.revision == 3


def test_where_nothing_is_lost_nothing_begins(stream, histories, ledger, topic, copy):
    publisher, board = topic.follower(ledger.hand), copy.follower(ledger.hand)
    for seed in range(3):
        ledger.grow(seed, 5)
        settle(publisher)
        settle(board)
    started_anew(stream.url)

    settled = histories().settle()

    assert settled is not None
    assert (settled.begun, len(all_epochs(stream))) == (None, 1)


def test_an_empty_ledger_asks_nobody(database):
    histories = Histories(
        postgres_url=database,
        bootstrap="127.0.0.1:1",
        kafka_kind="external",
        redis_url="redis://127.0.0.1:1/0",
        erasure_key=lambda: KEY,
    )
    try:
        assert histories.settle() is not None
        definitions.apply(database, toml("1"))
    finally:
        histories.close()


def test_without_kafka_nothing_is_opened(stream, histories):
    started_anew(stream.url)
    with pytest.raises(Unavailable):
        histories(bootstrap="127.0.0.1:1", kafka_kind="external").settle()

    with pytest.raises(NotCompared):
        connections.connect(stream.url, name="tests")


# what begins one ------------------------------------------------------------------------------


@pytest.mark.parametrize("of", [topics.JUDGED, topics.BOARD_CHANGED], ids=lambda topic: topic.name)
def test_a_topic_ahead_of_the_ledger_begins_one(stream, histories, ledger, broker, of):
    ledger.grow(1, 5)
    epoch = ledger.positions()[2][0]
    say(broker, of, "somebody", placed(epoch, 7))

    settled = histories().settle()

    assert settled is not None
    assert settled.begun is not None
    assert settled.begun.continues == (epoch, 2)
    assert settled.begun.at.revision == 3
    assert all_epochs(stream) == [(epoch, None, None), (settled.epoch, epoch, 2)]
    assert stream.rows("SELECT period, revision FROM deltas WHERE revision = 3") == [(PERIOD, 3)]


def test_a_topic_with_another_digest_at_a_revision_begins_one(stream, histories, ledger, broker):
    ledger.grow(1, 5)
    epoch = ledger.positions()[2][0]
    say(broker, topics.BOARD_CHANGED, PERIOD, placed(epoch, 2) | {"digest": "00" * 32})

    settled = histories().settle()

    assert settled is not None
    assert settled.begun is not None


def test_a_copy_ahead_of_the_ledger_begins_one(stream, histories, ledger, copy):
    ledger.grow(1, 5)
    settle(copy.follower())
    copy.redis.hset(META, "revision", 9)

    settled = histories().settle()

    assert settled is not None
    assert settled.begun is not None
    # What is void is not shown any more, even before its keeper comes by.
    assert copy.seen() is None
    end(ledger, copy, copy.follower())


def test_another_server_or_timeline_begins_one(stream, histories, ledger):
    ledger.grow(1, 5)
    for change in ("system_identifier = '7'", "timeline = timeline + 1"):
        with psycopg.connect(stream.url, autocommit=True) as connection:
            connection.execute(f"UPDATE epochs SET {change}")
        count = len(all_epochs(stream))
        settled = histories().settle()

        assert settled is not None
        assert settled.begun is not None
        assert len(all_epochs(stream)) == count + 1


def test_the_new_one_sorts_after_every_one_that_was_seen(stream, histories, ledger, broker, copy):
    """Also where a clock was wrong by centuries."""
    ledger.grow(1, 5)
    settle(copy.follower())
    future = ids.ulid(2**47 * 1000, b"\xff" * 10)
    later = ids.ulid((2**47 + 1) * 1000, b"\x00" * 10)
    say(broker, topics.JUDGED, "somebody", placed(future, 1))
    copy.redis.hset(META, "epoch", later)

    settled = histories().settle()

    assert settled is not None
    assert settled.epoch > later > future
    end(ledger, copy, copy.follower())


@pytest.mark.parametrize(
    "planted", [b'{"epoch":"\xff","revision":1}', b'{"x":' + b"[" * 9000 + b"]" * 9000 + b"}"]
)
def test_what_nobody_can_read_is_nobodys(stream, histories, ledger, broker, planted):
    ledger.grow(1, 5)
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    for topic in (topics.JUDGED, topics.PLAYER, topics.BOARD_CHANGED):
        producer.produce(topic.name, key="00000000-0000-0000-0000-000000000001", value=planted)
    assert producer.flush(10) == 0
    started_anew(stream.url)

    assert histories().settle() is not None


@pytest.mark.parametrize("key", ["x", "", "{0198b4a0-0000-7000-8000-00000000000a}"])
@pytest.mark.parametrize("value", [None, {"user_id": "ada"}])
def test_a_person_under_another_kind_of_key_is_nobodys(stream, histories, ledger, broker, key, value):
    ledger.grow(1, 5)
    epoch = ledger.positions()[2][0]
    say(broker, topics.PLAYER, key, value)
    say(broker, topics.JUDGED, "somebody", placed(epoch, 99))

    settled = histories().settle()

    assert settled is not None
    assert settled.begun is not None
    assert not stream.rows("SELECT FROM compared WHERE erasures_due")


def test_who_began_an_epoch_that_was_lost_too_begins_another(stream, histories, ledger, broker):
    ledger.grow(1, 5)
    epoch = ledger.positions()[2][0]
    process = histories()
    say(broker, topics.JUDGED, "somebody", placed(epoch, 99))
    assert process.settle().begun is not None
    # As the backup has it once more; whoever began the epoch lives on.
    with psycopg.connect(stream.url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("DELETE FROM deltas WHERE revision = 3")
        connection.execute("DELETE FROM revisions WHERE cause = 'new_epoch' AND epoch <> %s", (epoch,))
        connection.execute("DELETE FROM epochs WHERE epoch <> %s", (epoch,))
    process._ledger.close()
    started_anew(stream.url)

    settled = process.settle()

    assert settled is not None
    assert settled.begun is not None


@pytest.mark.parametrize("planted", ["z" * 26, "7" + "z" * 25, "", "01", "ABC", "é" * 26])
def test_what_is_no_epoch_is_nobodys(stream, histories, ledger, broker, planted):
    ledger.grow(1, 5)
    say(broker, topics.JUDGED, "somebody", placed(planted, 99))

    settled = histories().settle()

    assert settled is not None
    assert settled.begun is None


def test_topics_of_a_ledger_that_is_no_more_are_told_of_this_one(stream, histories, ledger, broker):
    earlier = ids.ulid(1_000_000, b"\x01" * 10)
    say(broker, topics.JUDGED, "somebody", placed(earlier, 99))

    settled = histories().settle()
    again = histories().settle()

    assert settled is not None
    assert settled.begun is not None
    assert again is not None
    assert again.begun is None


def test_what_this_process_had_committed_and_the_ledger_lacks_begins_one(stream, histories, ledger):
    ledger.grow(1, 5)
    epoch = ledger.positions()[2][0]
    process = histories()
    with pytest.raises(Unavailable):
        process.lost(At(epoch, 50, "00" * 32))

    settled = process.settle()
    again = process.settle()

    assert settled is not None
    assert settled.begun is not None
    assert again is not None
    assert again.begun is None


def test_a_running_process_looks_again_from_time_to_time(stream, histories, ledger, broker, monkeypatch):
    ledger.grow(1, 5)
    process = histories()
    process.settle()
    say(broker, topics.BOARD_CHANGED, PERIOD, placed(ledger.positions()[2][0], 99))
    soon = process.settle()
    monkeypatch.setattr(module, "COMPARE_EVERY_S", 0.0)
    later = process.settle()

    assert soon is not None
    assert soon.begun is None
    assert later is not None
    assert later.begun is not None


def test_many_who_notice_make_one(stream, histories, ledger, broker):
    ledger.grow(1, 5)
    say(broker, topics.JUDGED, "somebody", placed(ledger.positions()[2][0], 7))
    processes = [histories() for _ in range(6)]
    settled: list[Any] = []

    def notice(process: Histories) -> None:
        while (found := process.settle()) is None:
            pass
        settled.append(found)

    threads = [threading.Thread(target=notice, args=(process,)) for process in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(settled) == 6
    assert len({found.epoch for found in settled}) == 1
    assert [found.begun is not None for found in settled].count(True) == 1
    assert len(all_epochs(stream)) == 2


def test_an_operator_may_say_so_and_is_refused_where_there_is_nothing(stream, histories, ledger, database):
    ledger.grow(1, 5)
    settled = histories().settle(asked=True)

    assert settled is not None
    assert settled.begun is not None
    with psycopg.connect(stream.url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("TRUNCATE epochs, revisions, deltas, people_changed CASCADE")
    with pytest.raises(Refused) as found:
        histories().settle(asked=True)
    assert found.value.code == "no_history"


# what it means for others ---------------------------------------------------------------------


def test_what_a_worker_knew_of_people_goes_with_the_epoch(stream, ledger):
    stream.take(submitted("ada", "a1"))
    known = stream.rows("SELECT version FROM fence")[0][0]
    other = PostgresLedger(stream.url, name="tests")
    try:
        epochs.begin(other, asked=True)
    finally:
        other.close()

    # No number that counts up from one that was lost comes here by counting.
    assert stream.rows("SELECT version FROM fence")[0][0] > known + 10**12


def test_what_a_worker_knew_of_definitions_goes_with_a_restore_that_left_no_trace(stream, histories):
    """Else the fence would come to the number again that it had with what was lost."""
    stream.take(submitted("ada", "a1"))
    known = stream.rows("SELECT version FROM fence")[0][0]
    stream.judge.ledger.close()
    started_anew(stream.url)

    settled = histories().settle()
    moved = stream.rows("SELECT version FROM fence")[0][0]
    histories().settle()

    assert settled is not None
    assert settled.begun is None
    assert moved > known + 10**12
    assert stream.rows("SELECT version FROM fence")[0][0] == moved


def test_the_digest_chain_goes_on(stream, histories, ledger):
    ledger.grow(1, 5)
    histories().settle(asked=True)
    ledger.grow(2, 5)

    with psycopg.connect(stream.url) as connection:
        chain = naive.digest_chain(connection)
        rows = connection.execute("SELECT revision, encode(digest, 'hex') FROM revisions ORDER BY 1")
        assert chain == rows.fetchall()


# what is made good ----------------------------------------------------------------------------


def test_who_was_erased_after_the_backup_is_erased_again(stream, histories, broker, copy, topic):
    stream.take(submitted("ada", "a1", username="Ada"), submitted("bob", "b1"))
    board, publisher = copy.follower(), topic.follower()
    settle(board)
    settle(publisher)
    ((pid,),) = stream.rows("SELECT pid::text FROM players WHERE user_id = 'ada'")
    epoch = stream.rows("SELECT epoch FROM epochs")[0][0]
    say(broker, topics.PLAYER, pid, None)
    say(broker, topics.PLAYER, "0b7ce1a0-0000-4000-8000-00000000beef", {"user_id": "carol"})
    say(broker, topics.PLAYER, "0b7ce1a0-0000-4000-8000-00000000beef", None)
    say(broker, topics.JUDGED, pid, placed(epoch, 40))

    settled = histories().settle()

    assert settled is not None
    assert settled.erased == 1
    assert stream.rows("SELECT user_id, username, erased_at IS NULL FROM players WHERE pid = %s", (pid,)) == [
        (None, None, False)
    ]
    hashes = {row[0] for row in stream.rows("SELECT user_hash FROM erased_users")}
    assert hashes == {epochs.user_hash(KEY, "ada"), epochs.user_hash(KEY, "carol")}
    assert stream.rows("SELECT cause, epoch FROM revisions ORDER BY revision DESC LIMIT 1") == [
        ("person", settled.epoch)
    ]
    settle(board)
    seen = copy.seen()
    assert seen is not None
    assert list(seen.entries) == ["bob"]
    settle(publisher)
    boards = topic.reader.read()[topics.BOARD_CHANGED.name]
    assert [one["user_id"] for one in boards[-1].value["top"]] == ["bob"]
    assert boards[-1].value["count"] == 1
    last = [record.raw for record in topic.reader.records[topics.PLAYER.name] if record.key == pid][-1]
    assert last is None


def test_a_name_of_a_lost_revision_gives_way_to_the_ledgers(stream, histories, broker, topic):
    """Also where what is judged again ends with the name that the backup has, which changes nothing."""
    stream.take(submitted("ada", "a1", username="Ada"))
    publisher = topic.follower()
    settle(publisher)
    ((pid,),) = stream.rows("SELECT pid::text FROM players WHERE user_id = 'ada'")
    epoch = stream.rows("SELECT epoch FROM epochs")[0][0]
    lost = {"player": pid, "user_id": "ada", "username": "Adele", "hidden": False}
    say(broker, topics.PLAYER, pid, lost)
    say(broker, topics.PLAYER, "0b7ce1a0-0000-4000-8000-00000000beef", lost | {"user_id": "carol"})
    say(broker, topics.JUDGED, pid, placed(epoch, 40))

    assert histories().settle() is not None
    settle(publisher)

    topic.reader.read()
    told = [record.raw for record in topic.reader.records[topics.PLAYER.name] if record.key == pid]
    assert [json.loads(raw)["username"] for raw in told] == ["Ada", "Adele", "Ada"]
    with psycopg.connect(stream.url) as connection:
        chain = naive.digest_chain(connection)
        rows = connection.execute("SELECT revision, encode(digest, 'hex') FROM revisions ORDER BY 1")
        assert chain == rows.fetchall()


def test_erasures_that_a_crash_kept_from_being_made_good_are_made_good_by_the_next(
    stream, histories, ledger, broker
):
    stream.take(submitted("ada", "a1"))
    ((pid,),) = stream.rows("SELECT pid::text FROM players")
    say(broker, topics.PLAYER, pid, None)
    say(broker, topics.JUDGED, pid, placed(stream.rows("SELECT epoch FROM epochs")[0][0], 40))

    def crash() -> bytes:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        histories(erasure_key=crash).settle()
    with pytest.raises(NotCompared):
        connections.connect(stream.url, name="tests")
    settled = histories().settle()

    assert settled is not None
    assert (settled.begun, settled.erased, len(all_epochs(stream))) == (None, 1, 2)
    connections.connect(stream.url, name="tests").close()


def test_lost_decisions_are_counted_and_those_that_are_there_are_not(stream, histories, ledger, broker):
    ledger.grow(1, 5)
    epoch = ledger.positions()[2][0]
    say(broker, topics.JUDGED, "p", placed(epoch, 2) | {"decision": 1})
    say(broker, topics.JUDGED, "p", placed(epoch, 8) | {"decision": 1})
    say(broker, topics.JUDGED, "p", placed(epoch, 9) | {"decision": 2})
    say(broker, topics.JUDGED, "p", placed(epoch, 9))

    settled = histories().settle()

    assert settled is not None
    assert settled.lost_decisions == 2


def test_each_partition_of_the_judged_topic_is_told_where_the_history_goes_on(
    stream, histories, ledger, topic, broker
):
    publisher = topic.follower(ledger.hand)
    ledger.grow(1, 5)
    settle(publisher)
    settled = histories().settle(asked=True)
    assert settled is not None
    assert settled.begun is not None
    ledger.grow(2, 5)
    end(ledger, topic, publisher)
    reader = Reader(broker.bootstrap, topics.JUDGED.name)
    records = [record for record in reader.read()[topics.JUDGED.name] if "continues" in record.value]
    reader.close()

    assert sorted(record.partition for record in records) == [0, 1, 2]
    for record in records:
        assert record.value == {
            "epoch": settled.epoch,
            "revision": settled.begun.at.revision,
            "continues": list(settled.begun.continues),
        }
    assert len({record.event_id for record in records}) == 3


def test_two_workers_go_on_in_the_new_one(stream, histories, ledger):
    ledger.grow(1, 5)
    other = worker(stream.url)
    stream.take(submitted("eve", "e1"), by=other)
    histories().settle(asked=True)
    ledger.grow(2, 5)
    outcome = stream.take(submitted("eve", "e2"), by=other)
    other.ledger.close()

    assert outcome.position.epoch == all_epochs(stream)[-1][0]
