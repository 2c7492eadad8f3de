from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from service import metrics

FROM_THE_INTERFACE = {
    "trueboard_submissions_total": ("contract", "outcome", "code"),
    "trueboard_score_updates_total": ("verdict", "reason"),
    "trueboard_websocket_connections": ("dialect",),
    "trueboard_standings_reads_total": ("result",),
    "trueboard_stream_lag_records": ("partition",),
    "trueboard_projection_lag_revisions": ("period",),
    "trueboard_projection_drift_entries": ("period",),
    "trueboard_oldest_unjudged_seconds": (),
    "trueboard_dead_letters_total": ("reason",),
    "trueboard_partition_stopped": ("partition",),
    "trueboard_frames_merged_total": (),
}

CATALOGUE = {name: value for name, value in vars(metrics).items() if isinstance(value, MetricWrapperBase)}


def test_every_metric_of_the_interface_is_there_with_its_labels():
    labels = {}
    for metric in CATALOGUE.values():
        (described,) = metric.describe()
        name = described.name + ("_total" if described.type == "counter" else "")
        labels[name] = metric._labelnames

    assert {name: labels.get(name) for name in FROM_THE_INTERFACE} == FROM_THE_INTERFACE


@pytest.mark.parametrize("metric", CATALOGUE.values(), ids=CATALOGUE.keys())
def test_each_text_ends_with_what_a_rise_means(metric):
    (described,) = metric.describe()

    last = re.split(r"(?<=\.) ", described.documentation)[-1]
    assert last.startswith("A rise")
    assert last.endswith(".")


def test_no_metric_is_defined_anywhere_else():
    own = {described.name for metric in CATALOGUE.values() for described in metric.describe()}
    registered = {
        described.name for described in REGISTRY.collect() if described.name.startswith("trueboard_")
    }

    assert registered == own
    root = Path(metrics.__file__).parents[1]
    elsewhere = [
        str(path.relative_to(root))
        for package in ("core", "service", "storage", "ingest", "stream_app", "push", "auditor", "trueboard")
        for path in (root / package).rglob("*.py")
        if path.name != "metrics.py" and re.search(r"\b(Counter|Gauge|Histogram)\(\s*\"", path.read_text())
    ]
    assert elsewhere == []
