"""Git repositories made for a test, commit by commit, with whatever words."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Made:
    """A bare repository; each commit follows the one before unless it names its parents."""

    path: Path
    commits: int = 0

    @classmethod
    def at(cls, path: Path) -> Made:
        _git("init", "-q", "--bare", str(path))
        _git("-C", str(path), "symbolic-ref", "HEAD", "refs/heads/main")
        return cls(path)

    def commit(
        self,
        name: bytes = b"Ann",
        email: bytes = b"ann@example.org",
        at_s: int | bytes = 1_700_000_000,
        *,
        parents: list[str] | None = None,
        encoding: bytes | None = None,
    ) -> str:
        """Write a commit object as it is given, valid or not, and move the branch to it; its hash."""
        if parents is None:
            parents = [self.head()] if self.commits else []
        self.commits += 1
        at = at_s if isinstance(at_s, bytes) else str(at_s).encode()
        tree = _git("-C", str(self.path), "hash-object", "-t", "tree", "-w", "--stdin").strip()
        lines = [b"tree " + tree, *(b"parent " + parent.encode() for parent in parents)]
        lines += [
            b"author " + name + b" <" + email + b"> 1 +0000",
            b"committer C <c@example.org> " + at + b" +0000",
        ]
        if encoding is not None:
            lines.append(b"encoding " + encoding)
        body = b"\n".join(lines) + b"\n\n%d\n" % self.commits
        hash_ = _git(
            "-C", str(self.path), "hash-object", "-t", "commit", "-w", "--literally", "--stdin", body=body
        )
        found = hash_.strip().decode()
        ref = self.path / "refs" / "heads" / "main"
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(f"{found}\n")
        return found

    def head(self) -> str:
        return (self.path / "refs" / "heads" / "main").read_text().strip()

    def set(self, name: str, value: str) -> None:
        _git("-C", str(self.path), "config", name, value)


def _git(*arguments: str, body: bytes = b"") -> bytes:
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(["git", *arguments], input=body, capture_output=True, env=env, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout
