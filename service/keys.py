"""Keys for development: generated once under `<data directory>/keys`, and tokens signed by them.

One ES256 and one EdDSA key, each a private JWK only its owner may read (0600, directory
0700), and beside them the public `jwks.json` that verifiers read. That one is 0644: a container
that has it mounted runs as an account of its own, for which the directory is no hindrance
(`docker-compose.yml`). In production the issuer is somebody else's and none of this is used.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from service.settings import SettingsError

JWKS_FILE = "jwks.json"
LONGEST_LIFE_S = 86_400
"""Longest life of a token of generated keys: 24 h."""

Algorithm = Literal["ES256", "EdDSA"]

_ALGORITHMS: tuple[Algorithm, ...] = ("ES256", "EdDSA")
_PRIVATE_MEMBERS = frozenset({"d"})
_THUMBPRINT_MEMBERS = {"EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x")}


def ensure(directory: Path) -> None:
    """Make the keys and `jwks.json` unless they are there. Any number of processes may call it at once.

    Raises:
        SettingsError: the directory cannot be written, or a key in it cannot be read.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        with _locked(directory):
            public = []
            for algorithm in _ALGORITHMS:
                path = _private_path(directory, algorithm)
                if not path.exists():
                    _write(path, _generate(algorithm), mode=0o600)
                path.chmod(0o600)
                public.append(_public(_read_private(directory, algorithm)))
            jwks = directory / JWKS_FILE
            wanted = {"keys": public}
            if not jwks.exists() or _read_json(jwks) != wanted:
                _write(jwks, wanted, mode=0o644)
    except OSError as error:
        raise SettingsError(f"token keys cannot be made: {error.strerror} ({error.filename})") from error


def issue(
    directory: Path,
    *,
    user: str,
    name: str | None = None,
    scopes: Iterable[str],
    ttl_s: int,
    issuer: str,
    audience: str,
    now_s: int | None = None,
    extra_claims: Mapping[str, Any] | None = None,
    algorithm: Algorithm = "ES256",
) -> str:
    """A signed access token for `user`, valid from `now_s` (the clock's) for `ttl_s` seconds.

    `extra_claims` come on top and may replace any claim. Nothing is checked here: a verifier
    is the one to say whether such a token is good.

    Raises:
        SettingsError: there is no readable key in the directory.
    """
    key = _read_private(directory, algorithm)
    issued_at_s = int(time.time()) if now_s is None else now_s
    claims: dict[str, Any] = {
        "iss": issuer,
        "aud": audience,
        "sub": user,
        "iat": issued_at_s,
        "nbf": issued_at_s,
        "exp": issued_at_s + ttl_s,
        "jti": secrets.token_hex(16),
        "scope": " ".join(scopes),
    }
    if name is not None:
        claims["name"] = name
    claims |= extra_claims or {}
    return jwt.encode(
        claims,
        jwt.PyJWK(key).key,
        algorithm=algorithm,
        headers={"typ": "at+jwt", "kid": key["kid"]},
    )


def _private_path(directory: Path, algorithm: Algorithm) -> Path:
    return directory / f"signing-{algorithm.lower()}.json"


def _generate(algorithm: Algorithm) -> dict[str, str]:
    if algorithm == "ES256":
        pair = ec.generate_private_key(ec.SECP256R1())
        jwk = jwt.algorithms.ECAlgorithm.to_jwk(pair, as_dict=True)
    else:
        jwk = jwt.algorithms.OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate(), as_dict=True)
    members: dict[str, str] = {
        name: value for name, value in jwk.items() if name in ("kty", "crv", "x", "y", "d")
    }
    return {**members, "alg": algorithm, "use": "sig", "kid": _thumbprint(members)}


def _thumbprint(jwk: Mapping[str, str]) -> str:
    """The key's own name: base64url of SHA-256 over its public members (RFC 7638)."""
    members = {name: jwk[name] for name in _THUMBPRINT_MEMBERS[jwk["kty"]]}
    digest = hashlib.sha256(json.dumps(members, sort_keys=True, separators=(",", ":")).encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _public(jwk: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in jwk.items() if name not in _PRIVATE_MEMBERS}


def _read_private(directory: Path, algorithm: Algorithm) -> dict[str, str]:
    path = _private_path(directory, algorithm)
    try:
        key = _read_json(path)
        if not (isinstance(key, dict) and key.get("alg") == algorithm and "d" in key):
            raise ValueError("no private key for this algorithm")
        jwt.PyJWK(key)
    except (OSError, ValueError, jwt.PyJWTError) as error:
        raise SettingsError(
            f"{path.name} in the keys directory is not a readable {algorithm} key; "
            "move it away and a new one is made at the next start"
        ) from error
    return key


def _read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def _write(path: Path, content: Any, *, mode: int) -> None:
    """Write by rename, so that a reader finds the old file or all of the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time; the lock ends with the process that holds it, however it ends."""
    handle = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
