"""A git repository with a history as odd as real ones, made in one go, and what git counts in it."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

NAMES = [
    "Ada Lovelace",
    "Ada Lovelace",
    "Žofie Ünïcödé",
    "李 小龙",
    "🏆 Champion 🏆",
    'O\'Brien "the" \\ Builder',
    "مريم",
    "a" * 240,
    "'; DROP TABLE ledger; --",
    "=1+1",
    "name\twith\ttabs",
    "null",
    "é" * 200,
]


def make(path: Path, *, commits: int, authors: int, seed: int) -> None:
    """A bare repository of `commits` commits and some merges, by `authors` e-mails in varying case."""
    chance = random.Random(seed)
    _git("init", "-q", "--bare", str(path))
    lines: list[bytes] = []
    marks: list[int] = []
    for n in range(1, commits + 1):
        author = min(int(chance.expovariate(0.06)), authors - 1) if n > authors else n - 1
        email = f"author.{author}@example.org"
        if chance.random() < 0.2:
            email = email.upper()
        name = NAMES[author % len(NAMES)] if chance.random() < 0.9 else f"Renamed {author}"
        at_s = 4_000_000_000 if n == commits else 600_000_000 + 3_000 * n
        lines += [
            b"commit refs/heads/main",
            b"mark :%d" % n,
            f"author {name} <{email}> {at_s - 5} +0230".encode(),
            f"committer Somebody Else <else@example.org> {at_s} -0700".encode(),
            b"data 2\nx\n",
        ]
        if marks:
            lines.append(b"from :%d" % marks[-1])
            if n % 40 == 0 and len(marks) > 5:
                lines.append(b"merge :%d" % chance.choice(marks[:-2]))
        marks.append(n)
    _git("-C", str(path), "fast-import", "--quiet", body=b"\n".join(lines) + b"\n")
    _git("-C", str(path), "symbolic-ref", "HEAD", "refs/heads/main")


def counted(path: Path) -> tuple[dict[str, int], dict[str, str]]:
    """By git's own log: user id → commits, and user id → the name of the latest one."""
    commits = Counter(user for user, _ in _authors(path))
    return dict(commits), dict(_authors(path))


def borne(path: Path) -> dict[str, set[str]]:
    """By git's own log: user id → every name that it ever committed under."""
    names: dict[str, set[str]] = {}
    for user, name in _authors(path):
        names.setdefault(user, set()).add(name)
    return names


def _authors(path: Path) -> Iterator[tuple[str, str]]:
    """User id and name of each commit, in the order of a replay."""
    raw = _git(
        *("-C", str(path), "log", "HEAD", "--no-merges", "--topo-order", "--reverse"),
        "--format=%ae%x00%an%x00",
    )
    fields = raw.split(b"\0")
    for email, name in zip(fields[::2], fields[1::2], strict=False):
        user = hashlib.sha256(email.strip().lower()).hexdigest()[:16]
        cleaned = "".join(letter for letter in name.decode() if ord(letter) >= 32 and ord(letter) != 127)
        yield user, cleaned.encode()[:255].decode(errors="ignore")


def _git(*arguments: str, body: bytes = b"") -> bytes:
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(["git", *arguments], input=body, capture_output=True, env=env, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout
