"""As whom a server runs when the person starting it is root.

Postgres refuses to run as root, and nothing that only listens on loopback needs to. So as root
the servers take the account `nobody`: no user is added to the system and no directory outside
the server's own is made readable. What `nobody` cannot reach (a home directory closed to others)
is found by looking at the permission bits on the way.
"""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

_SEARCHABLE = stat.S_IXOTH


@dataclass(frozen=True, slots=True)
class Account:
    """A user and group id a child process is started under."""

    uid: int
    gid: int


def unprivileged() -> Account | None:
    """The account a root process lends to its servers; None when not root (they run as oneself)."""
    if os.geteuid() != 0:
        return None
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        return Account(65534, 65534)
    return Account(nobody.pw_uid, nobody.pw_gid)


def closed_to_others(path: Path) -> Path | None:
    """The first directory on the way to `path`, `path` included, others may not search; None: none.

    `path` itself counts only if it is a directory.
    """
    real = path.resolve()
    for step in (*reversed(real.parents), real):
        if step.is_dir() and not step.stat().st_mode & _SEARCHABLE:
            return step
    return None


def account_reaching(*paths: Path) -> Account | None:
    """`nobody` when root and all paths are open to it, else None: run as whoever asks."""
    account = unprivileged()
    if account is None or any(closed_to_others(path) for path in paths):
        return None
    return account


def give(directory: Path, account: Account | None) -> None:
    """Make the account (None: oneself) the owner of a directory and all in it, if it is not yet."""
    wanted = account or Account(os.geteuid(), os.getegid())
    if os.geteuid() != 0:
        return
    for here, _, files in os.walk(directory):
        for path in (here, *(os.path.join(here, name) for name in files)):  # noqa: PTH118 (many files)
            if os.lstat(path).st_uid != wanted.uid:
                os.chown(path, wanted.uid, wanted.gid, follow_symlinks=False)
