"""The key under which the user ids of erased people are kept as hashes.

One for a ledger, for ever: with another one, what is replayed of an erased person is not known. In
production it is the setting `TRUEBOARD_ERASURE_SECRET`; on one machine it is made in the data directory.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from core.errors import TrueboardError

FILE_NAME = "erasure.key"


def read(setting: str, directory: Path) -> bytes:
    """The key: the setting's bytes, else those of `directory`'s file, made if there is none.

    Raises:
        TrueboardError: there is a file, and it cannot be read.
    """
    if setting:
        return setting.encode()
    path = directory / FILE_NAME
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = directory / f"{FILE_NAME}.{secrets.token_hex(4)}"
        if not path.exists():
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
                file.flush()
                os.fsync(file.fileno())
            try:
                # Whoever was first made the one that holds.
                os.link(fresh, path)
            except FileExistsError:
                pass
            finally:
                fresh.unlink(missing_ok=True)
        return path.read_bytes()
    except OSError as error:
        raise TrueboardError(f"{path} cannot be read: {error.strerror}") from error
