from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import words
from core.catalogue import read, shipped
from service import keys
from service.settings import SettingsError
from tests.trueboard.test_client import endpoints, serving
from trueboard import simulate
from trueboard.client import Answer, InLedger, Key, NoAnswer, Verdict
from trueboard.simulation import planning, sending
from trueboard.simulation.account import Account
from trueboard.simulation.planning import Action, Traffic, plan
from trueboard.simulation.sending import Run, Sender, name_of

TRAFFIC = Traffic(
    seed=7,
    users=200,
    rate_per_s=100.0,
    duration_s=30.0,
    actions=None,
    duplicates=0.05,
    cheaters=0.02,
    late=0.05,
)

TRAFFICS = st.builds(
    Traffic,
    seed=st.integers(0, 2**32),
    users=st.integers(1, 500),
    rate_per_s=st.floats(1, 1e5),
    duration_s=st.none() | st.floats(0.1, 3.0),
    actions=st.integers(1, 300),
    duplicates=st.floats(0, 1),
    cheaters=st.floats(0, 1),
    late=st.floats(0, 1),
)


# the plan


def test_a_seed_is_a_plan() -> None:
    assert list(plan(TRAFFIC)) == list(plan(TRAFFIC))
    assert list(plan(TRAFFIC)) != list(plan(replace(TRAFFIC, seed=8)))


@given(TRAFFICS)
def test_every_plan_is_in_order_and_ends(traffic: Traffic) -> None:
    planned = list(plan(traffic))

    assert [each.due_s for each in planned] == sorted(each.due_s for each in planned)
    first = [each.action.number for each in planned if each.kind == "first"]
    assert first == list(range(len(first)))
    assert traffic.actions is not None
    assert len(first) <= traffic.actions


@given(TRAFFICS)
def test_nothing_is_sent_again_before_it_was_sent(traffic: Traffic) -> None:
    seen: dict[int, Action] = {}
    for each in plan(traffic):
        if each.kind == "first":
            seen[each.action.number] = each.action
        assert seen[each.action.number] == each.action


@given(TRAFFICS)
def test_more_duplicates_change_nothing_else(traffic: Traffic) -> None:
    some = [each for each in plan(replace(traffic, duplicates=0.0)) if each.kind == "first"]
    all_ = [each for each in plan(replace(traffic, duplicates=1.0)) if each.kind == "first"]

    assert some == all_


def test_shares_are_about_as_asked() -> None:
    planned = list(islice(plan(replace(TRAFFIC, duration_s=None, actions=20_000)), 30_000))
    first = [each.action for each in planned if each.kind == "first"]
    again = sum(each.kind == "again" for each in planned)
    late = sum((action.late_us or 0) >= 60_000_000 for action in first)

    assert len(first) == 20_000
    assert 0.04 < again / len(first) < 0.06
    assert 0.03 < late / len(first) < 0.07
    assert {action.type for action in first} == {"level_complete", "client_points"}


def test_few_users_do_much() -> None:
    done = Counter(each.action.user for each in plan(TRAFFIC) if each.kind == "first")
    busiest = sum(count for _, count in done.most_common(20))

    assert busiest > 0.25 * done.total()
    assert len(done) > 100


def test_honest_users_stay_below_the_limits_of_the_shipped_catalogue() -> None:
    catalogue = read(shipped())
    soft = catalogue.types[planning.LEVEL].limits[0].soft
    assert soft is not None
    cheaters = planning.cheating_users(TRAFFIC)
    levels: defaultdict[int, list[float]] = defaultdict(list)
    points: Counter[int] = Counter()
    for each in plan(TRAFFIC):
        action = each.action
        if each.kind == "first" and action.user not in cheaters:
            points[action.user] += catalogue.worth(action.type, action.points)
            if action.type == planning.LEVEL:
                levels[action.user].append(each.due_s)

    busiest = max(
        sum(at - 60 < other <= at for other in instants) for instants in levels.values() for at in instants
    )
    assert 5 < busiest <= soft
    assert max(points.values()) <= (catalogue.points_limits[0].soft or 0)


