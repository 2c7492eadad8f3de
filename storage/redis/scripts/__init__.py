"""The Lua scripts, each with a header that names its KEYS and ARGV."""

from __future__ import annotations

from importlib import resources


def source(name: str) -> str:
    """The text of one script, by the name of its file without `.lua`."""
    return resources.files(__name__).joinpath(f"{name}.lua").read_text()
