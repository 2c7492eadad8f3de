"""Who is counted for a request, and by which limits.

A user has few actions a second, a trusted back end's token many; every address has a limit of
its own, a lower one for requests that name nobody. Addresses whose tokens keep being refused
are turned away before a signature is looked at.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

from core import scopes
from core.errors import Refused, Unavailable
from ingest.ports import Claims, Decision, Limits, Verifier
from ingest.requests import Request
from ingest.settings import Settings
from storage.redis.limits import Rule, address_key

_TURNED_AWAY = 20_000


def missing_token() -> Refused:
    return Refused(
        "invalid_token",
        "An access token is needed.",
        status_code=401,
        headers={"WWW-Authenticate": "Bearer"},
    )


@dataclass(frozen=True, slots=True)
class Rates:
    """The limits' rates, per second, and bursts."""

    user_rate_per_s: float
    user_burst: int
    trusted_rate_per_s: float
    address_rate_per_s: float
    unauthenticated_rate_per_s: float
    loopback_rate_per_s: float | None

    @classmethod
    def of(cls, settings: Settings) -> Rates:
        return cls(
            user_rate_per_s=settings.user_rate_per_s,
            user_burst=settings.user_burst,
            trusted_rate_per_s=settings.trusted_rate_per_s,
            address_rate_per_s=settings.address_rate_per_s,
            unauthenticated_rate_per_s=settings.unauthenticated_rate_per_s,
            loopback_rate_per_s=settings.loopback_address_rate,
        )


class Gate:
    """Tells who calls and whether they may, at this moment, call at all."""

    def __init__(
        self,
        verifier: Verifier,
        limits: Limits,
        rates: Rates,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._verifier, self._limits, self._rates = verifier, limits, rates
        self._monotonic_s = monotonic_s
        self._turned_away: OrderedDict[str, tuple[float, Refused]] = OrderedDict()
        self._user_rule = lru_cache(maxsize=16_384)(self._make_user_rule)
        self._address_rules = lru_cache(maxsize=4096)(self._make_address_rules)

    async def who(self, request: Request, token: bytes | str | None) -> Claims:
        """The claims of a request's token.

        Raises:
            Refused: 401, or 429 for an address whose tokens were refused too often.
            Unavailable: the keys cannot be read.
        """
        if token is not None and (claims := self._verifier.cached(token)) is not None:
            return claims
        if (known := self._turned_away.get(request.address)) is not None:
            if self._monotonic_s() < known[0]:
                raise known[1]
            del self._turned_away[request.address]
        try:
            if token is None:
                raise missing_token()
            return await self._verifier.verify(token)
        except Refused:
            await self._count_failure(request)
            raise

    async def take_actions(self, request: Request, claims: Claims, actions: int = 1) -> None:
        """Charge the caller for this many actions, and the address for one request.

        Raises:
            Refused: 429.
        """
        user, (address, _, _) = self._rule_of(claims), self._address_rules(request.address)
        if actions == 1:
            decision = await self._limits.take((user, address), 1)
        else:
            decision = await self._limits.take((address,), 1)
            if decision.allowed:
                decision = await self._limits.take((user,), actions)
        self._settle(request, decision)

    async def take_request(self, request: Request, claims: Claims | None) -> None:
        """Charge the address for one request that is no action.

        Raises:
            Refused: 429.
        """
        authenticated, unauthenticated, _ = self._address_rules(request.address)
        rule = unauthenticated if claims is None else authenticated
        self._settle(request, await self._limits.take((rule,), 1))

    async def reader(self, request: Request) -> Claims | None:
        """Who reads what needs no token, charged as a request: None without a good token.

        Raises:
            Refused: 429.
        """
        claims = None
        if (token := request.bearer()) is not None:
            with suppress(Refused, Unavailable):
                claims = await self.who(request, token)
        await self.take_request(request, claims)
        return claims

    async def _count_failure(self, request: Request) -> None:
        decision = await self._limits.take((self._address_rules(request.address)[2],), 1)
        if decision.allowed:
            return
        refusal = decision.refusal()
        assert isinstance(refusal, Refused)
        # Until then nothing of this address is verified, nor asked of Redis.
        self._turned_away[request.address] = (self._monotonic_s() + decision.retry_after_s, refusal)
        if len(self._turned_away) > _TURNED_AWAY:
            self._turned_away.popitem(last=False)
        raise refusal

    @staticmethod
    def _settle(request: Request, decision: Decision) -> None:
        request.decision = decision
        if not decision.allowed:
            raise decision.refusal()

    def _rule_of(self, claims: Claims) -> Rule:
        if scopes.ACTIONS_WRITE_ANY in claims.scopes:
            return self._user_rule("token", claims.jti)
        return self._user_rule("user", claims.sub)

    def _make_user_rule(self, name: str, key: str) -> Rule:
        rates = self._rates
        if name == "token":
            return Rule("token", key, rates.trusted_rate_per_s, max(1, round(rates.trusted_rate_per_s)))
        return Rule("user", key, rates.user_rate_per_s, rates.user_burst)

    def _make_address_rules(self, address: str) -> tuple[Rule, Rule, Rule]:
        """For requests with a token, without one, and with one that is refused."""
        rates, key = self._rates, address_key(address)
        known, unknown = rates.address_rate_per_s, rates.unauthenticated_rate_per_s
        if rates.loopback_rate_per_s is not None and is_loopback(key):
            known = unknown = rates.loopback_rate_per_s
        return (
            Rule("address", key, known, _burst(known)),
            Rule("unauthenticated", key, unknown, _burst(unknown)),
            Rule("failed", key, unknown, _burst(unknown)),
        )


def is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_network(address, strict=False).is_loopback
    except ValueError:
        return False


def _burst(rate_per_s: float) -> int:
    """Two seconds' worth at once."""
    return max(1, round(2 * rate_per_s))


class Forwarded:
    """Whose address a request counts for, behind proxies that are known."""

    def __init__(self, trusted: tuple[str, ...]) -> None:
        self._networks = [ipaddress.ip_network(each, strict=False) for each in trusted]
        self._trusts = lru_cache(maxsize=1024)(self._is_trusted)

    def address(self, peer: str, headers: list[tuple[bytes, bytes]]) -> str:
        """The last address of the way here that is no trusted proxy; read from the right."""
        if not self._networks or not self._trusts(peer):
            return peer
        # Several headers are one list (RFC 9110 §5.3).
        hops = [hop for name, value in headers if name == b"x-forwarded-for" for hop in value.split(b",")]
        for hop in reversed(hops):
            text = hop.strip().decode("latin-1")
            if not self._trusts(text):
                return text[:64]
            peer = text
        return peer

    def _is_trusted(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)
