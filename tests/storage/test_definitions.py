"""Catalogues and boards: in force by a revision, never changed under their version."""

from __future__ import annotations

import threading

import psycopg
import pytest

from core import boards, catalogue
from core.errors import Refused
from storage.postgres import definitions
from storage.postgres.ledger import Ledger
from storage.standings import Standings
from tests.acceptance import naive
from tests.stream_app import world

pytestmark = pytest.mark.services


def rows(url, query):
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()


def in_force(url):
    ledger = Ledger(url, name="tests")
    try:
        with ledger.batch([]) as batch:
            return definitions.load(batch)
    finally:
        ledger.close()


def test_the_first_revision_is_the_catalogue_and_the_board_main(database):
    definitions.apply(database, catalogue.shipped())

    assert rows(database, "SELECT revision, cause, definitions FROM revisions") == [(1, "definition", 1)]
    assert rows(database, "SELECT period, revision, previous, count, players FROM deltas") == [
        ("main:all-time", 1, 0, 0, [])
    ]
    assert rows(database, "SELECT count(*) FROM epochs") == [(1,)]
    with psycopg.connect(database) as connection:
        assert naive.digest_chain(connection) == [
            tuple(row)
            for row in connection.execute("SELECT revision, encode(digest, 'hex') FROM revisions").fetchall()
        ]
        assert len(naive.leaves_of(connection, 1, 0)) == 2


def test_the_epoch_is_a_lower_case_ulid_and_names_its_server(database):
    definitions.apply(database, catalogue.shipped())
    ((epoch, server, timeline),) = rows(database, "SELECT epoch, system_identifier, timeline FROM epochs")

    assert len(epoch) == 26
    assert epoch == epoch.lower()
    assert (server, timeline) == rows(
        database,
        "SELECT s.system_identifier::text, c.timeline_id"
        " FROM pg_control_system() s, pg_control_checkpoint() c",
    )[0]


def test_what_is_read_back_is_what_was_put_in_force(database):
    definitions.apply(database, world.toml("1"))
    definitions.apply(database, world.toml("2", soft=2))
    found = in_force(database)

    assert found.catalogue == world.catalogue("2", soft=2)
    assert found.boards == (boards.MAIN,)


def test_the_same_catalogue_again_changes_nothing(database):
    definitions.apply(database, world.toml("1"))
    before = rows(database, "SELECT version FROM fence")
    definitions.apply(database, b"# a remark\n" + world.toml("1"))

    assert rows(database, "SELECT revision FROM revisions") == [(1,)]
    assert rows(database, "SELECT version FROM fence") == before


def test_a_version_is_one_content_for_ever(database):
    definitions.apply(database, world.toml("1"))
    definitions.apply(database, world.toml("2"))
    for changed, code in [
        (world.toml("1", soft=1), "catalogue_changed"),
        (world.toml("2", soft=1), "catalogue_changed"),
        (world.toml("1"), "catalogue_superseded"),
    ]:
        with pytest.raises(Refused) as found:
            definitions.apply(database, changed)

        assert (found.value.code, found.value.status_code) == (code, 409)

    assert rows(database, "SELECT count(*) FROM revisions") == [(2,)]


def test_a_change_of_definitions_moves_the_fence_and_is_named_by_later_revisions(stream):
    stream.take(world.submitted("ada", "a1"))
    definitions.apply(stream.url, world.toml("2"))
    stream.take(world.submitted("ada", "a2"))

    assert stream.rows("SELECT revision, definitions FROM revisions ORDER BY 1") == [
        (1, 1), (2, 1), (3, 3), (4, 3),
    ]  # fmt: skip


def test_many_that_start_at_once_make_one_history(database):
    failures = []

    def start() -> None:
        try:
            definitions.apply(database, catalogue.shipped())
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert rows(database, "SELECT count(*) FROM revisions") == [(1,)]
    assert rows(database, "SELECT count(*) FROM epochs") == [(1,)]


async def test_the_door_reads_the_catalogue_in_force(database, redis_db_url):
    definitions.apply(database, world.toml("1"))
    definitions.apply(database, world.toml("2"))
    async with Standings.connect(redis_db_url, database) as standings:
        found = await definitions.current_catalogue_async(standings.pool)

    assert found == world.catalogue("2")
