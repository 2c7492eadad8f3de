"""Links lead somewhere, and pictures can be shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs import pages

LARGEST_PICTURE_BYTES = 300_000


@pytest.mark.parametrize("page", pages.NAMES)
def test_every_link_within_the_repository_leads_somewhere(page: str):
    here = (pages.ROOT / page).parent
    for link in pages.links(page):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (here / path).resolve() if path else pages.ROOT / page

        assert target.exists(), f"{page} links to {link}, which is not there"
        if anchor:
            assert anchor in pages.anchors(str(target.relative_to(pages.ROOT))), f"{page}: no heading {link}"


def test_every_page_of_docs_is_in_the_readmes_list():
    linked = {link.partition("#")[0] for link in pages.links("README.md")}

    listed = {name for name in pages.NAMES if name != "README.md"}
    by_another = {"docs/performance.md"}
    assert listed - by_another <= linked
    assert "performance.md" in pages.text("docs/contributing.md")


@pytest.mark.parametrize(
    "picture", sorted((pages.ROOT / "docs" / "images").iterdir()), ids=lambda path: path.name
)
def test_a_picture_is_small_loads_nothing_and_is_shown_somewhere(picture: Path):
    content = picture.read_bytes()
    name = str(picture.relative_to(pages.ROOT))

    assert len(content) < LARGEST_PICTURE_BYTES
    assert not re.search(rb"url\(['\"]?https?:|<script|href=", content)
    assert any(name.removeprefix("docs/") in pages.text(page) for page in pages.NAMES)
