"""With TRUEBOARD_FORBID_SKIPS a skip is a failure, but for want of a container engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def outcome(tmp_path: Path, test_file: str, *, forbid: bool) -> str:
    (tmp_path / "conftest.py").write_text(
        "from tests.conftest import pytest_make_collect_report, pytest_runtest_makereport\n"
    )
    (tmp_path / "test_it.py").write_text(f"import pytest\n{test_file}\n")
    env = {key: value for key, value in os.environ.items() if key != "TRUEBOARD_FORBID_SKIPS"}
    if forbid:
        env["TRUEBOARD_FORBID_SKIPS"] = "1"
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        env={**env, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
    )
    return ran.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "test_file",
    [
        "def test_it(): pytest.skip('no Java 17 with Maven')",
        "@pytest.mark.skip(reason='later')\ndef test_it(): pass",
        "@pytest.fixture\ndef server(): pytest.skip('no server')\ndef test_it(server): pass",
        "pytest.skip('the whole file', allow_module_level=True)",
        "pytest.importorskip('no_such_module')",
    ],
    ids=["call", "mark", "fixture", "module", "import"],
)
def test_a_skip_fails_where_it_is_forbidden_and_only_there(tmp_path: Path, test_file: str):
    assert "1 skipped" in outcome(tmp_path, test_file, forbid=False)
    assert "skipped" not in outcome(tmp_path, test_file, forbid=True)
    assert any(word in outcome(tmp_path, test_file, forbid=True) for word in ("1 failed", "1 error"))


def test_a_missing_container_engine_may_be_skipped_and_a_known_failure_stays_one(tmp_path: Path):
    test_file = """
def test_it(): pytest.skip('no container engine answers: none here')
@pytest.mark.xfail(strict=True)
def test_other(): assert False
"""

    assert "1 skipped, 1 xfailed" in outcome(tmp_path, test_file, forbid=True)
