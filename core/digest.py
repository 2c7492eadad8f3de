"""The digest of a revision: a Merkle tree over its leaves, chained to the one before.

Tree: RFC 9162 §2.1.1 (leaf SHA-256(0x00 ‖ leaf), node SHA-256(0x01 ‖ left ‖ right)) over
the leaves sorted bytewise. Leaves are canonical JSON (RFC 8785). One deliberate difference:
an integer beyond 2^53 is written with all its digits, since a ledger that rounds is none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

CAUSES: Final = ("stream", "operator", "person", "definition", "expiry", "close", "new_epoch")
FIRST: Final = bytes(32)
"""digest(0): what the first revision chains to."""

EMPTY_ROOT: Final = hashlib.sha256(b"").digest()

_PREFIX: Final = b"trueboard/1"
_SHORT_ESCAPES: Final = {0x08: "\\b", 0x09: "\\t", 0x0A: "\\n", 0x0C: "\\f", 0x0D: "\\r"}


def canonical(value: Any) -> bytes:
    """Canonical JSON of null, booleans, integers, strings, lists and dicts.

    Raises:
        TypeError: anything else, floats among it: they have no place in a ledger.
    """
    return _canonical(value).encode()


def _canonical(value: Any) -> str:
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_canonical, value)) + "]"
    if isinstance(value, dict):
        # RFC 8785 §3.2.3 sorts by UTF-16 code units.
        keys = sorted(value, key=lambda key: key.encode("utf-16-be"))
        return "{" + ",".join(f"{_quoted(key)}:{_canonical(value[key])}" for key in keys) + "}"
    raise TypeError(f"no canonical form for {type(value).__name__}")


def _quoted(text: str) -> str:
    out = []
    for char in text:
        code = ord(char)
        if char in '"\\':
            out.append("\\" + char)
        elif code < 0x20:
            out.append(_SHORT_ESCAPES.get(code) or f"\\u{code:04x}")
        else:
            out.append(char)
    return '"' + "".join(out) + '"'


def row_leaf(
    pid: str,
    action_id: str,
    seq: int,
    kind: str,
    type_: str,
    verdict: str,
    points: int,
    occurred_us: int,
    received_us: int,
    catalogue_version: str,
) -> bytes:
    """The leaf of one ledger row. Ids and words hold no character that JSON escapes."""
    return (
        f'["row","{pid}","{action_id}",{seq},"{kind}","{type_}","{verdict}",{points},'
        f"{occurred_us},{received_us},{_quoted(catalogue_version)}]"
    ).encode()


def catalogue_leaf(version: str, sha256_hex: str) -> bytes:
    return canonical(["catalogue", version, sha256_hex])


def definition_leaf(board: str, version: int, sha256_hex: str) -> bytes:
    return canonical(["definition", board, version, sha256_hex])


def edge_leaf(period: str, instant_us: int) -> bytes:
    return canonical(["edge", period, instant_us])


def epoch_leaf(epoch: str, from_epoch: str, from_revision: int) -> bytes:
    return canonical(["epoch", epoch, from_epoch, from_revision])


def root(leaves: Sequence[bytes]) -> bytes:
    """The Merkle tree hash of a batch; its leaves are sorted here."""
    sha256 = hashlib.sha256
    level = [sha256(b"\x00" + leaf).digest() for leaf in sorted(leaves)]
    if not level:
        return EMPTY_ROOT
    # Pairing neighbours and carrying the odd one up gives RFC 9162's tree, whose left
    # half is the largest power of two below n.
    while len(level) > 1:
        paired = [sha256(b"\x01" + level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)]
        if len(level) & 1:
            paired.append(level[-1])
        level = paired
    return level[0]


def chained(previous: bytes, batch_root: bytes, revision: int, cause: str) -> bytes:
    """digest(r) = SHA-256("trueboard/1" ‖ digest(r−1) ‖ root ‖ r as 8 bytes big-endian ‖ cause)."""
    return hashlib.sha256(
        _PREFIX + previous + batch_root + revision.to_bytes(8, "big") + cause.encode()
    ).digest()
