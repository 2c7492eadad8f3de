"""`/ws/leaderboard`: the board with names and ranks, to holders of a token or a ticket.

First `connection_success`, then a `leaderboard_update` at once and on every update, and `error`
when something concerns this reader (its token expired, its message could not be read) or all
of them (the board is being rebuilt).
"""

from __future__ import annotations

from core.feed import connection_success_frame, error_frame, leaderboard_frame
from push.channels import Dialect

DIALECT = Dialect(
    name="leaderboard",
    path="/ws/leaderboard",
    public=False,
    frame=leaderboard_frame,
    welcome=connection_success_frame,
    error=error_frame,
)
