from __future__ import annotations

import asyncio
import gc
import json
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition

from core.errors import Unavailable
from core.topics import Topic
from service import metrics
from storage.kafka import delivery as module
from storage.kafka.delivery import Delivery
from storage.kafka.topics import declare
from trueboard.devstack.kafka import memory
from trueboard.devstack.kafka.memory import PRODUCE

TOPIC = "t"
ANSWERED_WITHIN_S = 4.5
UNKNOWN_TOPIC, NOT_LEADER, TIMED_OUT, MESSAGE_TOO_LARGE = 3, 6, 7, 10
OUT_OF_ORDER, DUPLICATE, INVALID_EPOCH, UNKNOWN_PRODUCER = 45, 46, 47, 59


@pytest.fixture
async def delivery(memory_kafka):
    memory_kafka.make_topic(TOPIC, 4)
    sender = Delivery(memory_kafka.bootstrap, client_id="test")
    await sender.start()
    yield sender
    await sender.stop(2.0)


def read_all(bootstrap: str, partitions: int, expected: int, topic: str = TOPIC) -> list:
    """Every record of the topic, or what came within ten seconds."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "r", "auto.offset.reset": "earliest"})
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(partitions)])
    read, until_s = [], time.monotonic() + 10
    while len(read) < expected and time.monotonic() < until_s:
        read += [message for message in consumer.consume(500, 0.2) if not message.error()]
    read += [message for message in consumer.consume(500, 0.3) if not message.error()]
    consumer.close()
    return read


async def test_once_started_no_record_waits_and_nothing_was_written(memory_kafka):
    memory_kafka.make_topic(TOPIC, 4)
    sender = Delivery(memory_kafka.bootstrap, client_id="test")
    assert not sender.ready
    await sender.start()
    assert sender.ready

    began_s = time.monotonic()
    offset = await sender.send(TOPIC, b"k", b"v")
    took_s = time.monotonic() - began_s
    await sender.stop()

    # Zero is the first offset there is, and half a second what waiting for a producer's id costs.
    assert offset == 0
    assert took_s < 0.3


async def test_a_record_arrives_with_its_key_value_and_headers(delivery, memory_kafka):
    headers = [("ce_id", b"1"), ("traceparent", b"00")]
    first = await delivery.send(TOPIC, b"u1", b"v1", headers)
    second = await delivery.send(TOPIC, b"u1", None)

    one, two = await asyncio.to_thread(read_all, memory_kafka.bootstrap, 4, 2)
    assert (one.key(), one.value(), one.headers(), one.offset()) == (b"u1", b"v1", headers, first)
    assert (two.key(), two.value(), two.headers(), two.offset()) == (b"u1", None, None, second)
    assert delivery.acknowledged == {(TOPIC, one.partition()): second}


async def test_many_records_are_one_future_with_an_outcome_each(delivery, memory_kafka):
    items = [(b"u%d" % n, b"v%d" % n, [("n", b"%d" % n)]) for n in range(500)]

    outcomes = await delivery.send_many(TOPIC, items)

    assert outcomes == [None] * 500
    read = await asyncio.to_thread(read_all, memory_kafka.bootstrap, 4, 500)
    assert sorted(message.value() for message in read) == sorted(value for _, value, _ in items)
    assert await delivery.send_many(TOPIC, []) == []


async def test_a_burst_wakes_the_loop_seldom(delivery):
    woken = []
    taken = module._Line.pass_on

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Line, "pass_on", lambda line: woken.append(1) or taken(line))
        await asyncio.gather(*(delivery.send(TOPIC, b"u%d" % n, b"v") for n in range(2000)))

    assert 1 <= len(woken) < 500


@pytest.mark.parametrize("keys", [[b"u%d" % n for n in range(40)]])
async def test_keys_go_where_every_other_client_sends_them(delivery, memory_kafka, keys):
    def murmur2(key: bytes) -> int:
        """The hash of Kafka's own clients, by its definition, over whole 4-byte words and the rest."""
        m, mask = 0x5BD1E995, 0xFFFFFFFF
        h = 0x9747B28C ^ len(key)
        for at in range(0, len(key) & ~3, 4):
            k = int.from_bytes(key[at : at + 4], "little") * m & mask
            h = (h * m ^ (k ^ k >> 24) * m) & mask
        rest = key[len(key) & ~3 :]
        if rest:
            h = (h ^ int.from_bytes(rest, "little")) * m & mask
        h = (h ^ h >> 13) * m & mask
        return h ^ h >> 15

    await delivery.send_many(TOPIC, [(key, b"v", ()) for key in keys])

    read = await asyncio.to_thread(read_all, memory_kafka.bootstrap, 4, len(keys))
    assert len(read) == len(keys)
    assert all(message.partition() == (murmur2(message.key()) & 0x7FFFFFFF) % 4 for message in read)


