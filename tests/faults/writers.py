"""Writers: so many actions a second, each sent again under its id until it has its answer.

Every attempt is written down as it ended. Now and then an action is sent a second time after its
confirmation, twice at once, once more with another body, or never again after a failure: what a
client may do. Users are many and some act more than others.
"""

from __future__ import annotations

import asyncio
import errno
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp

from tests.faults.histories import Attempt, Transcript, content_of
from tests.faults.rig import Rig

USERS = 250
ANSWER_S = 8.0
"""Longest wait for an answer; the service promises one within some 4.5 s."""

MOST_OPEN = 150
"""Actions under way at once; above that new ones wait, as a client with a queue does."""

LONGEST_PAUSE_S = 3.0
"""Between two tries of an action; much shorter, and on a slow machine those that are refused leave no
time for anything else."""

_FINAL_REFUSALS = frozenset({400, 401, 403, 404, 409, 413, 415, 422})


@dataclass(slots=True)
class Action:
    """One action, and what is sent for it each time."""

    user: str
    action: str
    type: str
    points: int | None
    username: str | None
    route: Literal["v1", "v1-batch", "s0"]
    wait_s: int
    attempts: int = 0

    def fields(self) -> dict[str, Any]:
        """As `/v1/actions` takes it."""
        body: dict[str, Any] = {"action_id": self.action, "type": self.type, "user_id": self.user}
        if self.points is not None:
            body["points"] = self.points
        if self.username is not None:
            body["username"] = self.username
        return body


@dataclass
class Counts:
    """What the writers were told, so that a row can wait for it."""

    statuses: Counter[int] = field(default_factory=Counter)
    confirmed: int = 0
    """Actions with a 202 or 200, each once."""
    again: int = 0
    open_requests: int = 0
    slowest_refusal_s: float = 0.0
    slowest_confirmation_s: float = 0.0
    without_retry_after: int = 0

    @property
    def unanswered(self) -> int:
        return self.statuses[0]


