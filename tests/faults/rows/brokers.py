"""K: Kafka is restarted, its groups and topics are tampered with, its log loses records."""

from __future__ import annotations

import time

from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    ResourceType,
)

from core.topics import BOARD_CHANGED, JUDGED, PLAYER, SUBMITTED
from storage.kafka import topics
from tests.faults.checking.material import as_uuid
from tests.faults.engine import Scene, row
from tests.faults.histories import Record, read
from tests.faults.mounts import CANNOT_MOUNT, Ballast, small_disk
from tests.faults.rig import PARTITIONS, Rig
from tests.faults.tools import (
    ALL_PARTITIONS,
    copy_tree,
    delete_records,
    delete_topics,
    move_group,
    partition_directory,
    produce,
    put_out_of_step,
)


@row("K-1", "the broker is restarted in order", "I-11 I-22", fast=True, wants={"503"})
def restarted(scene: Scene) -> None:
    kafka = scene.rig["kafka-1"]
    with scene.broken("SIGTERM, started again when it was missed", kafka.stop, kafka.start, "kafka-1"):
        scene.refusals(5)
        scene.none_confirmed(for_s=2)


@row("K-2", "the broker is killed, again and again", "I-1 I-12", wants={"503"})
def killed(scene: Scene) -> None:
    kafka = scene.rig["kafka-1"]
    for _ in range(scene.times(1, 5)):
        with scene.broken("SIGKILL, started again when it was missed", kafka.kill, kafka.start, "kafka-1"):
            scene.refusals(3)


@row("K-3", "of three brokers one that leads is killed", "I-1 I-12", stack="trio", recover_within_s=90)
def leader_killed(scene: Scene) -> None:
    for name in ("kafka-2", "kafka-3"):
        broker = scene.rig[name]
        with scene.broken(f"SIGKILL {name}", broker.kill, broker.start, name):
            scene.confirmations(150)
        _in_sync(scene)


@row(
    "K-4",
    "two of three brokers are down",
    "I-1 I-11",
    stack="trio",
    wants={"503"},
    recover_within_s=90,
)
def too_few_replicas(scene: Scene) -> None:
    others = [scene.rig["kafka-2"], scene.rig["kafka-3"]]

    def kill() -> None:
        for broker in others:
            broker.kill()

    def start() -> None:
        scene.rig.start("kafka-2", "kafka-3")

    with scene.broken("SIGKILL of both others: fewer in sync than must confirm", kill, start):
        scene.refusals(10)
        scene.none_confirmed(for_s=5)
    scene.nobody_was_left_hanging()


@row(
    "K-5",
    "the disk of Kafka is full",
    "I-1 I-22",
    stack="own",
    wants={"503"},
    cannot=CANNOT_MOUNT,
    recover_within_s=90,
)
def disk_full(scene: Scene) -> None:
    kafka, where = scene.rig["kafka-1"], scene.rig.data / "kafka-1" / "kafka" / "topics"
    moved = where.with_name("topics.moved")
    kafka.stop()
    with small_disk(where, mib=400):
        kafka.start()
        scene.world.as_before(60)
        ballast = Ballast(where / "ballast")
        scene.strike("the disk is filled up", ballast.fill, target="kafka-1")
        scene.refusals(10)
        ballast.empty()
        time.sleep(2)
        if not kafka.alive:
            scene.observe(kafka_ended_with=kafka.exit_code)
            kafka.start()
        scene.healed()
        scene.world.as_before(90)
        scene.world.rest()
        # Off the small disk before it goes.
        kafka.stop()
        copy_tree(where, moved)
    copy_tree(moved, where)
    kafka.start()
    scene.resume()


@row(
    "K-6",
    "two of three brokers stand still, go on, stand still",
    "I-1 I-12",
    stack="trio",
    wants={"503"},
    recover_within_s=90,
)
def brokers_paused(scene: Scene) -> None:
    others = [scene.rig["kafka-2"], scene.rig["kafka-3"]]
    pause_s = scene.times(12, 45)

    def pause() -> None:
        for broker in others:
            broker.pause()

    def go_on() -> None:
        for broker in others:
            broker.go_on()

    for _ in range(2):
        with scene.broken(f"SIGSTOP of both others for {pause_s} s", pause, go_on):
            time.sleep(pause_s)
        scene.confirmations(50)
        _in_sync(scene)


def longest_batch(rig: Rig, topic: str, most_bytes: int | None) -> None:
    """How long a batch of records the topic takes; None: as its broker says."""
    admin = AdminClient({"bootstrap.servers": rig.kafka, "log_level": 0})
    operation = AlterConfigOpType.DELETE if most_bytes is None else AlterConfigOpType.SET
    entry = ConfigEntry("max.message.bytes", str(most_bytes or ""), incremental_operation=operation)
    asked = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    for future in admin.incremental_alter_configs([asked]).values():
        future.result(timeout=20)


