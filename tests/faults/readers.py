"""Readers: of the API, of the copy in Redis, of the feed's sockets and of the topics.

Each looks all the time and writes down what it was shown. None of them judges.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import secrets
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import aiohttp
from confluent_kafka import Consumer, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient
from redis import exceptions as redis_exceptions
from redis.asyncio import Redis

from core.topics import ALL, SUBMITTED
from storage.kafka.silence import Silence
from storage.redis.keys import board
from tests.faults.histories import DIALECTS, MAIN, Copy, Frame, Page, Record, Transcript, content_of
from tests.faults.rig import Rig
from tests.faults.writers import Writers

LOOK_EVERY_S = 0.1
SOCKETS_EACH = 2


class Readers:
    """All that read over HTTP, from Redis and from sockets; they live on the rig's loop."""

    def __init__(self, rig: Rig, writers: Writers) -> None:
        self.rig, self.writers = rig, writers
        self._pages = Transcript(rig.run / "pages.jsonl")
        self._copies = Transcript(rig.run / "copies.jsonl")
        self._frames = Transcript(rig.run / "frames.jsonl")
        self._tasks: list[asyncio.Task[None]] = []
        self.sockets = 0
        """How many were opened, or tried to be."""
        self.close_codes: Counter[int] = Counter()
        self.open_sockets: dict[int, tuple[str, int]] = {}
        """Of each open socket, the (epoch, revision) it was last shown."""
        self.statuses: dict[int, int] = {}
        self.looks: dict[str, int] = {}
        self.last_page: tuple[str, int] | None = None

    def start(self) -> None:
        self.rig.loop.call(self._start())

    def stop(self) -> None:
        self.rig.loop.call(self._stop())
        for transcript in (self._pages, self._copies, self._frames):
            transcript.close()

    async def _start(self) -> None:
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=8))
        self._redis = Redis.from_url(self.rig.redis, socket_timeout=1, socket_connect_timeout=1)
        work = [self._read_top(), self._read_players(), self._look_at_copy()]
        work += [self._watch(dialect) for dialect in DIALECTS for _ in range(SOCKETS_EACH)]
        self._tasks = [asyncio.create_task(one) for one in work]
        for task in self._tasks:
            task.add_done_callback(_must_not_end)

    async def _stop(self) -> None:
        left = set(self._tasks)
        while left:
            # A timeout of a client's that ends at the same moment takes a cancellation for its own.
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=1)
        await self._http.close()
        await self._redis.aclose()

    # the API

    async def _read_top(self) -> None:
        while True:
            await self._read("top", "/v1/boards/main/standings", {"limit": "10"}, limit=10)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _read_players(self) -> None:
        """Those who acted lately; now and then at least as new as what the last page showed."""
        while True:
            action = self.writers.confirmed_action()
            if action is not None:
                query = {}
                if self.last_page is not None and random.random() < 0.3:
                    query["at_least"] = f"{self.last_page[0]}-{self.last_page[1]}"
                path = f"/v1/boards/main/players/{action.user}"
                await self._read("player", path, query, user=action.user, at_least=query.get("at_least"))
            await asyncio.sleep(LOOK_EVERY_S)

    async def _read(self, kind: Any, path: str, query: dict[str, str], **about: Any) -> None:
        page = Page(client=kind, begun_s=self.rig.now_s(), ended_s=0.0, kind=kind, status=0, **about)
        try:
            async with self._http.get(f"{self.rig.http}{path}", params=query) as response:
                body = json.loads(await response.read())
                page.status, page.etag = response.status, response.headers.get("ETag")
            if page.status == 200:
                page.epoch, page.revision, page.count = body["epoch"], body["revision"], body["count"]
                entries = body["entries"] if kind == "top" else [body["entry"]]
                page.entries = [
                    [e["rank"], e["user_id"], e["username"], e["score"], e["reached_at"]] for e in entries
                ]
                page.content = content_of(page.entries)
                if kind == "top":
                    self.last_page = (body["epoch"], body["revision"])
            else:
                page.code = body.get("code", "")
        except TimeoutError:
            page.code = "timeout"
        except (aiohttp.ClientError, OSError):
            page.code = "reset"
        page.ended_s = self.rig.now_s()
        self.statuses[page.status] = self.statuses.get(page.status, 0) + 1
        self._pages.add(page)

    # Redis

    async def _look_at_copy(self) -> None:
        z, m, meta = board(MAIN)
        while True:
            look = Copy(at_s=self.rig.now_s(), period=MAIN, state="away")
            try:
                pipe = self._redis.pipeline(transaction=True)
                pipe.hgetall(meta)
                pipe.zcard(z)
                pipe.hlen(m)
                pipe.zrange(z, 0, 9)
                found, cards, length, top = await pipe.execute()
                look.state = "absent"
                if {b"epoch", b"revision", b"digest", b"count"} <= found.keys():
                    look.state = "there"
                    look.epoch, look.revision = found[b"epoch"].decode(), int(found[b"revision"])
                    look.digest, look.count = found[b"digest"].decode(), int(found[b"count"])
                look.sizes, look.top = [cards, length], [member.hex() for member in top]
            except redis_exceptions.ResponseError as error:
                look.state = "odd" if "WRONGTYPE" in str(error) else "away"
            except (redis_exceptions.RedisError, OSError, TimeoutError):
                look.state = "away"
            self.looks[look.state] = self.looks.get(look.state, 0) + 1
            self._copies.add(look)
            await asyncio.sleep(LOOK_EVERY_S)

    # sockets

    async def _watch(self, dialect: str) -> None:
        headers = {}
        if dialect == "leaderboard":
            headers["Authorization"] = f"Bearer {self.rig.token(f'watcher-{secrets.token_hex(3)}')}"
        while True:
            self.sockets += 1
            await self._one_socket(self.sockets, dialect, headers)
            await asyncio.sleep(0.1 + random.random() * 0.4)

    async def _one_socket(self, number: int, dialect: str, headers: dict[str, str]) -> None:
        def note(what: Any, **rest: Any) -> None:
            self._frames.add(Frame(at_s=self.rig.now_s(), socket=number, dialect=dialect, what=what, **rest))

        try:
            async with self._http.ws_connect(
                f"{self.rig.feed}/ws/{dialect}", headers=headers, timeout=aiohttp.ClientWSTimeout(ws_close=2)
            ) as socket:
                note("opened")
                self.open_sockets[number] = ("", 0)
                async for message in socket:
                    if message.type is not aiohttp.WSMsgType.TEXT:
                        break
                    body = json.loads(message.data)
                    note("frame", epoch=body["epoch"], revision=body["revision"], body=body)
                    self.open_sockets[number] = (body["epoch"], body["revision"])
                note("closed", code=socket.close_code)
                self.close_codes[socket.close_code or 0] += 1
        except aiohttp.WSServerHandshakeError as error:
            note("refused", code=error.status)
        except (aiohttp.ClientError, OSError, TimeoutError):
            note("refused", code=0)
        finally:
            self.open_sockets.pop(number, None)


