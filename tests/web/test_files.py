"""The page's files: whole, from nowhere else, and others' byte for byte as published."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ingest import page

ROOT = Path(__file__).parents[2]
WEB = ROOT / "web"
MODULES = sorted(path for path in WEB.glob("*.js"))
OURS = [path for path in sorted(WEB.iterdir()) if path.suffix in (".js", ".css", ".html", ".svg")]


@pytest.mark.parametrize("folder", [WEB / "vendor", Path(__file__).parent / "vendor"], ids=["page", "tests"])
def test_the_files_of_others_are_those_that_were_published(folder: Path):
    sums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    present = {path.name for path in folder.iterdir()} - {"SHA256SUMS", "README.md"}
    about = (folder / "README.md").read_text()

    assert present == set(sums)
    for name, expected in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected, name
    assert {name for name in sums if "LICENSE" in name} <= set(re.findall(r"`([^`]+)`", about))


def test_everything_the_page_names_is_there():
    document = (WEB / "index.html").read_text()
    named = set(re.findall(r'(?:href|src)="/web/([^"#]+)', document))
    for path in MODULES:
        named |= set(re.findall(r'(?:from|URL\() ?"\./([^"]+)"', path.read_text()))
    for path in WEB.glob("*.css"):
        named |= set(re.findall(r'url\("([^"]+)"\)', path.read_text()))

    assert named
    for name in named:
        assert (WEB / name).is_file(), name
        assert Path(name).suffix in page.MEDIA_TYPES


def test_everything_there_is_used():
    everything = "\n".join(path.read_text() for path in OURS)

    for path in OURS:
        assert path.name == "index.html" or path.name in everything, path.name


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_nothing_comes_from_elsewhere(path: Path):
    text = path.read_text().replace("http://www.w3.org/2000/svg", "")

    assert not re.search(r"\b(?:https?|wss?)://", text)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
    )
    assert not re.search(r"\son[a-z]+=|\sstyle=|<style|javascript:", text) or path.suffix != ".html"


def test_every_id_that_a_module_asks_for_is_in_the_document_once():
    ids = re.findall(r'\bid="([^"]+)"', (WEB / "index.html").read_text())
    asked = {name for path in MODULES for name in re.findall(r'byId\("([^"]+)"\)', path.read_text())}

    assert len(ids) == len(set(ids))
    assert asked <= set(ids)


def node() -> str:
    path = shutil.which("node")
    if path is None:
        pytest.skip("no Node.js")
    return path


def test_modules_can_be_parsed():
    for path in MODULES:
        done = subprocess.run([node(), "--check", path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_pure_parts_hold():
    tests = sorted((Path(__file__).parent / "pure").glob("*.test.js"))

    done = subprocess.run([node(), "--test", *tests], capture_output=True, text=True, check=False)

    assert tests
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# tests 0" not in done.stdout
