"""What rows do to servers behind the product's back: records, groups, sockets, files."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiokafka import AIOKafkaProducer
from aiokafka.errors import OutOfOrderSequenceNumber
from aiokafka.producer.transaction_manager import PidAndEpoch
from aiokafka.structs import TopicPartition as AioPartition
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from core.actions import fingerprint
from core.topics import SUBMITTED
from tests.acceptance.world import written
from tests.faults.dumping import GROUP
from tests.faults.histories import Record, read
from tests.faults.rig import PARTITIONS, Rig

REPEATED_OUT_OF_STEP = 37


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


def put_out_of_step(rig: Rig, topic: str) -> None:
    """Write a batch in the name of the producer that wrote last, as its next one.

    Its own next one is then out of order, which fails it for good. The batch repeats a record, in a
    number that no batch of its own has: one of the same size would pass for its own.
    """
    path = rig.run / "topics" / f"{topic}.jsonl"
    known = [record for record in read(path, Record) if record.key and record.value and not record.binary]
    asyncio.run(_write_as_another(rig, topic, known[-1]))


async def _write_as_another(rig: Rig, topic: str, record: Record) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=rig.kafka, enable_idempotence=True, max_batch_size=8 * 1024 * 1024
    )
    await producer.start()
    try:
        place = AioPartition(topic, record.partition)
        for _ in range(100):
            batch = producer.create_batch()
            for _ in range(REPEATED_OUT_OF_STEP):
                headers = [(name, value.encode()) for name, value in record.headers.items()]
                key, value = (record.key or "").encode(), (record.value or "").encode()
                assert batch.append(key=key, value=value, timestamp=None, headers=headers)
            batch.close()
            pid, epoch, sequence = _last_written(partition_directory(rig, record.partition, topic))
            state = producer._txn_manager
            state._pid_and_epoch = PidAndEpoch(pid, epoch)
            state._sequence_numbers[place] = sequence + 1
            try:
                await (await producer.send_batch(batch, topic, partition=record.partition))
            except OutOfOrderSequenceNumber:
                # The producer was quicker than this.
                continue
            return
    finally:
        await producer.stop()
    raise AssertionError("the producer was always quicker")


def _last_written(directory: Path) -> tuple[int, int, int]:
    """Producer id, its epoch and the last sequence number, of the last batch of a partition's log.

    Source: https://kafka.apache.org/documentation/#recordbatch
    """
    content = max(directory.glob("*.log")).read_bytes()
    at, found = 0, (-1, -1, -1)
    while at + 61 <= len(content):
        (length,) = struct.unpack_from(">i", content, at + 8)
        if length <= 0 or at + 12 + length > len(content):
            break
        (last_delta,) = struct.unpack_from(">i", content, at + 23)
        pid, epoch, first = struct.unpack_from(">qhi", content, at + 43)
        found = pid, epoch, first + last_delta
        at += 12 + length
    return found


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
