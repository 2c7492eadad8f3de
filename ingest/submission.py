"""Whether an action may come in, and as which record.

What a contract's body names is an offer. Offer, token, catalogue and the instant it was received
make either a record for the topic or a refusal, in this order: shape (400), rights (403), rules
(422). No I/O, no clock; a fresh id is an argument.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import msgspec

from core import actions, scopes, words
from core.actions import SubmittedRecord
from core.catalogue import ActionType, Catalogue
from core.errors import Refused
from core.times import US, parse_us
from ingest.ports import Claims

CLIENT_POINTS: Final = "client_points"
"""The type of an action that names only its points (S0, S2, S3)."""


class Offer(msgspec.Struct, frozen=True, gc=False):
    """What a body names, by our own words.

    `fields` gives the body's names of ours, for messages; what is missing in it is called the
    same. Without an `action_id` the action gets a fresh one, or with `id_from_instant` the one
    that its type and instant make.
    """

    contract: str
    type: str
    action_id: str | None = None
    user_id: str | None = None
    points: int | None = None
    occurred_at: str | None = None
    username: str | None = None
    id_from_instant: bool = False
    fields: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far from its arrival an action may have occurred, in µs."""

    late_us: int
    early_us: int


def accept(
    offer: Offer,
    claims: Claims,
    catalogue: Catalogue,
    received_at_us: int,
    tolerance: Tolerance,
    fresh_id: Callable[[], str],
) -> SubmittedRecord:
    """The record to publish.

    Raises:
        Refused: with the problem's code and status.
    """
    type_ = catalogue.types.get(offer.type)
    occurred_at_us = _check_shape(offer, type_, received_at_us)
    action_id = offer.action_id
    if action_id is None:
        action_id = f"{offer.type}:{occurred_at_us}" if offer.id_from_instant else fresh_id()
    user_id = claims.sub if offer.user_id is None else offer.user_id
    _check_rights(offer, claims, user_id)
    if type_ is None:
        raise Refused("unknown_type", "There is no such type of action.", status_code=422)
    backfill = scopes.ACTIONS_BACKFILL in claims.scopes
    _check_instant(occurred_at_us, received_at_us, tolerance, backfill)
    username = offer.username
    if username is None and user_id == claims.sub and claims.name is not None:
        username = _shown(claims.name)
    return actions.submitted(
        user_id=user_id,
        action_id=action_id,
        type_=offer.type,
        points=offer.points,
        occurred_at_us=occurred_at_us,
        received_at_us=received_at_us,
        username=username,
        contract=offer.contract,
        client=claims.sub,
        backfill=backfill,
        fingerprint_hex=actions.fingerprint(offer.type, offer.points, offer.occurred_at),
    )


def split_action(named: str) -> tuple[str, str | None]:
    """Type and action id of an `actionId`: `type:instance` is the id as a whole, a type alone is none."""
    type_, colon, instance = named.partition(":")
    if colon and not instance:
        raise invalid("actionId", "names a type and a colon, but no instance")
    return type_, named if colon else None


def invalid(field: str, what: str) -> Refused:
    """The refusal of one field's value."""
    return Refused("invalid_field", f"{field} {what}.")


def _check_shape(offer: Offer, type_: ActionType | None, received_at_us: int) -> int:
    """When the action occurred, in µs; everything that is 400 is found here."""
    fields = offer.fields
    if offer.user_id is not None and words.USER_ID.fullmatch(offer.user_id) is None:
        raise invalid(fields.get("user_id", "user_id"), "must be 1 to 255 of A-Z a-z 0-9 . _ : @ -")
    if offer.action_id is not None and words.ACTION_ID.fullmatch(offer.action_id) is None:
        raise invalid(fields.get("action_id", "action_id"), "must be 1 to 128 of A-Z a-z 0-9 . _ : -")
    if words.TYPE.fullmatch(offer.type) is None:
        raise invalid(fields.get("type", "type"), "must name a type: 1 to 64 of a-z 0-9 _")
    if offer.username is not None and not words.is_username(offer.username):
        raise invalid("username", "must be 1 to 255 bytes of UTF-8 without control characters")
    occurred_at_us = received_at_us
    if offer.occurred_at is not None:
        try:
            occurred_at_us = parse_us(offer.occurred_at)
        except ValueError:
            name = fields.get("occurred_at", "occurred_at")
            raise invalid(name, "must be an RFC 3339 instant with an offset") from None
    _check_points(offer, type_)
    return occurred_at_us


def _check_points(offer: Offer, type_: ActionType | None) -> None:
    points, name = offer.points, offer.fields.get("points", "points")
    if points is not None and not -words.SCORE_MAX <= points <= words.SCORE_MAX:
        if type_ is not None and type_.points is None:
            raise _out_of_bounds(name, type_)
        raise invalid(name, "must fit in 64 bits")
    if type_ is None:
        return
    if type_.points is not None:
        if points is not None:
            raise invalid(name, "must be left out: the catalogue says what this type is worth")
        return
    if points is None:
        raise invalid(name, "is missing: the client says what an action of this type is worth")
    if (type_.lowest is not None and points < type_.lowest) or (
        type_.highest is not None and points > type_.highest
    ):
        raise _out_of_bounds(name, type_)


def _out_of_bounds(name: str, type_: ActionType) -> Refused:
    return Refused("out_of_bounds", f"{name} must lie within {type_.lowest}..{type_.highest}.")


def _check_rights(offer: Offer, claims: Claims, user_id: str) -> None:
    held = claims.scopes
    trusted = scopes.ACTIONS_WRITE_ANY in held
    if not trusted:
        if user_id != claims.sub:
            raise _forbidden("The token is for another user.")
        if offer.username is not None:
            raise _forbidden("A name in the body needs the scope actions:write:any.")
    if offer.points is not None:
        if scopes.SCORES_WRITE not in held:
            raise _forbidden("Sending points needs the scope scores:write.")
    elif not trusted and scopes.ACTIONS_WRITE not in held:
        raise _forbidden("Sending actions needs the scope actions:write.")


def _check_instant(occurred_at_us: int, received_at_us: int, tolerance: Tolerance, backfill: bool) -> None:
    early_us = occurred_at_us - received_at_us
    if early_us > tolerance.early_us:
        raise Refused(
            "outside_window",
            f"The action lies more than {tolerance.early_us // US} s in the future.",
            status_code=422,
        )
    if -early_us > tolerance.late_us and not backfill:
        raise Refused(
            "outside_window",
            f"The action lies more than {tolerance.late_us // US} s in the past.",
            status_code=422,
        )


def _forbidden(detail: str) -> Refused:
    return Refused("forbidden", detail, status_code=403)


@lru_cache(maxsize=8192)
def _shown(name: str) -> str | None:
    return words.clean_username(name)
