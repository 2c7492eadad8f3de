"""Records that meet a defect: whose fault it is found to be, and that no other record pays for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import Unavailable
from stream_app import intake
from stream_app.carry_out import Outcome, Slice, Stopped
from stream_app.trying import FEWER, TRIES, Done, Piece, Run, Trials
from tests.stream_app.test_agent import Attempts, Letters, records
from tests.stream_app.world import Raw

GROUP = 64


class Killed(BaseException):
    """The process ends on the spot."""


class Judge:
    """A ledger of offsets; `raises` sees what is to be judged (partition, offset) and may raise."""

    def __init__(self, raises: Callable[[list[tuple[int, int]]], None]) -> None:
        self.raises = raises
        self.judged: list[tuple[int, int]] = []
        self.aside: dict[tuple[int, int], str] = {}
        self.groups: list[int] = []
        self.remembers = False

    def forget(self) -> None:
        self.remembers = False

    def carry_out(self, log: int, slices: list[Slice]) -> Outcome:
        places = [(item.partition, item.offset) for piece in slices for item in piece.incoming]
        self.raises(places)
        self.judged += places
        self.groups.append(len(places))
        self.remembers = True
        for piece in slices:
            self.aside |= {(piece.partition, offset): why for offset, why in piece.unreadable.items()}
        return Outcome(None)


class Process:
    """One worker's trials over a judge and a table that outlive it."""

    def __init__(self, judge: Judge, attempts: Attempts, *, group: int = GROUP, in_a_row: int = 3) -> None:
        self.judge, self.letters, self.dies_after = judge, Letters(), False
        self.trials = Trials(
            self._step,
            judge,  # type: ignore[arg-type]
            self.letters,
            attempts,
            group_records=group,
            defects_in_a_row=in_a_row,
        )

    def _step(self, log: int, piece: Piece) -> Done:
        joined: dict[int, list[Any]] = {}
        for run in piece.runs:
            joined.setdefault(run.partition, []).extend(run.records)
        slices = [intake.read_slice(joined[partition])[0] for partition in sorted(joined)]
        with self.trials.watched():
            outcome = self.judge.carry_out(log, slices)
        if self.dies_after:
            raise Killed
        return Done(outcome, slices)

    def take(self, *batches: list[Raw]) -> None:
        """One group, tried as the agent does."""
        todo = [Piece([Run(SimpleNamespace(), batch) for batch in batches])]
        while todo:
            piece = todo.pop(0)
            try:
                tried = self.trials.attempt(1, piece)
            except (Unavailable, Stopped):
                raise
            except Exception as error:
                todo[:0] = self.trials.after(piece, error)
            else:
                if not isinstance(tried, Done):
                    todo[:0] = tried


def raising(*bad: tuple[int, int], error: type[BaseException] = ZeroDivisionError) -> Callable[..., None]:
    def raises(places: Iterable[tuple[int, int]]) -> None:
        if met := sorted(set(places) & set(bad)):
            raise error(f"at {met[0]}")

    return raises


def good(partition: int, count: int, first: int = 0) -> list[Raw]:
    return records(partition, *["good"] * count, first=first)


def places(partition: int, offsets: Iterable[int]) -> list[tuple[int, int]]:
    return [(partition, offset) for offset in offsets]


@pytest.mark.parametrize("bad", [0, 1, 30, 62, 63])
def test_the_record_that_raises_is_set_aside_and_its_neighbours_are_judged(bad):
    judge = Judge(raising((0, bad)))
    process = Process(judge, Attempts())

    process.take(good(0, 64), good(1, 5))

    assert sorted(judge.judged) == places(0, set(range(64)) - {bad}) + places(1, range(5))
    assert judge.aside == {(0, bad): "defect"}
    assert process.letters.sent == [(0, bad)]


def test_each_of_several_that_raise_is_found():
    bad = {(0, 3), (0, 40), (1, 0)}
    judge = Judge(raising(*bad))

    Process(judge, Attempts()).take(good(0, 64), good(1, 2))

    assert judge.aside.keys() == bad
    assert sorted(judge.judged) == [*places(0, set(range(64)) - {3, 40}), (1, 1)]


def test_the_order_of_a_partition_is_kept_while_its_group_is_taken_apart():
    judge = Judge(raising((0, 20)))

    Process(judge, Attempts()).take(good(0, 10), good(1, 10), good(0, 20, first=10))

    assert [offset for partition, offset in judge.judged if partition == 0] == [
        offset for offset in range(30) if offset != 20
    ]


