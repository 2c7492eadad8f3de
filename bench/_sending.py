"""The sender of `bench/feed.py`, and what is seen of its actions on the way.

Actions are due at random instants (a Poisson process: equal gaps would beat with the feed's own), and
are sent one by one, or so many together as are due one after another. It notes when each was answered,
when each record of `board.changed` came to a stock consumer, and when the board in Valkey showed a
revision. Instants are the wall clock's, in µs, as Postgres stamps its commits on the same machine. An
action begins at the instant it was due, whether or not the sender was on time.
"""

from __future__ import annotations

import asyncio
import random
import re
import secrets
import sys
import threading
import time
from typing import Any, Final, cast

import msgspec
import redis
import uvloop
from confluent_kafka import Consumer

from bench import _actions, _http
from core.topics import BOARD_CHANGED
from core.words import MAIN_PERIOD
from storage.redis.keys import board

LOOK_EVERY_S: Final = 0.005
_SENDERS: Final = 32
_MOST_SENDERS: Final = 128
_ANSWER_S: Final = 15.0
_SETTLE_S: Final = 2.0

_REVISION: Final = re.compile(rb'"revision":(\d+)')

Seen = tuple[int, int]
"""(instant in µs, revision)."""


class Task(msgspec.Struct, kw_only=True):
    host: str
    http_port: int
    bootstrap: str
    redis_url: str
    token: str
    run: str
    per_s: float
    seconds: float
    users: int
    seed: int
    batch: int = 1
    """How many a request takes; it goes out when the last of them is due."""


class _One(msgspec.Struct):
    status: int


class _Results(msgspec.Struct):
    """The answer to a batch."""

    results: list[_One]


_read_results = msgspec.json.Decoder(_Results).decode


class Done(msgspec.Struct, kw_only=True):
    """`actions`: (due, answered, status) by number."""

    actions: list[tuple[int, int, int]]
    records: list[Seen]
    boards: list[Seen]
    late_ms: float
    cpu_s: float


def now_us() -> int:
    return time.time_ns() // 1000


class Sending:
    def __init__(self, task: Task) -> None:
        self._task = task
        self._ended = threading.Event()
        self._records: list[Seen] = []
        self._boards: list[Seen] = []
        self._answers: dict[int, tuple[int, int, int]] = {}
        self._lost = 0

    async def run(self) -> Done:
        loop = asyncio.get_running_loop()
        assigned = threading.Event()
        threads = [
            threading.Thread(target=self._consume, args=(assigned,), daemon=True),
            threading.Thread(target=self._look, daemon=True),
        ]
        for thread in threads:
            thread.start()
        if not await asyncio.to_thread(assigned.wait, 30):
            raise TimeoutError("Kafka assigned no partitions")
        begun_cpu_s = time.process_time()
        late_us = await self._send(loop)
        await asyncio.sleep(_SETTLE_S)
        cpu_s = time.process_time() - begun_cpu_s
        self._ended.set()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        return Done(
            actions=[self._answers[number] for number in sorted(self._answers)],
            records=self._records,
            boards=self._boards,
            late_ms=late_us / 1000,
            cpu_s=cpu_s,
        )

    async def _send(self, loop: asyncio.AbstractEventLoop) -> float:
        """Send all actions and wait for their answers; how late the latest was sent, in µs."""
        task = self._task
        head = _http.head(
            f"{task.host}:{task.http_port}",
            "/v1/actions" if task.batch == 1 else "/v1/actions/batch",
            f"Authorization: Bearer {task.token}",
        )
        clock, dice = _actions.Clock(), random.Random(task.seed)
        free: asyncio.Queue[_http.Connection] = asyncio.Queue()
        under_way: dict[_http.Connection, list[tuple[int, int]]] = {}
        together: list[tuple[int, int]] = []
        bodies: list[bytes] = []

        def answered(connection: _http.Connection, status: int, body: bytes) -> None:
            at_us, sent = now_us(), under_way.pop(connection)
            statuses = [status] * len(sent)
            if task.batch > 1 and status == 200:
                statuses = [one.status for one in _read_results(body).results]
            for (number, due_us), each in zip(sent, statuses, strict=True):
                self._answers[number] = (due_us, at_us, each)
            free.put_nowait(connection)

        def lost() -> None:
            self._lost += 1

        # Each is used again within the 5 s after which the door closes one that says nothing.
        per_s = task.per_s / task.batch
        senders = max(1, min(_SENDERS, int(2 * per_s)), min(_MOST_SENDERS, int(per_s / 6)))
        for _ in range(senders):
            _, connection = await loop.create_connection(
                lambda: _http.Connection(answered, lost), task.host, task.http_port
            )
            free.put_nowait(connection)
        begin_us, due_us, number, late_us = now_us(), 0.0, 0, 0.0
        while True:
            due_us += dice.expovariate(task.per_s) * 1e6
            if due_us > task.seconds * 1e6:
                break
            # uvloop's timers count whole milliseconds, and may ring before it is time.
            while (ahead_us := begin_us + due_us - now_us()) > 0:  # noqa: ASYNC110
                await asyncio.sleep(ahead_us / 1e6)
            late_us = max(late_us, -ahead_us)
            together.append((number, int(begin_us + due_us)))
            bodies.append(_actions.body(task.run, number, task.users, clock()))
            number += 1
            if len(together) < task.batch:
                continue
            connection = await self._next(free)
            under_way[connection], together = together, []
            whole = bodies[0] if task.batch == 1 else b'{"actions":[' + b",".join(bodies) + b"]}"
            bodies.clear()
            connection.send(_http.request(head, whole))
        for _ in range(senders):
            (await self._next(free)).close()
        return late_us

    async def _next(self, free: asyncio.Queue[_http.Connection]) -> _http.Connection:
        async with asyncio.timeout(_ANSWER_S):
            connection = await free.get()
        if self._lost:
            raise ConnectionError("the door closed a connection")
        return connection

    def _consume(self, assigned: threading.Event) -> None:
        consumer = Consumer(
            {
                "bootstrap.servers": self._task.bootstrap,
                "group.id": f"bench-{secrets.token_hex(4)}",
                "auto.offset.reset": "latest",
                "enable.auto.commit": False,
            }
        )
        consumer.subscribe([BOARD_CHANGED.name], on_assign=lambda *_: assigned.set())
        while not self._ended.is_set():
            message = consumer.poll(0.1)
            if message is None or message.error() is not None:
                continue
            at_us = now_us()
            found = _REVISION.search(cast(Any, message.value()))
            if found is not None and message.key() == MAIN_PERIOD.encode():
                self._records.append((at_us, int(found[1])))
        consumer.close()

    def _look(self) -> None:
        """Valkey tells nobody, so it is asked every 5 ms."""
        meta, last = board(MAIN_PERIOD)[2], -1
        with redis.Redis.from_url(self._task.redis_url) as client:
            while not self._ended.wait(LOOK_EVERY_S):
                shown: Any = client.hget(meta, "revision")
                revision = int(shown or 0)
                if revision != last:
                    self._boards.append((now_us(), revision))
                    last = revision


def main() -> int:
    task: Any = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(Sending(task).run())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
