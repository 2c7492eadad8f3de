"""One group of records, one transaction: what it writes, what it refuses, what it survives."""

from __future__ import annotations

import psycopg
import pytest

from core.errors import Refused
from core.times import US
from core.words import SCORE_MAX
from storage.postgres import definitions
from storage.postgres.ledger import OpenBatch, Overtaken
from stream_app.carry_out import OutOfStep, Stopped
from tests.acceptance import naive
from tests.stream_app import world
from tests.stream_app.world import NOW_US, World, submitted

pytestmark = pytest.mark.services


def scores(stream: World) -> dict[str, tuple[int, int]]:
    with psycopg.connect(stream.url) as connection:
        return naive.stored_entries(connection)


def recounted(stream: World) -> dict[str, tuple[int, int]]:
    """By adding up the ledger, once the deltas and the digest chain were seen to say the same."""
    with psycopg.connect(stream.url) as connection:
        found = naive.entries(connection)
        assert naive.folded_deltas(connection) == found
        stored = connection.execute("SELECT revision, encode(digest, 'hex') FROM revisions ORDER BY 1")
        assert stored.fetchall() == naive.digest_chain(connection)
        return found


def names(stream: World) -> dict[str, str | None]:
    return dict(stream.rows("SELECT user_id, username FROM players"))


# in step with the log -------------------------------------------------------------------------


def test_a_group_that_begins_after_the_ledgers_end_is_out_of_step(stream):
    stream.log.append(0, submitted("ada", "a1"))
    stream.log.append(0, submitted("ada", "a2"))

    with pytest.raises(OutOfStep) as found:
        stream.judge.carry_out(stream.log.number, [stream.log.slice(0, first=1)])

    assert (found.value.next_offset, found.value.first_offset) == (0, 1)
    assert stream.rows("SELECT count(*) FROM ledger") == [(0,)]


def test_a_group_of_a_log_that_is_not_the_ledgers_changes_nothing(stream):
    stream.log.append(0, submitted("ada", "a1"))

    with pytest.raises(OutOfStep):
        stream.judge.carry_out(stream.log.number + 1, [stream.log.slice(0)])

    assert stream.rows("SELECT count(*) FROM ledger") == [(0,)]


def test_a_redelivery_changes_nothing_and_makes_no_revision(stream):
    stream.take(submitted("ada", "a1", username="Ada"))
    before = stream.rows("SELECT * FROM revisions")

    outcome = stream.judge.carry_out(stream.log.number, [stream.log.slice(0)])

    assert (outcome.position, outcome.judged, outcome.redelivered) == (None, 0, 1)
    assert stream.rows("SELECT * FROM revisions") == before


def test_a_redelivery_does_not_bring_an_earlier_name_back(stream):
    stream.take(submitted("ada", "a1", username="First"))
    stream.take(submitted("ada", "a2", username="Second"))

    outcome = stream.judge.carry_out(stream.log.number, [stream.log.slice(0, 0, 0)])

    assert names(stream) == {"ada": "Second"}
    assert outcome.position is None


def test_a_redelivery_that_is_neither_in_the_ledger_nor_set_aside_stops_the_partition(stream):
    stream.take(submitted("ada", "a1"), submitted("ada", "a2"))
    stream.log.records[0][0] = world.Raw("t", 0, 0, b"ada", world.encoded(submitted("ada", "another")), ())
    stream.log.append(0, submitted("ada", "a3"))

    with pytest.raises(Stopped) as found:
        stream.judge.carry_out(stream.log.number, [stream.log.slice(0)])

    assert found.value.partition == 0
    assert stream.rows("SELECT count(*) FROM ledger") == [(2,)]


def test_a_redelivered_poison_record_is_known_by_where_it_stood(stream):
    stream.log.append_raw(0, b"poison")
    stream.log.append(0, submitted("ada", "a1"))
    stream.judge.carry_out(stream.log.number, [stream.log.slice(0)])

    again = stream.judge.carry_out(stream.log.number, [stream.log.slice(0)])

    assert again.redelivered == 2
    assert stream.rows("SELECT record_offset, reason FROM set_aside") == [(0, "json")]


