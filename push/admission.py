"""Who may open a socket: address, origin, token or ticket.

Everything here is decided before the WebSocket handshake is answered, so a refusal is an HTTP
status with a problem. Limits per address are this process's own. Sockets carry no ambient
credentials (cookies are ignored), so a foreign page gains nothing by opening one in somebody's
browser; the origin is checked all the same.

Origins: with an allow-list only the origins on it are let in, on every path, and clients that
send none (they are no browsers). Without one the public paths are open to all, and the others
to pages of the host the socket is opened on, whatever the port.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final
from urllib.parse import urlsplit

from core import scopes
from core.errors import Refused, Unavailable
from service.revocations import Revocations
from service.tokens import Claims, InvalidToken
from storage.redis.limits import Limits, Rule, address_key

SUBPROTOCOL: Final = "trueboard"
TICKET_PREFIX: Final = "ticket."

Verify = Callable[[str], Awaitable[Claims]]
TakeTicket = Callable[[str], Awaitable[Mapping[str, Any] | None]]

_BEARER = re.compile(r"bearer +([^\s,]+) *", re.IGNORECASE)
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Knock:
    """What a handshake says about itself. Header names are lower-case; a header may repeat."""

    address: str
    headers: tuple[tuple[str, str], ...]
    subprotocols: tuple[str, ...]

    @classmethod
    def of_scope(cls, scope: Mapping[str, Any]) -> Knock:
        """From an ASGI scope, whose client address a trusted proxy may have set."""
        client = scope.get("client")
        return cls(
            address=str(client[0]) if client else "",
            headers=tuple(
                (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
            ),
            subprotocols=tuple(scope.get("subprotocols") or ()),
        )

    def all(self, name: str) -> list[str]:
        return [value for header, value in self.headers if header == name]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who somebody is by a token, or by a ticket that stands for one; seconds are since 1970."""

    user_id: str
    scopes: frozenset[str]
    expires_at_s: float
    jti: str
    issued_at_s: int


@dataclass(frozen=True, slots=True)
class Admitted:
    """A socket that may be opened. `identity` is None for somebody who did not say who it is."""

    address_key: str
    subprotocol: str | None
    identity: Identity | None = None
    seated: bool = False
    """Whether it counts among its user's sockets; who says later who it is, is seated then."""

    @property
    def user_id(self) -> str:
        return self.identity.user_id if self.identity else ""

    @property
    def expires_at_s(self) -> float | None:
        return self.identity.expires_at_s if self.identity else None


class Entrance(Enum):
    """Who is let in by a path."""

    PUBLIC = "anybody, whatever token comes along"
    EITHER = "anybody; a token that comes along must be good"
    READERS = "who may read boards that are not public"


@dataclass(frozen=True, slots=True)
class AddressLimits:
    """What one address may do: sockets open at once, handshakes and refused handshakes per second."""

    sockets: int = 50
    rate_per_s: float = 300.0
    refused_rate_per_s: float = 20.0