async def test_a_passing_error_of_the_broker_is_not_the_callers(delivery, memory_kafka):
    memory_kafka.fail_next(PRODUCE, NOT_LEADER, times=2)

    offset = await delivery.send(TOPIC, b"k", b"v")

    assert offset >= 0
    assert len(await asyncio.to_thread(read_all, memory_kafka.bootstrap, 4, 1)) == 1


async def test_a_refused_record_is_unavailable_and_the_next_one_is_not(delivery, memory_kafka):
    memory_kafka.fail_next(PRODUCE, MESSAGE_TOO_LARGE)

    with pytest.raises(Unavailable) as refusal:
        await delivery.send(TOPIC, b"k", b"v")
    assert refusal.value.code == "queue_unavailable"
    assert await delivery.send(TOPIC, b"k", b"v") >= 0


async def test_of_many_records_only_the_refused_ones_fail(memory_kafka):
    memory_kafka.make_topic(TOPIC, 4)
    sender = Delivery(memory_kafka.bootstrap, client_id="test", extra={"message.max.bytes": 2000})
    await sender.start()

    outcomes = await sender.send_many(TOPIC, [(b"a", b"v", ()), (b"b", b"v" * 3000, ()), (b"c", b"v", ())])
    await sender.stop()

    assert [type(outcome) for outcome in outcomes] == [type(None), Unavailable, type(None)]


async def test_a_broker_that_went_away_is_answered_in_time_and_used_again_when_back(delivery, memory_kafka):
    memory_kafka.take_down(1)
    began_s = time.monotonic()
    one = delivery.send(TOPIC, b"k", b"v")
    many = delivery.send_many(TOPIC, [(b"k%d" % n, b"v", ()) for n in range(20)])
    with pytest.raises(Unavailable):
        await one
    outcomes = await many
    took_s = time.monotonic() - began_s
    memory_kafka.bring_up(1)
    again = await delivery.send_many(TOPIC, [(b"k%d" % n, b"v", ()) for n in range(20)])

    assert took_s < ANSWERED_WITHIN_S
    assert {type(outcome) for outcome in outcomes} == {Unavailable}
    assert again == [None] * 20


async def test_a_broker_that_comes_back_in_time_loses_and_doubles_nothing(delivery, memory_kafka):
    memory_kafka.take_down(1)
    under_way = delivery.send_many(TOPIC, [(b"k%d" % n, b"%d" % n, ()) for n in range(50)])
    await asyncio.sleep(0.8)
    memory_kafka.bring_up(1)

    assert await under_way == [None] * 50
    read = await asyncio.to_thread(read_all, memory_kafka.bootstrap, 4, 50)
    assert sorted(int(message.value()) for message in read) == list(range(50))


@contextmanager
def broker_process(tmp_path) -> Iterator[tuple[subprocess.Popen, str]]:
    address = tmp_path / "kafka.json"
    process = subprocess.Popen([sys.executable, "-m", memory.__name__, str(address), "4", TOPIC])
    try:
        until_s = time.monotonic() + 20
        while not address.exists():
            assert process.poll() is None
            assert time.monotonic() < until_s
            time.sleep(0.02)
        yield process, json.loads(address.read_text())["bootstrap"]
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