class Writers:
    """The load of one rig. `per_s` may be changed while it runs; 0 is rest."""

    def __init__(self, rig: Rig, *, per_s: float = 60.0) -> None:
        self.rig, self.per_s = rig, per_s
        self.counts = Counts()
        self._dice = random.Random(rig.seed)
        self._transcript = Transcript(rig.run / "attempts.jsonl")
        self._number = 0
        self._requests = 0
        self._open: set[asyncio.Task[None]] = set()
        self._recent: list[Action] = []
        self.confirmed_at_s: list[float] = []
        self.latest_newly_confirmed_begun_s = float("-inf")
        """When the latest request was begun that was confirmed, and not out of what was known already."""
        self._verdicts: dict[tuple[str, str], str | None] = {}
        self._pace: asyncio.Task[None] | None = None
        self._http: aiohttp.ClientSession | None = None
        self.impatient = False
        """At the end of a run: do not send again what got no answer."""

    # for the other threads

    def start(self) -> None:
        self.rig.loop.call(self._start())

    def stop(self) -> None:
        self.rig.loop.call(self._stop())

    def rest(self) -> None:
        """Begin no new action; those under way go on until they have their answer."""

        async def rested() -> None:
            # On the loop: what is begun before this is among the open ones, and nothing is after it.
            self.per_s = 0.0

        self.rig.loop.call(rested())

    @property
    def resting(self) -> bool:
        return self.per_s == 0 and not self._open

    def new_user(self) -> str:
        """A user nobody else writes for."""
        self._number += 1
        return f"lone-{self.rig.seed:x}-{self._number:x}"

    def forget_slow(self) -> None:
        self.counts.slowest_confirmation_s = 0.0

    def send_one(self, user: str, type_: str, points: int | None = None) -> str | None:
        """One action, and its verdict."""
        action = self._named(user, type_, points)
        action.wait_s = 10
        self.rig.loop.call(self._until_answered(action, "first"), within_s=60)
        return self._verdicts.get((user, action.action))

    def send_at_once(self, times: int) -> list[int]:
        """The same action in so many requests at the same time: their statuses."""
        action = self._named(self.new_user(), "commit", None)

        async def together() -> list[int]:
            return list(await asyncio.gather(*(self._attempt(action, "first") for _ in range(times))))

        return self.rig.loop.call(together(), within_s=60)

    def send_batch(self, user: str, type_: str, many: int) -> None:
        """Many actions of one user in one request, until all are confirmed."""
        actions = [self._named(user, type_, None) for _ in range(many)]
        self.rig.loop.call(self._sent_together(actions), within_s=60)

    def _named(self, user: str, type_: str, points: int | None) -> Action:
        self._number += 1
        name = f"{self.rig.seed:x}-{self._number:x}"
        return Action(user, name, type_, points, None, "v1", 0)

    def confirmed_action(self) -> Action | None:
        """Some action that was confirmed lately."""
        return self._recent[-1] if self._recent else None

    # the loop

    async def _start(self) -> None:
        self._http = aiohttp.ClientSession(
            base_url=self.rig.http,
            timeout=aiohttp.ClientTimeout(total=ANSWER_S),
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=3.0),
        )
        self._trusted = self.rig.token("backend", trusted=True)
        self._pace = asyncio.create_task(self._run())

    async def _stop(self) -> None:
        self.per_s = 0.0
        if self._pace is not None:
            self._pace.cancel()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        if self._http is not None:
            await self._http.close()
        self._transcript.close()

    async def _run(self) -> None:
        due_s = time.monotonic()
        while True:
            now_s, per_s = time.monotonic(), self.per_s
            if per_s <= 0 or len(self._open) >= MOST_OPEN:
                due_s = now_s + 0.02
                await asyncio.sleep(0.02)
                continue
            if due_s > now_s:
                await asyncio.sleep(due_s - now_s)
                # Meanwhile it may have been told to rest.
                continue
            due_s = max(due_s, now_s - 0.2)
            if self._dice.random() < 0.06:
                many = [self._new("v1-batch") for _ in range(self._dice.randint(4, 12))]
                self._begin(self._sent_together(many))
                due_s += len(many) / per_s
            else:
                self._begin(self._sent(self._new()))
                due_s += 1 / per_s

    def _begin(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._open.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._open.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    def _new(self, route: Literal["v1", "v1-batch", "s0"] | None = None) -> Action:
        dice = self._dice
        self._number += 1
        eager = min(int(dice.paretovariate(0.6)), USERS)
        user = f"u{eager if dice.random() < 0.5 else dice.randrange(USERS):03d}"
        kind = dice.random()
        type_ = "client_points" if kind < 0.55 else "commit" if kind < 0.9 else "level_complete"
        chosen = route or ("s0" if type_ == "client_points" and dice.random() < 0.1 else "v1")
        return Action(
            user=user,
            action=f"{self.rig.seed:x}-{self._number:x}",
            type=type_,
            points=dice.randint(1, 60) if type_ == "client_points" else None,
            username=f"{user} the {self._number % 7}." if chosen != "s0" and dice.random() < 0.02 else None,
            route=chosen,
            wait_s=2 if chosen == "v1" and dice.random() < 0.25 else 0,
        )

    async def _sent(self, action: Action) -> None:
        """Until it has its answer; then perhaps once more, as clients do."""
        chance = self._dice.random()
        if chance < 0.03:
            twice = await asyncio.gather(
                self._until_answered(action, "first"), self._until_answered(action, "first")
            )
            confirmed = any(twice)
        else:
            confirmed = await self._until_answered(action, "first", give_up=chance > 0.98)
        if not confirmed or chance > 0.2:
            return
        if chance < 0.10:
            await asyncio.sleep(self._dice.random() * 0.5)
            await self._until_answered(action, "again")
        elif chance < 0.12 and action.type == "client_points" and action.route == "v1":
            other = Action(action.user, action.action, action.type, (action.points or 1) + 1, None, "v1", 0)
            await self._attempt(other, "other")

    async def _until_answered(
        self, action: Action, purpose: Literal["first", "again"], *, give_up: bool = False
    ) -> bool:
        """Whether it was confirmed; False if it was refused or given up."""
        pause_s = 0.1
        attempt: Literal["first", "again", "retry"] = purpose
        while True:
            status = await self._attempt(action, attempt)
            if status in (200, 202) or (status == 422 and action.route == "s0"):
                return True
            if status in _FINAL_REFUSALS or give_up or self.impatient:
                return False
            if purpose == "first":
                attempt = "retry"
            await asyncio.sleep(pause_s * (0.5 + self._dice.random()))
            pause_s = min(LONGEST_PAUSE_S, pause_s * 2)

    async def _attempt(self, action: Action, purpose: Literal["first", "retry", "again", "other"]) -> int:
        action.attempts += 1
        if action.route == "s0":
            path, token = "/api/v0/scores/update", None
            body: dict[str, Any] = {
                "user_id": action.user,
                "score_delta": action.points,
                "authorization_token": self.rig.token(action.user),
            }
            headers = {"Idempotency-Key": action.action}
        else:
            path, token, body = "/v1/actions", self._trusted, action.fields()
            headers = {"Prefer": f"wait={action.wait_s}"} if action.wait_s else {}
        status, code, answer, told, begun_s, request = await self._post(path, body, token, headers)
        attempt = self._as_attempt(action, purpose, request, begun_s)
        attempt.status, attempt.code = status, code
        attempt.retry_after = told.get("Retry-After")
        if action.route == "s0":
            _fill_from_s0(attempt, answer, told)
        elif status in (200, 202):
            _fill_from_receipt(attempt, answer)
        self._note(action, attempt)
        return status

    async def _sent_together(self, actions: list[Action]) -> None:
        pause_s = 0.1
        left, purpose = actions, "first"
        while left:
            body = {"actions": [action.fields() for action in left]}
            status, code, answer, told, begun_s, request = await self._post(
                "/v1/actions/batch", body, self._trusted, {}
            )
            again = []
            results = answer.get("results") if status == 200 else None
            for index, action in enumerate(left):
                attempt = self._as_attempt(action, purpose, request, begun_s)  # type: ignore[arg-type]
                attempt.retry_after = told.get("Retry-After")
                attempt.status, attempt.code = status, code
                if results is not None:
                    attempt.status = results[index]["status"]
                    if attempt.status == 202:
                        _fill_from_receipt(attempt, results[index]["receipt"])
                    else:
                        attempt.code = results[index]["error"]["code"]
                        attempt.retry_after = attempt.retry_after or "-"
                self._note(action, attempt)
                if attempt.status not in _FINAL_REFUSALS and attempt.status != 202:
                    again.append(action)
            if self.impatient:
                return
            left, purpose = again, "retry"
            if left:
                await asyncio.sleep(pause_s * (0.5 + self._dice.random()))
                pause_s = min(LONGEST_PAUSE_S, pause_s * 2)

    async def _post(
        self, path: str, body: dict[str, Any], token: str | None, headers: dict[str, str]
    ) -> tuple[int, str, dict[str, Any], dict[str, str], float, int]:
        """(status, code, body, headers, when it was begun, its number); status 0 without an answer."""
        assert self._http is not None
        self._requests += 1
        request = self._requests
        sent = {"Content-Type": "application/json", **headers}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        begun_s = self.rig.now_s()
        self.counts.open_requests += 1
        try:
            async with self._http.post(path, data=json.dumps(body), headers=sent) as response:
                raw = await response.read()
                told = {name: response.headers[name] for name in response.headers}
                answer = json.loads(raw) if raw else {}
                code = str(answer.get("code", "")) if response.status >= 400 else ""
                return response.status, code, answer, told, begun_s, request
        except TimeoutError:
            return 0, "timeout", {}, {}, begun_s, request
        except aiohttp.ClientConnectorError as error:
            return 0, "refused" if error.errno == errno.ECONNREFUSED else "reset", {}, {}, begun_s, request
        except aiohttp.ServerDisconnectedError:
            return 0, "closed", {}, {}, begun_s, request
        except (aiohttp.ClientError, OSError):
            return 0, "reset", {}, {}, begun_s, request
        finally:
            self.counts.open_requests -= 1

    def _as_attempt(
        self,
        action: Action,
        purpose: Literal["first", "retry", "again", "other"],
        request: int,
        begun_s: float,
    ) -> Attempt:
        return Attempt(
            request=request,
            client="writer",
            row=self.rig.row,
            begun_s=begun_s,
            ended_s=self.rig.now_s(),
            route=action.route,
            user=action.user,
            action=action.action,
            type=action.type,
            body=content_of(action.fields()),
            purpose=purpose,
            status=0,
            sent_points=action.points,
            wait_s=action.wait_s,
        )

    def _note(self, action: Action, attempt: Attempt) -> None:
        self._transcript.add(attempt)
        counts = self.counts
        counts.statuses[attempt.status] += 1
        if attempt.status in (200, 202) and attempt.purpose in ("first", "retry"):
            counts.confirmed += 1
            self.confirmed_at_s.append(attempt.ended_s)
            # S0's answers do not say that they are of an action sent before.
            may_be_known = attempt.replayed or action.route == "s0"
            if attempt.purpose == "first" or not may_be_known:
                self.latest_newly_confirmed_begun_s = max(
                    self.latest_newly_confirmed_begun_s, attempt.begun_s
                )
            if action.user.startswith("lone-"):
                self._verdicts[action.user, action.action] = attempt.verdict
            else:
                self._recent = [*self._recent[-20:], action]
                if not action.wait_s and action.route == "v1":
                    took_s = attempt.ended_s - attempt.begun_s
                    counts.slowest_confirmation_s = max(counts.slowest_confirmation_s, took_s)
        if attempt.purpose == "again":
            counts.again += 1
        if attempt.status == 503:
            counts.slowest_refusal_s = max(counts.slowest_refusal_s, attempt.ended_s - attempt.begun_s)
            if not attempt.retry_after:
                counts.without_retry_after += 1


def _fill_from_receipt(attempt: Attempt, receipt: dict[str, Any]) -> None:
    attempt.replayed = receipt["replayed"]
    attempt.fingerprint = receipt["fingerprint"]
    attempt.received_at = receipt["received_at"]
    attempt.verdict = receipt["status"]
    reason = receipt.get("reason")
    attempt.reason = reason["code"] if reason else None
    attempt.points = receipt.get("points")
    attempt.judged_revision = receipt.get("judged_revision")
    attempt.epoch = receipt.get("epoch")
    attempt.revision = receipt.get("revision")
    attempt.score = receipt.get("score")
    attempt.rank = receipt.get("rank")


def _fill_from_s0(attempt: Attempt, answer: dict[str, Any], told: dict[str, str]) -> None:
    if attempt.status == 200:
        attempt.score = answer["updated_score"]
        attempt.verdict = "accepted"
    elif attempt.status == 422:
        attempt.verdict, attempt.reason = "rejected", attempt.code
    elif attempt.status == 202:
        attempt.verdict = "submitted"
    if attempt.status in (200, 422) and "Trueboard-Revision" in told:
        attempt.epoch, attempt.revision = told["Trueboard-Epoch"], int(told["Trueboard-Revision"])
