"""The sentence of the interface about limits, done the slow way: lists, and one pass a question.

It shares nothing with `core.rates` but the catalogue and the shape of a reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from core.catalogue import Catalogue
from core.receipts import Reason

SEVERITY = {"rejected": 0, "held": 1, "accepted": 2}


@dataclass(frozen=True)
class Action:
    """An action, and once it was judged whether it was accepted."""

    type: str
    occurred_us: int
    received_us: int
    backfill: bool
    client_points: int | None
    accepted: bool = False


def worth(catalogue: Catalogue, action: Action) -> int:
    type_ = catalogue.types.get(action.type)
    if type_ is None:
        return 0
    if type_.points is not None:
        return type_.points
    return 0 if action.client_points is None else action.client_points


def judge(catalogue: Catalogue, judged: list[Action], action: Action) -> tuple[str, Reason | None, int]:
    """Every rule is asked; the first of the worst answers is the verdict."""
    points = worth(catalogue, action)
    answers = list(_answers(catalogue, judged, action, points))
    if not answers:
        return "accepted", None, points
    verdict, reason = min(answers, key=lambda answer: SEVERITY[answer[0]])
    return verdict, reason, points


def _answers(catalogue, judged, action, points):
    version = catalogue.version
    key = f"types.{action.type}"
    type_ = catalogue.types.get(action.type)
    if type_ is None:
        yield "rejected", Reason("unknown_type", key, version)
        return

    if type_.points is None:
        sent = action.client_points
        if sent is None:
            yield "rejected", Reason("out_of_bounds", key, version)
        elif sent < type_.lowest:
            yield "rejected", Reason("out_of_bounds", f"{key}.min", version, type_.lowest, sent)
        elif sent > type_.highest:
            yield "rejected", Reason("out_of_bounds", f"{key}.max", version, type_.highest, sent)

    of_type = [other for other in judged if other.type == action.type]
    gaps = [abs(other.occurred_us - action.occurred_us) for other in of_type]
    if gaps and min(gaps) < type_.min_gap_us:
        seen = _number(min(gaps), 1000)
        yield (
            "rejected",
            Reason("too_fast", f"{key}.min_gap_ms", version, type_.min_gap_us // 1000, seen),
        )
    gaps = [abs(other.occurred_us - action.occurred_us) for other in of_type if other.accepted]
    if gaps and min(gaps) < type_.cooldown_us:
        seen = _number(min(gaps), 1_000_000)
        yield (
            "rejected",
            Reason("cooldown", f"{key}.cooldown_s", version, type_.cooldown_us // 1_000_000, seen),
        )

    for index, limit in enumerate(type_.limits):
        for group in _groups(of_type, action, limit.window_us):
            yield from _over("rate", f"{key}.limits.{index}", version, limit, 1 + len(group))
    for limit in catalogue.points_limits:
        if action.type in limit.types:
            listed = [other for other in judged if other.type in limit.types]
            for group in _groups(listed, action, limit.window_us):
                total = points + sum(worth(catalogue, other) for other in group)
                yield from _over("points_rate", f"limits.{limit.name}", version, limit, total)


def _groups(others, action, window_us):
    """Those in the window by occurred, then, unless the action is a backfill, by received."""
    t = action.occurred_us
    yield [other for other in others if t - window_us < other.occurred_us <= t]
    if not action.backfill:
        t = action.received_us
        yield [other for other in others if not other.backfill and t - window_us < other.received_us <= t]


def _over(code, rule, version, limit, seen):
    window_s = limit.window_us // 1_000_000
    if limit.hard is not None and seen > limit.hard:
        yield "rejected", Reason(code, rule, version, limit.hard, seen, window_s)
    elif limit.soft is not None and seen > limit.soft:
        yield "held", Reason(code, rule, version, limit.soft, seen, window_s)


def _number(us, unit_us):
    exact = Fraction(us, unit_us)
    return int(exact) if exact.denominator == 1 else float(exact)
