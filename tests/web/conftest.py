"""One stack and one browser for everything that looks at the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.acceptance.world import World
from tests.conftest import _need_kafka, _scratch, _up
from tests.web.browser import DESKTOP, Tab, executable, launch, tab

Open = Callable[..., Tab]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """For a module: Playwright keeps a loop running in this thread, which tests of coroutines cannot have."""
    if executable() is None:
        pytest.skip("no Chromium")
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A stack of the pages' own: what a person sees depends on who else is on the board."""
    _need_kafka()
    with _scratch() as data:
        for endpoints in _up(request, data):
            world = World(endpoints, data)
            yield world
            world.close()


@pytest.fixture
def open_tab(browser: Browser, world: World) -> Iterator[Open]:
    """Opens tabs, each of a browser that has never been here."""
    with ExitStack() as held:

        def open_tab(size: tuple[int, int] = DESKTOP, **options: Any) -> Tab:
            return held.enter_context(tab(browser, world, size, **options))

        yield open_tab
