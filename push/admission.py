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
from typing import Any, Final
from urllib.parse import urlsplit

from core import scopes
from core.errors import Refused
from push.hub import Dialect
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
class Admitted:
    """A socket that may be opened. `user_id` is "" and `expires_at_s` None on a public path."""

    address_key: str
    subprotocol: str | None
    user_id: str = ""
    expires_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class AddressLimits:
    """What one address may do: sockets open at once, handshakes and refused handshakes per second."""

    sockets: int = 50
    rate_per_s: float = 300.0
    refused_rate_per_s: float = 20.0


class Admission:
    """Decides, and counts the open sockets of each address.

    Every `Admitted` must be given back by `release`, once. `per_loopback_address` is None where
    loopback addresses are like any other.
    """

    def __init__(
        self,
        *,
        verify: Verify,
        take_ticket: TakeTicket,
        limits: Limits,
        origins: Iterable[str] = (),
        per_address: AddressLimits = AddressLimits(),
        per_loopback_address: AddressLimits | None = None,
    ) -> None:
        self._verify, self._take_ticket, self._limits = verify, take_ticket, limits
        self._origins = frozenset(origin.rstrip("/").lower() for origin in origins)
        self._per_address = per_address
        self._per_loopback_address = per_loopback_address or per_address
        self._open: dict[str, int] = {}

    @property
    def addresses(self) -> int:
        """How many addresses have a socket open."""
        return len(self._open)

    async def admit(self, knock: Knock, dialect: Dialect) -> Admitted:
        """Let a socket in, as somebody if the dialect is not public.

        Raises:
            Refused: 401 no good token or ticket, 403 origin or scope, 429 too many.
            Unavailable: tokens or tickets cannot be checked now.
        """
        key = address_key(knock.address)
        allowed = self._per_loopback_address if _is_loopback(knock.address) else self._per_address
        refusals = _rule("refused", key, allowed.refused_rate_per_s)
        self._within(_rule("address", key, allowed.rate_per_s), cost=1)
        self._within(refusals, cost=0)
        held = self._open.get(key, 0)
        if held >= allowed.sockets:
            raise Refused(
                "rate_limited",
                f"This address has {held} sockets open; more are not allowed.",
                status_code=429,
                headers={"Retry-After": "5"},
            )
        # Counted before anything is awaited: handshakes in parallel must not overtake the count.
        self._open[key] = held + 1
        try:
            return await self._identify(knock, dialect, key)
        except BaseException as error:
            self._give_back(key)
            if isinstance(error, Refused):
                self._limits.take_locally([refusals])
            raise

    def release(self, admitted: Admitted) -> None:
        self._give_back(admitted.address_key)

    async def _identify(self, knock: Knock, dialect: Dialect, key: str) -> Admitted:
        subprotocol = SUBPROTOCOL if SUBPROTOCOL in knock.subprotocols else None
        self._check_origin(knock, dialect)
        if dialect.public:
            return Admitted(key, subprotocol)
        user_id, granted, expires_at_s = await self._who(knock)
        if scopes.BOARDS_READ not in granted:
            raise Refused("forbidden", f"The token lacks the scope {scopes.BOARDS_READ}.", status_code=403)
        return Admitted(key, subprotocol, user_id, expires_at_s)

    async def _who(self, knock: Knock) -> tuple[str, frozenset[str], float]:
        """(user id, scopes, end of the token in seconds since 1970)."""
        authorization = knock.all("authorization")
        if authorization:
            match = _BEARER.fullmatch(authorization[0].strip()) if len(authorization) == 1 else None
            if match is None:
                raise InvalidToken("malformed")
            claims = await self._verify(match[1])
            return claims.sub, claims.scopes, float(claims.exp_s)
        offered = [
            name[len(TICKET_PREFIX) :] for name in knock.subprotocols if name.startswith(TICKET_PREFIX)
        ]
        stood_for = await self._take_ticket(offered[0]) if len(offered) == 1 else None
        if stood_for is None:
            raise InvalidToken("absent" if not offered else "ticket")
        return str(stood_for["sub"]), frozenset(stood_for["scopes"]), float(stood_for["exp_s"])

    def _check_origin(self, knock: Knock, dialect: Dialect) -> None:
        sent = knock.all("origin")
        if not sent or (dialect.public and not self._origins):
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
        left = self._open[key] - 1
        if left:
            self._open[key] = left
        else:
            del self._open[key]


def _rule(name: str, key: str, rate_per_s: float) -> Rule:
    """Two seconds' worth at once: a page that reconnects everything is no attack."""
    return Rule(name, key, rate_per_s, max(1, round(rate_per_s * 2)))


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