def _must_not_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error


class TopicReader(threading.Thread):
    """A stock consumer of all topics from their start, without a group."""

    def __init__(self, rig: Rig) -> None:
        super().__init__(name="topics", daemon=True)
        self.rig = rig
        self._names = [topic.name for topic in ALL]
        self._transcripts = {name: Transcript(rig.run / "topics" / f"{name}.jsonl") for name in self._names}
        self._over = threading.Event()
        self._renew = threading.Event()
        self.seen: dict[tuple[str, int], int] = {}
        """Of each partition, the offset after the last record that was written down."""
        self.topic_ids: dict[str, str] = {}
        self.submitted: Counter[tuple[str, str]] = Counter()
        """How often each (user, action) stands on the submitted topic."""

    @property
    def duplicates(self) -> int:
        """Records that repeat an action."""
        return sum(times - 1 for times in list(self.submitted.values()))

    def renew(self) -> None:
        """Topics were made anew, or have more partitions: read what is new from its start."""
        self._renew.set()

    def end(self) -> None:
        self._over.set()
        self.join(30)
        for transcript in self._transcripts.values():
            transcript.close()

    def ids(self) -> dict[str, str]:
        """The topics' ids, by name, as the broker has them now."""
        admin = AdminClient({"bootstrap.servers": self.rig.kafka, "log_level": 0})
        described = admin.describe_topics(TopicCollection(self._names), request_timeout=10)
        return {name: str(future.result().topic_id) for name, future in described.items()}

    def _ids_when_told(self) -> dict[str, str]:
        while not self._over.is_set():
            try:
                return self.ids()
            except KafkaException:
                time.sleep(0.5)
        return self.topic_ids

    def run(self) -> None:
        while not self._over.is_set():
            self._renew.clear()
            before, self.topic_ids = self.topic_ids, self._ids_when_told()
            self.seen = {
                place: end for place, end in self.seen.items() if before[place[0]] == self.topic_ids[place[0]]
            }
            consumer = Consumer(
                {
                    "bootstrap.servers": self.rig.kafka,
                    "group.id": f"reader-{secrets.token_hex(4)}",
                    "enable.auto.commit": False,
                    "auto.offset.reset": "earliest",
                    "reconnect.backoff.max.ms": 500,
                    "fetch.message.max.bytes": 16 * 1024 * 1024,
                    "log_level": 0,
                    "logger": _Silence(),
                }
            )
            try:
                consumer.assign(
                    [
                        TopicPartition(name, number, self.seen.get((name, number), 0))
                        for name in self._names
                        for number in range(self.rig.partitions[name])
                    ]
                )
                silence = Silence()
                while not self._over.is_set() and not self._renew.is_set():
                    try:
                        messages = consumer.consume(500, timeout=0.2)
                    except KafkaException:
                        time.sleep(0.2)
                        continue
                    if messages:
                        silence.heard()
                    elif silence.is_deaf(consumer, self._names[0], 0):
                        break
                    self._write_down(messages)
            finally:
                consumer.close()

    def _write_down(self, messages: Any) -> None:
        at_s = self.rig.now_s()
        for message in messages:
            if message.error() is not None:
                continue
            name, binary = message.topic(), []
            key, value = _text(message.key()), _text(message.value())
            for what, part in (("key", key), ("value", value)):
                if part[1]:
                    binary.append(what)
            headers = {
                header: f"base64:{content}" if odd else content or ""
                for header, (content, odd) in ((h, _text(c)) for h, c in message.headers() or [])
            }
            self._transcripts[name].add(
                Record(
                    at_s=at_s,
                    topic_id=self.topic_ids[name],
                    partition=message.partition(),
                    offset=message.offset(),
                    key=key[0],
                    value=value[0],
                    headers=headers,
                    binary=binary,
                )
            )
            self.seen[name, message.partition()] = message.offset() + 1
            if name == SUBMITTED.name:
                with suppress(ValueError, TypeError, KeyError, RecursionError):
                    body = json.loads(message.value())
                    self.submitted[body["user_id"], body["action_id"]] += 1

    def caught_up(self, ends: dict[tuple[str, int], int]) -> bool:
        return all(self.seen.get(place, 0) >= end for place, end in ends.items() if end)


class _Silence:
    """librdkafka's lines about a broker that was killed on purpose."""

    def log(self, *_: Any) -> None:
        pass


def _text(raw: Any) -> tuple[str | None, bool]:
    """(text, whether it is Base64 of what is no text)."""
    if raw is None:
        return None, False
    content = raw if isinstance(raw, bytes) else str(raw).encode()
    try:
        return content.decode(), False
    except UnicodeDecodeError:
        return base64.b64encode(content).decode(), True
