"""`trueboard setup`: servers that run already are made ready, or a sentence says why not."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result
from confluent_kafka.admin import AdminClient

from core import topics
from core.errors import Unavailable
from service.settings import SettingsError
from storage.kafka.topics import verify
from tests.conftest import PARTITIONS, Kafka
from trueboard import cli, setup
from trueboard.devstack.ports import free_port
from trueboard.setup import SetupSettings, prepare


@pytest.fixture
def nowhere() -> SetupSettings:
    port = free_port()
    return SetupSettings(
        postgres_url=f"postgresql://trueboard@127.0.0.1:{port}/trueboard",
        kafka=f"127.0.0.1:{port}",
        patience_s=0.3,
    )


def _run(tmp_path: Path, **env: str) -> Result:
    arguments = ["setup", "--data", str(tmp_path)]
    return CliRunner().invoke(cli.trueboard, arguments, env={f"TRUEBOARD_{k}": v for k, v in env.items()})


def _without_topics(kafka: Kafka) -> None:
    """The broker is the session's: other tests may have made the topics, with other partitions."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})

    def there() -> list[str]:
        return [name for name in admin.list_topics(timeout=10).topics if name.startswith("leaderboard.")]

    if names := there():
        for gone in admin.delete_topics(names).values():
            gone.result(30)
    deadline_s = time.monotonic() + 30
    while there():
        assert time.monotonic() < deadline_s, "the topics of other tests stay"
        time.sleep(0.1)


def test_all_that_is_missing_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("TRUEBOARD_POSTGRES_URL", "TRUEBOARD_KAFKA"):
        monkeypatch.delenv(name, raising=False)

    told = _run(tmp_path, PARTITIONS="none")

    assert isinstance(told.exception, SettingsError)
    for name in ("TRUEBOARD_POSTGRES_URL", "TRUEBOARD_KAFKA", "TRUEBOARD_PARTITIONS"):
        assert name in str(told.exception)


@pytest.mark.parametrize(
    "wrong", [{"partitions": 0}, {"partitions": 1001}, {"replication": 0}, {"patience_s": -1.0}]
)
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, int]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SetupSettings(postgres_url="postgresql://x", kafka="x:1", **wrong)  # type: ignore[arg-type]


def test_a_server_that_is_not_there_is_waited_for_and_then_named(nowhere: SetupSettings):
    with pytest.raises(Unavailable, match="Postgres"):
        list(prepare(nowhere, pause_s=0.05))


def test_a_server_that_comes_late_is_met(nowhere: SetupSettings, monkeypatch: pytest.MonkeyPatch):
    tries = []

    def third_time(settings: SetupSettings) -> None:
        tries.append(settings)
        if len(tries) < 3:
            raise Unavailable("Kafka does not answer.")

    for step in ("_schema", "_definitions"):
        monkeypatch.setattr(setup, step, lambda settings: None)
    monkeypatch.setattr(setup, "_topics", third_time)

    done = list(prepare(nowhere, pause_s=0.01))

    assert done == ["schema", "definitions", "topics"]
    assert len(tries) == 3


def test_a_catalogue_that_cannot_be_read_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(setup, "_schema", lambda settings: None)

    told = _run(
        tmp_path, POSTGRES_URL="postgresql://x", KAFKA="x:1", CATALOGUE=str(tmp_path / "catalogue.toml")
    )

    assert told.exit_code == 1
    assert "catalogue.toml cannot be read: No such file or directory" in told.output


def test_the_key_of_erased_people_is_made_in_the_data_directory_that_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Histories:
        def __init__(self, *, erasure_key: Callable[[], bytes], **_: object) -> None:
            self.settle, self.close = erasure_key, lambda: None

    for step in ("_schema", "_topics"):
        monkeypatch.setattr(setup, step, lambda settings: None)
    monkeypatch.setattr("storage.histories.Histories", Histories)
    monkeypatch.setattr("storage.postgres.definitions.apply", lambda *_: None)
    monkeypatch.setenv("TRUEBOARD_DATA", str(tmp_path / "another"))

    told = _run(tmp_path, POSTGRES_URL="postgresql://x", KAFKA="x:1")

    assert told.exit_code == 0
    assert (tmp_path / "keys" / "erasure.key").exists()
    assert not (tmp_path / "another").exists()


@pytest.mark.services
@pytest.mark.kafka
def test_empty_servers_are_made_ready_and_a_second_time_changes_nothing(
    empty_database: str, kafka: Kafka, tmp_path: Path
):
    _without_topics(kafka)
    env = {"POSTGRES_URL": empty_database, "KAFKA": kafka.bootstrap, "PARTITIONS": str(PARTITIONS)}

    first = _run(tmp_path, **env)
    revision = _revision(empty_database)
    second = _run(tmp_path, **env, TOPICS="verify")

    lines = ["schema up to date", "definitions up to date", "topics up to date"]
    assert (first.exit_code, first.output.splitlines()) == (0, lines)
    assert (second.exit_code, second.output.splitlines()) == (0, lines)
    assert _revision(empty_database) == revision == 1
    found = verify(kafka.bootstrap, kind=kafka.kind, partitions=PARTITIONS)
    assert found.keys() == {topic.name for topic in topics.ALL}


def _revision(url: str) -> int:
    with psycopg.connect(url) as connection:
        (revision,) = connection.execute("SELECT max(revision) FROM revisions").fetchone() or (0,)
    return int(revision)
