"""Submitted records: what ingest writes, the stream reads, and nothing else passes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import actions, words
from core.errors import Unreadable
from core.times import HIGHEST_US, LOWEST_US
from tests.core.examples import example

RECORDS = example("actions", "submitted")["records"]
GOOD = RECORDS[0]["value"]


@pytest.mark.parametrize("case", example("actions", "fingerprints")["cases"], ids=lambda case: case["json"])
def test_a_golden_submission_has_its_fingerprint(case):
    assert actions.fingerprint(case["type"], case["points"], case["occurred_at"]) == case["fingerprint"]


@pytest.mark.parametrize("case", RECORDS, ids=lambda case: case["value"]["contract"])
def test_a_golden_record_is_read_and_written(case):
    record = actions.decode(json.dumps(case["value"]).encode())
    actions.check_words(record)

    assert json.loads(actions.encode(record)) == case["value"]
    assert actions.instants_us(record) == (case["occurred_us"], case["received_us"])


instants_us = st.integers(LOWEST_US, HIGHEST_US)


@given(
    instants_us,
    instants_us,
    st.none() | st.integers(-words.SCORE_MAX, words.SCORE_MAX),
    st.none() | st.text(max_size=40).filter(words.is_username),
    st.booleans(),
)
def test_a_record_written_reads_back_as_itself(occurred_us, received_us, points, username, backfill):
    record = actions.submitted(
        user_id="ann",
        action_id="a:1",
        type_="jump",
        points=points,
        occurred_at_us=occurred_us,
        received_at_us=received_us,
        username=username,
        contract="v1",
        client="ann",
        backfill=backfill,
        fingerprint_hex=actions.fingerprint("jump", points, None),
    )

    back = actions.decode(actions.encode(record))
    actions.check_words(back)

    assert back == record
    assert actions.instants_us(back) == (occurred_us, received_us)


def test_a_field_of_a_later_version_is_passed_over():
    assert actions.decode(json.dumps({**GOOD, "mood": "glad"}).encode()).points == 7


def changed(**fields: object) -> bytes:
    return json.dumps({**GOOD, **fields}).encode()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param(None, "empty", id="no value"),
        pytest.param(b"", "empty", id="an empty value"),
        pytest.param(b"{", "json", id="half an object"),
        pytest.param(b"\xff\xfe", "json", id="no UTF-8"),
        pytest.param(b'{"user_id": "\xff"}', "json", id="no UTF-8 in a string"),
        pytest.param(b"[]", "shape", id="a list"),
        pytest.param(b"null", "shape", id="null"),
        pytest.param(b"[" * 100_000, "shape", id="lists without end"),
        pytest.param(b"{}", "shape", id="no fields"),
        pytest.param(changed(user_id=None), "shape", id="a user id that is null"),
        pytest.param(changed(backfill="no"), "shape", id="a boolean that is a string"),
        pytest.param(changed(points=1.5), "shape", id="points with a fraction"),
        pytest.param(changed(points=True), "shape", id="points that are a boolean"),
        pytest.param(changed(points="7"), "shape", id="points that are a string"),
        pytest.param(
            changed(points=7).replace(b": 7", b": " + b"7" * 5000), "shape", id="points of 5,000 digits"
        ),
    ],
)
def test_what_is_no_record_is_unreadable(value, reason):
    with pytest.raises(Unreadable) as unreadable:
        actions.decode(value)

    assert unreadable.value.reason == reason


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        pytest.param({"user_id": "a b"}, "user_id", id="user id"),
        pytest.param({"action_id": "a@b"}, "action_id", id="action id"),
        pytest.param({"type": "Jump"}, "type", id="type"),
        pytest.param({"username": "a\nb"}, "username", id="username"),
        pytest.param({"username": ""}, "username", id="empty username"),
        pytest.param({"points": 2**63}, "points", id="points beyond 64 bits"),
        pytest.param({"points": 10**400}, "points", id="points of 400 digits"),
        pytest.param({"points": -(2**63)}, "points", id="points of -2^63"),
        pytest.param({"fingerprint": "0" * 31}, "fingerprint", id="a short fingerprint"),
        pytest.param({"fingerprint": "é" * 32}, "fingerprint", id="a fingerprint of letters beyond ASCII"),
        pytest.param({"fingerprint": "z" * 32}, "fingerprint", id="a fingerprint that is not hex"),
    ],
)
def test_a_record_with_a_word_that_may_not_stand_is_unreadable(fields, named):
    record = actions.decode(changed(**fields))

    with pytest.raises(Unreadable, match=named) as unreadable:
        actions.check_words(record)

    assert unreadable.value.reason == "shape"


@pytest.mark.parametrize("field", ["occurred_at", "received_at"])
@pytest.mark.parametrize("text", ["", "yesterday", "2026-11-21T09:26:00", "2026-02-30T00:00:00Z"])
def test_a_record_without_an_instant_is_unreadable(field, text):
    record = actions.decode(changed(**{field: text}))

    with pytest.raises(Unreadable, match="instant"):
        actions.instants_us(record)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_record_or_unreadable(value):
    try:
        record = actions.decode(value)
    except Unreadable:
        return

    assert isinstance(record, actions.SubmittedRecord)
