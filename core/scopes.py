"""What a token may allow. A token's `scope` is a space-separated list of these."""

from __future__ import annotations

ACTIONS_WRITE = "actions:write"
SCORES_WRITE = "scores:write"
ACTIONS_WRITE_ANY = "actions:write:any"
ACTIONS_BACKFILL = "actions:backfill"
BOARDS_READ = "boards:read"
BOARDS_ADMIN = "boards:admin"
ACTIONS_REVIEW = "actions:review"
USERS_ERASE = "users:erase"
TOKENS_REVOKE = "tokens:revoke"

ALL = frozenset(
    {
        ACTIONS_WRITE,
        SCORES_WRITE,
        ACTIONS_WRITE_ANY,
        ACTIONS_BACKFILL,
        BOARDS_READ,
        BOARDS_ADMIN,
        ACTIONS_REVIEW,
        USERS_ERASE,
        TOKENS_REVOKE,
    }
)
DEFAULT = (ACTIONS_WRITE, BOARDS_READ)
"""What `trueboard token` grants when no scope is named."""
