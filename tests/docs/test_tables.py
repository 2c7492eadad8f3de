"""The tables that are made from the code are the present ones."""

from __future__ import annotations

import pytest

from service import settings
from tests.docs import pages, tables


@pytest.mark.parametrize(("page", "mark"), tables.MADE, ids=lambda part: part)
def test_the_table_is_the_one_that_the_code_gives(page: str, mark: str):
    assert pages.between(page, mark) == tables.MADE[page, mark](), "run: python -m tests.docs.tables"


def test_every_setting_and_every_metric_has_a_row_with_a_meaning():
    rows = [line.split(" | ") for line in tables.settings_table().splitlines()[2:]]

    assert len(rows) > 50
    assert all(len(row) == 4 and len(row[3].strip(" |")) > 10 for row in rows)
    assert all(row[0].startswith(f"| `{settings.PREFIX}") for row in rows)


def test_a_metrics_text_says_what_a_rise_means():
    for name, metric in tables.metric_names().items():
        assert "rise" in metric._documentation, name


def test_of_equal_defaults_one_is_shown_and_of_different_ones_each():
    rows = {line.split("`")[1]: line for line in tables.settings_table().splitlines()[2:]}

    assert "| required |" in rows["TRUEBOARD_KAFKA"]
    assert "| `12` |" in rows["TRUEBOARD_PARTITIONS"]
    assert "ingest: `9001`; stream_app: `0`; push: `9003`" in rows["TRUEBOARD_METRICS_PORT"]
