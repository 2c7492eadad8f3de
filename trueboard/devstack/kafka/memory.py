"""librdkafka's in-memory broker, which comes inside the confluent-kafka wheel.

It speaks Kafka's protocol on a loopback port and keeps everything in memory: some 5 MB a
partition, gone when the process ends. It knows no CreateTopics, no topic settings and no
compaction, so its topics are made through the library's own functions. It is the library's test
facility: for trying things out and for tests with broken brokers, never for data.

Source: https://github.com/confluentinc/librdkafka/blob/master/src/rdkafka_mock.h
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from trueboard.devstack.errors import CannotStart
from trueboard.devstack.processes import Launch, Workbench
from trueboard.devstack.program import Base

PRODUCE = 0
"""Kafka's number of the request that writes records, for `MockCluster.fail_next`."""

_PRODUCER = 0


def _library() -> ctypes.CDLL:
    found = importlib.util.find_spec("confluent_kafka")
    if found is None or found.origin is None:
        raise CannotStart("confluent-kafka is not installed: run `make up`")
    package = Path(found.origin).parent
    candidates = [
        *sorted((package.parent / "confluent_kafka.libs").glob("librdkafka*.so*")),
        *sorted((package / ".dylibs").glob("librdkafka*.dylib")),
    ]
    if not candidates:
        raise CannotStart("the confluent-kafka installed here does not bring librdkafka with it")
    library = ctypes.CDLL(str(candidates[0]))
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32
    for name, result, arguments in (
        ("conf_new", pointer, []),
        ("new", pointer, [ctypes.c_int, pointer, text, ctypes.c_size_t]),
        ("destroy", None, [pointer]),
        ("mock_cluster_new", pointer, [pointer, ctypes.c_int]),
        ("mock_cluster_destroy", None, [pointer]),
        ("mock_cluster_bootstraps", text, [pointer]),
        ("mock_topic_create", ctypes.c_int, [pointer, text, ctypes.c_int, ctypes.c_int]),
        ("mock_group_initial_rebalance_delay_ms", None, [pointer, number]),
        ("mock_broker_set_down", ctypes.c_int, [pointer, number]),
        ("mock_broker_set_up", ctypes.c_int, [pointer, number]),
        ("mock_broker_set_rtt", ctypes.c_int, [pointer, number, ctypes.c_int]),
        (
            "mock_push_request_errors_array",
            None,
            [pointer, ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(ctypes.c_int)],
        ),
    ):
        function = getattr(library, f"rd_kafka_{name}")
        function.restype, function.argtypes = result, arguments
    return library


class MockCluster:
    """A cluster in this process; its brokers (ids 1, 2 …) are threads of the library.

    The faults are what no container gives: brokers that go away, answer late or with an error.
    """

    kind: ClassVar[str] = "memory"

    def __init__(self, *, brokers: int = 1) -> None:
        self._library = _library()
        problem = ctypes.create_string_buffer(512)
        self._client = self._library.rd_kafka_new(_PRODUCER, self._library.rd_kafka_conf_new(), problem, 512)
        if not self._client:
            raise CannotStart(f"the in-memory broker did not start: {problem.value.decode()}")
        self._cluster = self._library.rd_kafka_mock_cluster_new(self._client, brokers)
        self._library.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 0)
        self.bootstrap: str = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def make_topic(self, name: str, partitions: int) -> None:
        """Make a topic (the protocol's own CreateTopics is not known here)."""
        error = self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1)
        if error:
            raise CannotStart(f"the in-memory broker did not make the topic {name}: error {error}")

    def take_down(self, broker: int) -> None:
        """Close the broker's connections and refuse new ones."""
        self._library.rd_kafka_mock_broker_set_down(self._cluster, broker)

    def bring_up(self, broker: int) -> None:
        """Let a broker that was taken down answer again."""
        self._library.rd_kafka_mock_broker_set_up(self._cluster, broker)

    def delay(self, broker: int, round_trip_ms: int) -> None:
        """Make every answer of a broker this late."""
        self._library.rd_kafka_mock_broker_set_rtt(self._cluster, broker, round_trip_ms)

    def fail_next(self, api_key: int, error: int, *, times: int = 1) -> None:
        """Answer the next requests of one kind (`PRODUCE`, 1 Fetch …) with a protocol error code."""
        errors = (ctypes.c_int * times)(*[error] * times)
        self._library.rd_kafka_mock_push_request_errors_array(self._cluster, api_key, times, errors)

    def close(self) -> None:
        """End the cluster; what it held is gone."""
        if self._cluster:
            self._library.rd_kafka_mock_cluster_destroy(self._cluster)
            self._library.rd_kafka_destroy(self._client)
            self._cluster = None


class MemoryKafka(Base):
    """The in-memory cluster in a process of its own. Its port is new at each start."""

    name = "kafka"
    kind: ClassVar[str] = "memory"

    def __init__(self, data: Path, *, topics: Sequence[str], partitions: int) -> None:
        self._log, self._address = data / "logs" / "kafka.log", data / "kafka-memory.json"
        self._topics, self._partitions = topics, partitions

    @property
    def bootstrap(self) -> str:
        """Where clients connect first; another one after each start.

        Raises:
            CannotStart: it has not started.
        """
        try:
            return str(json.loads(self._address.read_text())["bootstrap"])
        except (FileNotFoundError, ValueError) as error:
            raise CannotStart("the in-memory broker has no address yet") from error

    def prepare(self, bench: Workbench) -> None:
        """See whether the library is there."""
        _library()

    def launch(self) -> Launch:
        """This module as a program; it writes its address when its topics are made."""
        self._address.unlink(missing_ok=True)
        argv = [sys.executable, "-P", "-m", __spec__.name, str(self._address), str(self._partitions)]
        return Launch(argv=[*argv, *self._topics], log=self._log, env=dict(os.environ))

    def is_ready(self) -> bool:
        """Whether it has written its address."""
        return self._address.exists()

    def stopped(self, exit_code: int) -> None:
        """Nobody shall find the address of a broker that is gone."""
        self._address.unlink(missing_ok=True)


def main() -> None:
    """Run a cluster until SIGTERM; arguments: the address file, partitions, topics."""
    parser = argparse.ArgumentParser(description="An in-memory Kafka broker for trying things out.")
    parser.add_argument("address", type=Path)
    parser.add_argument("partitions", type=int)
    parser.add_argument("topics", nargs="*")
    wanted = parser.parse_args()
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    cluster = MockCluster()
    for topic in wanted.topics:
        cluster.make_topic(topic, wanted.partitions)
    fresh = wanted.address.with_suffix(".new")
    fresh.write_text(json.dumps({"bootstrap": cluster.bootstrap, "pid": os.getpid()}))
    fresh.replace(wanted.address)
    while not over.wait(60):
        pass
    cluster.close()


if __name__ == "__main__":
    main()
