"""What may be wrong with a run in one place, and which invariant must say so, with what witness."""

from __future__ import annotations

import json
from collections.abc import Callable

from core.ranking import member, order_key
from core.topics import BOARD_CHANGED, DEAD, JUDGED, PLAYER, SUBMITTED
from tests.faults.made import EPOCH, FIRST_US, LAST, LATER, Fact, Line, Made, attempt, pid

Spoil = Callable[[Made], object]


def last(lines: list[Line], **like: object) -> Line:
    """The last line with these fields."""
    return next(line for line in reversed(lines) if all(line.get(k) == v for k, v in like.items()))


def say(line: Line, **changes: object) -> None:
    line["value"] = json.dumps(json.loads(line["value"]) | changes)


def confirmed(made: Made, action: str) -> Line:
    return last(made.attempts, action=action, status=202)


def never_sent(made: Made) -> None:
    made.attempts = [line for line in made.attempts if line["action"] != "b2"]


def only_refused(made: Made) -> None:
    confirmed(made, "b2").update(status=422, code="cooldown", verdict=None)


def record_of_nobody(made: Made) -> None:
    submit(made, "cy", "c9", "00")
    made.tables["set_aside"].append({"log": 1, "partition": 1, "record_offset": 3, "reason": "erased"})


def submit(made: Made, user: str, action: str, fingerprint: str) -> None:
    """One more record on partition 1, read by all."""
    body = {"user_id": user, "action_id": action, "fingerprint": fingerprint}
    like = made.topics[SUBMITTED.name][0]
    made.topics[SUBMITTED.name].append(
        like | {"partition": 1, "offset": 3, "key": user, "value": json.dumps(body)}
    )
    made.tables["progress"][1]["next_offset"] = 4
    last(made.offsets, topic=SUBMITTED.name, partition=1).update(end=4, committed=4)


def body_of_nobody(made: Made) -> None:
    row = made.tables["ledger"][6]
    row["fingerprint"] = "0" * 32


def place_of_a_repeat(made: Made) -> None:
    made.tables["ledger"][3]["kafka_offset"] = 2


def sum_off_by_one(made: Made) -> None:
    made.tables["entries"][0]["score"] += 1


def delta_off_by_one(made: Made) -> None:
    """Of ada's last change, in all that follows it."""
    made.tables["deltas"][3]["old_scores"][0] -= 1


def negative_count(made: Made) -> None:
    made.tables["deltas"][5]["count"] = -2
    say(made.topics[BOARD_CHANGED.name][5], count=2)


def delta_adds_up_otherwise(made: Made) -> None:
    """A total that the rows of its revision do not give, and that everybody shows."""
    made.tables["deltas"][1]["new_scores"][0] = made.tables["deltas"][2]["old_scores"][0] = 11
    body = json.loads(made.topics[BOARD_CHANGED.name][1]["value"])
    body["changed"][0]["score"] = body["top"][0]["score"] = 11
    say(made.topics[BOARD_CHANGED.name][1], **body)
    last(made.attempts, action="a1", status=200)["score"] = 11
    made.tables["deltas"][2]["new_scores"][0] = made.tables["deltas"][3]["old_scores"][0] = 11


def row_without_effect(made: Made) -> None:
    """The rows are there and their revision changes nothing for ada; what is shown is as before."""
    for name in ("players", "old_scores", "new_scores", "old_reached", "new_reached"):
        del made.tables["deltas"][2][name][0]
    body = json.loads(made.topics[BOARD_CHANGED.name][2]["value"])
    ada = made.states[2]["ada"]
    made.states[3] = made.states[3] | {"ada": ada}
    say(made.topics[BOARD_CHANGED.name][2], changed=body["changed"][1:], top=made._entries(3))
    made._readers()


def copy_lacks_somebody(made: Made) -> None:
    made.whole["z"].pop()


def copy_has_another_score(made: Made) -> None:
    _, score, at = made.top(LAST)[1]
    made.whole["z"][1] = member(score + 1, at, "bo").hex()
    made.whole["m"]["bo"] = order_key(score + 1, at).hex()


