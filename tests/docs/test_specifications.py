"""The tests that pages name are there, and the page of the specifications leaves out no route of theirs."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from push.server import DIALECTS
from tests.docs import pages

PAGE = "docs/specifications.md"
NAMED = re.compile(r"(tests/[\w/]+\.py)::(\w+)")


@cache
def named_in(path: str) -> set[str]:
    """The names of a file's tests; none where there is no file."""
    file = pages.ROOT / path
    if not file.is_file():
        return set()
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = {node.name for node in ast.parse(file.read_text("utf-8")).body if isinstance(node, functions)}
    return {name for name in names if name.startswith("test_")}


def rows(page: str) -> list[list[str]]:
    """The cells of every row below a table's head."""
    lines = [line for line in pages.text(page).splitlines() if line.startswith("|")]
    heads = {n for n, line in enumerate(lines[1:]) if set(line) <= set("|-")}
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for n, line in enumerate(lines)
        if n not in heads and n - 1 not in heads
    ]


@pytest.mark.parametrize("page", pages.NAMES)
def test_tests_that_are_named_are_there(page: str):
    for path, name in NAMED.findall(pages.text(page)):
        assert name in named_in(path), f"{page}: {path} has no {name}"


def test_every_row_of_the_specifications_names_its_tests_or_says_that_there_is_none():
    found = rows(PAGE)

    assert len(found) > 100
    for *said, tests in found:
        assert all(said), tests
        assert tests == "–" or all(re.fullmatch(f"`{NAMED.pattern}`", test) for test in tests.split(", ")), (
            tests
        )
    assert len(set(NAMED.findall(pages.text(PAGE)))) > 80


def test_every_call_and_every_socket_of_the_specifications_is_in_the_section_of_its_own():
    contract = pages.text("docs/interfaces.md").split("### The five specifications' routes\n")[1]
    calls = re.findall(r"^\| (S\d) \| `((?:GET|POST) [^`]+)`", contract.split("\n## ")[0], re.M)
    sections = {part[:2]: part for part in pages.text(PAGE).split("\n## ")}

    assert len(calls) == 7
    for specification, call in calls:
        assert f"`{call}`" in sections[specification], f"{specification}: {call}"
    for dialect in DIALECTS:
        assert f"`{dialect.path}`" in pages.text(PAGE)