def test_a_redelivered_record_that_was_set_aside_as_a_defect_is_not_judged_after_all(stream):
    stream.log.append(0, submitted("ada", "a1"))
    stream.log.append(0, submitted("ada", "a2"))
    aside = stream.log.slice(0)
    aside.incoming, aside.unreadable = aside.incoming[1:], {0: "defect"}
    stream.judge.carry_out(stream.log.number, [aside])

    again = stream.judge.carry_out(stream.log.number, [stream.log.slice(0)])

    assert (again.position, again.redelivered) == (None, 2)
    assert stream.rows("SELECT action_id FROM ledger") == [("a2",)]


def test_a_judge_that_forgets_everything_goes_on_from_the_ledger(stream):
    stream.take(*[submitted("ada", f"a{number}", at_us=NOW_US + number * US) for number in range(3)])
    stream.judge.forget()
    stream.take(submitted("ada", "a3", at_us=NOW_US + 4 * US))

    assert stream.verdicts()["a3"][0] == "held"
    assert recounted(stream) == scores(stream)


# once, in the order of the log ----------------------------------------------------------------


def test_the_first_of_two_submissions_counts_whatever_the_second_says(stream):
    stream.take(submitted("ada", "a1", "points", points=5), submitted("ada", "a1", "points", points=900))
    stream.take(submitted("ada", "a1", "points", points=70))

    assert stream.rows("SELECT points FROM ledger") == [(5,)]
    assert recounted(stream) == scores(stream) == {"ada": (5, NOW_US)}


def test_the_same_action_id_of_two_users_is_two_actions(stream):
    stream.take(submitted("ada", "a1"), submitted("bob", "a1"))

    assert stream.rows("SELECT count(*) FROM ledger") == [(2,)]


def test_windows_are_read_again_by_a_worker_that_was_away(stream):
    other = world.worker(stream.url)
    stream.take(submitted("ada", "a1"))
    for number in range(2, 6):
        stream.take(submitted("ada", f"a{number}", at_us=NOW_US + number * US), by=other)
    stream.take(submitted("ada", "a6", at_us=NOW_US + 6 * US))
    other.ledger.close()

    verdicts = stream.verdicts()

    assert [verdicts[f"a{number}"][0] for number in range(1, 7)] == [
        "accepted", "accepted", "accepted", "held", "held", "rejected",
    ]  # fmt: skip


def test_windows_are_read_again_where_another_log_has_come_as_far(stream):
    other = world.worker(stream.url)
    stream.take(*(submitted("ada", f"a{n}", at_us=NOW_US + n * US) for n in range(2)))
    stream.log = world.Log(topic_id="log-2")
    world.adopt(stream.url, stream.log, [0])
    # The offset the first worker left, reached again by another one in another log.
    stream.take(*(submitted("ada", f"b{n}", at_us=NOW_US + (n + 2) * US) for n in range(2)), by=other)
    other.ledger.close()

    stream.take(submitted("ada", "c", at_us=NOW_US + 4 * US))

    # The fifth within a minute, where more than three are held.
    assert stream.verdicts() == {
        "a0": ("accepted", None),
        "a1": ("accepted", None),
        "b0": ("accepted", None),
        "b1": ("held", "rate"),
        "c": ("held", "rate"),
    }


def test_a_resubmitted_action_counts_in_no_window_twice(stream):
    for _ in range(6):
        stream.take(submitted("ada", "a1"))
    stream.take(submitted("ada", "a2", at_us=NOW_US + US), submitted("ada", "a3", at_us=NOW_US + 2 * US))

    assert {verdict for verdict, _ in stream.verdicts().values()} == {"accepted"}


def test_an_old_backfill_and_a_present_action_of_one_group_are_both_judged_by_what_they_look_at(stream):
    old_us = NOW_US - 20 * world.DAY_US
    stream.take(submitted("ada", "b1", "slow", at_us=old_us, received_us=NOW_US, backfill=True))
    other = world.worker(stream.url)
    stream.take(
        submitted("ada", "b2", "slow", at_us=old_us + US, received_us=NOW_US, backfill=True), by=other
    )

    stream.take(
        submitted("ada", "b3", "slow", at_us=old_us + 2 * US, received_us=NOW_US, backfill=True),
        submitted("ada", "a1", "slow", at_us=NOW_US),
        by=other,
    )
    other.ledger.close()

    assert stream.verdicts() == {
        "b1": ("accepted", None),
        "b2": ("rejected", "cooldown"),
        "b3": ("rejected", "cooldown"),
        "a1": ("accepted", None),
    }


