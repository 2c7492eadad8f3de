"""What keeps the stack from starting, in one sentence a person can act on."""

from __future__ import annotations

import errno


class CannotStart(Exception):
    """Nothing runs, and the message says why and what to do; shown without a traceback."""


FULL = "the disk is full"


def says_full(output: str) -> bool:
    """Whether what a program printed says that there was no space left."""
    return "No space left on device" in output


def sentence_of(error: OSError, *, doing: str) -> str:
    """One sentence for an operating-system error met while `doing` something."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{FULL}{where}: {doing} needs space; free some and start again"
    return f"{doing} failed{where}: {error.strerror or error}"
