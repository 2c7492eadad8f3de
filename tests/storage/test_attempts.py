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


def test_what_was_put_is_known_and_nothing_else(attempts):
    attempts.put(1, {(0, 5): 1, (3, 70): 2})
    attempts.put(1, {(3, 70): 4, (4, 1): 3})

    assert [attempts.known(1, *place) for place in ((0, 5), (3, 70), (4, 1))] == [1, 4, 3]
    assert [attempts.known(*place) for place in ((1, 0, 6), (1, 5, 5), (2, 0, 5))] == [0, 0, 0]


def test_what_was_put_back_to_nothing_was_never_tried(attempts):
    attempts.put(1, {(0, 5): 1})
    attempts.put(1, {(0, 5): 0})

    assert attempts.known(1, 0, 5) == 0


def test_a_count_is_there_though_nothing_else_was_committed(attempts, database):
    attempts.put(1, {(0, 5): 1})

    assert stored(database) == [(1, 0, 5, 1)]


def test_what_a_partition_has_passed_is_forgotten_and_nothing_else(attempts, database):
    attempts.put(2, {(0, 5): 1, (1, 5): 1, (0, 9): 1, (0, 10): 1})
    attempts.put(1, {(0, 1000): 1})

    attempts.passed(2, {0: 10})

    assert stored(database) == [(2, 0, 10, 1), (2, 1, 5, 1)]


def test_a_server_that_went_away_is_unavailable_and_found_again(attempts, database):
    attempts.put(1, {(0, 5): 1})
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'trueboard tests' AND datname = current_database()"
        )

    with pytest.raises(Unavailable):
        attempts.put(1, {(0, 5): 1})
    assert attempts.known(1, 0, 5) == 1
