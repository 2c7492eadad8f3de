"""Whoever folds what changed is never wrong, however much was merged before it came."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from core.events import ChangedEntry, RankedEntry
from core.feed import TOP, Changes, Publication, View
from core.times import format_us
from push.sequencing import LINKS_MOST, Sequence
from tests.push.views import EPOCH, LATER_EPOCH, empty_view, publication, view

Scores = dict[str, int]


def history(seed: int, length: int, players: int = 25) -> list[Publication]:
    """A period's publications, each of some changes; a score of None is somebody who left."""
    rng = random.Random(seed)
    scores: Scores = {}
    made = []
    for revision in range(1, length + 1):
        changed = []
        for player in rng.sample(range(players), rng.randint(1, 4)):
            user = f"u{player:02}"
            if user in scores and rng.random() < 0.2:
                del scores[user]
                changed.append(ChangedEntry(user, user, None, None))
            else:
                scores[user] = rng.randint(1, 99)
                changed.append(ChangedEntry(user, user, scores[user], format_us(revision)))
        ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
        top = [
            RankedEntry(rank, user, user, score, format_us(0))
            for rank, (user, score) in enumerate(ranked[:TOP], 1)
        ]
        made.append(
            Publication("main", "all-time", EPOCH, revision, revision - 1, "00", len(scores), changed, top)
        )
    return made


def fold(known: dict[str, int | None], changes: Changes) -> dict[str, int | None]:
    return known | {change.user_id: change.score for change in changes.changed}


@given(seed=st.integers(0, 10_000), cuts=st.sets(st.integers(2, 39)))
def test_folding_what_was_merged_is_folding_each(seed: int, cuts: set[int]) -> None:
    sequence, steps = Sequence(), []
    merged: list[Changes] = []
    reader_saw = 1
    for one in history(seed, 40):
        before = sequence.latest
        sequence.take(View.of_publication(one))
        if before is not None:
            steps.append(Changes.of(one, before.top))
        if sequence.version in cuts | {40} and sequence.version > reader_saw:
            changes = sequence.changes_since(reader_saw)
            assert changes is not None
            assert changes.since == reader_saw, "a merged publication begins where its reader stands"
            merged.append(changes)
            reader_saw = sequence.version

    one_by_one: dict[str, int | None] = {}
    for step in steps:
        one_by_one = fold(one_by_one, step)
    at_once: dict[str, int | None] = {}
    for changes in merged:
        at_once = fold(at_once, changes)
    assert at_once == one_by_one
    assert sum(changes.count for changes in merged) == sum(step.count for step in steps)


@given(seed=st.integers(0, 10_000))
def test_who_was_or_is_among_the_first_ten_is_named_and_nobody_else(seed: int) -> None:
    made = history(seed, 30)

    for before, after in itertools.pairwise(made):
        leading = {entry.user_id for entry in (*before.top, *after.top)}
        named = {change.user_id for change in Changes.of(after, before.top).changed}
        assert named == leading & {change.user_id for change in after.changed}


def test_a_reader_is_brought_forward_from_any_position_of_the_chain() -> None:
    sequence = Sequence()
    for one in history(3, 12):
        sequence.take(View.of_publication(one))

    for seen in range(1, 13):
        links = sequence.links_after((EPOCH, seen))
        assert links is not None
        assert [link.view.position[1] for link in links] == list(range(seen + 1, 13))
    assert sequence.links_after((EPOCH, 0)) is None, "what came before the first view is not known"
    assert sequence.links_after((EPOCH, 13)) is None
    assert sequence.links_after((LATER_EPOCH, 5)) is None


def test_a_page_ends_the_chain_and_another_begins_at_it() -> None:
    sequence = Sequence()
    for taken in (view(1), view(2), empty_view(5), view(6), view(7)):
        sequence.take(taken)

    assert sequence.changes_since(2) is None
    assert sequence.links_after((EPOCH, 2)) is None
    links = sequence.links_after((EPOCH, 5))
    assert links is not None
    assert [link.view.position[1] for link in links] == [6, 7]


def test_a_publication_after_a_gap_or_of_another_epoch_links_to_nothing() -> None:
    gap, epoch = Sequence(), Sequence()
    for taken in (view(1), view(4)):
        gap.take(taken)
    for taken in (view(1), view(2, epoch=LATER_EPOCH)):
        epoch.take(taken)

    assert gap.changes_since(1) is None
    assert epoch.changes_since(1) is None


def test_the_chain_is_bounded_and_keeps_no_whole_records() -> None:
    sequence = Sequence()
    for revision in range(1, LINKS_MOST + 50):
        sequence.take(View.of_publication(publication(revision)))

    version = sequence.version
    assert sequence.changes_since(version - LINKS_MOST) is not None
    assert sequence.changes_since(version - LINKS_MOST - 1) is None
    links = sequence.links_after((EPOCH, version - 1))
    assert links is not None
    assert links[0].view.publication is None
