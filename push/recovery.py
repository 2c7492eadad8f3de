"""What a reader is sent that says where it stands, before it follows a channel."""

from __future__ import annotations

from typing import Final

from core.feed import Position, publication_words
from push.channels import Channel

ONE_BY_ONE: Final = 16
"""Publications that are brought one by one; more are brought as one that covers them all."""


def missed(channel: Channel, asked: Position) -> list[tuple[bytes, Position]] | None:
    """The publications after a position, oldest first; None if they are not known any more."""
    sequence = channel.sequence
    links = sequence.links_after(asked)
    if links is None:
        return None
    if len(links) > ONE_BY_ONE:
        return [(channel.publication(sequence.version - len(links)), sequence.position)]
    return [(publication_words(link.view, link.changes), link.view.position) for link in links]
