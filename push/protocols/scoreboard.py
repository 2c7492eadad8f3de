"""`/ws/scoreboard`: every change with the entry it is named after, to anybody.

On connect the current board comes, unless it is empty. A reader that has seen entries is told
when the board becomes empty.
"""

from __future__ import annotations

from core.feed import View, scoreboard_frame
from push.channels import Dialect


def _worth_greeting_with(view: View) -> bool:
    return bool(view.top)


DIALECT = Dialect(
    name="scoreboard",
    path="/ws/scoreboard",
    public=True,
    frame=scoreboard_frame,
    greets_with=_worth_greeting_with,
)
