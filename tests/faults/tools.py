"""What rows do to servers behind the product's back: records, groups, sockets, files."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from core.actions import fingerprint
from core.topics import SUBMITTED
from tests.acceptance.world import written
from tests.faults.dumping import GROUP
from tests.faults.rig import PARTITIONS, Rig


def record(user: str, action: str, type_: str = "commit", points: int | None = None) -> bytes:
    """A good record of the submitted topic, as ingest would write it."""
    now = written(datetime.now(UTC))
    body: dict[str, Any] = {
        "user_id": user,
        "action_id": action,
        "type": type_,
        "occurred_at": now,
        "received_at": now,
        "contract": "v1",
        "client": "direct",
        "backfill": False,
        "fingerprint": fingerprint(type_, points, None),
    }
    if points is not None:
        body["points"] = points
    return json.dumps(body).encode()


def direct_user() -> str:
    """A user whose records did not come through the door; a checker knows them by this name."""
    return f"direct-{secrets.token_hex(4)}"


def produce(
    rig: Rig,
    records: Iterable[tuple[bytes | None, bytes | None]],
    *,
    topic: str = SUBMITTED.name,
    partition: int | None = None,
    headers: dict[str, bytes] | None = None,
) -> None:
    """Write records (key, value) and wait until all are there."""
    failed: list[str] = []
    producer = Producer(
        {
            "bootstrap.servers": rig.kafka,
            "acks": "all",
            "partitioner": "murmur2_random",
            "message.max.bytes": 16 * 1024 * 1024,
            "queue.buffering.max.messages": 200_000,
            "log_level": 0,
        }
    )
    for key, value in records:
        where = {} if partition is None else {"partition": partition}
        producer.produce(
            topic,
            value,
            key,
            headers=headers,
            on_delivery=lambda error, _: failed.append(error.str()) if error else None,
            **where,
        )
        producer.poll(0)
    left = producer.flush(30)
    assert not left, f"{left} records were not delivered"
    assert not failed, failed[0]


def move_group(rig: Rig, offsets: dict[int, int]) -> None:
    """Set the stream group's committed offsets; the group must be empty."""
    admin = AdminClient({"bootstrap.servers": rig.kafka, "log_level": 0})
    places = [TopicPartition(SUBMITTED.name, partition, offset) for partition, offset in offsets.items()]
    deadline_s = time.monotonic() + 20
    while True:
        asked = admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(GROUP, places)])
        try:
            result = asked[GROUP].result(timeout=10)
            refused = [place.error.str() for place in result.topic_partitions if place.error is not None]
        except KafkaException as error:
            refused = [str(error)]
        if not refused:
            return
        # The members that are gone are not gone for the broker yet.
        assert time.monotonic() < deadline_s, refused[0]
        time.sleep(0.3)


def delete_records(rig: Rig, before: dict[int, int], topic: str = SUBMITTED.name) -> None:
    """Let a log begin later, as its retention would."""
    admin = AdminClient({"bootstrap.servers": rig.kafka, "log_level": 0})
    asked = admin.delete_records([TopicPartition(topic, p, offset) for p, offset in before.items()])
    for future in asked.values():
        future.result(timeout=20)


def delete_topics(rig: Rig, names: Sequence[str]) -> None:
    """Delete topics and see that they are gone."""
    admin = AdminClient({"bootstrap.servers": rig.kafka, "log_level": 0})
    for future in admin.delete_topics(list(names), operation_timeout=20).values():
        future.result(timeout=30)
    deadline_s = time.monotonic() + 20
    while any(name in admin.list_topics(timeout=10).topics for name in names):
        assert time.monotonic() < deadline_s, "the topics are still there"
        time.sleep(0.1)


def partition_directory(rig: Rig, partition: int, topic: str = SUBMITTED.name) -> Path:
    """Where the first broker keeps a partition."""
    return rig.data / "kafka-1" / "kafka" / "topics" / f"{topic}-{partition}"


def copy_tree(source: Path, target: Path) -> None:
    """A directory with its owners, instead of what is there."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)
    for path in [source, *source.rglob("*")]:
        about = path.lstat()
        copied = target / path.relative_to(source)
        shutil.chown(copied, about.st_uid, about.st_gid)


def half_open_sockets(url: str, path: str, count: int, *, receive_bytes: int = 2048) -> list[socket.socket]:
    """WebSockets that say hello and then neither read nor answer."""
    parts = urlsplit(url)
    opened = []
    for _ in range(count):
        one = socket.socket()
        # Set before connecting, or the window is already agreed on.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        one.connect((parts.hostname, parts.port))
        one.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        opened.append(one)
    return opened


def close_all(sockets: Iterable[socket.socket]) -> None:
    for one in sockets:
        with suppress(OSError):
            one.close()


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


ALL_PARTITIONS = range(PARTITIONS)
