"""Wall clocks that are wrong: of one process, by a library of our own that is loaded into it.

`clocks.c` says what it shifts. It is compiled into the run's own directory; a machine without a C compiler
has no rows about clocks.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("clocks.c")
_COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")

CANNOT_SHIFT_CLOCKS = "" if _COMPILER else "a wrong clock needs a C compiler (cc, gcc or clang)"


def shifted(by_s: int | None, directory: Path) -> dict[str, str]:
    """The environment of a process whose wall clock is wrong by so much, its steady one right; None: both.

    The library is put into `directory`, unless it is there.
    """
    if by_s is None:
        return {}
    library = directory / "clocks.so"
    if not library.exists():
        assert _COMPILER is not None, CANNOT_SHIFT_CLOCKS
        making = directory / "clocks.so.new"
        subprocess.run(
            [_COMPILER, "-shared", "-fPIC", "-O1", "-o", str(making), str(_SOURCE), "-ldl", "-pthread"],
            check=True,
        )
        making.rename(library)
    return {"LD_PRELOAD": str(library), "SHIFTED_CLOCK_S": str(by_s)}
