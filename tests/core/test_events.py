"""The records of the topics: golden bytes and headers, as analysts read them."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import events, topics
from core.ranking import Entry
from core.times import parse_us
from tests.core.examples import cases

OF_TOPIC = {
    topics.JUDGED.name: events.JudgedRecord,
    topics.PLAYER.name: events.PlayerRecord,
    topics.BOARD_CHANGED.name: events.BoardChanged,
}
TOPICS = {topic.name: topic for topic in topics.ALL}


@pytest.mark.parametrize("case", cases("events"))
def test_a_golden_record_is_written_byte_for_byte(case):
    kind = events.ContinuesRecord if "continues" in case["value"] else OF_TOPIC[case["topic"]]
    record = msgspec.convert(case["value"], kind)

    assert events.encode(record) == case["bytes"].encode()


@pytest.mark.parametrize("case", cases("events"))
def test_a_golden_record_names_its_fields_in_their_order(case):
    assert json.loads(case["bytes"]) == case["value"]
    assert list(json.loads(case["bytes"])) == list(case["value"])


@pytest.mark.parametrize("case", cases("events"))
def test_a_golden_records_headers_are_a_cloud_event_in_binary_mode(case):
    said = dict(case["headers"])

    made = events.headers(TOPICS[case["topic"]], said["ce_id"], said["ce_time"], said["traceparent"])

    assert [[name, value.decode()] for name, value in made] == case["headers"]


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_trace_made_of_an_id_is_a_trace_of_its_own(event_id, other):
    made = events.derived_traceparent(event_id)

    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", made)
    assert "-" + "0" * 16 + "-" not in made
    assert (made == events.derived_traceparent(other)) == (event_id == other)


def test_a_trace_made_of_an_id_is_the_same_in_every_process():
    code = (
        "from core.events import derived_traceparent; print(derived_traceparent('main:all-time/e/7'), end='')"
    )

    elsewhere = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout

    assert elsewhere == events.derived_traceparent("main:all-time/e/7")


@given(
    st.lists(
        st.builds(
            Entry, st.text(min_size=1), st.text(), st.integers(-(2**63) + 1, 2**63 - 1), st.integers(0, 2**52)
        )
    )
)
def test_ranks_count_from_one_and_instants_are_written_to_the_microsecond(entries):
    ranked = events.ranked(entries)

    assert [entry.rank for entry in ranked] == list(range(1, len(entries) + 1))
    assert [
        Entry(entry.user_id, entry.username, entry.score, parse_us(entry.reached_at)) for entry in ranked
    ] == entries


def test_one_who_is_gone_has_neither_score_nor_instant():
    gone = events.changed_entry("ada", "Ada", None, None)

    assert json.loads(msgspec.json.encode(gone)) == {
        "user_id": "ada",
        "username": "Ada",
        "score": None,
        "reached_at": None,
    }
