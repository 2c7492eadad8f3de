"""Workers as processes on a real Kafka, and records that end them: none holds its neighbours."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable

import pytest

from core import topics
from tests.storage.reading_topics import Reader
from tests.stream_app.test_on_kafka import (
    SUBMITTED,
    Workers,
    all_agree,
    eventually,
    judged_all,
    producing,
    rows,
    send_badge,
    workers,
)
from tests.stream_app.world import encoded, submitted

pytestmark = [pytest.mark.services, pytest.mark.kafka]

__all__ = ["workers"]


@pytest.fixture
def faulty(workers: Workers) -> Workers:
    workers.program = ("-m", "tests.stream_app.faulty")
    return workers


def put(workers: Workers, partition: int, *action_ids: str) -> None:
    with producing(workers.bootstrap) as producer:
        for action_id in action_ids:
            action = submitted("ada", action_id, "badge")
            producer.produce(SUBMITTED, partition=partition, key="ada", value=encoded(action))


def dead_letters(workers: Workers) -> dict[str, dict[str, bytes]]:
    reader = Reader(workers.bootstrap, topics.DEAD.name)
    try:
        return {record.key: dict(record.headers) for record in reader.read()[topics.DEAD.name]}
    finally:
        reader.close()


def kept_running(workers: Workers, true: Callable[[], bool], **settings: str) -> Callable[[], bool]:
    """`true`, asked of workers that are started again whenever they end."""

    def asked() -> bool:
        if workers.started[-1][0].poll() is not None:
            workers.start(**settings)
        return true()

    return asked


def test_a_record_that_raises_is_set_aside_and_everything_else_is_judged(faulty):
    numbers = [f"a{number}" for number in range(40)]
    put(faulty, 0, *numbers[:17], "raises", *numbers[17:])
    put(faulty, 1, *[f"b{number}" for number in range(40)])
    worker = faulty.start()
    eventually(lambda: judged_all(faulty), faulty)

    assert worker.poll() is None
    assert rows(faulty.url, "SELECT count(*) FROM ledger") == [(80,)]
    assert rows(faulty.url, "SELECT partition, record_offset, reason FROM set_aside") == [(0, 17, "defect")]
    letter = dead_letters(faulty)[f"{SUBMITTED}-0-17"]
    assert (letter["reason"], letter["detail"]) == (b"defect", b"ZeroDivisionError: at raises")
    metrics = faulty.metrics()
    assert 'trueboard_dead_letters_total{reason="defect"} 1.0' in metrics
    assert float(re.search(r"^trueboard_defects_total (\S+)", metrics, re.M)[1]) > 2
    eventually(lambda: not rows(faulty.url, "SELECT 1 FROM attempts WHERE tries > 0"), faulty)
    all_agree(faulty.url)


def test_a_record_that_ends_every_process_is_set_aside_after_a_few(faulty):
    put(faulty, 0, *[f"a{number}" for number in range(9)], "ends", *[f"a{number}" for number in range(9, 20)])
    faulty.start()
    eventually(kept_running(faulty, lambda: judged_all(faulty)), faulty, within_s=240)

    assert rows(faulty.url, "SELECT count(*) FROM ledger") == [(20,)]
    assert rows(faulty.url, "SELECT partition, record_offset, reason FROM set_aside") == [(0, 9, "defect")]
    assert f"{SUBMITTED}-0-9" in dead_letters(faulty)
    assert len(faulty.started) <= 6
    all_agree(faulty.url)


@pytest.mark.parametrize("how", ["stays", "holds"])
def test_a_worker_that_a_record_keeps_ends_itself_and_the_try_is_counted(faulty, how):
    put(faulty, 2, "a1", how)
    worker = faulty.start(TRUEBOARD_STUCK_S="3")

    # By its own exit code; or, rarely, by the stacks it writes down while they change (`faulthandler`).
    assert worker.wait(timeout=90) in (1, -signal.SIGSEGV)
    assert rows(faulty.url, "SELECT partition, record_offset, tries FROM attempts") == [(2, 0, 1)]


def test_a_worker_with_a_backlog_stops_in_time_and_between_two_groups(workers):
    with producing(workers.bootstrap) as producer:
        for number in range(20_000):
            send_badge(producer, f"u{number % 500}", f"a{number}")
            if number % 1000 == 0:
                producer.flush(20)
    worker = workers.start()
    eventually(lambda: rows(workers.url, "SELECT 1 FROM ledger LIMIT 1"), workers)
    worker.send_signal(signal.SIGTERM)
    asked_s = time.monotonic()

    assert worker.wait(timeout=60) == 0
    print(f"stopped after {time.monotonic() - asked_s:.1f} s")
    assert rows(workers.url, "SELECT count(*) < 20000 FROM ledger") == [(True,)]
    assert rows(workers.url, "SELECT sum(tries) FROM attempts") in ([(None,)], [(0,)])
    all_agree(workers.url)
