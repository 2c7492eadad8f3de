"""The trace a request or a record belongs to: W3C Trace Context, version 00.

A `traceparent` that is malformed is as good as none, and a fresh trace begins. The trace id
(32 hexadecimal digits) stands in problems and, once bound, in every log line of the task.

Source: https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import structlog

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.S)
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
_SAMPLED = 0x01


@dataclass(frozen=True, slots=True)
class Trace:
    """One step of a trace; ids are lower-case hexadecimal, 32 and 16 digits, never all zero."""

    trace_id: str
    span_id: str
    sampled: bool = True

    @property
    def header(self) -> str:
        """The value of `traceparent`."""
        return f"00-{self.trace_id}-{self.span_id}-{_SAMPLED if self.sampled else 0:02x}"


def parse(header: str | bytes | None) -> Trace | None:
    """The trace a `traceparent` names, or None if it is absent or malformed.

    Of a later version the first four parts are read, as the specification asks.
    """
    if not header:
        return None
    text = header.decode("ascii", "replace") if isinstance(header, bytes) else header
    match = _TRACEPARENT.fullmatch(text)
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return Trace(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


def make() -> Trace:
    """A trace that begins here."""
    return Trace(_random_hex(16), _random_hex(8))


def child(parent: Trace | None) -> Trace:
    """The next step of `parent`'s trace, or a fresh one."""
    return make() if parent is None else Trace(parent.trace_id, _random_hex(8), parent.sampled)


def bind(trace: Trace) -> None:
    """Every log line of this task from now on carries the trace's id."""
    structlog.contextvars.bind_contextvars(trace_id=trace.trace_id)


def unbind() -> None:
    structlog.contextvars.unbind_contextvars("trace_id")


def _random_hex(size_bytes: int) -> str:
    # Zero is no id; drawing it once in 2^64 is still not worth a broken header.
    while not any(drawn := os.urandom(size_bytes)):
        pass
    return drawn.hex()
