"""How much a caller may send: GCRA over Redis, all that is asked in one turn of the loop in one round trip.

The generic cell rate algorithm keeps one instant per rule, the one at which all that was
granted would have been due. Time is Redis's own, so replicas with different clocks agree.

What counts: a request that a limit lets pass has been charged, whatever is refused about it
later (its shape, its rights, its rules). One that a limit turns away charges nothing,
so `Retry-After` is a promise, and whoever hammers a limit gets exactly the rule's rate.

Keys are `tb:limit:<rule>:<key>`, each gone once its burst is full again. On a single server
one script decides all requests that came together, one after the other. In a cluster a script
may touch one slot only: there each rule is a call of its own, all at once, and what was charged
is given back if another refused.

When Redis does not answer within `BUDGET_S` the process decides by itself with its share of
the limit, and after a few such answers does so at once, asking Redis again once a second.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, cast

import msgspec
from redis import exceptions as redis_exceptions
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from core.errors import Refused
from service import logs, metrics
from storage.redis import scripts
from storage.redis.turns import Turn

BUDGET_S: Final = 0.05
"""Longest a request waits for Redis to decide."""

_FAILURES_UNTIL_LOCAL = 3
_LOCAL_FOR_S = 1.0
_LOCAL_KEYS = 20_000
_NO_ANSWER = (
    redis_exceptions.RedisError,
    redis_exceptions.RedisClusterException,
    OSError,
    TimeoutError,
)

_MOST_AT_ONCE = 500
_SCRIPT = scripts.source("limit")
_SCRIPT_SHA = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(list[int]).decode

_log = logs.get("storage.redis.limits")


@dataclass(frozen=True, slots=True)
class Rule:
    """At most `burst` at once and `rate_per_s` in the long run, for one `key` (a user, an address …).

    `name` is what the headers call it (`user`, `address`). One unit takes a whole number of
    microseconds, so a rate is exact where it divides a million. A request that costs more
    than `burst` is always refused, and told when all of the burst is there.
    """

    name: str
    key: str
    rate_per_s: float
    burst: int

    # What follows from these, worked out once: a rule decides about many requests.

    interval_us: int = field(init=False, repr=False, compare=False)
    """Microseconds one unit takes to come back."""

    redis_key: str = field(init=False, repr=False, compare=False)

    policy: str = field(init=False, repr=False, compare=False)
    """The rule as `RateLimit-Policy` says it."""

    def __post_init__(self) -> None:
        if self.rate_per_s <= 0 or self.burst < 1:
            raise ValueError(f"limit {self.name} needs a rate above 0 and a burst of at least 1")
        interval_us = max(1, round(1_000_000 / self.rate_per_s))
        window_s = math.ceil(self.burst * interval_us / 1_000_000)
        object.__setattr__(self, "interval_us", interval_us)
        object.__setattr__(self, "redis_key", f"tb:limit:{self.name}:{self.key}")
        object.__setattr__(self, "policy", f'"{self.name}";q={self.burst};w={window_s}')


class Decision(msgspec.Struct, frozen=True, gc=False):
    """Whether a request may go on, and what to tell its sender.

    `refused_by` names the rule with the longest wait; `retry_after_s` is 0 when allowed.
    `rate_limit` and `rate_limit_policy` are header values as of
    draft-ietf-httpapi-ratelimit-headers: per rule the units left and the seconds until all
    of the burst is back; `local` says that Redis was not asked or did not answer. `never_over` is
    the burst of a rule that refused because more was asked for than it ever allows at once.
    """

    allowed: bool
    retry_after_s: int
    refused_by: str | None
    rate_limit: str
    rate_limit_policy: str
    local: bool = False
    never_over: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        headers = {"RateLimit": self.rate_limit, "RateLimit-Policy": self.rate_limit_policy}
        return headers if self.allowed else headers | {"Retry-After": str(self.retry_after_s)}

    def refusal(self) -> Refused:
        """The 429 to raise; only for a decision that is not `allowed`."""
        detail = f"Too many requests; the limit is per {self.refused_by}."
        if self.never_over is None:
            detail += f" Try again in {self.retry_after_s} s."
        else:
            detail += f" Send at most {self.never_over} at once, in {self.retry_after_s} s."
        return Refused("rate_limited", detail, status_code=429, headers=self.headers)


def address_key(address: str) -> str:
    """What an IP address is counted as: itself, an IPv6 address as its /64 network.

    A household has a /64, so counting single addresses would let one sender be all of them.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)).network_address) + "/64"
    return str(parsed)


_Question = tuple[Sequence[Rule], int]
"""Rules, and what the request costs."""


class Limits:
    """Decides by Redis, or by this process alone while Redis does not answer.

    `replicas` is how many processes share a limit; alone, each grants its share of the rate
    and of the burst. Never raises because of Redis, and never waits longer than `BUDGET_S`; of a
    client that says by its `budget_s` that it gives up in that time by itself, that is believed.
    """

    def __init__(
        self,
        redis: Redis | RedisCluster,
        *,
        replicas: int = 1,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = redis
        self._in_cluster = isinstance(redis, RedisCluster)
        # A timer for every request costs more than all the rest of the decision.
        self._answers_in_time = getattr(redis, "budget_s", math.inf) <= BUDGET_S
        self._replicas = max(1, replicas)
        self._monotonic_s = monotonic_s
        self._failures = 0
        self._local_until_s = 0.0
        self._local: OrderedDict[str, int] = OrderedDict()
        self._giving_back: set[asyncio.Task[None]] = set()
        self._turn: Turn[_Question] = Turn(
            self._evalsha,
            _split,
            in_full=self._eval,
            most=_MOST_AT_ONCE,
            when_it_ends=getattr(redis, "when_turn_ends", None),
        )

    async def take(self, rules: Sequence[Rule], cost: int = 1) -> Decision:
        """Charge `cost` to every rule if all of them allow it, else to none."""
        if cost < 1:
            raise ValueError("a cost is at least 1; use look to ask without charging")
        return await self._decide(rules, cost)

    async def look(self, rules: Sequence[Rule]) -> Decision:
        """Whether one more unit would be allowed now; charges nothing."""
        return await self._decide(rules, 0)

    def take_locally(self, rules: Sequence[Rule], cost: int = 1) -> Decision:
        """As `take`, by this process alone and at once; a `cost` of 0 looks."""
        now_us = round(self._monotonic_s() * 1_000_000)
        states = [self._local_state(rule, now_us, cost) for rule in rules]
        allowed = all(wait_us <= 0 and cost <= burst for _, burst, wait_us, _ in states)
        answers: list[int] = [int(allowed)]
        for rule, (interval_us, burst, wait_us, arrival_us) in zip(rules, states, strict=True):
            if allowed and cost:
                arrival_us += interval_us * cost
                self._local[rule.redis_key] = arrival_us
                self._local.move_to_end(rule.redis_key)
            left = max(0, (now_us + interval_us * burst - arrival_us) // interval_us)
            answers += [max(0, wait_us), left, arrival_us - now_us]
        while len(self._local) > _LOCAL_KEYS:
            self._local.popitem(last=False)
        return _decision(rules, cost, answers, local=True)

    async def _decide(self, rules: Sequence[Rule], cost: int) -> Decision:
        if not rules:
            return Decision(True, 0, None, "", "")
        now_s = self._monotonic_s()
        if self._failures >= _FAILURES_UNTIL_LOCAL:
            if now_s < self._local_until_s:
                return self._decide_alone(rules, cost)
            # This one request asks whether Redis is back; the others do not wait for it.
            self._local_until_s = now_s + _LOCAL_FOR_S
        try:
            if self._answers_in_time:
                answers = await self._ask(rules, cost)
            else:
                async with asyncio.timeout(BUDGET_S):
                    answers = await self._ask(rules, cost)
        except _NO_ANSWER as error:
            self._failed(error)
            return self._decide_alone(rules, cost)
        if self._failures >= _FAILURES_UNTIL_LOCAL:
            _log.info("limits_shared_again")
        self._failures = 0
        if cost:
            self._remember(rules, answers)
        return _decision(rules, cost, answers, local=False)

    def _remember(self, rules: Sequence[Rule], answers: Sequence[int]) -> None:
        """Keep what Redis said, so that deciding alone goes on from there and not from full buckets."""
        now_us = round(self._monotonic_s() * 1_000_000)
        for rule, full_us in zip(rules, answers[3::3], strict=True):
            self._local[rule.redis_key] = now_us + full_us
            self._local.move_to_end(rule.redis_key)
        while len(self._local) > _LOCAL_KEYS:
            self._local.popitem(last=False)

    def _decide_alone(self, rules: Sequence[Rule], cost: int) -> Decision:
        metrics.LIMITS_DECIDED_LOCALLY.inc()
        return self.take_locally(rules, cost)

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        if self._failures == _FAILURES_UNTIL_LOCAL:
            _log.warning("limits_decided_locally", error=type(error).__name__, detail=str(error)[:200])
        if self._failures >= _FAILURES_UNTIL_LOCAL:
            self._local_until_s = self._monotonic_s() + _LOCAL_FOR_S

    async def _ask(self, rules: Sequence[Rule], cost: int) -> Sequence[int]:
        if not self._in_cluster:
            answer: Sequence[int] = await self._turn.ask((rules, cost))
            return answer
        each = await asyncio.gather(*(self._run_one(rule, cost) for rule in rules))
        allowed = all(answers[0] for answers in each)
        charged = [rule for rule, answers in zip(rules, each, strict=True) if answers[0]]
        if not allowed and cost and charged:
            task = asyncio.create_task(self._give_back(charged, cost))
            self._giving_back.add(task)
            task.add_done_callback(self._giving_back.discard)
        return [int(allowed), *(number for answers in each for number in answers[1:])]

    async def _give_back(self, rules: Sequence[Rule], cost: int) -> None:
        try:
            async with asyncio.timeout(1.0):
                await asyncio.gather(*(self._run_one(rule, -cost) for rule in rules))
        except _NO_ANSWER:
            # The rule then recovers by itself a little later.
            _log.info("limit_not_given_back", rules=[rule.name for rule in rules])

    async def _run_one(self, rule: Rule, cost: int) -> Sequence[int]:
        question: list[_Question] = [([rule], cost)]
        try:
            reply = await self._evalsha(question)
        except redis_exceptions.NoScriptError:
            reply = await self._eval(question)
        return _split(question, reply)[0]

    def _evalsha(self, questions: Sequence[_Question]) -> Awaitable[bytes]:
        keys, packed = _packed(questions)
        return cast("Awaitable[bytes]", self._redis.evalsha(_SCRIPT_SHA, len(keys), *keys, packed))

    def _eval(self, questions: Sequence[_Question]) -> Awaitable[bytes]:
        keys, packed = _packed(questions)
        return cast("Awaitable[bytes]", self._redis.eval(_SCRIPT, len(keys), *keys, packed))

    def _local_state(self, rule: Rule, now_us: int, cost: int) -> tuple[int, int, int, int]:
        """Interval, burst, wait for this cost, and arrival, for this process's share of the rule."""
        interval_us = rule.interval_us * self._replicas
        burst = max(1, rule.burst // self._replicas)
        arrival_us = max(now_us, self._local.get(rule.redis_key, 0))
        wait_us = arrival_us + interval_us * min(cost or 1, burst) - interval_us * burst - now_us
        return interval_us, burst, wait_us, arrival_us


def _packed(questions: Sequence[_Question]) -> tuple[list[str], bytes]:
    """The script's keys, each once, and its argument."""
    places: dict[str, int] = {}
    numbers: list[int] = []
    for rules, cost in questions:
        numbers += (cost, len(rules))
        for rule in rules:
            place = places.setdefault(rule.redis_key, len(places) + 1)
            numbers += (place, rule.interval_us, rule.burst)
    return list(places), _pack(numbers)


def _split(questions: Sequence[_Question], reply: bytes) -> list[list[int]]:
    """The script's reply, question by question."""
    numbers, begin, answers = _unpack(reply), 0, []
    for rules, _ in questions:
        end = begin + 1 + 3 * len(rules)
        answers.append(numbers[begin:end])
        begin = end
    return answers


def _decision(rules: Sequence[Rule], cost: int, answers: Sequence[int], *, local: bool) -> Decision:
    """From the script's reply: allowed, then wait, units left and µs until full, per rule."""
    refused_by, retry_after_s, never_over = None, 0, None
    if not answers[0]:
        waits = list(zip(answers[1::3], rules, strict=True))
        wait_us, rule = max(waits, key=lambda told: (cost > told[1].burst, told[0], told[1].name))
        refused_by, retry_after_s = rule.name, max(1, math.ceil(wait_us / 1_000_000))
        never_over = rule.burst if cost > rule.burst else None
        metrics.LIMITED.labels(refused_by).inc()
    left = [
        f'"{rule.name}";r={units};t={-(-full_us // 1_000_000)}'
        for rule, units, full_us in zip(rules, answers[2::3], answers[3::3], strict=True)
    ]
    return Decision(
        bool(answers[0]),
        retry_after_s,
        refused_by,
        ", ".join(left),
        ", ".join([rule.policy for rule in rules]),
        local,
        never_over,
    )
