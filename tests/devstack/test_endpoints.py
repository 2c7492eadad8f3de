"""endpoints.json is written whole, for its owner alone, and read back to the letter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.errors import Unavailable
from trueboard.endpoints import Endpoints

ENDPOINTS = Endpoints(
    http="http://127.0.0.1:8080",
    feed="http://127.0.0.1:8081",
    kafka="127.0.0.1:9092",
    kafka_kind="jvm",
    postgres="postgresql://u:p@127.0.0.1:5432/trueboard",
    redis="redis://:p@127.0.0.1:6379/0",
    jwks="http://127.0.0.1:8080/.well-known/jwks.json",
    issuer="trueboard",
    audience="trueboard",
    metrics={"ingest": "http://127.0.0.1:1/metrics"},
    processes={"supervisor": [1], "kafka": [2, 3]},
)


def test_what_is_written_is_read(tmp_path: Path):
    ENDPOINTS.write(tmp_path)

    assert Endpoints.read(tmp_path) == ENDPOINTS


def test_the_file_has_the_documented_keys_and_no_other(tmp_path: Path):
    ENDPOINTS.write(tmp_path)

    documented = {"http", "feed", "kafka", "kafka_kind", "postgres", "redis", "jwks", "issuer", "audience"}
    assert set(json.loads((tmp_path / "endpoints.json").read_text())) == documented | {"metrics", "processes"}


def test_only_its_owner_may_read_the_passwords_in_it(tmp_path: Path):
    ENDPOINTS.write(tmp_path)

    assert (tmp_path / "endpoints.json").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["endpoints.json"]


def test_where_nothing_is_ready_the_error_says_how_to_start(tmp_path: Path):
    with pytest.raises(Unavailable, match="trueboard up --data"):
        Endpoints.read(tmp_path)


def test_a_file_of_another_shape_is_an_error_and_no_guess(tmp_path: Path):
    (tmp_path / "endpoints.json").write_text('{"http": "http://127.0.0.1:1"}')

    with pytest.raises(Unavailable, match="shape"):
        Endpoints.read(tmp_path)


@pytest.mark.parametrize("spoilt", [b'{"http": "\xff"}', b"\xff\xfe", b"", b"{"])
def test_a_spoilt_file_is_an_error_and_no_guess(tmp_path: Path, spoilt: bytes):
    (tmp_path / "endpoints.json").write_bytes(spoilt)

    with pytest.raises(Unavailable, match="shape"):
        Endpoints.read(tmp_path)


def test_what_is_no_file_is_an_error(tmp_path: Path):
    (tmp_path / "endpoints.json").mkdir()

    with pytest.raises(Unavailable, match="cannot be read: Is a directory"):
        Endpoints.read(tmp_path)


NAMED = "postgresql://u:p@127.0.0.1:1/x"


@pytest.mark.parametrize(
    ("environ", "toml"), [({}, f'postgres_url = "{NAMED}"\n'), ({"TRUEBOARD_POSTGRES_URL": NAMED}, "")]
)
def test_where_settings_name_servers_nothing_need_run(tmp_path: Path, environ: dict[str, str], toml: str):
    (tmp_path / "trueboard.toml").write_text(toml)

    assert Endpoints.unless_named(tmp_path, environ) is None

    ENDPOINTS.write(tmp_path)
    assert Endpoints.unless_named(tmp_path, environ) == ENDPOINTS


@pytest.mark.parametrize("environ", [{}, {"TRUEBOARD_POSTGRES_URL": ""}])
def test_where_they_name_none_something_must(tmp_path: Path, environ: dict[str, str]):
    with pytest.raises(Unavailable, match="trueboard up --data"):
        Endpoints.unless_named(tmp_path, environ)


def test_removing_twice_is_fine(tmp_path: Path):
    ENDPOINTS.write(tmp_path)
    Endpoints.remove(tmp_path)
    Endpoints.remove(tmp_path)

    assert not (tmp_path / "endpoints.json").exists()
