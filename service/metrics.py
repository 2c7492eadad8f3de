"""Every metric there is, in one catalogue. Each text ends with what a rise means.

Labels hold few, known values only: never a user, an address or a path with ids in it.
The client library appends `_total` to counters.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_FAST_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)

# Every process

LOG_LINES_LOST = Counter(
    "trueboard_log_lines_lost",
    "Log lines that could not be written at once: the disk is full, or nobody reads. "
    "A rise means that the logs do not tell everything.",
)

# The door

SUBMISSIONS = Counter(
    "trueboard_submissions",
    "Actions received, by contract and answer, refusals included. "
    "A rise of refusals means that a client is broken or probing.",
    ["contract", "outcome", "code"],
)
HTTP_REQUEST_SECONDS = Histogram(
    "trueboard_http_request_seconds",
    "Seconds from a request's head to its answer, by route template. "
    "A rise means that the process is short of CPU or waits for Kafka, Redis or Postgres.",
    ["route", "status"],
    buckets=_FAST_S,
)
TOKENS_REFUSED = Counter(
    "trueboard_tokens_refused",
    "Tokens answered with 401, by cause. A rise means expired clients, a key rotated too early or an attack.",
    ["cause"],
)
KEY_FETCHES = Counter(
    "trueboard_key_fetches",
    "Reads of the token issuer's public keys, by result. "
    "A rise of failures means that new keys will not be known.",
    ["result"],
)
REVOCATIONS = Gauge(
    "trueboard_revocations",
    "Revocations of tokens that this process goes by. "
    "A rise means that an operator revoked tokens; each is forgotten when it expires.",
)
REVOCATIONS_AGE_SECONDS = Gauge(
    "trueboard_revocations_age_seconds",
    "Seconds since this process last read which tokens are revoked. "
    "A rise means that Postgres is away, and that what was revoked since is still taken.",
)
LIMITED = Counter(
    "trueboard_limited",
    "Requests refused by a rate limit, by its name. A rise means a client in a loop or a limit set too low.",
    ["limit"],
)
LIMITS_DECIDED_LOCALLY = Counter(
    "trueboard_limits_decided_locally",
    "Rate limits decided by this process alone, since Redis was slow or away. "
    "A rise means that limits are only approximate.",
)
DELIVERY_SECONDS = Histogram(
    "trueboard_delivery_seconds",
    "Seconds from handing a request's records to Kafka until all were confirmed or given up. "
    "A rise means that brokers are slow or away.",
    ["result"],
    buckets=_FAST_S,
)
LOST_RECORDS = Counter(
    "trueboard_lost_records",
    "Confirmed records that Kafka no longer has, at least. "
    "A rise means that brokers lost what they had confirmed: the log line says which.",
)
PRODUCERS_REPLACED = Counter(
    "trueboard_producers_replaced",
    "Kafka producers that failed for good and were replaced. "
    "A rise means that brokers lose the producer's state: look at their logs.",
)

# The ledger

SCORE_UPDATES = Counter(
    "trueboard_score_updates",
    "Verdicts written to the ledger, by reason. "
    "A rise of rejected or held ones means cheating, a broken client or a rule set too tight.",
    ["verdict", "reason"],
)
REVISIONS = Counter(
    "trueboard_revisions",
    "Revisions committed, by cause. A rise faster than that of actions means that batches have become small.",
    ["cause"],
)
BATCH_ACTIONS = Histogram(
    "trueboard_batch_actions",
    "Actions in one ledger transaction. A rise means that the stream works off a backlog.",
    buckets=_COUNTS,
)
LEDGER_COMMIT_SECONDS = Histogram(
    "trueboard_ledger_commit_seconds",
    "Seconds of one ledger transaction, from begin to commit. "
    "A rise means that Postgres is short of I/O, a standby is slow or a lock is held.",
    buckets=_FAST_S,
)
REVISION_WAIT_SECONDS = Histogram(
    "trueboard_revision_wait_seconds",
    "Seconds a transaction waited for its turn to number its revision. "
    "A rise means too many writers: raise the commit interval.",
    buckets=_FAST_S,
)
STREAM_LAG_RECORDS = Gauge(
    "trueboard_stream_lag_records",
    "Records of a partition not judged yet. A rise means that workers do not keep up or have stopped.",
    ["partition"],
)
OLDEST_UNJUDGED_SECONDS = Gauge(
    "trueboard_oldest_unjudged_seconds",
    "Age of the oldest action that was confirmed to this process, since it began, and is not judged. "
    "A rise means that scores are late; above 60 the door turns actions away.",
)
PARTITION_STOPPED = Gauge(
    "trueboard_partition_stopped",
    "1 for a partition that was stopped because its log is not the one read before, or nobody can read it. "
    "A rise means that accepted actions wait for an operator.",
    ["partition"],
)
DEFECTS = Counter(
    "trueboard_defects",
    "Tries of a group of records that ended in a defect; the group is then tried in parts. "
    "A rise means a defect in the judge: the log shows it, and a record that meets it alone is set aside.",
)
DEAD_LETTERS = Counter(
    "trueboard_dead_letters",
    "Records set aside on the dead-letter topic, by reason. "
    "A rise means that somebody writes what nobody can read; of reason defect, that the judge has one.",
    ["reason"],
)

# The followers

PROJECTION_LAG_REVISIONS = Gauge(
    "trueboard_projection_lag_revisions",
    "Revisions by which a period's copy in Redis is behind the ledger, counted up to 10,000. "
    "A rise means that Redis or its follower is slow; reads stay true as of an older revision.",
    ["period"],
)
PROJECTION_DRIFT_ENTRIES = Gauge(
    "trueboard_projection_drift_entries",
    "Entries in which a period's copy differed from the ledger at the same revision when last compared. "
    "A rise means a defect or a hand in Redis; the copy is built anew.",
    ["period"],
)
FOLLOWER_STEP_SECONDS = Histogram(
    "trueboard_follower_step_seconds",
    "Seconds a follower took for one step. A rise means that what it writes to is slow.",
    ["follower"],
    buckets=_FAST_S,
)
FOLLOWER_BUILDS = Counter(
    "trueboard_follower_builds",
    "Times a follower began anew from the ledger, by why. "
    "A rise means that its copy keeps being lost or overtaken.",
    ["follower", "why"],
)
RECONNECTS = Counter(
    "trueboard_reconnects",
    "Connections made again after they failed, by what to. A rise means a network or a server in trouble.",
    ["to"],
)

# The readers

STANDINGS_READS = Counter(
    "trueboard_standings_reads",
    "Reads of standings, hit: answered from Redis or memory. "
    "A rise of misses means that copies are missing and Postgres carries the reads.",
    ["result"],
)
WEBSOCKET_CONNECTIONS = Gauge(
    "trueboard_websocket_connections",
    "Open connections of the feed, by dialect. A rise means more who watch.",
    ["dialect"],
)
FRAMES_MERGED = Counter(
    "trueboard_frames_merged",
    "Frames a slow reader was spared, since a later one held all of it. "
    "A rise means readers on slow networks, or a feed short of CPU.",
)

# The auditor

AUDIT_MISMATCH = Counter(
    "trueboard_audit_mismatch",
    "Things shown that differ from the auditor's own count at the same revision, by what showed them. "
    "A rise means that a board, a topic, a page or a frame is wrong: the log line names the first witness.",
    ["what"],
)
AUDIT_COMPARED = Counter(
    "trueboard_audit_compared",
    "Comparisons that the auditor made. A rise that ends means that nothing is audited any more.",
    ["what"],
)
AUDIT_SKIPPED = Counter(
    "trueboard_audit_skipped",
    "Comparisons the auditor did not make, since nothing proved that both sides are of one revision. "
    "A rise means revisions that follow each other faster than pages can be held against them.",
    ["what"],
)
AUDIT_REVISION = Gauge(
    "trueboard_audit_revision",
    "The last revision that the auditor has counted. A rise means that the history goes on.",
)
AUDIT_LAG_REVISIONS = Gauge(
    "trueboard_audit_lag_revisions",
    "Revisions of the ledger that the auditor has not counted yet. "
    "A rise means that the topics or the auditor do not keep up.",
)
