"""Whoever follows the board, however, sees the same board, and through every crash the ledger's.

Both official clients, a browser on the page and `curl -N` follow one replay while the feed, the worker
and the copy in memory are killed under it. The run is one; each test looks at what it left behind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

from tests.acceptance import histories, naive
from tests.acceptance.stacks import COMMAND, Stack, kill, replaced
from tests.acceptance.watchers import Curl, Position, Watched, Watcher, client, page, shown
from tests.acceptance.world import World, as_us, until
from tests.push.official import in_javascript, in_python
from tests.web.browser import executable
from trueboard.endpoints import Endpoints

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]

COMMITS = 2_000
AUTHORS = 60
BATCH_ACTIONS = 3
"""So few in a revision that the replay is hundreds of them and takes seconds."""

FAULTS = ["push", "stream_app", "push", "valkey", "push"]
TOLD = ["python", "javascript", "curl"]
"""They are sent publications; the page shows boards at its own pace."""
BOARDS = 6
"""How many of them each is sent before the next fault."""
PATIENCE_S = 90.0
TURN_S = 0.01
"""How long the worker is let on between two looks while a fault waits."""


@dataclass
class Run:
    """What the replay left behind."""

    total: int
    report: dict[str, Any]
    faults: list[tuple[str, int]]
    """What was killed, and how many commits were judged by then."""
    last: dict[str, Any]
    """The standings when all was over."""
    watched: dict[str, Watched]
    returns: dict[str, int]
    ledger: dict[Position, dict[str, naive.Standing]]
    """The board at each of its positions, by its chain of deltas."""
    names: dict[str, set[str]]
    """Every name that a user ever had."""


def judged_commits(world: World) -> int:
    with world.ledger() as connection:
        row = connection.execute("SELECT count(*) FROM ledger WHERE type = 'commit'").fetchone()
    assert row
    return int(row[0])


class Strikes:
    """Kills one after the other under a replay, each after progress, and sees everybody come back.

    So that each meets a replay that is under way, however fast the machine is, the worker is paused
    when it has judged an equal share of the history before everybody is back, and goes by turns from
    then on until everybody was told enough for the next.
    """

    def __init__(self, world: World, watchers: list[Watcher], total: int) -> None:
        self._world, self._watchers = world, watchers
        self._share = total / (len(FAULTS) + 1)
        self._paused: int | None = None
        self.done: list[tuple[str, int]] = []
        """What was killed, and how many commits were judged by then."""

    def strike(self, name: str, replay: subprocess.Popen[bytes]) -> None:
        """Kill it, and wait until it is replaced and everybody follows again."""
        before = {watcher.name: watcher.returns() for watcher in self._watchers}
        assert replay.poll() is None, f"the replay was over before {name}, after {self.done}"
        pid = kill(self._world, name)
        self.done.append((name, judged_commits(self._world)))
        try:
            if name != "stream_app":
                self._until(lambda: is_replaced(self._world, name, pid), f"another {name}")
            replaced(self._world, name, pid)
            if name == "push":
                for watcher in self._watchers:
                    self._until(partial(has_returned, watcher, before[watcher.name]), watcher.name)
        finally:
            self._pause(False)

    def await_progress(self) -> None:
        """Wait until more is judged, and some of it shown to those who are told of each change."""
        judged = judged_commits(self._world)
        before = [(watcher, watcher.boards()) for watcher in self._watchers if watcher.name in TOLD]

        def moved() -> bool:
            if judged_commits(self._world) == judged:
                return False
            self._pause(False)
            time.sleep(TURN_S)
            if all(watcher.boards() >= boards + BOARDS for watcher, boards in before):
                return True
            self._pause(True)
            return False

        try:
            until(moved, patience_s=PATIENCE_S, what=f"progress after {self.done}")
        finally:
            self._pause(False)

    def _until(self, ask: Callable[[], bool], what: str) -> None:
        """Wait for this, and meanwhile keep the worker to its share."""

        def look() -> bool:
            if self._paused is None and judged_commits(self._world) >= len(self.done) * self._share:
                self._pause(True)
            return ask()

        until(look, patience_s=PATIENCE_S, what=what)

    def _pause(self, wanted: bool) -> None:
        if wanted:
            [self._paused] = Endpoints.read(self._world.data).processes["stream_app"]
            os.kill(self._paused, signal.SIGSTOP)
        elif self._paused is not None:
            os.kill(self._paused, signal.SIGCONT)
            self._paused = None


def has_returned(watcher: Watcher, before: int) -> bool:
    return watcher.returns() > before


def has_board(watcher: Watcher) -> bool:
    return watcher.boards() > 0


def stands_at(watcher: Watcher, at: Position) -> bool:
    return watcher.position() >= at


def is_replaced(world: World, name: str, pid: int) -> bool:
    path = world.data / "endpoints.json"
    return path.exists() and Endpoints.read(world.data).processes.get(name, []) not in ([pid], [])


def replayed(world: World, repository: Path, watchers: list[Watcher], total: int) -> Run:
    """Replay the history under faults, with these watching."""
    replay = subprocess.Popen(
        [*COMMAND, "replay", "git", str(repository), f"--data={world.data}", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    strikes = Strikes(world, watchers, total)
    try:
        for name in FAULTS:
            strikes.await_progress()
            strikes.strike(name, replay)
        output, errors = replay.communicate(timeout=150)
    finally:
        if replay.poll() is None:
            replay.kill()
            replay.wait()
    assert replay.returncode == 0, errors.decode()
    with world.ledger() as connection:
        row = connection.execute("SELECT max(epoch) FROM epochs").fetchone()
        assert row
        ledger = {(row[0], revision): held for revision, held in naive.folds(connection)}
    last = max(ledger)
    for watcher in watchers:
        until(partial(stands_at, watcher, last), patience_s=PATIENCE_S, what=f"{last} for {watcher.name}")
    return Run(
        total,
        json.loads(output),
        strikes.done,
        world.standings(limit=10),
        {watcher.name: watcher.watched() for watcher in watchers},
        {watcher.name: watcher.returns() for watcher in watchers},
        ledger,
        histories.borne(repository),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    directory = tmp_path_factory.mktemp("watching")
    repository = directory / "odd.git"
    histories.make(repository, commits=COMMITS, authors=AUTHORS, seed=20261121)
    total = sum(histories.counted(repository)[0].values())
    stack = Stack(directory / "data", "jvm")
    stack.data.mkdir()
    (stack.data / "trueboard.toml").write_text(f"batch_actions = {BATCH_ACTIONS}\n")
    with ExitStack() as held:
        held.callback(stack.end)
        world = stack.start()
        held.callback(world.close)
        portal = held.enter_context(start_blocking_portal())
        watchers: list[Watcher] = [
            held.enter_context(client(portal, in_python, "python", world)),
            held.enter_context(client(portal, in_javascript, "javascript", world)),
            held.enter_context(Curl(f"{world.endpoints.feed}/v1/boards/main/stream")),
        ]
        if executable() is not None:
            watchers.append(held.enter_context(page(world)))
        for watcher in watchers:
            until(partial(has_board, watcher), patience_s=PATIENCE_S, what=watcher.name)
        return replayed(world, repository, watchers, total)


@pytest.fixture(params=[*TOLD, "page"])
def name(request: pytest.FixtureRequest, run: Run) -> str:
    """Each of those who watched."""
    if request.param not in run.watched:
        pytest.skip("no Chromium")
    return str(request.param)


def test_every_fault_met_a_replay_that_was_under_way(run: Run):
    assert [name for name, _ in run.faults] == FAULTS
    assert all(judged < run.total for _, judged in run.faults), run.faults
    assert [judged for _, judged in run.faults] == sorted({judged for _, judged in run.faults})
    assert (run.report["commits"], run.report["refused"]) == (run.total, 0)


def test_every_one_was_cut_off_and_came_back(run: Run, name: str):
    assert run.returns[name] >= FAULTS.count("push")


def test_no_one_is_ever_taken_back(run: Run, name: str):
    positions = [at for at, _ in run.watched[name].shown]

    assert positions == sorted(set(positions))
    assert len(positions) > len(FAULTS)


def test_each_board_that_was_shown_is_the_ledgers_at_its_revision(run: Run, name: str):
    for at, board in run.watched[name].shown:
        ranked = naive.ranked(run.ledger[at])
        assert board.count == len(ranked), at
        assert list(board.lines) == [(rank, user, score) for rank, user, score, _ in ranked[:10]], at
        if board.instants:
            assert [as_us(instant) for instant in board.instants] == [us for *_, us in ranked[:10]], at


def test_names_are_those_that_their_bearers_had(run: Run, name: str):
    for at, board in run.watched[name].shown:
        for (_, user, _), username in zip(board.lines, board.names, strict=True):
            assert username in run.names[user], at


def test_whoever_shows_the_same_position_shows_the_same_board(run: Run):
    boards: dict[Position, dict[str, Any]] = {}
    for name, watched in run.watched.items():
        for at, board in watched.shown:
            boards.setdefault(at, {})[name] = (board.count, board.lines)

    differing = {at: by_name for at, by_name in boards.items() if len(set(by_name.values())) > 1}
    assert not differing
    assert sum(len(by_name) > 1 for by_name in boards.values()) > len(FAULTS)


@pytest.mark.parametrize("told", TOLD)
def test_each_publication_leads_on_from_where_its_reader_stood(run: Run, told: str):
    watched = run.watched[told]

    assert watched.broken == []
    assert watched.publications > len(FAULTS)
    assert watched.snapshots >= 1


def test_all_end_at_the_boards_last_revision(run: Run, name: str):
    at, board = run.watched[name].shown[-1]

    assert at == (run.last["epoch"], run.last["revision"]) == max(run.ledger)
    assert run.report["revision"] == run.last["revision"]
    entries = shown({"count": run.last["count"], "top": run.last["entries"]})
    assert (board.count, board.lines, board.names) == (entries.count, entries.lines, entries.names)
