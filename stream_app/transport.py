"""Partition batches as Faust events, from positions that only Postgres knows.

Stock Faust spends some 65 µs on a record and acknowledges what its agent failed on. Here one event
is what one fetch brought of one partition (2–4 µs a record), and no record is handed on before its
partition was sought, in this generation, to where the ledger ends. The group's committed offset
is kept for lag and autoscaling, and read by nobody.

Leans on private parts of faust-streaming 0.15.3 and aiokafka 0.14.0, both pinned.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

import faust
from faust.transport.consumer import ensure_TP
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types.tuples import TP, ConsumerMessage, ack_lock
from mode.utils.futures import notify

from service import failpoints

GATHER_FROM: Final = 4
"""Records of one fetch from which on the broker is asked to gather."""
GATHER_BYTES: Final = 65_536
GATHER_MS: Final = 10

SEEK_WAIT_S: Final = 10.0
"""How long a rebalance waits for the seek before it goes on without."""


class BatchMessage(ConsumerMessage):  # type: ignore[misc]
    """A run of one partition's records as one message.

    `value` is the list of aiokafka's records, `offset` the last one's; `seek` numbers the seek it
    came after. `acked` lives in a list of its own, so the queue of what is not yet acknowledged
    never keeps the records alive.
    """

    __slots__ = ("seek", "token")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.token = [False]
        self.seek = 0
        super().__init__(*args, **kwargs)

    @property
    def acked(self) -> bool:
        return self.token[0]

    @acked.setter
    def acked(self, value: bool) -> None:
        self.token[0] = value


class RawSchema(faust.Schema):  # type: ignore[misc]
    """No codec: the agent decodes, so that an unreadable record is a case, not an accident."""

    def compile(self, app: Any, **_: Any) -> Callable[..., Awaitable[Any]]:
        create = app.create_event

        async def decode(message: Any, *, propagate: bool = False) -> Any:
            return create(message.key, message.value, message.headers, message)

        return decode


def next_fetch(records: int, longest_ms: int, idle_ms: int) -> tuple[int, int]:
    """The least bytes that the broker waits for, and for how many ms, after a fetch of so many records.

    While little comes, a record is fetched at once, and the others are not asked for long: one that
    has just been fetched is not among them and would wait behind. Where nothing comes all are asked
    for, and the broker answers as soon as there is something: then it may be asked less often. Where
    several come together the broker gathers for a moment: otherwise each is fetched by itself, and the
    fetches cost more than the judging. A backlog has those bytes ready and waits for nothing.
    """
    if not records:
        return 1, idle_ms
    return (GATHER_BYTES, GATHER_MS) if records >= GATHER_FROM else (1, longest_ms)


class _ConsumerThread(AIOKafkaConsumerThread):  # type: ignore[misc]
    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Faust writes 1500 ms down; a partition must not wait that long behind an idle fetch.
        consumer._fetch_max_wait_ms = self.app.fetch_max_wait_ms
        # Nor five minutes behind a topic that was away for a moment.
        consumer._client._metadata_max_age_ms = self.app.metadata_max_age_ms
        return consumer

    def fetched(self, records: int) -> None:
        """So many came of the last fetch: what the next one waits for follows from that."""
        if (consumer := self._consumer) is not None:
            fetcher = consumer._fetcher
            fetcher._fetch_min_bytes, fetcher._fetch_max_wait_ms = next_fetch(
                records, self.app.fetch_max_wait_ms, self.app.fetch_idle_wait_ms
            )


class BatchConsumer(Consumer):  # type: ignore[misc]
    """Faust's consumer, handing on batches and seeking to the ledger's positions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._inflight: defaultdict[TP, deque[tuple[int, list[bool]]]] = defaultdict(deque)
        self._sought: dict[TP, int] = {}
        self._seeks = 0
        self._seeking: set[asyncio.Task[None]] = set()
        super().__init__(*args, **kwargs)

    def _new_consumer_thread(self) -> Any:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    # Back-pressure is the bounded queue that the callback awaits.
    def on_buffer_full(self, tp: TP) -> None: ...

    def on_buffer_drop(self, tp: TP) -> None: ...

    async def verify_all_partitions_active(self) -> None:
        """Nothing: Faust's own watch ends the app over a partition whose offset is out of range, which
        has no position for a moment. The worker watches its progress itself."""

    async def perform_seek(self) -> None:
        """Seek every assigned partition to where the ledger ends.

        Faust gives this a minute and ends the app if it takes longer, so where Postgres is away
        the partitions stay paused and the seek goes on by itself.
        """
        self._inflight.clear()
        self._sought.clear()
        assigned = self.assignment()
        if assigned:
            self.pause_partitions(assigned)
            seeking = asyncio.create_task(self._seek_all(assigned, self.app.consumer_generation_id))
            self._seeking.add(seeking)
            seeking.add_done_callback(self._seeking_ended)
            await asyncio.wait({seeking}, timeout=SEEK_WAIT_S)

    async def _seek_all(self, assigned: set[TP], generation: int) -> None:
        offsets = await self.app.positions(
            {tp.partition for tp in assigned}, lambda: self._changed(generation)
        )
        wanted = {tp: offsets[tp.partition] for tp in assigned if tp.partition in offsets}
        if self._changed(generation) or not wanted:
            return
        self._seeks += 1
        await self.seek_wait(wanted)
        for tp, offset in wanted.items():
            self._read_offset[tp] = offset
            self._sought[tp] = self._seeks
        self.resume_partitions(wanted)

    def _seeking_ended(self, seeking: asyncio.Task[None]) -> None:
        self._seeking.discard(seeking)
        if not seeking.cancelled() and seeking.exception() is not None:
            self.app.on_defect(seeking.exception())

    def _changed(self, generation: int) -> bool:
        return bool(self.should_stop) or generation != self.app.consumer_generation_id

    async def seek_anew(self) -> None:
        """Seek every assigned partition as after a rebalance, unless that is under way."""
        if not self._seeking:
            await self.perform_seek()

    async def seek_again(self, partition: int, offset: int) -> None:
        """Read one partition again from here; what was handed on after an earlier seek is void."""
        for tp in [tp for tp in self.assignment() if tp.partition == partition]:
            self._sought.pop(tp, None)
            self._inflight.pop(tp, None)
            self._seeks += 1
            await self.seek_wait({tp: offset})
            self._read_offset[tp] = offset
            self._sought[tp] = self._seeks

    def stop_partition(self, partition: int) -> None:
        """Hand on nothing more of this partition in this generation."""
        tps = {tp for tp in self.assignment() if tp.partition == partition}
        for tp in tps:
            self._sought.pop(tp, None)
        self.pause_partitions(tps)

    def is_current(self, message: BatchMessage) -> bool:
        """Whether this batch came after the last seek of its partition, in this generation."""
        return self._sought.get(message.tp) == message.seek

    async def on_partitions_revoked(self, revoked: Iterable[TP]) -> None:
        await super().on_partitions_revoked(revoked)
        self._inflight.clear()
        self._sought.clear()

    def ack(self, message: Any) -> bool:
        with ack_lock:
            if message.acked:
                return False
            message.acked = True
            if not self.app.topics.acks_enabled_for(message.topic):
                return False
            self._unacked_messages.discard(message)
            self._acked[message.tp]
            self._n_acked += 1
            notify(self._waiting_for_ack)
            return True

    def _new_offset(self, tp: TP) -> int | None:
        """The end of the longest acknowledged prefix of what was handed on."""
        handed, last = self._inflight[tp], None
        while handed and handed[0][1][0]:
            last = handed.popleft()[0]
        return None if last is None else last + 1

    async def _drain_messages(self, fetcher: Any) -> None:
        try:
            while not (self._stopped.is_set() or fetcher._stopped.is_set()):
                await asyncio.sleep(0)
                sought = dict(self._sought)
                records, active = await self._wait_next_records(1.0)
                await failpoints.reach_alone("stream.brought")
                if records is None or self.should_stop:
                    continue
                if not self.flow_active:
                    await self.perform_seek()
                    continue
                self._thread.fetched(sum(map(len, records.values())))
                await self._hand_on(records, active, sought)
        except self.consumer_stopped_errors:
            if not self.transport.app.should_stop:
                raise
        except asyncio.CancelledError:
            if not self.transport.app.should_stop:
                raise

    async def _hand_on(
        self, records: dict[Any, list[Any]], active: Any, sought_before: Mapping[TP, int]
    ) -> None:
        """Hand on what one fetch brought, partition by partition in turn, `max_batch` at a time.

        `sought_before` is what had been sought when it was asked for.
        """
        generation = self.app.consumer_generation_id
        size = self.app.max_batch
        work = [(ensure_TP(raw_tp), found, 0) for raw_tp, found in records.items()]
        work = [item for item in work if active is None or item[0] in active]
        while work:
            later = []
            for tp, found, begin in work:
                if not self.flow_active or generation != self.app.consumer_generation_id:
                    return
                sought = self._sought.get(tp)
                if sought is None:
                    continue
                read = self._read_offset[tp]
                batch = found[begin : begin + size]
                if begin + size < len(found):
                    later.append((tp, found, begin + size))
                if read is not None and batch[0].offset != read:
                    # From before a seek: what lies behind it is dropped, what lies beyond is not
                    # what was asked for. Asked for since, it is a gap, which is the ledger's case.
                    batch = [record for record in batch if record.offset >= read]
                    if not batch or (batch[0].offset > read and sought_before.get(tp) != sought):
                        continue
                last = batch[-1]
                message = BatchMessage(
                    last.topic,
                    last.partition,
                    last.offset,
                    last.timestamp / 1000.0,
                    last.timestamp_type,
                    None,
                    None,
                    batch,
                    None,
                    0,
                    0,
                    tp,
                    generation_id=generation,
                )
                message.seek = sought
                self._inflight[tp].append((last.offset, message.token))
                self._read_offset[tp] = last.offset + 1
                await self.callback(message)
                self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
            work = later


class BatchTransport(Transport):  # type: ignore[misc]
    Consumer = BatchConsumer


class BatchApp(faust.App):  # type: ignore[misc]
    """A Faust app over partition batches.

    `positions(partitions, given_up)` gives the offset of each partition that may be read, waiting
    for Postgres until `given_up()`; those it leaves out stay stopped. `on_defect` is told of what
    must not happen.
    """

    max_batch = 1000
    fetch_max_wait_ms = 20
    fetch_idle_wait_ms = 20
    """How long a fetch waits where nothing came for a second."""
    metadata_max_age_ms = 10_000
    positions: Callable[[set[int], Callable[[], bool]], Awaitable[dict[int, int]]]
    on_defect: Callable[[BaseException], None]

    # Nothing here is kept in files, so the process may run where it can write nowhere.
    def _create_directories(self) -> None: ...

    def _new_transport(self) -> Any:
        return BatchTransport(self.conf.broker_consumer, self)
