from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import http.server
import json
import threading
import time
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import Refused, Unavailable
from service import keys
from service.revocations import Revocation, Revocations
from service.tokens import DETAIL, InvalidToken, TokenVerifier

LIFE_S, LEEWAY_S = 900, 30


def b64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def segment(value: object) -> str:
    return b64(json.dumps(value).encode())


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("keys")
    keys.ensure(path)
    return path


@pytest.fixture(scope="module")
def private(directory) -> dict:
    return json.loads((directory / "signing-es256.json").read_text())


@pytest.fixture
def verifier(directory) -> TokenVerifier:
    return TokenVerifier(
        str(directory / "jwks.json"), "trueboard", "trueboard", max_life_s=LIFE_S, leeway_s=LEEWAY_S
    )


def good_claims(**changes) -> dict:
    now_s = int(time.time())
    claims = {
        "iss": "trueboard",
        "aud": "trueboard",
        "sub": "u1",
        "iat": now_s,
        "nbf": now_s,
        "exp": now_s + 600,
        "jti": "j1",
        "scope": "actions:write boards:read",
    }
    return {name: value for name, value in (claims | changes).items() if value is not ...}


def signed(
    private: dict, header: dict | None = None, payload: object = None, *, raw: str | None = None
) -> str:
    """A token signed with the right key over whatever header and payload; `...` drops a member."""
    head = {"alg": "ES256", "typ": "at+jwt", "kid": private["kid"]} | (header or {})
    head = {name: value for name, value in head.items() if value is not ...}
    body = raw if raw is not None else json.dumps(good_claims() if payload is None else payload)
    signing_input = f"{segment(head)}.{b64(body.encode())}".encode()
    algorithm = jwt.algorithms.ECAlgorithm(jwt.algorithms.ECAlgorithm.SHA256)
    return f"{signing_input.decode()}.{b64(algorithm.sign(signing_input, jwt.PyJWK(private).key))}"


def hmac_signed(private: dict, secret: bytes) -> str:
    signing_input = (
        segment({"alg": "HS256", "typ": "at+jwt", "kid": private["kid"]}) + "." + segment(good_claims())
    )
    return signing_input + "." + b64(hmac.new(secret, signing_input.encode(), hashlib.sha256).digest())


def public_pem(private: dict) -> bytes:
    return jwt.PyJWK({name: value for name, value in private.items() if name != "d"}).key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def unsigned(algorithm: str) -> str:
    return segment({"alg": algorithm, "typ": "at+jwt"}) + "." + segment(good_claims()) + "."


def other_ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def by_attacker(private: dict, **header) -> str:
    return jwt.encode(
        good_claims(),
        other_ec_key(),
        algorithm="ES256",
        headers={"typ": "at+jwt", "kid": private["kid"], **header},
    )


def attacker_jwk() -> dict:
    return jwt.algorithms.ECAlgorithm.to_jwk(other_ec_key().public_key(), as_dict=True)


def with_claims(**changes):
    return lambda p: signed(p, payload=good_claims(**changes))


def with_header(**changes):
    return lambda p: signed(p, changes)


def with_text(change):
    return lambda p: signed(p, raw=change(json.dumps(good_claims())))


def duplicated(text: str) -> str:
    return text.replace('"sub"', '"sub": "admin", "sub"')


def kid_twice(private: dict) -> str:
    return b64(f'{{"alg":"ES256","typ":"at+jwt","kid":"x","kid":"{private["kid"]}"}}'.encode())


def cut_short(token: str) -> str:
    head, _, signature = token.rpartition(".")
    return f"{head}.{b64(base64.urlsafe_b64decode(signature + '==')[:60])}"


