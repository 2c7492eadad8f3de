"""The state at rest, written down: tables, whole copies, the ends of logs. `histories` says how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

from core.topics import ALL, SUBMITTED
from storage.redis.keys import board
from tests.faults.histories import TABLES, Dump, Offsets, Transcript, WholeCopy, write_one
from tests.faults.rig import Rig

GROUP = "trueboard-stream"

_AS_US = "(extract(epoch FROM {0}) * 1000000)::bigint"
_COLUMNS = {
    "timestamp with time zone": _AS_US + " AS {0}",
    "bytea": "encode({0}, 'hex') AS {0}",
    "ARRAY": "{0}",
    "_timestamptz": "ARRAY(SELECT " + _AS_US.format("x.v") + " FROM unnest({0}) WITH ORDINALITY x(v, n)"
    " ORDER BY x.n) AS {0}",
}


def take(rig: Rig, where: Path, *, topic_ids: dict[str, str], all_at_rest: bool) -> None:
    """Write a dump into the directory `where`."""
    where.mkdir(parents=True)
    # What is seen from here on may be of a later state than the tables.
    at_s = rig.now_s()
    with psycopg.connect(rig.postgres, options="-c timezone=UTC") as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        for table, order in TABLES.items():
            _write_table(connection, table, order, where)
        periods = [row[0] for row in connection.execute("SELECT period FROM periods ORDER BY 1").fetchall()]
        system, timeline = _server(connection)
    _write_copies(rig, periods, where)
    _write_offsets(rig, where)
    write_one(
        where / "dump.json",
        Dump(
            row=rig.row,
            at_s=at_s,
            all_at_rest=all_at_rest,
            topic_ids=topic_ids,
            system_identifier=system,
            timeline=timeline,
        ),
    )


def _server(connection: psycopg.Connection[Any]) -> tuple[str, int]:
    row = connection.execute(
        "SELECT system_identifier::text, timeline_id FROM pg_control_system(), pg_control_checkpoint()"
    ).fetchone()
    assert row
    return row[0], row[1]


def _write_table(connection: psycopg.Connection[Any], table: str, order: str, where: Path) -> None:
    columns = connection.execute(
        "SELECT column_name, CASE WHEN udt_name = '_timestamptz' THEN udt_name ELSE data_type END"
        " FROM information_schema.columns WHERE table_schema = 'public' AND table_name = %s"
        " ORDER BY ordinal_position",
        (table,),
    ).fetchall()
    chosen = ", ".join(_COLUMNS.get(kind, "{0}").format(f'"{name}"') for name, kind in columns)
    with (where / f"{table}.jsonl").open("w") as file, connection.cursor(name="dump") as cursor:
        cursor.itersize = 5_000
        query = f"SELECT to_jsonb(t)::text FROM (SELECT {chosen} FROM {table} ORDER BY {order}) t"
        for (line,) in cursor.execute(query):
            file.write(line + "\n")


def _write_copies(rig: Rig, periods: list[str], where: Path) -> None:
    transcript = Transcript(where / "copies.jsonl")
    with rig.redis_client() as client:
        for period in periods:
            z, m, meta = board(period)
            pipe = client.pipeline(transaction=True)
            pipe.hgetall(meta)
            pipe.zrange(z, 0, -1, withscores=True)
            pipe.hgetall(m)
            about, members, names = pipe.execute()
            transcript.add(
                WholeCopy(
                    period=period,
                    meta={key.decode(): value.decode() for key, value in about.items()},
                    z=[member.hex() for member, _ in members],
                    m={user.decode(): value.hex() for user, value in names.items()},
                    scores_not_zero=sum(1 for _, score in members if score),
                )
            )
    transcript.close()


def ends(rig: Rig) -> dict[tuple[str, int], tuple[int, int]]:
    """(start, end) of each partition of each topic."""
    consumer = Consumer({"bootstrap.servers": rig.kafka, "group.id": "ends", "log_level": 0})
    try:
        return {
            (topic.name, partition): consumer.get_watermark_offsets(
                TopicPartition(topic.name, partition), timeout=10
            )
            for topic in ALL
            for partition in range(rig.partitions[topic.name])
        }
    finally:
        consumer.close()


def committed(rig: Rig) -> dict[int, int]:
    """The stream group's committed offsets, by partition of the submitted topic; those it has."""
    admin = AdminClient({"bootstrap.servers": rig.kafka, "log_level": 0})
    wanted = ConsumerGroupTopicPartitions(
        GROUP,
        [TopicPartition(SUBMITTED.name, partition) for partition in range(rig.partitions[SUBMITTED.name])],
    )
    found = admin.list_consumer_group_offsets([wanted], request_timeout=10)[GROUP].result()
    return {place.partition: place.offset for place in found.topic_partitions if place.offset >= 0}


def _write_offsets(rig: Rig, where: Path) -> None:
    group = committed(rig)
    transcript = Transcript(where / "offsets.jsonl")
    for (topic, partition), (start, end) in sorted(ends(rig).items()):
        known = group.get(partition, -1) if topic == SUBMITTED.name else -1
        transcript.add(Offsets(topic=topic, partition=partition, start=start, end=end, committed=known))
    transcript.close()
