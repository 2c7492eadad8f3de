"""A follower that does not look into the ledger takes what is in hand, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stream_app.hand import Hand
from tests.storage.followers_conformance import Ledger, Subject, check, settle
from tests.storage.test_boards import BoardSubject
from tests.storage.test_publishing import TopicsSubject, made

pytestmark = pytest.mark.services


@pytest.fixture(params=["board", "topics"])
def subject(request, stream) -> Iterator[Subject]:
    subject: Subject
    if request.param == "board":
        subject = BoardSubject(stream.url, request.getfixturevalue("redis_db_url"))
    else:
        cluster = made(request.getfixturevalue("memory_kafka"))
        subject = TopicsSubject(stream.url, cluster.bootstrap, "memory")
    yield subject
    subject.close()


def test_without_a_look_only_what_is_in_hand_is_followed(subject, stream):
    ledger, elsewhere = Ledger(stream), Hand()
    hand = ledger.hand
    follower = subject.follower(hand)
    ledger.grow(1, 6)
    settle(follower)

    ledger.grow(2, 6)
    assert follower.step(look=False)
    assert not follower.step(look=False)
    stood = follower.position()
    ledger.hand = elsewhere
    ledger.grow(3, 6)
    assert not follower.step(look=False)
    assert follower.position() == stood

    assert follower.step()
    settle(follower)
    check(ledger, subject.seen(), least=stood.revision + 1)