def test_cheaters_go_beyond_limits_and_bounds() -> None:
    cheaters = planning.cheating_users(TRAFFIC)
    type_ = read(shipped()).types[planning.POINTS]
    found = [each for each in plan(replace(TRAFFIC, duration_s=120.0)) if each.action.user in cheaters]
    second = Counter((each.action.user, each.due_s) for each in found if each.action.type == planning.LEVEL)
    assert type_.highest is not None

    assert max(second.values()) >= 20
    assert any((each.action.points or 0) > type_.highest for each in found)
    assert any(each.kind == "altered" for each in found)


def test_the_tokens_of_users_own_are_asked_for_little_enough() -> None:
    own = [each for each in plan(TRAFFIC) if each.action.own]

    assert 0 < len(own) < 1.6 * planning.OWN_RATE_PER_S * (TRAFFIC.duration_s or 0)
    assert {each.action.user for each in own} <= set(sending.own_users(TRAFFIC))


# ids and bodies

RUN = Run(7, "r1", 1_800_000_000_000_000)


@given(TRAFFICS)
def test_a_body_is_the_same_each_time_but_for_an_altered_one(traffic: Traffic) -> None:
    bodies: dict[int, Any] = {}
    for each in plan(traffic):
        body = RUN.body(each)
        first = bodies.setdefault(each.action.number, body)
        assert (body == first) == (each.kind != "altered")
        assert words.is_action_id(body["action_id"])
        assert RUN.number(body["action_id"]) == each.action.number
        assert ("user_id" in body) == (not each.action.own)


@given(st.integers(0, 10**9))
def test_the_ids_of_a_run_lie_between_its_two(number: int) -> None:
    after, before = RUN.between

    assert after.encode() < RUN.key(number, 1)[1].encode() < before.encode()
    assert not after < Run(7, "r2", 0).key(number, 1)[1] < before
    assert not after < Run(70, "r1", 0).key(number, 1)[1] < before


@pytest.mark.parametrize("other", ["sim.7.r1.", "sim.7.r1.x", "sim.7.r2.5", "sim.7.r1.-1", "sim.7.r1.٣"])
def test_what_is_no_action_of_the_run_has_no_number(other: str) -> None:
    assert RUN.number(other) == -1


@given(st.integers(0, 10**6))
def test_everybody_has_a_name(user: int) -> None:
    assert words.is_username(name_of(user))
    assert words.is_user_id(RUN.user_id(user))


# the account


def action(number: int, user: int = 1) -> Action:
    return Action(number, user, "level_complete", None, 0, None)


def account_of(**answers: list[int | None]) -> Account:
    """An account of actions 0, 1 … that each got these answers."""
    made = Account(7)
    for number, statuses in enumerate(answers.values()):
        made.sending(action(number), again=False)
        for status in statuses:
            made.answered(action(number), status)
    return made


@pytest.mark.parametrize(
    ("answers", "judged", "lost", "invented"),
    [
        ([202], True, 0, 0),
        ([202], False, 1, 0),
        ([200], False, 1, 0),
        ([400], False, 0, 0),
        ([400], True, 0, 1),
        ([429], True, 0, 1),
        ([], True, 0, 1),
        ([503], False, 0, 0),
        ([503], True, 0, 0),
        ([None], False, 0, 0),
        ([None], True, 0, 0),
        ([503, 202], False, 1, 0),
        ([202, 409], True, 0, 0),
        ([409, 202], False, 1, 0),
        ([None, 400], True, 0, 0),
    ],
)
def test_what_is_lost_and_what_is_invented(
    answers: list[int | None], judged: bool, lost: int, invented: int
) -> None:
    account = account_of(only=answers)
    if judged:
        account.judged(0, 1, "accepted")

    body = account.body()

    assert (body["lost"], body["invented"]) == (lost, invented)


@pytest.mark.parametrize(("number", "user"), [(1, 1), (-1, 1), (0, 2), (0, -1), (5, -1)])
def test_a_verdict_on_what_was_never_sent_is_invented(number: int, user: int) -> None:
    account = account_of(only=[202])
    account.judged(0, 1, "held")

    account.judged(number, user, "accepted")

    assert (account.invented, account.verdicts) == (1, {"held": 1})


def test_a_second_verdict_on_one_action_is_invented() -> None:
    account = account_of(only=[202])
    account.judged(0, 1, "accepted")
    account.judged(0, 1, "accepted")

    assert (account.invented, account.verdicts.total()) == (1, 1)


