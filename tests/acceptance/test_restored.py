"""What holds when Postgres is restored from an older backup, while everything else runs on.

Its data directory is put back to what it was, so that the server says nothing: identifier and timeline
are the same. Redis, Kafka and every reader are ahead of it. One stack with Apache Kafka lives through
the module; its tests build on one another, in their order.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from tests.acceptance import naive
from tests.acceptance.audits import caught_up, lines
from tests.acceptance.stacks import COMMAND, Stack, is_gone, run
from tests.acceptance.topics import CHANGED, JUDGED, PLAYER, Record, read
from tests.acceptance.world import World, as_us, now, until
from trueboard.endpoints import Endpoints

pytestmark = pytest.mark.kafka

BEFORE = {f"before-{n}": 10 * n for n in range(1, 8)}
"""Points of those who are in the backup already."""

AFTER = {f"after-{n}": 15 * n for n in range(1, 9)} | {"before-3": 500}
"""Points given after the backup."""

LATER = {"later-1": 35}
"""Points given when all have gone over."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:  # type: ignore[override]
    """A stack with Apache Kafka; shadows the session's."""
    with Stack(tmp_path_factory.mktemp("restored") / "data", "jvm").running() as stack:
        yield stack


@pytest.fixture
def world(stack: Stack) -> Iterator[World]:
    with stack.world() as world:
        yield world


class Watch:
    """Everything that anybody is shown, by HTTP and by WebSocket, in the order in which it comes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._over = threading.Event()
        self.pages: list[tuple[tuple[str, int], Any]] = []
        self.frames: list[tuple[tuple[str, int], Any]] = []
        self._threads = [threading.Thread(target=target) for target in (self._read, self._listen)]

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)

    def _read(self) -> None:
        reader = World(self._world.endpoints, self._world.data)
        while not self._over.is_set():
            response = reader.get("/v1/boards/main/standings", limit=20)
            if response.status_code == 200:
                body = response.json()
                self.pages.append(((body["epoch"], body["revision"]), (body["count"], body["entries"])))
            time.sleep(0.01)
        reader.close()

    def _listen(self) -> None:
        with connect(self._world.endpoints.feed.replace("http", "ws", 1) + "/ws/scores") as socket:
            while not self._over.is_set():
                try:
                    frame = json.loads(socket.recv(timeout=0.2))
                except TimeoutError:
                    continue
                self.frames.append(((frame["epoch"], frame["revision"]), frame["topScores"]))

    def never_went_back(self) -> None:
        """Positions only rise, and one position has one content, whoever shows it."""
        same: dict[tuple[str, int], Any] = {}
        for at, (_, entries) in self.pages:
            top = [{"userId": one["user_id"], "score": one["score"]} for one in entries[:10]]
            assert same.setdefault(at, top) == top
        for at, top in self.frames:
            assert same.setdefault(at, top) == top
        for shown in (self.pages, self.frames):
            positions = [at for at, _ in shown]
            assert positions == sorted(positions)
            assert positions

    def was_true(self, world: World) -> int:
        """Each page of the ledger's line is the ledger at its revision; how many positions there were."""
        pages = dict(self.pages)
        with world.ledger() as connection:
            line = set(connection.execute("SELECT epoch, revision FROM revisions").fetchall())
            for at in pages.keys() & line:
                ranked = naive.ranked(naive.folded_deltas(connection, until=at[1]))
                count, entries = pages[at]
                assert count == len(ranked)
                assert [
                    (one["rank"], one["user_id"], one["score"], as_us(one["reached_at"])) for one in entries
                ] == ranked[:20]
        return len(pages.keys() & line)


def give(world: World, points: dict[str, int], what: str) -> None:
    """Give each user these points, spread over hours so that no limit minds."""
    world.give(
        [
            {
                "action_id": f"{what}-{user}",
                "user_id": user,
                "type": "client_points",
                "points": count,
                "occurred_at": now(ahead_s=-60),
            }
            for user, count in points.items()
        ]
    )


def total(*parts: dict[str, int]) -> dict[str, int]:
    users = {user for part in parts for user in part}
    return {user: sum(part.get(user, 0) for part in parts) for user in users}


def scores(world: World) -> dict[str, int]:
    return {entry["user_id"]: entry["score"] for entry in world.standings(limit=100)["entries"]}


def position(world: World) -> tuple[str, int]:
    page = world.standings(limit=1)
    return page["epoch"], page["revision"]


def put_back(world: World, backup: Path) -> None:
    """Replace Postgres's data by the backup, with everything else running."""
    endpoints = Endpoints.read(world.data)
    [supervisor], [postgres] = endpoints.processes["supervisor"], endpoints.processes["postgres"]
    os.kill(supervisor, signal.SIGSTOP)
    try:
        os.kill(postgres, signal.SIGINT)
        until(lambda: is_gone(postgres), what="the end of Postgres")
        # The directory itself stays: root's supervisor holds it open.
        cluster = world.data / "postgres" / "data"
        for path in cluster.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        subprocess.run(["cp", "-a", f"{backup}/data/.", str(cluster)], check=True)
    finally:
        os.kill(supervisor, signal.SIGCONT)


