"""The names of keys. What belongs to one period stands in one hash slot."""

from __future__ import annotations


def board(period: str) -> tuple[str, str, str]:
    """(z, m, meta) of a period's copy."""
    return f"tb:{{{period}}}:z", f"tb:{{{period}}}:m", f"tb:{{{period}}}:meta"


def building(period: str, token: str) -> tuple[str, str, str]:
    """(z, m, meta) of a copy that is being built."""
    stem = f"tb:{{{period}}}:build:{token}"
    return f"{stem}:z", f"{stem}:m", f"{stem}:meta"


def build_lease(period: str) -> str:
    """Who may build this period's copy now."""
    return f"tb:{{{period}}}:build:lease"