async def test_a_broker_that_falls_silent_is_answered_in_time(tmp_path):
    with broker_process(tmp_path) as (broker, bootstrap):
        sender = Delivery(bootstrap, client_id="test")
        await sender.start()
        await sender.send(TOPIC, b"k", b"before")
        stand_still(broker)
        began_s = time.monotonic()
        one = sender.send(TOPIC, b"k", b"during")
        many = sender.send_many(TOPIC, [(b"k%d" % n, b"v", ()) for n in range(100)])
        with pytest.raises(Unavailable):
            await one
        outcomes = await many
        took_s = time.monotonic() - began_s
        broker.send_signal(signal.SIGCONT)
        after = await eventually_delivered(sender)
        await sender.stop()

    assert took_s < ANSWERED_WITHIN_S
    assert {type(outcome) for outcome in outcomes} == {Unavailable}
    assert after >= 1


def stand_still(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGSTOP)
    threads = Path(f"/proc/{process.pid}/task")
    while any(" T " not in (thread / "stat").read_text() for thread in threads.iterdir()):
        time.sleep(0.01)


async def eventually_delivered(sender: Delivery) -> int:
    for _ in range(5):
        try:
            return await sender.send(TOPIC, b"k", b"after")
        except Unavailable:
            await asyncio.sleep(0.2)
    pytest.fail("nothing was delivered any more")


PROGRAM = """
import asyncio, sys, time
from storage.kafka.delivery import Delivery

async def main():
    sender = Delivery(sys.argv[1], client_id="paused", timeout_ms=1000)
    await sender.start()
    print("started", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    answer = sender.send(sys.argv[2], b"k", b"v")
    print("sent", flush=True)
    await asyncio.wait([answer])
    print(type(answer.exception()).__name__, flush=True)
    await sender.stop(0.1)

asyncio.run(main())
"""


async def test_a_process_that_was_paused_answers_as_soon_as_it_goes_on(tmp_path):
    with broker_process(tmp_path) as (broker, bootstrap):
        paused = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM, bootstrap, TOPIC),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=Path(module.__file__).parents[2],
        )
        assert await paused.stdout.readline() == b"started\n"
        broker.send_signal(signal.SIGSTOP)
        paused.stdin.write(b"go\n")
        assert await paused.stdout.readline() == b"sent\n"
        paused.send_signal(signal.SIGSTOP)
        await asyncio.sleep(1.5)
        paused.send_signal(signal.SIGCONT)
        went_on_s = time.monotonic()
        answer = await paused.stdout.readline()
        took_s = time.monotonic() - went_on_s
        paused.kill()
        await paused.communicate()

    assert answer == b"Unavailable\n"
    assert took_s < 0.5


@pytest.mark.kafka
async def test_on_real_kafka_all_arrive_once_and_in_order(kafka):
    topic = f"delivery-{time.time_ns()}"
    one = [Topic(topic, "user id", {})]
    await asyncio.to_thread(
        lambda: declare(kafka.bootstrap, kind=kafka.kind, partitions=4, replication=1, wanted=one)
    )
    sender = Delivery(kafka.bootstrap, client_id="test")
    await sender.start()
    requests = [
        sender.send_many(topic, [(b"u%d" % n, b"%d" % at, ()) for n in range(100)]) for at in range(50)
    ]
    outcomes = await asyncio.gather(*requests)
    await sender.stop()

    read = await asyncio.to_thread(read_all, kafka.bootstrap, 4, 5000, topic)
    assert outcomes == [[None] * 100] * 50
    by_user: dict[bytes, list[int]] = {}
    for message in read:
        by_user.setdefault(message.key(), []).append(int(message.value()))
    assert by_user == {b"u%d" % n: list(range(50)) for n in range(100)}
    assert sum(offset + 1 for offset in sender.acknowledged.values()) == 5000


