"""What the auditor beside a running stack says: its metrics and its log."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
from prometheus_client.parser import text_string_to_metric_families

from tests.acceptance.world import World, until
from trueboard.endpoints import Endpoints

PATIENCE_S = 90.0


def audited(world: World) -> dict[str, float]:
    """The auditor's metrics: mismatches in all, comparisons by what, the revision it has counted."""
    url = Endpoints.read(world.data).metrics["auditor"]
    found = {"mismatches": 0.0, "revision": 0.0}
    for family in text_string_to_metric_families(world.http.get(url).text):
        for sample in family.samples:
            if sample.name == "trueboard_audit_mismatch_total":
                found["mismatches"] += sample.value
            elif sample.name == "trueboard_audit_compared_total":
                found[sample.labels["what"]] = sample.value
            elif sample.name == "trueboard_audit_revision":
                found["revision"] = sample.value
    return found


def lines(data: Path, event: str) -> list[dict[str, object]]:
    text = (data / "logs" / "auditor.log").read_text()
    return [found for line in text.splitlines() if (found := json.loads(line))["event"] == event]


def end_of_ledger(world: World) -> int:
    with psycopg.connect(world.endpoints.postgres) as connection:
        row = connection.execute("SELECT max(revision) FROM revisions").fetchone()
        return int(row[0]) if row else 0


def caught_up(world: World) -> dict[str, float]:
    """Wait until the auditor stands at the ledger's end."""
    return until(
        lambda: (now := audited(world))["revision"] == end_of_ledger(world) and now,
        patience_s=PATIENCE_S,
        what="the ledger's end, counted",
    )
