from __future__ import annotations

import pytest

from service.tracing import Trace, child, make, parse

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_what_was_parsed_is_written_the_same():
    header = f"00-{TRACE}-{SPAN}-01"

    trace = parse(header)

    assert trace == Trace(TRACE, SPAN, True)
    assert trace.header == header
    assert parse(header.encode()) == trace


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        b"\xff\xfe",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
    ],
)
def test_a_malformed_header_is_none(header):
    assert parse(header) is None


def test_a_later_version_is_read_by_its_first_four_parts():
    assert parse(f"01-{TRACE}-{SPAN}-00-more") == Trace(TRACE, SPAN, False)


def test_a_child_stays_in_its_trace_with_a_span_of_its_own():
    parent = Trace(TRACE, SPAN, False)

    step = child(parent)

    assert (step.trace_id, step.sampled) == (TRACE, False)
    assert step.span_id != SPAN
    assert parse(step.header) == step


def test_without_a_parent_a_trace_begins():
    fresh = child(None)

    assert parse(fresh.header) == fresh
    assert fresh.trace_id != make().trace_id
