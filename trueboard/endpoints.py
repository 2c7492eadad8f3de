"""Where a running stack listens: the file `endpoints.json` of a data directory.

Written whole and put in place by a rename, so a reader never sees half of it; there only while
everything is ready. It carries passwords and is readable by its owner alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from core.errors import Unavailable
from service.settings import read_settings

FILE_NAME = "endpoints.json"


@dataclass(frozen=True, slots=True)
class _Named:
    """The one setting that says whether servers are named; the others may be meant for services."""

    postgres_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """The addresses and processes of a running stack; the fields are the file's, to the letter.

    `metrics` holds the URL of each service's metrics page, `processes` the process ids by name
    (`supervisor`, the four services, and of the servers those that are embedded).
    """

    http: str
    feed: str
    kafka: str
    kafka_kind: str
    postgres: str
    redis: str
    jwks: str
    issuer: str
    audience: str
    metrics: dict[str, str]
    processes: dict[str, list[int]]

    @classmethod
    def read(cls, data: Path) -> Endpoints:
        """The endpoints of the stack running on this data directory.

        Raises:
            Unavailable: none is ready there.
        """
        path = data / FILE_NAME
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError as error:
            raise Unavailable(
                f"nothing is ready in {data}: start it with `trueboard up --data {data}`"
            ) from error
        except PermissionError as error:
            raise Unavailable(f"{path} belongs to another user: run this as who started it") from error
        except OSError as error:
            raise Unavailable(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            # Of JSON, of its fields, or of the bytes.
            raise Unavailable(f"{path} is not of this version's shape: {error}") from error

    @classmethod
    def unless_named(cls, data: Path, environ: Mapping[str, str]) -> Endpoints | None:
        """The endpoints of the stack running there; None if none is and the settings name servers.

        Raises:
            Unavailable: none is ready there, nor is Postgres named.
            SettingsError: the settings cannot be read.
        """
        named = read_settings(_Named, environ, data_dir=data).postgres_url
        return None if named and not (data / FILE_NAME).exists() else cls.read(data)

    def write(self, data: Path) -> None:
        """Put the file in place, readable by its owner alone."""
        fresh = data / f"{FILE_NAME}.new"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")
        fresh.replace(data / FILE_NAME)

    @staticmethod
    def remove(data: Path) -> None:
        """Take the file away: nothing is ready there any more."""
        (data / FILE_NAME).unlink(missing_ok=True)