def published(world: World) -> list[Record]:
    """The judged topic, once it has come to the ledger's end."""

    def there() -> list[Record]:
        with world.ledger() as connection:
            row = connection.execute(
                "SELECT epoch, max(revision) FROM revisions JOIN ledger USING (batch)"
                " GROUP BY epoch ORDER BY epoch DESC LIMIT 1"
            ).fetchone()
        records = read(world.endpoints.kafka, JUDGED)
        return records if any((r.value["epoch"], r.value["revision"]) == row for r in records) else []

    return until(there, what="the topic at the ledger's end")  # type: ignore[no-any-return]


def folded(records: list[Record]) -> dict[str, int]:
    """What an analyst counts: the line of epochs first, then each action's last record on it, by player."""
    continues = {r.value["epoch"]: tuple(r.value["continues"]) for r in records if "continues" in r.value}
    said = [r.value for r in records if "continues" not in r.value]
    epoch: str | None = max([*continues, *(one["epoch"] for one in said)])
    line: dict[str, float] = {}
    up_to = float("inf")
    while epoch is not None:
        line[epoch] = up_to
        epoch, up_to = continues.get(epoch, (None, 0))
    last: dict[tuple[str, str], Any] = {}
    for one in said:
        if one["revision"] <= line.get(one["epoch"], 0):
            key = one["player"], one["action_id"]
            if key not in last or last[key]["revision"] <= one["revision"]:
                last[key] = one
    points: dict[str, int] = {}
    for (player, _), one in last.items():
        if one["verdict"] == "accepted":
            points[player] = points.get(player, 0) + one["points"]
    return points


def counted_by_an_analyst(world: World) -> dict[str, int]:
    points = folded(published(world))
    names: dict[str, str] = {}
    for record in read(world.endpoints.kafka, PLAYER):
        if record.value is not None:
            names[record.value["player"]] = record.value["user_id"]
    return {names[player]: count for player, count in points.items()}


