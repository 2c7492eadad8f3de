"""Runs rows: load, a fault in the middle of it, recovery, rest, and the count.

A row says what is done; all else is the same for each. Against passing without having looked: a
fault waits for progress since the one before and for work in flight, says by which effect it is known
to have taken hold, and a row without confirmed actions, or without what it `wants`, has failed.
"""

from __future__ import annotations

import fcntl
import json
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from core.topics import DEAD, SUBMITTED
from storage.redis.keys import board
from tests.faults import dumping
from tests.faults.checker import builds, check, is_kill
from tests.faults.histories import MAIN, Copy, read
from tests.faults.processes import Process, until
from tests.faults.readers import SOCKETS_EACH, Readers, TopicReader
from tests.faults.rig import PATIENCE_S, Rig
from tests.faults.writers import ANSWER_S, Writers

PER_S = 60.0
PROGRESS = 25
"""Actions judged since the last fault before the next one strikes."""

REST_S = 120.0
Position = tuple[str, int]
Want = Literal["503", "unanswered", "redelivered", "repeated", "duplicates", "again"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the matrix. `act` does it; `wants` must have been seen for it to count."""

    id: str
    what: str
    at_risk: str
    act: Callable[[Scene], None]
    fast: bool
    stack: Literal["main", "own", "trio"]
    wants: frozenset[Want]
    recover_within_s: float
    comes_to_rest: bool
    """False: something stays stopped in the end, as it must; nothing is checked but by the row itself."""
    cannot: str
    """Why it cannot run here, if so."""
    takes_s: float
    """The longest it may take, all in all."""


@dataclass
class Result:
    """What came of a row; written to results.json."""

    id: str
    what: str
    at_risk: str
    verdict: Literal["held", "broken", "not run"]
    struck: int = 0
    kills: int = 0
    """How many of the faults ended a process at once."""
    done: list[str] = field(default_factory=list)
    observed: dict[str, Any] = field(default_factory=dict)
    recovery_s: float | None = None
    within_s: float = 0.0
    accepted_per_s: dict[str, float] = field(default_factory=dict)
    judged_per_s: dict[str, float] = field(default_factory=dict)
    compared: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0


ROWS: dict[str, Row] = {}


def row(
    id: str,
    what: str,
    at_risk: str,
    *,
    fast: bool = False,
    stack: Literal["main", "own", "trio"] = "main",
    wants: frozenset[Want] | set[Want] = frozenset(),
    recover_within_s: float = 60.0,
    comes_to_rest: bool = True,
    cannot: str = "",
    takes_s: float = 600.0,
    into: dict[str, Row] = ROWS,
) -> Callable[[Callable[[Scene], None]], Callable[[Scene], None]]:
    """Put a function into the matrix, or among other rows."""

    def keep(act: Callable[[Scene], None]) -> Callable[[Scene], None]:
        assert id not in into, id
        into[id] = Row(
            id=id,
            what=what,
            at_risk=at_risk,
            act=act,
            fast=fast,
            stack=stack,
            wants=frozenset(wants),
            recover_within_s=recover_within_s,
            comes_to_rest=comes_to_rest,
            cannot=cannot,
            takes_s=takes_s,
        )
        return act

    return keep


class World:
    """A rig with its load and its readers, for many rows one after another."""

    def __init__(self, rig: Rig, *, thorough: bool = False) -> None:
        self.rig, self.thorough = rig, thorough
        self.dice = random.Random(rig.seed)
        rig.up()
        self.writers = Writers(rig, per_s=0.0)
        self.readers = Readers(rig, self.writers)
        self.topics = TopicReader(rig)
        self.writers.start()
        self.readers.start()
        self.topics.start()
        self._dumps = 0

    def close(self) -> None:
        self.writers.impatient = True
        try:
            self.topics.end()
            self.readers.stop()
            self.writers.stop()
        finally:
            self.rig.close()

    # where things stand

    def judged(self) -> int:
        """Actions in the ledger."""
        return int(self.rig.one("SELECT count(*) FROM ledger"))

    def position(self) -> Position:
        """Where the period stands: its own last revision."""
        rows = self.rig.ask(
            "SELECT r.epoch, r.revision FROM deltas d JOIN revisions r USING (revision)"
            " WHERE d.period = %s ORDER BY d.revision DESC LIMIT 1",
            (MAIN,),
        )
        return rows[0] if rows else ("", 0)

    def ends(self) -> dict[tuple[str, int], int]:
        """The end of each partition of each topic; a broker that has just started is asked again."""
        found: dict[tuple[str, int], tuple[int, int]] = {}

        def told() -> bool:
            found.update(_quietly(lambda: dumping.ends(self.rig), {}))
            return bool(found)

        until(told, within_s=60, what="the ends of logs", every_s=0.3)
        return {place: end for place, (_, end) in found.items()}

    def lag(self) -> int:
        """Records of the submitted topic that are not judged."""
        ends = self.ends()
        progress = self.progress()
        return sum(max(0, ends[SUBMITTED.name, p] - progress.get(p, 0)) for p in self._submitted)

    def progress(self) -> dict[int, int]:
        """The next offset of each partition of the log that is read now."""
        return dict(
            self.rig.ask(
                "SELECT partition, next_offset FROM progress WHERE log = (SELECT max(log) FROM logs)"
            )
        )

    def record_lag(self) -> int:
        """Records of the submitted topic that the stream says it has not judged, by its own metric."""
        return int(self.rig.metric("stream", "trueboard_stream_lag_records"))

    def lag_is_short(self) -> bool:
        return self.lag() < 30

    def copied(self) -> Position:
        """Where the copy stands; ("", -1) without one."""
        with self.rig.redis_client() as client:
            epoch, revision = client.hmget(board(MAIN)[2], ["epoch", "revision"])
        return ("", -1) if epoch is None or revision is None else (epoch.decode(), int(revision))

    def feed_delay_s(self, within_s: float) -> float:
        """How long it takes until every socket shows what the ledger shows now."""
        here = self.position()
        return until(lambda: self._feed_at(here), within_s=within_s, what="the feed", every_s=0.02)

    def dump(self, *, all_at_rest: bool) -> Path:
        self._dumps += 1
        where = self.rig.run / "dumps" / str(self._dumps)
        dumping.take(self.rig, where, topic_ids=self.topics.topic_ids, all_at_rest=all_at_rest)
        return where

    # waiting

    def as_before(self, within_s: float) -> float:
        """Wait until what is sent now is confirmed, judged, copied, shown and pushed; how long it took."""
        begun_s = time.monotonic()

        def left_s() -> float:
            return max(1.0, within_s - (time.monotonic() - begun_s))

        confirmed = self.writers.counts.confirmed
        until(lambda: self.writers.counts.confirmed >= confirmed + 3, within_s=left_s(), what="confirmations")
        ends = self.ends()
        until(lambda: _quietly(lambda: self._judged_to(ends)), within_s=left_s(), what="verdicts")
        here = self.position()
        until(lambda: _quietly(self.copied, ("", -1)) >= here, within_s=left_s(), what="the copy")
        until(lambda: self._feed_at(here), within_s=left_s(), what="the feed on every socket")
        until(
            lambda: self.readers.last_page is not None and self.readers.last_page >= here,
            within_s=left_s(),
            what="pages",
        )
        return time.monotonic() - begun_s

    def _judged_to(self, ends: dict[tuple[str, int], int]) -> bool:
        progress = self.progress()
        return all(progress.get(p, 0) >= ends[SUBMITTED.name, p] for p in self._submitted)

    @property
    def _submitted(self) -> range:
        return range(self.rig.partitions[SUBMITTED.name])

    def _feed_at(self, here: Position) -> bool:
        shown = list(self.readers.open_sockets.values())
        return len(shown) == 3 * SOCKETS_EACH and all(at >= here for at in shown)

    def rest(self, within_s: float = REST_S) -> None:
        """Stop writing, and wait until every action has its answer and every follower the last revision."""
        self.writers.rest()
        until(lambda: self.writers.resting, within_s=within_s, what="an answer to every action")
        until(lambda: _quietly(self.lag, 1) == 0, within_s=within_s, what="a verdict on every record")
        until(lambda: _quietly(self.record_lag, 1) == 0, within_s=within_s, what="a lag of 0 by the metric")
        last, here = self.rig.one("SELECT max(revision) FROM revisions"), self.position()
        until(lambda: _quietly(self.copied, ("", -1)) == here, within_s=within_s, what="the copy at the end")
        until(lambda: self._feed_at(here), within_s=within_s, what="the feed at the end")
        until(
            lambda: self.rig.one("SELECT coalesce(min(revision), 0) FROM cursors") >= last,
            within_s=within_s,
            what="the topics at the end",
        )
        ends = self.ends()
        until(lambda: self.topics.caught_up(ends), within_s=within_s, what="the readers of the topics")
        self.rig.event("rest", revision=last)


class Scene:
    """What a row's function works with."""

    def __init__(self, world: World, result: Result) -> None:
        self.world, self.rig, self.result = world, world.rig, result
        self.writers, self.readers, self.topics = world.writers, world.readers, world.topics
        self.links = world.rig.links
        self.unanswered_before = world.writers.counts.unanswered
        self.first_strike_s: float | None = None
        self.healed_s: float | None = None
        self._judged_at_strike = 0

    # a fault

    def progress(self, actions: int = PROGRESS) -> None:
        """Wait until so much was judged since the last fault, with work under way."""
        since = self._judged_at_strike
        until(
            lambda: _quietly(self.world.judged) >= since + actions,
            within_s=PATIENCE_S,
            what=f"{actions} verdicts",
        )
        self.in_flight()

    def in_flight(self) -> None:
        until(
            lambda: self.writers.counts.open_requests > 0,
            within_s=PATIENCE_S,
            what="a request in flight",
            every_s=0.001,
        )

    def strike(self, what: str, fault: Callable[[], Any], *, target: str = "", gate: bool = True) -> Any:
        """Do it, once there is progress and work in flight."""
        if gate:
            if self._judged_at_strike == 0:
                self._judged_at_strike = self.world.judged()
            self.progress()
        done = fault()
        now_s = self.rig.now_s()
        self.first_strike_s = self.first_strike_s or now_s
        self.healed_s = None
        self._count(what)
        if what not in self.result.done:
            self.result.done.append(what)
        self.rig.event("struck", target, text=what)
        self._judged_at_strike = _quietly(self.world.judged, self._judged_at_strike)
        return done

    def _count(self, what: str) -> None:
        self.result.struck += 1
        self.result.kills += is_kill(what)

    def effect(self, what: str, seen: Callable[[], object], within_s: float = 120.0) -> None:
        """See that the fault took hold."""
        took_s = until(lambda: _quietly(seen), within_s=within_s, what=what)
        self.rig.event("effect", text=what, took_s=round(took_s, 3))

    def healed(self) -> None:
        self.healed_s = self.rig.now_s()
        self.rig.event("healed")

    @contextmanager
    def broken(
        self, what: str, fault: Callable[[], Any], cure: Callable[[], Any], target: str = ""
    ) -> Iterator[None]:
        """While the block runs, the fault holds."""
        self.strike(what, fault, target=target)
        try:
            yield
        finally:
            cure()
        self.healed()

    def kill(self, name: str, times: int = 1, *, signal_first: Callable[[], None] | None = None) -> None:
        """SIGKILL and start again, so many times."""
        process = self.rig[name]
        for _ in range(times):
            pid = process.pid
            self.strike(f"SIGKILL {name}", process.kill, target=name)
            self.effect(f"{name} {pid} is gone", lambda: not process.alive)
            process.start()
            assert process.pid != pid
        self.healed()

    def worker_meeting(self, fault: str) -> Process:
        """The worker, started anew: it meets this failpoint, its next run does not."""
        stream = self.rig["stream"]
        self.rig.failpoints["stream"] = fault
        self.strike("SIGTERM of the worker", stream.stop, target="stream")
        stream.start()
        del self.rig.failpoints["stream"]
        return stream

    def die_at(
        self, name: str, places: Sequence[str], provoke: Mapping[str, Callable[[], object]] | None = None
    ) -> None:
        """Let a service end itself at each of these failpoints in turn, and go on.

        `provoke` makes it come there, where load alone does not; such a place is struck at once. The
        others are passed some times before: a record at which one worker after another ends is set aside.
        """
        process = self.rig[name]
        self.strike(f"SIGKILL {name}", process.kill, target=name)
        for place in places:
            asked = (provoke or {}).get(place)
            times = 1 if asked or place.startswith("boards.") else self.world.dice.randint(4, 8)
            self.rig.failpoints[name] = f"{place}=kill@{times}"
            process.start(wait=False)
            if asked:
                until(
                    lambda: process.program.is_ready() or not process.alive,
                    within_s=90,
                    what=f"{name} at work",
                )
                if process.alive:
                    asked()
            until(lambda: not process.alive, within_s=90, what=f"the end of {name} at {place}")
            assert process.exit_code == -signal.SIGKILL, f"{name} ended with {process.exit_code}"
            assert f"failpoint {place} kill" in process.since_start()
            self.note_strike(f"{name} ends at {place}", name)
        del self.rig.failpoints[name]
        process.start()
        self.healed()

    def note_strike(self, what: str, target: str) -> None:
        """A fault that struck by itself."""
        self._count(what)
        self.result.done.append(what)
        self.rig.event("struck", target, text=what)

    def judged_between(self, begin_s: float, end_s: float) -> int:
        """Actions whose revision was committed then."""
        zero_s = self.rig.began_unix_s
        return int(
            self.rig.one(
                "SELECT count(*) FROM revisions JOIN ledger USING (batch)"
                " WHERE committed_at BETWEEN to_timestamp(%s) AND to_timestamp(%s)",
                (zero_s + begin_s, zero_s + end_s),
            )
        )

    # counting

    def observe(self, **what: Any) -> None:
        self.result.observed.update(what)

    def refusals(self, at_least: int, within_s: float = 60.0) -> None:
        """Wait for so many 503 from now on."""
        before = self.writers.counts.statuses[503]
        self.effect(
            f"{at_least} refusals", lambda: self.writers.counts.statuses[503] >= before + at_least, within_s
        )

    def times(self, few: int, many: int) -> int:
        """How often: few times, or many where there is time."""
        return many if self.world.thorough else few

    def shuffled(self, names: list[str]) -> list[str]:
        return self.world.dice.sample(names, len(names))

    def resume(self) -> None:
        """Write again after a rest in the middle of a row."""
        self.writers.per_s = PER_S
        self._judged_at_strike = self.world.judged()

    def dead_letters(self) -> int:
        """Records on the dead-letter topic."""
        return sum(end for (topic, _), end in self.world.ends().items() if topic == DEAD.name)

    def confirmations(self, at_least: int, within_s: float = 60.0) -> None:
        """Wait for so many confirmed actions from now on."""
        before = self.writers.counts.confirmed
        self.effect(
            f"{at_least} confirmations", lambda: self.writers.counts.confirmed >= before + at_least, within_s
        )

    def nobody_was_left_hanging(self) -> None:
        """In this row every request had an answer within the writers' patience."""
        unanswered = self.writers.counts.unanswered - self.unanswered_before
        assert unanswered == 0, f"{unanswered} requests had no answer within {ANSWER_S:.0f} s"

    def none_confirmed(self, for_s: float) -> None:
        """Nothing that is asked for from now on and was not known before is confirmed, for so long."""
        since_s, requests = self.rig.now_s(), sum(self.writers.counts.statuses.values())
        time.sleep(for_s)
        # An answer to an earlier request may still be on its way.
        latest_s = self.writers.latest_newly_confirmed_begun_s
        assert latest_s < since_s, f"an action was confirmed that was sent {latest_s - since_s:.2f} s later"
        assert sum(self.writers.counts.statuses.values()) > requests, "nobody asked meanwhile"


def _quietly(ask: Callable[[], Any], otherwise: Any = 0) -> Any:
    """The answer, or `otherwise` while a server is away."""
    try:
        return ask()
    except AssertionError:
        raise
    except Exception:
        return otherwise


# One row ------------------------------------------------------------------------------------


def run_row(world: World, row: Row, *, per_s: float = PER_S) -> Result:
    """Run a row on a world that is as it should be, and leave it so."""
    result = Result(
        id=row.id, what=row.what, at_risk=row.at_risk, verdict="held", within_s=row.recover_within_s
    )
    rig, begun_s = world.rig, time.monotonic()
    rig.row = row.id
    before = _Before(world)
    rig.event("row", text=row.what, within_s=row.recover_within_s, wants=sorted(row.wants))
    scene = Scene(world, result)
    try:
        world.writers.per_s = per_s
        row.act(scene)
        assert result.struck, "no fault struck"
        if row.comes_to_rest:
            since_s = scene.healed_s if scene.healed_s is not None else rig.now_s()
            world.as_before(row.recover_within_s)
            result.recovery_s = round(rig.now_s() - since_s, 1)
            rig.event("recovered", seconds=result.recovery_s)
            world.rest()
            world.dump(all_at_rest=True)
            findings = check(rig.run)
            result.wrong += findings.wrong[:20]
            result.compared = findings.looked_at
        else:
            world.writers.impatient = True
            world.writers.rest()
        before.count(world, result, scene)
        _must_have_been_seen(row, result)
    except BaseException as error:
        result.wrong.append(f"{type(error).__name__}: {error}"[:2000])
        rig.event("note", error=traceback.format_exc()[-3000:])
        if not isinstance(error, Exception):
            raise
        before.count(world, result, scene)
    finally:
        world.writers.rest()
        result.verdict = "broken" if result.wrong else "held"
        result.seconds = round(time.monotonic() - begun_s, 1)
        rig.event("end", verdict=result.verdict, observed=result.observed)
    if row.comes_to_rest:
        rig.ensure_up()
    return result


class _Before:
    """Counters at the begin of a row."""

    def __init__(self, world: World) -> None:
        counts = world.writers.counts
        self.statuses = counts.statuses.copy()
        self.confirmed, self.again = counts.confirmed, counts.again
        self.duplicates = world.topics.duplicates
        self.begun_s = world.rig.now_s()
        counts.slowest_refusal_s, counts.without_retry_after = 0.0, 0
        self._copies = _size(world.rig.run / "copies.jsonl")
        self._logs = {name: _size(world.rig[name].log) for name in ("stream", "stream2")}

    def count(self, world: World, result: Result, scene: Scene) -> None:
        counts = world.writers.counts
        statuses = counts.statuses - self.statuses
        result.observed |= {
            "attempts": statuses.total(),
            "confirmed": counts.confirmed - self.confirmed,
            "202": statuses[202],
            "503": statuses[503],
            "unanswered": statuses[0],
            "again": counts.again - self.again,
            "duplicates": world.topics.duplicates - self.duplicates,
            "redelivered": self._said(world, "redelivered"),
            "repeated": self._said(world, "repeated"),
            "rebalances": sum(
                _times(world.rig[name].log, begin, _ASSIGNED) for name, begin in self._logs.items()
            ),
            "builds": builds(read(world.rig.run / "copies.jsonl", Copy, begin=self._copies)),
            "kills": result.kills,
        }
        if statuses[503]:
            result.observed["slowest_503_s"] = round(counts.slowest_refusal_s, 1)
            if counts.without_retry_after:
                result.wrong.append(f"I-11: {counts.without_retry_after} refusals without Retry-After")
        odd = {status: n for status, n in statuses.items() if status not in (0, 200, 202, 409, 422, 503)}
        if odd:
            result.wrong.append(f"I-11: answers {odd}")
        _speeds(world, result, self.begun_s, scene)

    def _said(self, world: World, what: str) -> int:
        """What the stream's logs say of its batches since the row began, added up."""
        return sum(added_up(world.rig[name].log, begin, what) for name, begin in self._logs.items())


def _must_have_been_seen(row: Row, result: Result) -> None:
    for name in ("confirmed", *row.wants):
        if not result.observed[name]:
            result.wrong.append(f"it proved nothing: {name} 0")


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


_ASSIGNED = b"_on_partitions_assigned"
"""What Faust logs when partitions were given out anew."""


def _times(log: Path, begin: int, what: bytes) -> int:
    """How many lines of a log, from here on, hold this."""
    if not log.is_file():
        return 0
    with log.open("rb") as file:
        file.seek(begin)
        return sum(what in line for line in file)


def added_up(log: Path, begin: int, what: str) -> int:
    """A field of the batches in a worker's log, from here on, added up."""
    if not log.is_file():
        return 0
    total = 0
    with log.open("rb") as file:
        file.seek(begin)
        for line in file:
            if b'"batch_judged"' in line and line.endswith(b"\n"):
                total += json.loads(line).get(what, 0)
    return total


def _speeds(world: World, result: Result, begun_s: float, scene: Scene) -> None:
    """Actions a second before the first fault, until all was healed, and after."""
    if scene.first_strike_s is None:
        return
    end_s = world.rig.now_s()
    healed_s = scene.healed_s or end_s
    spans = {
        "before": (begun_s, scene.first_strike_s),
        "during": (scene.first_strike_s, healed_s),
        "after": (healed_s, end_s),
    }
    confirmed = world.writers.confirmed_at_s
    zero_s = world.rig.began_unix_s
    judged = _quietly(
        lambda: world.rig.ask(
            "SELECT extract(epoch FROM r.committed_at)::float8, count(*) FROM revisions r JOIN ledger l"
            " USING (batch) WHERE r.committed_at >= to_timestamp(%s) GROUP BY 1",
            (zero_s + begun_s,),
        ),
        [],
    )
    for name, (start_s, stop_s) in spans.items():
        if stop_s - start_s < 0.5:
            continue
        length_s = stop_s - start_s
        accepted = sum(1 for at_s in confirmed if start_s <= at_s < stop_s)
        result.accepted_per_s[name] = round(accepted / length_s, 1)
        counted = sum(n for at_s, n in judged if start_s <= at_s - zero_s < stop_s)
        result.judged_per_s[name] = round(counted / length_s, 1)


def write_results(path: Path, results: list[Result]) -> None:
    """Put results beside those of other rows that are there; a row's own is replaced.

    Rows run beside each other may call this at the same time.
    """
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        known = {one["id"]: one for one in json.loads(file.read() or "[]")}
        known |= {one.id: asdict(one) for one in results}
        ordered = [known[id] for id in (*ROWS, *(known.keys() - ROWS.keys())) if id in known]
        file.truncate(0)
        file.write(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")
