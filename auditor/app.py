"""Where the parts of the auditor are joined.

One thread reads, counts and compares; four more look at pages, frames, the channel and Redis. All of them may
find what they need away, and then try again; only a defect ends the process.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from typing import Any, Final

from confluent_kafka.admin import OffsetSpec

from auditor.audit import Audit, Horizon, Seen
from auditor.channel import Channel
from auditor.horizon import Horizons
from auditor.reading import Reading, StartsLater
from auditor.recount import Wrong
from auditor.report import Report
from auditor.settings import Settings
from auditor.watching import Copies, Frames, Pages, Trouble, keep_looking
from core.errors import Unavailable
from service import logs, metrics

STALE_S: Final = 60.0
"""A thread that reads has not come round for so long only if it hangs."""

_WAIT_S: Final = 0.1
_SAMPLE: Final = 50
_AGAIN_S: Final = 1.0
_LATER_S: Final = 10.0
_PENDING_S: Final = 30.0
"""A horizon that is not reached within this is asked for anew: perhaps the topics have changed."""

_log = logs.get("auditor")


class Auditor:
    """The auditor's threads, from `start` to `stop`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._report = Report()
        self._horizons = Horizons(settings.postgres_url, settings.kafka, settings.kafka_kind)
        self._seen: queue.SimpleQueue[Seen | tuple[int, Wrong]] = queue.SimpleQueue()
        self._audit: Audit | None = None
        self._stopping, self.failed = threading.Event(), threading.Event()
        self._moved_s = time.monotonic()
        self._trouble = Trouble("history")
        self._threads: list[threading.Thread] = []

    # Life ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin; nothing needs to be there yet."""
        settings, every_s = self._settings, self._settings.audit_interval_s
        pages = Pages(settings.http_url, self._seen.put, self._complain)
        frames = Frames(settings.feed_url, self._seen.put, self._complain, self._stopping)
        channel = Channel(settings.feed_url, self._seen.put, self._complain, self._stopping)
        copies = Copies(settings.redis_url, self._seen.put, self._some_users)
        self._threads = [
            threading.Thread(target=self._run, name="recount", daemon=True),
            keep_looking("pages", pages.look, 2 * every_s, self._stopping, self.failed.set),
            keep_looking("frames", frames.look, every_s, self._stopping, self.failed.set),
            keep_looking("channel", channel.look, every_s, self._stopping, self.failed.set),
            keep_looking("copies", copies.look, every_s, self._stopping, self.failed.set),
        ]
        self._threads[0].start()

    def stop(self, within_s: float) -> None:
        """End the threads; one that waits for an answer may be left behind."""
        self._stopping.set()
        deadline_s = time.monotonic() + within_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))

    def live(self) -> dict[str, Any]:
        return {"ok": time.monotonic() - self._moved_s < STALE_S and not self.failed.is_set()}

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Always: whoever waits for the auditor waits for nobody else's sake."""
        audit = self._audit
        return True, {
            "revision": audit.at if audit else 0,
            "actions": len(audit.recount.actions) if audit else 0,
        }

    # The thread that counts ----------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._try_a_history()
        except Exception:
            _log.exception("defect")
            self.failed.set()
        finally:
            self._horizons.close()

    def _try_a_history(self) -> None:
        again_s = _AGAIN_S
        try:
            self._follow_a_history()
        except StartsLater as error:
            self._trouble.away(error)
            again_s = _LATER_S
        except Unavailable as error:
            self._trouble.away(error)
        self._audit = None
        self._pause(again_s)

    def _pause(self, seconds: float) -> None:
        self._moved_s = time.monotonic()
        self._drain(None)
        self._stopping.wait(seconds)

    def _follow_a_history(self) -> None:
        """Count from the start of the topics until they or the history are others."""
        first = self._ask()
        if first is None:
            return
        continues: dict[str, tuple[str, int]] = {}
        while not self._stopping.is_set():
            starts = self._horizons.offsets(OffsetSpec.earliest())
            reading = Reading(self._settings.kafka, starts, first.ends)
            try:
                audit = self._audit = Audit(self._report, first.epoch, first.revision, continues)
                _log.info("audit_begun", epoch=first.epoch, revision=first.revision)
                self._follow(reading, audit, first)
            finally:
                reading.close()
            if audit.continues == continues:
                return
            # Which records are void is known only now: count again without them.
            continues = audit.continues

    def _follow(self, reading: Reading, audit: Audit, first: Horizon) -> None:
        known, ids = dict(audit.continues), self._horizons.ids
        pending: Horizon | None = first
        asked_s = began_s = time.monotonic()
        while not self._stopping.is_set():
            now_s = self._moved_s = time.monotonic()
            if audit.is_full:
                self._stopping.wait(_WAIT_S)
            else:
                reading.step(audit, _WAIT_S, now_s)
            self._drain(audit)
            if pending is not None and reading.has_read_to(pending):
                self._advance(audit, pending, began_s)
                pending = None
                if audit.continues != known:
                    return
            wait_s = (
                _PENDING_S if pending is not None and not audit.is_full else self._settings.audit_interval_s
            )
            if now_s - asked_s < wait_s:
                continue
            asked_s, pending = now_s, self._ask() or pending
            if self._horizons.ids != ids or (pending is not None and pending.epoch != audit.epoch):
                return
            if pending is not None and reading.is_ahead_of(pending.ends):
                self._horizons.forget()
                return
            if pending is not None and audit.is_full:
                audit.catch_up(pending)

    def _ask(self) -> Horizon | None:
        horizon = self._horizons.ask()
        self._trouble.back()
        return horizon

    def _advance(self, audit: Audit, horizon: Horizon, began_s: float) -> None:
        if not audit.at:
            _log.info(
                "audit_caught_up",
                revision=horizon.revision,
                actions=len(audit.recount.actions),
                players=len(audit.recount.users),
                seconds=round(time.monotonic() - began_s, 3),
            )
        audit.advance(horizon)
        metrics.AUDIT_REVISION.set(audit.at)
        metrics.AUDIT_LAG_REVISIONS.set(max(0, horizon.ledger_end - audit.at))

    # What the other threads saw ------------------------------------------------------------

    def _drain(self, audit: Audit | None) -> None:
        while True:
            try:
                seen = self._seen.get_nowait()
            except queue.Empty:
                return
            if not isinstance(seen, Seen):
                self._report.mismatch("position", *seen)
            elif audit is None:
                self._report.skipped(seen.what, "no history")
            else:
                audit.observe(seen)

    def _complain(self, revision: int, wrong: Wrong) -> None:
        self._seen.put((revision, wrong))

    def _some_users(self) -> list[str]:
        audit = self._audit
        users = audit.recount.users if audit else []
        return [user for user in random.choices(users, k=_SAMPLE) if user] if users else []
