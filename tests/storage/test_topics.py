from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from uuid import UUID

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from core import topics as words
from core.errors import Refused, Unavailable
from core.topics import Topic
from storage.kafka import topic_ids
from storage.kafka.topics import declare, keeps_enough, verify
from tests.deaf import NO_BROKER
from trueboard.devstack.ports import free_port

NAMES = [topic.name for topic in words.ALL]


def made(memory_kafka, partitions: int = 12) -> str:
    for name in NAMES:
        memory_kafka.make_topic(name, partitions)
    return memory_kafka.bootstrap


def test_in_memory_nothing_is_made_only_looked_at(memory_kafka):
    bootstrap = made(memory_kafka)

    declare(bootstrap, kind="memory", partitions=12, replication=1)

    assert verify(bootstrap, kind="memory") == dict.fromkeys(NAMES, 12)


def test_all_that_is_wrong_is_in_one_sentence(memory_kafka):
    memory_kafka.make_topic(NAMES[0], 12)
    memory_kafka.make_topic(NAMES[1], 4)

    with pytest.raises(Refused) as refusal:
        verify(memory_kafka.bootstrap, kind="memory", partitions=12)

    assert str(refusal.value) == "; ".join(
        [f"topic {name} does not exist" for name in NAMES[2:]]
        + [f"topic {NAMES[1]} has 4 partitions instead of 12"]
    )
    # Asking for a topic by its name would have made it.
    with pytest.raises(Refused, match=f"topic {NAMES[2]} does not exist"):
        verify(memory_kafka.bootstrap, kind="memory", partitions=12)


def test_without_a_wanted_count_all_must_have_the_same(memory_kafka):
    for at, name in enumerate(NAMES):
        memory_kafka.make_topic(name, 4 if at == 3 else 8)

    with pytest.raises(Refused, match=f"topic {NAMES[3]} has 4 partitions instead of 8"):
        verify(memory_kafka.bootstrap, kind="memory")


def test_the_submitted_topic_may_have_grown(memory_kafka):
    for name in NAMES:
        memory_kafka.make_topic(name, 8 if name == words.SUBMITTED.name else 6)

    assert verify(memory_kafka.bootstrap, kind="memory")[words.SUBMITTED.name] == 8
    assert verify(memory_kafka.bootstrap, kind="memory", partitions=6)[words.SUBMITTED.name] == 8


@pytest.mark.parametrize("name", [name for name in NAMES if name != words.SUBMITTED.name])
def test_no_other_topic_may_have_grown(memory_kafka, name):
    for other in NAMES:
        memory_kafka.make_topic(other, 8 if other == name else 6)

    with pytest.raises(Refused, match="partitions instead of"):
        verify(memory_kafka.bootstrap, kind="memory")
    with pytest.raises(Refused, match=f"topic {name} has 8 partitions instead of 6"):
        verify(memory_kafka.bootstrap, kind="memory", partitions=6)


def test_the_submitted_topic_may_not_have_fewer(memory_kafka):
    for name in NAMES:
        memory_kafka.make_topic(name, 4 if name == words.SUBMITTED.name else 6)

    with pytest.raises(Refused, match=f"topic {words.SUBMITTED.name} has 4 partitions instead of 6"):
        verify(memory_kafka.bootstrap, kind="memory")


CALLS = {
    "declare": lambda bootstrap, kind: declare(
        bootstrap, kind=kind, partitions=1, replication=1, timeout_s=1
    ),
    "verify": lambda bootstrap, kind: verify(bootstrap, kind=kind, timeout_s=1),
    "topic_id": lambda bootstrap, kind: topic_ids.topic_id(bootstrap, NAMES[0], kind=kind, timeout_s=1),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("kind", ["jvm", "memory"])
def test_without_a_broker_it_is_unavailable_and_soon(call, kind):
    began_s = time.monotonic()
    with pytest.raises(Unavailable):
        call(f"127.0.0.1:{free_port()}", kind)

    assert time.monotonic() - began_s < 4


@pytest.mark.parametrize(
    ("setting", "actual", "wanted", "enough"),
    [
        ("cleanup.policy", "delete", "delete", True),
        ("cleanup.policy", "compact", "delete", False),
        ("cleanup.policy", "compact,delete", "compact", False),
        ("cleanup.policy", None, "delete", False),
        ("retention.ms", "604800000", "604800000", True),
        ("retention.ms", "604799999", "604800000", False),
        ("retention.ms", "-1", "604800000", True),
        ("retention.ms", "604800000", "-1", False),
        ("retention.bytes", "1000", "-1", False),
        ("retention.bytes", "-1", "-1", True),
        ("delete.retention.ms", "86400000", "7776000000", False),
        ("delete.retention.ms", "7776000001", "7776000000", True),
        ("max.message.bytes", "1048588", "8388608", False),
    ],
)
def test_keeping_more_than_asked_is_fine_and_keeping_less_is_not(setting, actual, wanted, enough):
    assert keeps_enough(setting, actual, wanted) is enough


# which log a topic is


def test_an_in_memory_topic_has_an_id_that_lasts_as_long_as_its_broker(memory_kafka):
    bootstrap = made(memory_kafka)

    ids = [topic_ids.topic_id(bootstrap, name, kind="memory") for name in (NAMES[0], NAMES[0], NAMES[1])]

    assert ids[0] == ids[1] != ids[2]
    assert str(UUID(ids[0])) == ids[0]


def test_of_several_addresses_one_that_answers_is_enough(memory_kafka):
    bootstrap = f"127.0.0.1:{free_port()}, {made(memory_kafka)}"

    assert UUID(topic_ids.topic_id(bootstrap, NAMES[0], kind="memory")).int


def test_a_topic_that_is_not_there_has_no_id_and_gets_none_by_asking(memory_kafka):
    with pytest.raises(Unavailable):
        topic_ids.topic_id(memory_kafka.bootstrap, NAMES[0], kind="memory")
    with pytest.raises(Refused):
        verify(memory_kafka.bootstrap, kind="memory", wanted=words.ALL[:1])


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="hangs up"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="another protocol"),
        pytest.param(b"\0\0\0\4\0\0\0\1", id="cut off"),
        pytest.param(b"\0\0\0\x05\0\0\0\x02\0", id="to something else"),
        pytest.param(b"\0\0\0\x0a\0\0\0\x01\0\0\0\0\0\xff", id="ends inside a number"),
        pytest.param(b"\0\0\0\0", id="of no size"),
    ],
)
def test_an_answer_that_is_none_is_unavailable(answer):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(Unavailable):
            topic_ids.topic_id(f"127.0.0.1:{server.getsockname()[1]}", NAMES[0], kind="memory", timeout_s=2)
        thread.join()


def test_a_broker_that_says_nothing_is_unavailable_in_time():
    with socket.create_server(("127.0.0.1", 0)) as server:
        began_s = time.monotonic()
        with pytest.raises(Unavailable):
            topic_ids.topic_id(f"127.0.0.1:{server.getsockname()[1]}", NAMES[0], kind="memory", timeout_s=0.5)

    assert time.monotonic() - began_s < 1


# on real Kafka


@pytest.fixture
def fresh(kafka):
    """The broker without our topics, before and after."""

    def clear() -> None:
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
        ours = [name for name in admin.list_topics(timeout=10).topics if name.startswith("leaderboard.")]
        if ours:
            for future in admin.delete_topics(ours, operation_timeout=20).values():
                future.result()
            while set(ours) & admin.list_topics(timeout=10).topics.keys():
                time.sleep(0.1)

    clear()
    yield kafka
    clear()


