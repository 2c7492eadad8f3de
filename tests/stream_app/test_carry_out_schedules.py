"""Any schedule of workers gives the ledger that one careful clerk would have written.

Several workers over one ledger: some hold a partition, some come back to it after others went on
(zombies with all they had at hand), some die before or just after their commit, get records again
or out of step, while catalogues change between groups. After every step the ledger is compared
with a naive one that took each record once, in the order of the log.

`TRUEBOARD_EXAMPLES` sets how many schedules are tried (default 20).
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from core.errors import Unavailable
from core.times import US
from storage.postgres import arrays, connections, contents, definitions
from storage.postgres.ledger import OpenBatch
from stream_app import carry_out
from stream_app.carry_out import OutOfStep, record_fingerprint
from tests.acceptance import naive
from tests.stream_app import world

PARTITIONS = 2
USERS = ("ada", "bob", "Cyd", "dee", "eve")
WORKERS = 3

instants_s = st.one_of(
    st.integers(0, 120),
    st.integers(0, 7200),
    st.integers(-2 * 86_400, 0),
    st.integers(-40 * 86_400, -30 * 86_400),
)


class Crash(Exception):
    """A worker ends here."""


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Any:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield before
    finally:
        setattr(owner, name, before)


class Schedules(RuleBasedStateMachine):
    postgres_url: str
    template: str

    @initialize(looked_up=st.sampled_from([1, carry_out.LOOKED_UP]))
    def begin(self, looked_up) -> None:
        self.stack = ExitStack()
        self.stack.enter_context(replaced(carry_out, "LOOKED_UP", looked_up))
        self.url = self.stack.enter_context(world.fresh_database(self.postgres_url, self.template))
        definitions.apply(self.url, world.toml("0"))
        self.catalogue = world.catalogue("0")
        self.log = world.Log()
        world.adopt(self.url, self.log, range(PARTITIONS))
        self.workers = [world.worker(self.url, most_people=4) for _ in range(WORKERS)]
        self.model = naive.Judged()
        self.next_offsets = dict.fromkeys(range(PARTITIONS), 0)
        self.clock_s = 0
        self.changed = True
        self.last = None
        self.actions = 0
        self.versions = 0
        self.names_changed: set[str] = set()

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            for judge in self.workers:
                judge.ledger.close()
            self.stack.close()

    # what users do ------------------------------------------------------------------------------

    @rule(
        user=st.sampled_from(USERS),
        type_=st.sampled_from(["level", "level", "level", "slow", "points", "badge", "unheard_of"]),
        points=st.none() | st.integers(-120, 1010),
        shift_s=instants_s,
        delay_s=st.integers(0, 90),
        backfill=st.booleans(),
        name=st.none() | st.sampled_from(["Ada", "Bo b", "Zoë ☃"]),
        copies=st.integers(1, 7),
        apart_ms=st.sampled_from([0, 1, 400, 5000]),
    )
    def submit(self, user, type_, points, shift_s, delay_s, backfill, name, copies, apart_ms) -> None:
        for _ in range(copies):
            self.actions += 1
            self.clock_s += 1
            occurred_us = world.NOW_US + (self.clock_s + shift_s) * US + self.actions * apart_ms * 1000
            received_us = world.NOW_US + (self.clock_s + delay_s) * US
            if not backfill:
                # The door lets nothing else through.
                occurred_us = max(received_us - world.DAY_US, min(received_us + 60 * US, occurred_us))
            self._append(
                world.submitted(
                    user,
                    f"a{self.actions}",
                    type_,
                    points=points,
                    at_us=occurred_us,
                    received_us=received_us,
                    backfill=backfill,
                    username=name,
                )
            )

    @precondition(lambda self: self.actions)
    @rule(
        which=st.integers(0, 10_000), name=st.none() | st.just("Again"), other_points=st.none() | st.just(5)
    )
    def submit_again(self, which, name, other_points) -> None:
        known = [action for run in self.log.made_of.values() for action in run if action is not None]
        action = known[which % len(known)]
        self._append(
            world.submitted(
                action.user_id,
                action.action_id,
                action.type,
                points=action.points if other_points is None else other_points,
                at_us=action.occurred_us,
                received_us=action.received_us + 5 * US,
                backfill=action.backfill,
                username=name,
            )
        )

    @rule(
        value=st.sampled_from([None, b"", b"{}", b"\xff", b'{"user_id":"ada"}']), partition=st.integers(0, 1)
    )
    def poison(self, value, partition) -> None:
        self.log.append_raw(partition, value)

    def _append(self, action: naive.Submitted) -> None:
        self.log.append(USERS.index(action.user_id) % PARTITIONS, action)

    # what workers do ----------------------------------------------------------------------------

    def _slices(self, partitions: set[int], size: int, back: int) -> list[Any]:
        slices = []
        for partition in sorted(partitions):
            first = max(0, self.next_offsets[partition] - back)
            last = min(self.next_offsets[partition] + size, self.log.end(partition)) - 1
            if last >= first:
                slices.append(self.log.slice(partition, first, last))
        return slices

    def _taken(self, slices: list[Any]) -> None:
        """What a committed group has to come to."""
        for piece in slices:
            for offset in range(self.next_offsets[piece.partition], piece.last + 1):
                action = self.log.made_of[piece.partition][offset]
                if action is not None:
                    self.model.take(self.catalogue, action)
            self.next_offsets[piece.partition] = max(self.next_offsets[piece.partition], piece.last + 1)
        self.changed = True

    groups: ClassVar[dict[str, Any]] = {
        "who": st.integers(0, WORKERS - 1),
        "partitions": st.sets(st.integers(0, PARTITIONS - 1), min_size=1),
        "size": st.integers(1, 12),
        "back": st.sampled_from([0, 0, 0, 1, 5]),
    }

    @rule(**groups)
    def work(self, who, partitions, size, back) -> None:
        slices = self._slices(partitions, size, back)
        if not slices:
            return
        outcome = self.workers[who].carry_out(self.log.number, slices)

        self._taken(slices)
        self.last = outcome

    @rule(**groups)
    def die_before_the_commit(self, who, partitions, size, back) -> None:
        slices = self._slices(partitions, size, back)
        if not slices:
            return

        def crash(*_: Any, **__: Any) -> None:
            raise Crash

        with replaced(OpenBatch, "move_progress", crash), replaced(OpenBatch, "append", crash):
            try:
                self.workers[who].carry_out(self.log.number, slices)
            except Crash:
                self.changed = True
            else:
                # Nothing was to be written: only repeats, and progress stood there already.
                self._taken(slices)

    @rule(**groups)
    def lose_the_server_in_between(self, who, partitions, size, back) -> None:
        slices = self._slices(partitions, size, back)
        if not slices:
            return
        existing = OpenBatch.existing

        def cut(batch: OpenBatch, *given: Any) -> Any:
            with psycopg.connect(self.url, autocommit=True) as other:
                pid = batch._cursor.connection.info.backend_pid
                other.execute("SELECT pg_terminate_backend(%s)", (pid,))
            return existing(batch, *given)

        with replaced(OpenBatch, "existing", cut):
            try:
                self.workers[who].carry_out(self.log.number, slices)
            except Unavailable:
                self.changed = True
            else:
                self._taken(slices)

    @rule(**groups)
    def lose_the_reply_to_the_commit(self, who, partitions, size, back) -> None:
        slices = self._slices(partitions, size, back)
        if not slices:
            return
        judge = self.workers[who]
        transaction = judge.ledger._transaction

        @contextmanager
        def forgotten() -> Any:
            with transaction() as cursor:
                yield cursor
            raise Unavailable("the commit's reply was lost")

        with replaced(judge.ledger, "_transaction", forgotten), pytest.raises(Unavailable):
            judge.carry_out(self.log.number, slices)
        self._taken(slices)

    @rule(who=st.integers(0, WORKERS - 1), partition=st.integers(0, PARTITIONS - 1))
    def read_out_of_step(self, who, partition) -> None:
        first = self.next_offsets[partition] + 1
        if first >= self.log.end(partition):
            return
        with pytest.raises(OutOfStep) as found:
            self.workers[who].carry_out(self.log.number, [self.log.slice(partition, first)])

        assert found.value.next_offset == self.next_offsets[partition]

    @rule(who=st.integers(0, WORKERS - 1))
    def restart(self, who) -> None:
        self.workers[who].ledger.close()
        self.workers[who] = world.worker(self.url, most_people=4)

    @rule(soft=st.integers(1, 4), more=st.integers(0, 3), sum_soft=st.integers(20, 3000))
    def change_the_catalogue(self, soft, more, sum_soft) -> None:
        self.versions += 1
        limits = {"soft": soft, "hard": soft + more, "sum_soft": sum_soft, "sum_hard": 2 * sum_soft}
        definitions.apply(self.url, world.toml(str(self.versions), **limits))
        self.catalogue = world.catalogue(str(self.versions), **limits)
        self.changed = True

    # what must hold ----------------------------------------------------------------------------

    @invariant()
    def the_ledger_is_the_naive_one(self) -> None:
        if not getattr(self, "changed", False):
            return
        self.changed = False
        with psycopg.connect(self.url) as connection:
            self._rows(connection)
            self._followed(connection)
            self._people(connection)
        if self.last is not None and self.last.content is not None:
            self._in_hand(self.last.content)
        self.last = None

    def _rows(self, connection: psycopg.Connection) -> None:
        found = connection.execute(
            "SELECT l.action_id, p.user_id, l.type, l.verdict, l.reason, l.points, l.catalogue_version,"
            f" {naive.us('l.occurred_at')}, {naive.us('l.received_at')}, l.seq, l.kind"
            " FROM ledger l JOIN players p USING (player)"
        ).fetchall()
        said = {(row[0], row[1]): row[2:] for row in found}
        assert len(said) == len(found)
        assert said == {
            key: (
                expected.action.type,
                expected.verdict,
                msgspec.to_builtins(expected.reason),
                expected.points,
                expected.catalogue,
                expected.action.occurred_us,
                expected.action.received_us,
                0,
                "judged",
            )
            for key, expected in self.model.rows.items()
        }

    def _followed(self, connection: psycopg.Connection) -> None:
        recounted = naive.entries(connection)
        assert naive.stored_entries(connection) == recounted
        assert naive.folded_deltas(connection) == recounted
        chain = connection.execute("SELECT revision, encode(digest, 'hex') FROM revisions ORDER BY 1")
        assert chain.fetchall() == naive.digest_chain(connection)
        assert [revision for revision, _ in naive.digest_chain(connection)] == list(
            range(1, connection.execute("SELECT count(*) + 1 FROM revisions").fetchone()[0])
        )
        progress = connection.execute(
            "SELECT partition, log, next_offset, fingerprint FROM progress ORDER BY partition"
        ).fetchall()
        assert progress == [
            (partition, self.log.number, next_offset, self._fingerprint(partition, next_offset - 1))
            for partition, next_offset in self.next_offsets.items()
        ]
        aside = connection.execute("SELECT partition, record_offset FROM set_aside ORDER BY 1, 2").fetchall()
        assert aside == [
            (partition, offset)
            for partition, next_offset in self.next_offsets.items()
            for offset in range(next_offset)
            if self.log.made_of[partition][offset] is None
        ]

    def _fingerprint(self, partition: int, offset: int) -> bytes | None:
        if offset < 0:
            return None
        record = self.log.records[partition][offset]
        return record_fingerprint(record.key, record.value)

    def _people(self, connection: psycopg.Connection) -> None:
        names = dict(connection.execute("SELECT user_id, username FROM players").fetchall())
        assert names == self.model.names
        introduced = connection.execute(
            "SELECT p.user_id FROM people_changed c, unnest(c.players) u(player)"
            " JOIN players p USING (player)"
        ).fetchall()
        assert {row[0] for row in introduced} == set(names)

    def _in_hand(self, content: contents.Content) -> None:
        """What the worker hands on is what anybody reads back."""
        with connections.connect(self.url, name="tests") as connection:
            arrays.register(connection.adapters)
            with connection.transaction(), connection.cursor(binary=True) as cursor:
                (read,) = contents.read(cursor, content.at.revision - 1)

        assert content == read


@pytest.mark.services
@pytest.mark.timeout(600)
def test_any_schedule_of_workers_writes_the_ledger_of_one_careful_clerk(request, postgres_url):
    class Here(Schedules):
        pass

    Here.postgres_url, Here.template = postgres_url, request.getfixturevalue("_template")
    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=int(os.environ.get("TRUEBOARD_EXAMPLES", "20")),
            stateful_step_count=40,
            deadline=None,
            # Without the variable the same schedules every time; with it others at each run.
            derandomize="TRUEBOARD_EXAMPLES" not in os.environ,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
