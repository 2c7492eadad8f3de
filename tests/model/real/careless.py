"""The product with a clause left out, in this process: the patches of `tests.faults.mutants`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import PurePath
from textwrap import dedent
from types import FunctionType, ModuleType
from typing import Any
from unittest.mock import patch

from storage.redis import scripts
from tests.faults.mutants import MUTANTS, Patch, patched

ELSEWHERE = ("stream_app/transport.py",)
"""What this world does without: positions that it holds are as old as the machine says."""


@contextmanager
def careless(name: str) -> Iterator[None]:
    """While this lasts the mutant of this name is what runs.

    Raises:
        ValueError: a text does not stand in one function of the product.
    """
    (mutant,) = [mutant for mutant in MUTANTS if mutant.name == name]
    with ExitStack() as stack:
        texts: dict[str, str] = {}
        for one in mutant.patches:
            if one.file in ELSEWHERE:
                continue
            path = PurePath(one.file)
            if path.suffix == ".lua":
                texts[path.stem] = patched(texts.get(path.stem) or scripts.source(path.stem), one)
            else:
                module = importlib.import_module(".".join(path.with_suffix("").parts))
                owner, function = _holding(module, one)
                stack.enter_context(patch.object(owner, function.__name__, _without(module, function, one)))
        source = scripts.source
        stack.enter_context(patch.object(scripts, "source", lambda name: texts.get(name) or source(name)))
        yield


def _holding(module: ModuleType, wanted: Patch) -> tuple[Any, FunctionType]:
    """The function that holds the text, and what it is an attribute of."""
    owners = [module, *(one for one in vars(module).values() if inspect.isclass(one))]
    found = [
        (owner, function)
        for owner in owners
        for function in vars(owner).values()
        if inspect.isfunction(function)
        and inspect.unwrap(function).__code__.co_filename == module.__file__
        and wanted.old in inspect.getsource(function)
    ]
    if len(found) != 1:
        raise ValueError(f"{len(found)} functions of {wanted.file} hold this:\n{wanted.old}")
    return found[0]


def _without(module: ModuleType, function: FunctionType, wanted: Patch) -> Any:
    made: dict[str, Any] = {}
    exec(dedent(patched(inspect.getsource(function), wanted)), vars(module), made)
    return made[function.__name__]
