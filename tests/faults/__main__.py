"""`python -m tests.faults P-1 R-3 …`: run rows and say what came of them; for working on rows."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

from tests.conftest import CACHE
from tests.faults import rows  # noqa: F401
from tests.faults.engine import ROWS, Result, World, run_row
from tests.faults.rig import Rig


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", nargs="+", help="ids, or a letter and a dash for a whole section")
    parser.add_argument("--keep", type=Path, help="where to keep the run; by default a directory in /tmp")
    parser.add_argument("--thorough", action="store_true", help="each fault as often as there is time for")
    wanted = parser.parse_args()
    chosen = [
        one
        for one in ROWS.values()
        if any(one.id == w or (w.endswith("-") and one.id.startswith(w)) for w in wanted.rows)
    ]
    keep = wanted.keep or Path(tempfile.mkdtemp(prefix="trueboard-faults-"))
    print(f"run in {keep}", flush=True)
    results: list[Result] = []
    world: World | None = None
    number = 0
    try:
        for one in chosen:
            if world is None or one.stack != "main":
                if world is not None:
                    world.close()
                number += 1
                brokers = 3 if one.stack == "trio" else 1
                rig = Rig(keep / f"data-{number}", keep / f"run-{number}", CACHE, brokers=brokers)
                world = World(rig, thorough=wanted.thorough)
                print(f"up after {rig.now_s()} s", flush=True)
            result = run_row(world, one)
            results.append(result)
            print(json.dumps(dataclasses.asdict(result), indent=1, ensure_ascii=False), flush=True)
            if one.stack != "main":
                world.close()
                world = None
    finally:
        if world is not None:
            world.close()
    broken = [result.id for result in results if result.verdict == "broken"]
    print("broken:", *broken)
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
