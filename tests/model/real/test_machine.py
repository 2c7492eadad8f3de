"""Whatever happens to the product over real servers, what is shown is the ledger.

`TRUEBOARD_EXAMPLES` sets how many runs are tried (default 8); without it they are the same each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from core.errors import Unavailable
from tests.model.playing import play_as_asked
from tests.model.real import topics
from tests.model.real.careless import careless
from tests.model.real.recount import Wrong
from tests.model.real.topics import Topics
from tests.model.real.world import KINDS, PARTITIONS, USERS, Begun, World, begun
from trueboard.devstack.kafka.memory import MockCluster

pytestmark = pytest.mark.services

two = st.integers(0, 1)
kinds = st.sampled_from(KINDS)
any_of_many = st.integers(0, 99)
submissions = st.lists(
    st.tuples(
        st.integers(0, len(USERS) - 1),
        st.sampled_from(["level", "level", "points", "badge", "unheard_of"]),
        st.sampled_from([1, 2, 900]),
        st.sampled_from([None, None, "Ada", "Zoë ☃"]),
        # Seconds since the one before.
        st.sampled_from([0, 1, 50]),
        # Which of them comes once more.
        st.none() | any_of_many,
    ),
    max_size=5,
)


class Brokers:
    """In-memory brokers; the first topic of one takes a second, so the next is made ahead."""

    def __init__(self) -> None:
        self._maker = ThreadPoolExecutor(1)
        self._next: Future[MockCluster] = self._maker.submit(topics.made)

    def take(self) -> MockCluster:
        cluster = self._next.result()
        self._next = self._maker.submit(topics.made)
        return cluster

    def close(self) -> None:
        self._next.result().close()
        self._maker.shutdown()


class Machine(RuleBasedStateMachine):
    begun: Begun
    redis_url: str
    brokers: Brokers
    met: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self.cluster = self.brokers.take()
        self.topics = Topics(self.cluster)
        self.world = World(self.begun, self.redis_url, self.topics)

    @rule(
        who=two,
        kind=kinds,
        places=st.sampled_from([1, 1, 1, 2, 2, 3, 4, 5, 6, 7]),
        size=st.integers(1, 6),
        back=st.sampled_from([0, 0, 0, 2]),
        look=st.booleans(),
        new=submissions,
    )
    def go_on(self, who, kind, places, size, back, look, new) -> None:
        """One of a process's calls begins, or goes on, and comes to a place between two steps."""
        self._submit(new)
        self.world.run(self.world.processes[who], kind, places=places, size=size, back=back, look=look)

    @rule(who=two, only=st.sets(kinds), size=st.integers(1, 6), new=submissions)
    def follow(self, who, only, size, new) -> None:
        """One process goes on with everything, or with some of it."""
        self._submit(new)
        for kind in KINDS:
            if kind in only or not only:
                self.world.run(self.world.processes[who], kind, size=size)
                self.world.check()

    def _submit(self, new: list[tuple[int, str, int, str | None, int, int | None]]) -> None:
        for user, type_, points, name, apart_s, again in new:
            self.world.submit(user, type_, points if type_ == "points" else None, name, apart_s)
            if again is not None:
                self.world.submit_again(again)

    @rule(
        what=st.sampled_from(["fail", "kill", "lose_session"]),
        who=two,
        kind=kinds,
    )
    def fail(self, what, who, kind) -> None:
        """A process, its session or one of its calls comes to an end."""
        process = self.world.processes[who]
        if what == "kill":
            self.world.kill(process)
        else:
            getattr(self.world, what)(process, kind)

    @rule(who=two, partition=st.integers(0, PARTITIONS - 1), told=st.booleans(), to=st.none() | any_of_many)
    def rebalance(self, who, partition, told, to) -> None:
        self.world.rebalance(partition, who, told)
        if to is not None:
            self.world.read_back(self.world.processes[who], partition, to)

    @rule(
        what=st.sampled_from(["define", "erase", "decide", "decide"]),
        which=any_of_many,
        accepted=st.booleans(),
    )
    def operate(self, what, which, accepted) -> None:
        with suppress(Unavailable):
            if what == "define":
                self.world.define(1 + which % 4, which // 4 % 4)
            elif what == "erase":
                self.world.erase(which % len(USERS))
            else:
                self.world.decide(which, "accepted" if accepted else "rejected")

    @rule(
        what=st.sampled_from(
            ["back_up", "restore", "restore", "flush", "lose_key", "snapshot", "put_back", "expire"]
        ),
        which=any_of_many,
    )
    def suffer(self, what, which) -> None:
        """Something happens to a server, or the time of a build is over."""
        getattr(self.world, what)(which)

    @rule()
    def read_topics(self) -> None:
        self.world.read_topics()

    # what must hold -----------------------------------------------------------------------------

    @invariant()
    def what_can_be_read_is_the_ledger(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        try:
            self.world.finish()
        finally:
            self.met.update(self.world.seen)
            self.world.close()
            self.topics.close()
            self.cluster.close()


@pytest.fixture
def machine(postgres_url: str, redis_db_url: str, request: pytest.FixtureRequest) -> Any:
    class Here(Machine):
        met: ClassVar[Counter[str]] = Counter()

    with begun(postgres_url, request.getfixturevalue("_template")) as Here.begun:
        Here.redis_url, Here.brokers = redis_db_url, Brokers()
        yield Here
        Here.brokers.close()


@pytest.mark.timeout(600)
def test_whatever_happens_what_is_shown_is_the_ledger(machine) -> None:
    play_as_asked(machine, 8, steps=40)

    assert machine.met["ledger.numbered"], machine.met


def quiet(world: World) -> None:
    """A restore that leaves no trace, and nothing more comes for whoever judged what was lost."""
    one, two = world.processes
    world.submit(0, "level", None, "Ada", 1)
    world.run(one, "worker")
    world.check()
    world.restore(0)
    world.run(two, "guard")
    world.submit(1, "level", None, "Bob", 1)
    world.run(two, "worker")


def ahead(world: World) -> None:
    """A worker knows positions from before a restore, and nothing else of it."""
    one, two = world.processes
    world.submit(0, "level", None, "Ada", 1)
    world.run(one, "worker")
    world.back_up(0)
    world.submit(0, "level", None, None, 1)
    for _ in range(2):
        # The first finds that its session is lost.
        world.run(one, "worker")
    world.check()
    world.rebalance(0, 1, False)
    world.run(two, "worker")
    assert two.positions == {0: 2, 1: 0}
    world.restore(1)
    for _ in range(2):
        world.run(one, "guard")
    world.submit(0, "level", None, None, 1)
    for _ in range(3):
        world.run(two, "worker")


def late(world: World) -> None:
    """A keeper stands before its step while another goes on."""
    one, two = world.processes
    world.submit(0, "level", None, "Ada", 1)
    world.run(one, "worker")
    world.run(one, "keeper")
    world.submit(2, "level", None, "Cyd", 1)
    world.run(one, "worker")
    world.run(one, "keeper", places=1)
    assert one.tasks["keeper"].place == "boards.applying"
    world.submit(1, "level", None, "Bob", 1)
    world.run(two, "worker")
    world.run(two, "keeper")
    world.check()
    world.run(one, "keeper")


def gone(world: World) -> None:
    """Somebody is erased."""
    world.submit(0, "level", None, "Ada", 1)
    world.run(world.processes[0], "worker")
    world.check()
    world.erase(0)
    world.submit(2, "level", None, "Cyd", 1)
    world.run(world.processes[0], "worker")


def played(machine: type[Machine], scene: Callable[[World], None]) -> None:
    run_ = machine()
    try:
        scene(run_.world)
        run_.world.check()
    finally:
        run_.teardown()


@pytest.mark.parametrize("scene", [quiet, ahead, late, gone])
def test_in_a_scene_made_by_hand_too(machine, scene) -> None:
    played(machine, scene)


@pytest.mark.parametrize(
    ("scene", "clause", "said"),
    [
        (late, "a copy moves only from the position it is at, and all sizes", "the copy"),
        (ahead, "positions from the ledger, and offsets held against them", "is not counted"),
        (gone, "a delta for who is erased", "counts"),
    ],
)
def test_the_machine_would_notice(machine, scene, clause, said) -> None:
    with careless(clause), pytest.raises(Wrong, match=said):
        played(machine, scene)
