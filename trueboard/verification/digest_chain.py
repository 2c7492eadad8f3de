"""Whether every revision has the digest that its rows give it, and its number follows the one before.

The tree and the canonical JSON are written here once more, plainly. Each link is checked against
the digest stored before it, so the order of reading does not matter: rows come by batch, and no
more than one batch is in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Final

from trueboard.verification.report import Check
from trueboard.verification.snapshots import Connection, microseconds, stream

_REVISIONS: Final = """
SELECT revision, epoch, batch, cause, digest,
    lag(revision) OVER w, lag(epoch) OVER w, lag(digest) OVER w
FROM revisions WINDOW w AS (ORDER BY revision) ORDER BY batch
"""

_ROWS: Final = f"""
SELECT l.batch, p.pid::text, l.action_id, l.seq, l.kind, l.type, l.verdict, l.points,
    {microseconds("l.occurred_at")}, {microseconds("l.received_at")}, l.catalogue_version
FROM ledger l LEFT JOIN players p USING (player) ORDER BY l.batch
"""


# What holds no object has nothing to sort, and the library writes it at once.
_flat: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def canonical(value: Any) -> str:
    """RFC 8785, with every digit of an integer: keys by their UTF-16 code units, nothing to spare."""
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: key.encode("utf-16-be"))
        return "{" + ",".join(canonical(key) + ":" + canonical(value[key]) for key in keys) + "}"
    if isinstance(value, list):
        return "[" + ",".join(canonical(item) for item in value) + "]"
    return _flat(value)


def merkle(leaves: list[bytes]) -> bytes:
    """The tree hash of RFC 9162 §2.1.1, as it is defined there: by halves. Leaves are sorted already."""
    if len(leaves) < 2:
        return hashlib.sha256(b"\x00" + leaves[0] if leaves else b"").digest()
    left = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + merkle(leaves[:left]) + merkle(leaves[left:])).digest()


def check(connection: Connection, found: Check) -> None:
    """Recompute every digest of this snapshot."""
    definitions = _definitions(connection, found)
    epochs = {
        row[0]: list(row)
        for row in connection.execute("SELECT epoch, continues_epoch, continues_revision FROM epochs")
    }
    batches = _batches(connection)
    batch, rows = next(batches, (None, []))
    for revision, epoch, of_batch, cause, digest, before, epoch_before, digest_before in stream(
        connection, "revisions", _REVISIONS
    ):
        while batch is not None and batch < of_batch:
            found.differs("rows of no revision", count=len(rows), batch=batch, expected=0, found=len(rows))
            batch, rows = next(batches, (None, []))
        leaves = [canonical(leaf).encode() for leaf in definitions.get(revision, [])]
        if cause == "new_epoch":
            leaves.append(canonical(["epoch", *epochs.get(epoch, [])]).encode())
        if batch == of_batch:
            leaves += rows
            batch, rows = next(batches, (None, []))
        if revision != (before or 0) + 1:
            found.differs("the number of a revision", expected=(before or 0) + 1, found=revision)
        if epoch_before is not None and epoch < epoch_before:
            found.differs("the epoch", revision=revision, expected=f"{epoch_before} or later", found=epoch)
        wanted = hashlib.sha256(
            b"trueboard/1"
            + (digest_before or bytes(32))
            + merkle(sorted(leaves))
            + revision.to_bytes(8, "big")
            + cause.encode()
        ).digest()
        found.saw()
        if wanted != digest:
            found.differs("digest", revision=revision, expected=wanted.hex(), found=digest.hex())
    while batch is not None:
        found.differs("rows of no revision", count=len(rows), batch=batch, expected=0, found=len(rows))
        batch, rows = next(batches, (None, []))


def _batches(connection: Connection) -> Iterator[tuple[int, list[bytes]]]:
    """Each batch's leaves, by batch."""
    batch: int | None = None
    leaves: list[bytes] = []
    for of_batch, *columns in stream(connection, "ledger_rows", _ROWS):
        if of_batch != batch:
            if batch is not None:
                yield batch, leaves
            batch, leaves = of_batch, []
        leaves.append(_flat(["row", *columns]).encode())
    if batch is not None:
        yield batch, leaves


def _definitions(connection: Connection, found: Check) -> dict[int, list[list[Any]]]:
    """What each revision put in force; the stored texts must have the hashes that stand beside them."""
    leaves: dict[int, list[list[Any]]] = {}
    for kind, name, number, revision, body, sha256 in connection.execute(
        "SELECT 'catalogue', version, NULL::integer, revision, body, sha256 FROM catalogues"
        " UNION ALL SELECT 'definition', board, version, revision, definition, sha256 FROM boards"
        " ORDER BY 4, 1"
    ):
        wanted = hashlib.sha256(canonical(body).encode()).hexdigest()
        found.saw()
        if wanted != sha256:
            found.differs(f"the hash of a {kind}", name=name, version=number, expected=wanted, found=sha256)
        named = [name] if number is None else [name, number]
        leaves.setdefault(revision, []).append([kind, *named, sha256])
    return leaves
