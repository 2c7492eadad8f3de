from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import structlog

from service import logs, tracing

ROOT = Path(logs.__file__).parents[1]

JWT = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ1MSJ9.c2lnbmF0dXJl"


@pytest.fixture
def lines():
    """What was logged since, as objects; the process's logging is put back afterwards."""
    root = logging.getLogger()
    unconfigured = structlog.get_config()
    before = (root.handlers[:], root.level, sys.excepthook)
    out = io.StringIO()
    logs.configure("test", stream=out)
    yield lambda: [json.loads(line) for line in out.getvalue().splitlines()]
    logging.captureWarnings(False)
    root.handlers[:], root.level, sys.excepthook = before
    structlog.configure(**unconfigured)
    structlog.contextvars.clear_contextvars()


def test_a_line_is_an_event_with_fields(lines):
    logs.get("ingest.door").info("action_answered", status=202, action_id="a1")

    (line,) = lines()
    assert line.pop("time").endswith("Z")
    assert line == {
        "event": "action_answered",
        "status": 202,
        "action_id": "a1",
        "level": "info",
        "logger": "ingest.door",
        "service": "test",
    }


def test_the_standard_librarys_loggers_speak_the_same_way(lines):
    logging.getLogger("uvicorn.error").warning("shutting %s", "down")

    (line,) = lines()
    assert (line["event"], line["logger"], line["level"], line["service"]) == (
        "shutting down",
        "uvicorn.error",
        "warning",
        "test",
    )


def test_no_input_begins_a_line_of_its_own(lines):
    logs.get("x").info("seen", path='/\r\n{"event":"forged"}\u2028')

    (line,) = lines()
    assert line["path"] == '/\r\n{"event":"forged"}\u2028'


def test_the_trace_is_on_every_line_within_it(lines):
    trace = tracing.make()
    tracing.bind(trace)
    logs.get("x").info("inside")
    logging.getLogger("faust").info("inside too")
    tracing.unbind()
    logs.get("x").info("outside")

    assert [line.get("trace_id") for line in lines()] == [trace.trace_id, trace.trace_id, None]


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"token": "plain"}, id="field named token"),
        pytest.param({"Authorization": "plain"}, id="header"),
        pytest.param({"path": f"/x?auth={JWT}&y"}, id="within text"),
        pytest.param({"headers": [(b"authorization", f"Bearer {JWT}".encode())]}, id="bytes in a list"),
        pytest.param({"body": {"authToken": "plain"}}, id="nested"),
        pytest.param({"offered": "trueboard, ticket." + "a" * 43}, id="ticket"),
    ],
)
def test_tokens_never_get_out(lines, fields):
    logs.get("x").info("refused", **fields)
    logging.getLogger("uvicorn").info("refused", extra={"fields": fields})

    text = json.dumps(lines())
    assert len(lines()) == 2
    assert not any(secret in text for secret in ("plain", JWT, "a" * 43))


def test_an_exception_is_one_line_with_its_traceback(lines):
    try:
        raise ValueError(f"bad {JWT}")
    except ValueError:
        logs.get("x").exception("defect")

    (line,) = lines()
    assert "ValueError: bad [token]" in line["exception"]
    assert line["level"] == "error"


def test_what_ends_the_process_is_a_line_too(lines):
    try:
        raise KeyError("gone")
    except KeyError as error:
        sys.excepthook(KeyError, error, error.__traceback__)

    (line,) = lines()
    assert (line["event"], line["level"]) == ("defect", "critical")
    assert "KeyError" in line["exception"]


def test_debug_is_never_written_and_warnings_are(lines):
    logs.get("x").debug("detail")
    logging.getLogger("aiokafka").debug("detail")
    logging.getLogger("httpx").info("HTTP Request: GET …")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", stacklevel=1)

    (line,) = lines()
    assert line["logger"] == "py.warnings"


def test_values_that_are_no_json_are_shown_as_text(lines):
    logs.get("x").info("odd", value=object(), bytes=b"\xff", nan={1, 2})

    (line,) = lines()
    assert line["bytes"] == r"b'\xff'"
    assert sorted(line["nan"]) == [1, 2]


def test_before_it_is_configured_neither_standard_output_nor_a_token_is_written():
    program = "from service import logs; logs.get('x').warning('early', token='plain')"

    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )

    assert ran.stdout == ""
    assert "early" in ran.stderr
    assert "plain" not in ran.stderr
