"""docker-compose.yml: valid, complete, closed to other machines, and without a secret in it."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from core import topics
from service.settings import PREFIX, read_settings
from tests.deploy.files import ROOT, SETTINGS, Missing, compose, compose_as_written, example_env
from tests.devstack import containers
from trueboard.devstack.kafka.jars import kafka_version

SECRETS = ("POSTGRES_PASSWORD", "VALKEY_PASSWORD", "TRUEBOARD_ERASURE_SECRET")
OURS = ("setup", "ingest", "stream_app", "push", "auditor")


@pytest.fixture
def env() -> dict[str, str]:
    return example_env() | dict.fromkeys(SECRETS, "1f2e3d")


@pytest.fixture
def services(env: dict[str, str]) -> dict[str, Any]:
    return compose(env)["services"]


def _schema() -> dict[str, Any]:
    # read, not imported: its command line and what it is installed with do not always fit together
    found = importlib.util.find_spec("check_jsonschema")
    assert found is not None
    assert found.origin is not None
    return json.loads((Path(found.origin).parent / "builtin_schemas/vendor/compose-spec.json").read_text())


def _faults(document: dict[str, Any]) -> list[str]:
    schema = _schema()
    validator = jsonschema.validators.validator_for(schema)(schema)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def test_the_file_is_valid_by_the_schema_of_compose():
    assert _faults(compose_as_written()) == []


def test_the_schema_would_find_a_misspelt_key():
    document = compose_as_written()
    document["services"]["ingest"]["prots"] = document["services"]["ingest"].pop("ports")

    assert len(_faults(document)) == 1


def test_it_starts_exactly_the_parts_of_trueboard(services: dict[str, Any]):
    assert set(services) == {*OURS, "postgres", "valkey", "kafka"}


@pytest.mark.parametrize("name", OURS)
def test_a_service_can_read_its_settings_from_what_it_is_given(
    name: str, services: dict[str, Any], tmp_path: Path
):
    service = services[name]
    settings = SETTINGS[tuple(service["command"])]
    given = {variable.removeprefix(PREFIX).lower() for variable in service["environment"]}

    read_settings(settings, service["environment"], data_dir=tmp_path)

    assert given <= {field.name for field in fields(settings)}


@pytest.mark.parametrize("name", OURS)
def test_who_keeps_hashes_of_erased_people_is_given_the_key_that_stays(name: str, services: dict[str, Any]):
    service = services[name]
    keeps = "erasure_secret" in {field.name for field in fields(SETTINGS[tuple(service["command"])])}

    assert service["environment"].get("TRUEBOARD_ERASURE_SECRET") == ("1f2e3d" if keeps else None)


def test_the_schedule_of_the_comparison_is_set_in_env(env: dict[str, str]):
    said = compose(env | {"TRUEBOARD_RECONCILE_INTERVAL_S": "60"})["services"]["stream_app"]["environment"]

    assert said["TRUEBOARD_RECONCILE_INTERVAL_S"] == "60"


def test_services_meet_at_the_servers_of_this_file(services: dict[str, Any]):
    for name in OURS:
        env = services[name]["environment"]

        assert env["TRUEBOARD_POSTGRES_URL"] == "postgresql://trueboard:1f2e3d@postgres:5432/trueboard"
        assert env["TRUEBOARD_KAFKA"] == "kafka:9092"
        if name != "setup":
            assert env["TRUEBOARD_REDIS_URL"] == "redis://:1f2e3d@valkey:6379/0"


def test_kafka_tells_containers_and_the_host_different_addresses(services: dict[str, Any]):
    env = services["kafka"]["environment"]

    assert env["KAFKA_ADVERTISED_LISTENERS"] == "INSIDE://kafka:9092,HOST://127.0.0.1:9094"
    assert services["kafka"]["ports"] == ["127.0.0.1:9094:9094"]
    assert int(env["KAFKA_MESSAGE_MAX_BYTES"]) >= topics.MAX_RECORD_BYTES
    assert env["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


def test_ports_are_bound_to_loopback_and_the_stores_have_none(services: dict[str, Any]):
    for name, service in services.items():
        ports = service.get("ports", [])

        assert all(port.startswith("127.0.0.1:") for port in ports)
        assert bool(ports) == (name in ("ingest", "push", "kafka"))


@pytest.mark.parametrize(("name", "variable"), [("ingest", "HTTP_PORT"), ("push", "FEED_PORT")])
def test_the_port_that_is_published_is_the_one_the_service_listens_on(
    name: str, variable: str, services: dict[str, Any]
):
    (port,) = services[name]["ports"]

    assert port.rsplit(":", 1)[1] == services[name]["environment"][f"TRUEBOARD_{variable}"]
    assert services[name]["environment"]["TRUEBOARD_HOST"] == "0.0.0.0"


def test_services_start_when_the_set_up_is_done_and_the_set_up_when_the_servers_answer(
    services: dict[str, Any],
):
    healthy = {"condition": "service_healthy"}

    assert services["setup"]["depends_on"] == {"postgres": healthy, "kafka": healthy}
    for name in ("ingest", "stream_app", "push", "auditor"):
        assert services[name]["depends_on"] == {
            "setup": {"condition": "service_completed_successfully"},
            **dict.fromkeys(("postgres", "valkey", "kafka"), healthy),
        }


@pytest.mark.parametrize("name", ["ingest", "stream_app", "push", "auditor"])
def test_health_is_asked_for_on_the_port_it_is_told_on(name: str, services: dict[str, Any]):
    port = services[name]["environment"]["TRUEBOARD_METRICS_PORT"]
    *command, script = services[name]["healthcheck"]["test"]

    assert command == ["CMD", "python", "-c"]
    assert f'"http://127.0.0.1:{port}/health/ready"' in script
    compile(script, name, "exec")


def test_everything_that_stays_has_a_health_check(services: dict[str, Any]):
    assert {name for name, service in services.items() if "healthcheck" not in service} == {"setup"}


@pytest.mark.parametrize("name", OURS)
def test_our_containers_may_do_and_write_nothing_they_need_not(name: str, services: dict[str, Any]):
    service = services[name]

    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("missing", [*SECRETS, "TRUEBOARD_JWKS"])
def test_nothing_starts_without_passwords_and_public_keys(missing: str, env: dict[str, str]):
    del env[missing]

    with pytest.raises(Missing, match=missing):
        compose(env)


def test_no_password_stands_in_a_file():
    text = (ROOT / "docker-compose.yml").read_text()
    in_urls = re.findall(r"://[^:/@\s]*:([^@\n]+)@", text)
    in_variables = re.findall(r"PASSWORD: (.*)$", text, re.MULTILINE)

    assert (len(in_urls), len(in_variables)) == (2, 2)
    for password in (*in_urls, *in_variables):
        assert re.fullmatch(r"\$\{[A-Z_]+:\?[^}]+\}", password.strip('"'))
    assert {example_env()[name] for name in SECRETS} == {""}


def test_the_password_of_valkey_is_no_argument(services: dict[str, Any]):
    *_, script = services["valkey"]["command"]
    arguments, _, on_standard_input = script.partition("<<END")

    assert "1f2e3d" not in script
    assert "PASSWORD" not in arguments
    assert on_standard_input.split() == ["requirepass", "$VALKEY_PASSWORD", "END"]
    assert "--maxmemory-policy noeviction" in arguments
    assert "--appendonly yes" in arguments


def test_data_outlives_the_containers_where_each_server_keeps_it(env: dict[str, str]):
    document = compose(env)
    kept = {name: document["services"][name]["volumes"] for name in document["volumes"]}

    assert kept == {
        "postgres": ["postgres:/var/lib/postgresql"],
        "valkey": ["valkey:/data"],
        "kafka": ["kafka:/var/lib/kafka/data"],
    }
    assert document["services"]["kafka"]["environment"]["KAFKA_LOG_DIRS"] == "/var/lib/kafka/data"


def test_images_are_pinned_and_of_the_versions_that_are_tested(services: dict[str, Any]):
    images = {name: services[name]["image"] for name in ("postgres", "valkey", "kafka")}

    assert images["kafka"] == f"apache/kafka:{kafka_version()}"
    assert images["postgres"].startswith(f"{containers.POSTGRES_IMAGE}.")
    assert images["valkey"].startswith(f"{containers.VALKEY_IMAGE}.")


def test_files_that_are_mounted_by_default_are_here():
    assert (ROOT / example_env()["TRUEBOARD_CATALOGUE_FILE"]).is_file()