def copy_has_another_name(made: Made) -> None:
    made.whole["m"]["ada"] = made.whole["m"]["ada"][:32] + b"Eve".hex()


def copy_behind(made: Made) -> None:
    made.whole["meta"]["revision"] = "5"


def copy_of_another_history(made: Made) -> None:
    made.whole["meta"]["digest"] = "00" * 32


def no_copy(made: Made) -> None:
    made.whole["meta"] = {}


def copy_out_of_order(made: Made) -> None:
    made.whole["z"].reverse()


def copy_with_scores(made: Made) -> None:
    made.whole["scores_not_zero"] = 1


def half_a_copy(made: Made) -> None:
    """A copy that may be read, since its sizes agree, and that lacks somebody."""
    made.looks[0] |= {"count": 1, "sizes": [1, 1], "top": made.looks[0]["top"][:1]}


def older_than_asked_for(made: Made) -> None:
    made.pages[2] = made.player_page("bo", 5, 12.5) | {"at_least": f"{EPOCH}-6"}
    del made.pages[1]


def reader_left_behind(made: Made) -> None:
    made.frames.remove(last(made.frames, socket=1))


def reader_shown_nothing(made: Made) -> None:
    made.frames.remove(last(made.frames, socket=2))


def another_content(made: Made) -> None:
    last(made.frames, socket=1)["body"] = made.frame(1, "scores", 5, 0.0)["body"]


def tie_the_other_way(made: Made) -> None:
    made.pages[1]["entries"].reverse()


def socket_goes_back(made: Made) -> None:
    made.frames.append(made.frame(4, "scores", 6, 13.0))
    made.frames.append(made.frame(4, "scores", 5, 14.0))
    made.frames.append(made.frame(4, "scores", 6, 15.0))


def page_goes_back(made: Made) -> None:
    made.pages.append(made.page(5, 13.0))


def revision_of_nobody(made: Made) -> None:
    made.pages[1]["revision"] = LAST + 1
    made.pages.pop()


def count_below_zero(made: Made) -> None:
    made.pages[1]["count"] = -1


def rank_one_too_high(made: Made) -> None:
    made.pages[2]["entries"][0][0] = 1


def receipt_of_another_score(made: Made) -> None:
    last(made.attempts, action="a1", status=200)["score"] = 9


def mover_of_another_score(made: Made) -> None:
    last(made.frames, socket=2)["body"]["data"]["new_score"] = 9


def not_the_periods_own(made: Made) -> None:
    """Revision 6 changes nothing of the period here, so what shows the period names 5."""
    del made.tables["deltas"][5]
    made.topics[BOARD_CHANGED.name].pop()
    last(made.offsets, topic=BOARD_CHANGED.name, partition=0)["end"] -= 1
    made.tables["ledger"][6] |= {"verdict": "held", "reason": {"code": "rate"}}


def chain_broken(made: Made) -> None:
    say(made.topics[BOARD_CHANGED.name][3], previous=2)


def ledger_chain_broken(made: Made) -> None:
    made.tables["deltas"][3]["previous"] = 2
    say(made.topics[BOARD_CHANGED.name][3], previous=2)


def top_unlike_the_deltas(made: Made) -> None:
    body = json.loads(made.topics[BOARD_CHANGED.name][3]["value"])
    body["top"][0]["score"] += 1
    say(made.topics[BOARD_CHANGED.name][3], top=body["top"])


def change_left_out(made: Made) -> None:
    say(made.topics[BOARD_CHANGED.name][3], changed=[])


def two_digests(made: Made) -> None:
    say(made.topics[BOARD_CHANGED.name][3], digest="00" * 32)


def revision_left_out(made: Made) -> None:
    for line in made.tables["revisions"][5:]:
        line["revision"] = 7


def epoch_goes_back(made: Made) -> None:
    made.tables["epochs"].insert(0, {"epoch": "00", "continues_epoch": None, "continues_revision": None})
    made.tables["revisions"][3]["epoch"] = "00"


def copy_shows_another_digest(made: Made) -> None:
    made.looks[0]["digest"] = "00" * 32


def erased_is_shown(made: Made) -> None:
    entries = [*made.pages[1]["entries"], [3, "dee", None, 1, made.page(3, 0)["entries"][2][4]]]
    made.pages[1] |= {"entries": entries, "count": 3}


