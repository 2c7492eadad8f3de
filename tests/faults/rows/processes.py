"""P: processes are killed."""

from __future__ import annotations

from tests.faults.engine import Scene, row


@row(
    "P-1",
    "ingest is killed 10 times under load",
    "I-1 I-13 I-14",
    fast=True,
    wants={"unanswered"},
)
def ingest_killed(scene: Scene) -> None:
    scene.kill("ingest", 10)


@row("P-3", "the stream is killed 5 times at random", "I-1 I-4 I-9", fast=True, wants={"again"})
def stream_killed(scene: Scene) -> None:
    scene.kill("stream", 5)
