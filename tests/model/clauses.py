"""The rules the design leans on, each of which can be left out."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Clauses:
    """True is the design; a mutant has one of them False."""

    # Who may write beside whom.
    plan_held_by_batches: bool = True
    plan_held_alone_by_operators: bool = True
    # What a worker keeps in memory.
    version_compared: bool = True
    definitions_read_under_the_lock: bool = True
    memory_goes_with_the_connection: bool = True
    windows_read_again_after_another_owner: bool = True
    windows_changed_after_the_commit: bool = True
    # Where a worker goes on, and what it has seen before.
    positions_from_the_ledger: bool = True
    progress_by_log_id: bool = True
    key_of_user_and_action: bool = True
    decision_numbered: bool = True
    # What a delta says.
    delta_for_the_hidden: bool = True
    delta_for_the_erased: bool = True
    delta_for_the_expired: bool = True
    # The copies.
    position_with_digest: bool = True
    sizes_compared: bool = True
    compare_and_set: bool = True
    pages_numbered: bool = True
    newer_kept_on_swap: bool = True
    # The topics and the feed.
    cursor_after_acknowledgements: bool = True
    cursor_on_the_connection_with_the_lock: bool = True
    cursor_names_the_topic: bool = True
    links_checked_on_resume: bool = True
    # History lost, and the door.
    epoch_changed_on_restore: bool = True
    erased_again_after_restore: bool = True
    marker_after_acknowledgement: bool = True


def mutants() -> dict[str, Clauses]:
    """Every clause's name with the clauses that leave it out."""
    return {field.name: replace(Clauses(), **{field.name: False}) for field in fields(Clauses)}
