"""The embedded servers: what they promise, and that what they hold outlives a restart."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import psycopg
import pytest
import redis
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.conftest import CACHE, Kafka
from trueboard.devstack import postgres
from trueboard.devstack.alone import running
from trueboard.devstack.kafka.jvm import JvmKafka
from trueboard.devstack.kafka.memory import MemoryKafka, MockCluster
from trueboard.devstack.ports import free_port
from trueboard.devstack.postgres import Postgres
from trueboard.devstack.valkey import Valkey


@pytest.mark.services
def test_postgres_keeps_its_data_over_a_restart(tmp_path: Path):
    port = free_port()
    with running(Postgres(tmp_path, port)) as _, psycopg.connect(Postgres(tmp_path, port).url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
        connection.commit()

    with running(Postgres(tmp_path, port)), psycopg.connect(Postgres(tmp_path, port).url) as connection:
        assert connection.execute("SELECT number FROM kept").fetchone() == (7,)


@pytest.mark.services
def test_postgres_is_durable_listens_on_loopback_and_asks_for_its_password(tmp_path: Path):
    server = Postgres(tmp_path, free_port())
    with running(server):
        with psycopg.connect(server.url) as connection:
            told = {
                name: connection.execute(f"SHOW {name}").fetchone()[0]
                for name in ("fsync", "synchronous_commit", "listen_addresses", "unix_socket_directories")
            }
            locale = connection.execute(
                "SELECT datlocale FROM pg_database WHERE datname = current_database()"
            ).fetchone()
        stranger = server.url.replace(server.url.split(":")[2].split("@")[0], "wrong")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(stranger)

    assert told == {
        "fsync": "on",
        "synchronous_commit": "on",
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
    }
    assert locale == ("C.UTF-8",)
    assert (tmp_path / "postgres.password").stat().st_mode & 0o777 == 0o600


@pytest.mark.services
@pytest.mark.skipif(os.geteuid() != 0, reason="only root lends its servers another account")
def test_root_runs_postgres_as_nobody_below_a_directory_closed_to_others(tmp_path: Path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    server = Postgres(closed, free_port())
    with running(server):
        with psycopg.connect(server.url) as connection:
            (pid,) = connection.execute("SELECT pg_backend_pid()").fetchone()
            owner = Path(f"/proc/{pid}").stat().st_uid

    assert owner not in (0, os.geteuid())
    assert closed.stat().st_mode & 0o777 == 0o700


@pytest.mark.services
@pytest.mark.skipif(os.geteuid() != 0, reason="only root lends its servers another account")
def test_root_runs_postgres_though_its_programs_lie_below_a_closed_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with tempfile.TemporaryDirectory() as open_to_all:
        Path(open_to_all).chmod(0o755)
        monkeypatch.setattr(postgres, "_COPIES", Path(open_to_all))
        monkeypatch.setattr(postgres, "closed_to_others", lambda path: path)
        earlier_umask = os.umask(0o077)
        try:
            server = Postgres(tmp_path, free_port())
            with running(server), psycopg.connect(server.url) as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)
        finally:
            os.umask(earlier_umask)


@pytest.mark.services
def test_a_lock_left_by_a_killed_postgres_does_not_keep_it_from_starting(tmp_path: Path):
    server = Postgres(tmp_path, free_port())
    with running(server):
        pass
    # the id of a process that is there, but is no Postgres
    (tmp_path / "postgres" / "data" / "postmaster.pid").write_text(f"{os.getpid()}\nelsewhere\n")

    with running(server), psycopg.connect(server.url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.services
def test_valkey_keeps_its_data_and_evicts_nothing(tmp_path: Path):
    server = Valkey(tmp_path, free_port())
    with running(server), redis.Redis.from_url(server.url) as client:
        client.set("kept", "7")
        policy = client.config_get("maxmemory-policy")

    with running(server), redis.Redis.from_url(server.url, decode_responses=True) as client:
        assert client.get("kept") == "7"
    assert policy == {"maxmemory-policy": "noeviction"}


@pytest.mark.services
def test_valkey_asks_for_its_password(tmp_path: Path):
    server = Valkey(tmp_path, free_port())
    with running(server), redis.Redis.from_url("redis://" + server.url.split("@")[1]) as stranger:
        with pytest.raises(redis.AuthenticationError):
            stranger.ping()


@pytest.mark.services
def test_the_fixtures_give_a_migrated_database_and_an_empty_redis(database: str, redis_db_url: str):
    with psycopg.connect(database) as connection, redis.Redis.from_url(redis_db_url) as client:
        tables = {name for (name,) in connection.execute("SELECT tablename FROM pg_tables")}

        assert {"ledger", "revisions", "entries"} <= tables
        assert client.dbsize() == 0


@pytest.mark.kafka
def test_kafka_keeps_its_records_over_a_restart(tmp_path: Path):
    ports = free_port(), free_port()
    server = JvmKafka(tmp_path, CACHE, port=ports[0], controller_port=ports[1])
    with running(server):
        _make_topic(server.bootstrap, "kept", partitions=3)
        _send(server.bootstrap, "kept", b"seven")

    with running(server):
        assert _first_record(server.bootstrap, "kept") == b"seven"


@pytest.mark.kafka
def test_kafka_makes_no_topic_by_itself_and_takes_large_records(kafka: Kafka):
    large = b"x" * (8 * 1024 * 1024)
    _make_topic(kafka.bootstrap, "large", partitions=1, config={"max.message.bytes": str(9 * 1024 * 1024)})
    _send(kafka.bootstrap, "large", large)
    metadata = AdminClient({"bootstrap.servers": kafka.bootstrap}).list_topics("never-made", timeout=10)

    assert _first_record(kafka.bootstrap, "large") == large
    assert metadata.topics["never-made"].error is not None


def test_the_memory_broker_has_the_topics_it_was_asked_for(memory_kafka: MockCluster):
    memory_kafka.make_topic("wanted", 12)
    topics = AdminClient({"bootstrap.servers": memory_kafka.bootstrap}).list_topics(timeout=10).topics

    assert len(topics["wanted"].partitions) == 12


def test_a_memory_broker_in_its_own_process_serves_its_topics(tmp_path: Path):
    server = MemoryKafka(tmp_path, topics=["wanted"], partitions=5)
    with running(server):
        _send(server.bootstrap, "wanted", b"seven")
        topics = AdminClient({"bootstrap.servers": server.bootstrap}).list_topics(timeout=10).topics
        record = _first_record(server.bootstrap, "wanted")

    assert len(topics["wanted"].partitions) == 5
    assert record == b"seven"


def test_a_memory_broker_can_answer_with_errors(memory_kafka: MockCluster):
    memory_kafka.make_topic("flaky", 1)
    produce, not_leader = 0, 6
    memory_kafka.fail_next(produce, not_leader, times=2)
    _send(memory_kafka.bootstrap, "flaky", b"seven")

    assert _first_record(memory_kafka.bootstrap, "flaky") == b"seven"


def _make_topic(bootstrap: str, name: str, *, partitions: int, config: dict[str, str] | None = None) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    made = admin.create_topics([NewTopic(name, partitions, 1, config=config or {})])
    made[name].result(timeout=15)


def _send(bootstrap: str, topic: str, value: bytes) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "message.max.bytes": 9 * 1024 * 1024})
    producer.produce(topic, value, partition=0)
    assert producer.flush(15) == 0


def _first_record(bootstrap: str, topic: str) -> bytes:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "reader"})
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        message = consumer.poll(15)
        assert message is not None
        assert message.error() is None
        return message.value()
    finally:
        consumer.close()