def not_read_to_the_end(made: Made) -> None:
    made.tables["progress"][1]["next_offset"] = 2


def group_ahead(made: Made) -> None:
    last(made.offsets, topic=SUBMITTED.name, partition=1)["committed"] = 503


def record_without_a_place(made: Made) -> None:
    submit(made, "direct-1", "x1", "00")


def poison_without_a_place(made: Made) -> None:
    made.tables["set_aside"].clear()
    made.topics[DEAD.name].clear()
    last(made.offsets, topic=DEAD.name, partition=0)["end"] = 0


def no_letter(made: Made) -> None:
    made.topics[DEAD.name].clear()
    last(made.offsets, topic=DEAD.name, partition=0)["end"] = 0


def letter_without_reason(made: Made) -> None:
    made.topics[DEAD.name][0]["headers"] = {}


def letter_of_other_bytes(made: Made) -> None:
    made.topics[DEAD.name][0]["value"] = "{}"


def letter_of_a_good_record(made: Made) -> None:
    letter = made.topics[DEAD.name][0] | {"offset": 1, "key": f"{SUBMITTED.name}-1-0"}
    made.topics[DEAD.name].append(letter)
    last(made.offsets, topic=DEAD.name, partition=0)["end"] = 2


def answer_500(made: Made) -> None:
    made.attempts.append(confirmed(made, "b2") | {"status": 500, "code": "internal", "verdict": None})


def refused_without_a_word(made: Made) -> None:
    last(made.attempts, status=503)["retry_after"] = None


def left_hanging(made: Made) -> None:
    last(made.attempts, status=0)["code"] = "timeout"


def confirmed_on_hope(made: Made) -> None:
    """202 while the broker was away: what is in the ledger came later, by the record of a retry."""
    made.attempts.append(confirmed(made, "b1") | {"type": "commit", "sent_points": None, "begun_s": 2.0})


def repeat_of_nothing(made: Made) -> None:
    about = attempt(Fact("cy", "c9", "commit", 1, 0, 1, 9)) | {"purpose": "other", "replayed": True}
    made.attempts.append(about)


def receipt_of_another_verdict(made: Made) -> None:
    last(made.attempts, action="a1", status=200)["verdict"] = "held"


def receipt_of_another_reason(made: Made) -> None:
    confirmed(made, "c1").update(status=200, verdict="held", reason="cooldown", points=60)


def row_changed_afterwards(made: Made) -> None:
    """A sound ledger in all, but not the one that its digests are of."""
    made.tables["ledger"][6]["occurred_at"] += 1
    record = last(made.topics[JUDGED.name], offset=6)
    say(record, occurred_at=json.loads(record["value"])["occurred_at"][:-2] + "3Z")


def erased_is_in_the_copy(made: Made) -> None:
    made.whole["z"].append(member(1, FIRST_US, "dee").hex())
    made.whole["m"]["dee"] = order_key(1, FIRST_US).hex()
    made.whole["meta"]["count"] = "3"


def erased_by_half(made: Made) -> None:
    made.tables["players"][3]["username"] = "Dee"


def no_tombstone(made: Made) -> None:
    made.topics[PLAYER.name].pop()
    last(made.offsets, topic=PLAYER.name, partition=0)["end"] -= 1


def second_judgement(made: Made) -> None:
    made.tables["ledger"][4]["kind"] = "decision"


def epoch_of_nobody(made: Made) -> None:
    made.looks.append(made.look(6, 13.0) | {"epoch": LATER})


def never_whole_again(made: Made) -> None:
    made.events = [event for event in made.events if event["what"] != "recovered"]
    made.events.append(made.events[0] | {"at_s": 21.0, "what": "end", "detail": {}})


def whole_again_too_late(made: Made) -> None:
    last(made.events, what="recovered")["detail"] = {"seconds": 31.0}


def verdict_not_told(made: Made) -> None:
    made.topics[JUDGED.name].pop()
    last(made.offsets, topic=JUDGED.name, partition=0)["end"] -= 1


