"""Logs of a run's services, where they are kept beside it: no token and no password is in them."""

from __future__ import annotations

import re
from pathlib import Path

from tests.faults.checking.findings import Findings

_TOKEN = rb"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\."
"""The beginning of a signed JWT: two JSON objects in Base64, and a dot before the signature."""


def check(findings: Findings, run: Path) -> None:
    """I-27."""
    data = run.parent / "data"
    passwords = [path.read_bytes().strip() for path in sorted(data.glob("*.password"))]
    secret = re.compile(b"|".join([_TOKEN, *(re.escape(one) for one in passwords if one)]))
    for log in sorted((data / "logs").glob("*.log")):
        with log.open("rb") as file:
            for number, line in enumerate(file, 1):
                if found := secret.search(line):
                    findings.add(
                        "I-27",
                        f"the log of {log.stem}",
                        "no token and no password",
                        f"one, {found[0][:6].decode()}…",
                        f"{log.name}:{number}",
                    )
        findings.count("logs")
