from __future__ import annotations

import socket

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from service.health import HealthServer


@pytest.fixture
def state():
    return {"live": {"revision": 7}, "ready": (True, {"kafka": "answers"})}


@pytest.fixture
def server(state):
    def told(what):
        if isinstance(state[what], Exception):
            raise state[what]
        return state[what]

    registry = CollectorRegistry()
    Counter("seen", "Seen.", registry=registry).inc()
    health = HealthServer(0, live=lambda: told("live"), ready=lambda: told("ready"), registry=registry)
    health.start()
    yield health
    health.stop()


@pytest.mark.parametrize(
    ("path", "changed", "status", "shown"),
    [
        ("/health/live", {}, 200, {"revision": 7, "ok": True}),
        ("/health/live", {"live": {"ok": False, "stuck_s": 9}}, 503, {"ok": False, "stuck_s": 9}),
        ("/health/live", {"live": RuntimeError("secret")}, 503, {"ok": False, "error": "RuntimeError"}),
        ("/health/ready", {}, 200, {"ok": True, "kafka": "answers"}),
        ("/health/ready", {"ready": (False, {"kafka": "away"})}, 503, {"ok": False, "kafka": "away"}),
        ("/health/ready", {"ready": OSError("secret")}, 503, {"ok": False, "error": "OSError"}),
        ("/else", {}, 404, {"ok": False, "error": "not_found"}),
    ],
)
def test_status_and_body_say_the_same(server, state, path, changed, status, shown):
    state.update(changed)

    answer = httpx.get(server.url + path, trust_env=False)

    assert (answer.status_code, answer.json()) == (status, shown)


def test_metrics_are_served(server):
    answer = httpx.get(server.url + "/metrics", trust_env=False)

    assert answer.status_code == 200
    assert "seen_total 1.0" in answer.text
    assert answer.headers["content-type"].startswith("text/plain")


def test_a_silent_reader_holds_up_neither_the_others_nor_the_end(server):
    with socket.create_connection((server.host, server.port)):
        answer = httpx.get(server.url + "/health/live", trust_env=False, timeout=2)
        server.stop()

    assert answer.status_code == 200


def test_after_stopping_nobody_answers_and_it_may_start_again(server):
    server.stop()
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url + "/health/live", trust_env=False)
    server.start()

    assert httpx.get(server.url + "/health/live", trust_env=False).status_code == 200
