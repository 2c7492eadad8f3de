"""A stream over a real Postgres, without Kafka."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.stream_app.world import World, opened


@pytest.fixture
def stream(database: str) -> Iterator[World]:
    """A ledger with the tests' catalogue in force, an empty log of two partitions, one worker."""
    with opened(database) as made:
        yield made
