"""Logs that lost records, on a real Kafka: the partition stops alone, and goes on when it is told to."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from storage.postgres import definitions
from tests.conftest import CACHE
from tests.storage.test_publishing import fresh_topics
from tests.stream_app import world
from tests.stream_app.test_faults_on_kafka import put
from tests.stream_app.test_on_kafka import (
    PARTITIONS,
    SUBMITTED,
    Workers,
    all_agree,
    ends,
    eventually,
    judged_all,
    rows,
    workers,
)
from trueboard.devstack.alone import running
from trueboard.devstack.kafka.jvm import JvmKafka
from trueboard.devstack.ports import free_port
from trueboard.resume import CannotResume, command, resume
from trueboard.verification import progress
from trueboard.verification.report import Check

pytestmark = [pytest.mark.services, pytest.mark.kafka]

__all__ = ["workers"]


def stopped(workers: Workers, partition: int) -> bool:
    return f'trueboard_partition_stopped{{partition="{partition}"}} 1.0' in workers.metrics()


def judged(workers: Workers, partition: int) -> set[str]:
    return {
        row[0]
        for row in rows(workers.url, "SELECT action_id FROM ledger WHERE kafka_partition = %s", (partition,))
    }


def numbered(prefix: str, numbers: range) -> list[str]:
    return [f"{prefix}{number}" for number in numbers]


def verified(workers: Workers) -> Check:
    found = Check("progress")
    log = progress.Log(workers.bootstrap, kind="jvm")
    try:
        with psycopg.connect(workers.url) as connection:
            progress.check(connection, log, found)
    finally:
        log.close()
    return found


def test_records_that_were_never_read_and_are_gone_stop_their_partition_until_it_is_told_to_go_on(
    workers: Workers, tmp_path: Path
):
    put(workers, 0, *numbered("a", range(5)))
    first = workers.start()
    eventually(lambda: judged_all(workers), workers)
    first.terminate()
    assert first.wait(timeout=20) == 0
    put(workers, 0, *numbered("a", range(5, 12)))
    gone = TopicPartition(SUBMITTED, 0, 8)
    admin = AdminClient({"bootstrap.servers": workers.bootstrap})
    admin.delete_records([gone])[gone].result(30)
    put(workers, 1, *numbered("b", range(5)))
    worker = workers.start()
    eventually(lambda: stopped(workers, 0) and len(judged(workers, 1)) == 5, workers)

    def resumed(**options: object) -> object:
        return resume(workers.url, workers.bootstrap, "jvm", 0, **options)  # type: ignore[arg-type]

    with pytest.raises(CannotResume, match="offsets 5 to 7 are gone"):
        resumed()
    with pytest.raises(CannotResume, match="offset 7 is not in the log: the log holds offsets 8 to 11"):
        resumed(from_offset=7)
    with pytest.raises(CannotResume, match="2 records that the log still has would never be judged"):
        resumed(from_offset=10)
    assert rows(workers.url, "SELECT count(*) FROM resumptions") == [(0,)]
    done = resumed(skip_lost=True)
    eventually(lambda: judged_all(workers), workers, what="the worker did not take it up again")

    assert (done.was, done.from_offset, done.lost) == (5, 8, 3)
    assert judged(workers, 0) == set(numbered("a", range(5))) | set(numbered("a", range(8, 12)))
    assert rows(workers.url, "SELECT partition, was, from_offset FROM resumptions") == [(0, 5, 8)]
    assert not stopped(workers, 0)
    assert worker.poll() is None
    assert verified(workers).first is None
    with pytest.raises(CannotResume, match="has lost nothing"):
        resumed(skip_lost=True)
    said = CliRunner().invoke(
        command,
        ["0", "--from-offset", "8", "--json", "--data", str(tmp_path / "nothing")],
        env={
            "TRUEBOARD_POSTGRES_URL": workers.url,
            "TRUEBOARD_KAFKA": workers.bootstrap,
            "TRUEBOARD_KAFKA_KIND": "jvm",
        },
        catch_exceptions=False,
    )
    assert json.loads(said.stdout) == {"partition": 0, "was": 12, "from_offset": 8, "lost": 0}
    eventually(lambda: judged_all(workers), workers)
    assert len(judged(workers, 0)) == 9
    assert verified(workers).first is None
    all_agree(workers.url)


@pytest.fixture
def broker(tmp_path: Path) -> JvmKafka:
    port = free_port()
    controller_port = free_port(taken=frozenset({port}))
    return JvmKafka(tmp_path, CACHE, port=port, controller_port=controller_port, short_lived=True)


@pytest.mark.parametrize("refill", [2, 12], ids=["shorter than it was", "longer than it was"])
def test_a_log_cut_at_its_end_under_a_running_worker_stops_its_partition(
    database: str, redis_db_url: str, broker: JvmKafka, tmp_path: Path, refill: int
):
    definitions.apply(database, world.toml("1", soft=1000, hard=2000, sum_soft=10**9, sum_hard=10**9))
    workers = Workers(database, redis_db_url, broker.bootstrap, tmp_path)
    try:
        with running(broker):
            fresh_topics(broker.bootstrap, partitions=PARTITIONS)
            for number in range(10):
                put(workers, 0, f"a{number}")
            workers.start()
            eventually(lambda: judged_all(workers), workers)
        cut(tmp_path / "kafka" / "topics", partition=0, share=0.65)
        with running(broker):
            eventually(lambda: 3 < end_of(workers) < 9, workers, what="the log was not cut")
            put(workers, 0, *numbered("new", range(refill)))
            eventually(lambda: stopped(workers, 0), workers, within_s=90, what="the cut was not seen")
            put(workers, 1, "b1")
            eventually(lambda: judged(workers, 1) == {"b1"}, workers, within_s=90)

            assert workers.started[-1][0].poll() is None
            workers.stop_all()
            workers.start()
            eventually(lambda: stopped(workers, 0), workers, what="a restart went over it in silence")
            with pytest.raises(CannotResume):
                resume(database, broker.bootstrap, "jvm", 0)
            assert resume(database, broker.bootstrap, "jvm", 0, skip_lost=True).lost == 0
            eventually(lambda: judged_all(workers), workers)
            assert judged(workers, 0) == set(numbered("a", range(10))) | set(numbered("new", range(refill)))
            assert verified(workers).first is None
            all_agree(database)
            workers.stop_all()
    finally:
        workers.stop_all()


def test_a_worker_with_lag_whose_kafka_is_away_waits_for_it(
    database: str, redis_db_url: str, broker: JvmKafka, tmp_path: Path
):
    definitions.apply(database, world.toml("1", soft=1000, hard=2000, sum_soft=10**9, sum_hard=10**9))
    workers = Workers(database, redis_db_url, broker.bootstrap, tmp_path)
    workers.program = ("-m", "tests.stream_app.faulty")
    try:
        with running(broker):
            fresh_topics(broker.bootstrap, partitions=PARTITIONS)
            put(workers, 0, *numbered("slow", range(12)))
            worker = workers.start(TRUEBOARD_STUCK_S="5", TRUEBOARD_BATCH_ACTIONS="1")
            eventually(lambda: judged(workers, 0), workers)
        # Each look that finds nobody takes 3 s at least, so several are more than what idleness may be.
        eventually(
            lambda: worker.poll() is not None or waits(tmp_path) >= 5,
            workers,
            within_s=120,
        )

        assert worker.poll() is None
        with running(broker):
            put(workers, 0, "a1")
            eventually(lambda: "a1" in judged(workers, 0), workers, within_s=120)
            assert len(judged(workers, 0)) == 13
            assert worker.poll() is None
            workers.stop_all()
    finally:
        workers.stop_all()


def waits(logs: Path) -> int:
    """How often a worker has looked for its log and found nobody."""
    return sum(path.read_text().count('"look_waits"') for path in logs.glob("worker-*.log"))


def end_of(workers: Workers) -> int:
    """Where partition 0 ends, 0 while nobody tells."""
    try:
        return ends(workers.bootstrap)[0]
    except KafkaException:
        return 0


def cut(logs: Path, *, partition: int, share: float) -> None:
    """Leave the front of a partition's log, as after an election of a replica that lacked the rest."""
    directory = logs / f"{SUBMITTED}-{partition}"
    (segment,) = directory.glob("*.log")
    with segment.open("r+b") as file:
        file.truncate(int(segment.stat().st_size * share))
    for index in (*directory.glob("*.index"), *directory.glob("*.timeindex"), *directory.glob("*.snapshot")):
        index.unlink()
    (logs / ".kafka_cleanshutdown").unlink(missing_ok=True)
