"""Every attempt to submit something leaves a count and one line in the log, the refused ones too.

The line says who, what, under which contract and how it ended; never a body, a token or an
address. Lines have the form of `service.logs`, and are written a few times a second together:
one write for each would cost more than all the rest of the request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
from prometheus_client import Counter

from ingest.requests import Request
from service import logs, metrics

FLUSH_EVERY_S: Final = 0.1
MOST_LINES: Final = 20_000
"""Lines kept until they can be written; more are counted and left out."""


class _Line(msgspec.Struct, omit_defaults=True, gc=False):
    time: str
    level: str
    service: str
    logger: str
    event: str
    trace_id: str
    contract: str
    status: int
    outcome: str
    code: str
    duration_ms: float
    user_id: str | None = None
    client: str | None = None
    action_id: str | None = None
    actions: int | None = None
    outcomes: dict[str, int] | None = None


_encode = msgspec.json.Encoder().encode


class Attempts:
    """Counts and logs. `write` takes whole lines; by default they go where all others go."""

    def __init__(self, write: Callable[[bytes], Any] | None = None) -> None:
        self._write = _to_the_log if write is None else write
        self._lines: list[bytes] = []
        self._left_out = 0
        self._flushing: asyncio.TimerHandle | None = None
        self._second, self._prefix = -1, ""
        self._counters: dict[tuple[str, str, str], Counter] = {}

    def count(self, contract: str, outcome: str, code: str, actions: int = 1) -> None:
        """Count actions that came in and ended alike."""
        labels = (contract, outcome, code)
        counter = self._counters.get(labels)
        if counter is None:
            counter = self._counters[labels] = metrics.SUBMISSIONS.labels(*labels)
        counter.inc(actions)

    def log(self, request: Request, status: int, duration_s: float) -> None:
        """Put down the line of one attempt, as the request tells it."""
        if len(self._lines) >= MOST_LINES:
            self._left_out += 1
            return
        record, outcomes = request.record, request.outcomes
        self._lines.append(
            _encode(
                _Line(
                    self._now(),
                    "warning" if status >= 500 else "info",
                    "ingest",
                    "ingest.attempts",
                    "submission_answered",
                    request.trace.trace_id,
                    request.contract or "",
                    status,
                    request.outcome,
                    request.code,
                    round(duration_s * 1000, 2),
                    None if record is None else record.user_id,
                    request.client,
                    None if record is None else record.action_id,
                    None if outcomes is None else sum(outcomes.values()),
                    outcomes,
                )
            )
        )
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_later(FLUSH_EVERY_S, self.flush)

    def _now(self) -> str:
        """The instant as in every other line; the part down to seconds is written once a second."""
        second, nanosecond = divmod(time.time_ns(), 1_000_000_000)
        if second != self._second:
            self._second = second
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
        return f"{self._prefix}{nanosecond // 1000:06d}Z"

    def flush(self) -> None:
        """Write what is in hand."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        lines, self._lines = self._lines, []
        if self._left_out:
            lines.append(
                _encode({"level": "warning", "event": "attempt_lines_left_out", "lines": self._left_out})
            )
            self._left_out = 0
        if lines:
            self._write(b"\n".join(lines) + b"\n")


def _to_the_log(lines: bytes) -> None:
    logs.write(lines.decode())
