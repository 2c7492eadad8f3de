"""`python -m tests.faults P-1 R- …`: run rows (`R-`: a whole section) and say what came of them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from tests.faults.engine import ROWS, write_results
from tests.faults.worlds import Worlds


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", nargs="+", help="ids, or a letter and a dash for a whole section")
    parser.add_argument("--keep", type=Path, help="where to keep the runs; by default a directory in /tmp")
    parser.add_argument("--thorough", action="store_true", help="each fault as often as there is time for")
    parser.add_argument("--results", type=Path, help="where to write them; a row's earlier one is replaced")
    wanted = parser.parse_args()
    chosen = [
        row
        for row in ROWS.values()
        if any(row.id == name or (name.endswith("-") and row.id.startswith(name)) for name in wanted.rows)
    ]
    worlds = Worlds(wanted.keep, thorough=wanted.thorough)
    print(f"runs in {worlds.directory}", flush=True)
    broken = []
    try:
        for row in chosen:
            result = worlds.run(row)
            print(json.dumps(dataclasses.asdict(result), indent=1, ensure_ascii=False), flush=True)
            if wanted.results:
                write_results(wanted.results, [result])
            if result.verdict == "broken":
                broken.append(row.id)
    finally:
        worlds.close()
    print("broken:", *broken, *worlds.kept)
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
