"""How a process reads its settings, once, at its start.

A settings class is a frozen keyword-only dataclass. Its field `http_port` is the variable
`TRUEBOARD_HTTP_PORT`, else the key `http_port` of `<data directory>/trueboard.toml`, else the
field's default. The data directory is `TRUEBOARD_DATA`, else `.trueboard`. Everything missing
or malformed is named at once, in one sentence.
"""

from __future__ import annotations

import math
import re
import tomllib
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from core.errors import TrueboardError

PREFIX = "TRUEBOARD_"
DATA_VARIABLE = "TRUEBOARD_DATA"
DEFAULT_DATA = ".trueboard"
FILE_NAME = "trueboard.toml"

MASK = "***"

Source = Literal["argument", "environment", "file", "default", "missing"]
SettingsT = TypeVar("SettingsT")

_WHOLE = re.compile(r"[+-]?[0-9]{1,19}")
_TRUE, _FALSE = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off"})
_SECRET_NAME = re.compile(r"(^|_)(password|passphrase|secret|secrets|private_key|api_key)($|_)")
_URL_PASSWORD = re.compile(r"(?<=://)([^/?#\s:@]*):([^/?#\s]*)@")
_PARAMETER_PASSWORD = re.compile(r"\b(password|passwd|sslpassword|sasl\.password)=('[^']*'|[^&\s]*)", re.I)


class SettingsError(TrueboardError):
    """Settings are missing or malformed; the message names each of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One line of `describe`: secrets are masked, `value` is text for a person."""

    name: str
    variable: str
    value: str
    source: Source


class _Malformed(ValueError):
    """What a value should have been, as the end of a sentence: "a whole number"."""


def read_settings(cls: type[SettingsT], env: Mapping[str, str], *, data_dir: Path | None = None) -> SettingsT:
    """An instance of `cls` from the environment, the file and the defaults, in that order.

    `data_dir` wins over `TRUEBOARD_DATA`; a field named `data_dir` gets whichever was used.
    Fields may be str, int, float, bool, Path, Literal, tuple[str, ...] (comma separated) and
    these with `| None` (an empty variable is None). A ValueError of the class's own
    `__post_init__` counts as malformed.

    Raises:
        SettingsError: something is missing or malformed; all of it is named.
    """
    directory = data_directory(env, data_dir)
    try:
        from_file = _read_file(directory)
    except SettingsError as error:
        raise SettingsError(f"settings cannot be read: {error}") from error
    hints, values, faults = get_type_hints(cls), dict[str, Any](), list[str]()
    for field in _fields(cls):
        if field.name == "data_dir":
            values["data_dir"] = directory
            continue
        raw, source = _raw(field, env, from_file)
        if source == "default":
            continue
        if source == "missing" or (raw == "" and _required(field) and not _optional(hints[field.name])):
            faults.append(f"{_variable(field.name)} is missing")
            continue
        try:
            values[field.name] = _convert(raw, hints[field.name], from_text=source == "environment")
        except _Malformed as malformed:
            where = _variable(field.name) if source == "environment" else f"{field.name} in {FILE_NAME}"
            shown = mask(field.name, str(raw)) if str(raw) else "empty"
            faults.append(f"{where} must be {malformed}, but is {shown}")
    if faults:
        raise SettingsError(f"settings cannot be read: {'; '.join(faults)}")
    try:
        return cls(**values)
    except ValueError as error:
        raise SettingsError(f"settings cannot be read: {error}") from error


def above_zero(settings: object, *names: str) -> None:
    """For a class's `__post_init__`: fields that mean nothing at 0 or below it. None is let pass.

    Raises:
        ValueError: it names each of them that is not.
    """
    _all_are(settings, names, lambda value: value > 0, "must be greater than 0")


def not_negative(settings: object, *names: str) -> None:
    """As `above_zero`, of fields that may be 0."""
    _all_are(settings, names, lambda value: value >= 0, "must not be negative")


def _all_are(settings: object, names: Sequence[str], good: Callable[[float], bool], must: str) -> None:
    values = {name: getattr(settings, name) for name in names}
    wrong = [_variable(name) for name, value in values.items() if value is not None and not good(value)]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} {must}")


def describe(settings: object, env: Mapping[str, str], *, data_dir: Path | None = None) -> list[Setting]:
    """Every field of `settings` with where its value came from, in the class's order.

    `env` and `data_dir` are those the settings were read with. Passwords inside URLs and
    connection strings, and fields named like a secret, are masked.
    """
    directory = data_directory(env, data_dir)
    from_file = _read_file(directory)
    lines = []
    for field in _fields(type(settings)):
        _, source = _raw(field, env, from_file)
        if field.name == "data_dir":
            source = "argument" if data_dir else "environment" if env.get(DATA_VARIABLE) else "default"
        value = getattr(settings, field.name)
        text = ",".join(value) if isinstance(value, tuple) else "" if value is None else str(value)
        lines.append(
            Setting(
                name=field.name,
                variable=_variable(field.name),
                value=mask(field.name, text),
                source=source,
            )
        )
    return lines


def data_directory(env: Mapping[str, str], data_dir: Path | None = None) -> Path:
    """`data_dir`, else `TRUEBOARD_DATA`, else `.trueboard`."""
    return data_dir if data_dir is not None else Path(env.get(DATA_VARIABLE) or DEFAULT_DATA)


def mask(name: str, text: str) -> str:
    """`text` without its secrets, for a setting of this name."""
    if _SECRET_NAME.search(name):
        return MASK if text else ""
    text = _URL_PASSWORD.sub(rf"\1:{MASK}@", text)
    return _PARAMETER_PASSWORD.sub(rf"\1={MASK}", text)


def _fields(cls: type) -> list[Field[Any]]:
    if not is_dataclass(cls):
        raise TypeError(f"{cls.__name__} is no dataclass")
    return [field for field in fields(cls) if field.init]


def _variable(name: str) -> str:
    return DATA_VARIABLE if name == "data_dir" else PREFIX + name.upper()


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _raw(field: Field[Any], env: Mapping[str, str], from_file: Mapping[str, Any]) -> tuple[Any, Source]:
    if (text := env.get(_variable(field.name))) is not None:
        return text.strip(), "environment"
    if field.name in from_file:
        return from_file[field.name], "file"
    return None, "missing" if _required(field) else "default"


def _read_file(directory: Path) -> Mapping[str, Any]:
    path = directory / FILE_NAME
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{FILE_NAME} in the data directory: {error}") from error


def _optional(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)


def _convert(raw: Any, hint: Any, *, from_text: bool) -> Any:
    """`raw` as what `hint` says: `from_text` from a variable's text, else from TOML's own types."""
    if _optional(hint):
        if raw == "":
            return None
        (hint,) = [part for part in get_args(hint) if part is not type(None)]
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        if raw not in choices:
            raise _Malformed("one of " + ", ".join(map(str, choices)))
        return raw
    if get_origin(hint) is tuple:
        if isinstance(raw, str):
            return tuple(part.strip() for part in raw.split(",") if part.strip())
        if not (isinstance(raw, list) and all(isinstance(part, str) for part in raw)):
            raise _Malformed("a list of strings")
        return tuple(raw)
    if hint is bool:
        return _boolean(raw, from_text)
    if hint is int:
        return _whole_number(raw, from_text)
    if hint is float:
        return _number(raw, from_text)
    if hint in (str, Path):
        if not isinstance(raw, str):
            raise _Malformed("a string")
        return hint(raw)
    raise TypeError(f"settings cannot hold {hint}")


def _boolean(raw: Any, from_text: bool) -> bool:
    if from_text and raw.lower() in _TRUE | _FALSE:
        return raw.lower() in _TRUE
    if isinstance(raw, bool):
        return raw
    raise _Malformed("true or false")


def _whole_number(raw: Any, from_text: bool) -> int:
    if from_text and _WHOLE.fullmatch(raw):
        return int(raw)
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    raise _Malformed("a whole number")


def _number(raw: Any, from_text: bool) -> float:
    try:
        if not isinstance(raw, bool) and (from_text or isinstance(raw, int | float)):
            number = float(raw)
            if math.isfinite(number):
                return number
    except (ValueError, OverflowError):
        pass
    raise _Malformed("a number")