class Admission:
    """Decides, and counts the open sockets: of each address, of each user, and all.

    Every `Admitted` must be given back by `release`, once, and so must every user who was
    `seated`, by `unseat`. `per_loopback_address` is None where loopback addresses are like any
    other.
    """

    def __init__(
        self,
        *,
        verify: Verify,
        take_ticket: TakeTicket,
        revocations: Revocations,
        limits: Limits,
        origins: Iterable[str] = (),
        per_address: AddressLimits = AddressLimits(),
        per_loopback_address: AddressLimits | None = None,
        most_sockets: int = 50_000,
        most_per_user: int = 50,
    ) -> None:
        self._verify, self._take_ticket, self._limits = verify, take_ticket, limits
        self._revocations = revocations
        self._origins = frozenset(origin.rstrip("/").lower() for origin in origins)
        self._per_address = per_address
        self._per_loopback_address = per_loopback_address or per_address
        self._open: dict[str, int] = {}
        self._most_sockets, self._most_per_user = most_sockets, most_per_user
        self._sockets = 0
        self._seats: dict[str, int] = {}

    @property
    def addresses(self) -> int:
        """How many addresses have a socket open."""
        return len(self._open)

    async def admit(self, knock: Knock, entrance: Entrance) -> Admitted:
        """Let a socket in.

        Raises:
            Refused: 401 no good token or ticket, 403 origin or scope, 429 too many.
            Unavailable: tokens or tickets cannot be checked now, or this process is full.
        """
        key = address_key(knock.address)
        allowed = self._per_loopback_address if _is_loopback(knock.address) else self._per_address
        refusals = _rule("refused", key, allowed.refused_rate_per_s)
        self._within(_rule("address", key, allowed.rate_per_s), cost=1)
        self._within(refusals, cost=0)
        held = self._open.get(key, 0)
        if held >= allowed.sockets:
            raise _too_many("This address")
        if self._sockets >= self._most_sockets:
            raise Unavailable("This process has as many sockets open as it may.", retry_after_s=5)
        # Counted before anything is awaited: handshakes in parallel must not overtake the count.
        self._open[key] = held + 1
        self._sockets += 1
        try:
            return await self._identify(knock, entrance, key)
        except BaseException as error:
            self._give_back(key)
            if isinstance(error, Refused):
                self._limits.take_locally([refusals])
            raise

    def release(self, admitted: Admitted) -> None:
        self._give_back(admitted.address_key)
        if admitted.seated:
            self.unseat(admitted.user_id)

    async def identify(self, token: str, knock: Knock) -> Identity:
        """Who brings this token, or `ticket.<ticket>`, over a socket that is open already.

        Raises:
            Refused: 401 it is not good, 429 too many from this address were not.
            Unavailable: it cannot be checked now.
        """
        key = address_key(knock.address)
        allowed = self._per_loopback_address if _is_loopback(knock.address) else self._per_address
        refusals = _rule("refused", key, allowed.refused_rate_per_s)
        self._within(refusals, cost=0)
        try:
            if token.startswith(TICKET_PREFIX):
                return await self._by_ticket(token.removeprefix(TICKET_PREFIX))
            return await self._by_token(token)
        except Refused:
            self._limits.take_locally([refusals])
            raise

    def is_revoked(self, identity: Identity) -> bool:
        """Whether the token of somebody who was let in has been revoked since."""
        return self._revocations.cover(identity.jti, identity.user_id, identity.issued_at_s)

    def seat(self, user_id: str) -> bool:
        """Count one more socket of this user; False, and nothing counted, if there are too many."""
        held = self._seats.get(user_id, 0)
        if held >= self._most_per_user:
            return False
        self._seats[user_id] = held + 1
        return True

    def unseat(self, user_id: str) -> None:
        left = self._seats[user_id] - 1
        if left:
            self._seats[user_id] = left
        else:
            del self._seats[user_id]

    def open_to(self, knock: Knock, entrance: Entrance) -> str | None:
        """The origin that may read an answer of this path, None if the caller is no page.

        Raises:
            Refused: 403, pages of that origin may not.
        """
        self._check_origin(knock, entrance)
        return "".join(knock.all("origin")[:1]) or None

    async def _identify(self, knock: Knock, entrance: Entrance, key: str) -> Admitted:
        subprotocol = SUBPROTOCOL if SUBPROTOCOL in knock.subprotocols else None
        self._check_origin(knock, entrance)
        if entrance is Entrance.PUBLIC or (entrance is Entrance.EITHER and not _says_who(knock)):
            return Admitted(key, subprotocol)
        identity = await self._who(knock)
        if entrance is Entrance.EITHER:
            return Admitted(key, subprotocol, identity)
        if scopes.BOARDS_READ not in identity.scopes:
            raise Refused("forbidden", f"The token lacks the scope {scopes.BOARDS_READ}.", status_code=403)
        if not self.seat(identity.user_id):
            raise _too_many("This user")
        return Admitted(key, subprotocol, identity, seated=True)

    async def _who(self, knock: Knock) -> Identity:
        authorization = knock.all("authorization")
        if authorization:
            match = _BEARER.fullmatch(authorization[0].strip()) if len(authorization) == 1 else None
            if match is None:
                raise InvalidToken("malformed")
            return await self._by_token(match[1])
        offered = _tickets(knock)
        if len(offered) != 1:
            raise InvalidToken("absent" if not offered else "ticket")
        return await self._by_ticket(offered[0])

    async def _by_token(self, token: str) -> Identity:
        claims = await self._verify(token)
        return Identity(claims.sub, claims.scopes, float(claims.exp_s), claims.jti, claims.iat_s)

    async def _by_ticket(self, ticket: str) -> Identity:
        stood_for = await self._take_ticket(ticket)
        if stood_for is None:
            raise InvalidToken("ticket")
        try:
            identity = Identity(
                stood_for["sub"],
                frozenset(stood_for["scopes"]),
                stood_for["exp_s"],
                stood_for["jti"],
                stood_for["iat_s"],
            )
        except KeyError:
            # Of another version, and gone within half a minute.
            raise InvalidToken("ticket") from None
        if self.is_revoked(identity):
            raise InvalidToken("revoked")
        return identity

    def _check_origin(self, knock: Knock, entrance: Entrance) -> None:
        sent = knock.all("origin")
        if not sent or (entrance is not Entrance.READERS and not self._origins):
            return
        if len(sent) == 1:
            origin = sent[0].lower()
            if origin in self._origins:
                return
            if not self._origins and _same_host(origin, "".join(knock.all("host")[:1])):
                return
        raise Refused("forbidden", "Pages of this origin may not open this socket.", status_code=403)

    def _within(self, rule: Rule, cost: int) -> None:
        decision = self._limits.take_locally([rule], cost)
        if not decision.allowed:
            raise decision.refusal()

    def _give_back(self, key: str) -> None:
        self._sockets -= 1
        left = self._open[key] - 1
        if left:
            self._open[key] = left
        else:
            del self._open[key]


def _rule(name: str, key: str, rate_per_s: float) -> Rule:
    """Two seconds' worth at once: a page that reconnects everything is no attack."""
    return Rule(name, key, rate_per_s, max(1, round(rate_per_s * 2)))


def _too_many(who: str) -> Refused:
    return Refused(
        "rate_limited",
        f"{who} has as many sockets open as are allowed.",
        status_code=429,
        headers={"Retry-After": "5"},
    )


def _tickets(knock: Knock) -> list[str]:
    return [name.removeprefix(TICKET_PREFIX) for name in knock.subprotocols if name.startswith(TICKET_PREFIX)]


def _says_who(knock: Knock) -> bool:
    return bool(knock.all("authorization") or _tickets(knock))


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _same_host(origin: str, host: str) -> bool:
    try:
        page, here = urlsplit(origin).hostname, urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    if page is None or here is None:
        return False
    return page == here or (page in _LOOPBACK and here in _LOOPBACK)