async def test_a_network_that_swallows_everything_is_answered_in_time():
    with socket.create_server(("127.0.0.1", 0)) as hole:
        sender = Delivery(f"127.0.0.1:{hole.getsockname()[1]}", client_id="test")
        with pytest.raises(Unavailable):
            await sender.start(timeout_s=0.5)
        began_s = time.monotonic()
        with pytest.raises(Unavailable):
            await sender.send(TOPIC, b"k", b"v")
        took_s = time.monotonic() - began_s
        stopping_s = time.monotonic()
        await sender.stop(0.5)

    assert took_s < ANSWERED_WITHIN_S
    assert time.monotonic() - stopping_s < 2
    assert not sender.ready


async def test_it_starts_again_once_the_broker_is_there(memory_kafka):
    memory_kafka.make_topic(TOPIC, 4)
    memory_kafka.take_down(1)
    sender = Delivery(memory_kafka.bootstrap, client_id="test")
    with pytest.raises(Unavailable):
        await sender.start(timeout_s=0.3)
    memory_kafka.bring_up(1)
    await sender.start(timeout_s=10)

    assert await sender.send(TOPIC, b"k", b"v") == 0
    await sender.stop()


async def test_the_answer_does_not_depend_on_the_library(memory_kafka, monkeypatch):
    """A producer that never reports: the loop's own timer answers."""
    memory_kafka.make_topic(TOPIC, 4)
    sender = Delivery(memory_kafka.bootstrap, client_id="test", timeout_ms=600)
    await sender.start()
    monkeypatch.setattr(module._Line, "pass_to_loop", lambda line, report: None)

    began_s = time.monotonic()
    one, many = sender.send(TOPIC, b"k", b"v"), sender.send_many(TOPIC, [(b"k", b"v", ())] * 3)
    with pytest.raises(Unavailable):
        await one
    outcomes = await many
    took_s = time.monotonic() - began_s
    await sender.stop()

    assert 0.6 <= took_s < 0.9
    assert {type(outcome) for outcome in outcomes} == {Unavailable}


async def test_a_full_queue_refuses_at_once(memory_kafka):
    memory_kafka.make_topic(TOPIC, 4)
    sender = Delivery(memory_kafka.bootstrap, client_id="test", queue_records=10, timeout_ms=1500)
    await sender.start()
    memory_kafka.take_down(1)

    began_s = time.monotonic()
    queued = [sender.send(TOPIC, b"k", b"v") for _ in range(10)]
    with pytest.raises(Unavailable, match="Too many"):
        await sender.send(TOPIC, b"k", b"v")
    took_s = time.monotonic() - began_s
    mixed = await sender.send_many(TOPIC, [(b"k", b"v", ())] * 2)
    await asyncio.gather(*queued, return_exceptions=True)
    await sender.stop(0.5)

    assert took_s < 0.3
    assert [type(outcome) for outcome in mixed] == [Unavailable] * 2


async def test_a_producer_that_failed_for_good_is_replaced_once(delivery, memory_kafka, monkeypatch):
    monkeypatch.setattr(module, "_REPLACE_EVERY_S", 0.02)
    replaced = metrics.PRODUCERS_REPLACED._value.get()
    under_way = delivery.send_many(TOPIC, [(b"k%d" % n, b"%d" % n, ()) for n in range(50)])
    failed = delivery._line
    failed._on_error(KafkaError(KafkaError._FATAL, "epoch is fenced", fatal=True))
    failed._on_error(KafkaError(KafkaError._FATAL, "epoch is fenced", fatal=True))
    outcomes = await under_way
    await asyncio.sleep(0.05)
    after = await delivery.send_many(TOPIC, [(b"k%d" % n, b"%d" % n, ()) for n in range(50, 100)])

    # What the old one had in hand is delivered by it, in the background.
    assert outcomes == after == [None] * 50
    assert delivery._line is not failed
    assert metrics.PRODUCERS_REPLACED._value.get() == replaced + 1
    read = await asyncio.to_thread(read_all, memory_kafka.bootstrap, 4, 100)
    assert sorted(int(message.value()) for message in read) == list(range(100))


