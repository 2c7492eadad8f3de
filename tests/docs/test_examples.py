"""The examples of the pages run, against everything that `trueboard up` starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psycopg
import pytest

from tests.docs import pages
from tests.trueboard.repositories import Made
from trueboard.endpoints import Endpoints

pytestmark = pytest.mark.kafka

SHELL_PAGES = [page for page in pages.NAMES if pages.blocks(page, "sh")]


@pytest.fixture
def place(stack: Endpoints, stack_data: Path) -> Mapping[str, str]:
    """The environment that stands for a shell at the root of the repository beside `make up`."""
    return {**os.environ, "TRUEBOARD_DATA": str(stack_data), "DATABASE": stack.postgres}


def run(argv: list[str], env: Mapping[str, str], timeout_s: float = 90) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, env=dict(env), cwd=pages.ROOT, capture_output=True, text=True, timeout=timeout_s
    )


def python(page: str) -> str:
    (block,) = pages.blocks(page, "python")
    return block.text


@pytest.mark.parametrize("page", SHELL_PAGES)
def test_the_blocks_of_a_page_run_one_after_the_other(
    page: str, stack: Endpoints, place: Mapping[str, str], tmp_path: Path
):
    script = "\n".join(block.text for block in pages.blocks(page, "sh"))
    programs = {"trueboard": f"{sys.executable} -P -m trueboard", "python": sys.executable}
    script = re.sub(r"\.venv/bin/(\w+)", lambda match: programs[match[1]], script)
    script = script.replace("http://127.0.0.1:8080", stack.http).replace("http://127.0.0.1:8081", stack.feed)
    if "replay git ." in script:
        # a checkout need not have its history
        repository = Made.at(tmp_path / "repository.git")
        repository.commit(b"Ann")
        repository.commit(b"Ben", b"ben@example.org")
        script = script.replace("replay git .", f"replay git {repository.path}")
    # curl says 22 where the answer is an error
    script = script.replace("curl -sS", "curl -sS --fail-with-body")

    done = run(["bash", "-euo", "pipefail", "-c", script], place)

    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_the_consumer_of_forty_lines_counts_what_the_board_shows(
    stack: Endpoints, place: Mapping[str, str], tmp_path: Path
):
    text = python("docs/analysts.md")
    program = tmp_path / "top_ten.py"
    program.write_text(text)
    simulated = run(
        [sys.executable, "-P", "-m", "trueboard", "simulate", "--actions=300", "--users=30", "--rate=300"],
        place,
    )
    assert simulated.returncode == 0, simulated.stderr

    done = run([sys.executable, str(program), stack.kafka], place)

    with psycopg.connect(stack.postgres) as connection:
        wanted = connection.execute(
            "SELECT score FROM user_scores ORDER BY score DESC, last_updated, user_id LIMIT 10"
        ).fetchall()
    assert len(text.splitlines()) <= 40
    assert done.returncode == 0, done.stderr
    assert [int(line.split()[-1]) for line in done.stdout.splitlines()] == [score for (score,) in wanted]


def test_the_recomputed_chain_ends_in_the_digest_that_verify_shows(
    stack: Endpoints, place: Mapping[str, str], tmp_path: Path
):
    program = tmp_path / "recompute.py"
    program.write_text(python("docs/proof.md"))

    done = run([sys.executable, str(program)], place)

    with psycopg.connect(stack.postgres) as connection:
        revisions = dict(
            connection.execute("SELECT revision, encode(digest, 'hex') FROM revisions").fetchall()
        )
    assert done.returncode == 0, done.stderr
    revision, digest = done.stdout.split()
    assert revisions[int(revision)] == digest


def test_the_reader_of_the_feed_shows_the_board(stack: Endpoints, place: Mapping[str, str], tmp_path: Path):
    program = tmp_path / "watch.py"
    program.write_text(python("docs/clients.md"))
    token = run([sys.executable, "-P", "-m", "trueboard", "token", "--user=watcher"], place).stdout.strip()
    env = {**place, "TOKEN": token, "FEED": stack.feed.replace("http", "ws", 1), "PYTHONUNBUFFERED": "1"}

    with subprocess.Popen(
        [sys.executable, str(program)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        shown = next((line for line in reader.stdout if line.startswith("as of revision")), None)
        reader.terminate()

    assert shown is not None


def test_the_queries_run(stack: Endpoints):
    queries = "\n".join(block.text for block in pages.blocks("docs/analysts.md", "sql"))
    assert len(re.findall("SELECT", queries)) > 5

    with psycopg.connect(stack.postgres) as connection:
        for query in filter(str.strip, queries.split(";")):
            connection.execute(query)  # type: ignore[arg-type]
        connection.rollback()