def _in_sync(scene: Scene) -> None:
    """Every partition of the submitted topic has all its replicas in sync again."""
    admin = AdminClient({"bootstrap.servers": scene.rig.kafka, "log_level": 0})

    def whole() -> bool:
        partitions = admin.list_topics(SUBMITTED.name, timeout=10).topics[SUBMITTED.name].partitions
        return all(len(partition.isrs) == 3 for partition in partitions.values())

    scene.effect("all replicas are in sync", whole)


@row("K-7", "the broker is restarted and a worker's consumer never comes back", "I-22")
def consumer_stands_still(scene: Scene) -> None:
    """The worker keeps its partitions, its loop turns, its followers follow: it only brings nothing."""
    stream, kafka = scene.rig["stream"], scene.rig["kafka-1"]
    scene.rig.tell("stream", stuck_s="15")
    scene.rig.failpoints["stream"] = "stream.brought=pause:86400s@100+"
    scene.strike("SIGTERM of the worker", stream.stop, target="stream")
    stream.start(wait=False)
    scene.effect(
        "it brings nothing more", lambda: "stream.brought pause" in stream.since_start(), within_s=90
    )
    del scene.rig.failpoints["stream"]
    scene.rig.tell("stream")
    scene.strike(
        "its consumer stands still, the broker is restarted", kafka.stop, target="kafka-1", gate=False
    )
    kafka.start()
    scene.confirmations(50)
    judged = scene.world.judged()
    scene.effect("the worker has ended itself", lambda: not stream.alive, within_s=120)
    assert stream.exit_code == 1, f"it ended with {stream.exit_code}"
    assert "there is lag, and nothing was finished for" in stream.since_start(), stream.last_lines()
    assert scene.world.judged() == judged, "it was at work"
    stream.start()
    scene.healed()


OUT_OF_STEP_WITHIN_S = (10.0, 10.0, 60.0)
"""How long a producer that was put out of step is given to notice, at each try."""


@row(
    "K-8",
    "too few replicas were in sync, and the producers fail for good",
    "I-1 I-12 I-22 I-24",
    stack="trio",
    wants={"503"},
)
def producers_fail_for_good(scene: Scene) -> None:
    """The brokers and the producers come to differ about what was written last, as where a leader goes
    with what it had not confirmed. librdkafka's producers then refuse everything, for ever."""
    rig = scene.rig
    others = [rig["kafka-2"], rig["kafka-3"]]

    def kill() -> None:
        for broker in others:
            broker.kill()

    with scene.broken(
        "SIGKILL of two of three brokers", kill, lambda: rig.start("kafka-2", "kafka-3"), "kafka-2"
    ):
        scene.refusals(5)
    _in_sync(scene)
    scene.confirmations(50)
    for service, topic in (("ingest", SUBMITTED), ("stream", BOARD_CHANGED)):
        before = rig.metric(service, "trueboard_producers_replaced_total")

        def replaced(service: str = service, before: float = before) -> bool:
            return rig.metric(service, "trueboard_producers_replaced_total") > before

        for within_s in OUT_OF_STEP_WITHIN_S:
            scene.strike(
                f"what {service} wrote last to {topic.name} is another thing to the brokers",
                lambda topic=topic: put_out_of_step(rig, topic.name),  # type: ignore[misc]
                target=service,
            )
            try:
                scene.effect(f"the producer of {service} is made anew", replaced, within_s)
                break
            except AssertionError:
                # It was about to number its records anew by itself, as after its brokers came back.
                if within_s == OUT_OF_STEP_WITHIN_S[-1]:
                    raise
        scene.confirmations(50)
    scene.healed()


@row("K-9", "a worker joins and is killed, over and over", "I-1 I-9 I-23")
def rebalance_storm(scene: Scene) -> None:
    other = scene.rig["stream2"]
    for _ in range(scene.times(4, 15)):
        other.start(wait=False)
        time.sleep(2.5)
        scene.strike("a second worker joins, SIGKILL 2.5 s later", other.kill, target="stream2")
    scene.healed()


@row("K-11", "the group's offsets are set back to 0", "I-15")
def offsets_set_back(scene: Scene) -> None:
    _with_offsets(scene, dict.fromkeys(ALL_PARTITIONS, 0), "set back to 0")


