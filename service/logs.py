"""Logs: one JSON object per line on standard error, an event name and fields.

Every line has `time`, `level`, `service`, `logger` and `event`; within a trace also
`trace_id`. JSON escapes line ends, so no input starts a line of its own. Tokens and tickets
never get out: fields named like one and strings that look like one are masked. What uvicorn,
Faust and every other user of the standard library's logging says takes the same way. Nobody waits for
a log: lines that nobody takes are lost and counted (`log_lines`).
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO, cast

import structlog

from service import log_lines

_LOOKS_LIKE_A_TOKEN = re.compile(r"eyJ[A-Za-z0-9_-]{4,2000}\.[A-Za-z0-9_-]*(\.[A-Za-z0-9_-]*)*")
_LOOKS_LIKE_A_TICKET = re.compile(r"\bticket[.=][A-Za-z0-9_-]{20,}")
_SECRET_FIELDS = frozenset(
    {"token", "authorization", "authorization_token", "auth_token", "authtoken", "ticket", "password"}
)
_CHATTY = ("httpx", "httpcore", "aiokafka", "faust.transport", "kafka")
_OWN_HANDLERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "faust", "mode")

Event = MutableMapping[str, Any]

_out: TextIO | None = None
"""Where `configure` sends everything."""


def configure(service: str, *, level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Send every log line of this process to `stream` (standard error) as JSON. May be called again.

    `service` is the process's name, as `ingest`. Nothing below `level` is written, by
    structlog's loggers or the standard library's; the libraries that tell of every request
    or heartbeat speak from WARNING on. Whoever starts uvicorn passes `log_config=None`, and
    Faust's worker must not install handlers of its own, else they replace these.
    """

    def told(lost: int) -> str:
        line = {
            "event": "log_lines_lost",
            "lines": lost,
            "level": "warning",
            "logger": "service.log_lines",
            "service": service,
            "time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        }
        return _dumps(line) + "\n"

    global _out
    _out = out = cast(TextIO, log_lines.over(stream if stream is not None else sys.stderr, told))

    def name_service(_: Any, __: str, event: Event) -> Event:
        event["service"] = service
        return event

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        _name_logger,
        name_service,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        _mask,
    ]
    render = structlog.processors.JSONRenderer(serializer=_dumps)
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _OWN_HANDLERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    logging.captureWarnings(True)
    sys.excepthook = _log_defect


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger: `get("ingest.submission").info("submission_answered", status=202, action_id=…)`."""
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger(logger_name=name))


def write(lines: str) -> None:
    """Let lines that have the form of all others already take their way."""
    out = sys.stderr if _out is None else _out
    out.write(lines)
    out.flush()


def _on_standard_error(*_: Any) -> Any:
    return structlog.PrintLogger(sys.stderr)


def _name_logger(_: Any, __: str, event: Event) -> Event:
    record = event.get("_record")
    event["logger"] = record.name if record is not None else event.pop("logger_name", "root")
    return event


def _mask(_: Any, __: str, event: Event) -> Event:
    for key, value in event.items():
        if key in ("_record", "_from_structlog"):
            continue
        if key.lower() in _SECRET_FIELDS:
            event[key] = "[masked]"
        elif isinstance(value, str):
            event[key] = mask_tokens(value)
        elif not isinstance(value, bool | int | float | None):
            event[key] = _mask_within(value)
    return event


def _mask_within(value: Any) -> Any:
    """Containers with their strings masked; anything else as its masked `repr`."""
    if isinstance(value, dict):
        return {
            str(key): "[masked]" if str(key).lower() in _SECRET_FIELDS else _mask_within(held)
            for key, held in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_mask_within(held) for held in value]
    if isinstance(value, bool | int | float | None):
        return value
    return mask_tokens(value if isinstance(value, str) else repr(value))


def mask_tokens(text: str) -> str:
    """`text` with everything that looks like a JWT or a ticket replaced."""
    if "eyJ" in text:
        text = _LOOKS_LIKE_A_TOKEN.sub("[token]", text)
    if "ticket" in text:
        text = _LOOKS_LIKE_A_TICKET.sub("[ticket]", text)
    return text


def _dumps(event: Any, **options: Any) -> str:
    return json.dumps(event, ensure_ascii=True, default=repr, separators=(",", ":"))


def _log_defect(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    get("service").critical("defect", exc_info=(kind, error, traceback))


if not structlog.is_configured():
    # Standard output belongs to what a command prints, also before or without `configure`.
    structlog.configure(
        processors=[_mask, *structlog.get_config()["processors"]],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=_on_standard_error,
    )
