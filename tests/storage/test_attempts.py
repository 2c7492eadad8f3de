"""Table `attempts`: what it counts, what it forgets, and that a count outlives who made it."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from core.errors import Unavailable
from storage.postgres.attempts import Attempts

pytestmark = pytest.mark.services


@pytest.fixture
def attempts(database: str) -> Iterator[Attempts]:
    with psycopg.connect(database) as connection:
        connection.execute("INSERT INTO logs (topic_id) VALUES ('one'), ('two')")
    made = Attempts(database, name="tests")
    yield made
    made.close()


def stored(url: str) -> list[tuple[int, int, int, int]]:
    with psycopg.connect(url) as connection:
        return connection.execute(
            "SELECT log, partition, record_offset, tries FROM attempts ORDER BY 1, 2, 3"
        ).fetchall()


def test_each_beginning_counts_one_and_no_less_than_asked_for(attempts):
    assert attempts.begin(1, {0: 5, 3: 70}) == {0: 1, 3: 1}
    assert attempts.begin(1, {3: 70}) == {3: 2}
    assert attempts.begin(1, {3: 70, 4: 1}, least=3) == {3: 3, 4: 3}
    assert attempts.begin(1, {3: 70}) == {3: 4}
    assert attempts.begin(2, {3: 70}) == {3: 1}


def test_a_count_is_there_though_nothing_else_was_committed(attempts, database):
    attempts.begin(1, {0: 5})

    assert stored(database) == [(1, 0, 5, 1)]


def test_what_was_withdrawn_was_never_begun(attempts):
    attempts.begin(1, {0: 5, 1: 6})
    attempts.withdraw(1, {0: 5})
    attempts.withdraw(1, {0: 5})
    attempts.withdraw(1, {9: 9})

    assert attempts.begin(1, {0: 5, 1: 6}) == {0: 1, 1: 2}


def test_what_a_partition_has_passed_is_forgotten_and_nothing_else(attempts, database):
    for offsets in ({0: 5, 1: 5}, {0: 9}, {0: 10}):
        attempts.begin(2, offsets)
    attempts.begin(1, {0: 1000})

    attempts.passed(2, {0: 10})

    assert stored(database) == [(2, 0, 10, 1), (2, 1, 5, 1)]


def test_a_server_that_went_away_is_unavailable_and_found_again(attempts, database):
    attempts.begin(1, {0: 5})
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'trueboard tests' AND datname = current_database()"
        )

    with pytest.raises(Unavailable):
        attempts.begin(1, {0: 5})
    assert attempts.begin(1, {0: 5}) == {0: 2}
