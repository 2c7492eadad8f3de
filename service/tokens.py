"""Who is calling: access tokens (JWT, RFC 9068), checked against the issuer's public keys.

The key decides the algorithm, never the token's header; a header may name a key (`kid`), and
nothing else in it is followed. Everything cheap is checked before the signature. Every cause
gives the same answer; only the metric knows which one it was.

Sources: RFC 8725 (best current practice), RFC 9068 (`at+jwt`), RFC 6750 §3 (the header).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

import httpx
import jwt

from core import scopes, words
from core.errors import Refused, Unavailable
from service import logs, metrics
from service.revocations import Revocations

MAX_TOKEN_BYTES: Final = 4096
DETAIL: Final = "Invalid authentication token."

_KEYS_TTL_S = 600.0
_REFRESH_AT_MOST_EVERY_S = 30.0
_RETRY_WITHOUT_KEYS_S = 1.0
_FETCH_TIMEOUT_S = 3.0
_STALE_WAIT_S = 0.25
_MAX_JWKS_BYTES = 256 * 1024
_CACHED_AT_MOST_S = 300.0
_CACHED_TOKENS = 50_000
_REFUSED_FOR_S = 10.0
_REFUSED_TOKENS = 2_000
_MIN_RSA_BITS = 2048

_SEGMENTS = re.compile(rb"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_KID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TYPES = frozenset({"at+jwt", "application/at+jwt"})
_INSTANTS = ("iat", "nbf", "exp")
_STRINGS = ("iss", "aud", "sub", "jti")
_JTI_CHARS = 255
# What a key must be for its algorithm: one that is not says nothing about who holds it.
_KINDS = {"ES256": ("EC", "P-256"), "EdDSA": ("OKP", "Ed25519"), "RS256": ("RSA", None)}

_log = logs.get("service.tokens")


class InvalidToken(Refused):
    """The token is not good; `cause_word` says why, for metrics only."""

    def __init__(self, cause_word: str) -> None:
        super().__init__(
            "invalid_token",
            DETAIL,
            status_code=401,
            headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
        )
        self.cause_word = cause_word


@dataclass(frozen=True, slots=True)
class Claims:
    """What a good token says. `scopes` are those known here; `exp_s`, `iat_s` are seconds since 1970."""

    sub: str
    name: str | None
    scopes: frozenset[str]
    exp_s: int
    jti: str
    iat_s: int

    @property
    def client(self) -> str:
        """Who sent what this token came with."""
        return self.sub


@dataclass(frozen=True, slots=True)
class _Key:
    algorithm: str
    public: Any


class TokenVerifier:
    """Checks tokens for one issuer and audience. Belongs to one event loop.

    `jwks` is a path or an http(s) URL. Keys are read again after ten minutes, and at most
    every 30 s because of a key that is not known; a failed read keeps the keys there were.
    Verified tokens are remembered for at most five minutes, badly signed ones for seconds.
    One that is revoked is forgotten as soon as `revocations` say so; without them none is.
    """

    def __init__(
        self,
        jwks: str,
        issuer: str,
        audience: str,
        algorithms: Sequence[str] = ("ES256", "EdDSA"),
        max_life_s: int = 900,
        leeway_s: int = 30,
        *,
        revocations: Revocations | None = None,
        clock_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        if unknown := set(algorithms) - _KINDS.keys():
            raise ValueError(f"token algorithms {sorted(unknown)} are none of {sorted(_KINDS)}")
        self._issuer, self._audience = issuer, audience
        self._max_life_s, self._leeway_s = max_life_s, leeway_s
        self._clock_s, self._monotonic_s = clock_s, monotonic_s
        self._keys = _Keys(jwks, frozenset(algorithms), monotonic_s)
        self._seen_generation = self._keys.generation
        self._good: OrderedDict[bytes, tuple[float, Claims]] = OrderedDict()
        self._bad: OrderedDict[bytes, float] = OrderedDict()
        self._revocations = revocations
        if revocations is not None:
            revocations.listen(self._forget_revoked)

    def cached(self, token: bytes | str) -> Claims | None:
        """The claims of a token verified before, if they still hold; None means: `verify` it."""
        key = token if isinstance(token, bytes) else token.encode("utf-8", "surrogatepass")
        entry = self._good.get(key)
        if entry is None:
            return None
        if entry[0] <= self._clock_s():
            del self._good[key]
            return None
        self._good.move_to_end(key)
        return entry[1]

    async def verify(self, token: bytes | str) -> Claims:
        """The claims of a good token.

        Raises:
            InvalidToken: for whatever reason (`Refused`, 401, one text for all of them).
            Unavailable: the issuer's keys, or what is revoked, could not be read even once.
        """
        if claims := self.cached(token):
            return claims
        try:
            return await self._verify(token)
        except InvalidToken as error:
            metrics.TOKENS_REFUSED.labels(error.cause_word).inc()
            raise

    async def keys_known(self) -> bool:
        """Whether the issuer's keys have been read, trying to if they have not: for readiness."""
        try:
            await self._keys.find(None)
        except Unavailable:
            return False
        return True

    async def key_set(self) -> Any:
        """The issuer's key set as it was read last, which is tried again where that is long ago; or None."""
        await self.keys_known()
        return self._keys.document

    async def _verify(self, token: bytes | str) -> Claims:
        raw = _bytes_of(token)
        if self._bad.get(raw, 0.0) > self._monotonic_s():
            _refuse("signature")
        match = _SEGMENTS.fullmatch(raw)
        if match is None:
            _refuse("malformed")
        header, payload = _members(match[1]), _members(match[2])
        _octets(match[3])
        kid, algorithm = self._read_header(header)
        claims = self._read_claims(payload)
        key = await self._keys.find(kid)
        self._forget_after_rotation()
        if key is None:
            _refuse("unknown_key")
        if key.algorithm != algorithm:
            _refuse("algorithm")
        # Nothing is awaited from here to where it is remembered: what is revoked meanwhile is forgotten.
        if self._is_revoked(claims):
            _refuse("revoked")
        self._check_signature(raw, key)
        self._remember(raw, claims)
        return claims

    def _read_header(self, header: Mapping[str, Any]) -> tuple[str, str]:
        """The key's id and the algorithm, of a header that asks for nothing else."""
        kind, kid, algorithm = header.get("typ"), header.get("kid"), header.get("alg")
        if "crit" in header or "b64" in header:
            _refuse("critical")
        if not isinstance(kind, str) or kind.lower() not in _TYPES:
            _refuse("type")
        if not isinstance(algorithm, str) or algorithm not in self._keys.algorithms:
            _refuse("algorithm")
        if not isinstance(kid, str) or _KID.fullmatch(kid) is None:
            _refuse("unknown_key")
        return kid, algorithm

    def _read_claims(self, payload: Mapping[str, Any]) -> Claims:
        """The claims, every one of its exact type, for us, and of now."""
        # `type is`, not isinstance: true and 1.0 are no instants, and the library takes "123" for one.
        if any(type(payload.get(claim)) is not int for claim in _INSTANTS):
            _refuse("claims")
        if any(type(payload.get(claim)) is not str for claim in _STRINGS):
            _refuse("claims")
        if payload["iss"] != self._issuer:
            _refuse("issuer")
        if payload["aud"] != self._audience:
            _refuse("audience")
        if not words.is_user_id(payload["sub"]):
            _refuse("subject")
        if not 1 <= len(payload["jti"]) <= _JTI_CHARS:
            _refuse("claims")
        scope, name = payload.get("scope", ""), payload.get("name", "")
        if not isinstance(scope, str) or not isinstance(name, str):
            _refuse("claims")
        self._check_life(payload["iat"], payload["nbf"], payload["exp"])
        return Claims(
            sub=payload["sub"],
            name=words.clean_username(name),
            scopes=frozenset(scope.split(" ")) & scopes.ALL,
            exp_s=payload["exp"],
            jti=payload["jti"],
            iat_s=payload["iat"],
        )

    def _check_life(self, iat_s: int, nbf_s: int, exp_s: int) -> None:
        now_s = self._clock_s()
        if now_s >= exp_s + self._leeway_s:
            _refuse("expired")
        if max(iat_s, nbf_s) > now_s + self._leeway_s:
            _refuse("not_yet")
        if exp_s - iat_s > self._max_life_s:
            _refuse("lifetime")

    def _check_signature(self, raw: bytes, key: _Key) -> None:
        try:
            jwt.decode(
                raw,
                key.public,
                algorithms=[key.algorithm],
                issuer=self._issuer,
                audience=self._audience,
                leeway=self._leeway_s,
                options={"require": [*_INSTANTS, *_STRINGS], "strict_aud": True},
            )
        except jwt.InvalidSignatureError:
            self._bad[raw] = self._monotonic_s() + _REFUSED_FOR_S
            _trim(self._bad, _REFUSED_TOKENS)
            _refuse("signature")
        except (jwt.PyJWTError, ValueError):
            _refuse("claims")

    def _remember(self, raw: bytes, claims: Claims) -> None:
        until_s = min(claims.exp_s + self._leeway_s, self._clock_s() + _CACHED_AT_MOST_S)
        self._good[raw] = (until_s, claims)
        _trim(self._good, _CACHED_TOKENS)

    def _is_revoked(self, claims: Claims) -> bool:
        revocations = self._revocations
        return revocations is not None and revocations.cover(claims.jti, claims.sub, claims.iat_s)

    def _forget_revoked(self) -> None:
        for raw in [raw for raw, (_, claims) in self._good.items() if self._is_revoked(claims)]:
            del self._good[raw]

    def _forget_after_rotation(self) -> None:
        """What was decided with other keys does not hold for these."""
        if self._seen_generation != self._keys.generation:
            self._seen_generation = self._keys.generation
            self._good.clear()
            self._bad.clear()


