"""The servers as containers, for `--services=containers`: the same versions, other builds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trueboard.devstack.ports import free_port

POSTGRES_IMAGE = "postgres:18"
VALKEY_IMAGE = "valkey/valkey:9"
KAFKA_IMAGE = "apache/kafka:4.3.1"


def why_no_engine() -> str | None:
    """A reason to skip that begins "no container engine"; None when one answers."""
    try:
        import docker

        client = docker.from_env(timeout=5)
        client.ping()
    except ImportError as error:
        return f"no container engine: {error}"
    except docker.errors.DockerException as error:
        return f"no container engine answers: {error}"
    client.close()
    return None


@contextmanager
def postgres() -> Iterator[str]:
    """A Postgres; yields its URL."""
    try:
        from testcontainers.community.postgres import PostgresContainer
    except ImportError:
        from testcontainers.postgres import PostgresContainer

    with PostgresContainer(
        POSTGRES_IMAGE, username="trueboard", dbname="trueboard", driver=None
    ) as container:
        yield container.get_connection_url()


@contextmanager
def valkey() -> Iterator[str]:
    """A Valkey; yields its URL."""
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    container: Any = DockerContainer(VALKEY_IMAGE).with_exposed_ports(6379)
    container.waiting_for(LogMessageWaitStrategy("Ready to accept connections"))
    with container:
        yield f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(6379)}/0"


@contextmanager
def kafka() -> Iterator[str]:
    """A Kafka broker; yields its bootstrap address.

    A broker tells its clients where it is, so its outer port is chosen before it starts.
    """
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    port = free_port()
    container: Any = DockerContainer(KAFKA_IMAGE).with_bind_ports(9092, port)
    host = container.get_container_host_ip()
    for name, value in {
        "NODE_ID": "1",
        "PROCESS_ROLES": "broker,controller",
        "LISTENERS": "PLAINTEXT://:9092,CONTROLLER://:9093",
        "ADVERTISED_LISTENERS": f"PLAINTEXT://{host}:{port}",
        "CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "LISTENER_SECURITY_PROTOCOL_MAP": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "AUTO_CREATE_TOPICS_ENABLE": "false",
        "MESSAGE_MAX_BYTES": "16777216",
    }.items():
        container.with_env(f"KAFKA_{name}", value)
    container.waiting_for(LogMessageWaitStrategy("Kafka Server started"))
    with container:
        yield f"{host}:{port}"
