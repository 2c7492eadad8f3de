from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.ingest.world import World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    async with world.client:
        yield world
