"""What a command says at its end, to whoever still listens."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def even_unread() -> Iterator[None]:
    """Let a reader who has gone away change nothing, least of all the exit code that follows."""
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except (BrokenPipeError, SystemExit):
        # rich ends the process for it; what is still buffered must not fail when Python ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
