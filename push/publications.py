"""Publications as Kafka brings them: every partition of `board.changed`, no group, a thread.

Reading begins with some earlier records of each partition, so that a fresh process knows what the
last change was and can bring forward who comes from another replica; then it goes on. Nothing is
committed anywhere: where a reader of the feed stands is told by positions, not by offsets. What
Kafka loses or delays is brought by the comparison with the standings (`push.comparison`), so no
error here ends anything.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from core import feed
from core.errors import Unreadable
from core.feed import Publication
from core.topics import BOARD_CHANGED, MAX_RECORD_BYTES
from service import logs
from storage.kafka.silence import Silence

EARLIER_RECORDS: Final = 64
"""How many records of each partition are read from before the start: a few seconds' worth of a busy
board, in which a client finds its way from one replica to another."""

_BATCH: Final = 200
_POLL_S: Final = 0.2
_ASK_TIMEOUT_S: Final = 5.0
_RETRY_S: Final = 1.0
STOP_TIMEOUT_S: Final = 1.0
_BATCHES_AHEAD: Final = 4
"""How many batches may wait for the event loop; then the thread waits, and Kafka keeps the rest."""

_log = logs.get("push.publications")


class Publications:
    """Reads in a thread of its own and hands batches to the event loop, in order.

    `wanted` says of a record's key (the period id) whether anybody could watch it; other
    records are not even decoded. `deliver` is called on the loop. `fetch_wait_ms` is how long a
    broker may keep an empty answer back; a real one answers as soon as there is a record.
    """

    def __init__(
        self,
        bootstrap: str,
        *,
        wanted: Callable[[str], bool],
        deliver: Callable[[Sequence[Publication]], None],
        fetch_wait_ms: int = 500,
        topic: str = BOARD_CHANGED.name,
    ) -> None:
        self._bootstrap, self._topic = bootstrap, topic
        self._fetch_wait_ms = fetch_wait_ms
        self._wanted, self._deliver = wanted, deliver
        self._stopping = threading.Event()
        self._slots = threading.Semaphore(_BATCHES_AHEAD)
        self._partitions = 0
        self._failing: str | None = None
        self.caught_up = asyncio.Event()
        """Set once what each partition held at the start has been delivered."""

    @property
    def assigned(self) -> bool:
        """Whether the consumer has its partitions."""
        return self._partitions > 0

    async def run(self) -> None:
        """Read until cancelled. Raises what the thread raises: that is a defect."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def read() -> None:
            failure: BaseException | None = None
            try:
                self._read(loop)
            except BaseException as error:
                failure = error
            self._call(loop, lambda: _settle(ended, failure))

        # A daemon: a question that Kafka does not answer must not hold up the end of the process.
        threading.Thread(target=read, name="publications", daemon=True).start()
        try:
            await asyncio.shield(ended)
        finally:
            self._stopping.set()
            await asyncio.wait([ended], timeout=STOP_TIMEOUT_S)

    # On the thread

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stopping.is_set():
            consumer = Consumer(
                {
                    "bootstrap.servers": self._bootstrap,
                    # The client insists on a name; nothing is joined and nothing committed.
                    "group.id": "trueboard-push",
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    # A log that was cut or made anew is taken up at its end; the comparison fills in.
                    "auto.offset.reset": "latest",
                    "fetch.wait.max.ms": self._fetch_wait_ms,
                    "fetch.message.max.bytes": MAX_RECORD_BYTES,
                    "queued.max.messages.kbytes": 2 * MAX_RECORD_BYTES // 1024,
                    "reconnect.backoff.max.ms": 1000,
                    "log_level": 2,
                },
                logger=_Quiet(),
            )
            try:
                self._follow(consumer, loop)
            except _NoUse as error:
                self._trouble("consumer_replaced", str(error))
                self._stopping.wait(_RETRY_S)
            finally:
                consumer.close()

    def _follow(self, consumer: Any, loop: asyncio.AbstractEventLoop) -> None:
        starts = self._assign(consumer)
        missing = {partition: high for partition, (start, high) in starts.items() if start < high}
        silence = Silence()
        while not self._stopping.is_set():
            if not missing and not self.caught_up.is_set():
                self._call(loop, self.caught_up.set)
            batch, arrived = [], _arrived(consumer)
            if arrived:
                silence.heard()
            elif silence.is_deaf(consumer, self._topic, min(starts, default=0)):
                raise _NoUse("Kafka does not answer")
            for message in arrived:
                if (error := message.error()) is not None:
                    self._note(error)
                    continue
                self._recovered()
                if message.offset() + 1 >= missing.get(message.partition(), 1 << 63):
                    del missing[message.partition()]
                if (publication := self._decode(message)) is not None:
                    batch.append(publication)
            if batch:
                self._hand_over(batch, loop)

    def _assign(self, consumer: Any) -> dict[int, tuple[int, int]]:
        """Take every partition, each from some earlier record; where each starts and where it ends."""
        try:
            described = consumer.list_topics(self._topic, timeout=_ASK_TIMEOUT_S).topics[self._topic]
            if described.error is not None:
                raise KafkaException(described.error)
            starts = {}
            for partition in sorted(described.partitions):
                low, high = consumer.get_watermark_offsets(
                    TopicPartition(self._topic, partition), timeout=_ASK_TIMEOUT_S
                )
                starts[partition] = (max(low, high - EARLIER_RECORDS), high)
            consumer.assign([TopicPartition(self._topic, p, start) for p, (start, _) in starts.items()])
        except KafkaException as error:
            raise _NoUse(error.args[0].str()) from error
        self._partitions = len(starts)
        self._recovered()
        _log.info("publications_assigned", topic=self._topic, partitions=len(starts))
        return starts

    def _decode(self, message: Any) -> Publication | None:
        key = message.key()
        if key is None or not self._wanted(key.decode("utf-8", "replace")):
            return None
        try:
            return feed.decode(message.value())
        except Unreadable as error:
            _log.error(
                "publication_unreadable",
                partition=message.partition(),
                offset=message.offset(),
                reason=error.reason,
                detail=error.detail,
            )
            return None

    def _hand_over(self, batch: list[Publication], loop: asyncio.AbstractEventLoop) -> None:
        while not self._slots.acquire(timeout=_POLL_S):
            if self._stopping.is_set():
                return

        def deliver() -> None:
            self._slots.release()
            self._deliver(batch)

        self._call(loop, deliver)

    def _call(self, loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
        try:
            loop.call_soon_threadsafe(what)
        except RuntimeError:
            # The loop was closed while this thread was polling: the process ends.
            self._stopping.set()

    def _note(self, error: KafkaError) -> None:
        if error.fatal():
            raise _NoUse(error.str())
        self._trouble("kafka_unavailable", error.str())

    def _trouble(self, event: str, detail: str) -> None:
        """One line when trouble begins or changes, not one per poll."""
        if detail != self._failing:
            self._failing = detail
            _log.warning(event, detail=detail)

    def _recovered(self) -> None:
        if self._failing is not None:
            self._failing = None
            _log.info("kafka_available")


def _arrived(consumer: Any) -> list[Any]:
    """The next messages as soon as there is one; none after a while without.

    Asked for a batch the client would wait for all of it, so the first is waited for alone.
    """
    first = consumer.poll(_POLL_S)
    return [] if first is None else [first, *consumer.consume(_BATCH, 0)]


def _settle(ended: asyncio.Future[None], failure: BaseException | None) -> None:
    if ended.done():
        return
    if failure is None:
        ended.set_result(None)
    else:
        ended.set_exception(failure)


class _NoUse(Exception):
    """This consumer may never work again; another one may."""


class _Quiet:
    """Takes librdkafka's own log lines: what matters arrives as errors of `consume`."""

    def log(self, level: int, text: str, *args: Any) -> None:
        _log.debug("librdkafka", level=level, text=text % args if args else text)

    def addFilter(self, *_: Any) -> None:
        """Part of the logger's shape; nothing is filtered."""
