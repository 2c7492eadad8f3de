"""Those who follow the default board, each in the way that was made for it, and what each was shown."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from anyio.from_thread import BlockingPortal
from playwright.sync_api import sync_playwright

from tests.acceptance.world import World
from tests.push.official import Event, Events, Follow
from tests.web.browser import Tab, launch, tab

Said = dict[str, Any]
Position = tuple[str, int]
NOWHERE: Position = ("", 0)

Line = tuple[int, str, int]
"""Rank, user id, score."""

AGAIN_S = 0.1
"""How long one who found nobody waits before the next attempt."""


@dataclass(frozen=True)
class Shown:
    """A board as somebody was shown it. `instants` are when the scores were reached, where that is told.

    `names` hold when they are told, not at the board's revision: what is told late has later ones.
    """

    count: int
    lines: tuple[Line, ...]
    names: tuple[str, ...]
    instants: tuple[str, ...] = ()


@dataclass
class Watched:
    """What one was shown, in its order, and how it came by it."""

    shown: list[tuple[Position, Shown]] = field(default_factory=list)
    snapshots: int = 0
    publications: int = 0
    broken: list[str] = field(default_factory=list)
    """Where what one was told did not follow from what one had."""


class Watcher(Protocol):
    """One who follows."""

    name: str

    def returns(self) -> int:
        """How often it was cut off and follows again."""

    def position(self) -> Position:
        """Where it stands; `NOWHERE` before it was shown anything."""

    def boards(self) -> int:
        """How many boards it was shown so far."""

    def watched(self) -> Watched:
        """All that it was shown; to be asked for at the end."""


def position(said: Said) -> Position:
    return said["epoch"], said["revision"]


def shown(said: Said) -> Shown:
    top = said["top"]
    return Shown(
        said["count"],
        tuple((one["rank"], one["user_id"], one["score"]) for one in top),
        tuple(one["username"] for one in top),
        tuple(one["reached_at"] for one in top),
    )


def fold(messages: list[Said]) -> Watched:
    """What one knows who takes snapshots as they are and folds what publications say has changed.

    Scores here only rise, so whoever comes into the ten is among `changed`, and the ten that are
    folded are the ten that are told. Broken is a publication that begins elsewhere than where its
    reader stands, or whose changes do not lead to its ten.
    """
    found = Watched()
    known: dict[str, tuple[int, str]] = {}
    at = NOWHERE
    for said in messages:
        told = shown(said)
        if "changed" in said:
            if (said["epoch"], said["previous"]) != at:
                found.broken.append(f"{at} is followed by {said}")
            known |= {one["user_id"]: (one["score"], one["reached_at"]) for one in said["changed"]}
            first = sorted(known.items(), key=lambda item: (-item[1][0], item[1][1], item[0].encode()))[:10]
            folded = [(user, *standing) for user, standing in first]
            if folded != [(one["user_id"], one["score"], one["reached_at"]) for one in said["top"]]:
                found.broken.append(f"from {at}, folding comes to {folded}: {said}")
            found.publications += 1
        else:
            known = {one["user_id"]: (one["score"], one["reached_at"]) for one in said["top"]}
            found.snapshots += 1
        at = position(said)
        found.shown.append((at, told))
    return found


class Client:
    """One of the official clients, on the Centrifuge protocol."""

    def __init__(self, name: str, portal: BlockingPortal, events: Events) -> None:
        self.name = name
        self._portal, self._queue = portal, events.queue
        self._messages: list[Said] = []
        self._subscribed = 0

    def _take(self) -> None:
        for event in self._portal.call(self._arrived):
            if event["is"] == "publication":
                assert event["offset"] == event["data"]["revision"]
                self._messages.append(event["data"])
            elif event["is"] == "subscribed":
                self._subscribed += 1
                if event["data"] is not None:
                    assert not event["recovered"]
                    assert tuple(event["at"]) == position(event["data"])
                    self._messages.append(event["data"])
                else:
                    assert event["recovered"], event
            else:
                assert event["is"] in ("connected", "connecting"), event

    def _arrived(self) -> list[Event]:
        return [self._queue.get_nowait() for _ in range(self._queue.qsize())]

    def returns(self) -> int:
        self._take()
        return max(0, self._subscribed - 1)

    def position(self) -> Position:
        self._take()
        return position(self._messages[-1]) if self._messages else NOWHERE

    def boards(self) -> int:
        self._take()
        return len(self._messages)

    def watched(self) -> Watched:
        return fold(self._messages)


@contextmanager
def client(portal: BlockingPortal, follow: Follow, name: str, world: World) -> Iterator[Client]:
    """An official client that lives in the portal's loop."""
    url = world.endpoints.feed.replace("http", "ws", 1) + "/connection/websocket"
    with portal.wrap_async_context_manager(follow(url, "board:main")) as events:
        yield Client(name, portal, events)


