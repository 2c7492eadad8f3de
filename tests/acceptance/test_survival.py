"""What holds while processes are killed, copies flushed and everything is stopped and started again.

One stack with Apache Kafka lives through the module; its tests build on one another, in their order.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.acceptance import histories, naive
from tests.acceptance.stacks import COMMAND, STOP_S, Stack, kill, replaced, run
from tests.acceptance.topics import JUDGED, read
from tests.acceptance.world import World, as_us, now, until

pytestmark = pytest.mark.kafka

COMMITS = 8_000
AUTHORS = 60
CHECKS = ["ledger_sums", "deltas", "projection", "digest_chain", "progress", "verdicts"]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:  # type: ignore[override]
    """A stack with Apache Kafka; shadows the session's."""
    with Stack(tmp_path_factory.mktemp("survival") / "data", "jvm").running() as stack:
        yield stack


@pytest.fixture
def world(stack: Stack) -> Iterator[World]:
    with stack.world() as world:
        yield world


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("repository") / "odd.git"
    histories.make(path, commits=COMMITS, authors=AUTHORS, seed=20261121)
    return path


def judged_commits(world: World) -> int:
    with world.ledger() as connection:
        row = connection.execute("SELECT count(*) FROM ledger WHERE type = 'commit'").fetchone()
    assert row
    return int(row[0])


def authors_of(world: World, repository: Path) -> dict[str, dict[str, Any]]:
    commits, _ = histories.counted(repository)
    return {entry["user_id"]: entry for entry in world.everybody() if entry["user_id"] in commits}


