"""Which types of action there are, what each is worth, and how often it may be done.

A catalogue is versioned data: a TOML file (`docs/interfaces.md` §1) in the hands of whoever runs
the board, kept as JSON in the ledger. It is read strictly, since a misspelt limit would be no
limit: an unknown key or a float is refused, with a sentence that names it. Numbers are integers,
because the digest of a catalogue is that of its canonical JSON, which has no floats.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

from core import digest, words
from core.errors import Refused
from core.times import US

LONGEST_S: Final = 100 * 366 * 86_400
"""Longest window, cooldown or gap, in seconds: a hundred years."""

MOST_TYPES: Final = 1000
"""Most types in a catalogue."""

MOST_LIMITS: Final = 100
"""Most limits of one type, and most limits over several types."""

_LIMIT_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_VERSION_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class Limit:
    """How many actions of a type in a window: held above `soft`, rejected above `hard`."""

    window_us: int
    soft: int | None
    hard: int | None


@dataclass(frozen=True, slots=True)
class ActionType:
    """One type: worth `points`, or, where that is None, what the client sends in lowest..highest."""

    name: str
    points: int | None
    lowest: int | None
    highest: int | None
    cooldown_us: int
    min_gap_us: int
    limits: tuple[Limit, ...]


@dataclass(frozen=True, slots=True)
class PointsLimit:
    """How many points over these types in a window: held above `soft`, rejected above `hard`."""

    name: str
    types: frozenset[str]
    window_us: int
    soft: int | None
    hard: int | None


@dataclass(frozen=True, slots=True)
class Catalogue:
    """A catalogue that was read. `points_limits` are sorted by name: a JSON object has no order.

    `body` is the file as parsed, `sha256` the hex SHA-256 of its canonical JSON.
    """

    version: str
    types: dict[str, ActionType]
    points_limits: tuple[PointsLimit, ...]
    body: dict[str, Any]
    sha256: str

    def worth(self, type_name: str, client_points: int | None) -> int:
        """Points an action would be worth, whatever the verdict; 0 for an unknown type.

        A type with catalogue points ignores the client's; a type with bounds is worth what the
        client sent, within them or not, and 0 if it sent nothing.
        """
        type_ = self.types.get(type_name)
        if type_ is None:
            return 0
        if type_.points is not None:
            return type_.points
        return client_points or 0


def read(toml: bytes) -> Catalogue:
    """The catalogue in these bytes of TOML.

    Raises:
        Refused: `invalid_catalogue`, with a sentence that names the key at fault.
    """
    try:
        body = tomllib.loads(toml.decode())
    except UnicodeDecodeError as error:
        raise _refused("the catalogue is not UTF-8") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _refused(f"the catalogue is not TOML: {error}") from error
    return from_body(body)


def from_body(body: dict[str, Any]) -> Catalogue:
    """The catalogue in a parsed body, as `Catalogue.body` went into the ledger.

    Raises:
        Refused: `invalid_catalogue`, with a sentence that names the key at fault.
    """
    _only(body, "", "version", "types", "limits")
    tables = _table(body.get("types"), "types")
    if not 1 <= len(tables) <= MOST_TYPES:
        raise _refused(f"types must have 1 to {MOST_TYPES} tables")
    version = _version(body.get("version"))
    types = {name: _type(name, tables[name]) for name in sorted(tables)}
    named = _table(body.get("limits", {}), "limits")
    if len(named) > MOST_LIMITS:
        raise _refused(f"limits must have at most {MOST_LIMITS} tables")
    return Catalogue(
        version=version,
        types=types,
        points_limits=tuple(_points_limit(name, named[name], types) for name in sorted(named)),
        body=body,
        sha256=hashlib.sha256(digest.canonical(body)).hexdigest(),
    )


def shipped() -> bytes:
    """The TOML that comes with the package and holds where no other is given."""
    return resources.files("core").joinpath("catalogue.toml").read_bytes()


def _type(name: str, value: object) -> ActionType:
    key = f"types.{name}"
    if not words.is_type(name):
        raise _refused(f"{key}: a type is 1 to 64 of a-z, 0-9 and _")
    table = _table(value, key)
    _only(table, key, "points", "min", "max", "cooldown_s", "min_gap_ms", "limits")
    points = lowest = highest = None
    if "points" in table:
        if "min" in table or "max" in table:
            raise _refused(f"{key} has points and min or max: it must have the one or the other")
        points = _points(table, key, "points")
    elif "min" in table and "max" in table:
        lowest, highest = _points(table, key, "min"), _points(table, key, "max")
        if lowest > highest:
            raise _refused(f"{key}.min must not be above {key}.max")
    else:
        raise _refused(f"{key} must have points, or min and max")
    limits = table.get("limits", [])
    if not isinstance(limits, list) or len(limits) > MOST_LIMITS:
        raise _refused(f"{key}.limits must be a list of at most {MOST_LIMITS} tables")
    return ActionType(
        name=name,
        points=points,
        lowest=lowest,
        highest=highest,
        cooldown_us=_whole(table.get("cooldown_s", 0), f"{key}.cooldown_s", 0, LONGEST_S) * US,
        min_gap_us=_whole(table.get("min_gap_ms", 0), f"{key}.min_gap_ms", 0, LONGEST_S * 1000) * 1000,
        limits=tuple(_limit(f"{key}.limits.{index}", limit) for index, limit in enumerate(limits)),
    )


def _limit(key: str, value: object) -> Limit:
    table = _table(value, key)
    _only(table, key, "window_s", "soft", "hard")
    return Limit(*_window_and_bounds(table, key))


def _points_limit(name: str, value: object, types: Mapping[str, ActionType]) -> PointsLimit:
    key = f"limits.{name}"
    if _LIMIT_NAME.fullmatch(name) is None:
        raise _refused(f"{key}: the name of a limit is 1 to 64 of A-Z, a-z, 0-9, _ and -")
    table = _table(value, key)
    _only(table, key, "types", "window_s", "soft", "hard")
    listed = table.get("types")
    if not isinstance(listed, list) or not listed:
        raise _refused(f"{key}.types must be a list of one type or more")
    for type_name in listed:
        if not isinstance(type_name, str) or type_name not in types:
            raise _refused(f"{key}.types names {_shown(type_name)}, which is no type of this catalogue")
    if len(set(listed)) != len(listed):
        raise _refused(f"{key}.types names a type twice")
    return PointsLimit(name, frozenset(listed), *_window_and_bounds(table, key))


def _window_and_bounds(table: Mapping[str, Any], key: str) -> tuple[int, int | None, int | None]:
    if "window_s" not in table:
        raise _refused(f"{key}.window_s is missing")
    window_us = _whole(table["window_s"], f"{key}.window_s", 1, LONGEST_S) * US
    soft, hard = (
        _whole(table[bound], f"{key}.{bound}", 0, words.SCORE_MAX) if bound in table else None
        for bound in ("soft", "hard")
    )
    if soft is None and hard is None:
        raise _refused(f"{key} must have soft, hard or both")
    if soft is not None and hard is not None and soft > hard:
        raise _refused(f"{key}.soft must not be above {key}.hard")
    return window_us, soft, hard


def _version(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= _VERSION_CHARACTERS or not value.isprintable():
        raise _refused(f"version must be a string of 1 to {_VERSION_CHARACTERS} printable characters")
    return value


def _points(table: Mapping[str, Any], key: str, name: str) -> int:
    return _whole(table[name], f"{key}.{name}", -words.SCORE_MAX, words.SCORE_MAX)


def _whole(value: object, key: str, lowest: int, highest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _refused(f"{key} must be an integer")
    if not lowest <= value <= highest:
        raise _refused(f"{key} must lie within {lowest}..{highest}")
    return value


def _table(value: object, key: str) -> dict[str, Any]:
    if value is None:
        raise _refused(f"{key} is missing")
    if not isinstance(value, dict):
        raise _refused(f"{key} must be a table")
    return value


def _only(table: Mapping[str, Any], key: str, *known: str) -> None:
    """Refuse a key that means nothing here; a table's own keys are named with its path."""
    for name in table:
        if name not in known:
            path = f"{key}.{name}" if key else name
            raise _refused(f"{path} is no key of a catalogue; known here: {', '.join(known)}")


def _shown(value: object) -> str:
    return repr(value)[:80]


def _refused(detail: str) -> Refused:
    return Refused("invalid_catalogue", detail)
