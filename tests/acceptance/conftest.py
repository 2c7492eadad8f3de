"""The running stack as its clients see it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.world import World
from trueboard.endpoints import Endpoints


@pytest.fixture(scope="session")
def world(stack: Endpoints, stack_data: Path) -> Iterator[World]:
    """The session's stack; tests use users of their own."""
    world = World(stack, stack_data)
    yield world
    world.close()
