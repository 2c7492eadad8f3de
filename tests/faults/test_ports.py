"""Stacks beside each other never choose the same port."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.faults import ports
from tests.faults.ports import Block


def test_no_two_stacks_choose_the_same_port(tmp_path: Path) -> None:
    blocks = [Block(tmp_path) for _ in range(20)]

    chosen = [block.free() for block in blocks for _ in range(60)]

    assert len(chosen) == len(set(chosen))
    for block in blocks:
        block.close()


def test_a_block_is_free_again_when_its_stack_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "_HIGHEST", ports._LOWEST + ports.SIZE)
    one = Block(tmp_path)
    with pytest.raises(AssertionError, match="every block"):
        Block(tmp_path)

    one.close()

    Block(tmp_path).close()


def test_a_port_on_which_somebody_listens_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "_HIGHEST", ports._LOWEST + ports.SIZE)
    first = Block(tmp_path)
    port = first.free()
    first.close()
    with socket.create_server(("127.0.0.1", port)):
        block = Block(tmp_path)
        assert block.free() > port
        block.close()