def test_looking_again_begins_anew() -> None:
    account = account_of(a=[202], b=[400])
    account.judged(0, 1, "accepted")
    account.judged(1, 1, "accepted")
    account.look_again()

    assert (account.invented, account.confirmed_waiting(), account.verdicts.total()) == (0, 1, 0)


def test_the_account_is_of_the_interfaces_shape() -> None:
    account = account_of(a=[202], b=[503, 200], c=[400])
    account.sending(action(0), again=True)
    account.answered(action(0), 202)
    account.judged(0, 1, "accepted")
    account.judged(1, 1, "held")

    assert account.body() == {
        "seed": 7,
        "sent": 3,
        "answers": {"200": 1, "202": 2, "400": 1, "503": 1},
        "verdicts": {"accepted": 1, "rejected": 0, "held": 1},
        "duplicates": 1,
        "lost": 0,
        "invented": 0,
    }


# sending, and looking up


class Door:
    """Answers by what `answer` says of an action's body and how often that was asked."""

    def __init__(self, answer: Any = lambda body, times: 202) -> None:
        self.answer = answer
        self.bodies: defaultdict[str, list[bytes]] = defaultdict(list)
        self.ledger: dict[Key, str] = {}
        self.under_way = self.most_under_way = 0

    async def post(self, path: str, body: bytes, *, token: str, headers: Any = None) -> Answer:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0.001)
        self.under_way -= 1
        if path == "/v1/actions":
            status = self._take(msgspec.json.decode(body), token)
            if status is None:
                raise NoAnswer("reset")
            return Answer(status, {})
        actions = msgspec.json.decode(body)["actions"]
        statuses = [self._take(each, token) for each in actions]
        if None in statuses:
            raise NoAnswer("reset")
        return Answer(200, {"results": [{"status": status} for status in statuses]})

    def _take(self, body: dict[str, Any], token: str) -> int | None:
        bodies = self.bodies[body["action_id"]]
        bodies.append(msgspec.json.encode(body))
        status: int | None = self.answer(body, len(bodies))
        if status in (200, 202, None):
            self.ledger.setdefault((body.get("user_id", token), body["action_id"]), "accepted")
        return status


class Token:
    def __init__(self, user: str) -> None:
        self._user = user

    def current(self) -> str:
        return self._user


QUICK = replace(TRAFFIC, duration_s=None, actions=600, rate_per_s=1e6)


async def sent(door: Door, traffic: Traffic = QUICK, *, batch: int = 20) -> tuple[Account, Sender]:
    account = Account(traffic.seed)
    own = {user: Token(RUN.user_id(user)) for user in sending.own_users(traffic)}
    sender = Sender(door, Token("trusted"), own, RUN, account, batch)  # type: ignore[arg-type]
    await sender.send(plan(traffic), 8)
    return account, sender


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "pause_s", lambda attempt, answer: 0.001)
    monkeypatch.setattr(simulate, "SETTLE_S", 0.01)


@pytest.mark.parametrize("batch", [1, 20])
async def test_everything_planned_is_sent(batch: int) -> None:
    door = Door()
    account, _ = await sent(door, batch=batch)

    assert account.sent == len(door.bodies) == 600
    assert account.answers.total() == sum(map(len, door.bodies.values())) == 600 + account.duplicates
    assert 1 < door.most_under_way <= 8


@pytest.mark.parametrize("status", [503, 429, 500, None])
async def test_what_passes_is_sent_again_with_the_same_body(status: int | None) -> None:
    door = Door(lambda body, times: status if times == 1 else 202)

    account, _ = await sent(door, replace(QUICK, cheaters=0.0))

    assert account.confirmed_waiting() == 600
    assert all(len(set(bodies)) == 1 and len(bodies) > 1 for bodies in door.bodies.values())


async def test_a_refusal_is_not_sent_again() -> None:
    door = Door(lambda body, times: 422)

    account, _ = await sent(door, replace(QUICK, duplicates=0.0, cheaters=0.0))

    assert account.answers == {422: 600}


async def test_stopping_ends_the_sending_and_keeps_what_was_sent() -> None:
    door = Door()
    account = Account(7)
    traffic = replace(TRAFFIC, own_users=0)
    sender = Sender(door, Token("trusted"), {}, RUN, account, 10)  # type: ignore[arg-type]
    task = asyncio.create_task(sender.send(plan(traffic), 4))
    await asyncio.sleep(0.3)
    sender.stopping.set()
    await asyncio.wait_for(task, 2)

    assert 0 < account.sent == len(door.bodies) < 1000


