"""Tries at what has not come to its end: how many processes have begun on a record and not finished.

Counted in transactions of their own, so that a count outlives the process whose try it counts. One
statement when a partition's first group after it was taken up is tried, or when a try was seen to
fail; none in between.
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

    def begin(self, log: int, offsets: Mapping[int, int], *, least: int = 1) -> dict[int, int]:
        """Count a try of what begins at these offsets (partition → offset), `least` or more.

        Answers partition → tries so far, this one included.

        Raises:
            Unavailable: the server does not answer.
        """
        return {
            row[0]: row[1]
            for row in self._run(
                "INSERT INTO attempts AS a (log, partition, record_offset, tries)"
                " SELECT %s, partition, record_offset, %s"
                " FROM unnest(%s::integer[], %s::bigint[]) t(partition, record_offset) ORDER BY partition"
                " ON CONFLICT (log, partition, record_offset)"
                " DO UPDATE SET tries = greatest(a.tries + 1, excluded.tries) RETURNING partition, tries",
                (log, least, list(offsets), list(offsets.values())),
            )
        }

    def withdraw(self, log: int, offsets: Mapping[int, int]) -> None:
        """These tries (partition → offset) ended without a word on the records: as if never begun.

        Raises:
            Unavailable: the server does not answer.
        """
        self._run(
            "UPDATE attempts a SET tries = a.tries - 1"
            " FROM unnest(%s::integer[], %s::bigint[]) t(partition, record_offset)"
            " WHERE a.log = %s AND a.partition = t.partition AND a.record_offset = t.record_offset"
            " AND a.tries > 0",
            (list(offsets), list(offsets.values()), log),
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

    def _run(self, statement: str, parameters: tuple[object, ...]) -> list[tuple[int, int]]:
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