def verdict_told_otherwise(made: Made) -> None:
    say(made.topics[JUDGED.name][6], verdict="held")


def verdict_of_another_instant(made: Made) -> None:
    say(made.topics[JUDGED.name][6], received_at="2026-11-21T00:00:00.000000Z")


def verdict_changed_over_a_redelivery(made: Made) -> None:
    again = made.topics[JUDGED.name][6] | {"offset": 7}
    say(again, points=2)
    made.topics[JUDGED.name].append(again)
    last(made.offsets, topic=JUDGED.name, partition=0)["end"] = 8


def verdict_of_nobody(made: Made) -> None:
    invented = made.topics[JUDGED.name][6] | {"offset": 7}
    say(invented, action_id="zz")
    made.topics[JUDGED.name].append(invented)
    last(made.offsets, topic=JUDGED.name, partition=0)["end"] = 8


def verdicts_out_of_order(made: Made) -> None:
    records = made.topics[JUDGED.name]
    records[0]["value"], records[6]["value"] = records[6]["value"], records[0]["value"]


def change_not_told(made: Made) -> None:
    del made.topics[BOARD_CHANGED.name][3]
    for offset, record in enumerate(made.topics[BOARD_CHANGED.name]):
        record["offset"] = offset
    last(made.offsets, topic=BOARD_CHANGED.name, partition=0)["end"] -= 1


def player_told_otherwise(made: Made) -> None:
    say(made.topics[PLAYER.name][0], username="Eve")


def record_of_the_refused(made: Made) -> None:
    refused = last(made.attempts, action="c0")
    submit(made, "cy", "c0", Fact("cy", "c0", refused["type"], 0, 0, 1, 3).fingerprint)
    made.tables["set_aside"].append({"log": 1, "partition": 1, "record_offset": 3, "reason": "erased"})


