"""The words of the Centrifuge client protocol, version 2, in JSON: `/connection/websocket`.

A frame holds commands, or replies and pushes, one JSON object a line. A reply carries its
command's id; a push carries a channel. An empty object from the server is a ping and from the
client the pong. Members that are zero, false or empty may be left out, both ways.

Source: github.com/centrifugal/protocol, definitions/client.proto
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import msgspec

from core.feed import Position
from push import fossil
from push.channels import Chained
from push.frames import text_frame

PATH: Final = "/connection/websocket"
NAME: Final = "centrifuge"

PONG: Final = b"{}"
PING: Final = text_frame(PONG)
FOSSIL: Final = "fossil"

USER: Final = "user:"
BOARD: Final = "board:"


class Connect(msgspec.Struct):
    """`token` is a JWT, or `ticket.<ticket>`; without one the connection is nobody's."""

    token: str = ""


class Subscribe(msgspec.Struct):
    """`recover` asks for what was published after (`epoch`, `offset`)."""

    channel: str = ""
    recover: bool = False
    epoch: str = ""
    offset: int = 0
    delta: str = ""


class OfChannel(msgspec.Struct):
    channel: str = ""


class Refresh(msgspec.Struct):
    token: str = ""


class Nothing(msgspec.Struct):
    """A request whose members do not matter, since it is answered the same whatever it says."""


class Command(msgspec.Struct):
    """What a client says. Of the requests the first one that is there counts."""

    id: int = 0
    connect: Connect | None = None
    subscribe: Subscribe | None = None
    unsubscribe: OfChannel | None = None
    publish: OfChannel | None = None
    presence: OfChannel | None = None
    presence_stats: OfChannel | None = None
    history: OfChannel | None = None
    ping: Nothing | None = None
    send: Nothing | None = None
    rpc: Nothing | None = None
    refresh: Refresh | None = None
    sub_refresh: OfChannel | None = None

    @property
    def is_pong(self) -> bool:
        return self == _PONG


_PONG: Final = Command()


class Fault(Exception):
    """An error of the protocol, as a reply carries it; the client may repeat it if `temporary`."""

    def __init__(self, code: int, message: str, *, temporary: bool = False) -> None:
        super().__init__(message)
        self.code, self.message, self.temporary = code, message, temporary


def unknown_channel() -> Fault:
    return Fault(102, "unknown channel")


def permission_denied() -> Fault:
    return Fault(103, "permission denied")


def already_subscribed() -> Fault:
    return Fault(105, "already subscribed")


def limit_exceeded() -> Fault:
    return Fault(106, "limit exceeded")


def not_available() -> Fault:
    return Fault(108, "not available")


def token_expired() -> Fault:
    return Fault(109, "token expired")


def try_again(why: str) -> Fault:
    """Something is away or behind for now: the client's own back-off brings it here again."""
    return Fault(100, why, temporary=True)


_commands = msgspec.json.Decoder(Command)
_encode = msgspec.json.Encoder().encode


def commands(frame: str) -> list[Command]:
    """The commands of a frame, in order; raises ValueError if it is none."""
    return [_commands.decode(line) for line in frame.split("\n") if line.strip()]


def reply(id_: int, kind: str, result: dict[str, Any]) -> bytes:
    return text_frame(_encode({"id": id_, kind: result}))


def error(id_: int, fault: Fault) -> bytes:
    said: dict[str, Any] = {"code": fault.code, "message": fault.message}
    return text_frame(_encode({"id": id_, "error": said | ({"temporary": True} if fault.temporary else {})}))


def push(channel: str, kind: str, what: dict[str, Any]) -> bytes:
    return text_frame(_encode({"push": {"channel": channel, kind: what}}))


@cache
def dialect(channel: str, delta: bool) -> Chained:
    """How publications of this channel are worded, with deltas or without.

    One for each channel there is, for as long as the process lives: ask only for channels that
    exist. They are compared by identity, and readers of one are written the same bytes.
    """
    head = b'{"push":{"channel":' + _encode(channel) + b',"pub":'

    def frame(data: bytes, position: Position, before: bytes | None) -> bytes:
        return head + publication(data, position, before, delta=delta) + b"}}"

    return Chained(NAME, frame, keeps=delta)


def publication(data: bytes, position: Position, before: bytes | None, *, delta: bool) -> bytes:
    """A publication's JSON. With `delta` its data is a string: the text, or a difference to `before`."""
    offset = b',"offset":%d}' % position[1]
    if not delta:
        return b'{"data":' + data + offset
    if before is not None and len(difference := fossil.delta(before, data)) < len(data):
        return b'{"delta":true,"data":' + _encode(difference.decode()) + offset
    return b'{"data":' + _encode(data.decode()) + offset


def publications(missed: Sequence[tuple[bytes, Position]], *, delta: bool) -> msgspec.Raw:
    """Publications for a subscribe reply, each the base of the next one's difference."""
    words, before = [], None
    for data, position in missed:
        words.append(publication(data, position, before, delta=delta))
        before = data
    return msgspec.Raw(b"[" + b",".join(words) + b"]")


def own(channel: str, data: bytes, position: Position | None) -> bytes:
    """A publication for one client alone; without a position it leaves the client's where it is."""
    offset = b"" if position is None else b',"offset":%d' % position[1]
    words = b'{"push":{"channel":' + _encode(channel) + b',"pub":{"data":' + data + offset + b"}}}"
    return text_frame(words)
