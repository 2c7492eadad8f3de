"""The topics that follow the ledger: the followers' suite, and what only a log can do to them."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from core import topics
from core.errors import Unavailable
from core.times import US
from service import metrics
from storage.followers import At
from storage.kafka import publishing
from storage.kafka.publishing import Publisher
from storage.kafka.topics import declare
from stream_app.hand import Hand
from tests.acceptance import naive
from tests.storage.followers_conformance import (
    PERIOD,
    Fault,
    FollowersConformance,
    Ledger,
    Seen,
    Subject,
    check,
    end,
    settle,
)
from tests.storage.reading_topics import Reader, Record
from tests.stream_app.world import NOW_US, submitted
from trueboard.devstack.kafka.memory import PRODUCE

pytestmark = pytest.mark.services

FOLLOWED = (topics.JUDGED, topics.PLAYER, topics.BOARD_CHANGED)


class TopicsSubject(Subject):
    """The three topics on a broker, folded by a reader that was there from the start."""

    def __init__(self, url: str, bootstrap: str, kind: str) -> None:
        super().__init__(url)
        self.bootstrap, self.kind = bootstrap, kind
        self._publishers: list[Publisher] = []
        self.reader = Reader(bootstrap)

    def follower(self, hand: Hand | None = None, **given: Any) -> Publisher:
        given |= {} if hand is None else {"in_hand": hand.content}
        made = Publisher(postgres_url=self.url, bootstrap=self.bootstrap, kind=self.kind, **given)
        self._publishers.append(made)
        return made

    def seen(self) -> Seen | None:
        records = self.reader.read()
        repeats_say_the_same(records)
        in_order(records[topics.JUDGED.name])
        return folded(records[topics.BOARD_CHANGED.name])

    def faults(self) -> dict[str, Fault]:
        return {
            "the publisher's session ended": Fault(self._end_session),
            "the cursor lost": Fault(lambda: self._cursor("DELETE FROM cursors")),
            "the cursor put back": Fault(
                lambda: self._cursor("UPDATE cursors SET revision = greatest(1, revision - 2)")
            ),
            "the cursor put back to the first": Fault(
                lambda: self._cursor("UPDATE cursors SET revision = 1")
            ),
            "topics of another id": Fault(
                lambda: self._cursor("""UPDATE cursors SET topic_ids = '{"a": "b"}'""")
            ),
        }

    def close(self) -> None:
        for publisher in self._publishers:
            publisher.close()
        self.reader.close()

    def _end_session(self) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'trueboard publisher' AND datname = current_database()"
            )

    def _cursor(self, statement: str) -> None:
        self._end_session()
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)


def without_names(value: Any) -> Any:
    """A repeat says the same, but for names, which are the latest."""
    if isinstance(value, dict):
        return {key: without_names(inner) for key, inner in value.items() if key != "username"}
    return [without_names(inner) for inner in value] if isinstance(value, list) else value


def repeats_say_the_same(records: dict[str, list[Record]]) -> None:
    first: dict[tuple[str, str], Record] = {}
    for name, run in records.items():
        for record in run:
            known = first.setdefault((name, record.event_id), record)
            assert (known.key, known.partition) == (record.key, record.partition)
            if name == topics.JUDGED.name:
                assert known.raw == record.raw
            else:
                assert without_names(known.value) == without_names(record.value)


def in_order(records: list[Record]) -> None:
    """Within a partition positions rise, but for repeats, which begin earlier and rise again."""
    highest: dict[int, tuple[str, int]] = {}
    last: dict[int, tuple[str, int]] = {}
    known: set[str] = set()
    for record in records:
        at = record.value["epoch"], record.value["revision"]
        if record.event_id in known:
            assert at <= highest[record.partition]
        else:
            assert at >= highest.get(record.partition, ("", 0))
            assert at >= last.get(record.partition, ("", 0))
        known.add(record.event_id)
        last[record.partition] = at
        highest[record.partition] = max(at, highest.get(record.partition, ("", 0)))


def folded(records: list[Record]) -> Seen | None:
    """board.changed folded by one who takes each position once; every link and every top is checked.

    Where an epoch begins it goes back to the revision that the new line comes from.
    """
    entries: dict[str, tuple[int, int, str]] = {}
    at: At | None = None
    had: dict[int, dict[str, tuple[int, int, str]]] = {}
    for record in records:
        value = record.value
        assert record.key == f"{value['board']}:{value['window']}" == PERIOD
        if at is not None and (value["epoch"], value["revision"]) <= (at.epoch, at.revision):
            continue
        if at is not None and value["epoch"] > at.epoch:
            entries = dict(had[value["previous"]])
        else:
            assert value["previous"] == (0 if at is None else at.revision)
        for one in value["changed"]:
            if one["score"] is None:
                entries.pop(one["user_id"], None)
            else:
                entries[one["user_id"]] = (one["score"], us(one["reached_at"]), one["username"])
        at = At(value["epoch"], value["revision"], value["digest"])
        had[at.revision] = dict(entries)
        assert value["count"] == len(entries)
        truth = naive.ranked({user_id: entry[:2] for user_id, entry in entries.items()})[:10]
        assert [
            (one["rank"], one["user_id"], one["score"], us(one["reached_at"])) for one in value["top"]
        ] == truth
    return None if at is None else Seen(at, dict(entries))


def us(instant: str) -> int:
    from datetime import UTC, datetime

    moment = datetime.fromisoformat(instant.replace("Z", "+00:00"))
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * US + since.microseconds


def made(memory_kafka: Any) -> Any:
    for topic in topics.ALL:
        memory_kafka.make_topic(topic.name, 3)
    return memory_kafka


class TestTopics(FollowersConformance):
    plans_tried = 10

    @pytest.fixture
    def make(self):
        """On a broker of its own each time, since its topics begin empty."""
        from trueboard.devstack.kafka.memory import MockCluster

        clusters = []

        def subject(url: str) -> TopicsSubject:
            cluster = made(MockCluster())
            clusters.append(cluster)
            return TopicsSubject(url, cluster.bootstrap, "memory")

        yield subject
        for cluster in clusters:
            cluster.close()


@pytest.fixture
def subject(stream, memory_kafka):
    subject = TopicsSubject(stream.url, made(memory_kafka).bootstrap, "memory")
    yield subject
    subject.close()


@pytest.fixture
def ledger(stream):
    return Ledger(stream)


def ledgers_top_of(url: str) -> list[tuple[str, str, int]]:
    """(user id, username, score) of the ledger's top ten."""
    with psycopg.connect(url) as connection:
        names = dict(connection.execute("SELECT user_id, coalesce(username, user_id) FROM players"))
        standings = naive.ranked(naive.entries(connection))
    return [(user_id, names[user_id], score) for _, user_id, score, _ in standings[:10]]


