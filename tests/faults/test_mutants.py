"""Each mutant of the running product is noticed, and the product as it is holds on the same rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import _need_kafka
from tests.docs import pages
from tests.faults import mutants, mutants_rows
from tests.faults.mutants import KNOWN, MUTANTS, TREE, Mutant, Patch
from tests.faults.worlds import Worlds

_RUNS = [pytest.mark.services, pytest.mark.kafka, pytest.mark.timeout(900), pytest.mark.long]


@pytest.fixture(scope="module")
def worlds() -> Iterator[Worlds]:
    _need_kafka()
    worlds = Worlds(beside=mutants.BESIDE)
    try:
        yield worlds
    finally:
        worlds.close()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_it_is_said_who_must_notice_or_why_nobody_does(mutant: Mutant) -> None:
    assert bool(mutant.by) != bool(mutant.fence)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_what_a_mutant_replaces_stands_in_the_product_once(mutant: Mutant) -> None:
    for patch in mutant.patches:
        assert mutants.patched((TREE / patch.file).read_text(encoding="utf-8"), patch)


def test_a_text_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 times"):
        mutants.product(tmp_path, (Patch("core/errors.py", "nothing of this kind", ""),))


@pytest.mark.parametrize("mutant", [pytest.param(mutant, id=mutant.name, marks=_RUNS) for mutant in MUTANTS])
def test_it_is_noticed(worlds: Worlds, mutant: Mutant) -> None:
    outcome = mutants.run(KNOWN[mutant.row], mutant, worlds)

    if results := os.environ.get("MUTANTS_RESULTS"):
        mutants.write(Path(results), outcome)
    assert mutant.is_as_said(outcome.caught), outcome.caught


@pytest.mark.parametrize("id", [pytest.param(id, marks=_RUNS) for id in mutants_rows.ROWS])
def test_the_product_as_it_is_holds(worlds: Worlds, id: str) -> None:
    result = worlds.run(KNOWN[id])

    assert result.wrong == []
    assert worlds.shared is not None
    assert mutants.audited(worlds.shared.rig) == []
    assert mutants.verified(worlds.shared.rig) == []


def test_the_page_shows_the_results_that_are_kept() -> None:
    shown = pages.between(mutants.PAGE, mutants.MARK)

    assert shown == mutants.table(), "run: python -m tests.faults.mutants --table"
