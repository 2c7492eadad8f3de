"""Which rows share a stack: most run one after another on a long-lived one, some need one of their own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import CACHE
from tests.faults import rows  # noqa: F401
from tests.faults.engine import Result, Row, World, run_row
from tests.faults.rig import Rig


class Worlds:
    """Starts stacks as rows need them. A stack on which a row was broken is not used again."""

    def __init__(
        self,
        directory: Path | None = None,
        *,
        thorough: bool = False,
        seed: int = 1,
        beside: Sequence[str] = (),
    ) -> None:
        """`beside` are services that every stack has beside those that it needs."""
        # Not in a home directory: the servers run as nobody, and Kafka has to reach its own.
        self.directory = directory or Path(tempfile.mkdtemp(prefix="trueboard-faults-"))
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o755)
        self.kept: list[Path] = []
        self._thorough, self._seed, self._beside = thorough, seed, beside
        self._number = 0
        self.shared: World | None = None

    def run(self, row: Row) -> Result:
        """Run a row on the stack it needs."""
        if row.cannot:
            return Result(
                id=row.id, what=row.what, at_risk=row.at_risk, verdict="not run", wrong=[row.cannot]
            )
        if row.stack != "main":
            world = self.start(brokers=3 if row.stack == "trio" else 1)
            try:
                result = run_row(world, row)
            finally:
                world.close()
            self._tidy(world, result)
            return result
        if self.shared is None:
            self.shared = self.start()
        world = self.shared
        result = run_row(world, row)
        if result.verdict == "broken":
            self.shared = None
            world.close()
            self._tidy(world, result)
        return result

    def new_directory(self) -> Path:
        """For whatever a run needs beside its own."""
        return Path(tempfile.mkdtemp(dir=self.directory))

    def start(self, *, brokers: int = 1, product: Path | None = None) -> World:
        """A stack with load and readers, at work; its services from `product`, or as they are."""
        self._number += 1
        home = self.directory / str(self._number)
        rig = Rig(
            home / "data",
            home / "run",
            CACHE,
            brokers=brokers,
            seed=self._seed + self._number,
            product=product,
        )
        try:
            world = World(rig, thorough=self._thorough)
            rig.start(*self._beside)
            return world
        except BaseException:
            rig.close()
            raise

    def _tidy(self, world: World, result: Result) -> None:
        """Keep what a broken row left; the servers' data of a good one is of no use."""
        home = world.rig.data.parent
        if result.verdict == "broken":
            self.kept.append(home)
        else:
            shutil.rmtree(home, ignore_errors=True)

    def discard(self, world: World) -> None:
        """Nobody needs to look at what this one left."""
        shutil.rmtree(world.rig.data.parent, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """End everything; what nobody needs to look at goes."""
        if self.shared is not None:
            self.shared.close()
            shutil.rmtree(self.shared.rig.data.parent, ignore_errors=True)
            self.shared = None
        if not self.kept:
            shutil.rmtree(self.directory, ignore_errors=True)


def thorough() -> bool:
    """Whether each fault strikes as often as there is time for, as `make faults` wants it."""
    return os.environ.get("THOROUGH") == "1"
