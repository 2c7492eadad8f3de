"""Tries at what has not come to its end: how many processes have ended with a record in hand.

Written in transactions of their own, so that a count outlives the process whose try it counts.
"""

from __future__ import annotations

from collections.abc import Mapping

import psycopg

from storage.postgres import connections
from storage.postgres.connections import Connection


class Attempts:
    """Table `attempts`, over a connection of its own. Blocks; one thread."""

    def __init__(self, url: str, *, name: str) -> None:
        self._url, self._name = url, name
        self._connection: Connection | None = None

    def known(self, log: int, partition: int, offset: int) -> int:
        """How many tries of what begins at this offset are counted.

        Raises:
            Unavailable: the server does not answer.
        """
        rows = self._run(
            "SELECT tries FROM attempts WHERE log = %s AND partition = %s AND record_offset = %s",
            (log, partition, offset),
        )
        return int(rows[0][0]) if rows else 0

    def put(self, log: int, tries: Mapping[tuple[int, int], int]) -> None:
        """So many tries count from now on of what begins at these places, (partition, offset).

        Raises:
            Unavailable: the server does not answer.
        """
        self._run(
            "INSERT INTO attempts AS a (log, partition, record_offset, tries)"
            " SELECT %s, partition, record_offset, tries"
            " FROM unnest(%s::integer[], %s::bigint[], %s::integer[]) t(partition, record_offset, tries)"
            " ORDER BY partition, record_offset"
            " ON CONFLICT (log, partition, record_offset) DO UPDATE SET tries = excluded.tries",
            (log, [place[0] for place in tries], [place[1] for place in tries], list(tries.values())),
        )

    def passed(self, log: int, next_offsets: Mapping[int, int]) -> None:
        """These partitions have come to these offsets: forget what was tried before them.

        Raises:
            Unavailable: the server does not answer.
        """
        self._run(
            "DELETE FROM attempts a USING unnest(%s::integer[], %s::bigint[]) t(partition, next_offset)"
            " WHERE a.partition = t.partition"
            " AND (a.log < %s OR (a.log = %s AND a.record_offset < t.next_offset))",
            (list(next_offsets), list(next_offsets.values()), log, log),
        )

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _run(self, statement: str, parameters: tuple[object, ...]) -> list[tuple[int, ...]]:
        with connections.unavailable():
            if self._connection is None or self._connection.closed:
                self._connection = connections.connect(self._url, name=self._name, autocommit=True)
            try:
                cursor = self._connection.execute(statement, parameters)
                return cursor.fetchall() if cursor.description else []
            except psycopg.Error as error:
                if connections.passes(error):
                    self.close()
                raise
