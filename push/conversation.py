"""One Centrifuge client's conversation: it says who it is, follows channels, and is told of them.

What is published goes from the hub to the socket without passing here; this side answers
commands. Commands of one client are answered one after the other, and the next one is not read
before the socket has taken what the last one was answered with.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from core import scopes
from core.errors import Refused, Unavailable
from core.feed import Position, publication_words
from core.ids import EPOCH
from core.words import is_user_id
from push import boards
from push.admission import Admission, Admitted, Identity, Knock
from push.arrival import Abreast, arrived
from push.channels import Reader
from push.close_codes import CloseCode
from push.hub import Hub
from push.own import Own
from push.prepared import PreparedSocket
from push.protocols import centrifuge
from push.protocols.centrifuge import Command, Fault
from push.recovery import missed
from push.verdicts import Verdicts, Watching
from service.tokens import InvalidToken

MOST_CHANNELS: Final = 32
"""Channels one socket may follow."""

ARRIVAL_TIMEOUT_S: Final = 3.0
"""How long a client that is ahead of this replica waits; it would give up after 5 s by itself."""

COMMANDS_MOST: Final = 200
COMMANDS_WINDOW_S: Final = 10.0
"""A client that says more than this many things within the window is closed."""

CONNECT_WITHIN_S: Final = 10.0
"""How long a client may stay silent before it says who it is."""

REFRESH_WITHIN_S: Final = 25.0
"""How long after its token's end a client may bring a new one."""

_FETCHED_AGAIN: Final = frozenset({"expired", "ticket"})
"""Why a token is refused that another one of the same client would not be: a ticket is good once."""


@dataclass(frozen=True, slots=True)
class House:
    """What every conversation of the process shares."""

    hub: Hub
    admission: Admission
    verdicts: Verdicts
    abreast: Abreast
    ping_interval_s: float
    clock_s: Callable[[], float] = time.monotonic
    now_s: Callable[[], float] = time.time


