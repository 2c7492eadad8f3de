from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from service.tokens import TokenVerifier
from trueboard.token import command


@pytest.fixture
def run(tmp_path):
    return lambda *options: CliRunner().invoke(command, ["--data", str(tmp_path), *options])


def verifier(directory, name: str = "trueboard") -> TokenVerifier:
    return TokenVerifier(str(directory / "keys" / "jwks.json"), name, name, max_life_s=86_400)


async def test_it_prints_a_good_token_and_a_newline_and_nothing_else(run, tmp_path):
    result = run("--user", "u1", "--name", "Ann")

    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1
    claims = await verifier(tmp_path).verify(result.stdout.removesuffix("\n"))
    assert (claims.sub, claims.name, claims.scopes) == ("u1", "Ann", {"actions:write", "boards:read"})


async def test_scopes_and_life_are_as_asked(run, tmp_path):
    result = run(
        "--user", "u1", "--scope", "scores:write", "--scope", "actions:write:any", "--ttl", "86400", "--json"
    )

    shown = json.loads(result.stdout)
    claims = await verifier(tmp_path).verify(shown["token"])
    assert claims.scopes == {"scores:write", "actions:write:any"}
    assert (shown["user_id"], shown["scope"], shown["exp"]) == (
        "u1",
        "scores:write actions:write:any",
        claims.exp_s,
    )


async def test_it_is_for_the_system_that_runs(run, tmp_path):
    (tmp_path / "endpoints.json").write_text(json.dumps({"issuer": "elsewhere", "audience": "elsewhere"}))

    result = run("--user", "u1")

    assert (await verifier(tmp_path, "elsewhere").verify(result.stdout.strip())).sub == "u1"


async def test_before_a_system_runs_it_is_for_the_one_that_trueboard_toml_describes(run, tmp_path):
    (tmp_path / "trueboard.toml").write_text('issuer = "ours"\naudience = "ours"\n')

    result = run("--user", "u1")

    assert (await verifier(tmp_path, "ours").verify(result.stdout.strip())).sub == "u1"


async def test_a_variable_wins_over_trueboard_toml(run, tmp_path, monkeypatch):
    (tmp_path / "trueboard.toml").write_text('issuer = "ours"\naudience = "theirs"\ntoken_max_life_s = 60\n')
    monkeypatch.setenv("TRUEBOARD_ISSUER", "theirs")
    monkeypatch.setenv("TRUEBOARD_TOKEN_MAX_LIFE_S", "1000")

    result = run("--user", "u1")

    claims = await verifier(tmp_path, "theirs").verify(result.stdout.strip())
    assert claims.exp_s - claims.iat_s == 1000


@pytest.mark.parametrize(("longest_s", "lives_s"), [(None, 3600), (7200, 3600), (900, 900)])
@pytest.mark.parametrize("running", [False, True])
async def test_unasked_it_lives_an_hour_or_as_long_as_is_taken(run, tmp_path, running, longest_s, lives_s):
    if running:
        endpoints = {"issuer": "trueboard", "audience": "trueboard"}
        (tmp_path / "endpoints.json").write_text(json.dumps(endpoints))
    if longest_s:
        (tmp_path / "trueboard.toml").write_text(f"token_max_life_s = {longest_s}\n")

    result = run("--user", "u1")

    claims = await verifier(tmp_path).verify(result.stdout.strip())
    assert claims.exp_s - claims.iat_s == lives_s


def test_a_life_asked_for_that_nobody_takes_is_refused(run, tmp_path):
    (tmp_path / "trueboard.toml").write_text("token_max_life_s = 900\n")

    refused, taken = run("--user", "u1", "--ttl", "901"), run("--user", "u1", "--ttl", "900")

    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "TRUEBOARD_TOKEN_MAX_LIFE_S is 900" in refused.stderr
    assert taken.exit_code == 0


def test_settings_that_cannot_be_read_are_said(run, tmp_path):
    (tmp_path / "trueboard.toml").write_text("token_max_life_s = 0\n")

    result = run("--user", "u1")

    assert (result.exit_code, result.stdout) == (1, "")
    assert "TRUEBOARD_TOKEN_MAX_LIFE_S" in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        pytest.param([], id="nobody"),
        pytest.param(["--user", "a b"], id="no user id"),
        pytest.param(["--user", "u1", "--scope", "everything"], id="an unknown scope"),
        pytest.param(["--user", "u1", "--ttl", "86401"], id="longer than any verifier allows"),
        pytest.param(["--user", "u1", "--ttl", "0"], id="no life"),
        pytest.param(["--user", "u1", "--name", "a\nb"], id="no name"),
    ],
)
def test_what_makes_no_good_token_is_refused_with_nothing_printed(run, options):
    result = run(*options)

    assert result.exit_code == 2
    assert result.stdout == ""


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_endpoints_that_cannot_be_read_are_said(run, tmp_path, content):
    (tmp_path / "endpoints.json").write_text(content)

    result = run("--user", "u1")

    assert (result.exit_code, result.stdout) == (1, "")
    assert "endpoints.json" in result.stderr