def test_analysts_find_the_top_ten_from_judged_and_player_alone(subject, ledger):
    publisher = subject.follower(ledger.hand)
    for seed in range(12):
        ledger.grow(seed, 8)
        settle(publisher)
    records = subject.reader.read()

    found = naive.top(
        [record.value for record in records[topics.JUDGED.name]],
        [(record.key, record.value) for record in records[topics.PLAYER.name]],
    )

    assert found == ledgers_top_of(ledger.stream.url)
    assert len(found) == 10


def test_every_ledger_row_is_one_record_and_every_record_a_row(subject, ledger, stream):
    publisher = subject.follower()
    for seed in range(5):
        ledger.grow(seed, 9)
    settle(publisher)
    said = [record.value for record in subject.reader.read()[topics.JUDGED.name]]

    rows = stream.rows(
        "SELECT p.pid::text, l.action_id, l.type, l.verdict, l.reason, l.points, l.catalogue_version,"
        f" {naive.us('l.occurred_at')}, {naive.us('l.received_at')}, r.epoch, r.revision"
        " FROM ledger l JOIN players p USING (player) JOIN revisions r USING (batch)"
    )

    assert sorted(
        (
            one["player"], one["action_id"], one["type"], one["verdict"], str(one["reason"]), one["points"],
            one["catalogue_version"], us(one["occurred_at"]), us(one["received_at"]), one["epoch"],
            one["revision"],
        )
        for one in said
    ) == sorted((*row[:4], str(reordered(row[4])), *row[5:]) for row in rows)  # fmt: skip


def reordered(reason: dict[str, Any] | None) -> dict[str, Any] | None:
    """A reason from jsonb in the order it has on the wire."""
    names = ("code", "rule", "rule_version", "limit", "seen", "window_s")
    return None if reason is None else {name: reason[name] for name in names}


