"""The one place that joins the stream's parts: Faust, the ledger, the followers, health."""

from __future__ import annotations

import asyncio
import faulthandler
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import Any, Final, TypeVar

from faust.contrib.asgi import faust_app_running
from mode import CrashingSupervisor

from core import boards, topics
from core.errors import Unavailable
from service import erasure_key, logs
from service.health import HealthServer
from service.settings import SettingsError
from storage.followers import At
from storage.histories import Histories
from storage.kafka.dead_letters import DeadLetters
from storage.kafka.log_ends import LogEnds
from storage.kafka.publishing import Publisher
from storage.kafka.topic_ids import topic_id
from storage.kafka.topics import verify
from storage.postgres import connections, resumptions
from storage.postgres.attempts import Attempts
from storage.postgres.ledger import Ledger, Position
from storage.redis import boards as redis_boards
from storage.redis.boards import BoardCopy
from stream_app import positions
from stream_app.agent import Stream
from stream_app.carry_out import Judge
from stream_app.following import Keeping, Listening, Publishing, end_all
from stream_app.guarding import Guarding
from stream_app.hand import Hand
from stream_app.replying import Replier
from stream_app.settings import Settings
from stream_app.transport import BatchApp, RawSchema

STOP_S: Final = 8.0
STOP_AT_MOST_S: Final = 15.0
"""A process that has not come to its end by then is ended, whatever it is at."""
LOOK_AT_LOG_S: Final = 3.0
"""How often a worker asks whether the topic is still the log it reads."""
COMPARE_LOG_S: Final = 10.0
"""How often what was read is held against what the log holds there now."""
IDLE_FETCH_MS: Final = 250
"""How long Kafka may keep a fetch that finds nothing; it answers as soon as there is something."""


_log = logs.get("stream_app")

T = TypeVar("T")


async def _awaited(ask: Callable[[], T], stop: asyncio.Event, waits: str) -> T | None:
    """What `ask` gives, in a thread, once its server answers; None if a stop came first.

    While it does not answer, the log says `waits`.
    """
    while not stop.is_set():
        try:
            return await asyncio.to_thread(ask)
        except Unavailable as error:
            _log.warning(waits, detail=str(error)[:300])
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 1.0)
    return None


