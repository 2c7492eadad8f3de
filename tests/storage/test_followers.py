"""The suite for followers, held against a follower in memory: right ones pass, careless ones do not."""

from __future__ import annotations

import pytest

from tests.storage import followers_conformance
from tests.storage.followers_conformance import FollowersConformance, Ledger, check, end, settle
from tests.storage.reference_follower import ReferenceSubject

pytestmark = pytest.mark.services


class TestReference(FollowersConformance):
    @pytest.fixture
    def make(self):
        return ReferenceSubject


@pytest.mark.parametrize("clause", ["count", "digest", "names", "position"])
def test_the_suite_finds_a_follower_that_leaves_a_clause_out(clause, stream):
    with pytest.raises(AssertionError):
        _every_test_of_the_suite(lambda url: ReferenceSubject(url, clause), stream)


def _every_test_of_the_suite(make, stream):
    suite = FollowersConformance()
    suite.test_it_heals_from_each_of_its_faults(make, stream)
    suite.test_harmed_and_with_nothing_to_follow_it_heals_too(make, stream)
    suite.test_what_is_in_hand_is_what_would_be_read(make, stream)
    ledger, subject = Ledger(stream), make(stream.url)
    follower = subject.follower()
    follower.build()
    for seed in range(4):
        ledger.grow(seed, 5)
    follower.step()
    check(ledger, subject.seen())
    settle(follower)
    end(ledger, subject, follower)
    assert followers_conformance.PERIOD