def test_one_users_records_in_two_partitions_of_one_group_are_judged_by_all_that_they_look_at(stream):
    old_us = NOW_US - 20 * world.DAY_US
    stream.take(submitted("ada", "b1", "slow", at_us=old_us, received_us=NOW_US, backfill=True))
    stream.log.append(0, submitted("ada", "b2", "slow", at_us=old_us + US, received_us=NOW_US, backfill=True))
    stream.log.append(1, submitted("ada", "a1", "slow", at_us=NOW_US))

    stream.judge.carry_out(stream.log.number, [stream.log.slice(0, 1), stream.log.slice(1)])

    assert stream.verdicts()["b2"] == ("rejected", "cooldown")
    assert stream.verdicts()["a1"] == ("accepted", None)


def test_a_group_judged_by_others_in_the_meantime_is_judged_again(stream, monkeypatch):
    stream.log.append(0, submitted("ada", "a1"))
    stream.log.append(0, submitted("ada", "a2"))
    slices = [stream.log.slice(0)]
    existing, asked = OpenBatch.existing, []

    def blind_at_first(batch, *given):
        asked.append(given)
        return existing(batch, *given) if len(asked) > 1 else set()

    stream.judge.carry_out(stream.log.number, [stream.log.slice(0, 0, 0)])
    monkeypatch.setattr(OpenBatch, "existing", blind_at_first)
    # The look at the keys came too early: one of them is written meanwhile.
    monkeypatch.setattr("stream_app.carry_out._only_known", lambda *_: None)
    outcome = stream.judge.carry_out(stream.log.number, slices)

    assert (len(asked), outcome.judged, outcome.repeated) == (2, 1, 1)
    assert recounted(stream) == scores(stream) == {"ada": (20, NOW_US)}


def test_one_who_is_overtaken_over_and_over_waits(stream, monkeypatch):
    stream.take(submitted("ada", "a1"))
    stream.log.append(0, submitted("ada", "a1"))
    monkeypatch.setattr(OpenBatch, "existing", lambda *_: set())

    with pytest.raises(Overtaken):
        stream.judge.carry_out(stream.log.number, [stream.log.slice(0, 1)])

    assert stream.rows("SELECT next_offset FROM progress WHERE partition = 0") == [(1,)]


def test_keys_are_no_longer_looked_up_where_nothing_repeats_until_something_does(stream, monkeypatch):
    monkeypatch.setattr("stream_app.carry_out.LOOKED_UP", 2)
    stream.judge.forget()
    existing, asked = OpenBatch.existing, []
    monkeypatch.setattr(OpenBatch, "existing", lambda *given: asked.append(given) or existing(*given))

    def asked_for(*action_ids):
        asked.clear()
        # A user for each, so that no limit is met.
        stream.take(*[submitted(f"by-{action_id}", action_id) for action_id in action_ids])
        return len(asked)

    assert [asked_for("a1"), asked_for("a2"), asked_for("a3"), asked_for("a4", "a5")] == [1, 1, 0, 0]
    # Judged in vain, then with a look; and two more until nothing seems to repeat any more.
    assert [asked_for("a6", "a3"), asked_for("a7"), asked_for("a8"), asked_for("a9")] == [1, 1, 1, 0]
    assert recounted(stream) == scores(stream) == {f"by-a{number}": (10, NOW_US) for number in range(1, 10)}


# bounds ---------------------------------------------------------------------------------------


def test_only_the_action_that_would_leave_64_bits_is_rejected(stream):
    stream.take(submitted("ada", "a1", "huge", points=SCORE_MAX - 15))
    stream.take(
        submitted("ada", "a2", "level", at_us=NOW_US + US),
        submitted("ada", "a3", "level", at_us=NOW_US + 2 * US),
        submitted("ada", "a4", "huge", points=5, at_us=NOW_US + 3 * US),
        submitted("bob", "b1", "level"),
    )

    assert stream.verdicts() == {
        "a1": ("accepted", None),
        "a2": ("accepted", None),
        "a3": ("rejected", "score_overflow"),
        "a4": ("accepted", None),
        "b1": ("accepted", None),
    }
    assert recounted(stream) == scores(stream) == {"ada": (SCORE_MAX, NOW_US + 3 * US), "bob": (10, NOW_US)}


