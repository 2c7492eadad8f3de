"""Passwords of the embedded servers: random, made once, readable by their owner alone."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def remembered_password(path: Path) -> str:
    """The password kept in this file (mode 0600), made at first use; letters and digits of a URL."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        pass
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(24) + "\n")
    fresh.replace(path)
    return path.read_text().strip()
