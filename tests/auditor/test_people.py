"""People come, are renamed, hidden and erased, and what is told of them late is no mismatch."""

from __future__ import annotations

from dataclasses import replace

from auditor.audit import Audit
from auditor.comparing import Page
from tests.auditor.world import (
    EPOCH,
    Recorder,
    horizon,
    mutated,
    of_twelve,
    pid,
    take,
    watched,
)


def test_a_hidden_and_an_erased_player_who_are_still_shown_are_wrong():
    world = of_twelve()
    watch = watched(world)
    shown_before = world.page(limit=100)
    world.revise(("hide", "u07", True), ("erase", "u08"))
    watch.take_rest()
    watch.go_on()
    watch.go_on()
    assert isinstance(shown_before.shown, Page)
    still = replace(shown_before.shown, count=10)
    watch.audit.observe(replace(shown_before, revision=4, shown=still))
    watch.audit.observe(world.page(limit=100))

    assert watch.wrong == [("page", 4, "not_to_be_shown", "u07")]


def test_hiding_showing_again_renaming_and_erasing_are_no_mismatch():
    world = of_twelve()
    watch = watched(world)
    for acts in (
        [("hide", "u07", True)],
        [("act", "u07", "hidden-1", 3), ("act", "u06", "x", 1)],
        [("hide", "u07", False), ("name", "u06", "Six")],
        [("act", "u07", "shown-1", 3)],
        [("erase", "u08")],
        [("act", "u09", "y", 3)],
    ):
        world.revise(*acts)
        watch.take_rest()
        watch.audit.observe(world.page(limit=100))
        watch.audit.observe(world.page(start=8, limit=3))

    assert watch.wrong == []
    assert [at for what, at in watch.report.made if what == "page"] == [n for n in range(4, 10) for _ in "ab"]


def test_records_of_people_read_late_cause_no_false_alarm():
    # Hidden at 4 and shown again at 5: read after both, the records of 4 and 5 say the same.
    world = of_twelve()
    watch = watched(world)
    world.revise(("hide", "u07", True))
    world.revise(("hide", "u07", False))
    world.revise(("act", "u07", "z", 1))
    for revision in world.revisions[1:]:
        late = mutated(revision)
        late.people = [(player, dict(person or {}, hidden=False)) for player, person in late.people]
        take(watch.audit, late)
    watch.go_on()

    assert watch.wrong == []


def test_who_was_hidden_after_a_revision_may_be_missing_where_it_is_read_back():
    """The publisher read revision 4 when somebody was hidden at 5 already."""
    world = of_twelve()
    watch = watched(world, seen=3)
    early = world.revise(("act", "u02", "z", 1))
    late = world.revise(("hide", "u07", True))
    early.publication = world.read_late(early, late)
    take(watch.audit, early)
    for _ in range(3):
        watch.go_on(4, ledger_end=5)
    assert watch.report.mismatches == []
    take(watch.audit, late)
    watch.go_on()

    assert watch.wrong == []
    assert "publication" in watch.report.not_made


def test_a_record_of_somebody_is_doubted_until_all_that_it_may_have_known_of():
    """Read back late, 4 knows of 6, and 6 of 8; at 5 a page was right that shows who is hidden at 6."""
    world = of_twelve()
    watch = watched(world, seen=3)
    seven = {"player": pid("u07"), "user_id": "u07", "hidden": False}
    named = world.revise(("name", "u07", "Seven"))
    world.revise(("act", "u02", "z", 1))
    hidden = world.revise(("hide", "u07", True))
    named.publication = world.read_late(named, hidden)
    named.people = [(pid("u07"), {**seven, "username": "Seven", "hidden": True})]
    page = world.page(world.revisions[4], limit=100)
    world.revise(("act", "u03", "z", 1))
    world.revise(("hide", "u07", False), ("name", "u07", "Eight"))
    hidden.people = [(pid("u07"), {**seven, "username": "Eight"})]

    take(watch.audit, named, now_s=watch.now_s + 1.5)
    # The first horizon was asked for before the record was read, so it does not say what that knew.
    for ledger_end in (4, 7, 7):
        watch.go_on(4, ledger_end=ledger_end)
    watch.audit.observe(page)
    for revision, ledger_end in zip(world.revisions[4:], (7, 7, 8, 8), strict=True):
        take(watch.audit, revision)
        watch.go_on(revision.number, ledger_end=ledger_end)

    assert watch.wrong == []
    assert ("page", 5) in watch.report.made


def test_nothing_is_compared_before_all_that_was_known_of_people_at_the_start_has_come():
    """Compacted, the topic says of 5 what held after 7: at 6 the player was hidden still."""
    world = of_twelve()
    world.revisions[0].people = [one for one in world.revisions[0].people if one[0] != pid("u07")]
    world.revise(("hide", "u07", True)).people.clear()
    renamed = world.revise(("name", "u07", "A"))
    world.revise(("act", "u02", "z", 1))
    shown = world.revise(("hide", "u07", False), ("name", "u07", "B"))
    seven = {"player": pid("u07"), "user_id": "u07", "hidden": False}
    renamed.people = [(pid("u07"), {**seven, "username": "B"})]
    shown.people = [(pid("u07"), {**seven, "username": "C"})]
    report = Recorder()
    audit = Audit(report, EPOCH, 5, {})
    for revision in world.revisions[:5]:
        take(audit, revision)
    # Asked for before what was read: its end of the ledger bounds nothing.
    audit.advance(horizon(5, asked_s=0.0))
    audit.advance(horizon(5, asked_s=1e12, ledger_end=7))
    for revision in world.revisions[5:]:
        take(audit, revision)
        audit.observe(world.page(revision, limit=100))
        audit.advance(horizon(revision.number, asked_s=2e12, ledger_end=7))
    for _ in range(3):
        audit.advance(horizon(7, asked_s=3e12))

    assert report.mismatches == []
    assert {at for what, at in report.made if what in ("page", "publication")} == {7}


def test_of_a_compacted_topic_only_the_last_record_of_somebody_is_needed():
    world = of_twelve()
    world.revise(("name", "u07", "Seven"))
    world.revise(("hide", "u03", True))
    for revision in world.revisions[:-2]:
        revision.people = [
            (player, person) for player, person in revision.people if player not in (pid("u07"), pid("u03"))
        ]
    watch = watched(world, seen=5)
    world.revise(("act", "u07", "z", 100))
    watch.take_rest()
    watch.audit.observe(world.page(limit=100))

    assert watch.wrong == []
    assert ("page", 6) in watch.report.made
