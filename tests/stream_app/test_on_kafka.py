"""Workers as processes on a real Kafka: they come, go, are killed, and meet poison; nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import redis
from confluent_kafka import Consumer, Producer, TopicPartition

from core import topics
from core.ranking import read_member
from storage.postgres import definitions
from storage.redis import keys
from tests.acceptance import naive
from tests.storage.reading_topics import Reader
from tests.storage.test_publishing import fresh_topics, ledgers_top_of
from tests.stream_app import world
from tests.stream_app.world import NOW_US, encoded, submitted
from trueboard.devstack.ports import free_port

pytestmark = [pytest.mark.services, pytest.mark.kafka]

PARTITIONS = 4
SUBMITTED = topics.SUBMITTED.name


class Workers:
    """`python -m stream_app`, as many as are asked for; all ended with the test."""

    def __init__(self, url: str, redis_url: str, bootstrap: str, logs: Path) -> None:
        self.url, self.bootstrap, self._logs = url, bootstrap, logs
        self._env = {
            **os.environ,
            "TRUEBOARD_POSTGRES_URL": url,
            "TRUEBOARD_REDIS_URL": redis_url,
            "TRUEBOARD_KAFKA": bootstrap,
            "TRUEBOARD_KAFKA_KIND": "jvm",
            "TRUEBOARD_SESSION_TIMEOUT_S": "6",
            "TRUEBOARD_BATCH_ACTIONS": "200",
            "TRUEBOARD_CONSUMER_GROUP": f"tests-{url.rsplit('/', 1)[1]}",
        }
        self.started: list[tuple[subprocess.Popen[bytes], int]] = []
        self.program = ("-P", "-m", "stream_app")

    @property
    def group(self) -> str:
        return self._env["TRUEBOARD_CONSUMER_GROUP"]

    def start(self, **settings: str) -> subprocess.Popen[bytes]:
        port = free_port()
        env = {**self._env, "TRUEBOARD_METRICS_PORT": str(port), **settings}
        log = (self._logs / f"worker-{len(self.started)}.log").open("wb")
        with log:
            process = subprocess.Popen(
                [sys.executable, *self.program], env=env, stdout=log, stderr=subprocess.STDOUT
            )
        self.started.append((process, port))
        return process

    def metrics(self, number: int = -1) -> str:
        with_port = self.started[number][1]
        try:
            return httpx.get(f"http://127.0.0.1:{with_port}/metrics", timeout=2).text
        except httpx.HTTPError:
            return ""

    def stop_all(self) -> list[int]:
        for process, _ in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        codes = []
        for process, _ in self.started:
            try:
                codes.append(process.wait(timeout=15))
            except subprocess.TimeoutExpired:
                process.kill()
                codes.append(process.wait())
        return codes

    def log(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in sorted(self._logs.glob("worker-*.log")))


@pytest.fixture
def workers(database: str, redis_db_url: str, kafka: Any, tmp_path: Path) -> Iterator[Workers]:
    fresh_topics(kafka.bootstrap, partitions=PARTITIONS)
    definitions.apply(database, world.toml("1", soft=1000, hard=2000, sum_soft=10**9, sum_hard=10**9))
    made = Workers(database, redis_db_url, kafka.bootstrap, tmp_path)
    yield made
    made.stop_all()


@contextmanager
def producing(bootstrap: str) -> Iterator[Producer]:
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "acks": "all",
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "message.max.bytes": 1_048_500,
            "linger.ms": 5,
        }
    )
    yield producer
    assert producer.flush(20) == 0


def rows(url: str, query: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query, parameters).fetchall()


def eventually(
    true: Callable[[], Any], workers: Workers, *, within_s: float = 45, what: str = "it did not happen"
) -> None:
    deadline_s = time.monotonic() + within_s
    while not true():
        if time.monotonic() > deadline_s:
            pytest.fail(f"{what}\n{workers.log()}", pytrace=False)
        time.sleep(0.1)


def send_badge(producer: Producer, user_id: str, action_id: str = "a1") -> None:
    producer.produce(SUBMITTED, key=user_id, value=encoded(submitted(user_id, action_id, "badge")))


def commit(workers: Workers, offsets: dict[int, int]) -> None:
    """Say in the group's name that it has come so far."""
    claimed = Consumer({"bootstrap.servers": workers.bootstrap, "group.id": workers.group})
    claimed.commit(
        offsets=[TopicPartition(SUBMITTED, *place) for place in offsets.items()], asynchronous=False
    )
    claimed.close()


def ends(bootstrap: str) -> dict[int, int]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "tests-ends"})
    try:
        return {
            partition: consumer.get_watermark_offsets(TopicPartition(SUBMITTED, partition), timeout=10)[1]
            for partition in range(PARTITIONS)
        }
    finally:
        consumer.close()


