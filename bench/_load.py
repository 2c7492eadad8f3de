"""The load of `bench/ingest.py`, in a process of its own: a closed loop over keep-alive connections.

Reads what to do as JSON from standard input and writes what came of it to standard output. Every
connection sends its next request when the last was answered; every action has an id of its own.
"""

from __future__ import annotations

import asyncio
import sys
import time
from array import array
from collections import Counter
from typing import Any

import msgspec
import uvloop

from bench import _actions, _http
from bench._report import quantile


class Task(msgspec.Struct, kw_only=True):
    """What to send: `batch` actions a request (0: one, by itself), ids from `first` on."""

    host: str
    port: int
    token: str
    run: str
    first: int
    seconds: float
    connections: int
    users: int
    batch: int = 0
    wait_s: int = 0


class Done(msgspec.Struct, kw_only=True):
    """What came of it; latencies in ms."""

    requests: int
    actions: int
    seconds: float
    statuses: dict[str, int]
    p50_ms: float
    p99_ms: float
    cpu_s: float


class Load:
    def __init__(self, task: Task) -> None:
        self._task = task
        extra = [f"Authorization: Bearer {task.token}"]
        if task.wait_s:
            extra.append(f"Prefer: wait={task.wait_s}")
        path = "/v1/actions/batch" if task.batch else "/v1/actions"
        self._head = _http.head(f"{task.host}:{task.port}", path, *extra)
        self._clock = _actions.Clock()
        self._next = task.first
        self._statuses: Counter[int] = Counter()
        self._latencies_s = array("d")
        self._busy = 0
        self._until_s = 0.0
        self._ended: asyncio.Future[None]

    async def run(self) -> Done:
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        connections = []
        for _ in range(self._task.connections):
            _, connection = await loop.create_connection(
                lambda: _http.Connection(self._answered, self._lost), self._task.host, self._task.port
            )
            connections.append(connection)
        begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
        self._until_s = begun_s + self._task.seconds
        for connection in connections:
            self._busy += 1
            self._send(connection)
        await self._ended
        seconds = time.perf_counter() - begun_s
        for connection in connections:
            connection.close()
        latencies = sorted(self._latencies_s)
        return Done(
            requests=len(latencies),
            actions=self._next - self._task.first,
            seconds=seconds,
            statuses={str(status): count for status, count in self._statuses.items()},
            p50_ms=quantile(latencies, 0.5) * 1000,
            p99_ms=quantile(latencies, 0.99) * 1000,
            cpu_s=time.process_time() - begun_cpu_s,
        )

    def _send(self, connection: _http.Connection) -> None:
        task, occurred_at = self._task, self._clock()
        if task.batch:
            numbers = range(self._next, self._next + task.batch)
            bodies = b",".join(_actions.body(task.run, n, task.users, occurred_at) for n in numbers)
            body = b'{"actions":[%s]}' % bodies
        else:
            body = _actions.body(task.run, self._next, task.users, occurred_at)
        self._next += task.batch or 1
        connection.sent_s = time.perf_counter()
        connection.send(_http.request(self._head, body))

    def _answered(self, connection: _http.Connection, status: int, body: bytes) -> None:
        now_s = time.perf_counter()
        self._latencies_s.append(now_s - connection.sent_s)
        self._statuses[_of_batch(status, body) if self._task.batch else status] += 1
        if now_s < self._until_s:
            self._send(connection)
            return
        self._busy -= 1
        if not self._busy and not self._ended.done():
            self._ended.set_result(None)

    def _lost(self) -> None:
        if not self._ended.done():
            self._ended.set_exception(ConnectionError("the server closed a connection"))


def _of_batch(status: int, body: bytes) -> int:
    """A batch's status; 207 if it was answered, but not all of its actions were taken."""
    return 207 if status == 200 and b'"error"' in body else status


def main() -> int:
    task: Any = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(Load(task).run())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
