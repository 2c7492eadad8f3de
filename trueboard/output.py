"""What a command says at its end, to whoever still listens."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click


@contextmanager
def telling(command: str, *, could_not: int) -> Iterator[None]:
    """Let a reader who has gone away change nothing, least of all the exit code that follows.

    Where the report cannot be written for another reason, the process ends with `could_not`.
    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except (BrokenPipeError, SystemExit):
        # rich ends the process for it.
        _say_no_more()
    except OSError as error:
        _say_no_more()
        click.echo(f"trueboard {command}: the report cannot be written: {error.strerror}", err=True)
        sys.exit(could_not)


def _say_no_more() -> None:
    """What is still buffered must not fail when Python ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
