"""Ids are made from an instant and random bytes, and sort by the instant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import words
from core.ids import ulid, uuid7
from tests.core.examples import example

instants_us = st.integers(0, 2**48 * 1000 - 1)
random_bytes = st.binary(min_size=10, max_size=10)


@pytest.mark.parametrize("case", example("ids", "made")["cases"], ids=lambda case: case["ulid"])
def test_golden_ids_are_made(case):
    random = bytes.fromhex(case["random"])

    assert str(uuid7(case["us"], random)) == case["uuid7"]
    assert ulid(case["us"], random) == case["ulid"]


@given(instants_us, random_bytes)
def test_a_uuid_names_its_version_its_variant_and_its_millisecond(now_us, random):
    made = uuid7(now_us, random)

    assert made.version == 7
    assert made.variant == "specified in RFC 4122"
    assert made.int >> 80 == now_us // 1000
    assert words.is_action_id(str(made))


@given(instants_us, instants_us, random_bytes, random_bytes)
def test_a_later_uuid_sorts_after_an_earlier_one(one_us, other_us, one_random, other_random):
    if one_us < other_us:
        assert uuid7(one_us, one_random) < uuid7(other_us, other_random)


@given(instants_us, instants_us, random_bytes, random_bytes)
def test_a_ulid_of_a_later_millisecond_sorts_after_an_earlier_one(one_us, other_us, one_random, other_random):
    if one_us // 1000 < other_us // 1000:
        assert ulid(one_us, one_random) < ulid(other_us, other_random)


@given(instants_us, random_bytes, random_bytes)
def test_other_random_bytes_make_another_ulid(now_us, one_random, other_random):
    assert (ulid(now_us, one_random) == ulid(now_us, other_random)) == (one_random == other_random)


@given(instants_us, random_bytes)
def test_a_ulid_is_26_lower_case_characters(now_us, random):
    made = ulid(now_us, random)

    assert len(made) == 26
    assert set(made) <= set("0123456789abcdefghjkmnpqrstvwxyz")