def test_a_defect_of_the_groups_composition_sets_nothing_aside():
    def raises(group: list[tuple[int, int]]) -> None:
        if {(0, 3), (0, 50)} <= set(group):
            raise KeyError("both")

    judge = Judge(raises)
    process = Process(judge, Attempts())
    process.take(good(0, 64))

    assert judge.judged == places(0, range(64))
    assert process.letters.sent == []


def test_a_defect_of_what_is_at_hand_sets_nothing_aside():
    def raises(group: list[tuple[int, int]]) -> None:
        if group and judge.remembers:
            raise KeyError("remembered wrongly")

    judge = Judge(raises)
    process = Process(judge, Attempts())
    for first in range(0, 30, 10):
        process.take(good(0, 10, first=first))

    assert judge.judged == places(0, range(30))
    assert process.letters.sent == []


def test_what_fails_without_any_record_sets_none_aside_and_ends_the_process():
    def raises(_: object) -> None:
        raise LookupError("no table")

    judge = Judge(raises)
    process = Process(judge, Attempts())

    with pytest.raises(LookupError):
        process.take(good(0, 8))
    assert (judge.aside, process.letters.sent) == ({}, [])


@pytest.mark.parametrize("call", ["known", "put"])
def test_a_table_that_cannot_count_ends_the_process(call):
    class Broken(Attempts):
        """Cannot be asked, or not be written to."""

    def fails(*_: Any) -> None:
        raise LookupError("no table")

    setattr(Broken, call, fails)

    process = Process(Judge(raising()), Broken())

    with pytest.raises(Exception, match="cannot be counted"):
        process.take(good(0, 8))
    assert process.letters.sent == []


def test_a_defect_of_every_record_stops_the_partition_after_few():
    judge = Judge(raising(*places(0, range(64))))
    process = Process(judge, Attempts(), in_a_row=3)

    with pytest.raises(Stopped) as found:
        process.take(good(0, 64))

    assert found.value.partition == 0
    assert len(judge.aside) == 3


def test_a_record_that_ends_the_process_is_set_aside_after_a_few_and_its_neighbours_are_judged():
    judge, attempts = Judge(raising((0, 40), error=Killed)), Attempts()
    deaths = 0
    while not judge.aside:
        assert deaths < 10
        process = Process(judge, attempts)
        left = sorted(set(range(100)) - {offset for _, offset in judge.judged})
        try:
            process.take(good(0, len(left[:64]), first=left[0]))
        except Killed:
            deaths += 1

    assert judge.aside == {(0, 40): "defect"}
    assert deaths == TRIES
    assert judge.judged == places(0, [offset for offset in range(len(judge.judged) + 1) if offset != 40])

    process.take(good(0, 64, first=len(judge.judged) + 1))
    assert attempts.tries == {}


def test_a_process_that_dies_twice_of_something_else_costs_smaller_groups_and_no_record():
    judge, attempts = Judge(raising((0, 0), error=Killed)), Attempts()
    for _ in range(2):
        with pytest.raises(Killed):
            Process(judge, attempts).take(good(0, 64))
    judge.raises = raising()

    process = Process(judge, attempts)
    process.take(good(0, 64))
    process.take(good(0, 64, first=64))

    assert judge.judged == places(0, range(128))
    # Only what was tried together the second time goes one by one; what lies behind it does not.
    few = GROUP // FEWER
    assert judge.groups == [*[1] * few, GROUP - few, GROUP]
    assert attempts.tries == {}


def test_processes_that_are_killed_between_judging_and_the_commit_cost_no_record_and_no_pace():
    """Somebody kills whatever works: that says nothing of what was in hand."""
    judge, attempts = Judge(raising()), Attempts()
    for _ in range(3 * TRIES):
        process = Process(judge, attempts)
        process.dies_after = True
        with pytest.raises(Killed):
            process.take(good(0, GROUP))
    judge.groups.clear()

    Process(judge, attempts).take(good(0, GROUP))

    assert judge.aside == {}
    assert judge.groups == [GROUP]


def test_one_that_ends_in_good_order_leaves_no_count():
    attempts = Attempts()
    judge = Judge(raising((0, 0), error=Unavailable))
    for _ in range(10):
        process = Process(judge, attempts)
        with pytest.raises(Unavailable):
            process.take(good(0, 1))
        process.trials.close()

    assert set(attempts.tries.values()) <= {0}


def test_nothing_is_counted_once_a_partition_has_passed():
    attempts, judge = Attempts(), Judge(raising())
    process = Process(judge, attempts)
    process.take(good(0, 5))
    attempts.known = None  # type: ignore[assignment,method-assign]

    process.take(good(0, 5, first=5))

    assert attempts.tries == {}
    process.trials.taken_up()
    with pytest.raises(Exception, match="cannot be counted"):
        process.take(good(0, 5, first=10))