def judged_all(workers: Workers) -> bool:
    return dict(rows(workers.url, "SELECT partition, next_offset FROM progress")) == ends(workers.bootstrap)


def all_agree(url: str) -> None:
    """Entries, deltas and digests are those of the ledger."""
    with psycopg.connect(url) as connection:
        counted = naive.entries(connection)
        assert naive.stored_entries(connection) == counted
        assert naive.folded_deltas(connection) == counted
        stored = connection.execute("SELECT revision, encode(digest, 'hex') FROM revisions ORDER BY 1")
        assert stored.fetchall() == naive.digest_chain(connection)


def test_workers_that_join_leave_and_are_killed_lose_and_double_nothing(workers, redis_db_url):
    expected: dict[tuple[str, str], int] = {}
    poison = 0

    def send(producer: Producer, numbers: range) -> None:
        nonlocal poison
        for number in numbers:
            user_id = f"u{number % 97:02}"
            action = submitted(user_id, f"a{number}", "points", points=number % 11 - 1, at_us=NOW_US + number)
            expected[user_id, action.action_id] = action.points
            for _ in range(1 + (number % 50 == 0)):
                producer.produce(SUBMITTED, key=user_id, value=encoded(action))
            if number % 200 == 0:
                poison += 1
                producer.produce(SUBMITTED, key=user_id, value=b"poison %d" % number)
            producer.poll(0)

    first = workers.start()
    with producing(workers.bootstrap) as producer:
        send(producer, range(2000))
        eventually(lambda: rows(workers.url, "SELECT 1 FROM ledger LIMIT 1"), workers)
        workers.start()
        send(producer, range(2000, 5000))
        producer.flush(20)
        # One that is still starting knows nothing of signals, nor has it anything to finish.
        eventually(lambda: workers.metrics(1), workers)
        first.kill()
        first.wait()
        send(producer, range(5000, 8000))
        workers.start()
        second = workers.started[1][0]
        time.sleep(2)
        send(producer, range(8000, 9000))
        second.send_signal(signal.SIGTERM)
        assert second.wait(timeout=20) == 0
    eventually(lambda: judged_all(workers), workers, what="not everything was judged")

    found = rows(workers.url, "SELECT user_id, action_id, points FROM ledger JOIN players USING (player)")
    assert len(found) == len(expected)
    assert {row[:2]: row[2] for row in found} == expected
    all_agree(workers.url)
    assert rows(workers.url, "SELECT count(*) FROM set_aside") == [(poison,)]
    last = rows(workers.url, "SELECT max(revision) FROM deltas")[0][0]
    with redis.Redis.from_url(redis_db_url) as client:
        z, _, meta = keys.board("main:all-time")
        eventually(lambda: client.hget(meta, "revision") == str(last).encode(), workers)
        with psycopg.connect(workers.url) as connection:
            truth = naive.ranked(naive.entries(connection))
        copied = [read_member(raw) for raw in client.zrange(z, 0, -1)]
    assert copied == [entry[1:] for entry in truth]

    reader = Reader(workers.bootstrap, *[topic.name for topic in topics.ALL[1:]])
    try:
        eventually(
            lambda: any(
                record.value["revision"] == last for record in reader.read()[topics.BOARD_CHANGED.name]
            ),
            workers,
        )
        records = reader.read()
    finally:
        reader.close()
    assert naive.top(
        [record.value for record in records[topics.JUDGED.name]],
        [(record.key, record.value) for record in records[topics.PLAYER.name]],
    ) == ledgers_top_of(workers.url)
    assert len({record.key for record in records[topics.DEAD.name]}) == poison
    assert workers.stop_all() == [-signal.SIGKILL, 0, 0]


def test_positions_are_the_ledgers_whatever_the_group_has_committed(workers):
    with producing(workers.bootstrap) as producer:
        for number in range(300):
            send_badge(producer, f"u{number}")
    commit(workers, ends(workers.bootstrap))

    process = workers.start()
    eventually(lambda: judged_all(workers), workers, what="what the group had committed was believed")
    assert rows(workers.url, "SELECT count(*) FROM ledger") == [(300,)]

    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=15) == 0
    commit(workers, dict.fromkeys(range(PARTITIONS), 0))
    with producing(workers.bootstrap) as producer:
        for number in range(300, 400):
            send_badge(producer, f"u{number}")
    workers.start()
    eventually(lambda: judged_all(workers), workers)

    assert rows(workers.url, "SELECT count(*) FROM ledger") == [(400,)]
    all_agree(workers.url)


