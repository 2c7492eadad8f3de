from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Unavailable
from core.times import US, format_us
from tests.trueboard.repositories import Made
from trueboard import client, replay
from trueboard.client import Answer, Key, NoAnswer, Verdict
from trueboard.replay import Commit, Replay, Repository, commit, read

NOW_US = 1_800_000_000 * US


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made.at(tmp_path / "history.git")


def user(email: bytes) -> str:
    return hashlib.sha256(email).hexdigest()[:16]


# reading git


def test_a_commit_is_its_authors_action(made: Made) -> None:
    hash_ = made.commit(b"Ann Example", b"ann@example.org", 1_700_000_001)

    (one,) = Repository(made.path).commits()

    assert one.action(NOW_US) == {
        "action_id": hash_,
        "type": "commit",
        "user_id": user(b"ann@example.org"),
        "username": "Ann Example",
        "occurred_at": "2023-11-14T22:13:21.000000Z",
    }


def test_commits_come_parents_first_and_merges_are_left_out(made: Made) -> None:
    root = made.commit(at_s=5)
    left, right = made.commit(at_s=9, parents=[root]), made.commit(at_s=7, parents=[root])
    merge = made.commit(at_s=10, parents=[left, right])
    last = made.commit(at_s=1, parents=[merge])

    repository = Repository(made.path)
    hashes = [one.hash for one in repository.commits()]

    assert hashes[0] == root
    assert hashes[-1] == last
    assert sorted(hashes) == sorted([root, left, right, last])
    assert repository.count() == 4


@pytest.mark.parametrize(
    ("email", "same"),
    [
        (b"Ann@Example.ORG", b"ann@example.org"),
        (b"  ann@example.org\t", b"ann@example.org"),
        (b"", b""),
        ("ÄNN@example.org".encode(), "Änn@example.org".encode()),
        (b"\xff\xfe", b"\xff\xfe"),
    ],
)
def test_the_user_is_the_hash_of_the_stripped_lower_cased_email(email: bytes, same: bytes) -> None:
    expected = user(same if email != "ÄNN@example.org".encode() else "Änn@example.org".encode())

    assert commit(b"0" * 40, email, b"n", b"1").user_id == expected


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"Ann", "Ann"),
        ("Änn Ünicode 🦩".encode(), "Änn Ünicode 🦩"),
        (b"bad \xff byte", "bad \ufffd byte"),
        (b"con\x1b[31mtrol\x7f\x85"[:-1], "con[31mtrol"),
        (b"", None),
        (b"\x01\x02", None),
        (b"a" * 300, "a" * 255),
        ("ä".encode() * 200, "ä" * 127),
    ],
)
def test_a_name_is_cleaned_until_it_can_be_shown(name: bytes, shown: str | None) -> None:
    assert commit(b"0" * 40, b"e", name, b"1").username == shown


def test_odd_words_survive_git(made: Made) -> None:
    made.commit(b"bad \xff byte", b"A@B")
    made.commit(b"", b"")
    made.commit(b"na\x01me", b"c@d")
    made.commit("Grün".encode("latin-1"), b"e@f", encoding=b"ISO-8859-1")

    found = list(Repository(made.path).commits())

    assert [one.username for one in found] == ["bad \ufffd byte", None, "name", "Grün"]
    assert [one.user_id for one in found] == [user(email) for email in (b"a@b", b"", b"c@d", b"e@f")]


def test_a_mailmap_and_the_readers_configuration_change_nothing(made: Made, monkeypatch: Any) -> None:
    made.commit(b"Ann", b"ann@example.org")
    mailmap = made.path / "map"
    mailmap.write_text("Bob <bob@example.org> <ann@example.org>\n")
    for name, value in (
        ("mailmap.file", str(mailmap)),
        ("log.mailmap", "true"),
        ("log.showSignature", "true"),
        ("format.pretty", "fuller"),
        ("i18n.logOutputEncoding", "UTF-16"),
        ("color.ui", "always"),
    ):
        made.set(name, value)
    monkeypatch.setenv("GIT_DIR", "/nonexistent")

    (one,) = Repository(made.path).commits()

    assert (one.username, one.user_id) == ("Ann", user(b"ann@example.org"))


