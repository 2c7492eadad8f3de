"""The page in a real browser: Debian's Chromium, driven by Playwright; what it loads and says is kept."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, Page, Playwright, expect

from tests.acceptance.world import World

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 60_000
DESKTOP, TABLET, PHONE = (1440, 1000), (820, 1180), (390, 844)

expect.set_options(timeout=PATIENCE_MS)

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]

WATCHING = """
globalThis.seen = { positions: [], glides: 0, violations: [] };
addEventListener("securitypolicyviolation", (event) => seen.violations.push(event.violatedDirective));
const animate = Element.prototype.animate;
Element.prototype.animate = function (frames, ...rest) {
  if (this.matches("tr") && this.isConnected && String(frames[0].transform).includes("px")) seen.glides += 1;
  return animate.call(this, frames, ...rest);
};
new MutationObserver(() => {
  const position = document.documentElement.dataset.position;
  if (position && seen.positions.at(-1) !== position) seen.positions.push(position);
}).observe(document, { attributes: true, subtree: true, attributeFilter: ["data-position"] });
"""
"""Runs before the page's own scripts: positions shown, rows that glided, what the policy forbade."""

NETWORK = re.compile(r"Failed to load resource|WebSocket connection to .* failed|ERR_[A-Z_]+")
"""What Chromium itself says of a network that is away; no script can keep it from saying so."""


def executable() -> str | None:
    """Where Chromium is; None without one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


def launch(playwright: Playwright) -> Browser:
    return playwright.chromium.launch(executable_path=executable(), args=FLAGS)


@dataclass
class Tab:
    """A tab with the page. `requests` are the addresses it asked for, `said` what its console says."""

    page: Page
    context: BrowserContext
    world: World
    requests: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("websocket", lambda socket: self.requests.append(socket.url))
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.said.append(f"{message.type}: {message.text}")

    # what is shown

    def open(self, token: str | None = None) -> Tab:
        self.page.goto(self.world.endpoints.http + "/" + (f"#token={token}" if token else ""))
        return self

    def connection(self, text: str) -> None:
        """Wait until the connection is shown in these words."""
        expect(self.page.locator("#connection-text")).to_have_text(text)

    def position(self) -> tuple[str, int]:
        """The position that is shown."""
        epoch, _, revision = str(self.page.locator("html").get_attribute("data-position")).rpartition("-")
        return epoch, int(revision)

    def shows(self, epoch: str, revision: int) -> None:
        """Wait until this position or a later one is shown."""
        self.page.wait_for_function(
            """([epoch, revision]) => {
              const [e, r] = (document.documentElement.dataset.position ?? "-0").split("-");
              return e > epoch || (e === epoch && Number(r) >= revision);
            }""",
            arg=[epoch, revision],
            timeout=PATIENCE_MS,
        )

    def rows(self) -> list[dict[str, Any]]:
        """The rows as a person reads them."""
        found: list[dict[str, Any]] = self.page.evaluate(
            """[...document.querySelectorAll("#rows tr")].map((row) => ({
              rank: Number(row.querySelector(".rank").textContent),
              username: row.querySelector(".name").textContent,
              score: Number(row.querySelector(".score").textContent.replaceAll(",", "")),
            }))"""
        )
        return found

    def seen(self) -> dict[str, Any]:
        found: dict[str, Any] = self.page.evaluate("seen")
        return found

    # what it did

    def check_conduct(self, *, network_was_away: bool = False) -> None:
        """It asked nobody else, broke no policy, said nothing on its console, and never went back."""
        ours = {urlsplit(url).netloc for url in (self.world.endpoints.http, self.world.endpoints.feed)}
        elsewhere = [url for url in self.requests if _leaves(url, ours)]
        seen = self.seen()
        said = [line for line in self.said if not (network_was_away and NETWORK.search(line))]
        assert not elsewhere, elsewhere
        assert seen["violations"] == []
        assert said == []
        order = [_position(text) for text in seen["positions"]]
        assert order == sorted(set(order)), order


def _leaves(url: str, ours: set[str]) -> bool:
    parts = urlsplit(url)
    return parts.scheme not in ("data", "blob", "about") and parts.netloc not in ours


def _position(text: str) -> tuple[str, int]:
    epoch, _, revision = text.rpartition("-")
    return epoch, int(revision)


@contextmanager
def tab(browser: Browser, world: World, size: tuple[int, int] = DESKTOP, **options: Any) -> Iterator[Tab]:
    """A tab of a browser that has never been here."""
    width, height = size
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    context.set_default_timeout(PATIENCE_MS)
    context.add_init_script(WATCHING)
    try:
        yield Tab(context.new_page(), context, world)
    finally:
        context.close()


def faults(tab: Tab, source: str) -> list[str]:
    """What axe finds wrong, by rule and element."""
    tab.page.evaluate(source)
    found = tab.page.evaluate("rules => axe.run(document, {runOnly: rules})", RULES)
    return [
        f"{each['id']}: {json.dumps(node['target'])} {node['failureSummary']}"
        for each in found["violations"]
        for node in each["nodes"]
    ]
