"""Every contract by its golden records: the same requests, replies and records as written down."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.examples import cases
from tests.ingest.golden import run
from tests.ingest.world import World


@pytest.mark.parametrize("case", cases("contracts"))
async def test_a_contract_is_kept_to_the_letter(world: World, case: dict[str, Any]) -> None:
    replies, records = await run(world, case)

    assert replies == [step["reply"] for step in case["steps"]]
    assert records == case["records"]
