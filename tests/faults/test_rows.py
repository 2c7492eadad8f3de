"""Every row of the fault matrix. Those marked `long` run by `make faults`, the others with all tests.

What a row does stands in `tests/faults/rows`; that nothing was lost, doubled or shown wrongly is
asked of each in the same way.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import _need_kafka
from tests.faults.engine import ROWS, Row, write_results
from tests.faults.worlds import Worlds, thorough

pytestmark = [pytest.mark.services, pytest.mark.kafka]


@pytest.fixture(scope="module")
def worlds() -> Iterator[Worlds]:
    _need_kafka()
    worlds = Worlds(thorough=thorough())
    try:
        yield worlds
    finally:
        worlds.close()


def _marks(row: Row) -> list[pytest.MarkDecorator]:
    return [pytest.mark.timeout(row.takes_s), *([] if row.fast else [pytest.mark.long])]


@pytest.mark.parametrize(
    "row",
    # Those that take long first, so that no stack is left with one of them at the end.
    [
        pytest.param(row, id=row.id, marks=_marks(row))
        for row in sorted(ROWS.values(), key=lambda row: -row.takes_s)
    ],
)
def test_row(worlds: Worlds, row: Row) -> None:
    result = worlds.run(row)

    if results := os.environ.get("FAULTS_RESULTS"):
        write_results(Path(results), [result])
    if result.verdict == "not run":
        pytest.skip(result.wrong[0])
    wrong = "\n".join(result.wrong)
    assert result.verdict == "held", f"{row.id}, {row.what}:\n{wrong}\n{result.observed}\n{worlds.kept}"