async def run(settings: Settings) -> int:
    """Run one worker until SIGTERM or a defect; the exit code.

    Raises:
        SettingsError: Postgres would lose what the worker commits.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    defects: list[BaseException] = []

    def on_defect(error: BaseException) -> None:
        defects.append(error)
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(stop.set)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        worker = _Worker(settings, on_defect)
        stack.push_async_callback(worker.close)
        await worker.start(stop)
        if not stop.is_set():
            await _until(stop, worker, settings.stuck_s)
        _log.info("stopping")
        _end_after(STOP_AT_MOST_S)
    for error in defects:
        _log.error("defect", error=type(error).__name__, exc_info=error)
    _log.info("stopped", defects=len(defects))
    return 1 if defects else 0


def _end_after(seconds: float) -> None:
    """End the process then, with every thread's stack on standard error, unless this is called again.

    By a thread that needs no lock of Python's: also what never gives it back is ended.
    """
    faulthandler.dump_traceback_later(seconds, exit=True)


async def _until(stop: asyncio.Event, worker: _Worker, stuck_s: float) -> None:
    while not stop.is_set():
        # Twice: where this loop still turns, it is the first to notice, and says so.
        _end_after(2 * stuck_s)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 1.0)
        worker.look_after()


class _Worker:
    """What runs, in the order it was opened."""

    def __init__(self, settings: Settings, on_defect: Callable[[BaseException], None]) -> None:
        self._settings, self._on_defect = settings, on_defect
        self._asked_id = self._reading_id = ""
        self._looked_at_log_s = self._compared_log_s = 0.0
        self._resumption = 0
        self._partitions_made = 0
        self._changed: dict[int, tuple[int, int, bytes]] = {}
        self._looking_at_log: asyncio.Task[None] | None = None
        url, kafka = settings.postgres_url, settings.kafka
        self._judging = Ledger(url, name="stream")
        self._looking = Ledger(url, name="positions")
        self._looks = threading.Lock()
        self._log_ends = LogEnds(kafka, topics.SUBMITTED.name)
        keeper_redis = redis_boards.connect(settings.redis_url)
        replier = Replier(keeper_redis)
        hand = Hand()
        self._histories = Histories(
            postgres_url=url,
            bootstrap=kafka,
            kafka_kind=settings.kafka_kind,
            redis_url=settings.redis_url,
            erasure_key=self._erasure_key,
        )
        self._judging.on_lost = self._lost
        self._compared = asyncio.Event()
        self._guarding = Guarding(self._histories, on_defect, self._was_compared, self._epoch_began)
        copies = [
            BoardCopy(
                period,
                postgres_url=url,
                client=keeper_redis,
                in_hand=hand.link_after,
                on_lost=self._histories.lost,
            )
            for _, period in boards.MAIN.periods
        ]
        self._keeping = Keeping(
            copies,
            replier,
            on_defect,
            postgres_url=url,
            reconcile_every_s=settings.reconcile_interval_s,
            prove=hand.prove,
        )
        publisher = Publisher(
            postgres_url=url,
            bootstrap=kafka,
            kind=settings.kafka_kind,
            in_hand=hand.content,
            held=hand.held,
            prove=hand.prove,
        )
        self._publishing = Publishing(publisher, on_defect)
        self._followers = (self._keeping, self._publishing)
        self._listening = Listening(url, (*self._followers, self._guarding), hand.has)
        self._stream = Stream(
            Judge(
                self._judging,
                most_people=settings.people_at_hand,
                most_rows=settings.recent_at_hand,
                max_late_us=int(settings.max_late_s * 1e6),
                max_early_us=int(settings.max_early_s * 1e6),
                on_numbered=hand.expect,
                erasure_key=self._erasure_key,
            ),
            DeadLetters(kafka),
            replier,
            self._followers,
            Attempts(url, name="attempts"),
            batch_actions=settings.batch_actions,
            dead_letters_in_a_row=settings.dead_letters_in_a_row,
            defects_in_a_row=settings.defects_in_a_row,
            hand=hand,
        )
        self._app = self._faust()
        self._running = AsyncExitStack()
        self._health = HealthServer(settings.metrics_port, live=self._live, ready=self._ready)

    def _faust(self) -> BatchApp:
        settings = self._settings
        app = BatchApp(
            settings.consumer_group,
            broker=[f"kafka://{server}" for server in settings.kafka.split(",")],
            store="memory://",
            agent_supervisor=CrashingSupervisor,
            stream_wait_empty=False,
            stream_buffer_maxsize=4,
            table_standby_replicas=0,
            topic_disable_leader=True,
            topic_allow_declare=False,
            broker_commit_interval=1.0,
            broker_max_poll_interval=3600.0,
            broker_session_timeout=settings.session_timeout_s,
            broker_heartbeat_interval=min(3.0, settings.session_timeout_s / 4),
            broker_request_timeout=max(60.0, settings.session_timeout_s),
            # Out of range is the ledger's case, not Faust's: it shows as a gap, and is looked at.
            consumer_auto_offset_reset="earliest",
            consumer_max_fetch_size=262_144,
            web_enabled=False,
        )
        app.max_batch = settings.batch_actions
        if settings.kafka_kind != "memory":
            # That one would not answer earlier.
            app.fetch_idle_wait_ms = IDLE_FETCH_MS
        app.positions = self._positions
        app.on_defect = self._on_defect
        source = app.topic(topics.SUBMITTED.name, schema=RawSchema())
        app.agent(source, name="judge")(self._stream.take_in)
        return app

    async def start(self, stop: asyncio.Event) -> None:
        self._health.start()
        if not (await self._commits_kept(stop) and await self._topics_verified(stop)):
            return
        self._loop = asyncio.get_running_loop()
        for thread in (self._guarding, *self._followers, self._listening):
            thread.start()
        # Nothing is judged before the ledger was compared with what it was followed by.
        waits = [asyncio.create_task(event.wait()) for event in (self._compared, stop)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if stop.is_set():
            return
        await self._running.enter_async_context(faust_app_running(self._app, stop_timeout=STOP_S))
        judging = asyncio.create_task(self._stream.run(lambda: self._app.consumer), name="stream")
        judging.add_done_callback(self._stream_ended)
        self._running.push_async_callback(_cancelled, judging)
        _log.info("started", group=self._settings.consumer_group)

    async def _commits_kept(self, stop: asyncio.Event) -> bool:
        """Wait for Postgres, and see that it keeps what it commits.

        Raises:
            SettingsError: it does not. Later, connections are refused one by one until it does.
        """

        def look() -> bool:
            try:
                connections.sees_commits_kept(self._settings.postgres_url)
            except connections.ForgetsCommits as error:
                raise SettingsError(str(error)) from error
            return True

        return await _awaited(look, stop, "waits_for_postgres") is not None

    async def _topics_verified(self, stop: asyncio.Event) -> bool:
        """Wait for Kafka, and see that its topics lose nothing."""
        counts = await _awaited(
            lambda: verify(self._settings.kafka, kind=self._settings.kafka_kind), stop, "waits_for_kafka"
        )
        if counts is None:
            return False
        self._partitions_made = counts[topics.JUDGED.name]
        return True

    def _erasure_key(self) -> bytes:
        return erasure_key.read(self._settings.erasure_secret, self._settings.data_dir / "keys")

    def _lost(self, position: Position) -> None:
        self._histories.lost(At(position.epoch, position.revision, position.digest.hex()))

    def _was_compared(self) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._compared.set)

    def _epoch_began(self) -> None:
        """In the guard's thread: progress may stand at earlier offsets now, also of quiet partitions."""
        with suppress(RuntimeError):
            asyncio.run_coroutine_threadsafe(self._app.consumer.seek_anew(), self._loop)

    def _stream_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self._on_defect(task.exception() or RuntimeError("the stream ended by itself"))

    async def _positions(self, partitions: set[int], given_up: Callable[[], bool]) -> dict[int, int]:
        """Where to read on; waits for Postgres and Kafka until somebody else is asked."""
        pause_s = 0.1
        while not given_up():
            try:
                found = await asyncio.to_thread(self._find, partitions)
            except Unavailable as error:
                self._stream.last_finished_s = time.monotonic()
                _log.warning("seek_waits", detail=str(error)[:300])
                await asyncio.sleep(pause_s)
                pause_s = min(2.0, pause_s * 2)
                continue
            if not given_up():
                self._stream.taken_up(found)
                self._say_if_grown(partitions)
                self._resumption = found.resumption
                self._reading_id = self._asked_id
                _log.info("sought", log=found.log, offsets={str(p): o for p, o in found.offsets.items()})
                return found.offsets
        return {}

    def _say_if_grown(self, partitions: set[int]) -> None:
        """Nothing is lost of a topic that was given more partitions, but it was not made to be."""
        if added := sorted(p for p in partitions if p >= self._partitions_made):
            _log.error("partitions_added", made_with=self._partitions_made, added=added)

    def _find(self, partitions: set[int]) -> positions.Found:
        """In a thread. One look at a time: the assignment may change again while one is under way."""
        with self._looks:
            return positions.find(
                self._looking,
                self._log_ends,
                self._topic_id,
                partitions,
                memory=self._settings.kafka_kind == "memory",
            )

    def _topic_id(self) -> str:
        self._asked_id = topic_id(self._settings.kafka, topics.SUBMITTED.name, kind=self._settings.kafka_kind)
        return self._asked_id

    async def _look_at_log(self) -> None:
        """See that the topic is still the log that is read, and take up the new one if it is not.

        A topic made anew keeps its name and its partitions, so Kafka's consumer goes on in it at the
        offsets of the old one; the new log is then read from its start, and what was judged already is
        found by its key.
        """
        try:
            found = await asyncio.to_thread(self._present_id)
            if self._reading_id and found != self._reading_id:
                _log.error("log_replaced", read=self._reading_id, found=found)
                await self._app.consumer.seek_anew()
                return
            if self._changed:
                await asyncio.to_thread(self._go_back)
            resumed = await asyncio.to_thread(self._resumed)
            if resumed:
                await self._app.consumer.seek_anew()
            elif self._reading_id and time.monotonic() - self._compared_log_s >= COMPARE_LOG_S:
                await self._compare_log()
                self._compared_log_s = time.monotonic()
        except Unavailable as error:
            # Waiting for Kafka or Postgres is no reason to be started again.
            self._stream.last_finished_s = time.monotonic()
            _log.warning("look_waits", detail=str(error)[:300])

    def _present_id(self) -> str:
        return topic_id(self._settings.kafka, topics.SUBMITTED.name, kind=self._settings.kafka_kind)

    async def _compare_log(self) -> None:
        """See that the log holds what was read of it, and stop partitions whose log does not."""
        stream, marks, log = self._stream, self._stream.marks, self._stream.log
        offsets = {p: offset for p, offset in stream.next_offsets.items() if p not in stream.stopped}
        looked = await asyncio.to_thread(self._look_again, offsets, marks.taken())
        same_log = not looked.stopped or await asyncio.to_thread(self._present_id) == self._reading_id
        if stream.marks is not marks or not same_log:
            return
        stream.ends = looked.ends
        for partition, offset in looked.found_again.items():
            marks.found_again(partition, offset)
        for partition, why in looked.stopped.items():
            stream.stop(partition, why)
        self._changed |= {partition: (log, *read) for partition, read in looked.changed.items()}
        if self._changed:
            await asyncio.to_thread(self._go_back)

    def _look_again(
        self, offsets: dict[int, int], marks: dict[int, list[tuple[int, bytes]]]
    ) -> positions.Looked:
        with self._looks:
            return positions.look_again(self._log_ends, offsets, marks)

    def _go_back(self) -> None:
        """What stopped these partitions has to be seen by whoever takes them up, so it is written down."""
        with self._looks:
            for partition, (log, offset, fingerprint) in list(self._changed.items()):
                positions.go_back(self._looking, log, {partition: (offset, fingerprint)})
                del self._changed[partition]

    def _resumed(self) -> bool:
        """Whether an operator told a partition that is read or stopped here to go on elsewhere."""
        mine = {*self._stream.next_offsets, *self._stream.stopped}
        with self._looks, self._looking.batch([]) as batch:
            found = resumptions.since(batch, self._resumption, mine)
        for one in found:
            say = _log.error if one.lost else _log.info
            say("partition_resumed", partition=one.partition, was=one.was, at=one.from_offset, lost=one.lost)
        return bool(found)

    def _log_looked_at(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_defect(error)

    def look_after(self) -> None:
        """Once a second: measure lag; end the process if it is up and does nothing, or Faust crashed."""
        if self._app.crashed:
            self._on_defect(self._app.crash_reason or RuntimeError("Faust ended"))
            return
        self._stream.measure()
        now_s = time.monotonic()
        if (self._looking_at_log is None or self._looking_at_log.done()) and (
            now_s - self._looked_at_log_s >= LOOK_AT_LOG_S
        ):
            self._looked_at_log_s = now_s
            self._looking_at_log = asyncio.create_task(self._look_at_log(), name="log")
            self._looking_at_log.add_done_callback(self._log_looked_at)
        # A partition without a leader answers nobody, and waits for it.
        behind = any(
            lag
            for partition, lag in self._stream.lags().items()
            if partition in self._stream.ends and partition not in self._stream.stopped
        )
        idle_s = time.monotonic() - self._stream.last_finished_s
        if not behind:
            self._stream.last_finished_s = time.monotonic()
        elif idle_s > self._settings.stuck_s:
            self._on_defect(RuntimeError(f"there is lag, and nothing was finished for {idle_s:.0f} s"))

    def _live(self) -> dict[str, Any]:
        return {
            "ok": not self._app.crashed,
            "stopped": {str(p): why for p, why in self._stream.stopped.items()},
        }

    def _ready(self) -> tuple[bool, dict[str, Any]]:
        assigned = self._stream.log > 0
        caught_up = {follower.name: follower.caught_up for follower in self._followers}
        return assigned and all(caught_up.values()), {"assigned": assigned, "followers": caught_up}

    async def close(self) -> None:
        """Take no more, finish what is in hand, let the followers come to the end, close."""
        if self._looking_at_log is not None:
            self._looking_at_log.cancel()
        try:
            await self._running.aclose()
        except TimeoutError:
            _log.warning("faust_stops_slowly")
        await asyncio.to_thread(self._stream.close)
        await asyncio.to_thread(
            end_all,
            [t for t in (*self._followers, self._listening, self._guarding) if t.is_alive()],
            within_s=2.0,
        )
        self._judging.close()
        await asyncio.to_thread(self._close_looks)
        self._health.stop()

    def _close_looks(self) -> None:
        # A look that is under way is in another thread; what it uses must not be closed under it.
        if self._looks.acquire(timeout=3.0):
            self._looking.close()
            self._log_ends.close()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task