def test_two_leaps_of_one_group_do_not_leave_64_bits_together(stream):
    stream.take(
        submitted("ada", "a1", "huge", points=SCORE_MAX),
        submitted("ada", "a2", "huge", points=SCORE_MAX),
        submitted("bob", "b1", "badge"),
    )

    assert stream.verdicts()["a2"] == ("rejected", "score_overflow")
    assert scores(stream)["ada"] == (SCORE_MAX, NOW_US)


def test_a_score_does_not_fall_below_its_boards_lowest(stream):
    stream.take(
        submitted("ada", "a1", "points", points=40),
        submitted("ada", "a2", "points", points=-41),
        submitted("ada", "a3", "points", points=-40, at_us=NOW_US + US),
        submitted("bob", "b1", "points", points=-1),
    )

    ((reason,),) = stream.rows("SELECT reason FROM ledger WHERE action_id = 'a2'")

    assert stream.verdicts() == {
        "a1": ("accepted", None),
        "a2": ("rejected", "score_below_minimum"),
        "a3": ("accepted", None),
        "b1": ("rejected", "score_below_minimum"),
    }
    assert (reason["limit"], reason["seen"]) == (0, -1)
    assert recounted(stream) == scores(stream) == {"ada": (0, NOW_US + US)}


def test_an_action_that_was_not_accepted_makes_no_entry(stream):
    outcome = stream.take(submitted("ada", "a1", "unheard_of"), submitted("bob", "b1", "points", points=4000))

    assert stream.verdicts() == {"a1": ("rejected", "unknown_type"), "b1": ("rejected", "out_of_bounds")}
    assert stream.rows("SELECT points FROM ledger ORDER BY action_id") == [(0,), (4000,)]
    assert scores(stream) == {}
    assert outcome.position.revision == 2
    assert stream.rows("SELECT count(*) FROM deltas WHERE revision = 2") == [(0,)]
    assert set(names(stream)) == {"ada", "bob"}


# when an entry was reached --------------------------------------------------------------------


def test_the_instant_of_actions_worth_nothing_gives_way_to_that_of_the_first_with_points(stream):
    stream.take(submitted("ada", "a1", "badge", at_us=NOW_US + 9 * US))
    stream.take(submitted("ada", "a2", "level", at_us=NOW_US))
    stream.take(submitted("ada", "a3", "badge", at_us=NOW_US + 20 * US))

    assert recounted(stream) == scores(stream) == {"ada": (10, NOW_US)}


def test_a_score_that_came_back_to_nothing_keeps_its_latest_instant(stream):
    stream.take(submitted("ada", "a1", "points", points=5, at_us=NOW_US + 9 * US))
    stream.take(submitted("ada", "a2", "points", points=-5, at_us=NOW_US))
    stream.take(submitted("ada", "a3", "points", points=2, at_us=NOW_US + US))

    assert recounted(stream) == scores(stream) == {"ada": (2, NOW_US + 9 * US)}


# names ----------------------------------------------------------------------------------------


def test_a_new_name_touches_the_entry_that_bears_it(stream):
    stream.take(submitted("ada", "a1", username="Ada"))
    outcome = stream.take(submitted("ada", "a2", "unheard_of", username="Countess"))

    (delta,) = stream.rows(
        "SELECT old_scores, new_scores, old_reached = new_reached, count FROM deltas WHERE revision = %s",
        (outcome.position.revision,),
    )

    assert delta == ([10], [10], True, 1)
    assert names(stream) == {"ada": "Countess"}
    assert recounted(stream) == {"ada": (10, NOW_US)}


