"""Handing records to Kafka from an event loop, and knowing what became of each.

One idempotent producer that waits for all in-sync replicas, with a thread that polls it. Its
delivery reports pass to the loop in bursts: one wake-up for however many came together. Every
answer comes within `timeout_ms`, by the loop's own timer, also when the producer is stuck.

An `Unavailable` says that a record was not confirmed, not that it was not written: it may
still reach the log. Whoever repeats it does so under the same action id.

Only a report that names an offset confirms a record (`offset_of`).
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from core.errors import Unavailable
from service import logs, metrics

Headers = Sequence[tuple[str, bytes]]
Item = tuple[bytes | None, bytes | None, Headers]
"""Key, value and headers of one record."""

_SWEEP_EVERY_S = 0.05
_POLL_S = 0.1
_LOG_EVERY_S = 5.0
_REPLACE_EVERY_S = 1.0
_STUCK_S = 6.0
_DRAIN_S = 10.0
_LIBRARY_MARGIN_MS = 200
_STATISTICS_MS = 100

_UNCONFIRMED: Final = "The action could not be written down in time; send it again."
_FULL: Final = "Too many actions are waiting to be written down; send it again."
_STOPPED: Final = "This process is stopping; send it again."

_log = logs.get("storage.kafka.delivery")


class _Request:
    """The records of one call, and the one future that answers for all of them.

    `report` takes the report of its first record, in the thread that polls.
    """

    __slots__ = ("deadline_s", "future", "left", "line", "offset", "open", "outcomes", "started_s")

    def __init__(
        self,
        future: asyncio.Future[Any],
        started_s: float,
        deadline_s: float,
        size: int,
        outcomes: list[Unavailable | None] | None,
    ) -> None:
        self.future, self.started_s, self.deadline_s = future, started_s, deadline_s
        self.line: _Line | None = None
        self.left = size
        self.open = bytearray(b"\1") * size
        """By index whether its outcome is still to come."""
        self.outcomes = outcomes
        """By index; None where a single record is asked for."""
        self.offset = -1

    def report(self, error: KafkaError | None, message: Message) -> None:
        self.report_of(0, error, message)

    def report_of(self, index: int, error: KafkaError | None, message: Message) -> None:
        assert self.line is not None
        self.line.pass_to_loop((self, index, error, message))


_Report = tuple[_Request, int, KafkaError | None, Message]
"""Request, index in it, error, and the record as it was written."""


class Delivery:
    """One per process; all but the poll thread belongs to the event loop that called `start`.

    `acknowledged` holds, per topic and partition, the highest offset confirmed so far; a lower one
    after it is an alarm, and takes its place.
    `extra` are librdkafka settings on top (security and the like).
    """

    def __init__(
        self,
        bootstrap: str,
        *,
        client_id: str,
        timeout_ms: int = 4000,
        queue_records: int = 100_000,
        queue_kib: int = 65_536,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.acknowledged: dict[tuple[str, int], int] = {}
        self._timeout_s = timeout_ms / 1000
        self._conf: dict[str, Any] = {
            "bootstrap.servers": bootstrap,
            "client.id": client_id,
            "acks": "all",
            "enable.idempotence": True,
            "compression.type": "lz4",
            "linger.ms": 1,
            # The partitioner of Kafka's own clients, so that every producer agrees on a key's partition.
            "partitioner": "murmur2_random",
            "queue.buffering.max.messages": queue_records,
            "queue.buffering.max.kbytes": queue_kib,
            "message.timeout.ms": max(100, timeout_ms - _LIBRARY_MARGIN_MS),
            # A broker that is paused keeps its connection; only this ends it and tries another.
            "socket.timeout.ms": max(1000, timeout_ms - 2 * _LIBRARY_MARGIN_MS),
            "socket.connection.setup.timeout.ms": 3000,
            "socket.keepalive.enable": True,
            "socket.nagle.disable": True,
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 1000,
            "retry.backoff.ms": 50,
            "retry.backoff.max.ms": 500,
            # The one way to see that the idempotent producer has its id.
            "statistics.interval.ms": _STATISTICS_MS,
            "log.connection.close": False,
            **(extra or {}),
        }
        self._line: _Line | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: deque[_Request] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._replaced_at_s = float("-inf")
        self._stopping = False
        self._delivered = metrics.DELIVERY_SECONDS.labels("delivered")
        self._failed = metrics.DELIVERY_SECONDS.labels("failed")
        self._last_logged_s: dict[str, float] = {}

    @property
    def ready(self) -> bool:
        """Whether a broker answered and the producer has its id: a record waits for neither."""
        return self._line is not None and self._line.warm.is_set()

    async def start(self, timeout_s: float = 15.0) -> None:
        """Begin, and return once the first record would not have to wait. Writes nothing.

        May be called again after it raised; meanwhile the producer goes on trying.

        Raises:
            Unavailable: no broker answered in time.
        """
        if self._line is None:
            self._stopping = False
            self._loop = asyncio.get_running_loop()
            self._line = _Line(self._conf, self._loop, self)
        if not await asyncio.to_thread(self._line.warm_up, timeout_s):
            raise Unavailable("Kafka does not answer.")

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()
    ) -> asyncio.Future[int]:
        """Hand over one record. The future gives its offset, or raises Unavailable."""
        request = self._begin(1, None)
        if request.left:
            self._produce(request, 0, request.report, topic, (key, value, headers))
        return request.future

    def send_many(self, topic: str, items: Sequence[Item]) -> asyncio.Future[list[Unavailable | None]]:
        """Hand over several records. The future gives, in their order, None or why it is not confirmed."""
        request = self._begin(len(items), [None] * len(items))
        if not items:
            request.future.set_result([])
        for index, item in enumerate(items) if request.left else ():
            self._produce(request, index, partial(request.report_of, index), topic, item)
        return request.future

    async def stop(self, deadline_s: float = 5.0) -> None:
        """Take no more, wait for what is under way, and answer Unavailable for what is still open then."""
        self._stopping = True
        line, self._line = self._line, None
        if line is not None:
            await asyncio.to_thread(line.close, deadline_s)
            # The reports of the last poll are in the loop's queue by now; let them in first.
            await asyncio.sleep(0)
            line.pass_on()
        for request in self._open:
            self._give_up(request, _STOPPED)
        self._open.clear()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    def _begin(self, size: int, outcomes: list[Unavailable | None] | None) -> _Request:
        loop = self._loop if self._loop is not None else asyncio.get_running_loop()
        now_s = loop.time()
        request = _Request(loop.create_future(), now_s, now_s + self._timeout_s, size, outcomes)
        if not size:
            return request
        if self._line is None or self._stopping:
            self._give_up(request, _STOPPED)
        else:
            request.line = self._line
            self._open.append(request)
            if self._sweeper is None:
                self._sweeper = loop.call_later(_SWEEP_EVERY_S, self._sweep)
        return request

    def _produce(
        self, request: _Request, index: int, report: Callable[..., None], topic: str, item: Item
    ) -> None:
        line = request.line
        assert line is not None
        key, value, headers = item
        try:
            line.produce(topic, value, key, on_delivery=report, headers=list(headers) or None)
        except BufferError:
            self._say("producer_queue_full", topic=topic)
            self._settle(request, index, _FULL)
        except KafkaException as error:
            self._say("producer_refused", topic=topic, detail=str(error))
            self._settle(request, index, _UNCONFIRMED)
            if error.args and isinstance(error.args[0], KafkaError) and error.args[0].fatal():
                self._replace(line)

    def _take(self, line: _Line, report: _Report) -> None:
        """One delivery report, on the loop."""
        request, index, error, message = report
        if error is None:
            line.failing_since_s = None
            offset = offset_of(message)
            if offset is None:
                self._say("record_without_offset", topic=message.topic(), partition=message.partition())
                self._settle(request, index, _UNCONFIRMED)
                return
            self._note(line, (message.topic(), message.partition()), offset)
            request.offset = offset
            self._settle(request, index, None)
            return
        self._say("record_not_confirmed", topic=message.topic(), code=error.name(), detail=error.str())
        self._settle(request, index, _UNCONFIRMED)
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._replace(line)
        else:
            self._not_confirmed(line)

    def _note(self, line: _Line, place: tuple[Any, Any], offset: int) -> None:
        """Where a record was confirmed; offsets rise as long as the log loses nothing."""
        last = line.last.get(place, -1)
        line.last[place] = offset
        if offset <= last:
            self._lost(place, last, offset)
        elif offset > self.acknowledged.get(place, -1):
            self.acknowledged[place] = offset

    def _lost(self, place: tuple[str, int], last: int, offset: int) -> None:
        """A record was confirmed where one stood that had been confirmed before: the log lost its end."""
        self.acknowledged[place] = offset
        metrics.LOST_RECORDS.inc(last - offset + 1)
        _log.error(
            "confirmed_records_lost",
            topic=place[0],
            partition=place[1],
            confirmed=last,
            now=offset,
            at_least=last - offset + 1,
        )

    def _settle(self, request: _Request, index: int, failure: str | None) -> None:
        """Record `index` of a request has its outcome; the last one answers."""
        if not request.open[index]:
            return
        request.open[index] = 0
        request.left -= 1
        if failure is not None:
            error = Unavailable(failure)
            if request.outcomes is None:
                self._answer(request, error)
                return
            request.outcomes[index] = error
        if not request.left:
            self._answer(request, None)

    def _give_up(self, request: _Request, why: str) -> None:
        """Everything of a request that is still open is Unavailable."""
        for index in range(len(request.open)):
            self._settle(request, index, why)

    def _answer(self, request: _Request, error: Unavailable | None) -> None:
        loop = request.future.get_loop()
        outcomes = request.outcomes
        failed = error is not None or (outcomes is not None and any(outcomes))
        (self._failed if failed else self._delivered).observe(loop.time() - request.started_s)
        # A caller that went away has cancelled its future; its records are on their way all the same.
        if request.future.done():
            return
        if error is not None:
            request.future.set_exception(error)
            # Whoever never awaits it is not to be warned about in a log of their own.
            request.future.exception()
        else:
            request.future.set_result(request.offset if outcomes is None else outcomes)

    def _sweep(self) -> None:
        """Answer what has waited too long. Requests are in the order of their deadlines."""
        self._sweeper = None
        loop = self._loop
        if loop is None:
            return
        now_s, late = loop.time(), 0
        while self._open and (not self._open[0].left or self._open[0].deadline_s <= now_s):
            request = self._open.popleft()
            if request.left:
                late += 1
                self._give_up(request, _UNCONFIRMED)
                if request.line is not None:
                    self._not_confirmed(request.line)
        if late:
            self._say("deliveries_late", requests=late)
        if self._open:
            self._sweeper = loop.call_later(_SWEEP_EVERY_S, self._sweep)

    def _not_confirmed(self, line: _Line) -> None:
        """A record was given up. Where none is confirmed for long, the fault may be the producer's own.

        It may have lost every broker for good (`storage.kafka.silence`); while Kafka is away another
        one does no harm.
        """
        now_s = asyncio.get_running_loop().time()
        if line.failing_since_s is None:
            line.failing_since_s = now_s
        elif now_s - line.failing_since_s >= _STUCK_S:
            self._replace(line, fatal=False)

    def _replace(self, line: _Line, fatal: bool = True) -> None:
        """A new producer for one that failed for good, or seems to; the old one reports what it still has."""
        if line is not self._line or self._loop is None or self._stopping:
            return
        pause_s = self._replaced_at_s + _REPLACE_EVERY_S - self._loop.time()
        if pause_s > 0:
            self._loop.call_later(pause_s, self._replace, line, fatal)
            return
        self._replaced_at_s = self._loop.time()
        if fatal:
            metrics.PRODUCERS_REPLACED.inc()
            _log.error("producer_replaced")
        else:
            self._say("producer_given_up", unconfirmed_s=_STUCK_S)
        self._line = _Line(self._conf, self._loop, self)
        # What it confirms was produced after all that was confirmed so far.
        self._line.last.update(self.acknowledged)
        threading.Thread(target=line.close, args=(_DRAIN_S,), name="kafka-drain", daemon=True).start()

    def _say(self, event: str, **fields: Any) -> None:
        """A warning, at most one of its kind every few seconds: a broken broker breaks every record."""
        now_s = time.monotonic()
        if now_s - self._last_logged_s.get(event, float("-inf")) >= _LOG_EVERY_S:
            self._last_logged_s[event] = now_s
            _log.warning(event, **fields)


class _Line:
    """One producer, the thread that polls it, and the way of its reports to the loop."""

    def __init__(self, conf: Mapping[str, Any], loop: asyncio.AbstractEventLoop, owner: Delivery) -> None:
        self.warm = threading.Event()
        self.last: dict[tuple[str, int], int] = {}
        """By topic and partition the offset confirmed last; they rise as long as the log loses nothing."""
        self.failing_since_s: float | None = None
        """Since when records are given up and none is confirmed, by the loop's clock."""
        self._loop, self._owner = loop, owner
        self._reports: deque[_Report] = deque()
        self._woken = False
        self._ending = threading.Event()
        self._producer = Producer(
            {
                **conf,
                "error_cb": self._on_error,
                "stats_cb": self._on_statistics,
            },
            logger=_LibraryLog(owner),
        )
        self.produce = self._producer.produce
        """Raises BufferError when the queue is full, KafkaException when refused at once."""
        self._thread = threading.Thread(target=self._poll, name="kafka-poll", daemon=True)
        self._thread.start()

    def warm_up(self, timeout_s: float) -> bool:
        """Wait for metadata and for the producer's id. Blocks; not for the loop's thread."""
        deadline_s = time.monotonic() + timeout_s
        try:
            self._producer.list_topics(timeout=timeout_s)
        except KafkaException:
            return False
        return self.warm.wait(max(0.0, deadline_s - time.monotonic()))

    def close(self, deadline_s: float) -> None:
        """Deliver what is queued, report the rest as failed, end the thread and the producer. Blocks."""
        self._flush(deadline_s)
        self._producer.purge()
        self._flush(_POLL_S)
        self._ending.set()
        self._thread.join(timeout=5 * _POLL_S)
        # It calls back here, and circles are looked for too seldom: each would keep some 10 MB.
        del self._producer, self.produce

    def _flush(self, within_s: float) -> None:
        until_s = time.monotonic() + within_s
        while (left_s := until_s - time.monotonic()) > 0:
            try:
                self._producer.flush(left_s)
                return
            except (KafkaException, SystemError):
                # The producer's fatal error, which is known; reports may still be on their way.
                self._ending.wait(_SWEEP_EVERY_S)

    def pass_on(self) -> None:
        """Take all reports that have come, on the loop."""
        # Cleared first: a report that comes while we take them wakes us once more.
        self._woken = False
        while self._reports:
            self._owner._take(self, self._reports.popleft())

    def _poll(self) -> None:
        while not self._ending.is_set():
            try:
                self._producer.poll(_POLL_S)
            except (KafkaException, SystemError) as failure:
                # A fatal error comes out here; what is queued still has its reports to come.
                if (fatal := fatal_error(failure)) is not None:
                    self._on_error(fatal)
                elif isinstance(failure, SystemError):
                    raise
                self._ending.wait(_SWEEP_EVERY_S)

    def pass_to_loop(self, report: _Report) -> None:
        self._reports.append(report)
        if not self._woken:
            self._woken = True
            self._call(self.pass_on)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            # The loop is closed: nobody is left to be told.
            self._ending.set()

    def _on_error(self, error: KafkaError) -> None:
        self._owner._say("kafka_trouble", code=error.name(), detail=error.str())
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._call(self._owner._replace, self)

    def _on_statistics(self, statistics: str) -> None:
        if not self.warm.is_set() and json.loads(statistics).get("eos", {}).get("idemp_state") == "Assigned":
            self.warm.set()