@row("K-12", "the group's offsets are set ahead of what was read", "I-9")
def offsets_set_ahead(scene: Scene) -> None:
    ends = scene.world.ends()
    ahead = {partition: ends[SUBMITTED.name, partition] + 500 for partition in ALL_PARTITIONS}
    _with_offsets(scene, ahead, "set 500 records beyond the log's end")


def _with_offsets(scene: Scene, offsets: dict[int, int], how: str) -> None:
    stream = scene.rig["stream"]

    def move() -> None:
        stream.kill()
        move_group(scene.rig, offsets)

    scene.strike(f"SIGKILL of the worker, the group's offsets {how}", move, target="stream")
    stream.start()
    scene.healed()


@row("K-13", "records go before they were read", "I-9", stack="own", comes_to_rest=False)
def retention_passes(scene: Scene) -> None:
    stream = scene.rig["stream"]
    scene.progress()
    scene.strike("SIGKILL of the worker", stream.kill, target="stream", gate=False)
    scene.confirmations(150)
    ends, progress = scene.world.ends(), scene.world.progress()
    waiting = {p: ends[SUBMITTED.name, p] - progress.get(p, 0) for p in ALL_PARTITIONS}
    partition = max(waiting, key=lambda p: waiting[p])
    assert waiting[partition] > 3
    scene.strike(
        f"all {waiting[partition]} unread records of a partition deleted",
        lambda: delete_records(scene.rig, {partition: ends[SUBMITTED.name, partition]}),
        gate=False,
    )
    stream.start()
    scene.healed()
    _stops(scene, partition, "are gone")


@row("K-14", "the submitted topic is given more partitions", "I-1 I-3 I-9 I-16", stack="own")
def partitions_added(scene: Scene) -> None:
    """Whoever writes notices within some minutes: here ingest is started anew, so that it does at once."""
    rig, ingest, stream = scene.rig, scene.rig["ingest"], scene.rig["stream"]
    count = rig.partitions[SUBMITTED.name] + 4

    def add() -> None:
        admin = AdminClient({"bootstrap.servers": rig.kafka, "log_level": 0})
        for future in admin.create_partitions([NewPartitions(SUBMITTED.name, count)]).values():
            future.result(timeout=20)
        rig.partitions[SUBMITTED.name] = count
        scene.topics.renew()

    scene.strike("four partitions added to the twelve", add)
    added = range(PARTITIONS, count)
    scene.strike("SIGTERM of ingest", ingest.stop, target="ingest", gate=False)
    ingest.start()

    def judged_of_all() -> bool:
        progress = scene.world.progress()
        return all(progress.get(partition, 0) > 0 for partition in added)

    scene.effect("actions of all the new partitions are judged", judged_of_all)
    scene.effect("there is an alarm", lambda: "partitions_added" in stream.since_start())
    moved = rig.one(
        "SELECT count(*) FROM (SELECT player FROM ledger GROUP BY player"
        " HAVING bool_or(kafka_partition < %(made)s) AND bool_or(kafka_partition >= %(made)s)) both_",
        {"made": PARTITIONS},
    )
    assert moved, "nobody's actions have moved to another partition"
    scene.observe(players_moved=moved)
    scene.strike("SIGKILL of the worker", stream.kill, target="stream")
    stream.start()
    scene.healed()
    scene.effect("it says so again", lambda: "partitions_added" in stream.since_start())


@row(
    "K-15",
    "records are written again, in another order, past the door",
    "I-3 I-15",
    fast=True,
    wants={"repeated"},
)
def written_again(scene: Scene) -> None:
    scene.progress(100)
    path = scene.rig.run / "topics" / f"{SUBMITTED.name}.jsonl"
    known = [record for record in read(path, Record) if record.key and record.value and not record.binary]
    again = scene.world.dice.sample(known, min(len(known), scene.times(500, 5000)))
    repeats = [((one.key or "").encode(), (one.value or "").encode()) for one in again]
    before = scene.rig.one("SELECT count(*) FROM ledger"), len(again)
    scene.strike(f"{len(again)} records repeated, shuffled", lambda: produce(scene.rig, repeats))
    scene.healed()
    scene.effect("all are read", lambda: scene.world.lag_is_short())
    scene.observe(rows_before=before[0], repeated_by_hand=before[1])


