"""k8s/: valid, complete, restricted, and saying the same as the code about settings and topics."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from core import topics
from service.settings import PREFIX, read_settings
from stream_app.settings import Settings as StreamSettings
from tests.deploy.files import (
    K8S,
    OVERLAYS,
    SETTINGS,
    Resource,
    documents,
    environment,
    one,
    overlay,
    pods,
)
from trueboard.devstack.kafka.jars import kafka_version

CUSTOM = {
    ("kafka.strimzi.io/v1", "Kafka"),
    ("kafka.strimzi.io/v1", "KafkaNodePool"),
    ("kafka.strimzi.io/v1", "KafkaTopic"),
    ("postgresql.cnpg.io/v1", "Cluster"),
    ("keda.sh/v1alpha1", "ScaledObject"),
}
OURS = ("ingest", "push", "stream-app", "auditor", "setup")
NOT_SETTINGS = {"VALKEY_PASSWORD", "PGSSLMODE"}
MADE_ELSEWHERE = {"trueboard-identity", "trueboard-valkey", "trueboard-erasure", "trueboard-postgres-app"}
"""By whoever deploys, and the last by CloudNativePG."""


@pytest.fixture(params=OVERLAYS)
def resources(request: pytest.FixtureRequest) -> list[Resource]:
    return overlay(request.param)


@pytest.fixture
def prod() -> list[Resource]:
    return overlay("prod")


# the files


@pytest.mark.parametrize("directory", ["base", "overlays/dev", "overlays/prod"])
def test_every_file_is_named_by_its_kustomization_and_every_name_is_a_file(directory: str):
    (said,) = documents(K8S / directory / "kustomization.yaml")
    named = [*said["resources"], *(patch["path"] for patch in said.get("patches", []) if "path" in patch)]
    files = {path.name for path in (K8S / directory).iterdir()} - {"kustomization.yaml"}

    assert len(named) == len(set(named))
    assert {name for name in named if not name.startswith("..")} == files
    assert all((K8S / directory / name).exists() for name in named)


def test_core_resources_are_valid_by_their_schema_and_no_other_kind_is_unknown(resources: list[Resource]):
    core = [it for it in resources if (it["apiVersion"], it["kind"]) not in CUSTOM]

    assert len(core) > 20
    for resource in core:
        kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


def test_the_schema_would_find_a_misspelt_key(resources: list[Resource]):
    resource = one(resources, "Deployment", "ingest")
    resource["spec"]["template"]["spec"]["containers"][0]["prots"] = []

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


def test_it_has_exactly_the_parts_of_trueboard(resources: list[Resource]):
    clusters = {it["metadata"]["name"] for it in resources if it["kind"] in ("Kafka", "Cluster")}

    assert set(pods(resources)) == {*OURS, "valkey"}
    assert clusters == {"trueboard-kafka", "trueboard-postgres"}


def test_names_are_unique_and_all_are_in_the_overlays_namespace(resources: list[Resource]):
    names = [(it["kind"], it["metadata"]["name"]) for it in resources]
    (namespace,) = [it["metadata"]["name"] for it in resources if it["kind"] == "Namespace"]

    assert len(names) == len(set(names))
    assert {it["metadata"].get("namespace") for it in resources if it["kind"] != "Namespace"} == {namespace}


# settings


@pytest.mark.parametrize("name", OURS)
def test_a_container_can_read_its_settings_from_what_it_is_given(
    name: str, resources: list[Resource], tmp_path: Path
):
    (container,) = pods(resources)[name]["containers"]
    env = environment(container, resources)
    settings = SETTINGS[tuple(container["args"])]

    read = read_settings(settings, env, data_dir=tmp_path)

    assert read.kafka == "trueboard-kafka-kafka-bootstrap:9092"
    if name != "setup":
        assert read.redis_url == "redis://:given@valkey:6379/0"
    own = {entry["name"] for entry in container["env"]} - NOT_SETTINGS
    assert {variable.removeprefix(PREFIX).lower() for variable in own} <= _names(settings)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("setting", ["erasure_secret", "trusted_proxies"])
def test_what_only_the_deployment_knows_is_given_to_all_who_have_it(
    name: str, setting: str, resources: list[Resource]
):
    (container,) = pods(resources)[name]["containers"]
    env = environment(container, resources)

    has = setting in _names(SETTINGS[tuple(container["args"])])
    assert (PREFIX + setting.upper() in env) == has


def test_every_variable_that_all_are_told_is_a_setting_of_one(resources: list[Resource]):
    told = set(one(resources, "ConfigMap", "trueboard")["data"]) - NOT_SETTINGS

    known = set().union(*(_names(settings) for settings in SETTINGS.values()))
    assert {variable.removeprefix(PREFIX).lower() for variable in told} <= known


def test_what_is_referred_to_is_here_or_made_by_whoever_deploys(resources: list[Resource]):
    here = {it["metadata"]["name"] for it in resources if it["kind"] == "ConfigMap"}
    told = (K8S / "README.md").read_text()
    kinds = "configMapRef|configMapKeyRef|secretKeyRef|configMap"
    referred = set(re.findall(rf"(?:{kinds})': \{{'name': '([\w-]+)", str(resources)))

    assert referred == here | MADE_ELSEWHERE
    assert all(f"`{name}`" in told for name in MADE_ELSEWHERE)


def test_no_secret_is_in_the_tree(resources: list[Resource]):
    text = "\n".join(path.read_text() for path in K8S.rglob("*") if path.is_file())

    assert not [it for it in resources if it["kind"] == "Secret"]
    assert set(re.findall(r"://[^/@\s]*:([^/@\s]+)@", text)) == {"$(VALKEY_PASSWORD)"}
    for pod in pods(resources).values():
        for entry in pod["containers"][0]["env"]:
            assert "PASSWORD" not in entry["name"] or "secretKeyRef" in entry["valueFrom"]


def test_health_is_asked_for_on_the_port_it_is_told_on(resources: list[Resource]):
    port = one(resources, "ConfigMap", "trueboard")["data"]["TRUEBOARD_METRICS_PORT"]
    for name in ("ingest", "push", "stream-app", "auditor"):
        (container,) = pods(resources)[name]["containers"]
        for probe, path in (("startupProbe", "live"), ("livenessProbe", "live"), ("readinessProbe", "ready")):
            *command, script = container[probe]["exec"]["command"]

            assert command == ["python", "-c"]
            assert f'"http://127.0.0.1:{port}/health/{path}"' in script
            compile(script, name, "exec")


def test_services_lead_to_the_ports_that_are_listened_on(resources: list[Resource]):
    config = one(resources, "ConfigMap", "trueboard")["data"]
    for name, variable in (("ingest", "TRUEBOARD_HTTP_PORT"), ("push", "TRUEBOARD_FEED_PORT")):
        (port,) = one(resources, "Service", name)["spec"]["ports"]
        (container,) = pods(resources)[name]["containers"]

        assert container["ports"] == [{"name": port["targetPort"], "containerPort": int(config[variable])}]


def test_selectors_find_their_pods(resources: list[Resource]):
    labels = {
        it["metadata"]["name"]: it["spec"]["template"]["metadata"]["labels"]
        for it in resources
        if it["kind"] in ("Deployment", "StatefulSet", "Job")
    }
    for resource in resources:
        if resource["kind"] in ("Service", "PodDisruptionBudget", "Deployment", "StatefulSet"):
            selector = resource["spec"]["selector"]
            selector = selector.get("matchLabels", selector)
            assert selector.items() <= labels[resource["metadata"]["name"]].items()


# rights


def test_pods_are_restricted(resources: list[Resource]):
    (namespace,) = [it for it in resources if it["kind"] == "Namespace"]

    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in pods(resources).values():
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & pod.keys()
        assert {kind for volume in pod["volumes"] for kind in volume} <= {"name", "emptyDir", "configMap"}


def test_containers_are_restricted_and_have_limits(resources: list[Resource]):
    for pod in pods(resources).values():
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"].keys() == {"cpu", "memory"}
            assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]


def test_what_kafkas_operator_starts_is_restricted_too(resources: list[Resource]):
    spec = one(resources, "Kafka", "trueboard-kafka")["spec"]
    containers = (
        spec["kafka"]["template"]["kafkaContainer"],
        spec["entityOperator"]["template"]["topicOperatorContainer"],
    )

    for template in (spec["kafka"]["template"], spec["entityOperator"]["template"]):
        assert template["pod"]["securityContext"]["runAsNonRoot"] is True
        assert template["pod"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_images_are_pinned(resources: list[Resource]):
    images = {container["image"] for pod in pods(resources).values() for container in pod["containers"]}
    images.add(one(resources, "Cluster", "trueboard-postgres")["spec"]["imageName"])

    assert all(re.search(r":\d+\.\d+[\w.-]*$", image) for image in images)


def test_what_serves_has_a_disruption_budget_that_lets_nodes_be_drained(resources: list[Resource]):
    budgets = {it["metadata"]["name"]: it["spec"] for it in resources if it["kind"] == "PodDisruptionBudget"}

    assert set(budgets) == {"ingest", "push", "stream-app"}
    assert all(budget["maxUnavailable"] == 1 for budget in budgets.values())


# who talks to whom

EDGES = {
    ("ingest", "kafka", 9092),
    ("ingest", "postgres", 5432),
    ("ingest", "valkey", 6379),
    ("push", "kafka", 9092),
    ("push", "postgres", 5432),
    ("push", "valkey", 6379),
    ("stream-app", "kafka", 9092),
    ("stream-app", "postgres", 5432),
    ("stream-app", "valkey", 6379),
    ("setup", "kafka", 9092),
    ("setup", "postgres", 5432),
    ("auditor", "kafka", 9092),
    ("auditor", "postgres", 5432),
    ("auditor", "valkey", 6379),
}
WATCHED = {("auditor", "ingest", 8080), ("auditor", "push", 8081)}
"""Who asks our own services from within."""
PEERS = {
    "trueboard-kafka": "kafka",
    "trueboard-postgres": "postgres",
    "valkey": "valkey",
    "ingest": "ingest",
    "push": "push",
}


def test_everything_is_denied_that_no_policy_allows(resources: list[Resource]):
    assert one(resources, "NetworkPolicy", "default-deny")["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }


def test_our_pods_may_reach_whom_they_use_and_no_other(resources: list[Resource]):
    edges = {
        (name, PEERS[_names_of(peer["podSelector"])[0]], port["port"])
        for name in OURS
        for rule in _policy(resources, name)["egress"]
        for peer in rule["to"]
        if "podSelector" in peer
        for port in rule["ports"]
    }

    assert edges == EDGES | WATCHED


def test_the_stores_let_in_whom_the_other_end_lets_out(resources: list[Resource]):
    edges = {
        (name, store, port["port"])
        for store in ("postgres", "valkey")
        for rule in _policy(resources, store)["ingress"]
        for peer in rule["from"]
        if "podSelector" in peer
        for name in _names_of(peer["podSelector"])
        if name in OURS
        for port in rule["ports"]
    }
    (listener,) = one(resources, "Kafka", "trueboard-kafka")["spec"]["kafka"]["listeners"]
    edges |= {
        (name, "kafka", listener["port"])
        for peer in listener["networkPolicyPeers"]
        if "podSelector" in peer
        for name in _names_of(peer["podSelector"])
    }

    assert edges == EDGES


def test_the_services_that_are_watched_let_the_auditor_in(resources: list[Resource]):
    edges = {
        (name, watched, port["port"])
        for watched in ("ingest", "push")
        for rule in _policy(resources, watched)["ingress"]
        for peer in rule["from"]
        if "podSelector" in peer
        for name in _names_of(peer["podSelector"])
        for port in rule["ports"]
    }

    assert edges == WATCHED


def test_only_who_checks_tokens_gets_out_for_public_keys(resources: list[Resource]):
    out = {
        (name, port["port"])
        for name in (*OURS, "valkey")
        for rule in _policy(resources, name).get("egress", [])
        for peer in rule["to"]
        if "ipBlock" in peer
        for port in rule["ports"]
    }

    assert out == {("ingest", 443), ("push", 443)}


def test_from_outside_only_the_two_public_ports_are_reached(resources: list[Resource]):
    config = one(resources, "ConfigMap", "trueboard")["data"]
    entrances = {
        (name, port["port"])
        for name in OURS
        for rule in _policy(resources, name).get("ingress", [])
        for port in rule["ports"]
    }

    assert entrances == {
        ("ingest", int(config["TRUEBOARD_HTTP_PORT"])),
        ("push", int(config["TRUEBOARD_FEED_PORT"])),
    }


# Kafka


def test_the_topics_are_those_of_the_code(resources: list[Resource]):
    made = {it["metadata"]["name"]: it["spec"] for it in resources if it["kind"] == "KafkaTopic"}
    wanted = {topic.name: topic.config for topic in topics.ALL}

    safety = {"min.insync.replicas"}
    assert {
        name: {key: str(value) for key, value in spec["config"].items() if key not in safety}
        for name, spec in made.items()
    } == wanted


@pytest.mark.parametrize(("name", "partitions", "replicas"), [("dev", 12, 1), ("prod", 64, 3)])
def test_partitions_are_what_the_set_up_looks_for(name: str, partitions: int, replicas: int):
    resources = overlay(name)
    made = [it["spec"] for it in resources if it["kind"] == "KafkaTopic"]
    config = one(resources, "ConfigMap", "trueboard")["data"]

    assert {(spec["partitions"], spec["replicas"]) for spec in made} == {(partitions, replicas)}
    assert config["TRUEBOARD_PARTITIONS"] == str(partitions)
    assert config["TRUEBOARD_TOPICS"] == "verify"
    assert one(resources, "KafkaNodePool", "dual")["spec"]["replicas"] == replicas


def test_kafka_is_of_the_version_that_is_tested_and_takes_the_largest_record(resources: list[Resource]):
    kafka = one(resources, "Kafka", "trueboard-kafka")["spec"]["kafka"]

    assert kafka["version"] == kafka_version()
    assert kafka["config"]["message.max.bytes"] >= topics.MAX_RECORD_BYTES
    assert kafka["config"]["auto.create.topics.enable"] is False
    assert all(
        it["metadata"]["labels"]["strimzi.io/cluster"] == "trueboard-kafka"
        for it in resources
        if it["kind"] in ("KafkaTopic", "KafkaNodePool")
    )


# production


def test_in_production_nothing_is_confirmed_that_only_one_machine_holds(prod: list[Resource]):
    postgres = one(prod, "Cluster", "trueboard-postgres")["spec"]
    kafka = one(prod, "Kafka", "trueboard-kafka")["spec"]["kafka"]["config"]
    made = [it["spec"]["config"]["min.insync.replicas"] for it in prod if it["kind"] == "KafkaTopic"]

    assert postgres["instances"] >= 3
    assert postgres["postgresql"]["synchronous"]["number"] == 1
    assert postgres["postgresql"]["synchronous"]["dataDurability"] == "required"
    assert {kafka["min.insync.replicas"], *made} == {2}
    assert {value for name, value in kafka.items() if name.endswith("replication.factor")} == {3}


def test_in_production_tokens_are_short_and_pages_for_developers_are_off(prod: list[Resource]):
    config = one(prod, "ConfigMap", "trueboard")["data"]

    assert config["TRUEBOARD_PRODUCTION"] == "true"
    assert int(config["TRUEBOARD_TOKEN_MAX_LIFE_S"]) <= 15 * 60


def test_in_production_ingest_knows_how_many_share_the_limits(prod: list[Resource]):
    replicas = one(prod, "Deployment", "ingest")["spec"]["replicas"]

    assert one(prod, "ConfigMap", "trueboard")["data"]["TRUEBOARD_INGEST_REPLICAS"] == str(replicas)
    assert replicas >= 2
    assert one(prod, "Deployment", "push")["spec"]["replicas"] >= 2


def test_in_production_stream_workers_follow_the_lag_up_to_the_partitions(prod: list[Resource]):
    scaled = one(prod, "ScaledObject", "stream-app")
    (trigger,) = scaled["spec"]["triggers"]
    config = one(prod, "ConfigMap", "trueboard")["data"]
    (group,) = [field.default for field in fields(StreamSettings) if field.name == "consumer_group"]
    host, port = config["TRUEBOARD_KAFKA"].split(":")

    assert trigger["type"] == "kafka"
    assert trigger["metadata"]["topic"] == topics.SUBMITTED.name
    assert trigger["metadata"]["consumerGroup"] == group
    assert trigger["metadata"]["bootstrapServers"] == f"{host}.{scaled['metadata']['namespace']}:{port}"
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    assert 2 <= scaled["spec"]["minReplicaCount"] <= scaled["spec"]["maxReplicaCount"]
    assert scaled["spec"]["maxReplicaCount"] <= int(config["TRUEBOARD_PARTITIONS"])
    assert "replicas" not in one(prod, "Deployment", scaled["spec"]["scaleTargetRef"]["name"])["spec"]


def test_valkey_forgets_nothing_and_stays_below_its_limit(resources: list[Resource]):
    text = one(resources, "ConfigMap", "valkey")["data"]["valkey.conf"]
    config = dict(line.split(" ", 1) for line in text.splitlines())
    (container,) = pods(resources)["valkey"]["containers"]

    assert config["maxmemory-policy"] == "noeviction"
    assert config["appendonly"] == "yes"
    # what is left is for its buffers, and for the copy of memory while the log is written anew
    assert _bytes(config["maxmemory"]) <= 0.75 * _bytes(container["resources"]["limits"]["memory"])


def _names(settings: type) -> set[str]:
    return {field.name for field in fields(settings)}


def _policy(resources: list[Resource], name: str) -> dict[str, Any]:
    return one(resources, "NetworkPolicy", name)["spec"]


def _names_of(selector: dict[str, Any]) -> list[str]:
    if "matchLabels" in selector:
        return list(selector["matchLabels"].values())
    (expression,) = selector["matchExpressions"]
    assert (expression["key"], expression["operator"]) == ("app.kubernetes.io/name", "In")
    return expression["values"]


def _bytes(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(mb|gb|Mi|Gi)", text).groups()  # type: ignore[union-attr]
    return int(number) * (2**20 if unit[0] in "mM" else 2**30)