def last_bits_changed(token: str) -> str:
    """The same bytes in another spelling: the spare bits of the signature's last character."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return token[:-1] + alphabet[alphabet.index(token[-1]) + 1]


def now_plus(seconds: int) -> int:
    return int(time.time()) + seconds


# name, how the token is made of the private JWK, cause
ATTACKS = {
    "A-2 empty": (lambda p: "", "malformed"),
    "A-2 blank": (lambda p: " ", "malformed"),
    "A-3 none": (lambda p: unsigned("none"), "malformed"),
    "A-3 None": (lambda p: unsigned("None") + "AA", "algorithm"),
    "A-3 nOnE": (lambda p: unsigned("nOnE") + "AA", "algorithm"),
    "A-3 empty signature": (lambda p: signed(p).rpartition(".")[0] + ".", "malformed"),
    "A-4 HS256 with the public key's PEM": (lambda p: hmac_signed(p, public_pem(p)), "algorithm"),
    "A-5 HS256 with the JWK's text": (
        lambda p: hmac_signed(p, json.dumps({k: v for k, v in p.items() if k != "d"}).encode()),
        "algorithm",
    ),
    "A-6 RS256 with this kid": (
        lambda p: jwt.encode(
            good_claims(),
            rsa.generate_private_key(65537, 2048),
            algorithm="RS256",
            headers={"typ": "at+jwt", "kid": p["kid"]},
        ),
        "algorithm",
    ),
    "A-6 the other key's algorithm": (with_header(alg="EdDSA"), "algorithm"),
    "A-6 ES384": (with_header(alg="ES384"), "algorithm"),
    "A-7 another key": (by_attacker, "signature"),
    "A-7 truncated": (lambda p: cut_short(signed(p)), "signature"),
    "A-7 r = s = 0": (lambda p: signed(p).rpartition(".")[0] + "." + b64(bytes(64)), "signature"),
    "A-7 the same signature spelled otherwise": (lambda p: last_bits_changed(signed(p)), "malformed"),
    "A-8 another payload": (
        lambda p: ".".join(
            [
                signed(p).split(".")[0],
                segment(good_claims(sub="admin")),
                signed(p).split(".")[2],
            ]
        ),
        "signature",
    ),
    "A-9 expired beyond the leeway": (
        lambda p: signed(p, payload=good_claims(iat=now_plus(-99), exp=now_plus(-LEEWAY_S - 1))),
        "expired",
    ),
    "A-10 nbf ahead": (lambda p: signed(p, payload=good_claims(nbf=now_plus(LEEWAY_S + 5))), "not_yet"),
    "A-10 iat ahead": (lambda p: signed(p, payload=good_claims(iat=now_plus(LEEWAY_S + 5))), "not_yet"),
    **{f"A-11 no {claim}": (with_claims(**{claim: ...}), "claims") for claim in
       ("iss", "aud", "sub", "iat", "nbf", "exp", "jti")},
    "A-12 wrong issuer": (with_claims(iss="other"), "issuer"),
    "A-12 prefix of the issuer": (with_claims(iss="true"), "issuer"),
    "A-12 list of issuers": (with_claims(iss=["trueboard"]), "claims"),
    "A-13 wrong audience": (with_claims(aud="other"), "audience"),
    "A-13 list with our audience": (with_claims(aud=["trueboard"]), "claims"),
    "A-14 exp a string": (lambda p: signed(p, payload=good_claims(exp=str(now_plus(60)))), "claims"),
    "A-14 exp a float": (lambda p: signed(p, payload=good_claims(exp=now_plus(60) + 0.5)), "claims"),
    "A-14 exp true": (with_claims(exp=True), "claims"),
    "A-14 exp null": (with_claims(exp=None), "claims"),
    "A-14 exp NaN": (with_claims(exp=float("nan")), "malformed"),
    "A-14 exp 1e400": (with_text(lambda t: t.replace('"exp": ', '"exp": 1e400, "e": ')), "claims"),
    "A-14 exp of 4000 digits": (with_claims(exp=10**2500), "lifetime"),
    "A-14 exp negative": (with_claims(exp=-1), "expired"),
    "A-14 iat a float": (with_claims(iat=1.0), "claims"),
    "A-14 nbf true": (with_claims(nbf=True), "claims"),
    "A-15 ten years": (lambda p: signed(p, payload=good_claims(exp=now_plus(315_360_000))), "lifetime"),
    "A-15 a second more than allowed": (
        lambda p: signed(p, payload=good_claims(iat=now_plus(0), exp=now_plus(LIFE_S + 2))),
        "lifetime",
    ),
    "A-15 issued long ago": (with_claims(iat=0), "lifetime"),
    "A-16 sub a number": (with_claims(sub=7), "claims"),
    "A-16 sub empty": (with_claims(sub=""), "subject"),
    "A-16 sub too long": (with_claims(sub="a" * 256), "subject"),
    "A-16 sub with NUL": (with_claims(sub="a\0"), "subject"),
    "A-16 sub with braces": (with_claims(sub="a:b{c}"), "subject"),
    "A-16 sub with a newline": (with_claims(sub="u1\n"), "subject"),
    "A-16 sub in other digits": (with_claims(sub="u١"), "subject"),
    "A-17 sub twice": (with_text(duplicated), "malformed"),
    "A-17 a member twice, deep": (with_text(lambda t: t[:-1] + ', "x": {"a": 1, "a": 2}}'), "malformed"),
    "A-17 kid twice": (
        lambda p: kid_twice(p) + signed(p)[signed(p).index(".") :],
        "malformed",
    ),
    "A-18 scope a list": (with_claims(scope=["actions:write"]), "claims"),
    "A-18 scope an object": (with_claims(scope={"actions:write": 1}), "claims"),
    "A-18 scope null": (with_claims(scope=None), "claims"),
    "A-19 no typ": (with_header(typ=...), "type"),
    "A-19 JWT": (with_header(typ="JWT"), "type"),
    "A-19 id+jwt": (with_header(typ="id+jwt"), "type"),
    "A-19 typ a list": (with_header(typ=["at+jwt"]), "type"),
    "A-20 jku": (lambda p: by_attacker(p, jku="http://127.0.0.1:9/keys", kid="evil"), "unknown_key"),
    "A-20 x5u": (lambda p: by_attacker(p, x5u="http://127.0.0.1:9/keys"), "signature"),
    "A-21 jwk": (lambda p: by_attacker(p, jwk=attacker_jwk()), "signature"),
    "A-21 x5c": (lambda p: by_attacker(p, x5c=["MIIB"]), "signature"),
    "A-22 kid a path": (with_header(kid="../../dev/null"), "unknown_key"),
    "A-22 kid SQL": (with_header(kid="' OR 1=1 --"), "unknown_key"),
    "A-22 kid long": (with_header(kid="a" * 65), "unknown_key"),
    "A-22 kid a number": (with_header(kid=1), "unknown_key"),
    "A-22 kid a list": (with_header(kid=["a"]), "unknown_key"),
    "A-22 kid missing": (with_header(kid=...), "unknown_key"),
    "A-22 kid unknown": (with_header(kid="nobody"), "unknown_key"),
    "A-24 crit": (with_header(crit=["foo"], foo=1), "critical"),
    "A-24 crit empty": (with_header(crit=[]), "critical"),
    "A-24 b64": (with_header(b64=False), "critical"),
    "A-25 two segments": (lambda p: signed(p).rpartition(".")[0], "malformed"),
    "A-25 four segments": (lambda p: signed(p) + ".AAAA", "malformed"),
    "A-25 five segments": (lambda p: "AAAA.AAAA.AAAA.AAAA.AAAA", "malformed"),
    "A-25 nested": (with_header(typ="JWT", cty="JWT"), "type"),
    "A-25 unicode": (lambda p: "é" * 30, "malformed"),
    "A-25 lone surrogate": (lambda p: "\ud800", "malformed"),
    "A-25 padded": (lambda p: signed(p) + "==", "malformed"),
    "A-25 newline at the end": (lambda p: signed(p) + "\n", "malformed"),
    "A-25 other alphabet": (lambda p: "a+b/." + signed(p), "malformed"),
    "A-25 no base64": (lambda p: "a.a.a", "malformed"),
    "A-26 payload a list": (lambda p: signed(p, payload=[1]), "malformed"),
    "A-26 payload a string": (lambda p: signed(p, payload="x"), "malformed"),
    "A-26 payload no JSON": (lambda p: signed(p, raw="{"), "malformed"),
    "A-26 payload deep": (lambda p: signed(p, raw="[" * 2500), "malformed"),
    "A-26 payload deep objects": (lambda p: signed(p, raw='{"a":' * 500), "malformed"),
    "A-27 200 KB": (lambda p: "a" * 200_000, "too_large"),
    "A-27 a byte too large": (lambda p: signed(p).ljust(4097, "A"), "too_large"),
    "name a number": (with_claims(name=7), "claims"),
    "name null": (with_claims(name=None), "claims"),
    "jti empty": (with_claims(jti=""), "claims"),
    "jti a number": (with_claims(jti=1), "claims"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "cause"), ATTACKS.values(), ids=ATTACKS.keys())
@pytest.mark.parametrize("kind", [str, bytes])
async def test_a_bad_token_is_refused_and_nobody_is_told_why(verifier, private, make, cause, kind):
    token = make(private)
    offered = token.encode("utf-8", "surrogatepass") if kind is bytes else token

    with pytest.raises(Refused) as refusal:
        await verifier.verify(offered)

    assert (refusal.value.code, refusal.value.status_code) == ("invalid_token", 401)
    assert str(refusal.value) == refusal.value.detail == DETAIL == "Invalid authentication token."
    assert refusal.value.headers == {"WWW-Authenticate": 'Bearer error="invalid_token"'}
    assert refusal.value.cause_word == cause
    assert refusal.value.__cause__ is None
    assert verifier.cached(offered) is None


@pytest.mark.parametrize("position", range(3))
async def test_no_single_flipped_bit_passes(verifier, private, position):
    token = signed(private).encode()
    start = sum(len(part) + 1 for part in token.split(b".")[:position])
    length = len(token.split(b".")[position])

    for at in range(start, start + length, 7):
        for bit in (1, 2, 4):
            flipped = token[:at] + bytes([token[at] ^ bit]) + token[at + 1 :]
            with pytest.raises(InvalidToken):
                await verifier.verify(flipped)


GOOD = {
    "as issued": {},
    "A-9 expired within the leeway": {"iat": -60, "exp": -LEEWAY_S + 2},
    "A-10 issued within the leeway ahead": {"iat": LEEWAY_S - 2, "nbf": LEEWAY_S - 2},
    "A-15 as long as allowed": {"exp": LIFE_S},
}


@pytest.mark.parametrize("offsets", GOOD.values(), ids=GOOD.keys())
async def test_a_good_token_passes(verifier, private, offsets):
    now_s = int(time.time())
    times = {name: now_s + offset for name, offset in ({"iat": 0, "nbf": -9, "exp": 9} | offsets).items()}

    claims = await verifier.verify(signed(private, payload=good_claims(**times)))

    assert (claims.sub, claims.jti, claims.exp_s) == ("u1", "j1", times["exp"])
    assert claims.scopes == frozenset({"actions:write", "boards:read"})


@pytest.mark.parametrize("kind", ["at+jwt", "AT+JWT", "application/at+jwt"])
async def test_the_type_is_that_of_an_access_token_in_any_case(verifier, private, kind):
    claims = await verifier.verify(signed(private, {"typ": kind}))

    assert claims.sub == "u1"


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        (..., set()),
        ("", set()),
        ("actions:write\tboards:admin", set()),
        ("actions:write everything", {"actions:write"}),
        (" boards:admin  actions:write ", {"boards:admin", "actions:write"}),
        ("actions:write:any", {"actions:write:any"}),
    ],
)
async def test_only_known_scopes_parted_by_spaces_allow_anything(verifier, private, scope, allowed):
    claims = await verifier.verify(signed(private, payload=good_claims(scope=scope)))

    assert claims.scopes == allowed


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (..., None),
        ("", None),
        ("\x00\n", None),
        ("Ann\r\nB", "AnnB"),
        ("é" * 200, "é" * 127),
        ("\ud800A", "A"),
    ],
)
async def test_a_name_is_made_fit_to_show(verifier, private, name, shown):
    claims = await verifier.verify(signed(private, payload=good_claims(name=name)))

    assert claims.name == shown


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_input_is_more_than_refused(directory, private, data):
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
        max_leaves=4,
    )
    header = data.draw(
        st.dictionaries(st.sampled_from(["alg", "typ", "kid", "crit", "x"]), values, max_size=2)
    )
    claims = data.draw(
        st.dictionaries(st.sampled_from([*good_claims(), "name", "x"]), values, min_size=1, max_size=3)
    )
    token = data.draw(
        st.one_of(
            st.text(max_size=60),
            st.binary(max_size=60),
            st.just(signed(private, header, good_claims(**claims))),
        )
    )
    verifier = TokenVerifier(str(directory / "jwks.json"), "trueboard", "trueboard")

    async def offer() -> object:
        try:
            return await verifier.verify(token)
        except InvalidToken as refused:
            return refused

    outcome = asyncio.run(offer())
    if not isinstance(outcome, InvalidToken):
        assert outcome.sub == good_claims(**claims)["sub"]
        assert type(good_claims(**claims)["exp"]) is int


# what is remembered


class Clock:
    def __init__(self) -> None:
        self.ahead_s = 0.0

    def wall_s(self) -> float:
        return time.time() + self.ahead_s

    def monotonic_s(self) -> float:
        return time.monotonic() + self.ahead_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def verifier_for(jwks: str, clock: Clock, **options) -> TokenVerifier:
    return TokenVerifier(
        jwks,
        "trueboard",
        "trueboard",
        max_life_s=3600,
        clock_s=clock.wall_s,
        monotonic_s=clock.monotonic_s,
        **options,
    )


async def test_a_verified_token_is_known_without_waiting_until_it_expires(directory, private, clock):
    verifier = verifier_for(str(directory / "jwks.json"), clock, leeway_s=0)
    token = signed(private, payload=good_claims(exp=int(time.time()) + 60)).encode()
    assert verifier.cached(token) is None

    claims = await verifier.verify(token)

    assert verifier.cached(token) is claims
    assert verifier.cached(token.decode()) is claims
    clock.ahead_s = 61
    assert verifier.cached(token) is None
    with pytest.raises(InvalidToken):
        await verifier.verify(token)


async def test_a_long_lived_token_is_checked_again_after_five_minutes(directory, private, clock):
    verifier = verifier_for(str(directory / "jwks.json"), clock)
    token = signed(private, payload=good_claims(exp=int(time.time()) + 3000))
    await verifier.verify(token)

    clock.ahead_s = 299
    assert verifier.cached(token) is not None
    clock.ahead_s = 301
    assert verifier.cached(token) is None


async def test_what_is_remembered_is_bounded(directory, private, monkeypatch):
    monkeypatch.setattr("service.tokens._CACHED_TOKENS", 3)
    monkeypatch.setattr("service.tokens._REFUSED_TOKENS", 3)
    verifier = TokenVerifier(str(directory / "jwks.json"), "trueboard", "trueboard")
    good = [signed(private, payload=good_claims(jti=f"j{n}")) for n in range(5)]
    for token in good[:3]:
        await verifier.verify(token)
    verifier.cached(good[0])
    for token in good[3:]:
        await verifier.verify(token)
    for _ in range(5):
        with pytest.raises(InvalidToken):
            await verifier.verify(by_attacker(private))

    assert [verifier.cached(token) is not None for token in good] == [True, False, False, True, True]
    assert len(verifier._bad) == 3


async def test_a_badly_signed_token_costs_one_check_for_a_while(directory, private, clock, monkeypatch):
    verifier = verifier_for(str(directory / "jwks.json"), clock)
    checks = []
    decode = jwt.decode
    monkeypatch.setattr(jwt, "decode", lambda *a, **k: checks.append(1) or decode(*a, **k))
    token = by_attacker(private)

    for _ in range(3):
        with pytest.raises(InvalidToken):
            await verifier.verify(token)
    assert len(checks) == 1
    clock.ahead_s = 11
    with pytest.raises(InvalidToken):
        await verifier.verify(token)
    assert len(checks) == 2


# the issuer's keys


class Issuer:
    """An HTTP server with a key set that a test changes."""

    def __init__(self) -> None:
        self.body, self.status, self.reads = b"", 200, 0
        self.answers = threading.Event()
        self.answers.set()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.reads += 1
                outer.answers.wait(30)
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(outer.body)))
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/jwks.json"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def issuer(directory):
    server = Issuer()
    server.body = (directory / "jwks.json").read_bytes()
    yield server
    server.server.shutdown()
    server.server.server_close()


async def settled(verifier: TokenVerifier) -> None:
    """Wait for a read of the keys that nobody waits for."""
    if (read := verifier._keys._refreshing) is not None:
        await read


async def refused(verifier: TokenVerifier, token: str) -> str:
    with pytest.raises(InvalidToken) as refusal:
        await verifier.verify(token)
    return refusal.value.cause_word


async def test_a_thousand_unknown_keys_cost_one_read_in_thirty_seconds(issuer, private, clock):
    verifier = verifier_for(issuer.url, clock)
    await verifier.verify(signed(private))

    clock.ahead_s = 31
    await asyncio.gather(*(refused(verifier, signed(private, {"kid": f"k{n}"})) for n in range(200)))
    for n in range(800):
        await refused(verifier, signed(private, {"kid": f"m{n}"}))

    assert issuer.reads == 2


async def test_a_new_key_is_known_after_one_read_and_an_old_one_forgotten(issuer, private, clock, tmp_path):
    verifier = verifier_for(issuer.url, clock)
    old = signed(private)
    await verifier.verify(old)
    keys.ensure(tmp_path)
    issuer.body = (tmp_path / "jwks.json").read_bytes()
    new = signed(json.loads((tmp_path / "signing-es256.json").read_text()))

    assert await refused(verifier, new) == "unknown_key"
    clock.ahead_s = 31
    assert (await verifier.verify(new)).sub == "u1"
    assert verifier.cached(old) is None
    assert await refused(verifier, old) == "unknown_key"


async def test_keys_are_read_again_after_ten_minutes(issuer, private, clock):
    verifier = verifier_for(issuer.url, clock)
    await verifier.verify(signed(private))

    for clock.ahead_s in (599, 601, 602):
        await verifier.verify(
            signed(private, payload=good_claims(jti=str(clock.ahead_s), exp=now_plus(2000)))
        )
    await settled(verifier)

    assert issuer.reads == 2


async def test_an_issuer_that_does_not_answer_stops_nobody_whose_key_is_known(issuer, private, clock):
    verifier = verifier_for(issuer.url, clock)
    await verifier.verify(signed(private))
    issuer.answers.clear()

    clock.ahead_s = 700
    claims = await verifier.verify(signed(private, payload=good_claims(jti="j2", exp=now_plus(2000))))

    assert claims.jti == "j2"
    assert verifier._keys._refreshing is not None, "it waited for the issuer"
    issuer.answers.set()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        pytest.param(500, b"", id="an error"),
        pytest.param(200, b"<html>", id="no JSON"),
        pytest.param(200, b"[" * 100_000, id="deep"),
        pytest.param(200, b'{"keys": []}', id="no keys"),
        pytest.param(
            200, b'{"keys": [{"kid": "a", "kty": "oct", "k": "AAAA", "alg": "HS256"}]}', id="a secret"
        ),
        pytest.param(200, b"[" + b" " * 300_000 + b"]", id="too large"),
        pytest.param(302, b"", id="a redirect"),
    ],
)
async def test_a_failed_read_keeps_the_keys_there_were(issuer, private, clock, status, body):
    verifier = verifier_for(issuer.url, clock)
    await verifier.verify(signed(private))
    issuer.status, issuer.body = status, body

    clock.ahead_s = 700
    claims = await verifier.verify(signed(private, payload=good_claims(jti="j2", exp=now_plus(2000))))

    await settled(verifier)

    assert claims.jti == "j2"
    assert issuer.reads == 2


async def test_without_any_keys_it_is_unavailable_not_the_tokens_fault(issuer, private, clock):
    issuer.status = 503
    verifier = verifier_for(issuer.url, clock)

    with pytest.raises(Unavailable):
        await verifier.verify(signed(private))
    assert not await verifier.keys_known()
    issuer.status = 200
    clock.ahead_s = 2
    assert await verifier.keys_known()
    assert (await verifier.verify(signed(private))).sub == "u1"


async def test_the_key_set_is_published_as_it_was_read(issuer, clock):
    issuer.status = 503
    verifier = verifier_for(issuer.url, clock)
    assert await verifier.key_set() is None
    issuer.status, clock.ahead_s = 200, 2
    for _ in range(50):
        assert await verifier.key_set() == json.loads(issuer.body)

    assert issuer.reads == 2


def listed(private: dict, **changes) -> dict:
    key = {name: value for name, value in private.items() if name != "d"} | changes
    return {name: value for name, value in key.items() if value is not ...}


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda p: [listed(p, alg=...)], id="no algorithm"),
        pytest.param(lambda p: [listed(p, alg="HS256")], id="HS256"),
        pytest.param(lambda p: [listed(p, alg="RS256")], id="not allowed here"),
        pytest.param(lambda p: [listed(p, crv="P-384")], id="another curve"),
        pytest.param(lambda p: [listed(p, kty="OKP")], id="another kind"),
        pytest.param(lambda p: [listed(p, use="enc")], id="for encryption"),
        pytest.param(lambda p: [listed(p, kid=...)], id="no id"),
        pytest.param(lambda p: [listed(p, x="AAAA")], id="no point of the curve"),
        pytest.param(lambda p: [listed(p), listed(p)], id="one id twice"),
        pytest.param(lambda p: [listed(p, kid=[1])], id="an id that is a list"),
        pytest.param(lambda p: ["text", 1, None], id="no keys at all"),
    ],
)
async def test_a_key_that_is_not_plainly_good_is_not_used(issuer, private, directory, clock, make):
    other = json.loads((directory / "jwks.json").read_text())["keys"][1]
    issuer.body = json.dumps({"keys": [*make(private), other]}).encode()

    assert await refused(verifier_for(issuer.url, clock), signed(private)) == "unknown_key"


@pytest.mark.filterwarnings("ignore:The RSA key is 1024 bits")
async def test_rs256_is_for_who_asks_for_it_and_needs_2048_bits(issuer, clock):
    def token_and_jwk(bits: int) -> tuple[str, dict]:
        pair = rsa.generate_private_key(65537, bits)
        jwk = jwt.algorithms.RSAAlgorithm.to_jwk(pair.public_key(), as_dict=True)
        head = {"typ": "at+jwt", "kid": f"r{bits}"}
        return jwt.encode(good_claims(), pair, "RS256", head), jwk | {"kid": f"r{bits}", "alg": "RS256"}

    (good, good_jwk), (weak, weak_jwk) = token_and_jwk(2048), token_and_jwk(1024)
    issuer.body = json.dumps({"keys": [good_jwk, weak_jwk]}).encode()
    verifier = verifier_for(issuer.url, clock, algorithms=("RS256",))

    assert (await verifier.verify(good)).sub == "u1"
    assert await refused(verifier, weak) == "unknown_key"


async def test_a_caller_that_goes_away_does_not_end_the_read_for_the_others(issuer, private, clock):
    verifier = verifier_for(issuer.url, clock)
    first = asyncio.create_task(verifier.verify(signed(private)))
    second = asyncio.create_task(verifier.verify(signed(private)))
    await asyncio.sleep(0)
    first.cancel()

    assert (await second).sub == "u1"
    assert issuer.reads == 1


# what is revoked


class Kept:
    """The revocations that there are."""

    def __init__(self) -> None:
        self.rows: list[Revocation] = []

    async def read(self, first: int) -> list[Revocation]:
        return [row for row in self.rows if row.number >= first]

    def add(self, *, jti: str | None = None, user: str | None = None, before_s: int | None = None) -> None:
        number = len(self.rows) + 1
        self.rows.append(Revocation(number, number, jti, user, before_s, int(time.time()) + 900))


async def test_what_is_revoked_is_refused_also_where_it_was_remembered(directory, private):
    kept = Kept()
    revocations = Revocations(kept.read)
    verifier = TokenVerifier(
        str(directory / "jwks.json"), "trueboard", "trueboard", max_life_s=LIFE_S, revocations=revocations
    )
    now_s = int(time.time())
    j1, j2, later, bens = (
        signed(private, payload=good_claims(**changes))
        for changes in (
            {"jti": "j1", "iat": now_s - 5},
            {"jti": "j2", "iat": now_s - 5},
            {"jti": "j3", "iat": now_s - 3},
            {"jti": "j4", "iat": now_s - 5, "sub": "ben"},
        )
    )
    await revocations.refresh()
    everybody = [j1, j2, later, bens]
    for token in everybody:
        assert (await verifier.verify(token)).iat_s <= now_s

    kept.add(jti="j1")
    await revocations.refresh()
    assert [verifier.cached(token) is not None for token in everybody] == [False, True, True, True]
    kept.add(user="u1", before_s=now_s - 3)
    await revocations.refresh()
    assert [verifier.cached(token) is not None for token in everybody] == [False, False, True, True]

    for token in (j1, j2):
        with pytest.raises(InvalidToken) as refused:
            await verifier.verify(token)
        assert refused.value.cause_word == "revoked"
        assert (refused.value.detail, refused.value.status_code) == (DETAIL, 401)


async def test_no_token_is_taken_before_it_is_known_what_is_revoked(directory, private):
    revocations = Revocations(Kept().read)
    verifier = TokenVerifier(
        str(directory / "jwks.json"), "trueboard", "trueboard", max_life_s=LIFE_S, revocations=revocations
    )
    with pytest.raises(Unavailable):
        await verifier.verify(signed(private))

    await revocations.refresh()

    assert (await verifier.verify(signed(private))).sub == "u1"


async def test_what_is_revoked_while_its_key_is_read_is_refused(directory, private, monkeypatch):
    kept = Kept()
    revocations = Revocations(kept.read)
    await revocations.refresh()
    verifier = TokenVerifier(
        str(directory / "jwks.json"), "trueboard", "trueboard", max_life_s=LIFE_S, revocations=revocations
    )
    find = verifier._keys.find

    async def slowly(kid):
        key = await find(kid)
        kept.add(jti="j1")
        await revocations.refresh()
        return key

    monkeypatch.setattr(verifier._keys, "find", slowly)

    with pytest.raises(InvalidToken):
        await verifier.verify(signed(private))
