"""Every attempt to submit something leaves a count and one line in the log, the refused ones too.

The line says who, what, under which contract and how it ended; never a body, a token or an
address. Lines have the form of `service.logs`, and are written a few times a second together:
one write for each would cost more than all the rest of the request.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from prometheus_client import Counter

from service import metrics

FLUSH_EVERY_S: Final = 0.1
MOST_LINES: Final = 20_000
"""Lines kept until they can be written; more are counted and left out."""


class _Line(msgspec.Struct, omit_defaults=True):
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
    """Counts and logs. `write` takes whole lines; by default they go to standard error."""

    def __init__(self, write: Callable[[bytes], Any] | None = None) -> None:
        self._write = _to_stderr if write is None else write
        self._lines: list[bytes] = []
        self._left_out = 0
        self._flushing: asyncio.TimerHandle | None = None
        self._counters: dict[tuple[str, str, str], Counter] = {}

    def count(self, contract: str, outcome: str, code: str) -> None:
        """Count one action that came in."""
        labels = (contract, outcome, code)
        counter = self._counters.get(labels)
        if counter is None:
            counter = self._counters[labels] = metrics.SUBMISSIONS.labels(*labels)
        counter.inc()

    def log(
        self,
        *,
        trace_id: str,
        contract: str,
        status: int,
        outcome: str,
        code: str,
        duration_s: float,
        user_id: str | None = None,
        client: str | None = None,
        action_id: str | None = None,
        outcomes: dict[str, int] | None = None,
    ) -> None:
        """Put down the line of one attempt; `outcomes` are those of a batch's actions."""
        if len(self._lines) >= MOST_LINES:
            self._left_out += 1
            return
        self._lines.append(
            _encode(
                _Line(
                    time=datetime.now(UTC).isoformat().replace("+00:00", "Z"),
                    level="warning" if status >= 500 else "info",
                    service="ingest",
                    logger="ingest.attempts",
                    event="submission_answered",
                    trace_id=trace_id,
                    contract=contract,
                    status=status,
                    outcome=outcome,
                    code=code,
                    duration_ms=round(duration_s * 1000, 2),
                    user_id=user_id,
                    client=client,
                    action_id=action_id,
                    outcomes=outcomes,
                    actions=None if outcomes is None else sum(outcomes.values()),
                )
            )
        )
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_later(FLUSH_EVERY_S, self.flush)

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


def _to_stderr(lines: bytes) -> None:
    sys.stderr.write(lines.decode())
    sys.stderr.flush()
