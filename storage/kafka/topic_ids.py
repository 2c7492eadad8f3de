"""Which log a topic is: Kafka's own id of it, which a topic made anew under the same name has not.

The in-memory broker knows no DescribeTopics, but answers Metadata version 12, which carries
the id; its ids live as long as the broker. All of this blocks.

Source: https://kafka.apache.org/protocol (Metadata request and response, version 12)
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from core.errors import Unavailable
from storage.kafka.topics import MEMORY

_METADATA, _VERSION = 3, 12
_CORRELATION = 1
_LARGEST_ANSWER_BYTES = 16 * 1024 * 1024


class TopicIds:
    """Asks for the ids of the same topics again and again. Blocks; one thread.

    `kind` is `jvm`, `external` or `memory`; `extra` are librdkafka settings (security).
    """

    def __init__(
        self, bootstrap: str, names: Sequence[str], *, kind: str, extra: Mapping[str, Any] | None = None
    ) -> None:
        self._bootstrap, self._names, self._kind = bootstrap, list(names), kind
        self._settings = {"bootstrap.servers": bootstrap, "log_level": 0, **(extra or {})}
        # Kept while it is answered, as a new one takes longer to connect than to ask.
        self._admin: AdminClient | None = None

    def ask(self, timeout_s: float = 5.0) -> dict[str, str]:
        """By name, each topic's id as UUID text, as `0b3f3a4e-…`.

        Raises:
            Unavailable: no broker told them within `timeout_s`, or a topic does not exist.
        """
        if self._kind == MEMORY:
            found = {name: _by_metadata(self._bootstrap, name, timeout_s) for name in self._names}
        else:
            found = self._described(timeout_s)
        for name, id in found.items():
            if id.int == 0:
                raise Unavailable(f"Kafka has no id for topic {name}.")
        return {name: str(id) for name, id in found.items()}

    def _described(self, timeout_s: float) -> dict[str, UUID]:
        if self._admin is None:
            self._admin = AdminClient(self._settings)
        try:
            return _by_description(self._admin, self._names, timeout_s)
        except Unavailable:
            # It may have lost every broker for good (`storage.kafka.silence`).
            self._admin = None
            raise


def topic_id(
    bootstrap: str,
    topic: str,
    *,
    kind: str,
    timeout_s: float = 5.0,
    extra: Mapping[str, Any] | None = None,
) -> str:
    """One topic's id, asked for once.

    Raises:
        Unavailable: no broker told it within `timeout_s`, or the topic does not exist.
    """
    return TopicIds(bootstrap, [topic], kind=kind, extra=extra).ask(timeout_s)[topic]


def _by_description(admin: AdminClient, names: Sequence[str], timeout_s: float) -> dict[str, UUID]:
    described = admin.describe_topics(TopicCollection(list(names)), request_timeout=timeout_s)
    found = {}
    for name in names:
        try:
            told = described[name].result(timeout=timeout_s + 1).topic_id
        except (KafkaException, TimeoutError) as error:
            raise Unavailable(f"Kafka does not tell the id of topic {name}.") from error
        high, low = told.get_most_significant_bits(), told.get_least_significant_bits()
        found[name] = UUID(bytes=struct.pack(">QQ", high & (2**64 - 1), low & (2**64 - 1)))
    return found


def _by_metadata(bootstrap: str, topic: str, timeout_s: float) -> UUID:
    deadline_s = time.monotonic() + timeout_s
    # Any broker knows all topics; one that is down is no reason to ask no other.
    refusals: list[Exception] = []
    for address in bootstrap.split(","):
        host, _, port = address.strip().rpartition(":")
        try:
            left_s = max(0.001, deadline_s - time.monotonic())
            with socket.create_connection((host.strip("[]"), int(port)), timeout=left_s) as connection:
                connection.sendall(_request(topic))
                return _read_answer(_receive(connection, deadline_s), topic)
        except (OSError, ValueError, struct.error, IndexError) as error:
            refusals.append(error)
    raise Unavailable(f"Kafka does not tell the id of topic {topic}.") from refusals[-1]


def _request(topic: str) -> bytes:
    """A flexible Metadata request for one topic by name, which must not make it."""
    name = topic.encode()
    head = struct.pack(">hhi", _METADATA, _VERSION, _CORRELATION) + struct.pack(">h", -1) + b"\0"
    one_topic = b"\x02" + bytes(16) + _varint(len(name) + 1) + name + b"\0"
    may_make, with_rights, no_tags = b"\0", b"\0", b"\0"
    body = head + one_topic + may_make + with_rights + no_tags
    return struct.pack(">i", len(body)) + body


def _receive(connection: socket.socket, deadline_s: float) -> bytes:
    (size,) = struct.unpack(">i", _exactly(connection, 4, deadline_s))
    if not 0 < size <= _LARGEST_ANSWER_BYTES:
        raise ValueError("an answer of impossible size")
    return _exactly(connection, size, deadline_s)


def _exactly(connection: socket.socket, size: int, deadline_s: float) -> bytes:
    content = b""
    while len(content) < size:
        connection.settimeout(max(0.001, deadline_s - time.monotonic()))
        if not (more := connection.recv(size - len(content))):
            raise ValueError("the broker hung up")
        content += more
    return content


def _read_answer(answer: bytes, topic: str) -> UUID:
    reader = _Reader(answer)
    if reader.int32() != _CORRELATION:
        raise ValueError("an answer to something else")
    reader.tags()
    reader.int32()  # throttled, ms
    for _ in range(reader.length()):
        reader.int32()
        reader.text()
        reader.int32()
        reader.text()
        reader.tags()
    reader.text()  # cluster id
    reader.int32()  # controller
    if reader.length() < 1:
        raise ValueError("no topic in the answer")
    error_code, name = reader.int16(), reader.text()
    found = UUID(bytes=reader.take(16))
    if error_code or name != topic:
        raise ValueError(f"the broker answers error {error_code} for {name}")
    return found


class _Reader:
    """Fields of Kafka's flexible encoding, from the front of some bytes."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    def take(self, size: int) -> bytes:
        taken = self._content[self._at : self._at + size]
        if len(taken) != size:
            raise ValueError("an answer that ends too early")
        self._at += size
        return taken

    def int16(self) -> int:
        return int.from_bytes(self.take(2), "big", signed=True)

    def int32(self) -> int:
        return int.from_bytes(self.take(4), "big", signed=True)

    def varint(self) -> int:
        value = shift = 0
        while True:
            (byte,) = self.take(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def length(self) -> int:
        """Of a compact array; −1 is null."""
        return self.varint() - 1

    def text(self) -> str | None:
        length = self.length()
        return None if length < 0 else self.take(length).decode()

    def tags(self) -> None:
        for _ in range(self.varint()):
            self.varint()
            self.take(self.varint())


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