def test_hand_and_ledger_give_the_same_bytes(subject, ledger):
    publisher = subject.follower(ledger.hand)
    for seed in range(6):
        ledger.grow(seed, 7)
        settle(publisher)
    publisher.close()
    plain = subject.follower()
    plain.build()
    settle(plain)
    records = subject.reader.read()

    judged: dict[str, list[bytes | None]] = {}
    for record in records[topics.JUDGED.name]:
        judged.setdefault(record.event_id, []).append(record.raw)
    boards = [without_names(record.value) for record in records[topics.BOARD_CHANGED.name]]

    assert all(len(run) == 2 and run[0] == run[1] for run in judged.values())
    assert boards[: len(boards) // 2] == boards[len(boards) // 2 :]


def test_the_latest_name_is_the_last_record_of_a_player(subject, ledger, stream):
    publisher = subject.follower(ledger.hand)
    stream.take(submitted("ada", "a1", username="Ada"))
    settle(publisher)
    stream.take(submitted("ada", "a2", username="Countess", at_us=NOW_US + US))
    settle(publisher)
    run = subject.reader.read()[topics.PLAYER.name]

    assert [(record.value["user_id"], record.value["username"]) for record in run] == [
        ("ada", "Ada"),
        ("ada", "Countess"),
    ]
    assert len({record.key for record in run}) == 1


def test_a_player_whose_only_action_was_rejected_is_named_too(subject, stream):
    stream.take(submitted("ada", "a1", "unheard_of"))
    settle(subject.follower())
    records = subject.reader.read()

    assert [record.value["user_id"] for record in records[topics.PLAYER.name]] == ["ada"]
    assert [record.value["verdict"] for record in records[topics.JUDGED.name]] == ["rejected"]
    assert records[topics.BOARD_CHANGED.name][-1].value["revision"] == 1


def test_a_revision_that_changes_no_entry_sends_no_board(subject, ledger, stream):
    stream.take(submitted("ada", "a1"))
    stream.take(submitted("ada", "a2", "unheard_of"))
    stream.take(submitted("ada", "a3", at_us=NOW_US + US))
    settle(subject.follower())

    boards = [record.value for record in subject.reader.read()[topics.BOARD_CHANGED.name]]

    assert [(one["revision"], one["previous"]) for one in boards] == [(1, 0), (2, 1), (4, 2)]


def test_the_top_is_right_after_more_leaders_left_than_are_held(subject, stream, monkeypatch):
    monkeypatch.setattr(publishing, "CAPACITY", 12)
    stream.take(*[submitted(f"u{n:02}", f"a{n}", "points", points=1000 - n) for n in range(40)])
    publisher = subject.follower()
    settle(publisher)
    for begin in range(0, 30, 3):
        stream.take(
            *[
                submitted(f"u{n:02}", f"b{n}-{part}", "points", points=-100)
                for n in range(begin, begin + 3)
                for part in range(9)
            ]
        )
        settle(publisher)

    seen = subject.seen()

    assert seen.at.revision == 12
    check(Ledger(stream), seen)


def test_a_publisher_that_begins_late_knows_the_top_of_then(subject, ledger):
    """`top` is of its own revision, though the entries are much further by now."""
    for seed in range(10):
        ledger.grow(seed, 8)
    settle(subject.follower())

    check(ledger, subject.seen())
    assert subject.seen().at.revision == max(ledger.positions())


def test_only_one_publishes_at_a_time(subject, ledger):
    ledger.grow(1, 5)
    first, second = subject.follower(), subject.follower()
    assert first.step()

    assert not second.step()
    assert second.position() is None

    first.close()
    assert second.step() is False or second.position() is not None
    end(ledger, subject, second)


def test_the_cursor_is_saved_only_after_the_acknowledgements(subject, ledger, stream, monkeypatch):
    publisher = subject.follower()
    ledger.grow(1, 5)
    settle(publisher)
    publisher.close()
    saved = stream.rows("SELECT revision FROM cursors")
    ledger.grow(2, 5)
    monkeypatch.setattr(publishing, "SAVE_EVERY_S", 0.0)

    def never_confirmed(self: Publisher) -> None:
        raise Unavailable("Kafka has not confirmed")

    with monkeypatch.context() as patched:
        patched.setattr(Publisher, "_await_acknowledgements", never_confirmed)
        with pytest.raises(Unavailable):
            publisher.step()
        publisher.close()

    assert stream.rows("SELECT revision FROM cursors") == saved
    end(ledger, subject, publisher)
    publisher.close()
    assert stream.rows("SELECT revision FROM cursors") == [(3,)]


def test_while_the_broker_is_away_nothing_is_skipped(subject, ledger, memory_kafka, monkeypatch):
    monkeypatch.setattr(publishing, "FLUSH_S", 1.0)
    publisher = subject.follower(ledger.hand)
    ledger.grow(1, 5)
    settle(publisher)
    memory_kafka.take_down(1)
    ledger.grow(2, 5)
    with pytest.raises(Unavailable):
        publisher.step()
    memory_kafka.bring_up(1)
    deadline_s = time.monotonic() + 15
    while time.monotonic() < deadline_s:
        with suppress(Unavailable):
            publisher.step()
            break

    end(ledger, subject, publisher)


def test_what_is_refused_is_sent_again_before_what_follows_it(subject, ledger, memory_kafka):
    """Kafka takes a new producer's second batch where it has refused the first, as a partition moves."""
    publisher = subject.follower(kafka={"batch.num.messages": 1})
    ledger.grow(1, 60)
    memory_kafka.delay(1, 20)
    memory_kafka.fail_next(PRODUCE, KafkaError.NOT_LEADER_FOR_PARTITION, times=3)

    settle(publisher)

    records = subject.reader.read()
    in_order(records[topics.JUDGED.name])
    with psycopg.connect(subject.url) as connection:
        for name, table in ((topics.JUDGED.name, "ledger"), (topics.PLAYER.name, "players")):
            (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
            assert len({record.event_id for record in records[name]}) == count


def test_a_producer_that_failed_for_good_is_made_anew(subject, ledger, memory_kafka):
    """The broker no longer knows what this producer wrote last, as after it lost unconfirmed records."""
    publisher = subject.follower(ledger.hand)
    ledger.grow(1, 5)
    settle(publisher)
    replaced = metrics.PRODUCERS_REPLACED._value.get()
    memory_kafka.fail_next(PRODUCE, KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER)
    ledger.grow(2, 5)
    with pytest.raises(Unavailable):
        publisher.step()

    end(ledger, subject, publisher)
    assert metrics.PRODUCERS_REPLACED._value.get() == replaced + 1


def test_a_producer_that_failed_for_good_before_it_is_given_more_is_counted(subject, ledger, memory_kafka):
    """Kafka may answer while records are handed over: then that is what raises, not a poll."""
    publisher = subject.follower(ledger.hand)
    ledger.grow(1, 5)
    settle(publisher)
    replaced = metrics.PRODUCERS_REPLACED._value.get()
    memory_kafka.fail_next(PRODUCE, KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER)

    def until_it_fails() -> None:
        for _ in range(400):
            publisher._producer.produce(topics.PLAYER.name, key="nobody", value=b"{}")
            time.sleep(0.05)

    with pytest.raises(KafkaException):
        until_it_fails()
    ledger.grow(2, 5)
    with pytest.raises(Unavailable):
        publisher.step()

    assert metrics.PRODUCERS_REPLACED._value.get() == replaced + 1


def test_a_session_that_was_lost_saves_no_cursor(subject, ledger, stream):
    """Whoever lost the lock with its connection must not write over the new publisher's cursor."""
    old, new = subject.follower(), subject.follower()
    ledger.grow(1, 5)
    settle(old)
    subject.faults()["the publisher's session ended"].harm()
    ledger.grow(2, 5)
    settle(new)
    new.close()
    saved = stream.rows("SELECT revision, saved_at FROM cursors")
    old.close()

    assert stream.rows("SELECT revision, saved_at FROM cursors") == saved
    assert saved[0][0] == 3


def test_who_lost_the_lock_sends_nothing_of_what_is_in_hand(subject, ledger):
    """It needs no connection to know what comes next, and would send behind its successor."""
    old = subject.follower(ledger.hand)
    ledger.grow(1, 5)
    settle(old)
    before = {name: len(records) for name, records in subject.reader.read().items()}
    subject.faults()["the publisher's session ended"].harm()
    ledger.grow(2, 5)

    with pytest.raises(Unavailable):
        old.step(look=False)

    assert {name: len(records) for name, records in subject.reader.read().items()} == before


def test_every_record_is_a_cloud_event_whose_id_is_its_own(subject, ledger):
    for seed in range(3):
        ledger.grow(seed, 6)
    settle(subject.follower())

    for name, run in subject.reader.read().items():
        ids = [record.event_id for record in run]
        assert len(set(ids)) == len(ids)
        for record in run:
            said = dict(record.headers)
            assert said["ce_specversion"] == b"1.0"
            assert said["ce_type"] == name.encode()
            assert {"ce_source", "ce_time", "traceparent"} <= said.keys()


# real Kafka -----------------------------------------------------------------------------------


def fresh_topics(bootstrap: str, *, partitions: int, only: tuple[topics.Topic, ...] = topics.ALL) -> None:
    """Make the topics anew, whatever was there."""
    delete_topics(bootstrap, only)
    declare(bootstrap, kind="jvm", partitions=partitions, replication=1)


def delete_topics(bootstrap: str, only: tuple[topics.Topic, ...]) -> None:
    """Delete those that are there, and see that they are gone."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    there = set(admin.list_topics(timeout=10).topics) & {topic.name for topic in only}
    if there:
        for deleted in admin.delete_topics(sorted(there)).values():
            deleted.result(timeout=20)
        deadline_s = time.monotonic() + 60
        while set(admin.list_topics(timeout=10).topics) & there:
            assert time.monotonic() < deadline_s
            time.sleep(0.1)


@pytest.mark.kafka
def test_topics_made_anew_are_sent_again_from_the_start(stream, kafka):
    fresh_topics(kafka.bootstrap, partitions=2)
    ledger, subject = Ledger(stream), TopicsSubject(stream.url, kafka.bootstrap, kafka.kind)
    publisher = subject.follower(ledger.hand)
    for seed in range(4):
        ledger.grow(seed, 6)
        settle(publisher)
    end(ledger, subject, publisher)
    subject.close()
    fresh_topics(kafka.bootstrap, partitions=2, only=FOLLOWED)
    ledger.grow(9, 6)
    again = TopicsSubject(stream.url, kafka.bootstrap, kafka.kind)
    try:
        end(ledger, again, again.follower(ledger.hand))
        records = again.reader.records

        assert len(records[topics.JUDGED.name]) == stream.rows("SELECT count(*) FROM ledger")[0][0]
        assert records[topics.BOARD_CHANGED.name][0].value["revision"] == 1
    finally:
        again.close()


@pytest.mark.kafka
def test_topics_made_anew_between_two_sends_begin_at_the_start(stream, kafka, monkeypatch):
    monkeypatch.setattr(publishing, "LOOK_EVERY_S", 3600.0)
    fresh_topics(kafka.bootstrap, partitions=2)
    ledger, before = Ledger(stream), TopicsSubject(stream.url, kafka.bootstrap, kafka.kind)
    publisher = before.follower(ledger.hand)
    for seed in range(3):
        ledger.grow(seed, 6)
        settle(publisher)
    fresh_topics(kafka.bootstrap, partitions=2, only=FOLLOWED)
    ledger.grow(9, 6)
    settle(publisher)

    begins_at_the_start(ledger, kafka, publisher)
    before.close()


@pytest.mark.kafka
def test_topics_made_anew_while_records_are_under_way_begin_at_the_start(stream, kafka, monkeypatch):
    """A producer tries a topic that is gone again and again, until it is there: as another log."""
    monkeypatch.setattr(publishing, "LOOK_EVERY_S", 3600.0)
    fresh_topics(kafka.bootstrap, partitions=2)
    ledger, before = Ledger(stream), TopicsSubject(stream.url, kafka.bootstrap, kafka.kind)
    publisher = before.follower(ledger.hand)
    over = threading.Event()

    def at_work() -> None:
        for seed in range(1000):
            if over.is_set():
                return
            ledger.grow(seed, 6)
            with suppress(Unavailable):
                publisher.step()

    working = threading.Thread(target=at_work)
    working.start()
    try:
        for _ in range(3):
            delete_topics(kafka.bootstrap, FOLLOWED)
            # Longer than a producer needs to find the topics gone; while they are, nobody may write.
            time.sleep(1.0)
            declare(kafka.bootstrap, kind="jvm", partitions=2, replication=1)
            time.sleep(1.0)
    finally:
        over.set()
        working.join()

    begins_at_the_start(ledger, kafka, publisher)
    before.close()


def begins_at_the_start(ledger: Ledger, kafka: Any, publisher: Publisher) -> None:
    """The topics that are there now have every row, in the order of revisions from the first on."""
    reading = TopicsSubject(ledger.stream.url, kafka.bootstrap, kafka.kind)
    try:
        end(ledger, reading, publisher)
        records = reading.reader.records
        judged = {record.event_id for record in records[topics.JUDGED.name]}

        assert len(judged) == ledger.stream.rows("SELECT count(*) FROM ledger")[0][0]
        assert records[topics.BOARD_CHANGED.name][0].value["revision"] == 1
    finally:
        reading.close()
