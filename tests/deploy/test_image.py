"""The image: pinned, without root, and with every package of the project in it."""

from __future__ import annotations

import re
import tomllib

from tests.deploy.files import OVERLAYS, ROOT, SETTINGS, compose_as_written, overlay, pods

DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])


def test_every_package_is_copied_and_let_through_to_the_build():
    copied = set(re.findall(r"^COPY (\w+) \1$", DOCKERFILE, re.MULTILINE))
    allowed = set(re.findall(r"^!(\w+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))

    assert copied == allowed == PACKAGES


def test_the_page_is_in_the_package():
    assert "web" in PACKAGES
    assert (ROOT / "web" / "__init__.py").is_file()


def test_nothing_else_reaches_the_build():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]

    assert rules[0] == "*"
    assert all((ROOT / rule[1:]).exists() for rule in rules if rule.startswith("!"))


def test_both_stages_have_the_same_pinned_python_which_the_project_allows():
    first, second = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    (minor,) = re.findall(r"^python:3\.(\d+)-slim-[a-z]+$", first)

    assert first == second
    assert int(minor) >= int(PROJECT["project"]["requires-python"].removeprefix(">=3."))


def test_whatever_is_installed_is_pinned_by_hash():
    installs = re.findall(r"pip install (.*?)(?= && |\n)", DOCKERFILE.replace("\\\n", " "))
    from_elsewhere = [install for install in installs if "--no-deps" not in install]

    assert len(from_elsewhere) == 2
    assert all("--require-hashes" in install for install in from_elsewhere)


def test_it_runs_as_a_fixed_user_without_rights_and_kubernetes_knows_which():
    (user,) = re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE)

    assert int(user) >= 10_000
    for name in OVERLAYS:
        ours = [pod for pod in pods(overlay(name)).values() if _is_ours(pod["containers"][0]["image"])]
        assert {str(pod["securityContext"]["runAsUser"]) for pod in ours} == {user}


def test_its_tag_is_the_version_of_the_project_everywhere():
    wanted = f"trueboard:{PROJECT['project']['version']}"
    used = {service["image"] for service in compose_as_written()["services"].values()}
    for name in OVERLAYS:
        used |= {
            container["image"] for pod in pods(overlay(name)).values() for container in pod["containers"]
        }

    assert {image for image in used if _is_ours(image)} == {wanted}


def test_each_way_to_run_it_is_a_module_of_the_image():
    assert 'ENTRYPOINT ["python", "-m"]' in DOCKERFILE
    for module, *_ in SETTINGS:
        assert module in PACKAGES
        assert (ROOT / module / "__main__.py").is_file()


def _is_ours(image: str) -> bool:
    return image.startswith("trueboard:")
