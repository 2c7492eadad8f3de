"""Erased people: their entry goes, what was judged stays and leads to nobody, and nothing comes back."""

from __future__ import annotations

import psycopg
import pytest

from core.times import US
from storage.postgres import epochs
from storage.postgres.ledger import Ledger
from stream_app.carry_out import Judge
from tests.acceptance import naive
from tests.stream_app import world
from tests.stream_app.world import NOW_US, World, submitted

pytestmark = pytest.mark.services

KEY = b"0123456789abcdef"


def erase(stream: World, *user_ids: str) -> int:
    pids = [
        row[0]
        for row in stream.rows("SELECT pid::text FROM players WHERE user_id = ANY(%s)", (list(user_ids),))
    ]
    ledger = Ledger(stream.url, name="tests")
    try:
        return epochs.erase(ledger, KEY, pids)
    finally:
        ledger.close()


@pytest.fixture
def judge(stream):
    """A worker that knows the key."""
    made = Judge(
        Ledger(stream.url, name="tests"),
        most_people=100,
        most_rows=1000,
        max_late_us=world.DAY_US,
        max_early_us=60 * US,
        erasure_key=lambda: KEY,
    )
    yield made
    made.ledger.close()


def test_an_erased_persons_row_names_nobody_and_the_board_counts_one_less(stream, judge):
    stream.take(submitted("ada", "a1", username="Ada"), submitted("bob", "b1"), by=judge)

    assert erase(stream, "ada") == 1
    assert erase(stream, "ada") == 0
    assert stream.rows("SELECT user_id, username FROM players ORDER BY player") == [
        (None, None),
        ("bob", None),
    ]
    assert stream.rows("SELECT count FROM deltas ORDER BY revision DESC LIMIT 1") == [(1,)]
    assert stream.rows("SELECT user_id FROM user_scores") == [("bob",)]
    assert stream.rows("SELECT count(*) FROM ledger") == [(2,)]
    with psycopg.connect(stream.url) as connection:
        stored = connection.execute("SELECT revision, encode(digest, 'hex') FROM revisions ORDER BY 1")
        assert stored.fetchall() == naive.digest_chain(connection)


def test_what_comes_of_one_who_was_erased_is_set_aside(stream, judge):
    stream.take(submitted("ada", "a1"), by=judge)
    erase(stream, "ada")

    outcome = stream.take(submitted("ada", "a2"), submitted("bob", "b1"), by=judge)

    assert outcome.judged == 1
    assert stream.rows("SELECT user_id FROM players WHERE user_id IS NOT NULL") == [("bob",)]
    assert stream.rows("SELECT record_offset, reason FROM set_aside") == [(1, "erased")]
    assert stream.rows("SELECT next_offset FROM progress WHERE partition = 0") == [(3,)]


def test_a_record_that_comes_again_after_its_person_was_erased_changes_nothing(stream, judge):
    """Judged before it, or set aside since: neither stops the partition."""
    stream.take(submitted("ada", "a1"), by=judge)
    erase(stream, "ada")
    stream.take(submitted("ada", "a2", at_us=NOW_US + US), by=judge)
    before = stream.rows("SELECT count(*), max(revision) FROM revisions")

    outcome = judge.carry_out(stream.log.number, [stream.log.slice(0)])

    assert outcome.position is None
    assert stream.rows("SELECT count(*), max(revision) FROM revisions") == before
    assert stream.rows("SELECT count(*) FROM players") == [(1,)]


def test_many_are_erased_in_revisions_of_at_most_so_many(stream, judge, monkeypatch):
    monkeypatch.setattr(epochs, "MOST_PEOPLE", 3)
    users = [f"u{n}" for n in range(8)]
    stream.take(*[submitted(user, f"a-{user}") for user in users], by=judge)

    assert erase(stream, *users) == 8
    assert stream.rows("SELECT count(*) FROM revisions WHERE cause = 'person'") == [(3,)]
    assert stream.rows("SELECT count FROM deltas ORDER BY revision DESC LIMIT 1") == [(0,)]
