"""Arrays in Postgres' binary form, held against what psycopg itself writes and reads."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.times import HIGHEST_US, LOWEST_US, US
from storage.postgres import arrays, connections

integers = st.integers(-(2**63), 2**63 - 1)
instants_us = st.integers(LOWEST_US, HIGHEST_US)


@given(st.lists(integers))
def test_integers_come_back(values):
    raw = arrays.int8s(values)

    assert arrays.length(raw) == len(values)
    assert arrays.values(raw) == values
    assert arrays.present(raw) == values


@given(st.lists(instants_us))
def test_instants_come_back(values):
    raw = arrays.instants(values)

    assert arrays.values(raw) == values
    assert arrays.present(raw) == values


@given(st.lists(st.lists(integers), min_size=1))
def test_arrays_joined_are_one_after_the_other(lists):
    joined = arrays.joined([arrays.int8s(values) for values in lists])

    assert arrays.values(joined) == [value for values in lists for value in values]
    assert arrays.length(joined) == sum(map(len, lists))


@pytest.mark.services
def test_the_server_reads_and_writes_the_same(database):
    numbers: list[int | None] = [0, -1, None, 2**63 - 1, -(2**63), None]
    moments = [LOWEST_US, -1, 0, 1, HIGHEST_US]
    with connections.connect(database, name="tests") as connection:
        arrays.register(connection.adapters)
        cursor = connection.cursor(binary=True)
        cursor.execute(
            "SELECT %s::bigint[] || NULL::bigint, %s::timestamptz[] || NULL::timestamptz, ARRAY[]::bigint[],"
            " '{NULL}'::bigint[], %s::timestamptz[]",
            (
                arrays.int8s([one for one in numbers if one is not None]),
                arrays.instants(moments),
                arrays.instants([]),
            ),
        )
        row = cursor.fetchone()
        said = cursor.execute(
            "SELECT extract(epoch FROM t)::text FROM unnest(%s::timestamptz[]) t", (arrays.instants(moments),)
        ).fetchall()

    assert arrays.values(row[0]) == [one for one in numbers if one is not None] + [None]
    assert arrays.values(row[1]) == [*moments, None]
    assert arrays.values(row[2]) == []
    assert arrays.values(row[3]) == [None]
    assert arrays.values(row[4]) == []
    assert [int(Decimal(found[0]) * US) for found in said] == moments


@pytest.mark.services
@pytest.mark.parametrize("nulls", [(True, False), (False, True), (True, True)])
def test_arrays_with_nulls_join(database, nulls):
    with connections.connect(database, name="tests") as connection:
        arrays.register(connection.adapters)
        cursor = connection.cursor(binary=True)
        parts, expected = [], []
        for null in nulls:
            cursor.execute("SELECT ARRAY[1, 2]::bigint[] || %s::bigint[]", ("{NULL,3}" if null else "{}",))
            parts.append(cursor.fetchone()[0])
            expected += [1, 2, None, 3] if null else [1, 2]
        joined = arrays.joined(parts)
        cursor.execute("SELECT array_to_string(%s, ',', 'null')", (arrays.Int8Array(joined),))
        said = cursor.fetchone()[0]

    assert arrays.values(joined) == expected
    assert said == ",".join("null" if one is None else str(one) for one in expected)
