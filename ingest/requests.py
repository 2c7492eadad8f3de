"""One HTTP request as a route sees it, and the reply it gives.

Reading is strict: what could be understood in two ways (a member twice, a header twice, bytes
that are no UTF-8, a label that says another encoding) is refused, never guessed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Generic, NoReturn, TypeVar, cast
from urllib.parse import parse_qsl

import msgspec

from core.actions import SubmittedRecord
from core.errors import Refused
from ingest.ports import Decision
from service import tracing
from service.tracing import Trace

SINGLE_BYTES: Final = 16 * 1024
BATCH_BYTES: Final = 512 * 1024
QUERY_FIELDS: Final = 16

MOST_WAIT_S: Final = 10.0
"""Longest wait a request may prefer."""

HeaderList = list[tuple[bytes, bytes]]
T = TypeVar("T")

_JSON_TYPE = re.compile(rb'application/json[ \t]*(;[ \t]*charset[ \t]*=[ \t]*"?utf-8"?[ \t]*)?', re.I)
_WAIT = re.compile(r"wait[ \t]*=[ \t]*\"?([0-9]{1,6})\"?", re.I)
_encode = msgspec.json.Encoder().encode


class ClientGone(Exception):
    """The client closed its connection before the request was whole: nobody is left to answer."""


class Request:
    """The head of a request; `await body(…)` gives the rest. `address` is who is counted for it."""

    __slots__ = (
        "_receive",
        "address",
        "client",
        "code",
        "contract",
        "decision",
        "extra",
        "fields",
        "headers",
        "outcome",
        "outcomes",
        "path_params",
        "record",
        "scope",
        "shape",
        "started_s",
        "trace",
        "waited",
    )

    def __init__(
        self,
        scope: Any,
        receive: Any,
        address: str,
        started_s: float,
        shape: Callable[[str, int, str, str], tuple[bytes, bytes]],
    ) -> None:
        self.scope, self._receive, self.shape = scope, receive, shape
        self.address, self.started_s = address, started_s
        self.headers: HeaderList = scope["headers"]
        self.fields = dict(self.headers)
        """The headers by name; only where none is there twice are they the same."""
        self.path_params: dict[str, str] = scope.get("path_params", {})
        self.decision: Decision | None = None
        """What the limits said, once they were asked."""

        # What the log says of an attempt: under which contract, by whom, what, and how it ended.
        self.contract: str | None = None
        self.client: str | None = None
        self.record: SubmittedRecord | None = None
        self.outcome, self.code = "", ""
        self.outcomes: dict[str, int] | None = None

        self.waited = False
        """Whether the verdict was waited for."""
        self.extra: HeaderList = []
        """Headers of the reply, whatever it is."""
        self.trace: Trace = _trace(self.header(b"traceparent"))

    def header(self, name: bytes) -> bytes | None:
        """A header's value, None if it is absent or there more than once."""
        if len(self.fields) != len(self.headers) and sum(each == name for each, _ in self.headers) > 1:
            return None
        return self.fields.get(name)

    def has(self, name: bytes) -> bool:
        return name in self.fields

    async def body(self, most_bytes: int) -> bytes:
        """The whole body.

        Raises:
            Refused: 415 for another media type or a compressed body, 413 for a larger one.
        """
        length = self.fields.get(b"content-length")
        media_type = self.header(b"content-type")
        if self.has(b"content-encoding") and self.header(b"content-encoding") != b"identity":
            raise _not_json("The body must not be compressed.")
        if length is not None and (not length.isdigit() or len(length) > 12 or int(length) > most_bytes):
            raise too_large(f"A body may have {most_bytes} bytes here.")
        if media_type != b"application/json" and (
            media_type is None or _JSON_TYPE.fullmatch(media_type) is None
        ):
            raise _not_json("The body must be application/json in UTF-8.")
        message = await self._receive()
        if message["type"] != "http.request":
            raise ClientGone
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            parts, size = [body], len(body)
            while message.get("more_body"):
                if size > most_bytes:
                    break
                message = await self._receive()
                if message["type"] != "http.request":
                    raise ClientGone
                parts.append(message.get("body", b""))
                size += len(parts[-1])
            body = b"".join(parts)
        if len(body) > most_bytes:
            raise too_large(f"A body may have {most_bytes} bytes here.")
        return body

    def bearer(self) -> bytes | None:
        """The token of the Authorization header, None unless there is exactly one."""
        value = self.header(b"authorization")
        if value is None or value[:7].lower() != b"bearer ":
            return None
        return value[7:].strip(b" ") or None

    def query(self, *known: str) -> dict[str, str]:
        """The query's fields.

        Raises:
            Refused: 400 for an unknown or a repeated one, or bytes that are no UTF-8.
        """
        raw: bytes = self.scope.get("query_string", b"")
        if not raw:
            return {}
        try:
            pairs = parse_qsl(
                raw.decode("ascii"),
                keep_blank_values=True,
                strict_parsing=True,
                errors="strict",
                max_num_fields=QUERY_FIELDS,
            )
        except ValueError:
            raise Refused("invalid_field", "The query is malformed.") from None
        fields: dict[str, str] = {}
        for name, value in pairs:
            if name not in known:
                raise Refused("invalid_field", f"The query may have these fields only: {', '.join(known)}.")
            if name in fields:
                raise Refused("invalid_field", f"{name} must stand in the query once.")
            fields[name] = value
        return fields

    def preferred_wait_s(self) -> int:
        """Seconds of `Prefer: wait=…` (RFC 7240), at most ten; 0 without one."""
        if b"prefer" not in self.fields:
            return 0
        for name, value in self.headers:
            if name == b"prefer":
                for preference in value.decode("latin-1").split(","):
                    match = _WAIT.fullmatch(preference.partition(";")[0].strip())
                    if match is not None:
                        return min(int(match[1]), int(MOST_WAIT_S))
        return 0