def test_poison_is_set_aside_and_too_much_of_it_stops_its_partition_alone(workers):
    poison = {
        "no JSON": b"poison",
        "nothing": b"",
        "null": None,
        "not UTF-8": b'{"user_id":"\xff"}',
    }
    with producing(workers.bootstrap) as producer:
        for number, value in enumerate(poison.values()):
            producer.produce(SUBMITTED, partition=1, key=b"k%d" % number, value=value)
            action = submitted("ada", f"a{number}", "badge")
            producer.produce(
                SUBMITTED, partition=1, key="ada", value=encoded(action), headers=[("reply_to", None)]
            )
        producer.produce(SUBMITTED, partition=0, key="bob", value=encoded(submitted("bob", "b1", "badge")))
        producer.flush(10)
        for _ in range(8):
            producer.produce(SUBMITTED, partition=0, key="k", value=b"poison")
        producer.produce(SUBMITTED, partition=0, key="bob", value=encoded(submitted("bob", "b2", "badge")))
    workers.start(TRUEBOARD_DEAD_LETTERS_IN_A_ROW="5", TRUEBOARD_BATCH_ACTIONS="3")
    eventually(
        lambda: 'trueboard_partition_stopped{partition="0"} 1.0' in workers.metrics(),
        workers,
        what="the partition was not stopped",
    )
    eventually(
        lambda: (
            rows(workers.url, "SELECT next_offset FROM progress WHERE partition = 1") == [(2 * len(poison),)]
        ),
        workers,
        what="the other partition did not go on",
    )
    with producing(workers.bootstrap) as producer:
        producer.produce(SUBMITTED, partition=2, key="cyd", value=encoded(submitted("cyd", "c1", "badge")))
    eventually(
        lambda: rows(workers.url, "SELECT 1 FROM ledger WHERE action_id = 'c1'"),
        workers,
        what="a third partition did not go on",
    )

    assert 'trueboard_partition_stopped{partition="1"} 0.0' in workers.metrics()
    assert rows(workers.url, "SELECT 1 FROM ledger WHERE action_id = 'b2'") == []
    assert workers.started[-1][0].poll() is None
    reader = Reader(workers.bootstrap, topics.DEAD.name)
    try:
        letters = {record.key: record for record in reader.read()[topics.DEAD.name]}
    finally:
        reader.close()
    for number, value in enumerate(poison.values()):
        letter = letters[f"{SUBMITTED}-1-{2 * number}"]
        said = dict(letter.headers)
        assert letter.raw == value
        assert said["origin_topic"] == SUBMITTED.encode()
        assert (said["origin_partition"], said["origin_offset"]) == (b"1", b"%d" % (2 * number))
        assert said["reason"] in (b"json", b"shape", b"empty", b"too_large")
        assert said["detail"]


def test_a_record_of_a_megabyte_is_set_aside_like_any_other(workers):
    with producing(workers.bootstrap) as producer:
        producer.produce(SUBMITTED, partition=0, key="k", value=b"x" * 1_048_000)
        producer.produce(SUBMITTED, partition=1, key="ada", value=encoded(submitted("ada", "a1", "badge")))
    workers.start()
    eventually(lambda: judged_twice(workers), workers, within_s=15, what="the large record stops everything")

    assert rows(workers.url, "SELECT reason FROM set_aside") == [("too_large",)]
    assert rows(workers.url, "SELECT action_id FROM ledger") == [("a1",)]


def judged_twice(workers: Workers) -> bool:
    return rows(workers.url, "SELECT sum(next_offset) FROM progress") == [(2,)]


@pytest.mark.parametrize("held_still", [True, False], ids=["unseen", "seen missing"])
def test_a_topic_made_anew_under_a_running_worker_is_another_log(workers, held_still):
    """What the new log holds at offsets the old one had is judged, not taken for read."""
    with producing(workers.bootstrap) as producer:
        for number in range(80):
            send_badge(producer, f"u{number}", "before")
    worker = workers.start()
    eventually(lambda: judged_all(workers), workers)
    if held_still:
        # So that it never sees the topic missing, and has no reason to ask anew where it is.
        worker.send_signal(signal.SIGSTOP)
    try:
        fresh_topics(workers.bootstrap, partitions=PARTITIONS, only=(topics.SUBMITTED,))
        with producing(workers.bootstrap) as producer:
            for number in range(120):
                send_badge(producer, f"u{number}", "after")
    finally:
        worker.send_signal(signal.SIGCONT)
    eventually(
        lambda: rows(workers.url, "SELECT count(*) FROM ledger WHERE action_id = 'after'") == [(120,)],
        workers,
        within_s=25,
        what="records of the new log were passed over",
    )

    assert rows(workers.url, "SELECT count(*) FROM ledger") == [(200,)]
    assert rows(workers.url, "SELECT count(DISTINCT log) FROM progress") == [(1,)]
    all_agree(workers.url)
