"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

data: Final = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    help="The stack's data directory (default: $TRUEBOARD_DATA, else .trueboard).",
)
"""A `Path | None`, for `service.settings.data_directory`."""