class _Keys:
    """The issuer's public keys by their id, read again when they are old or one is missing."""

    def __init__(self, jwks: str, algorithms: frozenset[str], monotonic_s: Callable[[], float]) -> None:
        self.algorithms = algorithms
        self.generation = 0
        """Moves when the set of keys changes."""
        self._jwks = jwks
        self._monotonic_s = monotonic_s
        self._by_id: dict[str, _Key] = {}
        self.document: Any = None
        self._fetched_at_s: float | None = None
        self._tried_at_s = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None

    async def find(self, kid: str | None) -> _Key | None:
        """The key of this id. Raises Unavailable if no keys were ever read."""
        now_s = self._monotonic_s()
        fetched_at_s = self._fetched_at_s
        stale = fetched_at_s is None or now_s - fetched_at_s >= _KEYS_TTL_S
        pause_s = _RETRY_WITHOUT_KEYS_S if fetched_at_s is None else _REFRESH_AT_MOST_EVERY_S
        wanted = stale or (kid is not None and kid not in self._by_id)
        if self._refreshing is None and wanted and now_s - self._tried_at_s >= pause_s:
            self._tried_at_s = now_s
            self._refreshing = asyncio.create_task(self._refresh())
        if wanted and self._refreshing is not None:
            # A key that is known is worth no long wait: an issuer that is slow stops nobody.
            known = fetched_at_s is not None and (kid is None or kid in self._by_id)
            # Not cancelled: the caller may go away, the others still wait for this one read.
            read, _ = await asyncio.wait({self._refreshing}, timeout=_STALE_WAIT_S if known else None)
            for task in read:
                task.result()
        if self._fetched_at_s is None:
            raise Unavailable("The keys that tokens are checked with cannot be read now.", retry_after_s=2)
        return None if kid is None else self._by_id.get(kid)

    async def _refresh(self) -> None:
        try:
            content = await asyncio.wait_for(self._fetch(), _FETCH_TIMEOUT_S)
            document = json.loads(content)
            by_id = self._read(document)
        except (OSError, ValueError, RecursionError, httpx.HTTPError, TimeoutError) as error:
            metrics.KEY_FETCHES.labels("failed").inc()
            _log.warning("token_keys_unreadable", error=type(error).__name__, detail=str(error)[:200])
        else:
            metrics.KEY_FETCHES.labels("read").inc()
            self._fetched_at_s = self._monotonic_s()
            if document != self.document:
                self.document, self._by_id = document, by_id
                self.generation += 1
                _log.info("token_keys_read", kids=sorted(by_id))
        finally:
            self._refreshing = None

    async def _fetch(self) -> bytes:
        parts = urlsplit(self._jwks)
        if parts.scheme not in ("http", "https"):
            return await asyncio.to_thread(_read_bounded, Path(self._jwks))
        # A proxy has no way to this machine's own loopback.
        through_proxy = parts.hostname not in ("127.0.0.1", "localhost", "::1")
        async with httpx.AsyncClient(timeout=_FETCH_TIMEOUT_S, trust_env=through_proxy) as client:
            async with client.stream("GET", self._jwks) as response:
                response.raise_for_status()
                content = b""
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > _MAX_JWKS_BYTES:
                        raise ValueError("the key set is too large")
                return content

    def _read(self, document: Any) -> dict[str, _Key]:
        """The usable keys of a key set; raises ValueError if there is none."""
        listed = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(listed, list):
            raise ValueError("not a key set")
        by_id: dict[str, _Key] = {}
        ambiguous: set[str] = set()
        for jwk in listed:
            kid = jwk.get("kid") if isinstance(jwk, dict) else None
            if not isinstance(kid, str) or _KID.fullmatch(kid) is None:
                continue
            if kid in by_id:
                ambiguous.add(kid)
            elif (key := self._usable(jwk)) is not None:
                by_id[kid] = key
        for kid in ambiguous:
            del by_id[kid]
        if not by_id:
            raise ValueError("the key set holds no usable key")
        return by_id

    def _usable(self, jwk: Mapping[str, Any]) -> _Key | None:
        algorithm = jwk.get("alg")
        if not isinstance(algorithm, str) or algorithm not in self.algorithms:
            return None
        kind, curve = _KINDS[algorithm]
        if jwk.get("kty") != kind or (curve and jwk.get("crv") != curve) or jwk.get("use", "sig") != "sig":
            return None
        members = {name: value for name, value in jwk.items() if name in ("kty", "crv", "x", "y", "n", "e")}
        try:
            public = jwt.PyJWK(members, algorithm).key
        except (jwt.PyJWTError, ValueError, TypeError, binascii.Error):
            return None
        if kind == "RSA" and public.key_size < _MIN_RSA_BITS:
            return None
        return _Key(algorithm, public)


