"""Which strings may stand on the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import words
from tests.core.examples import example

CHECKS = {
    "user_id": words.is_user_id,
    "action_id": words.is_action_id,
    "type": words.is_type,
    "username": words.is_username,
}
GOLDEN = [
    pytest.param(kind, text, expected == "yes", id=f"{kind} {text[:20]!r} of {len(text)}")
    for kind, lists in example("words", "words")["kinds"].items()
    for expected, texts in lists.items()
    for text in texts
]
ids = st.lists(st.text(st.sampled_from("aZ0_.:@- é"), max_size=4), min_size=1, max_size=4)


@pytest.mark.parametrize(("kind", "text", "expected"), GOLDEN)
def test_golden_words_stand_or_do_not(kind, text, expected):
    assert CHECKS[kind](text) is expected


@given(ids, ids, ids)
def test_a_batch_is_well_formed_when_each_of_its_words_is(user_ids, action_ids, types):
    each = (
        all(map(words.is_user_id, user_ids))
        and all(map(words.is_action_id, action_ids))
        and all(map(words.is_type, types))
    )

    assert words.all_words(user_ids, action_ids, types) is each


@pytest.mark.parametrize(
    "broken",
    [
        "a\nb",
        "a\n",
        "\na",
        "\n",
    ],
    ids=repr,
)
@pytest.mark.parametrize("place", range(3))
def test_a_line_break_makes_no_two_ids_of_one(broken, place):
    lists = [["a"], ["a"], ["a"]]
    lists[place] = [broken]

    assert not words.all_words(*lists)


@pytest.mark.parametrize("kind", range(3))
def test_of_255_and_128_and_64_characters_one_more_is_too_long_in_a_batch_too(kind):
    lists = [["a" * 255], ["a" * 128], ["a" * 64]]
    fits = words.all_words(*lists)
    lists[kind][0] += "a"

    assert fits
    assert not words.all_words(*lists)


@given(st.text(max_size=300))
def test_a_cleaned_username_may_be_shown(text):
    cleaned = words.clean_username(text)

    assert cleaned is None or words.is_username(cleaned)


@given(st.text(max_size=300))
def test_a_username_that_may_be_shown_is_left_as_it_is(text):
    if words.is_username(text):
        assert words.clean_username(text) == text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        pytest.param("a\nb\x7fc\x85", "abc", id="control characters"),
        pytest.param("a\ud800b", "ab", id="a lone surrogate"),
        pytest.param("é" * 128, "é" * 127, id="cut between characters"),
        pytest.param("\t\n", None, id="nothing left"),
        pytest.param("", None, id="nothing at all"),
    ],
)
def test_a_username_is_cleaned(text, cleaned):
    assert words.clean_username(text) == cleaned


def test_a_period_is_its_board_and_its_window():
    assert words.period_id("main", "all-time") == words.MAIN_PERIOD
