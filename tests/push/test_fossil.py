"""Deltas that the official clients' own code takes back to the text they were made of."""

from __future__ import annotations

import pytest
from centrifuge.fossil import apply_delta
from hypothesis import given
from hypothesis import strategies as st

from core.feed import Changes, publication_words
from push.fossil import checksum, delta
from tests.push.views import publication, view

words = st.lists(
    st.sampled_from(["score", "日本", "🙂", "a", "ÿ" * 9, '{"user_id":"ada"},' * 3, "\n"]), max_size=40
)
texts = (st.text() | words.map("".join)).map(lambda text: text.encode("utf-8", "ignore"))


@given(before=texts, after=texts)
def test_a_delta_makes_the_later_text_of_the_earlier_one(before: bytes, after: bytes) -> None:
    assert apply_delta(before, delta(before, after)) == after


@given(before=texts, after=texts)
def test_a_delta_of_texts_is_a_text(before: bytes, after: bytes) -> None:
    delta(before, after).decode("utf-8")


@given(prefix=texts, middle=texts, suffix=texts, other=texts)
def test_what_stays_is_not_sent_again(prefix: bytes, middle: bytes, suffix: bytes, other: bytes) -> None:
    before, after = prefix + middle + suffix, prefix + other + suffix
    made = delta(before, after)

    assert apply_delta(before, made) == after
    assert len(made) <= len(after) + 40


def test_a_publication_is_mostly_what_the_one_before_was() -> None:
    rows = "x" * 2_000
    before, after = (
        publication_words(view(revision, padding=rows), Changes.of(publication(revision), ()))
        for revision in (7, 8)
    )

    assert len(delta(before, after)) < len(after) / 5


@pytest.mark.parametrize(
    ("text", "sum_"),
    [(b"", 0), (b"\x01", 1 << 24), (b"\x00\x00\x00\x05\x00\x00\x00\x06", 11), (b"\xff" * 8, 0xFFFFFFFE)],
)
def test_the_checksum_is_that_of_32_bit_words(text: bytes, sum_: int) -> None:
    assert checksum(text) == sum_
