"""What revisions hold, read back: complete, in order, and in pieces."""

from __future__ import annotations

import pytest

from storage.postgres import arrays, connections, contents, definitions
from tests.acceptance import naive
from tests.storage.followers_conformance import PERIOD, Ledger
from tests.stream_app import world
from tests.stream_app.world import submitted

pytestmark = pytest.mark.services


@pytest.fixture
def cursor(stream):
    with connections.connect(stream.url, name="tests") as connection:
        arrays.register(connection.adapters)
        with connection.transaction(), connection.cursor(binary=True) as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            yield cursor


@pytest.fixture
def ledger(stream):
    made = Ledger(stream)
    for seed in range(7):
        made.grow(seed, 8)
    return made


@pytest.mark.parametrize("most", [1, 9, 20, 5000])
def test_pieces_one_after_the_other_are_the_whole_history(ledger, cursor, most):
    found: list[contents.Content] = []
    while piece := contents.read(cursor, found[-1].at.revision if found else 0, most=most):
        found += piece

    stored = ledger.stream.rows(
        "SELECT revision, epoch, encode(digest, 'hex') FROM revisions ORDER BY revision"
    )
    assert [(one.at.revision, one.at.epoch, one.at.digest) for one in found] == stored
    assert sum(len(one.rows) for one in found) == ledger.stream.rows("SELECT count(*) FROM ledger")[0][0]


def test_a_revisions_rows_are_those_of_its_batch(ledger, cursor):
    for content in contents.read(cursor, 0):
        rows = ledger.stream.rows(
            "SELECT action_id, verdict FROM ledger JOIN revisions USING (batch) WHERE revision = %s"
            " ORDER BY action_id, player",
            (content.at.revision,),
        )

        assert [(row.action_id, row.verdict) for row in content.rows] == rows


def test_a_revision_of_definitions_has_no_rows(stream, cursor):
    definitions.apply(stream.url, world.toml("2"))
    first, second = contents.read(cursor, 0)

    assert (first.rows, first.people, second.rows, second.periods) == ([], [], [], [])
    assert [(part.board, part.window, part.changes) for part in first.periods] == [("main", "all-time", [])]


def test_people_are_named_when_they_are_new_and_when_they_are_renamed(stream, cursor):
    stream.take(submitted("ada", "a1", username="Ada"), submitted("bob", "b1"))
    stream.take(submitted("ada", "a2"), submitted("bob", "b2", username="Bob"))
    _, second, third = contents.read(cursor, 0)

    assert [person.user_id for person in second.people] == ["ada", "bob"]
    assert [(person.user_id, person.username) for person in third.people] == [("bob", "Bob")]


def test_leaders_of_any_revision_are_today_rolled_back(ledger, cursor):
    for revision in range(1, 9):
        leading, count = contents.leading_at(cursor, PERIOD, revision, 5)
        truth = ledger.at(revision)

        assert count == len(truth)
        assert [(entry.user_id, entry.score, entry.reached_at_us) for entry in leading] == [
            entry[1:] for entry in naive.ranked(truth)[:5]
        ]


def test_before_the_first_revision_nobody_leads(ledger, cursor):
    assert contents.leading_at(cursor, PERIOD, 0, 5) == ([], 0)