class Curl:
    """`curl -N` on the stream of events, begun again with the last id whenever it ends."""

    name = "curl"

    def __init__(self, url: str) -> None:
        self._url = url
        self._messages: list[Said] = []
        self._ids: list[str] = []
        self._begun = 0
        self._over = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._follow)

    def __enter__(self) -> Curl:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._process is not None:
            self._process.terminate()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _follow(self) -> None:
        curl = shutil.which("curl")
        assert curl, "there is no curl"
        while not self._over.is_set():
            resume = ["-H", f"Last-Event-ID: {self._ids[-1]}"] if self._ids else []
            self._process = subprocess.Popen(
                [curl, "-N", "-s", "--fail", "--noproxy", "*", *resume, self._url],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
            )
            with self._process as process:
                if self._over.is_set():
                    process.terminate()
                self._read(process)
            self._over.wait(AGAIN_S)

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        """What is not ended by an empty line was cut off, and is no event."""
        assert process.stdout
        fields: dict[str, str] = {}
        for line in process.stdout:
            if line == b"\n":
                if "data" in fields:
                    assert fields["event"] == "board"
                    self._messages.append(json.loads(fields["data"]))
                    self._ids.append(fields["id"])
                self._begun += "retry" in fields
                fields = {}
            else:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                fields[name] = value

    def returns(self) -> int:
        return max(0, self._begun - 1)

    def position(self) -> Position:
        return position(self._messages[-1]) if self._messages else NOWHERE

    def boards(self) -> int:
        return len(self._messages)

    def watched(self) -> Watched:
        assert self._ids == ["{}-{}".format(*position(said)) for said in self._messages]
        return fold(self._messages)


LOOKING = """
globalThis.looked = { boards: [], lives: 0 };
const number = (element) => Number(element.textContent.replaceAll(/\\D/g, ""));
let state = "";
new MutationObserver(() => {
  const now = document.querySelector("#connection")?.dataset.state ?? "";
  if (now === "live" && state !== "live") looked.lives += 1;
  state = now;
  const position = document.documentElement.dataset.position;
  if (!position || looked.boards.at(-1)?.position === position) return;
  const rows = [...document.querySelectorAll("#rows tr")].map((row) => {
    const name = row.querySelector(".name").textContent;
    const id = row.querySelector(".id").textContent || name;
    return [number(row.querySelector(".rank")), id, name, number(row.querySelector(".score"))];
  });
  looked.boards.push({ position, count: number(document.querySelector("#count")), rows });
}).observe(document, { attributes: true, subtree: true, attributeFilter: ["data-position", "data-state"] });
"""
"""Runs before the page's own scripts: every board as it stands there once its position was shown, and
how often the page came to say that it is live."""


class Page:
    """The page in Chromium, read as it is shown."""

    name = "page"

    def __init__(self, shown_in: Tab) -> None:
        self._tab = shown_in
        self._tab.context.add_init_script(LOOKING)
        self._tab.open()

    def returns(self) -> int:
        return max(0, int(self._tab.page.evaluate("looked.lives")) - 1)

    def position(self) -> Position:
        last = self._tab.page.evaluate("looked.boards.at(-1)?.position ?? '-0'")
        epoch, _, revision = str(last).rpartition("-")
        return epoch, int(revision)

    def boards(self) -> int:
        return int(self._tab.page.evaluate("looked.boards.length"))

    def watched(self) -> Watched:
        self._tab.check_conduct(network_was_away=True)
        found = Watched()
        for board in self._tab.page.evaluate("looked.boards"):
            epoch, _, revision = board["position"].rpartition("-")
            lines = tuple((rank, user, score) for rank, user, _, score in board["rows"])
            names = tuple(name for _, _, name, _ in board["rows"])
            found.shown.append(((epoch, int(revision)), Shown(board["count"], lines, names)))
        return found


@contextmanager
def page(world: World) -> Iterator[Page]:
    """A browser of its own: what drives it keeps a loop in this thread, and only for so long."""
    with sync_playwright() as playwright, launch(playwright) as browser, tab(browser, world) as opened:
        yield Page(opened)
