"""The topics as they are on a broker: made once, and looked at before every start.

A topic with another partition count than it was made with is refused, never changed: where a key
has moved to another partition, what was said of it before is neither in order with what is said
now nor compacted away by it. Only the submitted topic may have grown: the ledger reads whatever
partitions it has. Of the settings, those are checked whose loss would lose records; keeping more
than asked for is fine. All of this blocks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from core import topics
from core.errors import Refused, Unavailable
from core.topics import Topic

MEMORY = "memory"
"""The kind of broker that lives in a process of ours and knows neither configs nor CreateTopics."""

_TIMEOUT_S = 15.0
_LOOK_EVERY_S = 0.1
_EQUAL = frozenset({"cleanup.policy"})
_UNBOUNDED_BELOW_ZERO = frozenset({"retention.ms", "retention.bytes"})


def declare(
    bootstrap: str,
    *,
    kind: str,
    partitions: int,
    replication: int,
    extra: Mapping[str, Any] | None = None,
    wanted: Sequence[Topic] = topics.ALL,
    timeout_s: float = _TIMEOUT_S,
) -> None:
    """Make what is missing, wait for its leaders, and verify all. May be repeated, also at once by many.

    `kind` is `jvm`, `external` or `memory`; in memory nothing is made here, only verified.
    `extra` are librdkafka settings (security). With three replicas or more a record is
    confirmed by all but one of them.

    Raises:
        Refused: a topic is not as it must be; the sentence names all that is wrong.
        Unavailable: no broker answered within `timeout_s`.
    """
    deadline_s = time.monotonic() + timeout_s
    admin = _admin(bootstrap, extra)
    if kind != MEMORY:
        there = set(_partitions(admin, deadline_s))
        missing = [topic for topic in wanted if topic.name not in there]
        _create(admin, missing, partitions, replication, deadline_s)
    verify(
        bootstrap,
        kind=kind,
        partitions=partitions,
        extra=extra,
        wanted=wanted,
        timeout_s=max(1.0, deadline_s - time.monotonic()),
    )


def verify(
    bootstrap: str,
    *,
    kind: str,
    partitions: int | None = None,
    extra: Mapping[str, Any] | None = None,
    wanted: Sequence[Topic] = topics.ALL,
    timeout_s: float = _TIMEOUT_S,
) -> dict[str, int]:
    """Partitions per topic, once every one has a leader, if all are as they must be.

    Without `partitions` any count is good, as long as it is the same for all the topics. The submitted
    topic may have more.

    Raises:
        Refused: a topic is missing, has another partition count or would lose records.
        Unavailable: no broker answered, or partitions were without a leader, for `timeout_s`.
    """
    deadline_s = time.monotonic() + timeout_s
    admin = _admin(bootstrap, extra)
    counts = _led(admin, [topic.name for topic in wanted], deadline_s)
    faults = [f"topic {topic.name} does not exist" for topic in wanted if topic.name not in counts]
    others = [count for name, count in counts.items() if name != topics.SUBMITTED.name]
    expected = partitions if partitions is not None else next(iter(others or counts.values()), 0)
    faults += [
        f"topic {name} has {count} partitions instead of {expected}"
        for name, count in counts.items()
        if count != expected and not (name == topics.SUBMITTED.name and count > expected)
    ]
    if kind != MEMORY:
        there = [topic for topic in wanted if topic.name in counts]
        faults += _config_faults(admin, there, deadline_s)
    if faults:
        raise Refused("topics_unusable", "; ".join(faults), status_code=409)
    return counts


def _admin(bootstrap: str, extra: Mapping[str, Any] | None) -> AdminClient:
    return AdminClient(
        {"bootstrap.servers": bootstrap, "socket.timeout.ms": 5000, "log_level": 0, **(extra or {})}
    )


def _left_s(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise Unavailable("Kafka does not answer.")
    return left_s


def _metadata(admin: AdminClient, deadline_s: float) -> Mapping[str, Any]:
    """All topics. Never asks for one by name: some brokers would then make it."""
    try:
        listed: Mapping[str, Any] = admin.list_topics(timeout=_left_s(deadline_s)).topics
    except KafkaException as error:
        raise Unavailable("Kafka does not answer.") from error
    return {name: topic for name, topic in listed.items() if topic.error is None}


def _partitions(admin: AdminClient, deadline_s: float) -> dict[str, int]:
    return {name: len(topic.partitions) for name, topic in _metadata(admin, deadline_s).items()}


def _led(admin: AdminClient, names: Sequence[str], deadline_s: float) -> dict[str, int]:
    """Partition counts of those that exist, once each of their partitions has a leader."""
    while True:
        listed = _metadata(admin, deadline_s)
        there = {name: listed[name].partitions for name in names if name in listed}
        if all(partition.leader >= 0 for found in there.values() for partition in found.values()):
            return {name: len(found) for name, found in there.items()}
        if time.monotonic() + _LOOK_EVERY_S >= deadline_s:
            raise Unavailable("Partitions of Kafka's topics have no leader.")
        time.sleep(_LOOK_EVERY_S)


def _create(
    admin: AdminClient, missing: Sequence[Topic], partitions: int, replication: int, deadline_s: float
) -> None:
    if not missing:
        return
    safe = {"min.insync.replicas": str(replication - 1)} if replication >= 3 else {}
    timeout_s = _left_s(deadline_s)
    made = admin.create_topics(
        [NewTopic(topic.name, partitions, replication, config={**topic.config, **safe}) for topic in missing],
        operation_timeout=timeout_s,
        request_timeout=timeout_s,
    )
    faults = []
    for name, future in made.items():
        try:
            future.result()
        except KafkaException as error:
            cause = error.args[0]
            if cause.code() == KafkaError.TOPIC_ALREADY_EXISTS:
                continue
            if cause.retriable() or cause.code() in (KafkaError._TIMED_OUT, KafkaError._TRANSPORT):
                raise Unavailable("Kafka does not make topics now.") from error
            faults.append(f"topic {name} cannot be made: {cause.str()}")
    if faults:
        raise Refused("topics_unusable", "; ".join(faults), status_code=409)
    _await_names(admin, {topic.name for topic in missing}, deadline_s)


def _await_names(admin: AdminClient, names: set[str], deadline_s: float) -> None:
    """A broker that has made a topic may not show it for some moments."""
    while not names <= _metadata(admin, deadline_s).keys():
        time.sleep(min(_LOOK_EVERY_S, _left_s(deadline_s)))


def _config_faults(admin: AdminClient, there: Sequence[Topic], deadline_s: float) -> list[str]:
    if not there:
        return []
    resources = [ConfigResource(ResourceType.TOPIC, topic.name) for topic in there]
    described = admin.describe_configs(resources, request_timeout=_left_s(deadline_s))
    faults: list[str] = []
    for topic, resource in zip(there, resources, strict=True):
        try:
            actual = {name: entry.value for name, entry in described[resource].result().items()}
        except KafkaException as error:
            raise Unavailable("Kafka does not show its topics' settings.") from error
        faults += [
            f"topic {topic.name} has {setting}={actual.get(setting)} instead of {value}"
            for setting, value in topic.config.items()
            if not keeps_enough(setting, actual.get(setting), value)
        ]
    return faults


def keeps_enough(setting: str, actual: str | None, wanted: str) -> bool:
    """Whether a topic's setting keeps at least what is wanted of it."""
    if actual is None:
        return False
    if setting in _EQUAL:
        return {part.strip() for part in actual.split(",")} == {wanted}
    have, want = int(actual), int(wanted)
    if setting in _UNBOUNDED_BELOW_ZERO:
        return have < 0 or (want >= 0 and have >= want)
    return have >= want