async def test_a_producer_that_confirms_nothing_any_more_is_replaced(memory_kafka, monkeypatch):
    """As librdkafka's does where it has lost every broker for good; no error is fatal to it."""
    monkeypatch.setattr(module, "_STUCK_S", 0.5)
    memory_kafka.make_topic(TOPIC, 4)
    sender = Delivery(memory_kafka.bootstrap, client_id="test", timeout_ms=300)
    await sender.start()
    replaced = metrics.PRODUCERS_REPLACED._value.get()
    stuck = sender._line
    asked: list[bytes] = []
    stuck.produce = lambda topic, value, *record, **more: asked.append(value)
    answers, until_s = [], time.monotonic() + 10
    while not (answers and answers[-1] is None) and time.monotonic() < until_s:
        answers += await sender.send_many(TOPIC, [(b"k", b"v", ())])
    await sender.stop()

    assert answers[-1] is None
    # One refusal is no reason: it takes some for as long as _STUCK_S.
    assert len(answers) > 2
    # Those of a new one that is not yet quick enough are not its own.
    assert len(asked) + 1 < 8
    assert metrics.PRODUCERS_REPLACED._value.get() == replaced


async def test_a_producer_that_was_replaced_is_gone(memory_kafka, monkeypatch):
    """Without looking for circles: while Kafka is away one is replaced every few seconds."""
    monkeypatch.setattr(module, "_DRAIN_S", 0.2)
    memory_kafka.make_topic(TOPIC, 4)
    sender = Delivery(memory_kafka.bootstrap, client_id="test")
    await sender.start()
    await sender.send(TOPIC, b"k", b"v")
    gc.collect()
    gc.disable()
    try:
        gone = weakref.ref(sender._line)
        sender._replace(sender._line)
        until_s = time.monotonic() + 20
        while gone() is not None and time.monotonic() < until_s:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        assert gone() is None
    finally:
        gc.enable()
        await sender.stop()


async def test_a_record_out_of_order_costs_one_answer_and_a_producer(delivery, memory_kafka):
    """The broker's own word for it, not a simulated one: the library then fails for good."""
    await delivery.send(TOPIC, b"k", b"v")
    failed = delivery._line
    memory_kafka.fail_next(PRODUCE, OUT_OF_ORDER)
    began_s = time.monotonic()
    outcomes = await delivery.send_many(TOPIC, [(b"k", b"v", ())] * 3)
    took_s = time.monotonic() - began_s
    await asyncio.sleep(0.2)

    assert {type(outcome) for outcome in outcomes} == {Unavailable}
    assert took_s < 1
    assert delivery._line is not failed
    assert await delivery.send(TOPIC, b"k", b"v") >= 0


@pytest.mark.parametrize("code", [INVALID_EPOCH, UNKNOWN_PRODUCER])
async def test_a_lost_producer_id_is_fetched_again(delivery, memory_kafka, code):
    await delivery.send(TOPIC, b"k", b"v")
    memory_kafka.fail_next(PRODUCE, code)
    await delivery.send_many(TOPIC, [(b"k", b"v", ())] * 3)

    assert await delivery.send(TOPIC, b"k", b"v") >= 1


async def test_a_record_of_which_no_offset_is_said_is_not_confirmed(delivery, memory_kafka):
    memory_kafka.fail_next(PRODUCE, DUPLICATE)

    with pytest.raises(Unavailable):
        await delivery.send(TOPIC, b"k", b"v")
    assert delivery.acknowledged == {}
    assert await delivery.send(TOPIC, b"k", b"v") >= 0