def offset_of(message: Message) -> int | None:
    """Where a record stands, by its report without an error; only one that says so is in the log.

    librdkafka reports a record as delivered also when it was refused and a later one of its partition
    was taken: a broker that keeps the order would not have taken that one. But of a producer that it has
    nothing of in the partition yet, Kafka takes whatever comes first, and a producer has up to five
    requests on their way. Such a report has no offset, like one that the broker already has the record.

    Source: https://github.com/confluentinc/confluent-kafka-go/issues/921, and `rd_kafka_dr_implicit_ack`
    in https://github.com/confluentinc/librdkafka/blob/master/src/rdkafka_broker.c
    """
    offset: int | None = message.offset()
    return offset if offset is not None and offset >= 0 else None


def fatal_error(raised: BaseException) -> KafkaError | None:
    """The error after which a producer confirms nothing any more, if that is what was raised.

    librdkafka's binding sets it as the exception of the poll that is under way; of the delivery report
    that is called next in the same poll Python then makes a SystemError, with the error as its cause.
    """
    cause = raised.__cause__ if isinstance(raised, SystemError) else raised
    if isinstance(cause, KafkaException) and cause.args and isinstance(cause.args[0], KafkaError):
        error: KafkaError = cause.args[0]
        return error if error.fatal() or error.code() == KafkaError._FATAL else None
    return None


@contextmanager
def hearing() -> Iterator[None]:
    """While a producer is given records, or says what became of them; it raises where it has failed.

    Raises:
        Unavailable: Kafka refuses, the queue is full, or the producer has failed for good and is to be
            made anew.
    """
    try:
        yield
    except (BufferError, KafkaException, SystemError) as error:
        if (fatal := fatal_error(error)) is not None:
            metrics.PRODUCERS_REPLACED.inc()
            _log.error("producer_replaced", detail=fatal.str()[:300])
        elif isinstance(error, SystemError):
            raise
        raise Unavailable(f"Kafka: {error}") from error


class _LibraryLog:
    """librdkafka's own log lines, which repeat once per broker and second while one is away."""

    def __init__(self, owner: Delivery) -> None:
        self._owner = owner

    def log(self, level: int, template: str, *arguments: Any) -> None:
        self._owner._say("kafka_library", detail=template % arguments if arguments else template)
