"""What is read from a request, and what is refused rather than guessed."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Refused
from ingest.door import as_problem
from ingest.requests import Request, members_of, read_body
from ingest.routes.contracts import S0Body, S4Body
from ingest.routes.own import ActionBody, BatchBody

DECODERS: list[msgspec.json.Decoder[Any]] = [
    msgspec.json.Decoder(each) for each in (ActionBody, BatchBody, S0Body, S4Body)
]
ACTION = DECODERS[0]

unescaped = st.text(st.characters(codec="utf-8", exclude_characters='"\\', min_codepoint=32), max_size=20)
members = st.fixed_dictionaries(
    {"action_id": st.text(max_size=20), "type": unescaped},
    optional={
        "occurred_at": unescaped,
        "user_id": st.text(max_size=20),
        "points": st.integers(-(2**63), 2**64 - 1),
        "username": st.text(max_size=20),
    },
)


def request(*headers: tuple[bytes, bytes], query: bytes = b"") -> Request:
    scope = {"headers": list(headers), "query_string": query}
    return Request(scope, None, "192.0.2.1", 0.0, as_problem)


def written(pairs: list[tuple[str, Any]], escape: bool) -> bytes:
    body = ",".join(f"{json.dumps(name)}:{json.dumps(value, ensure_ascii=escape)}" for name, value in pairs)
    return b"{" + body.encode("utf-8", "surrogatepass") + b"}"


@given(members=members, escape=st.booleans())
def test_a_body_of_the_right_shape_is_read(members: dict[str, Any], escape: bool) -> None:
    read = read_body(written(list(members.items()), escape), ACTION)

    assert msgspec.to_builtins(read.whole()) == members


@given(members=members, data=st.data(), escape=st.booleans())
def test_a_member_that_stands_twice_is_refused(
    members: dict[str, Any], data: st.DataObject, escape: bool
) -> None:
    pairs = list(members.items())
    again = data.draw(st.sampled_from(pairs))
    pairs.insert(data.draw(st.integers(0, len(pairs))), again)

    with pytest.raises(Refused, match="no member twice"):
        read_body(written(pairs, escape), ACTION)


def test_a_member_spelled_in_two_ways_is_the_same_member() -> None:
    with pytest.raises(Refused, match="no member twice"):
        read_body(b'{"action_id":"a","type":"t","\\u0074ype":"u"}', ACTION)


def test_a_member_twice_in_one_action_of_a_batch_is_refused() -> None:
    with pytest.raises(Refused, match="no member twice"):
        read_body(b'{"actions":[{"action_id":"a","type":"t","type":"u"}]}', DECODERS[1])


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"{", id="half an object"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="an array"),
        pytest.param(b'"x"', id="a string"),
        pytest.param(b"7", id="a number"),
        pytest.param(b"\xef\xbb\xbf{}", id="a byte order mark"),
        pytest.param('{"action_id":"a","type":"t"}'.encode("utf-16"), id="UTF-16"),
        pytest.param(b'{"action_id":"\xff","type":"t"}', id="no UTF-8"),
        pytest.param(b'{"action_id":"\\ud800","type":"t"}', id="half a surrogate pair"),
        pytest.param(b'{"action_id":NaN,"type":"t"}', id="NaN"),
        pytest.param(b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}", id="5000 deep"),
        pytest.param(b'{"x":' + b'{"x":' * 2000 + b"1" + b"}" * 2001, id="2000 objects deep"),
        pytest.param(b'{"action_id":"a","type":"t"} {}', id="two objects"),
        pytest.param(b'{"action_id":"a\x00","type":"t"}', id="a raw control character"),
        pytest.param(b'{"x":1,"x":1}', id="an unknown member twice"),
        pytest.param(b'{"points":' + b"1" * 10_000 + b"}", id="ten thousand digits"),
    ],
)
@pytest.mark.parametrize("decoder", DECODERS)
def test_what_is_no_readable_object_is_invalid_json(body: bytes, decoder: msgspec.json.Decoder[Any]) -> None:
    with pytest.raises(Refused) as refused:
        read_body(body, decoder).whole()

    assert (refused.value.status_code, refused.value.code) == (400, "invalid_json")


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"action_id":1,"type":"t"}',
        b'{"action_id":null,"type":"t"}',
        b'{"action_id":"a","type":"t","points":1.0}',
        b'{"action_id":"a","type":"t","points":1e3}',
        b'{"action_id":"a","type":"t","points":"1"}',
        b'{"action_id":"a","type":"t","points":true}',
        b'{"action_id":"a","type":"t","points":null}',
        b'{"action_id":"a","type":"t","userId":"victim"}',
        b'{"action_id":"a","type":"t","__proto__":{}}',
    ],
)
def test_what_is_readable_but_has_another_shape_is_invalid_field(body: bytes) -> None:
    read = read_body(body, ACTION)

    assert read.value is None
    assert read.fault is not None
    assert (read.fault.status_code, read.fault.code) == (400, "invalid_field")


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_but_be_read_or_refused(body: bytes) -> None:
    for decoder in DECODERS:
        codes = []
        try:
            read_body(body, decoder)
        except Refused as refused:
            codes.append(refused.status_code)

        assert codes in ([], [400])


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists, max_leaves=10))
def test_a_json_value_that_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(Refused):
        members_of(json.dumps(value).encode())


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], 0),
        ([(b"prefer", b"wait=5")], 5),
        ([(b"prefer", b"respond-async, wait=5; foo")], 5),
        ([(b"prefer", b'Wait = "7"')], 7),
        ([(b"prefer", b"wait=60")], 10),
        ([(b"prefer", b"wait=0")], 0),
        ([(b"prefer", b"wait=soon")], 0),
        ([(b"prefer", b"wait=-1")], 0),
        ([(b"prefer", b"respond-async"), (b"prefer", b"wait=2")], 2),
    ],
)
def test_the_wait_preferred_is_at_most_ten_seconds(headers: list[tuple[bytes, bytes]], expected: int) -> None:
    assert request(*headers).preferred_wait_s() == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"Bearer abc", b"abc"),
        (b"bearer  abc ", b"abc"),
        (b"Basic abc", None),
        (b"Bearer", None),
        (b"Bearer ", None),
        (b"abc", None),
    ],
)
def test_a_token_stands_in_the_bearer_scheme(value: bytes, expected: bytes | None) -> None:
    assert request((b"authorization", value)).bearer() == expected


def test_two_tokens_are_none() -> None:
    assert request((b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")).bearer() is None


@pytest.mark.parametrize(
    "query", [b"limit=1&limit=2", b"other=1", b"limit", b"limit=%ff", b"limit=1&" * 20, b"\xc3\xa4=1"]
)
def test_a_query_that_is_unclear_is_refused(query: bytes) -> None:
    with pytest.raises(Refused) as refused:
        request(query=query).query("limit")

    assert refused.value.status_code == 400


def test_a_trace_that_is_sent_goes_on_and_a_malformed_one_does_not() -> None:
    sent = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    assert request((b"traceparent", sent)).trace.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert request((b"traceparent", b"00-zz")).trace.trace_id != "zz"
