"""The golden records of `core/examples`, by topic and name."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import pytest


def example(topic: str, name: str) -> Any:
    """One golden record."""
    return json.loads((resources.files("core") / "examples" / topic / f"{name}.json").read_text())


def cases(topic: str) -> list[Any]:
    """All golden records of a topic, each a parameter named after its file."""
    names = sorted(
        file.name.removesuffix(".json")
        for file in (resources.files("core") / "examples" / topic).iterdir()
        if file.name.endswith(".json")
    )
    return [pytest.param(example(topic, name), id=name) for name in names]
