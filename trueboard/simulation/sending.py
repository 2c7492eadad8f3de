"""Sending what is planned: at its instant, in batches or one by one, until it is answered.

What finds no answer, or is asked to come back, is sent again with the same id and the same body. No more
is under way than there are workers; where the door is slow the plan waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

from core import scopes
from core.times import format_us
from trueboard.client import Answer, Client, Key, NoAnswer, Tokens, first_of, pause_s
from trueboard.simulation.account import Account
from trueboard.simulation.planning import Action, Sending, Traffic

GIVE_UP_S: Final = 60.0
"""How long one sending is tried."""

GATHER_S: Final = 0.02
"""How long a batch waits to become full."""

_MOST_LATENCIES = 200_000
_SYLLABLES = (
    "an",
    "be",
    "cai",
    "do",
    "el",
    "fu",
    "gra",
    "hi",
    "jo",
    "ka",
    "lu",
    "mi",
    "no",
    "ri",
    "su",
    "ty",
)


def name_of(user: int) -> str:
    """A name to show, always the same for the same user."""
    sounds = [_SYLLABLES[user >> shift & 15] for shift in (0, 4)]
    return f"{''.join(sounds).capitalize()} {user}"


class Run:
    """The ids of one run. Users are those of the seed, so a seed's people come back; actions are new."""

    def __init__(self, seed: int, run: str, start_us: int) -> None:
        self.seed, self.start_us = seed, start_us
        self.prefix = f"sim.{seed}.{run}."

    def user_id(self, user: int) -> str:
        return f"sim-{self.seed}-{user}"

    def key(self, number: int, user: int) -> Key:
        return self.user_id(user), f"{self.prefix}{number}"

    @property
    def between(self) -> tuple[str, str]:
        """Two ids, by bytes before and after every action id of this run."""
        return self.prefix, self.prefix[:-1] + chr(ord(self.prefix[-1]) + 1)

    def number(self, action_id: str) -> int:
        """An action's number by its id; −1 where it is none of this run's."""
        text = action_id.removeprefix(self.prefix)
        return int(text) if text.isdecimal() and text.isascii() else -1

    def body(self, sending: Sending) -> dict[str, Any]:
        """The action as the door takes it: the same each time it is sent, but for an altered one."""
        action = sending.action
        user_id, action_id = self.key(action.number, action.user)
        body: dict[str, Any] = {"action_id": action_id, "type": action.type}
        if not action.own:
            body |= {"user_id": user_id, "username": name_of(action.user)}
        if action.points is not None:
            body["points"] = action.points + 1 if sending.kind == "altered" else action.points
        if action.late_us is not None:
            body["occurred_at"] = format_us(self.start_us + action.due_us - action.late_us)
        return body


class Sender:
    """Workers that send one run's actions, and write down what was answered."""

    def __init__(
        self, client: Client, trusted: Tokens, own: dict[int, Tokens], run: Run, account: Account, batch: int
    ) -> None:
        self._client, self._trusted, self._own = client, trusted, own
        self._run, self._account, self._batch = run, account, batch
        self.stopping = asyncio.Event()
        self.unanswered = 0
        self.latencies_s: list[float] = []

    async def send(self, plan: Iterator[Sending], concurrency: int) -> None:
        """Send all that is planned, or what is under way when `stopping` is set."""
        chunks: asyncio.Queue[list[Sending] | None] = asyncio.Queue(concurrency)
        try:
            # One that fails ends the others, and the plan that would wait for them.
            async with asyncio.TaskGroup() as tasks:
                for _ in range(concurrency):
                    tasks.create_task(self._work(chunks))
                await self._gather(plan, chunks)
                for _ in range(concurrency):
                    await chunks.put(None)
        except BaseExceptionGroup as group:
            raise first_of(group) from group

    async def _gather(self, plan: Iterator[Sending], chunks: asyncio.Queue[list[Sending] | None]) -> None:
        """Hand out what is due. Repeats gather apart, so that they are under way beside the first."""
        begun_s = time.monotonic()
        open_: dict[bool, list[Sending]] = {False: [], True: []}

        async def flush() -> None:
            for chunk in (open_[False], open_[True]):
                if chunk:
                    await chunks.put(list(chunk))
                    chunk.clear()

        for sending in plan:
            ahead_s = sending.due_s - (time.monotonic() - begun_s)
            if ahead_s > GATHER_S or (ahead_s > 0 and self._batch == 1):
                await flush()
                await self._sleep(sending.due_s - (time.monotonic() - begun_s))
            if self.stopping.is_set():
                break
            self._account.sending(sending.action, again=sending.kind != "first")
            if sending.action.own:
                await chunks.put([sending])
                continue
            chunk = open_[sending.kind != "first"]
            chunk.append(sending)
            if len(chunk) >= self._batch:
                await flush()
        await flush()

    async def _sleep(self, for_s: float) -> None:
        if for_s > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), for_s)

    async def _work(self, chunks: asyncio.Queue[list[Sending] | None]) -> None:
        while (chunk := await chunks.get()) is not None:
            left, attempt = chunk, 0
            until_s = time.monotonic() + GIVE_UP_S
            while left:
                left, answer = await self._once(left)
                attempt += 1
                if left:
                    if self.stopping.is_set() or time.monotonic() > until_s:
                        break
                    await self._sleep(pause_s(attempt, answer))

    async def _once(self, chunk: list[Sending]) -> tuple[list[Sending], Answer | None]:
        """Send once; what is to be sent again, and the answer that said so."""
        alone = chunk[0] if len(chunk) == 1 and (self._batch == 1 or chunk[0].action.own) else None
        begun_s = time.monotonic()
        try:
            answer = await (self._one(alone) if alone is not None else self._many(chunk))
        except NoAnswer:
            self.unanswered += 1
            for sending in chunk:
                self._account.answered(sending.action, None)
            return chunk, None
        if len(self.latencies_s) < _MOST_LATENCIES:
            self.latencies_s.append(time.monotonic() - begun_s)
        results: Sequence[Any] = [{"status": answer.status}] * len(chunk)
        if alone is None and answer.status == 200:
            results = answer.body["results"]
        left = []
        for sending, result in zip(chunk, results, strict=True):
            self._account.answered(sending.action, result["status"])
            if Answer(result["status"], None).passes:
                left.append(sending)
        return left, answer

    async def _one(self, sending: Sending) -> Answer:
        action = sending.action
        tokens = self._own[action.user] if action.own else self._trusted
        headers = {"Prefer": "wait=2"} if action.own and _waits(action) else {}
        body = msgspec.json.encode(self._run.body(sending))
        return await self._client.post("/v1/actions", body, token=tokens.current(), headers=headers)

    async def _many(self, chunk: list[Sending]) -> Answer:
        body = msgspec.json.encode({"actions": [self._run.body(sending) for sending in chunk]})
        return await self._client.post("/v1/actions/batch", body, token=self._trusted.current())


def _waits(action: Action) -> bool:
    """Whether whoever sends it wants to see the verdict: every other one."""
    return action.number % 2 == 0


def own_scopes() -> tuple[str, ...]:
    return scopes.ACTIONS_WRITE, scopes.SCORES_WRITE


def trusted_scopes() -> tuple[str, ...]:
    return scopes.ACTIONS_WRITE, scopes.ACTIONS_WRITE_ANY, scopes.SCORES_WRITE


def own_users(traffic: Traffic) -> range:
    return range(traffic.users, traffic.users + traffic.own_users)
