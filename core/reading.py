"""From a record's bytes to what they say, or a word for why they cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from core.errors import Unreadable

T = TypeVar("T")


def reader(shape: type[T]) -> Callable[[bytes | None], T]:
    """A function from a record's value to this shape.

    It raises:
        Unreadable: not JSON, not this shape, or empty.
    """
    decode = msgspec.json.Decoder(shape).decode

    def read(value: bytes | None) -> T:
        if not value:
            raise Unreadable("empty", "the record has no value")
        try:
            return decode(value)
        except msgspec.ValidationError as error:
            raise Unreadable("shape", str(error)) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Unreadable("json", str(error)) from error

    return read
