"""Where Java is, and the broker's jars: fetched once through Maven, kept in a cache directory.

The cache may be shared by several data directories and by tests that run at the same time: jars
appear in it by one rename, and who comes second waits for the first.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from trueboard.devstack.errors import CannotStart
from trueboard.devstack.processes import Workbench

POM = Path(__file__).with_name("pom.xml")
LEAST_JAVA = 17
_NAMESPACE = {"pom": "http://maven.apache.org/POM/4.0.0"}
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"


@dataclass(frozen=True, slots=True)
class Java:
    """A Java runtime: its executable, its whole version and the first number of it."""

    executable: Path
    version: str
    major: int


def kafka_version() -> str:
    """The broker's version, as the POM pins it."""
    found = ElementTree.parse(POM).find("pom:properties/pom:kafka.version", _NAMESPACE)
    return (found.text if found is not None else None) or "unknown"


def find_java() -> Java | None:
    """The Java of JAVA_HOME, else the one on the PATH; None if there is none that runs."""
    home = os.environ.get("JAVA_HOME")
    candidate = str(Path(home) / "bin" / "java") if home else "java"
    executable = shutil.which(candidate) or shutil.which("java")
    if executable is None:
        return None
    try:
        told = subprocess.run(
            [executable, "-version"], capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "((?:1\.)?(\d+)[^"]*)"', told.stderr + told.stdout)
    return Java(Path(executable), match[1], int(match[2])) if match else None


class Jars:
    """The broker's class path in a cache directory."""

    def __init__(self, cache: Path) -> None:
        # the POM's bytes are in the name: another set of jars is another directory
        mark = hashlib.sha256(POM.read_bytes()).hexdigest()[:12]
        self._cache = cache / "kafka"
        self.directory = self._cache / f"{kafka_version()}-{mark}"

    def are_here(self) -> bool:
        """Whether they have been fetched."""
        return self.directory.is_dir()

    def class_path(self) -> str:
        """All jars in an order that never changes (a class archive holds for one class path)."""
        return os.pathsep.join(str(jar) for jar in sorted(self.directory.glob("*.jar")))

    def class_archive(self, java: Java) -> Path:
        """Where the archive of loaded classes for this Java is kept, whether it is there or not."""
        version = re.sub(r"[^0-9A-Za-z.]", "_", java.version)
        return self.directory.with_name(f"{self.directory.name}-java-{version}.jsa")

    def fetch(self, bench: Workbench) -> None:
        """Get the jars through Maven if they are not there.

        Raises:
            CannotStart: Maven is missing or failed.
        """
        if self.are_here():
            return
        self._cache.mkdir(parents=True, exist_ok=True)
        with (self._cache / "lock").open("w") as lock:
            _wait_for(lock.fileno(), bench)
            if self.are_here():
                return
            maven = shutil.which("mvn")
            if maven is None:
                raise CannotStart("Kafka's jars are not here yet and Maven (mvn) is missing: install Maven")
            bench.say(f"kafka: fetching Apache Kafka {kafka_version()} through Maven (some 45 MB, once)")
            fresh = self.directory.with_name(f"{self.directory.name}.{os.getpid()}")
            fresh.mkdir()
            try:
                bench.run(
                    [
                        maven,
                        "--quiet",
                        "--batch-mode",
                        f"--file={POM}",
                        _COPY,
                        "-DincludeScope=runtime",
                        f"-DoutputDirectory={fresh}",
                    ],
                    doing="fetching Kafka's jars through Maven",
                )
                fresh.rename(self.directory)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)


def _wait_for(descriptor: int, bench: Workbench) -> None:
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if bench.closed:
                raise CannotStart("fetching Kafka's jars was interrupted") from None
            if not told:
                bench.say("kafka: waiting for another process that fetches the same jars")
                told = True
            time.sleep(0.2)
        else:
            return
