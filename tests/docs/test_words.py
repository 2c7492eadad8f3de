"""What the pages name is there: commands, options, files, variables, metrics, routes, topics, tables."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
import pytest

from core import catalogue, scopes, topics
from ingest import openapi, problems
from push.close_codes import CloseCode
from push.server import FEED_PATHS
from tests.docs import pages, tables
from trueboard.cli import trueboard

NOT_YET = re.compile(r"\*\*Not yet\*\*|\*\*not yet\*\*|## Not there yet")
"""A line with it, or a section, may name what is not there."""

BEYOND_SETTINGS = {
    "TRUEBOARD_DATA",
    "TRUEBOARD_FAILPOINTS",
    "TRUEBOARD_FORBID_SKIPS",
    "TRUEBOARD_JWKS_FILE",
    "TRUEBOARD_CATALOGUE_FILE",
}
"""Variables that no settings class reads: the data directory, the tests', the compose file's."""

PATH = re.compile(r"(?<![\w.~])(/(?:v1|api|ws|health|metrics|docs|openapi|update|connection)[\w/{}.*-]*)")
SERIES = ("_bucket", "_count", "_sum")

everywhere = pytest.mark.parametrize("page", pages.NAMES)


def calls(page: str) -> Iterator[list[str]]:
    """The words of every call of the command that the page shows in code."""
    for code in pages.code(page):
        for line in code.replace("\\\n", " ").splitlines():
            for match in re.finditer(r"(?:^|[\s`$(/]|=\$\()trueboard ((?:[a-z-]+)(?: [^;|#)\n]*)?)", line):
                yield match[1].split()


def command_of(words: list[str]) -> tuple[click.Command, list[str]] | None:
    """The command that these words call, and the words after its name; None if there is none."""
    context = click.Context(trueboard)
    group: click.Command = trueboard
    while words and isinstance(group, click.Group):
        if words[0] not in group.list_commands(context):
            return None
        found = group.get_command(context, words[0])
        assert found is not None
        group, words = found, words[1:]
    return group, words


@everywhere
def test_commands_and_their_options_exist(page: str):
    for words in calls(page):
        found = command_of(words)
        assert found is not None, f"{page}: there is no `trueboard {' '.join(words)}`"
        command, rest = found
        known = {name for parameter in command.params for name in parameter.opts}
        for word in rest:
            option = re.match(r"\[?(--[a-z-]+)", word)
            assert option is None or option[1] in known, f"{page}: `trueboard {' '.join(words)}`"


def test_every_command_and_every_option_of_up_is_described():
    running, up = pages.text("docs/running.md"), trueboard.get_command(click.Context(trueboard), "up")
    everything = "\n".join(pages.text(page) for page in pages.NAMES)
    assert up is not None

    for parameter in up.params:
        assert f"`{parameter.opts[0]} " in running or f"`{parameter.opts[0]}`" in running, parameter.opts
    for name in trueboard.list_commands(click.Context(trueboard)):
        assert re.search(rf"trueboard {name}\b|`{name}\b", everything), name


@everywhere
def test_targets_of_make_exist(page: str):
    makefile = (pages.ROOT / "Makefile").read_text()
    for code in pages.code(page):
        for target in re.findall(r"(?:^|\s)make ([a-z]+)", code, re.M):
            assert re.search(rf"^{target}:", makefile, re.M), f"{page}: make {target}"


@everywhere
def test_modules_that_are_run_exist(page: str):
    for code in pages.code(page):
        for module in re.findall(r"python (?:-P )?-m ([a-z_.]+)", code):
            path = pages.ROOT / module.replace(".", "/")
            runs = (path / "__main__.py").exists() or path.with_suffix(".py").exists()
            assert runs or module == "json.tool", f"{page}: python -m {module}"


@everywhere
def test_paths_of_the_repository_exist(page: str):
    roots = "|".join(path.name for path in pages.ROOT.iterdir() if path.is_dir() and path.name[0] != ".")
    for code in pages.code(page):
        if "\n" in code:
            continue
        if re.fullmatch(rf"(?:{roots})/[A-Za-z0-9_./-]*|[a-zA-Z_.-]+\.(?:toml|yml|md)", code):
            base = [pages.ROOT, pages.ROOT / "docs", pages.ROOT / "core"]
            of_a_data_directory = code in {"trueboard.toml", "catalogue.toml"}
            assert of_a_data_directory or any((each / code).exists() for each in base), f"{page}: {code}"


@everywhere
def test_variables_are_read_by_something(page: str):
    known = set(re.findall(r"`(TRUEBOARD_[A-Z_]+)`", tables.settings_table())) | BEYOND_SETTINGS

    named = set(re.findall(r"TRUEBOARD_[A-Z_]*[A-Z]", pages.text(page)))

    assert named <= known, f"{page}: {sorted(named - known)}"


def test_variables_beyond_the_settings_are_still_read_somewhere():
    sources = [
        path
        for pattern in ("service/*.py", "tests/conftest.py", "docker-compose.yml")
        for path in pages.ROOT.glob(pattern)
    ]
    read = "\n".join(path.read_text() for path in sources)

    assert all(name in read for name in BEYOND_SETTINGS)


@everywhere
def test_metrics_exist(page: str):
    known = set(tables.metric_names())
    for line in pages.text(page).splitlines():
        for name in re.findall(r"\btrueboard_[a-z_]+", line):
            shown = name in known or any(name.removesuffix(end) in known for end in SERIES)
            excused = NOT_YET.search(line) or name == "trueboard_revisions" or _in_the_list(page, line)
            prefix = any(metric.startswith(name) for metric in known)
            assert shown or prefix or excused, f"{page}: {name}"


@everywhere
def test_routes_exist(page: str):
    served = {*openapi._own(), *openapi._boards(), *openapi._contracts(), *openapi._documents()}
    paths = {path for path, _ in served} | set(FEED_PATHS)
    paths |= {"/metrics", "/health/live", "/health/ready", "/health/*"}
    patterns = [re.compile(re.sub(r"\\\{[a-z_]+\\\}", "[^/?]+", re.escape(path))) for path in paths]
    for code in pages.code(page):
        for found in PATH.findall(code):
            path = found.rstrip("./")
            assert any(pattern.fullmatch(path) for pattern in patterns), f"{page}: {found}"


def test_every_route_and_every_socket_is_in_the_contract():
    contract = pages.text("docs/interfaces.md")
    served = {*openapi._own(), *openapi._boards(), *openapi._contracts(), *openapi._documents()}

    for path, method in served:
        assert f"{method.upper()} {path}" in contract, f"{method} {path}"
    for path in FEED_PATHS:
        assert path in contract


@everywhere
def test_topics_exist(page: str):
    known = {topic.name for topic in topics.ALL}

    named = set(re.findall(r"\bleaderboard\.[a-z.]+\.v\d+", pages.text(page)))

    assert named <= known, f"{page}: {named - known}"


@pytest.mark.parametrize("page", ["docs/interfaces.md", "docs/analysts.md"])
def test_every_topic_is_described(page: str):
    assert all(f"`{topic.name}`" in pages.text(page) for topic in topics.ALL)


def test_every_table_view_and_column_of_the_schema_is_in_the_contract_and_the_other_way_round():
    schema = "\n".join(
        path.read_text() for path in sorted((pages.ROOT / "storage/postgres/migrations").glob("*.sql"))
    )
    chapter = pages.text("docs/interfaces.md").split("## 6.")[1].split("## 7.")[0]
    made = {}
    for name, body in re.findall(r"CREATE TABLE (\w+) \((.*?)\n\)", schema, re.S):
        made[name] = set(re.findall(r'^    "?([a-z_0-9]+)"? +[a-z]', body, re.M)) - {"only_row"}
    views = set(re.findall(r"CREATE VIEW (\w+)", schema))

    for name in made.keys() | views:
        assert re.search(rf"\b{name}\b", chapter), f"{name} is not in the contract"
    described = 0
    for name, columns in re.findall(r"\b([a-z_]+)\(([^()]+)\)", chapter):
        if name in made:
            described += 1
            assert {column.split()[0] for column in columns.split(",")} == made[name], name
    assert described > 10


@everywhere
def test_scopes_exist(page: str):
    named = set(re.findall(r"`((?:actions|scores|boards|users|tokens):[a-z:]+)`", pages.text(page)))

    assert named <= scopes.ALL, f"{page}: {named - scopes.ALL}"


def test_every_code_of_a_problem_and_every_close_code_is_in_the_contract():
    contract = pages.text("docs/interfaces.md")

    for code in problems.TITLES.keys() - {"rejected"}:
        assert f"`{code}`" in contract, code
    for close_code in CloseCode:
        assert re.search(rf"\b{int(close_code)}\b", contract), close_code


@pytest.mark.parametrize("page", [page for page in pages.NAMES if pages.blocks(page, "toml")])
def test_a_catalogue_that_is_shown_is_one(page: str):
    for block in pages.blocks(page, "toml"):
        read = catalogue.read(block.text.encode())

        assert read.version
        assert read.types


def test_nothing_says_where_it_was_made():
    for page in pages.NAMES:
        found = re.search(r"/home/|/root|/work/|/tmp/|\b[\w.]+@[\w-]+\.[a-z]{2,}", pages.text(page))
        assert found is None, f"{page}: {found and found[0]}"


def _in_the_list(page: str, line: str) -> bool:
    """Whether the line stands in the list of what is not there yet."""
    return page == "docs/architecture.md" and line in pages.text(page).split("## Not there yet")[1]
