"""`/ws/scores`: the top scores, to anybody, on connect and on every update."""

from __future__ import annotations

from core.feed import scores_frame
from push.channels import Dialect

DIALECT = Dialect(name="scores", path="/ws/scores", public=True, frame=scores_frame)
