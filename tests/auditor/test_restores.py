"""A ledger that was restored is counted along its line, whatever the topics still hold of what was lost."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from auditor import records
from auditor.records import Person
from auditor.recount import Recount
from tests.auditor.world import (
    EPOCH,
    LATER_EPOCH,
    LATEST_EPOCH,
    Watch,
    encoded,
    horizon,
    mutated,
    of_twelve,
    pid,
    take,
    watched,
)


def test_after_a_restore_the_lost_revisions_are_void():
    lost = of_twelve()
    world = lost.restored(3)
    lost.revise(("act", "u01", "lost", 1_000))
    continues = {LATER_EPOCH: (EPOCH, 3)}
    watch = Watch(world, until=4, continues=continues)
    take(watch.audit, lost.last)
    world.revise(("act", "u02", "more", 7))
    take(watch.audit, world.last)
    watch.go_on()
    watch.audit.observe(world.page(limit=100))

    assert watch.wrong == []
    assert watch.audit.continues == continues
    assert ("page", 5) in watch.report.made


@pytest.mark.parametrize("void_first", [True, False])
def test_who_came_anew_after_a_restore_is_another_player_under_the_same_user_id(void_first: bool):
    """Under two keys two records of `player` name them: the void one may be read before or after."""
    lost = of_twelve()
    world = lost.restored(3)
    lost.revise(("act", "new", "lost", 1_000))
    world.revise(("act", "new", "again", 65), ("act", "u02", "after", 7))
    watch = Watch(world, continues={LATER_EPOCH: (EPOCH, 3)})
    if void_first:
        take(watch.audit, lost.last)
    watch.take_rest()
    if not void_first:
        take(watch.audit, lost.last)
    watch.go_on()
    watch.audit.observe(world.page(limit=100))
    world.revise(("act", "new", "more", 1))
    watch.take_rest()
    watch.audit.observe(world.copy())

    assert watch.wrong == []
    assert {("page", 5), ("publication", 6), ("copy", 6)} <= set(watch.report.made)


@pytest.mark.parametrize(
    ("number", "continues"),
    [
        pytest.param(3, {LATEST_EPOCH: (EPOCH, 3)}, id="from an older backup once more"),
        pytest.param(5, {LATEST_EPOCH: (LATER_EPOCH, 5)}, id="from one of the new epoch"),
    ],
)
def test_a_second_restore_may_take_back_an_epoch(number: int, continues: dict[str, tuple[str, int]]):
    lost = of_twelve()
    between = lost.restored(3)
    between.revise(("act", "new", "a", 50), ("act", "u01", "x", 300))
    world = between.restored(number, LATEST_EPOCH)
    lost.revise(("act", "u01", "lost", 1_000), ("act", "new", "b", 70))
    between.revise(("act", "u01", "lost too", 2_000))
    world.revise(("act", "new", "c", 60), ("act", "u02", "y", 1))
    watch = Watch(world, continues={LATER_EPOCH: (EPOCH, 3), **continues})
    for revision in [*lost.revisions, *between.revisions[3:], *world.revisions[number:]]:
        take(watch.audit, revision)
    watch.go_on()
    watch.go_on()
    watch.audit.observe(world.page(limit=100))

    assert watch.wrong == []
    assert ("page", world.last.number) in watch.report.made


def test_what_is_void_may_be_all_that_the_topic_tells_of_somebody():
    """Hidden in revisions that were lost, they are in doubt until there is a word that counts."""
    lost = of_twelve()
    world = lost.restored(3)
    world.revisions[0].people = [one for one in world.revisions[0].people if one[0] != pid("u07")]
    watch = Watch(world, continues={LATER_EPOCH: (EPOCH, 3)})
    take(watch.audit, lost.revise(("hide", "u07", True)))
    watch.take_rest()
    for n in range(3):
        world.revise(("act", "u07", f"z{n}", 1))
        watch.take_rest()
        watch.audit.observe(world.page(limit=100))
    assert watch.wrong == []

    world.revise(("name", "u07", "Seven"))
    watch.take_rest()
    watch.go_on()
    wrong = mutated(world.revise(("act", "u07", "more", 1)))
    assert wrong.publication is not None
    wrong.publication["changed"][0]["score"] += 1
    take(watch.audit, wrong)
    watch.go_on()

    assert watch.wrong == [("publication", world.last.number, "score", "u07")]


def test_a_wrong_score_of_somebody_who_came_anew_is_seen():
    lost = of_twelve()
    world = lost.restored(3)
    gone = lost.revise(("act", "new", "lost", 1_000))
    world.revise(("act", "new", "again", 65))
    watch = Watch(world, until=5, continues={LATER_EPOCH: (EPOCH, 3)})
    take(watch.audit, gone)
    wrong = mutated(world.revise(("act", "new", "more", 1)))
    assert wrong.publication is not None
    wrong.publication["changed"][0]["score"] += 1
    take(watch.audit, wrong)
    watch.go_on()

    assert watch.wrong == [("publication", 6, "score", "new")]


@pytest.mark.parametrize("first", [0, 1])
def test_who_is_known_by_void_records_alone_is_whoever_has_points(first: int):
    """Somebody was renamed in one history that was taken back, and came anew in another one."""
    world = of_twelve()
    void = Person("u07", "Seven", hidden=False)
    recount = Recount()
    for key in ("another", pid("u07")) if first else (pid("u07"), "another"):
        recount.person(key, void, 0, math.inf)
    for record in (record for revision in world.revisions for record in revision.judged):
        recount.judged(records.read_judged(encoded(record) or b""))

    player = recount.player_of("u07")

    assert player is not None
    assert recount.scores[player] == 70


def test_what_was_lost_may_be_shown_until_the_new_epoch_is_on_the_topics():
    lost = of_twelve()
    watch = watched(lost, seen=3)
    lost.revise(("act", "u01", "lost", 1_000))
    lost.revise(("act", "u02", "lost", 1_000))
    watch.audit.observe(replace(lost.page(), seen_s=1.0))
    watch.audit.advance(horizon(3, asked_s=2e12, ledger_end=4, ledger_epoch=LATER_EPOCH))

    assert watch.report.mismatches == []


def test_where_a_history_goes_on_from_is_noticed_so_that_it_is_counted_again():
    watch = watched(of_twelve())

    watch.audit.take_judged(encoded({"epoch": LATER_EPOCH, "revision": 4, "continues": [EPOCH, 3]}))

    assert watch.audit.continues == {LATER_EPOCH: (EPOCH, 3)}
