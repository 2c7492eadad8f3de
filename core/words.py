"""Which strings may stand on the wire: ids, types, names, board and period ids.

The patterns are those of the interface, compared bytewise. Matching is always of the
whole string (`fullmatch`), so a trailing newline never passes.
"""

from __future__ import annotations

import re
import unicodedata

USER_ID = re.compile(r"[A-Za-z0-9._:@-]{1,255}")
ACTION_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
TYPE = re.compile(r"[a-z0-9_]{1,64}")
BOARD_ID = re.compile(r"[a-z0-9-]{1,64}")
WINDOW = re.compile(r"[A-Za-z0-9-]{1,64}")

USERNAME_BYTES = 255
"""Longest username, in bytes of UTF-8."""

MAIN_BOARD = "main"
ALL_TIME = "all-time"
MAIN_PERIOD = "main:all-time"

SCORE_MAX = 2**63 - 1
"""Scores and points lie within ±SCORE_MAX: the interface leaves out −2^63."""

_USER_IDS = re.compile(r"(?:[A-Za-z0-9._:@-]{1,255}\n)*")
_ACTION_IDS = re.compile(r"(?:[A-Za-z0-9._:-]{1,128}\n)*")
_TYPES = re.compile(r"(?:[a-z0-9_]{1,64}\n)*")


def is_user_id(text: str) -> bool:
    return USER_ID.fullmatch(text) is not None


def is_action_id(text: str) -> bool:
    return ACTION_ID.fullmatch(text) is not None


def is_type(text: str) -> bool:
    return TYPE.fullmatch(text) is not None


def is_username(text: str) -> bool:
    """1…255 bytes of UTF-8 without control characters (Unicode category Cc) or lone surrogates."""
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError:
        return False
    return 1 <= size_bytes <= USERNAME_BYTES and not any(unicodedata.category(c) == "Cc" for c in text)


def clean_username(text: str) -> str | None:
    """The nearest username that may be shown, or None if nothing is left.

    Control characters and lone surrogates go, then it is cut to 255 bytes of UTF-8
    at a character's edge.
    """
    kept = "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cs"))
    return kept.encode()[:USERNAME_BYTES].decode(errors="ignore") or None


def all_words(user_ids: list[str], action_ids: list[str], types: list[str]) -> bool:
    """Whether every id and type of a batch is well formed, in three matches instead of 3 n."""
    return all_match(_USER_IDS, user_ids) and all_match(_ACTION_IDS, action_ids) and all_match(_TYPES, types)


def all_match(pattern: re.Pattern[str], texts: list[str]) -> bool:
    """Whether each text is one of those lines that the pattern takes any number of."""
    joined = "\n".join(texts) + "\n" if texts else ""
    # A newline within a text would make two well-formed ones of it.
    return pattern.fullmatch(joined) is not None and joined.count("\n") == len(texts)


def period_id(board: str, window: str) -> str:
    """`<board>:<window>`, as `main:all-time`."""
    return f"{board}:{window}"
