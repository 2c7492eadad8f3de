"""`python -m tests.faults.soak --minutes 10 --seed 7`: a random nemesis, seeded.

Faults overlap as chance has it: each begins at a random moment and is cured a random while later.
Every minute or so all is cured, comes to rest and is counted. The same seed strikes in the same
order; what was under way at each moment is the machine's own. The run is kept when something was wrong.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from storage.redis.keys import board
from tests.faults.checker import check
from tests.faults.engine import PER_S, World
from tests.faults.histories import MAIN
from tests.faults.rig import STARTED, Rig
from tests.faults.tools import direct_user, produce, record
from tests.faults.worlds import Worlds

CALM_EVERY_S = 50.0
LONGEST_S = 8.0


@dataclass
class Fault:
    """What is done, and what undoes it; None where it heals by itself."""

    name: str
    strike: Callable[[], object]
    cure: Callable[[], object] | None = None


class Nemesis:
    """All that may go wrong with a rig, drawn at random."""

    def __init__(self, rig: Rig, dice: random.Random) -> None:
        self.rig, self.dice = rig, dice
        self.under_way: dict[str, tuple[float, Fault]] = {}
        self.struck: Counter[str] = Counter()

    def draw(self) -> tuple[str, Fault] | None:
        """(what it takes hold of, the fault); None if that is broken already."""
        kinds = [self._kill, self._kill, self._pause, self._cut, self._weather, self._redis]
        hold, fault = self.dice.choice([*kinds, self._postgres, self._odd])()
        return None if hold in self.under_way else (hold, fault)

    def _process(self) -> str:
        return self.dice.choice([*STARTED, "stream", "postgres", "valkey", "kafka-1"])

    def _kill(self) -> tuple[str, Fault]:
        process = self.rig[self._process()]
        return process.name, Fault(f"SIGKILL {process.name}", process.kill, lambda: process.start(wait=False))

    def _pause(self) -> tuple[str, Fault]:
        process = self.rig[self._process()]
        return process.name, Fault(f"SIGSTOP {process.name}", process.pause, process.go_on)

    def _link(self) -> str:
        return self.dice.choice(self.rig.links_of(*STARTED))

    def _cut(self) -> tuple[str, Fault]:
        link = self._link()
        how = self.dice.choice(["cut", "blackhole", "half_open"])
        return link, Fault(
            f"{how} {link}",
            lambda: getattr(self.rig.links, how)(link),
            lambda: self.rig.links.heal(link),
        )

    def _weather(self) -> tuple[str, Fault]:
        link = self._link()
        changes: dict[str, Any] = self.dice.choice(
            [
                {"latency_ms": 100, "jitter_ms": 100},
                {"bandwidth_kib_s": 60},
                {"slice_bytes": 200},
                {"limit_bytes": 20_000},
            ]
        )
        return link, Fault(
            f"{next(iter(changes))} on {link}",
            lambda: self.rig.links.set(link, **changes),
            lambda: self.rig.links.heal(link),
        )

    def _redis(self) -> tuple[str, Fault]:
        z, m, meta = board(MAIN)
        what = self.dice.choice([None, z, m, meta])

        def strike() -> None:
            with self.rig.redis_client() as client:
                client.flushall() if what is None else client.delete(what)

        return "valkey", Fault("FLUSHALL" if what is None else f"DEL {what}", strike)

    def _postgres(self) -> tuple[str, Fault]:
        query = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        return "postgres", Fault("pg_terminate_backend", lambda: self.rig.do(query))

    def _odd(self) -> tuple[str, Fault]:
        user = direct_user()
        records = [(user.encode(), b"{"), (user.encode(), record(user, "one")), (user.encode(), None)]
        return "kafka-1", Fault("unreadable records", lambda: produce(self.rig, records))

    def step(self, world: World) -> None:
        """Cure what has lasted long enough, and perhaps strike."""
        now_s = time.monotonic()
        for hold, (until_s, fault) in list(self.under_way.items()):
            if now_s >= until_s:
                del self.under_way[hold]
                self._cured(fault)
        for name in STARTED:
            if not self.rig[name].alive and name not in self.under_way:
                # What ends by itself is started again, as any supervisor would.
                self.rig.event("note", name, exit_code=self.rig[name].exit_code)
                self.rig[name].start(wait=False)
        if len(self.under_way) >= 3:
            return
        drawn = self.draw()
        lasts_s = 0.3 + self.dice.random() * LONGEST_S
        if drawn is None or world.writers.counts.open_requests == 0:
            return
        hold, fault = drawn
        try:
            fault.strike()
        except Exception as error:
            # What it would have struck is down by another fault.
            self.rig.event("note", fault.name, missed=str(error)[:200])
            return
        self.struck[fault.name.split()[0]] += 1
        self.rig.event("struck", hold, text=fault.name)
        if fault.cure is not None:
            self.under_way[hold] = (now_s + lasts_s, fault)

    def calm(self) -> None:
        """Cure everything."""
        for _, fault in self.under_way.values():
            self._cured(fault)
        self.under_way.clear()
        self.rig.ensure_up()
        for process in self.rig.processes.values():
            if process.alive:
                process.wait_ready()

    def _cured(self, fault: Fault) -> None:
        assert fault.cure is not None
        fault.cure()
        self.rig.event("healed", text=fault.name)


def soak(world: World, *, minutes: float, dice: random.Random) -> list[str]:
    """Until the time is over or something is wrong; what is wrong."""
    nemesis = Nemesis(world.rig, dice)
    end_s = time.monotonic() + 60 * minutes
    calms = 0
    while time.monotonic() < end_s:
        calms += 1
        world.rig.row = f"L-11.{calms}"
        world.rig.event("row", text="random nemesis")
        world.writers.per_s = PER_S
        calm_at_s = min(end_s, time.monotonic() + CALM_EVERY_S)
        while time.monotonic() < calm_at_s:
            nemesis.step(world)
            time.sleep(dice.random() * 1.5)
        nemesis.calm()
        recovered_s = world.as_before(60)
        world.rest()
        world.dump(all_at_rest=True)
        findings = check(world.rig.run)
        counts = world.writers.counts
        print(
            f"{calms}: struck {dict(nemesis.struck)}, recovered in {recovered_s:.1f} s, answers"
            f" {dict(counts.statuses)}, duplicates {world.topics.duplicates}, looked at {findings.looked_at}",
            flush=True,
        )
        if findings.wrong:
            return findings.wrong
    if not (counts.statuses[202] and counts.statuses[503] and world.topics.duplicates):
        return ["it proved nothing: no 202, no 503 or no duplicates"]
    return []


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None)
    wanted = parser.parse_args()
    seed = wanted.seed if wanted.seed is not None else random.SystemRandom().randrange(1 << 30)
    worlds = Worlds(seed=seed)
    print(f"seed {seed}, run in {worlds.directory}", flush=True)
    world = worlds.start()
    try:
        wrong = soak(world, minutes=wanted.minutes, dice=random.Random(seed))
    except Exception:
        wrong = [traceback.format_exc()]
    finally:
        world.close()
    if wrong:
        print("\n".join(wrong), f"\nseed {seed}; the run is kept in {worlds.directory}", sep="")
        return 1
    worlds.discard(world)
    print("nothing lost, nothing doubled, nothing shown wrongly")
    return 0


if __name__ == "__main__":
    sys.exit(main())