def test_a_history_replayed_through_crashes_is_counted_to_the_commit(world: World, repository: Path):
    commits, names = histories.counted(repository)
    total = sum(commits.values())
    faults: list[tuple[int, str]] = []

    replay = subprocess.Popen(
        [*COMMAND, "replay", "git", str(repository), f"--data={world.data}", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        killed: dict[str, int] = {}
        for together in (("stream_app",), ("valkey", "stream_app"), ("stream_app",), ("valkey",)):
            for name in together:
                if name in killed:
                    replaced(world, name, killed[name])
            reached = judged_commits(world)
            while (judged := judged_commits(world)) <= reached and replay.poll() is None:
                time.sleep(0.002)
            if judged >= total:
                break
            killed |= {name: kill(world, name) for name in together}
            faults += [(judged_commits(world), name) for name in together]
        for name, pid in killed.items():
            replaced(world, name, pid)
        output, errors = replay.communicate(timeout=150)
    finally:
        if replay.poll() is None:
            replay.kill()
            replay.wait()

    assert replay.returncode == 0, errors.decode()
    report = json.loads(output)
    assert set(report) == {"commits", "authors", "sent", "replayed", "refused", "epoch", "revision"}
    assert (report["commits"], report["authors"], report["refused"]) == (total, len(commits), 0)
    assert judged_commits(world) == total
    in_flight = [name for judged, name in faults if judged < total]
    assert in_flight.count("stream_app") >= 2, faults
    assert in_flight.count("valkey") >= 1, faults
    until(lambda: world.standings()["revision"] >= report["revision"], what="the board at the end")
    shown = authors_of(world, repository)
    assert {user: entry["score"] for user, entry in shown.items()} == commits
    assert {user: entry["username"] for user, entry in shown.items()} == names


def test_the_same_history_again_changes_nothing(world: World, repository: Path):
    before = world.everybody(), world.standings()["revision"]

    code, report = run(world.data, "replay", "git", str(repository))

    assert code == 0
    assert (report["replayed"], report["refused"]) == (report["commits"], 0)
    assert report["revision"] == before[1]
    assert (world.everybody(), world.standings()["revision"]) == before


def test_what_was_repeated_on_the_topic_says_the_same(world: World):
    with world.ledger() as connection:
        stored = {
            (pid, action_id): verdict
            for pid, action_id, verdict in connection.execute(
                "SELECT p.pid::text, l.action_id, l.verdict FROM ledger l JOIN players p USING (player)"
            )
        }

    def all_there() -> list[Any]:
        records = read(world.endpoints.kafka, JUDGED)
        seen = {(record.value["player"], record.value["action_id"]) for record in records}
        return records if len(seen) >= len(stored) else []

    records = until(all_there, what="every verdict on the topic")
    contents: dict[str, tuple[bytes | None, bytes | None]] = {}
    for record in records:
        same = contents.setdefault(record.header("ce_id"), (record.key, record.raw))
        assert same == (record.key, record.raw)
    told = {
        (record.value["player"], record.value["action_id"]): record.value["verdict"] for record in records
    }
    assert told == stored
    assert len(contents) == len(stored)


def test_traffic_with_duplicates_and_cheaters_loses_and_invents_nothing(world: World):
    arguments = ["--seed=7", "--users=200", "--rate=500", "--actions=2500", "--duplicates=0.05"]
    process = subprocess.Popen(
        [*COMMAND, "simulate", *arguments, "--cheaters=0.1", f"--data={world.data}", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        before = world.standings()["revision"]
        until(lambda: world.standings()["revision"] > before + 3, what="traffic")
        pid = kill(world, "stream_app")
        assert process.poll() is None, "it was over before the fault"
        replaced(world, "stream_app", pid)
        output, errors = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()

    assert process.returncode == 0, (output, errors)
    report = json.loads(output)
    assert set(report) == {"seed", "sent", "answers", "verdicts", "duplicates", "lost", "invented"}
    assert (report["seed"], report["sent"], report["lost"], report["invented"]) == (7, 2500, 0, 0)
    assert report["duplicates"] > 50
    assert set(report["verdicts"]) == {"accepted", "rejected", "held"}
    assert report["verdicts"]["accepted"] > 500
    assert report["verdicts"]["held"] + report["verdicts"]["rejected"] > 0


def test_verify_finds_everything_equal(world: World):
    code, report = run(world.data, "verify", "--wait", "20")

    assert (code, report["ok"]) == (0, True), report
    assert [check["name"] for check in report["checks"]] == CHECKS
    for check in report["checks"]:
        assert set(check) == {"name", "ok", "compared", "differences", "first"}
        assert (check["ok"], check["differences"]) == (True, 0)
        assert check["compared"] > 0
    with world.ledger() as connection:
        assert naive.digest_chain(connection)[-1] == (report["revision"], report["digest"])


def test_a_flushed_copy_is_never_noticed_by_a_reader(world: World):
    answers: list[dict[str, Any]] = []
    failures: list[str] = []
    over = threading.Event()

    def read_on() -> None:
        reader = World(world.endpoints, world.data)
        while not over.is_set():
            response = reader.get("/v1/boards/main/standings", limit=20)
            if response.status_code == 200:
                answers.append(response.json())
            else:
                failures.append(f"{response.status_code} {response.text}")
            time.sleep(0.002)
        reader.close()

    def write_on() -> None:
        writer = World(world.endpoints, world.data)
        token = writer.trusted()
        users = [writer.user() for _ in range(5)]
        n = 0
        while not over.is_set():
            action = {
                "action_id": f"flush-{n}",
                "user_id": users[n % 5],
                "type": "client_points",
                "points": 40 + n % 9,
            }
            assert writer.send("/v1/actions", action, token).status_code == 202
            n += 1
            time.sleep(0.02)
        writer.close()

    threads = [threading.Thread(target=target) for target in (read_on, write_on)]
    for thread in threads:
        thread.start()
    try:
        with redis.Redis.from_url(world.endpoints.redis) as client:
            for _ in range(6):
                time.sleep(0.5)
                client.set("tb:limit:witness", "here")
                client.flushall()
                assert client.get("tb:limit:witness") is None
            time.sleep(1)
            rebuilt = client.zcard("tb:{main:all-time}:z")
    finally:
        over.set()
        for thread in threads:
            thread.join(20)

    assert not failures, (len(failures), failures[0])
    assert rebuilt == answers[-1]["count"]
    positions = [(answer["epoch"], answer["revision"]) for answer in answers]
    assert positions == sorted(positions)
    assert len(set(positions)) > 20
    with world.ledger() as connection:
        for answer in {answer["revision"]: answer for answer in answers}.values():
            ranked = naive.ranked(naive.folded_deltas(connection, until=answer["revision"]))
            assert [
                (entry["rank"], entry["user_id"], entry["score"], as_us(entry["reached_at"]))
                for entry in answer["entries"]
            ] == ranked[:20]
            assert answer["count"] == len(ranked)
        assert connection.execute("SELECT max(revision) FROM deltas").fetchone() >= (positions[-1][1],)
    same: dict[int, Any] = {}
    for answer in answers:
        assert same.setdefault(answer["revision"], answer["entries"]) == answer["entries"]


def test_a_second_one_on_the_same_data_says_so_in_a_sentence(world: World):
    second = subprocess.run(
        [*COMMAND, "up", f"--data={world.data}", "--http-port=0", "--feed-port=0"],
        capture_output=True,
        timeout=30,
        check=False,
    )

    told = (second.stdout + second.stderr).decode().strip()
    assert second.returncode != 0
    assert len(told.splitlines()) == 1
    assert "in use" in told
    assert world.standings()["revision"] > 0


def test_stopped_and_started_it_is_the_same(stack: Stack, world: World, repository: Path):
    before = world.standings(limit=1000)

    code, took_s = stack.stop()
    endpoints_left = (stack.data / "endpoints.json").exists()
    again = stack.start()

    try:
        assert code == 0
        assert took_s < STOP_S
        assert not endpoints_left
        # A cursor may say when it was made.
        assert again.standings(limit=1000) | {"next": before["next"]} == before
        commits, _ = histories.counted(repository)
        authors = authors_of(again, repository)
        assert {user: entry["score"] for user, entry in authors.items()} == commits
        receipt = again.act(again.user())
        assert receipt["judged_revision"] > before["revision"]
        assert receipt["epoch"] == before["epoch"]
        code, report = run(stack.data, "verify", "--wait", "20")
        assert (code, report["ok"]) == (0, True), report
    finally:
        again.close()


# With the in-memory broker, and a catalogue of its own -----------------------------------------

CATALOGUE = """
version = "tight-1"
[types.level_complete]
points = 10
cooldown_s = 3600
[types.client_points]
min = 1
max = 1000
min_gap_ms = 60000
[types.commit]
points = 1
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with the in-memory broker; `tight` talks to it."""
    directory = tmp_path_factory.mktemp("small")
    catalogue = directory / "catalogue.toml"
    catalogue.write_text(CATALOGUE)
    with Stack(directory / "data", "memory", [f"--catalogue={catalogue}"]).running() as small:
        yield small


@pytest.fixture
def tight(small: Stack) -> Iterator[World]:
    with small.world() as world:
        yield world


def submit(world: World, name: str, user: str, points: int = 5) -> Any:
    token = world.token(user)
    if name == "S0":
        body = {"user_id": user, "score_delta": points, "authorization_token": token}
        return world.send("/api/v0/scores/update", body)
    if name == "S2":
        return world.send(
            "/api/v1/scores/update", {"userId": user, "scoreIncrement": points, "authToken": token}
        )
    if name == "S3":
        return world.send("/api/scores/update", {"user_id": user, "score_delta": points, "auth_token": token})
    return world.send("/api/scores/update", {"actionId": "level_complete", "timestamp": now()}, token)


@pytest.mark.parametrize(
    ("name", "code", "shape"),
    [
        ("S0", "too_fast", {"status": "failure"}),
        ("S2", "too_fast", {"success": False}),
        ("S3", "too_fast", None),
        ("S4", "cooldown", {"success": False}),
    ],
)
def test_a_catalogue_of_ones_own_rejects_by_its_own_rules(tight: World, name: str, code: str, shape: Any):
    user = tight.user()

    first = submit(tight, name, user)
    second = submit(tight, name, user)

    assert first.status_code == 200
    assert second.status_code == 422
    body = second.json()
    assert body["code"] == code
    if shape is None:
        assert (body["type"], body["status"]) == (f"/problems/{code}", 422)
    else:
        assert body == {**shape, "code": code, "message": body["message"]}
    receipt = tight.judged(second.headers["trueboard-action"], user)
    assert (receipt["status"], receipt["reason"]["rule_version"]) == ("rejected", "tight-1")
    assert tight.score(user) == (10 if name == "S4" else 5)


def test_too_late_for_an_answer_is_202_and_counts_all_the_same(tight: World):
    users = {name: tight.user() for name in ("S0", "S2", "S3", "S4")}
    [pid] = tight.endpoints.processes["stream_app"]
    waiter = tight.user()

    os.kill(pid, signal.SIGSTOP)
    try:
        answers: dict[str, Any] = {}
        took_s: dict[str, float] = {}

        def ask(name: str) -> None:
            own = World(tight.endpoints, tight.data)
            begun_s = time.monotonic()
            answers[name] = submit(own, name, users[name])
            took_s[name] = time.monotonic() - begun_s
            own.close()

        threads = [threading.Thread(target=ask, args=(name,)) for name in users]
        for thread in threads:
            thread.start()
        begun_s = time.monotonic()
        waited = tight.send(
            "/v1/actions", {"action_id": "w", "type": "commit"}, tight.token(waiter), Prefer="wait=1"
        )
        waited_s = time.monotonic() - begun_s
        for thread in threads:
            thread.join()
    finally:
        os.kill(pid, signal.SIGCONT)

    assert {name: (answer.status_code, answer.json()) for name, answer in answers.items()} == {
        "S0": (202, {"status": "pending"}),
        "S2": (202, {"success": True, "message": "Score update accepted."}),
        "S3": (202, {}),
        "S4": (202, {"success": True}),
    }
    assert all(1.5 < seconds < 4 for seconds in took_s.values()), took_s
    assert waited.status_code == 202
    assert waited.json()["status"] == "submitted"
    assert 0.8 < waited_s < 2
    for name, user in users.items():
        assert tight.judged(answers[name].headers["trueboard-action"], user)["status"] == "accepted"
        assert tight.score(user) == (10 if name == "S4" else 5)


def test_a_page_of_long_ago_has_expired(tight: World):
    token = tight.trusted()
    old = tight.standings(limit=1)["next"]
    assert old is not None
    for n in range(41):
        actions = [
            {"action_id": f"c-{n}-{m}", "user_id": f"crowd-{n}-{m}", "type": "commit"} for m in range(500)
        ]
        response = tight.send("/v1/actions/batch", {"actions": actions}, token)
        assert {result["status"] for result in response.json()["results"]} == {202}
        if n == 0:
            tight.judged("c-0-499", "crowd-0-499")
            assert len(tight.standings(limit=1, after=old)["entries"]) == 1
    until(lambda: tight.standings()["count"] > 20_500, patience_s=60, what="20,500 changes")

    response = tight.get("/v1/boards/main/standings", limit=1, after=old)

    assert response.status_code == 410, response.text
    assert response.json()["code"] == "page_expired"
    # The board itself, of so many, is read on in pages.
    fresh = tight.standings(limit=1000)
    assert tight.standings(limit=1000, after=fresh["next"])["entries"][0]["rank"] == 1001


def test_the_ledger_outlives_a_broker_that_forgets(small: Stack, tight: World):
    user = tight.user()
    action = {"action_id": "kept", "type": "level_complete"}
    tight.send("/v1/actions", action, tight.token(user))
    first = tight.judged("kept", user)
    until(lambda: tight.standings()["revision"] >= first["judged_revision"], what="the board with it")
    before = tight.standings(limit=1000)

    code, took_s = small.stop()
    again = small.start()

    try:
        assert code == 0
        assert took_s < STOP_S
        # A cursor may say when it was made.
        assert again.standings(limit=1000) | {"next": before["next"]} == before
        same = again.send("/v1/actions", action, again.token(user), Prefer="wait=10")
        assert same.json()["replayed"] is True
        assert same.json()["received_at"] == first["received_at"]
        other = again.user()
        receipt = again.act(other)
        assert receipt["judged_revision"] > before["revision"]
        assert (again.score(user), again.score(other)) == (10, 10)
        with again.ledger() as connection:
            logs = connection.execute("SELECT DISTINCT topic_id FROM logs").fetchall()
            progress = connection.execute("SELECT count(DISTINCT log) FROM progress").fetchone()
        assert len(logs) == 2
        assert progress
        # Judged by the catalogue that was given at the first start.
        again_too_soon = submit(again, "S4", other)
        assert (again_too_soon.status_code, again_too_soon.json()["code"]) == (422, "cooldown")
        code, report = run(small.data, "verify", "--wait", "20")
        assert (code, report["ok"]) == (0, True), report
    finally:
        again.close()