class Reply:
    """Status, body and headers; `content_type` None for a reply without a body.

    A reply that is `cacheable` brings its own Cache-Control.
    """

    __slots__ = ("body", "cacheable", "content_type", "headers", "status")

    def __init__(
        self,
        status: int,
        body: bytes = b"",
        headers: HeaderList | None = None,
        content_type: bytes | None = b"application/json",
        *,
        cacheable: bool = False,
    ) -> None:
        self.cacheable = cacheable
        self.status, self.body = status, body
        self.headers: HeaderList = [] if headers is None else headers
        self.content_type = content_type


def json_reply(status: int, value: Any, headers: HeaderList | None = None) -> Reply:
    return Reply(status, _encode(value), headers)


class Body(msgspec.Struct):
    """The base of every body: exact fields, nothing unknown.

    `quotes` is how many quotation marks the body has when no member stands in it twice: two for
    each name and two for each string.
    """

    def quotes(self) -> int:
        raise NotImplementedError


BodyT = TypeVar("BodyT", bound=Body)


class Read(Generic[BodyT]):
    """What reading a body came to: `value`, or the `fault` in its shape.

    The fault is kept and not raised, since the token and the limits come before the shape. `members`
    is the body as it stands, for whoever needs one field of it in spite of the fault.
    """

    __slots__ = ("fault", "members", "value")

    def __init__(self, value: BodyT | None, fault: Refused | None, members: dict[str, Any]) -> None:
        self.value, self.fault, self.members = value, fault, members

    def whole(self) -> BodyT:
        """The value. Raises the fault."""
        if self.value is None:
            assert self.fault is not None
            raise self.fault
        return self.value


_NO_MEMBERS: dict[str, Any] = {}


def read_body(body: bytes, decoder: msgspec.json.Decoder[BodyT]) -> Read[BodyT]:
    """Read a body into its exact shape.

    msgspec takes the last of two members of one name. Where no string has an escape, counting
    quotation marks tells that there are none, for some 0.1 µs; otherwise they are looked for.

    Raises:
        Refused: 400 `invalid_json`, if it is not one readable JSON object.
    """
    try:
        value = decoder.decode(body)
    except msgspec.ValidationError as error:
        return Read(None, Refused("invalid_field", _shown(str(error))), members_of(body))
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise _unreadable() from None
    if b"\\" in body or body.count(b'"') != value.quotes():
        members_of(body)
    return Read(value, None, _NO_MEMBERS)


def members_of(body: bytes) -> dict[str, Any]:
    """The members of a JSON object in UTF-8, none of them twice at any depth.

    Raises:
        Refused: 400 `invalid_json`.
    """
    try:
        # msgspec is the strict one about bytes, numbers, surrogates and depth; json sees pairs.
        msgspec.json.decode(body)
        value = json.loads(body, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise _unreadable() from None
    if not isinstance(value, dict):
        raise Refused("invalid_json", "The body must be a JSON object.")
    return cast("dict[str, Any]", value)


def too_large(detail: str) -> Refused:
    # The rest of the body is not read, so the connection cannot be used again.
    return Refused("too_large", detail, status_code=413, headers={"Connection": "close"})


def position_headers(epoch: str, revision: int) -> HeaderList:
    return [(b"trueboard-epoch", epoch.encode()), (b"trueboard-revision", b"%d" % revision)]


def action_headers(action_id: str) -> HeaderList:
    name = action_id.encode()
    return [(b"trueboard-action", name), (b"location", b"/v1/actions/" + name)]


def _trace(header: bytes | None) -> Trace:
    """The next step of the caller's trace, or a fresh one."""
    if header is not None and (parent := tracing.parse(header)) is not None:
        return tracing.child(parent)
    drawn = _draw()
    return Trace(drawn[:32], drawn[32:])


def _draws() -> Iterator[str]:
    """Hexadecimal digits for the ids of a trace and its step; a block of them is one call to the system."""
    while True:
        block = os.urandom(24 * 128).hex()
        for begin in range(0, len(block), 48):
            yield block[begin : begin + 48]


_draw = _draws().__next__


def _unreadable() -> Refused:
    return Refused(
        "invalid_json", "The body must be one JSON object in UTF-8, with no member twice and no deep nesting."
    )


def _not_json(detail: str) -> Refused:
    return Refused("unsupported_media_type", detail, status_code=415, headers={"Accept": "application/json"})


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    listed = list(pairs)
    members = dict(listed)
    if len(members) != len(listed):
        raise ValueError("a member occurs twice")
    return members


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _shown(text: str) -> str:
    """msgspec's message with ours around it: it names the field, and of the input only names."""
    return f"The body does not have its shape: {text[:200]}."
