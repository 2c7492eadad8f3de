"""The order key of an entry compares as the entry ranks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from core import ranking, words
from core.times import HIGHEST_US, LOWEST_US
from tests.core.examples import example

scores = st.integers(-words.SCORE_MAX, words.SCORE_MAX)
instants_us = st.integers(LOWEST_US, HIGHEST_US)
user_ids = st.text(st.sampled_from("AZaz09._:@-"), min_size=1, max_size=8)
# Close together, so that ties are common.
entries = st.tuples(
    st.integers(-2, 2) | scores, st.integers(-2, 2) | instants_us, st.sampled_from("abAB") | user_ids
)


def rank(entry: tuple[int, int, str]) -> tuple[int, int, bytes]:
    score, reached_at_us, user_id = entry
    return -score, reached_at_us, user_id.encode()


def test_the_golden_entries_have_their_members_in_order():
    ordered = example("ranking", "order")["entries"]

    members = [ranking.member(each["score"], each["reached_at_us"], each["user_id"]) for each in ordered]

    assert [member.hex() for member in members] == [each["member"] for each in ordered]
    assert members == sorted(members)


@given(entries, entries)
def test_members_compare_as_their_entries_rank(one, other):
    assert (ranking.member(*one) < ranking.member(*other)) == (rank(one) < rank(other))
    assert (ranking.member(*one) == ranking.member(*other)) == (one == other)


@given(entries)
def test_a_member_reads_back_as_its_entry(entry):
    score, reached_at_us, user_id = entry

    assert ranking.read_member(ranking.member(*entry)) == (user_id, score, reached_at_us)


@given(scores, instants_us)
def test_a_key_is_16_bytes_and_reads_back(score, reached_at_us):
    key = ranking.order_key(score, reached_at_us)

    assert len(key) == ranking.KEY_BYTES
    assert ranking.read_key(key) == (score, reached_at_us)
    assert ranking.member(score, reached_at_us, "a") == key + b"a"