@row("K-17", "the topic of changes takes no records, all other topics do", "I-7 I-24")
def changes_unavailable(scene: Scene) -> None:
    rig, stream = scene.rig, scene.rig["stream"]

    def behind() -> int:
        """Revisions that the publisher's cursor stands behind the ledger."""
        return int(rig.one("SELECT (SELECT max(revision) FROM revisions) - (SELECT revision FROM cursors)"))

    said = stream.since_start().count(_TOPICS_WAIT)
    with scene.broken(
        "it takes no batch longer than a byte",
        lambda: longest_batch(rig, BOARD_CHANGED.name, 1),
        lambda: longest_batch(rig, BOARD_CHANGED.name, None),
    ):
        scene.effect(
            "the publisher waits", lambda: stream.since_start().count(_TOPICS_WAIT) > said, within_s=60
        )
        stood = rig.one("SELECT revision FROM cursors")
        lag, late = behind(), []
        for _ in range(5):
            scene.progress(scene.times(25, 100))
            here = scene.world.position()
            scene.effect("the copy shows it", lambda here=here: scene.world.copied() >= here)  # type: ignore[misc]
            late.append(scene.world.feed_delay_s(within_s=20))
        assert rig.one("SELECT revision FROM cursors") == stood, "the cursor has moved"
        assert behind() > lag, "the ledger has not moved"
        scene.observe(feed_late_s=round(max(late), 1), revisions_behind=behind())
    scene.effect("the topics have all", lambda: behind() < 30)


_TOPICS_WAIT = "Kafka refuses what follows the ledger"


@row("K-20", "the topics that follow the ledger are deleted and made again", "I-7 I-24", stack="own")
def outgoing_made_again(scene: Scene) -> None:
    names = [BOARD_CHANGED.name, JUDGED.name, PLAYER.name]
    for _ in range(scene.times(2, 4)):
        scene.strike("three topics deleted", lambda: delete_topics(scene.rig, names))
        scene.progress(50)
        topics.declare(scene.rig.kafka, kind="external", partitions=PARTITIONS, replication=1)
        scene.topics.renew()
        made = {name: as_uuid(id) for name, id in scene.topics.ids().items() if name in names}
        scene.effect(
            "the publisher has begun again, for these topics",
            lambda made=made: scene.rig.one("SELECT topic_ids FROM cursors") == made,  # type: ignore[misc]
        )
    scene.healed()


@row(
    "K-18",
    "the submitted topic is deleted and made again",
    "I-1 I-3 I-9",
    stack="own",
    wants={"503"},
)
def submitted_made_again(scene: Scene) -> None:
    scene.progress(200)
    scene.world.rest()
    scene.strike(
        "deleted when all of it was judged",
        lambda: delete_topics(scene.rig, [SUBMITTED.name]),
        gate=False,
    )
    scene.resume()
    scene.refusals(3)
    topics.declare(scene.rig.kafka, kind="external", partitions=PARTITIONS, replication=1)
    scene.topics.renew()
    scene.healed()
    scene.effect(
        "the ledger has gone over to the new log",
        lambda: scene.rig.one("SELECT count(*) FROM logs") == 2,
        within_s=40,
    )


@row("K-19", "a log loses its end and is written anew", "I-9", stack="own", comes_to_rest=False)
def log_cut(scene: Scene) -> None:
    """What an unclean election does to a partition, by hand: its directory is set back."""
    rig, kafka = scene.rig, scene.rig["kafka-1"]
    scene.progress(100)
    ends = scene.world.ends()
    partition = max(ALL_PARTITIONS, key=lambda p: ends[SUBMITTED.name, p])
    where, kept = partition_directory(rig, partition), rig.data / "kept-partition"
    scene.strike("the broker stopped, a partition's files kept", kafka.stop, target="kafka-1")
    copy_tree(where, kept)
    kafka.start()
    scene.confirmations(200)
    scene.effect("they are judged", scene.world.lag_is_short)
    scene.strike("the broker stopped, the older files put back", kafka.stop, target="kafka-1")
    copy_tree(kept, where)
    kafka.start()
    scene.healed()
    _stops(scene, partition, "")


def _stops(scene: Scene, partition: int, because: str) -> None:
    """The partition is stopped with an alarm; the others go on."""
    label = f'partition="{partition}"'
    scene.effect(
        f"partition {partition} is stopped, with an alarm",
        lambda: scene.rig.metric("stream", "trueboard_partition_stopped", label) == 1,
        within_s=60,
    )
    said = [line for line in scene.rig["stream"].since_start().splitlines() if "partition_stopped" in line]
    assert said, "it says nothing of it"
    assert because in said[-1], said[-1]
    scene.observe(alarm=said[-1][:300])
    others = [p for p in ALL_PARTITIONS if p != partition]

    def others_up_to_date() -> bool:
        ends = scene.world.ends()
        progress = scene.world.progress()
        return all(progress.get(p, 0) >= ends[SUBMITTED.name, p] - 10 for p in others)

    scene.confirmations(50)
    scene.effect("the other partitions are judged", others_up_to_date)
    assert scene.rig.metric("stream", "trueboard_partition_stopped") == 1
