"""With TRUEBOARD_FORBID_SKIPS a skip is a failure, but for want of a container engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


FILES = {
    "call": "def test_it(): pytest.skip('no Java 17 with Maven')",
    "mark": "@pytest.mark.skip(reason='later')\ndef test_it(): pass",
    "fixture": "@pytest.fixture\ndef server(): pytest.skip('no server')\ndef test_it(server): pass",
    "module": "pytest.skip('the whole file', allow_module_level=True)",
    "import": "pytest.importorskip('no_such_module')",
    "engine": "def test_it(): pytest.skip('no container engine answers: none here')",
    "known": "@pytest.mark.xfail(strict=True)\ndef test_it(): assert False",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, str]:
    """What pytest says about the files, by whether skips are forbidden."""
    here = tmp_path_factory.mktemp("skips")
    (here / "conftest.py").write_text(
        "from tests.conftest import pytest_make_collect_report, pytest_runtest_makereport\n"
    )
    for name, body in FILES.items():
        (here / f"test_{name}.py").write_text(f"import pytest\n{body}\n")
    return {forbid: _run(here, forbid=forbid) for forbid in (False, True)}


def _run(here: Path, *, forbid: bool) -> str:
    env = {key: value for key, value in os.environ.items() if key != "TRUEBOARD_FORBID_SKIPS"}
    if forbid:
        env["TRUEBOARD_FORBID_SKIPS"] = "1"
    options = ["-q", "-rA", "-p", "no:cacheprovider", "--continue-on-collection-errors", "--rootdir", here]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, here],
        capture_output=True,
        text=True,
        timeout=60,
        env={**env, "PYTHONPATH": str(ROOT)},
        cwd=here,
    ).stdout


@pytest.mark.parametrize("name", ["call", "mark", "fixture", "module", "import"])
def test_a_skip_is_a_failure_where_it_is_forbidden(outcomes: dict[bool, str], name: str):
    bad = [line for line in outcomes[True].splitlines() if line.startswith(("FAILED", "ERROR"))]

    assert any(f"test_{name}.py" in line for line in bad)


def test_elsewhere_a_skip_is_a_skip(outcomes: dict[bool, str]):
    assert outcomes[False].splitlines()[-1].startswith("6 skipped, 1 xfailed")


def test_a_missing_container_engine_may_be_skipped_and_a_known_failure_stays_one(outcomes: dict[bool, str]):
    assert "1 skipped, 1 xfailed" in outcomes[True].splitlines()[-1]
