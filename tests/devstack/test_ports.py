"""Ports are chosen once and stay; one that is taken is said in a sentence."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from trueboard.devstack.errors import CannotStart
from trueboard.devstack.ports import Ports, free_port, is_free


@pytest.fixture
def taken_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_chosen_port_is_remembered(tmp_path: Path):
    first = Ports(tmp_path).of("postgres")

    assert Ports(tmp_path).of("postgres") == first
    assert Ports(tmp_path).known("postgres") == first


def test_two_names_never_share_a_port(tmp_path: Path):
    ports = Ports(tmp_path)

    assert len({ports.of(f"name-{number}") for number in range(30)}) == 30


def test_a_wanted_port_that_is_taken_is_refused_with_what_to_do(tmp_path: Path, taken_port: int):
    with pytest.raises(CannotStart, match=rf"port {taken_port} .* for http, is taken .* --http-port"):
        Ports(tmp_path).of("http", wanted=taken_port, option="--http-port")


def test_a_remembered_port_that_is_taken_is_refused_with_where_it_is_remembered(
    tmp_path: Path, taken_port: int
):
    (tmp_path / "ports.json").write_text(f'{{"kafka": {taken_port}}}')

    with pytest.raises(CannotStart, match=r"ports\.json"):
        Ports(tmp_path).of("kafka")


def test_zero_takes_the_remembered_port_else_any_free_one(tmp_path: Path):
    first = Ports(tmp_path).of("http", wanted=0)

    assert first > 0
    assert Ports(tmp_path).of("http", wanted=0) == first


def test_zero_takes_another_where_the_remembered_port_is_taken(tmp_path: Path, taken_port: int):
    (tmp_path / "ports.json").write_text(f'{{"http": {taken_port}}}')

    port = Ports(tmp_path).of("http", wanted=0)

    assert port not in (0, taken_port)
    assert Ports(tmp_path).known("http") == port


@pytest.mark.parametrize("wanted", [None, 0, 8080])
def test_a_host_that_is_not_this_machines_is_said_so(tmp_path: Path, wanted: int | None):
    with pytest.raises(CannotStart, match=r"of 192\.0\.2\.1: Cannot assign requested address") as told:
        Ports(tmp_path).of("http", wanted=wanted, host="192.0.2.1", option="--http-port")

    assert "taken" not in str(told.value)


def test_a_wanted_port_replaces_the_remembered_one(tmp_path: Path):
    wanted = free_port()
    Ports(tmp_path).of("http")
    Ports(tmp_path).of("http", wanted=wanted)

    assert Ports(tmp_path).of("http") == wanted


def test_a_listener_makes_its_port_not_free(taken_port: int):
    assert not is_free(taken_port)


def test_a_spoilt_file_is_a_sentence(tmp_path: Path):
    (tmp_path / "ports.json").write_text("{")

    with pytest.raises(CannotStart, match="not readable"):
        Ports(tmp_path)
