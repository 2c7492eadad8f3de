"""Instants are read strictly and written back to the microsecond."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.times import EPOCH, HIGHEST_US, LOWEST_US, format_us, parse_us
from tests.core.examples import example

INSTANTS = example("times", "instants")
instants_us = st.integers(LOWEST_US, HIGHEST_US)


@pytest.mark.parametrize("case", INSTANTS["read"], ids=lambda case: case["text"])
def test_a_golden_instant_is_read_and_written(case):
    assert parse_us(case["text"]) == case["us"]
    assert format_us(case["us"]) == case["written"]


@pytest.mark.parametrize("text", INSTANTS["refused"], ids=repr)
def test_what_is_no_instant_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        parse_us(text)


@given(instants_us)
def test_an_instant_written_reads_back_as_itself(instant_us):
    written = format_us(instant_us)

    assert parse_us(written) == instant_us
    assert len(written) == 27


@given(instants_us, instants_us)
def test_instants_as_written_sort_as_they_follow(one_us, other_us):
    assert (format_us(one_us) < format_us(other_us)) == (one_us < other_us)


@given(
    st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29)),
    st.integers(-23 * 60 - 59, 23 * 60 + 59),
)
def test_an_offset_names_the_same_instant(local, offset_min):
    moment = local.replace(tzinfo=timezone(timedelta(minutes=offset_min)))

    assert parse_us(moment.isoformat()) == (moment.astimezone(UTC) - EPOCH) // timedelta(microseconds=1)


@given(st.text(st.sampled_from("0129-:.TtZz+ \n"), max_size=30))
def test_any_text_is_an_instant_or_a_value_error(text):
    try:
        instant_us = parse_us(text)
    except ValueError:
        return

    assert LOWEST_US <= instant_us <= HIGHEST_US
