"""Two workers' processes, an operator and three servers, one of which may be put back to what it was.

All that decides is the product's. What the product reads of time is moved out of the way: leases end
when the machine says so, nobody waits for a lock, and the comparison that is due once a minute is due
at the end.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import psycopg
import redis

from core.catalogue import Catalogue
from core.errors import Unavailable
from core.times import US
from service import failpoints
from storage import histories, standings
from storage.followers import At
from storage.histories import Histories
from storage.kafka import publishing
from storage.kafka.publishing import Publisher
from storage.postgres import connections, definitions, deltas, epochs
from storage.postgres import ledger as postgres_ledger
from storage.postgres.connections import Connection
from storage.postgres.ledger import Ledger, Position
from storage.redis import boards, keys, scripts
from storage.redis.boards import BoardCopy
from stream_app import hand, positions
from stream_app.carry_out import Judge, OutOfStep, Stopped
from stream_app.guarding import Guarding
from stream_app.hand import Hand
from tests.acceptance import naive
from tests.faults import operators
from tests.model.real import turns
from tests.model.real.recount import PERIOD, Count, Wrong, must, recount
from tests.model.real.topics import Topics
from tests.model.real.turns import TO_THE_END, Killed, Task
from tests.stream_app import world as stream_world

PARTITIONS = 2
USERS = ("ada", "bob", "Cyd", "dee")
KEY = b"0123456789abcdef"
KINDS = ("worker", "keeper", "publisher", "guard")
FIRST_LIMITS = {"soft": 3, "hard": 5}
MOST_BACKUPS = 2
NOTHING_STAYS = -1
ROUNDS = 40
"""Most rounds of everybody until nobody has anything left to do."""


@contextmanager
def time_put_aside() -> Iterator[None]:
    """No lock, lease or interval of the product depends on how fast this machine is."""
    with ExitStack() as stack:
        for owner, name, value in (
            (failpoints, "reach", turns.reach),
            (connections, "TRANSACTION_TIMEOUT_MS", 600_000),
            (connections, "PATIENCE_TRIES", 1),
            (connections, "PATIENCE_PAUSE_S", 0.0),
            (postgres_ledger, "EXCLUSIVE_WAIT_MS", 20),
            (boards, "LIFETIME_S", 600),
            (hand, "COMING_S", 0.0),
            (publishing, "SAVE_EVERY_S", 0.0),
            (publishing, "LOOK_EVERY_S", 0.0),
            (histories, "COMPARE_EVERY_S", 3_600.0),
            # Small, so that a few people need several pages and a few revisions several steps.
            (boards, "PAGE", 2),
            (deltas, "_MOST_REVISIONS", 2),
        ):
            stack.enter_context(patch.object(owner, name, value))
        yield


@dataclass
class Log:
    """The submitted topic as `stream_app.positions` asks about it."""

    of: stream_world.Log

    def ends(self, partitions: set[int]) -> dict[int, tuple[int, int]]:
        return {partition: (0, self.of.end(partition)) for partition in partitions}

    def records(self, offsets: dict[int, int]) -> dict[int, tuple[bytes | None, bytes | None]]:
        found = {partition: self.of.records[partition][offset] for partition, offset in offsets.items()}
        return {partition: (record.key, record.value) for partition, record in found.items()}


@dataclass
class Session:
    """A connection to Postgres, and who opened it."""

    owner: Process | None
    kind: str
    connection: Connection
    pid: int


class Process:
    """One worker's process: it judges, keeps the copies, publishes and compares."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.dead = False
        self.owned: set[int] = set()
        self.tasks: dict[str, Task] = {}
        self.holds: set[int] = set()
        """The partitions of the batch that is under way, while its transaction is open."""
        self.positions: dict[int, int] = {}
        self.log = 0
        self.sought: dict[int, int] = {}
        self.compared = False
        self.moved = False
        self.hand = Hand()
        self.redis = boards.connect(world.redis_url)
        self.histories = Histories(
            postgres_url=world.url,
            bootstrap=world.topics.bootstrap,
            kafka_kind="memory",
            redis_url=world.redis_url,
            erasure_key=self._key,
        )
        self.guarding = Guarding(self.histories, self._no_defect, self._was_compared, self.seek_anew)
        self.looking = Ledger(world.url, name="positions")
        ledger = Ledger(world.url, name="stream")
        ledger.on_lost = self._lost
        self.judge = Judge(
            ledger,
            most_people=3,
            most_rows=60,
            max_late_us=stream_world.DAY_US,
            max_early_us=60 * US,
            on_numbered=self.hand.expect,
            erasure_key=lambda: KEY,
        )
        self.copy = BoardCopy(
            PERIOD,
            postgres_url=world.url,
            client=self.redis,
            in_hand=self.hand.link_after,
            on_lost=self.histories.lost,
        )
        self.publisher = Publisher(
            postgres_url=world.url,
            bootstrap=world.topics.bootstrap,
            kind="memory",
            in_hand=self.hand.content,
        )

    def _no_defect(self, error: BaseException) -> None:
        raise Wrong("a guard met a defect") from error

    def _was_compared(self) -> None:
        self.compared = True

    def _key(self) -> bytes:
        turns.reach("histories.erasing")
        return KEY

    def _lost(self, position: Position) -> None:
        self.histories.lost(At(position.epoch, position.revision, position.digest.hex()))

    # What it does; each may raise Unavailable -----------------------------------------------------

    def judge_some(self, size: int, back: int, look: bool) -> None:
        """Take a group of the partitions this process believes to own, as `stream_app.agent` does."""
        if not self.compared:
            # Nothing is judged before that, by a worker that was started just now.
            self.guarding.round(look=True)
        unknown = self.owned - self.positions.keys()
        if unknown:
            found = positions.find(
                self.looking, Log(self.world.log), lambda: self.world.log.topic_id, unknown, memory=True
            )
            must(not found.stopped, f"partitions stopped though nothing is lost: {found.stopped}")
            self.log = found.log
            self.positions |= found.offsets
            self.moved = True
        slices = []
        for partition in sorted(self.owned):
            end = self.world.log.end(partition)
            first = max(0, self.positions[partition] - back)
            last = min(self.positions[partition] + size, end) - 1
            if first <= last:
                slices.append(self.world.log.slice(partition, first, last))
        if not slices:
            return
        self.moved = self.moved or any(piece.last >= self.positions[piece.partition] for piece in slices)
        try:
            outcome = self.judge.carry_out(self.log, slices)
        except OutOfStep as error:
            if self.sought.get(error.partition) == error.next_offset:
                raise Wrong(f"{error} again") from error
            self.sought[error.partition] = error.next_offset
            self.positions[error.partition] = error.next_offset
            self.moved = True
            return
        except Stopped as error:
            raise Wrong(f"stopped though nothing is lost: {error}") from error
        if outcome.content is not None:
            self.hand.put(outcome.content)
        for piece in slices:
            self.sought.pop(piece.partition, None)
            self.positions[piece.partition] = max(self.positions[piece.partition], piece.last + 1)

    def keep(self, size: int, back: int, look: bool) -> None:
        """A step of the copy; now and then a look of the reconciler."""
        if back:
            if self.copy.compare(most=size):
                self.copy.discard()
                self.copy.step()
                self.moved = True
        elif self.copy.step(look=look):
            self.moved = True

    def publish(self, size: int, back: int, look: bool) -> None:
        if self.publisher.step(look=look):
            self.moved = True

    def compare(self, size: int, back: int, look: bool) -> None:
        self.guarding.round(look=look)

    def seek_anew(self) -> None:
        """Every partition is looked up in Postgres before it is read on."""
        self.positions.clear()
        self.sought.clear()
        self.moved = True


