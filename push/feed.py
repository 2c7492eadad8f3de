"""The running feed: publications and standings in, frames out, and how well that goes."""

from __future__ import annotations

import asyncio
import gc
import math
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from core.feed import Publication, View
from core.words import MAIN_PERIOD
from push import boards
from push.admission import AddressLimits, Admission, TakeTicket, Verify
from push.arrival import Abreast
from push.comparison import Comparison, StandingsReader
from push.conversation import House
from push.conversations import Conversations
from push.hub import Hub
from push.publications import Publications
from push.server import Server, feed_app, server_for
from push.settings import Settings
from push.sockets import Sockets
from push.streams import Streams
from push.verdicts import Verdicts
from service import logs
from service.revocations import Revocations
from storage.redis.limits import Limits

SWEEP_S: Final = 0.5
"""How often stalled readers and expired tokens are looked for."""

FIRST_RECORDS_S: Final = 3.0
"""How long a start waits for what the topic last said, before it goes by the standings alone."""

FETCH_WAIT_MS: Final = 500
MEMORY_FETCH_WAIT_MS: Final = 10
"""The in-memory broker holds an empty answer for all of the time it may."""

UNWELL_AFTER_S: Final = 10.0
"""A loop that has not moved for so long is not alive."""

_log = logs.get("push.feed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What the feed reads: tests hand in their own."""

    standings: StandingsReader
    verdicts: Verdicts
    verify: Verify
    take_ticket: TakeTicket
    revocations: Revocations
    limits: Limits


class LoopTimer:
    """One wake-up on the event loop; asking again replaces it."""

    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None
        self.call: Callable[[], None] = lambda: None

    def wake_in(self, delay_ms: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        # uvloop's timers count whole milliseconds: rounded down, one would wake too early and again.
        self._handle = asyncio.get_running_loop().call_later(math.ceil(delay_ms) / 1000, self._fire)

    def _fire(self) -> None:
        self._handle = None
        self.call()


class Feed:
    """The running service, on a socket that is bound already."""

    def __init__(self, settings: Settings, sources: Sources, listener: socket.socket) -> None:
        self._listener = listener
        timer = LoopTimer()
        self.hub = Hub(
            boards.periods(),
            clock_ms=lambda: time.monotonic() * 1000,
            wake_in=timer.wake_in,
            gap_ms=settings.frame_gap_ms,
            tick_ms=settings.tick_ms,
            stall_limit_ms=settings.stall_limit_s * 1000,
        )
        timer.call = self.hub.wake
        self.admission = Admission(
            verify=sources.verify,
            take_ticket=sources.take_ticket,
            revocations=sources.revocations,
            limits=sources.limits,
            origins=settings.origins,
            per_address=AddressLimits(
                sockets=settings.max_sockets_per_address,
                rate_per_s=settings.address_rate_per_s,
                refused_rate_per_s=settings.refused_rate_per_s,
            ),
            per_loopback_address=AddressLimits(
                sockets=settings.loopback_max_sockets or settings.max_sockets_per_address,
                rate_per_s=settings.loopback_address_rate or settings.address_rate_per_s,
                refused_rate_per_s=settings.loopback_address_rate or settings.refused_rate_per_s,
            ),
            most_sockets=settings.max_sockets,
            most_per_user=settings.max_sockets_per_user,
        )
        self.revocations = sources.revocations
        self.verdicts = sources.verdicts
        abreast = Abreast(self.hub, sources.standings)
        self.conversations = Conversations(
            House(self.hub, self.admission, sources.verdicts, abreast, settings.ping_interval_s)
        )
        self.streams = Streams(self.hub, self.admission, abreast, heartbeat_s=settings.ping_interval_s)
        self.comparison = Comparison(
            self.hub, sources.standings, MAIN_PERIOD, interval_s=settings.compare_interval_s
        )
        self.publications = Publications(
            settings.kafka,
            wanted=self.hub.channels.__contains__,
            deliver=self._deliver,
            fetch_wait_ms=MEMORY_FETCH_WAIT_MS if settings.kafka_kind == "memory" else FETCH_WAIT_MS,
        )
        self.sockets = Sockets(self.hub, self.admission, ping_interval_s=settings.ping_interval_s)
        self._server: Server = server_for(
            feed_app(self.sockets, self.conversations, self.streams),
            trusted_proxies=settings.trusted_proxies,
            drain_s=settings.drain_s,
        )
        self.revocations.listen(self._end_revoked)
        self._moved_at_s = time.monotonic()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def connections(self) -> Collection[Any]:
        """The connections there are, as uvicorn's protocols."""
        return self._server.server_state.connections

    async def run(self) -> None:
        """Serve until `stop`; raises if a part of the feed fails for good."""
        async with asyncio.TaskGroup() as parts:
            background = [
                parts.create_task(self.publications.run()),
                parts.create_task(self._compare()),
                parts.create_task(self._sweep()),
                parts.create_task(self.verdicts.run()),
                parts.create_task(self.revocations.run()),
            ]
            gc.freeze()
            _log.info("feed_listening", port=self.port)
            await self._server.serve(sockets=[self._listener])
            for task in background:
                task.cancel()
        _log.info("feed_stopped")

    def stop(self) -> None:
        self._server.stop()

    def live(self) -> Mapping[str, Any]:
        still_s = time.monotonic() - self._moved_at_s
        return {"ok": still_s < UNWELL_AFTER_S, "loop_still_s": round(still_s, 3)}

    def ready(self) -> tuple[bool, Mapping[str, Any]]:
        """Ready: the first board is loaded, Kafka's partitions are assigned, and no stop was asked for.

        What is revoked need not be known: until then nobody's token is taken, and who needs none is served.
        """
        loaded, assigned = self.comparison.loaded.is_set(), self.publications.assigned
        epoch, revision = self.hub.channels[MAIN_PERIOD].sequence.position
        shown = {
            "board_loaded": loaded,
            "kafka_assigned": assigned,
            "revocations": self.revocations.known,
            "revocations_age_s": round(self.revocations.age_s, 1),
            "epoch": epoch,
            "revision": revision,
        }
        return loaded and assigned and not self._server.should_exit, shown

    def _deliver(self, publications: Sequence[Publication]) -> None:
        for publication in publications:
            if self.hub.publish(View.of_publication(publication)):
                self.comparison.kafka_brought_news()
        self.verdicts.wake()

    def _end_revoked(self) -> None:
        self.sockets.end_revoked()
        self.conversations.end_revoked()
        self.streams.end_revoked()

    async def _compare(self) -> None:
        try:
            await asyncio.wait_for(self.publications.caught_up.wait(), FIRST_RECORDS_S)
        except TimeoutError:
            _log.warning("started_without_publications", waited_s=FIRST_RECORDS_S)
        await self.comparison.run()

    async def _sweep(self) -> None:
        while True:
            self._moved_at_s = time.monotonic()
            self.hub.sweep(time.time())
            self.sockets.sweep()
            self.conversations.sweep(time.time())
            self.streams.sweep()
            await asyncio.sleep(SWEEP_S)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, whose port is known before anything is served; port 0 takes a free one.

    Raises:
        OSError: the address or the port cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock
