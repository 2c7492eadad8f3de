from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import redis as blocking
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from core.errors import Refused
from storage.redis import limits
from storage.redis.limits import BUDGET_S, Limits, Rule, address_key
from trueboard.devstack.ports import free_port
from trueboard.devstack.valkey import binary

ROOT = Path(limits.__file__).parents[2]

USER = Rule("user", "u1", rate_per_s=5, burst=30)
ADDRESS = Rule("address", "10.0.0.1", rate_per_s=300, burst=600)


@pytest.fixture
def unhurried(monkeypatch):
    """A machine with other work to do may take longer than the budget: that is another test's matter."""
    monkeypatch.setattr(limits, "BUDGET_S", 10.0)


@pytest.fixture
async def redis(redis_db_url, unhurried):
    client = Redis.from_url(redis_db_url)
    yield client
    await client.aclose()


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    for _ in range(2000):
        if await condition():
            return
        await asyncio.sleep(0.005)
    pytest.fail("it did not come about within 10 s")


async def is_led(redis: Redis) -> bool:
    """Whether a cluster has all its slots."""
    return (await redis.cluster("INFO"))["cluster_state"] == "ok"


class Stopwatch:
    """A clock a test moves, in whole microseconds."""

    def __init__(self) -> None:
        self.now_us = 1_000_000_000

    def monotonic_s(self) -> float:
        return self.now_us / 1_000_000


# the law


@dataclass
class Bucket:
    """The textbook's token bucket, which GCRA must equal: units come back one by one, `burst` at most."""

    interval_us: int
    burst: int
    units: int = -1
    since_us: int = 0
    """When the unit now coming back began to."""

    def take(self, now_us: int, cost: int) -> bool:
        if self.units < 0:
            self.units, self.since_us = self.burst, now_us
        back = (now_us - self.since_us) // self.interval_us
        self.units += back
        self.since_us += back * self.interval_us
        if self.units >= self.burst:
            self.units, self.since_us = self.burst, now_us
        if self.units < cost:
            return False
        self.units -= cost
        return True

    def units_at(self, now_us: int) -> int:
        if self.units < 0:
            return self.burst
        return min(self.burst, self.units + (now_us - self.since_us) // self.interval_us)


requests = st.lists(
    st.tuples(st.integers(0, 400_000), st.integers(1, 4), st.sampled_from([0, 1, 2])), max_size=60
)
turns = st.lists(
    st.tuples(
        st.integers(0, 400_000),
        st.lists(st.tuples(st.integers(1, 4), st.sampled_from([0, 1, 2])), min_size=1, max_size=6),
    ),
    max_size=30,
)
WHICH = {0: [0], 1: [1], 2: [0, 1]}
rules = st.builds(
    Rule,
    st.just("user"),
    st.just("u"),
    st.sampled_from([0.5, 3, 5, 7, 50, 20_000]),
    st.integers(1, 12),
)


@given(rule=rules, arrivals=requests)
def test_a_rule_grants_exactly_what_an_ideal_bucket_grants(rule, arrivals):
    clock = Stopwatch()
    alone = Limits(None, monotonic_s=clock.monotonic_s)
    ideal = Bucket(rule.interval_us, rule.burst)

    for gap_us, cost, _ in arrivals:
        clock.now_us += gap_us
        assert alone.take_locally([rule], cost).allowed == ideal.take(clock.now_us, cost)


@given(arrivals=requests)
def test_of_several_rules_none_is_charged_unless_all_allow(arrivals):
    clock = Stopwatch()
    alone = Limits(None, monotonic_s=clock.monotonic_s)
    pair = [Rule("user", "u", 5, 3), Rule("address", "a", 11, 5)]
    ideals = [Bucket(rule.interval_us, rule.burst) for rule in pair]

    for gap_us, cost, which in arrivals:
        clock.now_us += gap_us
        chosen = [0, 1] if which == 2 else [which]
        spares = [replace(ideals[n]) for n in chosen]
        expected = all([spare.take(clock.now_us, cost) for spare in spares])  # noqa: C419 - each is asked
        if expected:
            for n, spare in zip(chosen, spares, strict=True):
                ideals[n] = spare

        assert alone.take_locally([pair[n] for n in chosen], cost).allowed == expected


@pytest.fixture
def timeless(redis_db_url):
    """The script as it is, but told the time, on a real server."""
    told = limits._SCRIPT.replace("redis.call('TIME')", "{0, tonumber(ARGV[#ARGV])}")
    told = told.replace("math.ceil(ahead / 1000) + 1", "600000")
    assert told.count("ARGV[#ARGV]") == told.count("600000") == 1
    with blocking.Redis.from_url(redis_db_url) as client:
        yield client, client.register_script(told)


@pytest.mark.services
def test_the_script_never_lets_more_than_a_burst_in(timeless):
    _, script = timeless
    rule, now_us = Rule("user", "u", 5, 30), 1_800_000_000_000_000

    def ask(cost: int, later_us: int) -> list[int]:
        keys, packed = limits._packed([([rule], cost)])
        return limits._split([([rule], cost)], script(keys=keys, args=[packed, now_us + later_us]))[0]

    assert ask(10, 0)[0] == 1
    assert ask(31, 0)[:2] == [0, 2_000_000]
    assert ask(500, 2_000_000)[:2] == [0, 0]
    assert ask(30, 2_000_000)[0] == 1


@pytest.mark.services
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrivals=turns, rate_per_s=st.sampled_from([0.5, 3, 7, 20_000]), burst=st.integers(1, 9))
def test_the_script_grants_exactly_what_ideal_buckets_grant(timeless, arrivals, rate_per_s, burst):
    client, script = timeless
    client.flushall()
    pair = [Rule("user", "u", rate_per_s, burst), Rule("address", "a", 11, 5)]
    ideals = [Bucket(rule.interval_us, rule.burst) for rule in pair]
    now_us = 1_800_000_000_000_000

    for gap_us, together in arrivals:
        now_us += gap_us
        questions = [([pair[n] for n in WHICH[which]], cost) for cost, which in together]
        keys, packed = limits._packed(questions)
        answers = limits._split(questions, script(keys=keys, args=[packed, now_us]))

        for (cost, which), answer in zip(together, answers, strict=True):
            spares = [replace(ideals[n]) for n in WHICH[which]]
            expected = all([spare.take(now_us, cost) for spare in spares])  # noqa: C419 - each is asked
            if expected:
                for n, spare in zip(WHICH[which], spares, strict=True):
                    ideals[n] = spare
            assert bool(answer[0]) == expected
            assert answer[2::3] == [ideals[n].units_at(now_us) for n in WHICH[which]]


@given(wait=st.integers(0, 3_000_000), cost=st.integers(1, 3))
def test_whoever_waits_as_long_as_told_is_let_in(wait, cost):
    clock = Stopwatch()
    alone = Limits(None, monotonic_s=clock.monotonic_s)
    rule = Rule("user", "u", 2, 3)
    for _ in range(3):
        alone.take_locally([rule])
    clock.now_us += wait
    told = alone.take_locally([rule], cost)
    clock.now_us += told.retry_after_s * 1_000_000

    assert told.allowed or alone.take_locally([rule], cost).allowed


@given(spent=st.integers(0, 3), cost=st.integers(4, 1000))
def test_what_is_more_than_a_burst_is_told_when_all_of_it_is_there(spent, cost):
    clock = Stopwatch()
    alone = Limits(None, monotonic_s=clock.monotonic_s)
    rule = Rule("user", "u", 2, 3)
    for _ in range(spent):
        alone.take_locally([rule])
    told = alone.take_locally([rule, ADDRESS], cost)
    clock.now_us += told.retry_after_s * 1_000_000

    assert (told.allowed, told.refused_by, told.never_over) == (False, "user", 3)
    assert told.retry_after_s == max(1, -(-spent // 2))
    assert "at most 3 at once" in told.refusal().detail
    assert alone.take_locally([rule], 3).allowed


# with a real server


@pytest.mark.services
async def test_a_burst_passes_then_the_rate(redis):
    shared = Limits(redis)
    rule = Rule("user", "u1", rate_per_s=50, burst=10)

    started_s = time.monotonic()
    decisions = [await shared.take([rule]) for _ in range(12)]
    if time.monotonic() - started_s < 0.02:
        assert [decision.allowed for decision in decisions] == [True] * 10 + [False] * 2
    refused = decisions[-1]
    await asyncio.sleep(0.05)

    assert refused.retry_after_s == 1
    assert (await shared.take([rule])).allowed


@pytest.mark.services
async def test_one_refusal_charges_none_of_the_rules(redis):
    shared = Limits(redis)
    spent = Rule("user", "u1", rate_per_s=0.01, burst=1)
    await shared.take([spent])

    for _ in range(5):
        decision = await shared.take([ADDRESS, spent])
        assert (decision.allowed, decision.refused_by) == (False, "user")
    assert await redis.exists(ADDRESS.redis_key) == 0


@pytest.mark.services
async def test_looking_charges_nothing_and_tells_the_truth(redis):
    shared = Limits(redis)
    rule = Rule("failed", "a", rate_per_s=0.01, burst=2)

    looks = [await shared.look([rule]) for _ in range(5)]
    await shared.take([rule])
    await shared.take([rule])

    assert all(look.allowed for look in looks)
    assert not (await shared.look([rule])).allowed


@pytest.mark.services
async def test_every_key_goes_when_its_burst_is_back(redis):
    rule = Rule("user", "u1", rate_per_s=10, burst=5)
    await Limits(redis).take([rule, ADDRESS], 3)

    assert 250 < await redis.pttl(rule.redis_key) <= 302
    assert 0 < await redis.pttl(ADDRESS.redis_key) <= 12
    await asyncio.sleep(0.4)
    assert await redis.dbsize() == 0


@pytest.mark.services
async def test_a_clock_set_back_locks_nobody_out(redis):
    rule = Rule("user", "u1", rate_per_s=20, burst=2)
    seconds, _ = await redis.time()
    await redis.set(rule.redis_key, (seconds + 3600) * 1_000_000)

    refused = await Limits(redis).take([rule])
    assert (refused.allowed, refused.retry_after_s) == (False, 1)


@pytest.mark.services
async def test_a_forgotten_script_is_told_again(redis):
    shared = Limits(redis)
    await redis.script_flush()
    decision = await shared.take([USER])
    await redis.script_flush()
    again = await shared.take([USER])

    assert (decision.allowed, decision.local) == (again.allowed, again.local) == (True, False)


PROGRAM = """
import asyncio, json, sys, time
from redis.asyncio import Redis
from storage.redis.limits import Limits, Rule

async def main(url):
    print("ready", flush=True)
    until_s = float(sys.stdin.readline())
    redis = Redis.from_url(url)
    shared, rule, granted, local = Limits(redis), Rule("user", "all", 40, 30), 0, 0
    while time.time() < until_s:
        decisions = await asyncio.gather(*(shared.take([rule]) for _ in range(4)))
        granted += sum(decision.allowed for decision in decisions if not decision.local)
        local += sum(decision.local for decision in decisions)
        await asyncio.sleep(0.004)
    await redis.aclose()
    print(json.dumps({"granted": granted, "local": local}))

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.services
async def test_several_processes_grant_together_what_one_would(redis, redis_db_url):
    program = [sys.executable, "-c", PROGRAM, redis_db_url]
    pipe = asyncio.subprocess.PIPE
    started = [
        await asyncio.create_subprocess_exec(*program, stdin=pipe, stdout=pipe, cwd=ROOT) for _ in range(3)
    ]
    for process in started:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
    until_s = time.time() + 3.0
    talking = asyncio.gather(*(process.communicate(b"%f\n" % until_s) for process in started))
    await until(lambda: redis.exists("tb:limit:user:all"))
    first_s = time.time()
    outputs = await talking
    results = [json.loads(output) for output, _ in outputs]
    span_s = until_s - first_s

    granted = sum(result["granted"] for result in results)
    if sum(result["local"] for result in results) == 0:
        # Seen from outside, the first grant is up to 50 ms earlier and the last 200 ms later than that span.
        assert 30 + 40 * span_s - 4 <= granted <= 30 + 40 * (span_s + 0.25) + 1
    assert granted >= 30


# without one


async def test_without_redis_a_process_decides_by_itself_and_never_raises():
    redis = Redis(host="127.0.0.1", port=free_port())
    alone = Limits(redis)

    decisions = [await alone.take([USER, ADDRESS]) for _ in range(40)]
    await redis.aclose()

    assert all(decision.local for decision in decisions)
    assert [decision.allowed for decision in decisions[:30]] == [True] * 30
    assert not decisions[-1].allowed
    assert decisions[-1].refused_by == "user"


async def test_a_redis_that_is_silent_costs_a_few_requests_fifty_milliseconds_and_the_others_nothing():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        redis = Redis(host="127.0.0.1", port=silent.getsockname()[1])
        alone = Limits(redis)
        waits_s = []
        for _ in range(60):
            began_s = time.monotonic()
            await alone.take([ADDRESS])
            waits_s.append(time.monotonic() - began_s)
        await redis.aclose(close_connection_pool=True)

    assert max(waits_s) < BUDGET_S + 0.2
    assert sum(wait_s >= BUDGET_S for wait_s in waits_s) <= 4
    assert sorted(waits_s)[len(waits_s) // 2] < 0.005


@contextmanager
def own_server(directory: Path, *options: str) -> Iterator[tuple[subprocess.Popen, int]]:
    port = free_port()
    process = subprocess.Popen(
        [str(binary()), "--port", str(port), "--bind", "127.0.0.1", "--save", "", *options],
        cwd=directory,
        stdout=subprocess.DEVNULL,
    )
    try:
        with blocking.Redis(port=port) as client:
            for _ in range(200):
                try:
                    client.ping()
                    break
                except blocking.ConnectionError:
                    time.sleep(0.02)
        yield process, port
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


@pytest.mark.services
async def test_limits_are_shared_again_once_redis_is_back(tmp_path):
    with own_server(tmp_path) as (server, port):
        redis = Redis(port=port)
        shared = Limits(redis)
        before = await shared.take([ADDRESS])
        server.send_signal(signal.SIGSTOP)
        during = [await shared.take([ADDRESS]) for _ in range(20)]
        server.send_signal(signal.SIGCONT)
        await asyncio.sleep(1.1)
        after = [await shared.take([USER, ADDRESS]) for _ in range(5)]
        await redis.aclose()

    assert not before.local
    assert all(decision.local for decision in during)
    assert not any(decision.local for decision in after)
    # An answer to a question that nobody waits for any more is not taken for a later one's.
    assert [decision.rate_limit.partition(";")[0] for decision in after] == ['"user"'] * 5
    assert [int(d.rate_limit.split(";r=")[1].split(";")[0]) for d in after] == [29, 28, 27, 26, 25]


async def test_alone_each_of_several_replicas_grants_its_share():
    clock = Stopwatch()
    alone = Limits(None, replicas=3, monotonic_s=clock.monotonic_s)

    granted = sum(alone.take_locally([USER]).allowed for _ in range(100))
    clock.now_us += 3_000_000
    later = sum(alone.take_locally([USER]).allowed for _ in range(100))

    assert (granted, later) == (10, 5)


async def test_what_a_process_remembers_alone_is_bounded(monkeypatch):
    monkeypatch.setattr(limits, "_LOCAL_KEYS", 50)
    alone = Limits(None)

    for n in range(500):
        alone.take_locally([Rule("user", f"u{n}", 5, 30)])

    assert len(alone._local) == 50


@pytest.mark.services
async def test_in_a_cluster_a_refusal_gives_back_what_other_slots_charged(tmp_path, unhurried):
    with own_server(tmp_path, "--cluster-enabled", "yes") as (_, port):
        with blocking.Redis(port=port) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        plain = Redis(port=port)
        await until(lambda: is_led(plain))
        await plain.aclose()
        redis = RedisCluster(host="127.0.0.1", port=port)
        await redis.initialize()
        shared = Limits(redis)
        spent = Rule("user", "u1", rate_per_s=0.01, burst=1)
        slow = Rule("address", "10.0.0.1", rate_per_s=0.01, burst=5)
        first = await shared.take([spent, slow])
        refused = []
        for _ in range(8):
            refused.append(await shared.take([spent, slow]))
            await asyncio.gather(*shared._giving_back)
        look = await shared.look([slow])
        await redis.aclose()

    assert (first.allowed, first.local) == (True, False)
    assert {(d.allowed, d.refused_by, d.local) for d in refused} == {(False, "user", False)}
    assert look.rate_limit.startswith('"address";r=4;')


# what the caller sees


async def test_headers_name_each_rule_with_what_is_left():
    clock = Stopwatch()
    alone = Limits(None, monotonic_s=clock.monotonic_s)

    allowed = alone.take_locally([USER, ADDRESS], 30)
    refused = alone.take_locally([USER, ADDRESS])

    assert allowed.headers == {
        "RateLimit": '"user";r=0;t=6, "address";r=570;t=1',
        "RateLimit-Policy": '"user";q=30;w=6, "address";q=600;w=2',
    }
    assert refused.headers["Retry-After"] == "1"
    refusal = refused.refusal()
    assert isinstance(refusal, Refused)
    assert (refusal.code, refusal.status_code, refusal.headers) == ("rate_limited", 429, refused.headers)


@pytest.mark.parametrize(
    ("address", "counted_as"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::9", "2001:db8:1:3::/64"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", "unknown"),
        ("010.1.2.3", "unknown"),
        ("10.0.0.1{x}", "unknown"),
    ],
)
def test_an_address_is_counted_as_the_sender_it_stands_for(address, counted_as):
    assert address_key(address) == counted_as


@pytest.mark.parametrize(("rate_per_s", "burst"), [(0, 1), (-1, 1), (1, 0)])
def test_a_rule_that_lets_nothing_pass_is_a_mistake(rate_per_s, burst):
    with pytest.raises(ValueError, match="limit user"):
        Rule("user", "u", rate_per_s, burst)