def _refuse(cause_word: str) -> NoReturn:
    raise InvalidToken(cause_word) from None


def _bytes_of(token: bytes | str) -> bytes:
    if len(token) > MAX_TOKEN_BYTES:
        _refuse("too_large")
    if isinstance(token, bytes):
        return token
    if not token.isascii():
        _refuse("malformed")
    return token.encode()


def _octets(segment: bytes) -> bytes:
    """The bytes of an unpadded base64url segment, in the one spelling they have."""
    try:
        octets = base64.urlsafe_b64decode(segment + b"=" * (-len(segment) % 4))
    except binascii.Error:
        _refuse("malformed")
    # Spare bits in the last character would give one token many spellings.
    if base64.urlsafe_b64encode(octets).rstrip(b"=") != segment:
        _refuse("malformed")
    return octets


def _members(segment: bytes) -> Mapping[str, Any]:
    """The JSON object of a segment, no member twice, no NaN or infinity."""
    try:
        value = json.loads(_octets(segment).decode(), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        _refuse("malformed")
    if not isinstance(value, dict):
        _refuse("malformed")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member occurs twice")
    return members


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _trim(cache: OrderedDict[bytes, Any], size: int) -> None:
    while len(cache) > size:
        cache.popitem(last=False)


def _read_bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_MAX_JWKS_BYTES + 1)
    if len(content) > _MAX_JWKS_BYTES:
        raise ValueError("the key set is too large")
    return content