@pytest.mark.kafka
def test_declared_topics_are_as_they_must_be_and_may_be_declared_again(fresh):
    with ThreadPoolExecutor() as several:
        at_once = [
            several.submit(declare, fresh.bootstrap, kind=fresh.kind, partitions=3, replication=1)
            for _ in range(3)
        ]
        for one in at_once:
            one.result()
    declare(fresh.bootstrap, kind=fresh.kind, partitions=3, replication=1)

    assert verify(fresh.bootstrap, kind=fresh.kind, partitions=3) == dict.fromkeys(NAMES, 3)
    with pytest.raises(Refused, match=f"topic {NAMES[0]} has 3 partitions instead of 4"):
        declare(fresh.bootstrap, kind=fresh.kind, partitions=4, replication=1)


@pytest.mark.kafka
def test_a_topic_that_would_lose_records_is_refused(fresh):
    declare(fresh.bootstrap, kind=fresh.kind, partitions=1, replication=1)
    resource = ConfigResource(ResourceType.TOPIC, words.SUBMITTED.name)
    resource.add_incremental_config(
        ConfigEntry("cleanup.policy", "compact", incremental_operation=AlterConfigOpType.SET)
    )
    admin = AdminClient({"bootstrap.servers": fresh.bootstrap})
    for future in admin.incremental_alter_configs([resource]).values():
        future.result()

    with pytest.raises(Refused, match=r"has cleanup\.policy=compact instead of delete"):
        eventually_refused(fresh)


def eventually_refused(kafka) -> None:
    """A broker shows a changed setting after some moments."""
    for _ in range(50):
        verify(kafka.bootstrap, kind=kafka.kind)
        time.sleep(0.1)


@pytest.mark.kafka
def test_what_cannot_be_made_is_said(fresh):
    odd = Topic("leaderboard.odd.v1", "none", {"retention.ms": "often"})

    with pytest.raises(Refused, match=r"topic leaderboard\.odd\.v1 cannot be made: "):
        declare(fresh.bootstrap, kind=fresh.kind, partitions=1, replication=1, wanted=[odd])


@pytest.mark.kafka
def test_a_topic_made_anew_under_its_name_is_another_log(fresh):
    one = words.ALL[:1]
    ids = []
    for _ in range(2):
        declare(fresh.bootstrap, kind=fresh.kind, partitions=1, replication=1, wanted=one)
        ids += [topic_ids.topic_id(fresh.bootstrap, NAMES[0], kind=fresh.kind) for _ in range(2)]
        admin = AdminClient({"bootstrap.servers": fresh.bootstrap})
        admin.delete_topics([NAMES[0]], operation_timeout=20)[NAMES[0]].result()
        while NAMES[0] in admin.list_topics(timeout=10).topics:
            time.sleep(0.1)

    assert ids[0] == ids[1] != ids[2] == ids[3]
    assert all(str(UUID(text)) == text for text in ids)
    with pytest.raises(Unavailable):
        topic_ids.topic_id(fresh.bootstrap, NAMES[0], kind=fresh.kind)


@pytest.mark.kafka
def test_a_real_brokers_answer_to_the_bare_request_holds_the_same_id(fresh):
    """The reader of bytes that the in-memory broker needs, on a broker that can be asked both ways."""
    declare(fresh.bootstrap, kind=fresh.kind, partitions=3, replication=1)

    described = topic_ids.topic_id(fresh.bootstrap, NAMES[0], kind=fresh.kind)
    assert topic_ids.topic_id(fresh.bootstrap, NAMES[0], kind="memory") == described


@pytest.mark.kafka
def test_a_client_that_is_not_answered_is_not_asked_again(fresh, monkeypatch):
    declare(fresh.bootstrap, kind=fresh.kind, partitions=1, replication=1)
    made = []

    class Deaf(AdminClient):
        def describe_topics(self, *_, **__):
            told = Future()
            told.set_exception(NO_BROKER)
            return dict.fromkeys(NAMES[:1], told)

    def make(settings):
        made.append((AdminClient if made else Deaf)(settings))
        return made[-1]

    monkeypatch.setattr(topic_ids, "AdminClient", make)
    ids = topic_ids.TopicIds(fresh.bootstrap, NAMES[:1], kind=fresh.kind)
    with pytest.raises(Unavailable):
        ids.ask()

    assert ids.ask() == ids.ask()
    assert len(made) == 2
