from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from service import keys
from service.settings import SettingsError
from service.tokens import TokenVerifier

ISSUED = {"scopes": ["actions:write"], "ttl_s": 60, "issuer": "trueboard", "audience": "trueboard"}


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_private_keys_are_their_owners_alone(tmp_path):
    old_mask = os.umask(0)
    try:
        keys.ensure(tmp_path / "keys")
    finally:
        os.umask(old_mask)

    assert mode_of(tmp_path / "keys") == 0o700
    private = sorted((tmp_path / "keys").glob("signing-*.json"))
    assert [path.name for path in private] == ["signing-eddsa.json", "signing-es256.json"]
    assert {mode_of(path) for path in private} == {0o600}


def test_the_key_set_alone_may_be_read_by_the_account_of_a_container_it_is_mounted_into(tmp_path):
    old_mask = os.umask(0o077)
    try:
        keys.ensure(tmp_path / "keys")
    finally:
        os.umask(old_mask)

    readable = [path.name for path in (tmp_path / "keys").iterdir() if mode_of(path) & 0o077]
    assert readable == ["jwks.json"]
    assert mode_of(tmp_path / "keys" / "jwks.json") == 0o644


def test_the_key_set_names_each_key_and_holds_nothing_private(tmp_path):
    keys.ensure(tmp_path)

    listed = json.loads((tmp_path / "jwks.json").read_text())["keys"]

    assert [(key["alg"], key["use"], key["kty"]) for key in listed] == [
        ("ES256", "sig", "EC"),
        ("EdDSA", "sig", "OKP"),
    ]
    assert len({key["kid"] for key in listed}) == 2
    assert not any("d" in key for key in listed)


def test_the_keys_stay_the_same_when_asked_for_again(tmp_path):
    keys.ensure(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "signing-es256.json").chmod(0o644)
    keys.ensure(tmp_path)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert mode_of(tmp_path / "signing-es256.json") == 0o600


def test_of_many_processes_that_make_keys_at_once_all_get_the_same(tmp_path):
    program = (
        "import sys, pathlib; from service import keys; d = pathlib.Path(sys.argv[1]); sys.stdin.read();"
        "keys.ensure(d); print((d / 'jwks.json').read_text())"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "keys")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    # They wait for the end of their input, so that all are up when the first begins.
    for process in started:
        process.stdin.close()
    seen, codes = set(), []
    for process in started:
        with process:
            seen.add(process.stdout.read())
            codes.append(process.wait(timeout=30))

    assert codes == [0] * 4
    assert len(seen) == 1
    assert len(json.loads(seen.pop())["keys"]) == 2


def test_a_lost_key_set_is_written_again_from_the_keys(tmp_path):
    keys.ensure(tmp_path)
    before = (tmp_path / "jwks.json").read_bytes()
    (tmp_path / "jwks.json").unlink()
    keys.ensure(tmp_path)

    assert (tmp_path / "jwks.json").read_bytes() == before


def test_a_broken_key_is_named_and_never_replaced(tmp_path):
    keys.ensure(tmp_path)
    (tmp_path / "signing-es256.json").write_text("{")

    with pytest.raises(SettingsError, match=r"signing-es256\.json"):
        keys.ensure(tmp_path)

    assert (tmp_path / "signing-es256.json").read_text() == "{"


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA"])
async def test_what_is_issued_is_verified(tmp_path, algorithm):
    keys.ensure(tmp_path)
    verifier = TokenVerifier(str(tmp_path / "jwks.json"), "trueboard", "trueboard")

    claims = await verifier.verify(keys.issue(tmp_path, user="u1", name="Ann", algorithm=algorithm, **ISSUED))

    assert (claims.sub, claims.name, claims.scopes) == ("u1", "Ann", frozenset({"actions:write"}))
    assert claims.client == "u1"
