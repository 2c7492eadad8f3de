from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from auditor.settings import Settings as AuditorSettings
from core.errors import TrueboardError
from ingest.settings import Settings as IngestSettings
from push.settings import Settings as PushSettings
from service.settings import SettingsError, describe, read_settings
from stream_app.settings import Settings as StreamSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Small:
    http_port: int
    redis_url: str
    data_dir: Path = Path(".trueboard")
    ping_s: float = 20.0
    docs: bool = True
    topics: tuple[str, ...] = ("a",)
    jwks: Path | None = None
    burst: int | None = 30
    kafka_kind: Literal["jvm", "memory"] = "jvm"
    redis_password: str = ""


GOOD = {"TRUEBOARD_HTTP_PORT": "8080", "TRUEBOARD_REDIS_URL": "redis://h"}


def test_a_variable_wins_over_the_file_and_the_file_over_the_default(tmp_path):
    (tmp_path / "trueboard.toml").write_text('http_port = 1\nping_s = 3\ntopics = ["x", "y"]\n')

    settings = read_settings(Small, {**GOOD, "TRUEBOARD_DATA": str(tmp_path)})

    assert (settings.http_port, settings.ping_s, settings.topics) == (8080, 3.0, ("x", "y"))
    assert (settings.docs, settings.data_dir) == (True, tmp_path)


def test_values_are_of_their_types():
    env = GOOD | {
        "TRUEBOARD_PING_S": "0.5",
        "TRUEBOARD_DOCS": "off",
        "TRUEBOARD_TOPICS": "a, b,,c",
        "TRUEBOARD_JWKS": "/keys",
        "TRUEBOARD_BURST": "",
        "TRUEBOARD_KAFKA_KIND": "memory",
    }

    settings = read_settings(Small, env)

    assert settings == Small(
        http_port=8080,
        redis_url="redis://h",
        ping_s=0.5,
        docs=False,
        topics=("a", "b", "c"),
        jwks=Path("/keys"),
        burst=None,
        kafka_kind="memory",
    )


def test_everything_missing_or_malformed_is_named_in_one_sentence():
    env = {"TRUEBOARD_HTTP_PORT": "80a", "TRUEBOARD_DOCS": "maybe", "TRUEBOARD_KAFKA_KIND": "tape"}

    with pytest.raises(SettingsError) as refusal:
        read_settings(Small, env)

    sentence = str(refusal.value)
    assert "TRUEBOARD_HTTP_PORT must be a whole number, but is 80a" in sentence
    assert "TRUEBOARD_REDIS_URL is missing" in sentence
    assert "TRUEBOARD_DOCS must be true or false, but is maybe" in sentence
    assert "TRUEBOARD_KAFKA_KIND must be one of jvm, memory, but is tape" in sentence
    assert "\n" not in sentence
    assert isinstance(refusal.value, TrueboardError)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("HTTP_PORT", "1_000", id="underscore"),
        pytest.param("HTTP_PORT", "1.0", id="fraction"),
        pytest.param("HTTP_PORT", "9" * 5000, id="endless"),
        pytest.param("HTTP_PORT", "", id="empty"),
        pytest.param("PING_S", "nan", id="nan"),
        pytest.param("PING_S", "1e999", id="infinite"),
    ],
)
def test_a_number_that_is_none_is_refused(name, text):
    with pytest.raises(SettingsError, match=f"TRUEBOARD_{name}"):
        read_settings(Small, {**GOOD, f"TRUEBOARD_{name}": text})


@pytest.mark.parametrize(
    "line", ["http_port = true", 'http_port = "1"', "topics = [1]", "docs = 1", "ping_s = nan"]
)
def test_the_file_holds_its_own_types(tmp_path, line):
    (tmp_path / "trueboard.toml").write_text(line)
    env = {"TRUEBOARD_REDIS_URL": "redis://h"}

    with pytest.raises(SettingsError, match=r"in trueboard\.toml must be"):
        read_settings(Small, env, data_dir=tmp_path)


def test_a_file_that_is_no_toml_is_refused(tmp_path):
    (tmp_path / "trueboard.toml").write_bytes(b"\xff = [")

    with pytest.raises(SettingsError, match=r"trueboard\.toml"):
        read_settings(Small, GOOD, data_dir=tmp_path)


def test_the_class_may_refuse_by_itself():
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Narrow:
        replicas: int = 1

        def __post_init__(self) -> None:
            if self.replicas < 1:
                raise ValueError("replicas must be at least 1")

    with pytest.raises(SettingsError, match="replicas must be at least 1"):
        read_settings(Narrow, {"TRUEBOARD_REPLICAS": "0"})


@pytest.mark.parametrize(
    ("settings", "variable"),
    [
        (IngestSettings, "USER_RATE_PER_S"),
        (IngestSettings, "LOOPBACK_ADDRESS_RATE"),
        (PushSettings, "PING_INTERVAL_S"),
        (StreamSettings, "RECONCILE_INTERVAL_S"),
        (StreamSettings, "BATCH_ACTIONS"),
        (AuditorSettings, "AUDIT_INTERVAL_S"),
    ],
)
@pytest.mark.parametrize("text", ["0", "-1"])
def test_a_service_refuses_what_means_nothing_at_0(settings, variable, text):
    needed = ("KAFKA", "REDIS_URL", "POSTGRES_URL", "JWKS", "HTTP_URL", "FEED_URL")
    env = {f"TRUEBOARD_{name}": "somewhere" for name in needed}
    read_settings(settings, env)

    with pytest.raises(SettingsError, match=f"TRUEBOARD_{variable} must be greater than 0"):
        read_settings(settings, env | {f"TRUEBOARD_{variable}": text})


@pytest.mark.parametrize(
    ("settings", "variable"), [(IngestSettings, "MAX_LATE_S"), (PushSettings, "TICK_MS")]
)
def test_a_service_refuses_what_means_nothing_below_0(settings, variable):
    needed = ("KAFKA", "REDIS_URL", "POSTGRES_URL", "JWKS")
    env = {f"TRUEBOARD_{name}": "somewhere" for name in needed}
    read_settings(settings, env | {f"TRUEBOARD_{variable}": "0"})

    with pytest.raises(SettingsError, match=f"TRUEBOARD_{variable} must not be negative"):
        read_settings(settings, env | {f"TRUEBOARD_{variable}": "-1"})


def test_a_description_masks_what_is_secret_and_says_where_each_value_is_from(tmp_path):
    (tmp_path / "trueboard.toml").write_text('redis_password = "hunter2"\n')
    env = {
        "TRUEBOARD_HTTP_PORT": "8080",
        "TRUEBOARD_REDIS_URL": "redis://me:hunter2@host:1/0",
        "TRUEBOARD_JWKS": "host=h password=hunter2 user=u",
    }

    lines = describe(read_settings(Small, env, data_dir=tmp_path), env, data_dir=tmp_path)

    by_name = {line.name: line for line in lines}
    assert by_name["redis_url"].value == "redis://me:***@host:1/0"
    assert by_name["jwks"].value == "host=h password=*** user=u"
    assert (by_name["redis_password"].value, by_name["redis_password"].source) == ("***", "file")
    assert (by_name["http_port"].source, by_name["ping_s"].source) == ("environment", "default")
    assert by_name["data_dir"].source == "argument"
    assert "hunter2" not in repr(lines)