@pytest.fixture(scope="module")
def backup(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of Postgres's directory with `BEFORE` in it; the stack goes on with `AFTER`."""
    world = World(Endpoints.read(stack.data), stack.data)
    give(world, BEFORE, "b")
    until(lambda: scores(world) == BEFORE, what="the board before the backup")
    world.close()
    stack.stop()
    path = tmp_path_factory.mktemp("backup") / "postgres"
    subprocess.run(["cp", "-a", str(stack.data / "postgres"), str(path)], check=True)
    stack.start().close()
    return path


def test_all_go_over_to_the_restored_history_by_themselves(stack: Stack, backup: Path, world: World):
    world.again()
    world = World(Endpoints.read(stack.data), stack.data)
    with Watch(world) as watch:
        until(lambda: watch.pages, what="a page of what is in the backup")
        give(world, AFTER, "a")
        until(lambda: scores(world) == total(BEFORE, AFTER), what="the board after the backup")
        shown = until(lambda: watch.frames and watch.frames[-1][0], what="a frame")
        before = position(world)
        processes = Endpoints.read(world.data).processes

        put_back(world, backup)

        until(lambda: position(world)[0] > before[0], patience_s=60, what="another epoch")
        until(lambda: scores(world) == total(BEFORE, AFTER), patience_s=60, what="the board again")
        until(lambda: watch.frames[-1][0][0] > shown[0], what="a frame of the new epoch")
        until(lambda: watch.frames[-1][0] == position(world), what="the last frame")
        until(lambda: watch.pages[-1][0] == position(world), what="a page of the new epoch")

        give(world, LATER, "l")
        until(lambda: scores(world) == total(BEFORE, AFTER, LATER), what="what was given later")
        until(lambda: watch.pages[-1][0] == position(world), what="the last page")

    watch.never_went_back()
    # What the backup held, what it came to, and what was given later; there may be more in between.
    assert watch.was_true(world) > 2
    after = Endpoints.read(world.data).processes
    assert {name: after[name] for name in ("ingest", "stream_app", "push")} == {
        name: processes[name] for name in ("ingest", "stream_app", "push")
    }
    with world.ledger() as connection:
        epochs = connection.execute(
            "SELECT epoch, continues_epoch, continues_revision FROM epochs ORDER BY epoch"
        ).fetchall()
        begun = connection.execute(
            "SELECT epoch, revision FROM revisions WHERE cause = 'new_epoch'"
        ).fetchall()
    assert len(epochs) == 2
    assert epochs[1][1] == epochs[0][0] == before[0]
    assert begun == [(epochs[1][0], epochs[1][2] + 1)]
    world.close()


def test_analysts_fold_along_the_line_and_count_the_same(world: World):
    # The last revisions may be committed and not yet on the topic.
    until(lambda: counted_by_an_analyst(world) == total(BEFORE, AFTER, LATER), what="all of it on the topic")

    records = published(world)
    said = [record for record in records if "continues" in record.value]
    with world.ledger() as connection:
        epoch, from_epoch, from_revision = connection.execute(
            "SELECT epoch, continues_epoch, continues_revision FROM epochs ORDER BY epoch DESC LIMIT 1"
        ).fetchone() or ("", "", 0)
    assert {record.partition for record in said} == set(range(12))
    assert {record.raw for record in said} == {
        json.dumps(
            {"epoch": epoch, "revision": from_revision + 1, "continues": [from_epoch, from_revision]},
            separators=(",", ":"),
        ).encode()
    }
    # What was lost is on the topic still, and void.
    assert any(
        record.value["epoch"] == from_epoch and record.value["revision"] > from_revision for record in records
    )


def test_the_boards_chain_goes_on_along_the_line(world: World):
    until(
        lambda: read(world.endpoints.kafka, CHANGED)[-1].value["epoch"] == position(world)[0],
        what="the new epoch on the topic of boards",
    )
    with world.ledger() as connection:
        chain = {
            (epoch, revision): (previous, digest, count)
            for epoch, revision, previous, digest, count in connection.execute(
                "SELECT r.epoch, d.revision, d.previous, encode(r.digest, 'hex'), d.count"
                " FROM deltas d JOIN revisions r USING (revision)"
            )
        }
    told = {
        (one["epoch"], one["revision"]): (one["previous"], one["digest"], one["count"])
        for one in (record.value for record in read(world.endpoints.kafka, CHANGED))
    }

    assert chain.items() <= told.items()


def test_verify_finds_everything_equal_across_epochs(world: World):
    code, report = run(world.data, "verify", "--wait", "20")

    assert (code, report["ok"]) == (0, True), report
    with world.ledger() as connection:
        assert naive.digest_chain(connection)[-1] == (report["revision"], report["digest"])


def test_a_write_after_it_is_read_back_and_an_old_position_waits_for_nothing(world: World):
    old = "0" * 26 + "-999999"
    user = world.user()
    receipt = world.act(user)
    token = world.token(user)

    again = world.get(
        f"/v1/boards/main/players/{user}", token, at_least=f"{receipt['epoch']}-{receipt['revision']}"
    )

    assert again.json()["entry"]["score"] == 10
    begun_s = time.monotonic()
    assert world.get("/v1/boards/main/standings", limit=1, at_least=old).status_code == 200
    assert time.monotonic() - begun_s < 2


def test_an_operator_says_that_revisions_were_lost(world: World):
    before = position(world)
    had = scores(world)
    with Watch(world) as watch:
        until(lambda: watch.frames and watch.pages, what="frames and pages")
        code, report = run(world.data, "new-epoch")

        assert code == 0
        assert set(report) == {"epoch", "revision", "continues", "erased", "lost_decisions"}
        assert report["continues"][0] == before[0] < report["epoch"]
        assert report["revision"] == report["continues"][1] + 1
        until(lambda: position(world) == (report["epoch"], report["revision"]), what="the new epoch")
        until(lambda: watch.frames[-1][0] == (report["epoch"], report["revision"]), what="a frame of it")
        user = world.user()
        assert world.act(user)["epoch"] == report["epoch"]

    watch.never_went_back()
    until(lambda: scores(world) == {**had, user: 10}, what="everybody's score")
    code, report = run(world.data, "verify", "--wait", "20")
    assert (code, report["ok"]) == (0, True), report
    assert counted_by_an_analyst(world) == scores(world)


def test_the_auditor_counts_along_the_line_and_finds_no_difference(world: World):
    """Counted by a process that lived through the restore and the new epoch."""
    kinds = ("publication", "chain", "digest", "page", "frame", "channel", "copy")
    caught_up(world)
    # Something is said to it also where it began again after all of that was told.
    world.act(world.user(), "client_points", points=1)
    after = until(
        lambda: (now := caught_up(world)) and all(now[what] > 0 for what in kinds) and now,
        what="everything compared",
    )

    assert after["mismatches"] == 0, lines(world.data, "audit_mismatch")


def test_the_command_says_what_keeps_it_from_it(tmp_path: Path):
    done = subprocess.run(
        [*COMMAND, "new-epoch", f"--data={tmp_path}"], capture_output=True, timeout=60, check=False
    )

    assert done.returncode == 1
    assert done.stdout == b""
    assert b"nothing is ready" in done.stderr
    assert done.stderr.count(b"\n") == 1