def test_a_repeat_brings_no_name_and_makes_no_revision(stream):
    stream.take(submitted("ada", "a1", username="First"), submitted("ada", "a1", username="Repeat"))
    stream.take(submitted("ada", "a2", username="Second"))
    outcome = stream.take(submitted("ada", "a1", username="First"))

    assert names(stream) == {"ada": "Second"}
    assert outcome.position is None
    assert stream.rows("SELECT next_offset FROM progress WHERE partition = 0") == [(4,)]


def test_a_worker_that_comes_back_knows_the_name_that_others_wrote(stream):
    other = world.worker(stream.url)
    stream.take(submitted("ada", "a1", username="Ada"))
    stream.take(submitted("ada", "a2", username="Countess"), by=other)
    outcome = stream.take(submitted("ada", "a3"))
    other.ledger.close()

    (change,) = outcome.content.periods[0].changes

    assert change.username == "Countess"


def test_a_name_that_was_had_before_is_taken_again_after_others_changed_it(stream):
    other = world.worker(stream.url)
    stream.take(submitted("ada", "a1", username="Ada"))
    stream.take(submitted("ada", "a2", username="Countess"), by=other)
    stream.take(submitted("ada", "a3", username="Ada"))
    other.ledger.close()

    assert names(stream) == {"ada": "Ada"}


def test_a_name_whose_group_came_to_nothing_is_not_known_afterwards(stream, monkeypatch):
    stream.take(submitted("ada", "a1", username="Ada"))
    stream.log.append(0, submitted("ada", "a2", username="Countess"))
    with monkeypatch.context() as patched:
        patched.setattr(OpenBatch, "append", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stream.judge.carry_out(stream.log.number, [stream.log.slice(0, 1)])

    stream.judge.carry_out(stream.log.number, [stream.log.slice(0, 1)])

    assert names(stream) == {"ada": "Countess"}


# definitions ----------------------------------------------------------------------------------


def test_a_catalogue_put_in_force_between_two_groups_holds_from_the_next(stream):
    stream.take(submitted("ada", "a1"))
    definitions.apply(stream.url, world.toml("2").replace(b"points = 10", b"points = 11"))
    stream.take(submitted("ada", "a2", at_us=NOW_US + US))

    assert stream.rows("SELECT action_id, points, catalogue_version FROM ledger ORDER BY 1") == [
        ("a1", 10, "1"),
        ("a2", 11, "2"),
    ]


def test_a_version_known_with_another_content_is_refused(stream):
    changed = world.toml("1").replace(b"points = 10", b"points = 11")

    with pytest.raises(Refused) as found:
        definitions.apply(stream.url, changed)

    assert found.value.status_code == 409
    assert stream.rows("SELECT count(*) FROM revisions") == [(1,)]


# what is handed on ----------------------------------------------------------------------------


def test_who_asks_again_gets_what_the_ledger_says(stream):
    stream.take(submitted("ada", "a1", "points", points=5))
    stream.log.append(0, submitted("ada", "a1", "points", points=9), headers=[("reply_to", b"door-1")])

    outcome = stream.judge.carry_out(stream.log.number, [stream.log.slice(0, 1)])
    said = outcome.answers["ada", "a1"]

    assert (said.verdict, said.points, said.revision) == ("accepted", 5, 2)


def test_leaves_of_a_plan_are_those_of_the_digest(stream):
    stream.take(submitted("ada", "a1"), submitted("bob", "b1", "unheard_of"), submitted("ada", "a2", "badge"))
    with psycopg.connect(stream.url) as connection:
        assert (
            naive.digest_chain(connection)[-1][1]
            == stream.rows("SELECT encode(digest, 'hex') FROM revisions ORDER BY revision DESC LIMIT 1")[0][0]
        )


def test_a_reason_names_the_rule_its_version_and_the_numbers_it_saw(stream):
    for number in range(6):
        stream.take(submitted("ada", f"a{number}", at_us=NOW_US + number * US))

    reasons = [row[0] for row in stream.rows("SELECT reason FROM ledger ORDER BY action_id")]

    assert reasons[:3] == [None] * 3
    assert reasons[3:] == [
        {
            "code": "rate",
            "rule": "types.level.limits.0",
            "rule_version": "1",
            "limit": limit,
            "seen": seen,
            "window_s": 60,
        }
        for limit, seen in [(3, 4), (3, 5), (5, 6)]
    ]