CASES: list[tuple[Spoil, str, str]] = [
    (never_sent, "I-2", "action b2 of bo: expected no row: nobody sent it"),
    (only_refused, "I-2", "action b2 of bo: expected no row: only ever refused, {422}"),
    (record_of_nobody, "I-2", "action c9 of cy: expected no record: nobody sent it"),
    (body_of_nobody, "I-3", "action b2 of bo: expected one of the bodies sent"),
    (place_of_a_repeat, "I-3", "action a2 of ada: expected the first record to count, offset 1"),
    (sum_off_by_one, "I-4", "the entry of ada: expected (16, "),
    (delta_off_by_one, "I-4", "ada at revision 4, before: expected (11, "),
    (delta_adds_up_otherwise, "I-4", "ada at revision 2, recounted: expected (10, "),
    (row_without_effect, "I-4", "ada at revision 3: expected a change to (11, "),
    (negative_count, "I-4", "the count at revision 6: expected 2, found -2"),
    (copy_lacks_somebody, "I-5", "bo in the copy"),
    (copy_has_another_score, "I-5", "bo in the copy: expected (8, "),
    (copy_has_another_name, "I-5", "ada in the copy"),
    (copy_behind, "I-5", "the copy's position: expected 6"),
    (copy_of_another_history, "I-5", "the copy's digest at 6"),
    (no_copy, "I-5", "the copy in Redis: expected revision 6, found none"),
    (copy_out_of_order, "I-5", "the copy's order"),
    (copy_with_scores, "I-5", "members of the copy with a score: expected 0, found 1"),
    (half_a_copy, "I-6", "the count of the copy at 5.0 s, at revision 3: expected 3, found 1"),
    (older_than_asked_for, "I-6", f"expected at least {EPOCH}-6, found {EPOCH}-5"),
    (reader_left_behind, "I-7", "the last frame to socket 1 of scores"),
    (reader_shown_nothing, "I-7", "the last frame to socket 2 of scoreboard"),
    (another_content, "I-8", "the top of a frame of scores to socket 1 at 12.0 s, at revision 6"),
    (tie_the_other_way, "I-8", "the top of the top page"),
    (socket_goes_back, "I-8", "socket 4 of scores at 14.0 s"),
    (page_goes_back, "I-8", "the top page of 13.0 to 13.1 s"),
    (revision_of_nobody, "I-8", "the revision of the top page of 12.0"),
    (
        count_below_zero,
        "I-8",
        "the count of the top page of 12.0 to 12.1 s, at revision 6: expected 2, found -1",
    ),
    (rank_one_too_high, "I-8", "the rank of bo of the player page"),
    (receipt_of_another_score, "I-8", "the score of ada of the receipt of a1"),
    (mover_of_another_score, "I-8", "the score of bo of a frame of scoreboard"),
    (
        chain_broken,
        "I-8",
        "the revision before of the record of revision 4, at revision 4: expected 3, found 2",
    ),
    (ledger_chain_broken, "I-8", "the delta of revision 4: expected previous 3, found 2"),
    (top_unlike_the_deltas, "I-8", "the top of the record of revision 4"),
    (change_left_out, "I-8", "the change of ada of the record of revision 4"),
    (two_digests, "I-8", "the digest of the record of revision 4"),
    (copy_shows_another_digest, "I-8", "the digest of the copy at 5.0 s"),
    (
        not_read_to_the_end,
        "I-9",
        "partition 1 of leaderboard.action.submitted.v1: expected read to its end, 3",
    ),
    (group_ahead, "I-9", "the group at partition 1"),
    (record_without_a_place, "I-9", "the record at 3 of partition 1, action x1 of direct-1"),
    (poison_without_a_place, "I-9", "the record at 1 of partition 2, no action"),
    (no_letter, "I-10", "the record at 1 of partition 2: expected a letter"),
    (letter_without_reason, "I-10", "the reason of letter leaderboard.action.submitted.v1-2-1"),
    (
        letter_of_other_bytes,
        "I-10",
        "letter leaderboard.action.submitted.v1-2-1: expected the record's bytes",
    ),
    (letter_of_a_good_record, "I-10", "v1-1-0: expected set aside"),
    (answer_500, "I-11", "action b2 of bo: expected a confirmation, a refusal or 503, found 500 internal"),
    (refused_without_a_word, "I-11", "action a2 of ada: expected Retry-After"),
    (left_hanging, "I-11", "action a2 of ada: expected 503 within some 4 s, found no answer for 0.1 s"),
    (confirmed_on_hope, "I-12", "action b1 of bo: expected a record on the log"),
    (repeat_of_nothing, "I-14", "action c9 of cy: expected a record on the log"),
    (
        receipt_of_another_verdict,
        "I-15",
        "the verdict of action a1 of ada: expected held as its receipt says",
    ),
    (receipt_of_another_reason, "I-15", "the reason of action c1 of cy: expected cooldown"),
    (row_changed_afterwards, "I-15", "the digest of revision 6"),
    (erased_is_shown, "I-18", "dee of the top page of 12.0"),
    (erased_is_in_the_copy, "I-18", "dee: expected not in the copy of main:all-time"),
    (erased_by_half, "I-18", f"player {pid(4)}: expected no id and no name"),
    (no_tombstone, "I-18", f"player {pid(4)}: expected a tombstone last"),
    (epoch_of_nobody, "I-17", "the epoch of the copy at 13.0 s"),
    (never_whole_again, "I-22", "row X-1: expected as before within 30 s, found never"),
    (whole_again_too_late, "I-22", "row X-1: expected as before within 30 s, found after 31.0 s"),
    (verdict_not_told, "I-24", "the verdict on b2 of bo: expected a record on the topic"),
    (
        verdict_told_otherwise,
        "I-24",
        f"verdict of the verdict on b2 of {pid(2)}: expected accepted, found held",
    ),
    (verdict_of_another_instant, "I-24", "received_at of the verdict on b2"),
    (verdict_changed_over_a_redelivery, "I-24", f"the verdict on b2 of {pid(2)}: expected repeated as"),
    (verdict_of_nobody, "I-24", f"the verdict on zz of {pid(2)}: expected no record"),
    (verdicts_out_of_order, "I-24", "the verdict on "),
    (change_not_told, "I-24", "revision 4 of main:all-time"),
    (player_told_otherwise, "I-24", f"player {pid(1)}"),
    (record_of_the_refused, "I-26", "action c0 of cy: expected no record: it was told 422"),
]
