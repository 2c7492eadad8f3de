"""Catalogues and boards in the ledger: put in force by a revision, read back by everybody.

A definition's text never changes once a revision has named it; another text needs another
version.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import psycopg
from psycopg_pool import AsyncConnectionPool

from core import boards, catalogue, digest
from core.boards import Board
from core.catalogue import Catalogue
from core.errors import Refused, Unavailable
from storage.postgres import connections, epochs
from storage.postgres.ledger import Ledger, OpenBatch, empty_delta


@dataclass(frozen=True, slots=True)
class Definitions:
    """What is in force: the fence's version they were read at, the catalogue, the boards."""

    fence: int
    catalogue: Catalogue
    boards: tuple[Board, ...]


def apply(url: str, catalogue_toml: bytes) -> None:
    """Put a catalogue in force, and on a fresh ledger the epoch and the board `main` before it.

    Nothing is written where it is in force already. Waits for running batches (`connections.patiently`).
    A ledger that may have lost revisions is compared first (`storage.histories`), by the caller.

    Raises:
        Refused: the text is no catalogue, or its version is known with another content or was
            superseded by a later one.
        Unavailable: no Postgres, or batches that do not end.
    """
    wanted = catalogue.read(catalogue_toml)
    ledger = Ledger(url, name="definitions", before_compared=True)
    try:
        with ledger.connection.transaction():
            if _in_force(ledger.connection.cursor(binary=True), wanted):
                return
        connections.patiently(lambda: _write(ledger, wanted))
    finally:
        ledger.close()


def load(batch: OpenBatch) -> Definitions:
    """What is in force in this transaction.

    Raises:
        Unavailable: nothing is in force yet.
    """
    fence = batch.fence()
    row = batch.execute("SELECT body FROM catalogues ORDER BY revision DESC LIMIT 1").fetchone()
    if row is None:
        raise Unavailable("no catalogue is in force yet")
    rows = batch.execute(
        "SELECT DISTINCT ON (board) definition, version FROM boards ORDER BY board, version DESC"
    ).fetchall()
    return Definitions(
        fence, catalogue.from_body(row[0]), tuple(boards.from_body(body, version) for body, version in rows)
    )


async def current_catalogue_async(pool: AsyncConnectionPool[Any]) -> Catalogue:
    """The catalogue in force.

    Raises:
        Unavailable: nothing is in force yet, or no Postgres.
    """
    async with connections.reading(pool) as connection:
        cursor = await connection.execute("SELECT body FROM catalogues ORDER BY revision DESC LIMIT 1")
        row = await cursor.fetchone()
    if row is None:
        raise Unavailable("no catalogue is in force yet")
    return catalogue.from_body(row[0])


def _in_force(cursor: psycopg.Cursor[tuple[Any, ...]], wanted: Catalogue) -> bool:
    cursor.execute("SELECT sha256, revision = max(revision) OVER () AS current, version FROM catalogues")
    for sha256, current, version in cursor.fetchall():
        if version != wanted.version:
            continue
        if sha256 != wanted.sha256:
            raise Refused(
                "catalogue_changed",
                f"the catalogue's version {version!r} is known with another content: "
                "give the changed catalogue a version of its own",
                status_code=409,
            )
        if not current:
            raise Refused(
                "catalogue_superseded",
                f"the catalogue's version {version!r} was superseded: give it a new version to use it again",
                status_code=409,
            )
        return True
    return False


def _write(ledger: Ledger, wanted: Catalogue) -> None:
    with ledger.exclusive() as batch:
        if _in_force(batch.execute("SELECT 1"), wanted):
            return
        leaves = [digest.catalogue_leaf(wanted.version, wanted.sha256)]
        deltas = []
        epochs.begin_history(batch)
        if batch.execute("SELECT 1 FROM boards").fetchone() is None:
            main = boards.MAIN
            leaves.append(digest.definition_leaf(main.board, main.version, main.sha256))
            deltas = [empty_delta(period) for _, period in main.periods]
        position = batch.append(batch.next_batch(), "definition", leaves, deltas).position
        batch.execute(
            "INSERT INTO catalogues (version, body, sha256, revision) VALUES (%s, %s::jsonb, %s, %s)",
            (wanted.version, msgspec.json.encode(wanted.body).decode(), wanted.sha256, position.revision),
        )
        if deltas:
            batch.execute(
                "INSERT INTO boards (board, version, definition, sha256, revision)"
                " VALUES (%s, %s, %s::jsonb, %s, %s)",
                (
                    main.board,
                    main.version,
                    msgspec.json.encode(main.body).decode(),
                    main.sha256,
                    position.revision,
                ),
            )
            for window, period in main.periods:
                batch.execute(
                    "INSERT INTO periods (period, board, \"window\", state) VALUES (%s, %s, %s, 'open')",
                    (period, main.board, window),
                )
