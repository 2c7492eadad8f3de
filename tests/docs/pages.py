"""The pages of the documentation, and what stands in them: blocks of code, words in code, links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
NAMES: Final = [str(page.relative_to(ROOT)) for page in PAGES]

_FENCE = re.compile(r"^```([a-z]*)\n(.*?)^```$", re.M | re.S)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.M)


@dataclass(frozen=True)
class Block:
    """A fenced block of code and the page it stands on."""

    page: str
    language: str
    text: str


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, *languages: str) -> list[Block]:
    """The page's blocks in these languages, in order; all without one."""
    found = [Block(page, match[1], match[2]) for match in _FENCE.finditer(text(page))]
    return [block for block in found if not languages or block.language in languages]


def code(page: str) -> list[str]:
    """Everything in code type: blocks whole, and the words between backticks."""
    return [block.text for block in blocks(page)] + _SPAN.findall(_FENCE.sub("", text(page)))


def links(page: str) -> list[str]:
    return _LINK.findall(_FENCE.sub("", text(page)))


def anchors(page: str) -> set[str]:
    """The anchors that headings have on code hosts."""
    headings = _HEADING.findall(_FENCE.sub("", text(page)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def between(page: str, mark: str) -> str:
    """What stands between `<!-- mark -->` and `<!-- /mark -->`, without the line ends around it."""
    _, _, rest = text(page).partition(f"<!-- {mark} -->\n")
    part, closing, _ = rest.partition(f"<!-- /{mark} -->")
    assert closing, f"{page} has no part marked {mark}"
    return part.strip("\n")


def put(page: str, mark: str, part: str) -> None:
    """Write that part anew."""
    between(page, mark)
    before, opening, rest = text(page).partition(f"<!-- {mark} -->\n")
    _, closing, after = rest.partition(f"<!-- /{mark} -->")
    (ROOT / page).write_text(f"{before}{opening}{part}\n{closing}{after}", encoding="utf-8")
