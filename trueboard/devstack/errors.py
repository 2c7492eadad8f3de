"""What keeps the stack from starting, in one sentence a person can act on."""

from __future__ import annotations

import errno


class CannotStart(Exception):
    """Nothing runs, and the message says why and what to do; shown without a traceback."""


def sentence_of(error: OSError, *, doing: str) -> str:
    """One sentence for an operating-system error met while `doing` something."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}: {doing} needs space; free some and start again"
    return f"{doing} failed{where}: {error.strerror or error}"