def test_of_a_commit_from_the_future_no_instant_is_sent(made: Made) -> None:
    made.commit(at_s=NOW_US // US + 1)
    made.commit(at_s=NOW_US // US)

    future, now = Repository(made.path).commits()

    assert "occurred_at" not in future.action(NOW_US)
    assert now.action(NOW_US)["occurred_at"] == format_us(NOW_US)


@pytest.mark.parametrize(("told", "sent"), [(b"", None), (b"0", "1970-01-01T00:00:00.000000Z")])
def test_a_commit_without_a_date_is_of_now(told: bytes, sent: str | None) -> None:
    assert commit(b"0" * 40, b"e", b"n", told).action(NOW_US).get("occurred_at") == sent


def test_a_date_before_the_first_year_is_the_first_instant() -> None:
    assert commit(b"0" * 40, b"e", b"n", b"-99999999999999").action(NOW_US)["occurred_at"] == (
        "0001-01-01T00:00:00.000000Z"
    )


def test_since_leaves_out_what_is_older(made: Made) -> None:
    made.commit(at_s=1_000_000_000)
    newer = made.commit(at_s=1_700_000_000)

    repository = Repository(made.path, "2020-01-01")

    assert [one.hash for one in repository.commits()] == [newer]
    assert repository.count() == 1


def test_what_is_no_repository_is_said_in_gits_words(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="not a git repository"):
        Repository(tmp_path).count()
    with pytest.raises(Unavailable, match="not a git repository"):
        list(Repository(tmp_path).commits())


def test_a_repository_without_commits_is_said_so(made: Made) -> None:
    with pytest.raises(Unavailable, match="no commit yet"):
        Repository(made.path).count()
    with pytest.raises(Unavailable, match="no commit yet"):
        list(Repository(made.path).commits())


@pytest.fixture
def beside_head(tmp_path: Path) -> Made:
    """A repository whose work tree has a file named as what is asked for."""
    made = Made.at(tmp_path / "work" / ".git")
    made.set("core.bare", "false")
    (tmp_path / "work" / "HEAD").write_text("a file\n")
    return made


@pytest.mark.parametrize("since", [None, "2020-01-01"])
def test_a_file_named_head_is_not_taken_for_the_branch(beside_head: Made, since: str | None) -> None:
    hashes = [beside_head.commit(), beside_head.commit()]

    repository = Repository(beside_head.path.parent, since)

    assert repository.count() == 2
    assert [one.hash for one in repository.commits()] == hashes


def test_without_commits_such_a_file_changes_nothing(beside_head: Made) -> None:
    repository = Repository(beside_head.path.parent)

    with pytest.raises(Unavailable, match="no commit yet"):
        repository.count()
    with pytest.raises(Unavailable, match="no commit yet"):
        list(repository.commits())


def test_without_git_it_says_so(made: Made, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(Unavailable, match="git does not run"):
        Repository(made.path).count()


WORDS = st.binary(max_size=12).map(lambda raw: raw.replace(b"\0", b""))


@given(rows=st.lists(st.tuples(WORDS, WORDS), max_size=8), data=st.data())
def test_commits_are_the_same_however_the_stream_is_cut(rows: list[tuple[bytes, bytes]], data: Any) -> None:
    fields = [(b"%040d" % n, email, name, b"%d" % n) for n, (email, name) in enumerate(rows)]
    stream = b"".join(part + b"\0" for row in fields for part in row)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    assert list(read(chunks)) == [commit(*row) for row in fields]


def test_a_stream_that_ends_inside_a_commit_is_not_taken_for_all() -> None:
    with pytest.raises(Unavailable):
        list(read([b"0" * 40 + b"\0e\0n\0"]))


# sending


class Door:
    """A door, its log and its ledger in memory. `refuse(path, body)` may answer instead, once a call."""

    def __init__(self) -> None:
        self.clock_us = NOW_US
        self.markers: dict[Key, tuple[str, str]] = {}
        self.ledger: dict[Key, Verdict] = {}
        self.names: dict[str, list[str]] = {}
        self.batches: list[int] = []
        self.faults: list[Callable[[list[dict[str, Any]]], Answer | None]] = []
        self.item_faults: Counter[str] = Counter()
        self.refused: dict[str, dict[str, Any]] = {}
        self.judging = True
        self.waiting: list[tuple[Key, str, str]] = []

    async def post(self, path: str, body: bytes, *, token: str) -> Answer:
        assert path == "/v1/actions/batch"
        actions = msgspec.json.decode(body)["actions"]
        await asyncio.sleep(0)
        if self.faults and (answer := self.faults.pop(0)(actions)) is not None:
            return answer
        self.batches.append(len(actions))
        return Answer(200, {"results": [self._take(action) for action in actions]})

    def _take(self, action: dict[str, Any]) -> dict[str, Any]:
        key = action["user_id"], action["action_id"]
        if self.item_faults[key[1]]:
            self.item_faults[key[1]] -= 1
            return {"status": 503, "error": {"code": "queue_unavailable", "detail": "later"}}
        if (error := self.refused.get(key[1])) is not None:
            return {"status": error["status"], "error": error}
        self.clock_us += 1
        received_at, print_ = format_us(self.clock_us), str(action.get("occurred_at"))
        known = self.markers.get(key)
        if known is not None and known[1] != print_:
            return {"status": 409, "error": {"code": "id_reused", "detail": "another"}}
        if known is None:
            self.markers[key] = received_at, print_
            self.waiting.append((key, received_at, action["type"]))
            self.names.setdefault(key[0], []).append(action.get("username", ""))
        else:
            received_at = known[0]
        return {"status": 202, "receipt": {"received_at": received_at, "replayed": known is not None}}

    def judge(self) -> None:
        for key, received_at, type_ in self.waiting:
            verdict = Verdict(
                type_, "accepted", None, client.parse_us(received_at), "e1", len(self.ledger) + 2
            )
            self.ledger.setdefault(key, verdict)
        self.waiting.clear()


class Ledger:
    source = "a test"

    def __init__(self, door: Door) -> None:
        self.door = door
        self.faults = 0

    async def of(self, wanted: Sequence[Key]) -> dict[Key, Verdict]:
        if self.faults:
            self.faults -= 1
            raise Unavailable("no Postgres")
        if self.door.judging:
            self.door.judge()
        return {key: self.door.ledger[key] for key in wanted if key in self.door.ledger}

    async def close(self) -> None: ...


class Token:
    def current(self) -> str:
        return "t"


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "pause_s", lambda attempt, answer: 0.001)


def history(count: int, authors: int = 5) -> list[Commit]:
    return [
        commit(b"%040x" % n, b"a%d" % (n % authors), b"name %d" % n, b"%d" % (1_600_000_000 + n))
        for n in range(count)
    ]


async def sent(door: Door, commits: Sequence[Commit], ledger: Ledger | None = None) -> dict[str, Any]:
    work = Replay(door, Token(), ledger or Ledger(door))  # type: ignore[arg-type]
    await work.run(iter(commits))
    return work.tally.body() | {"reasons": work.tally.reasons}


async def test_every_commit_is_sent_once_and_seen_judged(door: Door) -> None:
    tally = await sent(door, history(2_345))

    assert tally == {
        "commits": 2345,
        "authors": 5,
        "sent": 2345,
        "replayed": 0,
        "refused": 0,
        "epoch": "e1",
        "revision": 2346,
        "reasons": [],
    }
    assert len(door.ledger) == 2345
    assert max(door.batches) <= 500


async def test_a_second_replay_changes_nothing_and_says_so(door: Door) -> None:
    await sent(door, history(700))
    before = dict(door.ledger)

    tally = await sent(door, history(700))

    assert (tally["sent"], tally["replayed"], tally["refused"]) == (700, 700, 0)
    assert door.ledger == before


async def test_a_repeat_is_known_by_the_ledger_where_the_door_has_forgotten(door: Door) -> None:
    await sent(door, history(50))
    door.markers.clear()

    tally = await sent(door, history(60))

    assert (tally["sent"], tally["replayed"], len(door.ledger)) == (60, 50, 60)


async def test_the_names_of_an_author_arrive_in_order(door: Door) -> None:
    door.faults = [lambda _: Answer(503, None, 1.0), lambda _: Answer(429, None, 1.0)] * 3
    commits = history(3_000)

    await sent(door, commits)

    for user_id, names in door.names.items():
        assert names == [one.username for one in commits if one.user_id == user_id]


def no_answer(_: Any) -> Answer:
    raise NoAnswer("reset")


@pytest.mark.parametrize(
    "fault",
    [
        lambda _: Answer(503, {"code": "queue_unavailable", "detail": "x"}, 1.0),
        lambda _: Answer(429, None, 2.0),
        lambda _: Answer(500, None),
        no_answer,
    ],
    ids=["503", "429", "500", "reset"],
)
async def test_what_passes_is_sent_again(door: Door, fault: Any) -> None:
    door.faults = [fault] * 7

    tally = await sent(door, history(900))

    assert (tally["sent"], tally["refused"], len(door.ledger)) == (900, 0, 900)


async def test_an_answer_that_was_lost_on_its_way_counts_as_a_first_sending(door: Door) -> None:
    def taken_but_not_told(actions: list[dict[str, Any]]) -> Answer:
        for action in actions:
            door._take(action)
        raise NoAnswer("reset")

    door.faults = [taken_but_not_told]

    tally = await sent(door, history(10, authors=1))

    assert (tally["sent"], len(door.ledger)) == (10, 10)


async def test_only_the_actions_that_failed_are_sent_again(door: Door) -> None:
    door.item_faults.update({f"{n:040x}": 3 for n in (5, 6, 700)})

    tally = await sent(door, history(900))

    assert (tally["sent"], tally["refused"], len(door.ledger)) == (900, 0, 900)
    assert sum(door.batches) == 900 + 3 * 3


async def test_refusals_are_counted_and_the_first_reasons_kept(door: Door) -> None:
    for n in range(8):
        door.refused[f"{n:040x}"] = {"status": 422, "code": "unknown_type", "detail": "no such type"}

    tally = await sent(door, history(20))

    assert (tally["sent"], tally["refused"], len(tally["reasons"])) == (12, 8, 5)
    assert all("422 unknown_type: no such type" in reason for reason in tally["reasons"])


async def test_a_rejected_commit_is_refused(door: Door) -> None:
    (one,) = history(1)
    door.ledger[one.key] = Verdict("commit", "rejected", "erased", 0, "e1", 2)

    tally = await sent(door, [one])

    assert (tally["refused"], tally["reasons"]) == (1, [f"{one.hash[:12]}: rejected: erased"])


async def test_a_hash_that_is_the_id_of_something_else_is_refused(door: Door) -> None:
    (one,) = history(1)
    door.markers[one.key] = (format_us(NOW_US), "another")
    door.ledger[one.key] = Verdict("level_complete", "accepted", None, 0, "e1", 2)

    tally = await sent(door, [one])

    assert (tally["refused"], tally["replayed"]) == (1, 0)


async def test_a_commit_that_lay_in_the_future_when_it_was_sent_first_counts_once(door: Door) -> None:
    (one,) = history(1)
    future = Commit(one.hash, one.user_id, one.username, None)
    await sent(door, [future])

    tally = await sent(door, [one])

    assert (tally["sent"], tally["replayed"], tally["refused"], len(door.ledger)) == (1, 1, 0, 1)


async def test_a_ledger_that_is_away_is_waited_for(door: Door) -> None:
    ledger = Ledger(door)
    ledger.faults = 3

    tally = await sent(door, history(30), ledger)

    assert tally["sent"] == 30


async def test_a_commit_whose_record_is_lost_is_sent_again(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "SEND_AGAIN_S", 0.05)
    lost = history(3, authors=1)[1]
    to_lose = [lost.hash]
    take = door._take

    def losing(action: dict[str, Any]) -> dict[str, Any]:
        answer = take(action)
        if action["action_id"] in to_lose:
            to_lose.clear()
            door.waiting = [item for item in door.waiting if item[0] != lost.key]
            del door.markers[lost.key]
        return answer

    monkeypatch.setattr(door, "_take", losing)

    tally = await sent(door, history(3, authors=1))

    assert (tally["sent"], len(door.ledger), len(door.batches)) == (3, 3, 2)


async def test_it_gives_up_in_one_sentence_when_nothing_goes_forward(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "PATIENCE_S", 0.1)
    door.judging = False

    with pytest.raises(BaseExceptionGroup) as raised:
        await sent(door, history(3))

    cause = client.first_of(raised.value)
    assert isinstance(cause, Unavailable)
    assert "3 commits have no verdict" in str(cause)
    assert "run it again" in str(cause)


async def test_a_batch_the_door_refuses_as_a_whole_ends_it(door: Door) -> None:
    door.faults = [lambda _: Answer(401, {"code": "invalid_token", "detail": "no"})]

    with pytest.raises(BaseExceptionGroup) as raised:
        await sent(door, history(3))

    assert "401 invalid_token: no" in str(client.first_of(raised.value))
