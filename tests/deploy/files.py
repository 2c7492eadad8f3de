"""What the deployment's files say: compose with its variables filled in, kustomize's overlays as applied.

Only what these files use of both is understood; anything else is an error, never passed over.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import yaml

from auditor.settings import Settings as AuditorSettings
from ingest.settings import Settings as IngestSettings
from push.settings import Settings as PushSettings
from stream_app.settings import Settings as StreamSettings
from trueboard.setup import SetupSettings

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = ("dev", "prod")

SETTINGS = {
    ("ingest",): IngestSettings,
    ("stream_app",): StreamSettings,
    ("push",): PushSettings,
    ("auditor",): AuditorSettings,
    ("trueboard", "setup"): SetupSettings,
}
"""By what the image is told to run."""

Resource = dict[str, Any]

_VARIABLE = re.compile(r"(\$\$)|\$\{([A-Z_]+)(?::([-?])([^}]*))?\}")


class Missing(Exception):
    """A variable that has no default is not set."""


# compose


def compose(env: dict[str, str]) -> dict[str, Any]:
    """docker-compose.yml with the variables of `env`."""
    return _filled(compose_as_written(), env)


def compose_as_written() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def example_env() -> dict[str, str]:
    """.env.example as it is given to people."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def _filled(node: Any, env: dict[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _filled(value, env) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, env) for value in node]
    return _VARIABLE.sub(lambda found: _value(found, env), node) if isinstance(node, str) else node


def _value(found: re.Match[str], env: dict[str, str]) -> str:
    escaped, name, operator, rest = found.groups()
    if escaped:
        return "$"
    if value := env.get(name):
        return value
    if operator != "-":
        raise Missing(name)
    return rest


# kustomize


def overlay(name: str) -> list[Resource]:
    """The resources of an overlay, patched as kustomize patches them."""
    return _build(K8S / "overlays" / name)


def one(resources: list[Resource], kind: str, name: str) -> Resource:
    """The resource of this kind and name."""
    (found,) = [it for it in resources if it["kind"] == kind and it["metadata"]["name"] == name]
    return found


def pods(resources: list[Resource]) -> dict[str, Resource]:
    """The pod specification of each workload, by its name."""
    kinds = ("Deployment", "StatefulSet", "Job")
    return {it["metadata"]["name"]: it["spec"]["template"]["spec"] for it in resources if it["kind"] in kinds}


def documents(path: Path) -> list[Resource]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def _build(directory: Path) -> list[Resource]:
    (said,) = documents(directory / "kustomization.yaml")
    unknown = said.keys() - {"apiVersion", "kind", "namespace", "resources", "replicas", "patches"}
    assert not unknown, f"not understood here: {unknown}"
    built: list[Resource] = []
    for entry in said["resources"]:
        path = directory / entry
        built += _build(path) if path.is_dir() else documents(path)
    built = copy.deepcopy(built)
    for patch in said.get("patches", []):
        _patch(built, patch, directory)
    for entry in said.get("replicas", []):
        one(built, "Deployment", entry["name"])["spec"]["replicas"] = entry["count"]
    if namespace := said.get("namespace"):
        for resource in built:
            key = "name" if resource["kind"] == "Namespace" else "namespace"
            resource["metadata"][key] = namespace
    return built


def _patch(built: list[Resource], patch: dict[str, Any], directory: Path) -> None:
    if "path" in patch:
        for change in documents(directory / patch["path"]):
            _merge(one(built, change["kind"], change["metadata"]["name"]), change)
        return
    kind, name = patch["target"]["kind"], patch["target"].get("name")
    targets = [it for it in built if it["kind"] == kind and name in (None, it["metadata"]["name"])]
    assert targets, f"a patch of {kind} changes nothing"
    for target in targets:
        for step in yaml.safe_load(patch["patch"]):
            _step(target, **step)


def _step(target: Any, *, op: str, path: str, value: Any = None) -> None:
    *parents, last = path.strip("/").split("/")
    for parent in parents:
        target = target[parent]
    assert op == "add" or last in target, f"{path} is not there"
    if op == "remove":
        del target[last]
    else:
        target[last] = value


def _merge(into: dict[str, Any], change: dict[str, Any]) -> None:
    for key, value in change.items():
        here = into.get(key)
        if isinstance(value, dict) and isinstance(here, dict):
            _merge(here, value)
        elif key == "containers":
            by_name = {container["name"]: container for container in here}
            for container in value:
                _merge(by_name[container["name"]], container)
        else:
            into[key] = copy.deepcopy(value)


# environment


def environment(container: Resource, resources: list[Resource]) -> dict[str, str]:
    """A container's variables; what comes from elsewhere is `given`."""
    env: dict[str, str] = {}
    for source in container.get("envFrom", []):
        env |= one(resources, "ConfigMap", source["configMapRef"]["name"])["data"]
    for entry in container.get("env", []):
        value = entry.get("value", "given")
        env[entry["name"]] = re.sub(r"\$\(([A-Z_]+)\)", lambda found: env[found[1]], value)
    return env
