"""The page shows the results that are kept, of rows that are there."""

from __future__ import annotations

import json

from tests.docs import pages
from tests.faults import table
from tests.faults.engine import ROWS


def test_the_page_shows_the_results_that_are_kept():
    assert pages.between(table.PAGE, table.MARK) == table.table(), "run: python -m tests.faults.table"


def test_results_are_of_rows_that_are_there():
    results = json.loads(table.RESULTS.read_text())

    assert {result["id"] for result in results} <= ROWS.keys()