class NoToken(Token):
    def current(self) -> str:
        raise SettingsError("there are no keys")


@pytest.mark.parametrize("batch", [1, 20])
async def test_a_worker_that_fails_ends_the_run(batch: int) -> None:
    own = {user: NoToken("x") for user in sending.own_users(QUICK)}
    sender = Sender(Door(), NoToken("trusted"), own, RUN, Account(7), batch)  # type: ignore[arg-type]

    with pytest.raises(SettingsError, match="no keys"):
        await asyncio.wait_for(sender.send(plan(QUICK), 4), 10)


async def test_a_plan_that_fails_ends_the_workers() -> None:
    def broken() -> Any:
        yield from islice(plan(QUICK), 50)
        raise ValueError("no more")

    sender = Sender(Door(), Token("trusted"), {}, RUN, Account(7), 20)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="no more"):
        await asyncio.wait_for(sender.send((each for each in broken() if not each.action.own), 4), 10)


async def test_a_door_that_takes_no_token_is_exit_code_2(tmp_path: Path) -> None:
    keys.ensure(tmp_path / "keys")
    async with serving(lambda *_: (401, {}, b"")) as url:
        endpoints(url).write(tmp_path)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "trueboard", "simulate", "--json", "--actions=40", "--rate=10000"),
            *("--wait=1", f"--data={tmp_path}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            output, errors = await asyncio.wait_for(process.communicate(), 60)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    assert (process.returncode, output, errors.count(b"\n")) == (2, b"", 1)
    assert b"takes no token" in errors


class Ledger(InLedger):
    """The door's ledger, which gives what `shown` lets it."""

    def __init__(self, door: Door, shown: Any = lambda looks, key: True) -> None:
        self.door, self.shown, self.looks = door, shown, 0

    async def between(self, after: str, before: str) -> Any:
        self.looks += 1
        for (user_id, action_id), verdict in self.door.ledger.items():
            if self.shown(self.looks, action_id) and after < action_id < before:
                yield user_id, action_id, verdict


async def test_verdicts_are_waited_for() -> None:
    door = Door()
    account, _ = await sent(door)
    ledger = Ledger(door, lambda looks, key: looks > 3 or hash(key) % 2)

    await simulate._account_for(account, RUN, ledger, 5.0)

    assert (account.body()["lost"], account.invented) == (0, 0)
    assert ledger.looks == 5


async def test_what_never_comes_is_lost() -> None:
    door = Door()
    account, _ = await sent(door)
    gone = list(door.ledger)[:3]
    for key in gone:
        del door.ledger[key]

    await simulate._account_for(account, RUN, Ledger(door), 0.1)

    assert (account.body()["lost"], account.invented) == (3, 0)


async def test_what_was_only_refused_and_counts_all_the_same_is_invented() -> None:
    door = Door(lambda body, times: 400 if body["action_id"].endswith("7") else 202)
    account, _ = await sent(door)
    door.ledger[RUN.key(17, account.user(17))] = "accepted"
    door.ledger[(RUN.user_id(1), f"{RUN.prefix}100000")] = "accepted"
    door.ledger[(RUN.user_id(10**6), f"{RUN.prefix}18")] = "accepted"

    await simulate._account_for(account, RUN, Ledger(door), 0.1)

    assert (account.body()["lost"], account.invented) == (0, 3)


class Receipts:
    source = "a test"

    def __init__(self, door: Door) -> None:
        self.door = door

    async def of(self, wanted: list[Key]) -> dict[Key, Verdict]:
        return {
            key: Verdict("x", self.door.ledger[key], None, 0, "e", 1)
            for key in wanted
            if key in self.door.ledger
        }


async def test_without_the_ledger_receipts_give_the_same_account() -> None:
    door = Door(lambda body, times: 400 if body["action_id"].endswith("7") else 202)
    account, _ = await sent(door)
    door.ledger[RUN.key(17, account.user(17))] = "accepted"
    del door.ledger[RUN.key(18, account.user(18))]

    await simulate._account_for(account, RUN, Receipts(door), 0.1)  # type: ignore[arg-type]

    assert (account.body()["lost"], account.invented) == (1, 1)
    assert account.verdicts.total() == len(door.ledger) - 1
