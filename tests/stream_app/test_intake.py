"""What can be read is judged, what cannot is named: one bad record costs its neighbours nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_app import intake
from stream_app.carry_out import record_fingerprint
from tests.stream_app.world import Raw, encoded, submitted

GOOD = json.loads(encoded(submitted("ada", "a1", "points", points=5, username="Ada")))


def changed(**fields: object) -> bytes:
    """The good record with some fields changed; `...` leaves one out."""
    return json.dumps({key: value for key, value in (GOOD | fields).items() if value is not ...}).encode()


POISON = {
    "no value": (None, "empty"),
    "an empty value": (b"", "empty"),
    "no JSON": (b"not json", "json"),
    "half a record": (encoded(submitted("ada", "a1"))[:-9], "json"),
    "two records": (encoded(submitted("ada", "a1")) * 2, "json"),
    "a megabyte": (b'{"user_id":"' + b"a" * (1 << 20), "too_large"),
    "a readable megabyte": (changed(client="a" * (1 << 20)), "too_large"),
    "brackets without end": (b"[" * 16_000, None),
    "invalid UTF-8": (b'{"user_id":"\xff\xfe"}', None),
    "invalid UTF-8 in a name": (changed(username="Zx").replace(b"Zx", b"\xc3\x28"), "json"),
    "a list": (b"[]", "shape"),
    "a number": (b"7", "shape"),
    "null": (b"null", "shape"),
    "an empty object": (b"{}", "shape"),
    "NUL in a name": (changed(username="a\0b"), "shape"),
    "NUL in an id": (changed(action_id="a\0"), "shape"),
    "a lone surrogate": (changed(username="\ud800"), None),
    "an empty name": (changed(username=""), "shape"),
    "a name of 256 bytes": (changed(username="a" * 256), "shape"),
    "a newline after an id": (changed(action_id="a1\n"), "shape"),
    "a newline within a user id": (changed(user_id="ada\nbob"), "shape"),
    "a comma in an id": (changed(action_id="a,b"), "shape"),
    "no user": (changed(user_id=...), "shape"),
    "an empty user": (changed(user_id=""), "shape"),
    "a user of 256 characters": (changed(user_id="a" * 256), "shape"),
    "a user that is a number": (changed(user_id=7), "shape"),
    "an action id of 129 characters": (changed(action_id="a" * 129), "shape"),
    "a type in capitals": (changed(type="Level"), "shape"),
    "a type of 65 characters": (changed(type="a" * 65), "shape"),
    "points beyond 64 bits": (changed(points=2**63), "shape"),
    "points of -2^63": (changed(points=-(2**63)), "shape"),
    "points of 400 digits": (changed(points=10**400), None),
    "points beyond any float": (changed(points=...)[:-1] + b',"points":1e999}', None),
    "points with a fraction": (changed(points=1.5), "shape"),
    "points as text": (changed(points="5"), "shape"),
    "an instant without an offset": (changed(occurred_at="2026-11-21T09:00:00"), "shape"),
    "an instant that is a number": (changed(occurred_at=1_795_000_000), "shape"),
    "an instant of the year 0": (changed(occurred_at="0000-01-01T00:00:00.000000Z"), "shape"),
    "a day that does not exist": (changed(received_at="2026-02-30T00:00:00.000000Z"), "shape"),
    "an instant before all by its offset": (changed(occurred_at="0001-01-01T00:00:00+01:00"), "shape"),
    "no fingerprint": (changed(fingerprint=...), "shape"),
    "a short fingerprint": (changed(fingerprint="abc"), "shape"),
    "a fingerprint with a comma": (changed(fingerprint="a" * 31 + ","), "shape"),
    "backfill that is no boolean": (changed(backfill="yes"), "shape"),
}


@pytest.mark.parametrize(("value", "reason"), POISON.values(), ids=POISON.keys())
def test_an_unreadable_record_is_one_dead_letter_and_its_neighbours_are_read(value, reason):
    records = [
        Raw("topic", 3, 7, b"ada", encoded(submitted("ada", "a1"))),
        Raw("topic", 3, 8, b"key", value, [("traceparent", b"t")]),
        Raw("topic", 3, 9, b"bob", encoded(submitted("bob", "b1"))),
    ]

    piece, dead = intake.read_slice(records)
    (letter,) = dead

    assert [item.offset for item in piece.incoming] == [7, 9]
    assert (letter.topic, letter.partition, letter.offset) == ("topic", 3, 8)
    assert (letter.key, letter.value, letter.headers) == (b"key", value, [("traceparent", b"t")])
    assert letter.detail
    assert letter.reason == reason or (reason is None and letter.reason in ("json", "shape"))
    assert piece.unreadable == {8: letter.reason}
    assert (piece.partition, piece.first, piece.last) == (3, 7, 9)


READABLE = {
    "no points": changed(points=...),
    "points as null": changed(points=None),
    "no name": changed(username=...),
    "the most points": changed(points=2**63 - 1),
    "the fewest points": changed(points=-(2**63 - 1)),
    "the first instant": changed(occurred_at="0001-01-01T00:00:00Z"),
    "the last instant": changed(occurred_at="9999-12-31T23:59:59.999999Z"),
    "a field that came later": changed(colour="green"),
    "a name of many bytes": changed(username="☃" * 85),
    "a user with all that may stand in it": changed(user_id="A.z_0:9@-"),
}


@pytest.mark.parametrize("value", READABLE.values(), ids=READABLE.keys())
def test_what_may_stand_on_the_wire_is_read(value):
    piece, dead = intake.read_slice([Raw("topic", 0, 0, b"k", value)])

    assert (dead, piece.unreadable, len(piece.incoming)) == ([], {}, 1)


HEADERS = {
    "none": ([], None, None),
    "both": ([("reply_to", b"door-1"), ("traceparent", b"00-ab")], "door-1", "00-ab"),
    "without a value": ([("reply_to", None), ("traceparent", None)], None, None),
    "bytes that are no text": ([("reply_to", b"\xff\xfe"), ("traceparent", b"\xff")], None, None),
    "of others": ([("ce_id", b"\xff"), ("x", None)], None, None),
    "of others only": ([("x", b"1"), ("reply_to", b"")], None, None),
}


@pytest.mark.parametrize(("headers", "reply_to", "traceparent"), HEADERS.values(), ids=HEADERS.keys())
def test_a_readable_record_is_judged_whatever_its_headers_are(headers, reply_to, traceparent):
    piece, dead = intake.read_slice([Raw("topic", 0, 0, b"k", encoded(submitted("ada", "a1")), headers)])
    (item,) = piece.incoming

    assert dead == []
    assert (item.reply_to or None, item.traceparent or None) == (reply_to, traceparent)


def test_the_slices_fingerprint_is_that_of_its_last_record_read_or_not():
    records = [
        Raw("topic", 0, 0, b"ada", encoded(submitted("ada", "a1"))),
        Raw("topic", 0, 1, None, None),
    ]

    piece, _ = intake.read_slice(records)

    assert piece.last_fingerprint == record_fingerprint(None, None)


@given(
    st.lists(st.one_of(st.binary(max_size=60), st.none(), st.sampled_from([*READABLE.values()])), min_size=1)
)
def test_every_record_is_read_or_set_aside_never_both_and_never_lost(values):
    records = [Raw("topic", 0, 5 + index, None, value) for index, value in enumerate(values)]

    piece, dead = intake.read_slice(records)
    read = [item.offset for item in piece.incoming]

    assert sorted(read + [letter.offset for letter in dead]) == [record.offset for record in records]
    assert read == sorted(read)
    assert piece.unreadable.keys() == {letter.offset for letter in dead}
