"""Small disks that can be filled: a tmpfs in the place of a directory. Only root may make them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.tools import copy_tree


def _why_not() -> str:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return "a small disk is a tmpfs, which only root may mount"
    # Several runs of tests ask this at once.
    where = tempfile.mkdtemp(prefix="trueboard-mount-probe-")
    try:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", where], check=False).returncode:
            return "this machine lets nobody mount a tmpfs"
        subprocess.run(["umount", where], check=True)
    finally:
        Path(where).rmdir()
    return ""


CANNOT_MOUNT = _why_not()


@contextmanager
def small_disk(where: Path, *, mib: int, owner_of: Path | None = None) -> Iterator[Path]:
    """A disk of so many MiB in the place of a directory, with what was in it.

    `owner_of` is a path whose owner the disk gets; by default that of the directory. Who writes there
    must have ended before and after.
    """
    where.mkdir(exist_ok=True)
    about = (owner_of or where).stat()
    kept = where.with_name(f"{where.name}.kept")
    copy_tree(where, kept)
    options = f"size={mib}m,mode=0700,uid={about.st_uid},gid={about.st_gid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(where)], check=True)
    try:
        subprocess.run(["cp", "-a", "--sparse=always", f"{kept}/.", str(where)], check=True)
        os.chown(where, about.st_uid, about.st_gid)
        shutil.rmtree(kept)
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


class Ballast:
    """A file that takes all the room that is left."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def fill(self) -> None:
        _write(self._path, b"\0", (1 << 20, 1 << 12))

    def empty(self) -> None:
        self._path.unlink()


def leave_no_room(log: Path) -> None:
    """Fill what is left of the last block of a log, on a disk that is full otherwise."""
    _write(log, b"\n", (1 << 9, 1))


def _write(path: Path, byte: bytes, sizes: tuple[int, ...]) -> None:
    """Append pieces of each size until there is no room for one."""
    with path.open("ab", buffering=0) as file:
        for size in sizes:
            try:
                while True:
                    file.write(byte * size)
            except OSError:
                continue