@pytest.mark.parametrize("code", [NOT_LEADER, UNKNOWN_TOPIC, TIMED_OUT])
async def test_a_record_that_was_refused_is_not_confirmed_by_the_next_one(delivery, memory_kafka, code):
    """Kafka takes a new producer's second batch where it has refused the first, as a partition moves."""
    memory_kafka.delay(1, 200)
    memory_kafka.fail_next(PRODUCE, code)
    first = delivery.send(TOPIC, b"k", b"first")
    # The second is to leave in a request of its own while the first has no answer.
    await asyncio.sleep(0.05)
    second = delivery.send_many(TOPIC, [(b"k", b"second", ())])
    outcomes = await asyncio.gather(first, second, return_exceptions=True)
    memory_kafka.delay(1, 0)

    found = {message.value() for message in await asyncio.to_thread(read_all, memory_kafka.bootstrap, 4, 1)}
    assert found == {b"second"}
    assert isinstance(outcomes[0], Unavailable)
    assert outcomes[1] == [None]


async def test_stopping_delivers_what_is_under_way(memory_kafka):
    memory_kafka.make_topic(TOPIC, 4)
    memory_kafka.delay(1, 100)
    sender = Delivery(memory_kafka.bootstrap, client_id="test")
    await sender.start()
    under_way = sender.send_many(TOPIC, [(b"k%d" % n, b"v", ()) for n in range(100)])
    await sender.stop(3.0)

    assert under_way.done()
    assert under_way.result() == [None] * 100


async def test_stopping_answers_what_it_cannot_deliver_and_takes_no_more(memory_kafka):
    memory_kafka.make_topic(TOPIC, 4)
    sender = Delivery(memory_kafka.bootstrap, client_id="test")
    await sender.start()
    memory_kafka.take_down(1)
    one, many = sender.send(TOPIC, b"k", b"v"), sender.send_many(TOPIC, [(b"k", b"v", ())])
    began_s = time.monotonic()
    await sender.stop(0.3)
    took_s = time.monotonic() - began_s

    assert took_s < 2
    assert isinstance(one.exception(), Unavailable)
    assert [type(outcome) for outcome in many.result()] == [Unavailable]
    with pytest.raises(Unavailable):
        await sender.send(TOPIC, b"k", b"v")
    assert [type(outcome) for outcome in await sender.send_many(TOPIC, [(b"k", b"v", ())])] == [Unavailable]


async def test_a_caller_that_goes_away_disturbs_nobody(delivery):
    gone = delivery.send(TOPIC, b"k", b"v")
    gone.cancel()
    gone_too = delivery.send_many(TOPIC, [(b"k", b"v", ())])
    gone_too.cancel()

    assert await delivery.send(TOPIC, b"k", b"v") >= 0
    await asyncio.sleep(0.2)
    assert not delivery._open


async def test_a_confirmation_at_or_below_an_earlier_one_is_an_alarm_and_said_once(memory_kafka, delivery):
    await delivery.send(TOPIC, b"u1", b"v")
    ((place, offset),) = delivery.acknowledged.items()
    line, lost = delivery._line, metrics.LOST_RECORDS._value.get()
    for confirmed in (offset + 90, offset + 80, offset + 81):
        delivery._note(line, place, confirmed)

    assert delivery.acknowledged == {place: offset + 81}
    assert metrics.LOST_RECORDS._value.get() - lost == 11


async def test_what_a_replaced_producer_still_confirms_is_no_alarm(memory_kafka, delivery):
    await delivery.send(TOPIC, b"u1", b"v")
    ((place, offset),) = delivery.acknowledged.items()
    old, lost = delivery._line, metrics.LOST_RECORDS._value.get()
    delivery._replace(old)
    for line, confirmed in ((delivery._line, offset + 9), (old, offset + 3), (delivery._line, offset + 10)):
        delivery._note(line, place, confirmed)

    assert delivery.acknowledged == {place: offset + 10}
    assert metrics.LOST_RECORDS._value.get() == lost
