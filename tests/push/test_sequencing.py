"""What to send a reader that has seen r, and when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from push.sequencing import Pace, Sequence, Step
from tests.push.views import EPOCH, LATER_EPOCH, view

positions = st.tuples(st.sampled_from([EPOCH, LATER_EPOCH]), st.integers(1, 20))


@given(st.lists(positions, min_size=1))
def test_what_is_shown_is_the_newest_that_was_ever_brought(brought: list[tuple[str, int]]) -> None:
    sequence = Sequence()

    shown = []
    for epoch, revision in brought:
        sequence.take(view(revision, epoch=epoch))
        shown.append(sequence.position)

    assert shown == [max(brought[: n + 1]) for n in range(len(brought))]
    assert sequence.version == len(set(shown))


def test_before_the_first_view_any_position_is_news() -> None:
    sequence = Sequence()

    assert sequence.is_news(("", 0))
    assert sequence.position == ("", 0)


def test_a_reader_that_has_seen_the_latest_is_left_in_peace() -> None:
    pace = Pace()
    pace.saw(3)

    assert pace.step(0, 3, has_notice=False) is Step.REST


def test_a_reader_spoken_to_just_now_waits_for_its_gap() -> None:
    pace = Pace()
    pace.saw(3)
    pace.spoke(1_000, 100)

    assert pace.step(1_099, 4, has_notice=False) is Step.WAIT
    assert pace.step(1_100, 4, has_notice=False) is Step.SEND


def test_a_full_socket_is_not_written_to_whatever_there_is_to_say() -> None:
    pace = Pace()
    pace.block(5)

    assert pace.step(1_000, 1, has_notice=True) is Step.HOLD


def test_a_stall_is_counted_from_its_beginning() -> None:
    pace = Pace()
    pace.block(1_000)
    pace.block(9_000)

    assert not pace.stalled(11_000, 10_000)
    assert pace.stalled(11_001, 10_000)


def test_draining_ends_a_stall() -> None:
    pace = Pace()
    pace.block(1_000)
    pace.unblock()

    assert not pace.stalled(99_000, 10_000)


@given(st.lists(st.integers(1, 9), min_size=1))
def test_seen_and_spared_frames_add_up_to_all_since_the_first(steps: list[int]) -> None:
    pace, version, spared = Pace(), 0, 0

    for step in steps:
        version += step
        spared += pace.saw(version)

    assert spared + len(steps) == version - steps[0] + 1