@dataclass(frozen=True)
class Begun:
    """A server, and the name of a database in which a history has begun: every run goes on from a copy."""

    postgres_url: str
    name: str


@contextmanager
def begun(postgres_url: str, template: str) -> Iterator[Begun]:
    """The first revision: the board, and a catalogue."""
    with stream_world.fresh_database(postgres_url, template) as url:
        definitions.apply(url, stream_world.toml("0", **FIRST_LIMITS))
        yield Begun(postgres_url, _name(url))


def _name(url: str) -> str:
    return urlsplit(url).path[1:]


class World:
    """Everything, at one moment."""

    def __init__(self, begun: Begun, redis_url: str, topics: Topics) -> None:
        self.stack = ExitStack()
        self.stack.enter_context(time_put_aside())
        self.stack.enter_context(
            patch.object(connections, "_connect", partial(self._connected, connections._connect))
        )
        self.url = self.stack.enter_context(stream_world.fresh_database(begun.postgres_url, begun.name))
        self.database = _name(self.url)
        self.admin = self.stack.enter_context(psycopg.connect(begun.postgres_url, autocommit=True))
        self.watching: psycopg.Connection[Any] | None = None
        self.sessions: list[Session] = []
        self.opening: Process | None = None
        self.opening_kind = "operator"
        self.redis_url, self.topics = redis_url, topics
        self.redis = redis.Redis.from_url(redis_url)
        self.redis.flushall()
        self._page = self.redis.register_script(scripts.source("board_page"))
        self.log = stream_world.Log()
        for partition in range(PARTITIONS):
            self.log.records[partition], self.log.made_of[partition] = [], []
        self.actions = 0
        self.clock_s = 0
        self.limits = {"0": FIRST_LIMITS}
        self.backups = [begun.name]
        self.snapshots: list[dict[bytes, tuple[int, bytes]]] = []
        self.seen: Counter[str] = Counter()
        self.shown: dict[At, list[dict[str, naive.Standing]]] = defaultdict(list)
        """What each position showed. There are two where a person's erasure was lost with a restore and
        another person was erased in its place: no digest says whom a revision erased."""
        self.users: dict[str, str] = {}
        """pid → user id of everybody there ever was."""
        self.buried: set[str] = set()
        self.count: Count | None = None
        self.late_publisher = False
        """Whether one lost its session between reading what it was to send and sending it. What it then
        says of people may be older than what the next one has said already, and stays the last word."""
        self._harmed = False
        self._last: tuple[str, int] = ("", 0)
        with psycopg.connect(self.url) as connection, connection.cursor() as cursor:
            epochs.made_good(cursor, epochs.look(cursor).incarnation)
        self.processes = [Process(self, "one"), Process(self, "two")]
        for process in self.processes:
            # They have been running for a while.
            process.histories._compared_s = time.monotonic()
            self.run(process, "guard")
        for partition in range(PARTITIONS):
            self.processes[partition % 2].owned.add(partition)
        self.snapshots.append({})

    # Sessions ------------------------------------------------------------------------------------

    def _connected(self, connect: Callable[..., Connection], url: str, **given: Any) -> Connection:
        """A session that is known by its owner, and whose end is waited for when it is closed."""
        if self.opening is not None and self.opening.dead:
            raise Unavailable("this process is no more")
        connection = connect(url, **given)
        pid = connection.info.backend_pid
        session = Session(self.opening, self.opening_kind, connection, pid)
        close = connection.close

        def closed() -> None:
            if not connection.closed:
                close()
                self._await_end(pid)

        connection.close = closed  # type: ignore[method-assign]
        self.sessions.append(session)
        return connection

    def _await_end(self, pid: int) -> None:
        while self.admin.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone():
            time.sleep(0.001)

    def end_sessions(self, of: Callable[[Session], bool]) -> None:
        """The server ends these, and whoever holds one learns of it when it is used next."""
        ended = [session for session in self.sessions if not session.connection.closed and of(session)]
        for session in ended:
            self.admin.execute("SELECT pg_terminate_backend(%s)", (session.pid,))
            self._loses(session)
        for session in ended:
            self._await_end(session.pid)
        self.sessions = [session for session in self.sessions if session not in ended]

    def _loses(self, session: Session) -> None:
        """What its owner holds no more, and may not know of."""
        owner = session.owner
        if owner is None or owner.dead:
            return
        if session.kind == "worker":
            owner.holds = set()
        task = owner.tasks.get("publisher")
        if session.kind == "publisher" and task is not None and task.place == "topics.sending":
            self.late_publisher = True

    def _alone(self) -> None:
        """Nobody is connected to the database."""
        if self.watching is not None:
            self.watching.close()
            self.watching = None
        self.end_sessions(lambda _: True)

    # What happens --------------------------------------------------------------------------------

    def submit(self, user: int, type_: str, points: int | None, name: str | None, apart_s: int) -> None:
        self.actions += 1
        self.clock_s += apart_s
        at_us = stream_world.NOW_US + self.clock_s * US + self.actions
        self._append(
            stream_world.submitted(
                USERS[user], f"a{self.actions}", type_, points=points, at_us=at_us, username=name
            )
        )

    def submit_again(self, which: int) -> None:
        known = [action for run in self.log.made_of.values() for action in run if action is not None]
        if known:
            self._append(known[which % len(known)])

    def _append(self, action: naive.Submitted) -> None:
        self.log.append(USERS.index(action.user_id) % PARTITIONS, action)

    def _stands(self, process: Process, place: str) -> bool:
        """Whether it stands there in an open transaction."""
        task = process.tasks.get("worker")
        if task is None or task.place is None or task.place == "ledger.committed":
            return False
        return bool(process.holds) and task.place.startswith(place)

    def run(
        self,
        process: Process,
        kind: str,
        *,
        places: int = TO_THE_END,
        size: int = 4,
        back: int = 0,
        look: bool = True,
    ) -> bool:
        """Let a process go on with this, by some places; False where it has to wait for another."""
        task = process.tasks.get(kind)
        others = [other for other in self.processes if other is not process]

        def must_wait(place: str) -> bool:
            # What comes next is the revision lock.
            return place == "ledger.progress_moved" and any(
                self._stands(other, "ledger.numbered") for other in others
            )

        if task is None:
            if kind == "worker":
                if any(self._stands(other, "ledger.") and process.owned & other.holds for other in others):
                    return False
                process.holds = set(process.owned)
            calls = {
                "worker": process.judge_some,
                "keeper": process.keep,
                "publisher": process.publish,
                "guard": process.compare,
            }
            do = partial(calls[kind], size, back, look)

            task = process.tasks[kind] = Task(do, must_wait)
        elif task.place is not None and must_wait(task.place):
            return False
        self._turn(process, kind, lambda: task.go(places))
        return True

    def _turn(self, process: Process, kind: str, go: Callable[[], None]) -> None:
        self.opening, self.opening_kind = process, kind
        task = process.tasks[kind]
        try:
            go()
        except Unavailable as error:
            self.seen[f"{kind} waits: {str(error).split(':')[0][:40]}"] += 1
        finally:
            self.opening, self.opening_kind = None, "operator"
            if kind == "publisher" and process.publisher._producer is not None:
                # What was given to the producer is on the log before anybody else goes on.
                process.publisher._producer.flush(10)
            if task.ended:
                del process.tasks[kind]
                if kind == "worker":
                    process.holds = set()
            elif task.place is not None:
                self.seen[task.place] += 1

    def fail(self, process: Process, kind: str) -> None:
        """Whoever stands there meets a server that is away; behind a commit its reply was lost."""
        if kind in process.tasks:
            self._turn(process, kind, lambda: process.tasks[kind].throw(Unavailable("meant to fail")))

    def kill(self, process: Process) -> None:
        """`kill -9`: what it had at hand is gone, and another is started in its place."""
        self._end(process)
        again = Process(self, process.name)
        again.owned = process.owned
        self.processes[self.processes.index(process)] = again

    def _end(self, process: Process) -> None:
        process.dead = True

        def nothing(*_: Any, **__: Any) -> Any:
            raise redis.ConnectionError("this process is no more")

        pool = process.redis.connection_pool
        pool.disconnect()
        pool.get_connection = nothing  # type: ignore[method-assign]
        self.end_sessions(lambda session: session.owner is process)
        for kind in list(process.tasks):
            self._turn(process, kind, lambda kind=kind: process.tasks[kind].throw(Killed()))  # type: ignore[misc]
        with suppress(Unavailable):
            process.publisher._let_go()
        for close in (process.copy.close, process.judge.ledger.close, process.looking.close):
            close()
        process.histories.close()

    def lose_session(self, process: Process, kind: str) -> None:
        self.end_sessions(lambda session: session.owner is process and session.kind == kind)

    def rebalance(self, partition: int, to: int, told: bool) -> None:
        """A partition goes to another worker; the one before may not have heard of it."""
        for number, process in enumerate(self.processes):
            if number == to and partition not in process.owned:
                process.owned.add(partition)
                process.positions.pop(partition, None)
                process.sought.pop(partition, None)
            elif number != to and told:
                process.owned.discard(partition)

    def read_back(self, process: Process, partition: int, to: int) -> None:
        """A worker goes back to records that it had read already."""
        if partition in process.positions:
            process.positions[partition] = min(process.positions[partition], to)

    # Operators -----------------------------------------------------------------------------------

    def define(self, soft: int, more: int) -> None:
        """Put a catalogue in force that was never there before."""
        version = str(len(self.limits))
        limits = {"soft": soft, "hard": soft + more}
        self.limits[version] = limits
        # The caller's part: a ledger that may have lost revisions is compared first.
        connections.connect(self.url, name="operator").close()
        definitions.apply(self.url, stream_world.toml(version, **limits))

    def catalogue(self, version: str) -> Catalogue:
        return stream_world.catalogue(version, **self.limits[version])

    def erase(self, user: int) -> None:
        self._operate(lambda ledger: self._erase(ledger, USERS[user]))

    def _erase(self, ledger: Ledger, user: str) -> None:
        with ledger.looking() as cursor:
            row = cursor.execute("SELECT pid::text FROM players WHERE user_id = %s", (user,)).fetchone()
        if row is not None and epochs.erase(ledger, KEY, [row[0]]):
            self.seen["erased"] += 1

    def decide(self, which: int, verdict: str) -> None:
        """Accept or reject an action by hand, whatever was said of it before."""

        def add(ledger: Ledger) -> None:
            with ledger.exclusive() as batch:
                found = batch.execute(
                    "SELECT user_id, action_id, max(seq) + 1 FROM ledger JOIN players USING (player)"
                    " WHERE user_id IS NOT NULL GROUP BY user_id, action_id ORDER BY user_id, action_id"
                ).fetchall()
                if found:
                    operators._add_decision(batch, *found[which % len(found)], verdict)
                    self.seen["decided"] += 1

        self._operate(add)

    def _operate(self, what: Callable[[Ledger], None]) -> None:
        ledger = Ledger(self.url, name="operator")
        try:
            what(ledger)
        finally:
            ledger.close()

    # Servers -------------------------------------------------------------------------------------

    def back_up(self, _: int) -> None:
        """A copy of the whole database, which nobody uses meanwhile."""
        if len(self.backups) > MOST_BACKUPS:
            return
        name = f"{self.database}_{secrets.token_hex(3)}"
        self._alone()
        self.admin.execute(f"CREATE DATABASE {name} TEMPLATE {self.database}")
        self.stack.callback(lambda: self.admin.execute(f"DROP DATABASE {name} WITH (FORCE)"))
        self.backups.append(name)

    def restore(self, which: int) -> None:
        """Another database under the same name, as it was at a backup."""
        self.topics.read()
        told = self.topics.buried()
        self._alone()
        self.admin.execute(f"DROP DATABASE {self.database} WITH (FORCE)")
        self.admin.execute(
            f"CREATE DATABASE {self.database} TEMPLATE {self.backups[which % len(self.backups)]}"
        )
        self.buried |= told
        self.count = None
        self.seen["restored"] += 1

    def flush(self, _: int) -> None:
        self.redis.flushall()
        self._harmed = True

    def lose_key(self, which: int) -> None:
        self.redis.delete(keys.board(PERIOD)[which % 3])
        self._harmed = True

    def snapshot(self, _: int) -> None:
        self.snapshots.append(
            {
                key: (max(0, self.redis.pttl(key)), value)
                for key in self.redis.scan_iter(f"tb:{{{PERIOD}}}*")
                if (value := self.redis.dump(key)) is not None
            }
        )

    def put_back(self, which: int) -> None:
        """Redis as it was at a snapshot, half-made builds included."""
        self.redis.flushall()
        for key, (lives_ms, value) in self.snapshots[which % len(self.snapshots)].items():
            self.redis.restore(key, lives_ms, value)
        self._harmed = True
        self.seen["put back"] += 1

    def expire(self, but: int) -> None:
        """The time of a build is over: its keys go, maybe all but one for now."""
        for number, key in enumerate(sorted(self.redis.scan_iter(f"tb:{{{PERIOD}}}:build:*"))):
            if but == NOTHING_STAYS or number != but % 5:
                self.redis.delete(key)

    # What must hold ------------------------------------------------------------------------------

    def check(self) -> None:
        """What can be read now is the ledger at the position it names."""
        self._learn()
        self._check_copy()

    def _learn(self) -> None:
        if self.watching is None or self.watching.closed:
            self.watching = psycopg.connect(self.url, autocommit=True)
        head = self.watching.execute(
            "SELECT epoch, revision, encode(digest, 'hex') FROM revisions ORDER BY revision DESC LIMIT 1"
        ).fetchone()
        assert head is not None
        if self.count is not None and self.count.head == At(*head):
            return
        self.count = recount(self.watching, self.catalogue)
        for pid, (user_id, _) in self.count.names.items():
            if user_id is not None:
                self.users[pid] = user_id
        for at, shown in self.count.shown.items():
            if shown not in self.shown[at]:
                self.shown[at].append(shown)

    def _check_copy(self) -> None:
        raw = self._whole_page()
        if raw is None:
            self._last = ("", 0)
            return
        page = standings._read_page(raw)
        at = At(page.epoch, page.revision, page.digest)
        must(at in self.shown, f"the copy names {at}, which the ledger never had")
        expected = [self._ranked(shown) for shown in self.shown[at]]
        found = [(entry.rank, entry.user_id, entry.score, entry.reached_at_us) for entry in page.entries]
        must(found in expected, f"the copy shows {found} at {at}, the ledger {expected}")
        must(page.count == len(found), f"the copy counts {page.count} of {len(found)}")
        assert self.count is not None
        if at == self.count.chain[-1]:
            names = {user_id: name or user_id for user_id, name in self.count.names.values() if user_id}
            wrong = [entry for entry in page.entries if entry.username != names.get(entry.user_id)]
            must(not wrong, f"the copy calls them {wrong}, the ledger {names}")
        must(
            self._harmed or page.at >= self._last,
            f"the copy went back from {self._last} to {page.at} by itself",
        )
        self._last, self._harmed = page.at, False

    def _ranked(self, shown: dict[str, naive.Standing]) -> list[tuple[int, str, int, int]]:
        return naive.ranked({self.users[pid]: standing for pid, standing in shown.items()})

    def _whole_page(self) -> list[Any] | None:
        """The copy as readers are given it (`storage.standings`)."""
        try:
            raw: list[Any] | None = self._page(keys=list(keys.board(PERIOD)), args=[1000, b""])
        except redis.ResponseError:
            return None
        return raw

    def read_topics(self) -> None:
        self.topics.read()
        self._learn()
        assert self.count is not None
        self.topics.check(self.shown, self.users, self.count)

    # The end -------------------------------------------------------------------------------------

    def finish(self) -> None:
        """No more faults: everybody goes on until nobody has anything to do, and all agree."""
        self._come_to_rest()
        # What is due once a minute, and every ten seconds.
        with patch.object(histories, "COMPARE_EVERY_S", 0.0):
            self._patiently(self.processes[0], "guard")
        for process in self.processes:
            self._patiently(process, "keeper", size=1000, back=1)
        self._come_to_rest()
        self._must_agree()

    def _patiently(self, process: Process, kind: str, **how: int) -> None:
        for _ in range(ROUNDS):
            if self.run(process, kind, **how) and kind not in process.tasks:
                return
        raise Wrong(f"{kind} of {process.name} never comes to an end")

    def _come_to_rest(self) -> None:
        for partition in range(PARTITIONS):
            owners = [number for number, process in enumerate(self.processes) if partition in process.owned]
            self.rebalance(partition, owners[0] if owners else 0, True)
        self.expire(NOTHING_STAYS)
        for _ in range(ROUNDS):
            waiting = sum(count for what, count in self.seen.items() if "waits" in what)
            for process in self.processes:
                process.moved = False
                for kind in ("guard", "worker", "keeper", "publisher"):
                    self.run(process, kind)
                    self.check()
            still = sum(count for what, count in self.seen.items() if "waits" in what) == waiting
            if still and not any(process.moved or process.tasks for process in self.processes):
                return
        raise Wrong("it never comes to rest")

    def _must_agree(self) -> None:
        self.check()
        assert self.count is not None
        assert self.watching is not None
        count, ask = self.count, self.watching.execute
        progress = dict(ask("SELECT partition, next_offset FROM progress").fetchall())
        ends = {partition: self.log.end(partition) for partition in range(PARTITIONS)}
        must(progress == ends, f"the ledger stands at {progress}, the log ends at {ends}")
        hashes = {bytes(row[0]) for row in ask("SELECT user_hash FROM erased_users").fetchall()}
        erased = {user for user in USERS if epochs.user_hash(KEY, user) in hashes}
        counted = {(self.users[row.pid], row.action_id) for row in count.rows if not row.seq}
        for run in self.log.made_of.values():
            for action in run:
                assert action is not None
                must(
                    (action.user_id, action.action_id) in counted or action.user_id in erased,
                    f"{action} was confirmed and is not counted",
                )
        known = {pid for pid, (user_id, _) in count.names.items() if user_id is not None}
        must(not known & self.buried, f"{known & self.buried} were erased, and a restore brought them back")
        raw = self._whole_page()
        must(raw is not None, "there is no copy at the end")
        assert raw is not None
        page = standings._read_page(raw)
        at = At(page.epoch, page.revision, page.digest)
        must(at == count.chain[-1], f"the copy ends at {at}, the ledger at {count.chain[-1]}")
        found = [(entry.rank, entry.user_id, entry.score, entry.reached_at_us) for entry in page.entries]
        must(found == self._ranked(count.shown[at]), f"the copy ends with {found}, not {count.shown[at]}")
        self.read_topics()
        self.topics.must_end_with(count, with_people=not self.late_publisher)

    def close(self) -> None:
        for process in getattr(self, "processes", []):
            if not process.dead:
                self._end(process)
        if self.watching is not None:
            self.watching.close()
        self.redis.close()
        self.stack.close()