class Conversation:
    """One socket's side of the protocol."""

    __slots__ = (
        "_admitted",
        "_followed",
        "_heard",
        "_house",
        "_identity",
        "_knock",
        "_ping_at_s",
        "_socket",
        "_watching",
        "_window_began_s",
        "client",
        "due_s",
        "ended",
    )

    def __init__(self, house: House, socket: PreparedSocket, knock: Knock, admitted: Admitted) -> None:
        self._house, self._socket, self._knock, self._admitted = house, socket, knock, admitted
        self._identity: Identity | None = None
        self._followed: dict[str, Reader] = {}
        self._watching: dict[str, Watching] = {}
        self.client = ""
        """The connection's id, once it has connected."""
        self.ended = False
        self._window_began_s = house.clock_s()
        self._heard = 0
        self._ping_at_s = self._window_began_s + CONNECT_WITHIN_S
        self.due_s = self._ping_at_s
        """When `sweep` has something to do, by the house's clock."""

    @property
    def user_id(self) -> str:
        return self._identity.user_id if self._identity else ""

    # What the client says

    async def hear(self, text: str | None) -> None:
        """Answer the commands of one frame, in order; None: it was no text."""
        try:
            said = centrifuge.commands(text) if text is not None else None
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            said = None
        if not said:
            self.end(CloseCode.UNREADABLE)
            return
        for command in said:
            if self.ended or not self._may_say():
                return
            if command.is_pong:
                self._socket.awaited = None
                continue
            await self._socket.writable.wait()
            await self._answer(command)

    def leave(self) -> None:
        """The socket is gone, or will be: follow nothing any more. Harmless if repeated."""
        if self.ended:
            return
        self.ended = True
        for reader in self._followed.values():
            self._house.hub.leave(reader)
        for watching in self._watching.values():
            self._house.verdicts.stop(watching)
        if self._identity is not None:
            self._house.admission.unseat(self._identity.user_id)

    def end(self, code: CloseCode) -> None:
        """Close the socket, and leave."""
        self.leave()
        self._socket.end(code)

    def end_if_revoked(self) -> None:
        """Close the socket, for good, if the token of who is there was revoked."""
        identity = self._identity or self._admitted.identity
        if not self.ended and identity is not None and self._house.admission.is_revoked(identity):
            self.end(CloseCode.BAD_TOKEN)

    def sweep(self, now_s: float) -> None:
        """What is due by the clock: pings, and the end of who is silent or has expired."""
        if self.ended:
            return
        expires_at_s = self._identity.expires_at_s if self._identity else math.inf
        if now_s >= expires_at_s + REFRESH_WITHIN_S:
            self.end(CloseCode.UNAUTHENTICATED)
        elif (clock_s := self._house.clock_s()) >= self._ping_at_s:
            if not self.client or self._socket.awaited is not None:
                self.end(CloseCode.TOO_LATE)
                return
            self._socket.awaited = centrifuge.PONG
            self._ping_at_s = clock_s + self._house.ping_interval_s
            self._socket.write(centrifuge.PING)
        self._schedule()

    def _schedule(self) -> None:
        self.due_s = self._ping_at_s
        if self._identity is not None:
            left_s = self._identity.expires_at_s + REFRESH_WITHIN_S - self._house.now_s()
            self.due_s = min(self.due_s, self._house.clock_s() + left_s)

    def _may_say(self) -> bool:
        now_s = self._house.clock_s()
        if now_s - self._window_began_s > COMMANDS_WINDOW_S:
            self._window_began_s, self._heard = now_s, 0
        self._heard += 1
        if self._heard > COMMANDS_MOST:
            self.end(CloseCode.TOO_MANY)
            return False
        return True

    # Commands

    async def _answer(self, command: Command) -> None:
        if command.send is not None:
            self.end(CloseCode.UNSUPPORTED)
            return
        if command.id <= 0 or (command.connect is None) != bool(self.client):
            self.end(CloseCode.UNREADABLE)
            return
        try:
            await self._carry_out(command)
        except Fault as fault:
            self._write(centrifuge.error(command.id, fault))

    async def _carry_out(self, command: Command) -> None:
        if (connect := command.connect) is not None:
            await self._connect(command.id, connect)
        elif (subscribe := command.subscribe) is not None:
            await self._subscribe(command.id, subscribe)
        elif (unsubscribe := command.unsubscribe) is not None:
            self._unsubscribe(unsubscribe.channel)
            self._reply(command.id, "unsubscribe", {})
        elif (refresh := command.refresh) is not None:
            await self._refresh(command.id, refresh)
        elif command.ping is not None:
            self._reply(command.id, "ping", {})
        elif _known(command):
            raise centrifuge.not_available()
        else:
            self.end(CloseCode.UNREADABLE)

    async def _connect(self, id_: int, request: centrifuge.Connect) -> None:
        identity = self._admitted.identity
        if request.token:
            identity = await self._identify(request.token)
        if self.ended:
            return
        if identity is not None and not self._house.admission.seat(identity.user_id):
            self.end(CloseCode.CROWDED)
            return
        self._identity = identity
        self.client = str(uuid.uuid4())
        # The first ping comes early by chance, so that those who came together do not stay together.
        interval_s = self._house.ping_interval_s
        self._ping_at_s = self._house.clock_s() + interval_s * (0.5 + uuid.uuid4().int % 1000 / 2000)
        self._schedule()
        result = {"client": self.client, "ping": math.ceil(interval_s), "pong": True}
        self._reply(id_, "connect", result | self._expiry())

    async def _refresh(self, id_: int, request: centrifuge.Refresh) -> None:
        if not request.token or self._identity is None:
            self.end(CloseCode.UNREADABLE)
            return
        identity = await self._identify(request.token)
        if self.ended:
            return
        if identity is None or identity.user_id != self._identity.user_id:
            self.end(CloseCode.BAD_TOKEN)
            return
        self._identity = identity
        self._schedule()
        self._drop_what_is_closed()
        self._reply(id_, "refresh", {"client": self.client} | self._expiry())

    async def _identify(self, token: str) -> Identity | None:
        """Who brings this token; None if the conversation was ended over it."""
        try:
            return await self._house.admission.identify(token, self._knock)
        except InvalidToken as error:
            if error.cause_word not in _FETCHED_AGAIN:
                self.end(CloseCode.BAD_TOKEN)
            elif self.client:
                # Clients take every error in the answer to a refresh as final, and connect again after this.
                self.end(CloseCode.UNAUTHENTICATED)
            else:
                raise centrifuge.token_expired() from None
        except Refused:
            self.end(CloseCode.TOO_MANY)
        except Unavailable as error:
            raise centrifuge.try_again(error.detail) from error
        return None

    def _expiry(self) -> dict[str, Any]:
        if self._identity is None:
            return {}
        left_s = self._identity.expires_at_s - self._house.now_s()
        return {"expires": True, "ttl": max(1, math.floor(left_s))}

    # Channels

    async def _subscribe(self, id_: int, request: centrifuge.Subscribe) -> None:
        channel = request.channel
        if not channel or request.delta not in ("", centrifuge.FOSSIL):
            self.end(CloseCode.UNREADABLE)
            return
        if channel in self._followed or channel in self._watching:
            raise centrifuge.already_subscribed()
        if len(self._followed) + len(self._watching) >= MOST_CHANNELS:
            raise centrifuge.limit_exceeded()
        if channel.startswith(centrifuge.BOARD):
            await self._follow(id_, request, channel.removeprefix(centrifuge.BOARD))
        elif channel.startswith(centrifuge.USER):
            await self._watch(id_, request, channel.removeprefix(centrifuge.USER))
        else:
            raise centrifuge.unknown_channel()

    async def _follow(self, id_: int, request: centrifuge.Subscribe, name: str) -> None:
        board, _, window = name.partition(":")
        found = boards.find(board, window or None)
        if found is None or name.endswith(":"):
            raise centrifuge.unknown_channel()
        period, watched = found
        if not self._may_read(watched):
            raise centrifuge.permission_denied()
        hub = self._house.hub
        channel = hub.channels[period]
        asked = _position(request)
        await self._house.abreast.reach(period)
        if asked is not None and not await arrived(hub, period, asked, ARRIVAL_TIMEOUT_S):
            raise centrifuge.try_again("this replica is behind what you have seen")
        view = channel.sequence.latest
        if self.ended:
            return
        if view is None:
            raise centrifuge.try_again("the board is being loaded")
        to_send = None if asked is None else missed(channel, asked)
        delta = request.delta == centrifuge.FOSSIL
        result = _stream(view.position, request, recovered=to_send is not None)
        if delta:
            result["delta"] = True
        if to_send is None:
            result["data"] = msgspec.Raw(publication_words(view, None))
        elif to_send:
            result["publications"] = centrifuge.publications(to_send, delta=delta)
        # The reply goes first: what is published from now on follows it.
        self._reply(id_, "subscribe", result)
        kept = to_send[-1][0] if to_send else None
        dialect = centrifuge.dialect(request.channel, delta)
        reader = hub.follow(self._socket, dialect, period, kept=kept)
        self._followed[request.channel] = reader

    async def _watch(self, id_: int, request: centrifuge.Subscribe, user_id: str) -> None:
        if not is_user_id(user_id) or user_id != self.user_id:
            raise centrifuge.permission_denied()
        channel = request.channel
        own = Own(self, self._socket, channel)
        try:
            watching = await self._house.verdicts.watch(user_id, own, _position(request))
        except Unavailable as error:
            raise centrifuge.try_again(error.detail) from error
        if self.ended:
            self._house.verdicts.stop(watching)
            return
        self._watching[channel] = watching
        self._reply(id_, "subscribe", _stream(watching.position, request, recovered=watching.recovered))

    def _unsubscribe(self, channel: str) -> None:
        if (reader := self._followed.pop(channel, None)) is not None:
            self._house.hub.leave(reader)
            self._socket.detach(reader)
        if (watching := self._watching.pop(channel, None)) is not None:
            self._house.verdicts.stop(watching)

    def forget(self, channel: str) -> None:
        """The client was told to subscribe to this channel again."""
        self._watching.pop(channel, None)

    def _may_read(self, watched: boards.Watched) -> bool:
        return watched.public or (self._identity is not None and scopes.BOARDS_READ in self._identity.scopes)

    def _drop_what_is_closed(self) -> None:
        """A new token may allow less than the one before."""
        for channel in list(self._followed):
            found = boards.find(*channel.removeprefix(centrifuge.BOARD).split(":"))
            if found is not None and not self._may_read(found[1]):
                self._unsubscribe(channel)
                why = {"code": 103, "reason": "permission denied"}
                self._write(centrifuge.push(channel, "unsubscribe", why))

    def _reply(self, id_: int, kind: str, result: dict[str, Any]) -> None:
        self._write(centrifuge.reply(id_, kind, result))

    def _write(self, frame: bytes) -> None:
        if not self.ended:
            self._socket.write(frame)


def _known(command: Command) -> bool:
    """Whether the command is one of the protocol's that nothing here answers."""
    others = (
        command.publish,
        command.presence,
        command.presence_stats,
        command.history,
        command.rpc,
        command.sub_refresh,
    )
    return any(request is not None for request in others)


def _position(request: centrifuge.Subscribe) -> Position | None:
    """What the client wants to go on from; None if it does not, or if that was never a position."""
    # Clients that know they have lost their place say an epoch that never was.
    if not request.recover or EPOCH.fullmatch(request.epoch) is None or request.offset < 0:
        return None
    return request.epoch, request.offset


def _stream(position: Position, request: centrifuge.Subscribe, *, recovered: bool) -> dict[str, Any]:
    epoch, offset = position
    stream = {"recoverable": True, "positioned": True, "epoch": epoch, "offset": offset}
    return stream | {"was_recovering": request.recover, "recovered": recovered}
