import assert from "node:assert/strict";
import { test } from "node:test";

import { compare, gapAbove, later, laterOwn, movements, ownIn, viewOf } from "../../../web/standings.js";

const entry = (rank, user_id, score) => ({ rank, user_id, username: user_id, score, reached_at: "2026-11-21T09:00:00.000000Z" });
const view = (revision, entries, { epoch = "a", count = entries.length, digest } = {}) => ({ epoch, revision, count, entries, digest });

/** Whole numbers below `below`, the same ones for the same seed. */
const drawn = (seed) => {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return (state >>> 8) % below;
  };
};

test("positions are ordered by epoch, then by revision", () => {
  const ordered = [{ epoch: "", revision: 0 }, { epoch: "a", revision: 2 }, { epoch: "a", revision: 10 }, { epoch: "b", revision: 1 }];

  ordered.forEach((one, i) =>
    ordered.forEach((other, j) => assert.equal(Math.sign(compare(one, other)), Math.sign(i - j))),
  );
});

test("whatever the order in which views come, what is shown only goes forward and ends at the latest", () => {
  for (let seed = 1; seed <= 200; seed++) {
    const draw = drawn(seed);
    const offers = Array.from({ length: 20 }, () => view(draw(9), [entry(1, "ada", draw(9))], { epoch: "ab"[draw(2)] }));
    let shown = null;
    for (const offer of offers) {
      const next = later(shown, offer, 10);
      if (shown !== null) assert.ok(compare(next, shown) >= 0);
      shown = next;
    }
    const latest = offers.reduce((one, other) => (compare(other, one) > 0 ? other : one));
    assert.equal(compare(shown, latest), 0);
  }
});

test("a view is never made of two revisions", () => {
  const shown = view(5, [entry(1, "ada", 5)], { digest: "five" });

  assert.equal(later(shown, view(4, [entry(1, "bob", 9)]), 10), shown);
  const next = view(6, [entry(1, "bob", 9)]);
  assert.equal(later(shown, next, 10), next);
});

test("where more is wanted than the feed has, its top does not replace the longer list", () => {
  const long = view(5, Array.from({ length: 25 }, (_, n) => entry(n + 1, `u${n}`, 100 - n)), { count: 40 });
  const top = view(6, long.entries.slice(0, 10), { count: 40 });

  assert.equal(later(long, top, 25), long);
  assert.equal(later(long, top, 10), top);
  assert.equal(later(null, top, 25), top);
});

test("of one position the longer list is shown, and keeps the digest that the other had", () => {
  const top = view(5, [entry(1, "ada", 5)], { count: 2, digest: "five" });
  const page = view(5, [entry(1, "ada", 5), entry(2, "bob", 4)], { count: 2 });

  assert.deepEqual(later(top, page, 25), { ...page, digest: "five" });
  assert.deepEqual(later(page, top, 25), { ...page, digest: "five" });
});

test("a publication is a view of its top", () => {
  const publication = { epoch: "a", revision: 3, previous: 2, digest: "d", count: 1, top: [entry(1, "ada", 5)], changed: [], changed_count: 0 };

  assert.deepEqual(viewOf(publication), view(3, [entry(1, "ada", 5)], { digest: "d" }));
});

test("movements say who rose, fell, gained and came", () => {
  const before = view(1, [entry(1, "ada", 9), entry(2, "bob", 8), entry(3, "eve", 7)], { count: 4 });
  const after = view(2, [entry(1, "bob", 10), entry(2, "ada", 9), entry(3, "joy", 8)], { count: 4 });

  assert.deepEqual(Object.fromEntries(movements(before, after)), {
    bob: { by: 1, gained: 2n, entered: false },
    ada: { by: -1, gained: 0n, entered: false },
    joy: { by: 0, gained: 0n, entered: true },
  });
  assert.equal(movements(null, after).size, 0);
});

test("who appears because the list became longer has not entered", () => {
  const before = view(1, [entry(1, "ada", 9)], { count: 2 });
  const after = view(2, [entry(1, "ada", 9), entry(2, "bob", 8)], { count: 2 });

  assert.equal(movements(before, after).has("bob"), false);
});

test("gains are exact beyond 2^53", () => {
  const before = view(1, [entry(1, "ada", "9007199254740992")]);
  const after = view(2, [entry(1, "ada", "9007199254740993")]);

  assert.equal(movements(before, after).get("ada").gained, 1n);
});

test("one's own line is taken from a view that has it, and left where the view cannot tell", () => {
  const known = { epoch: "a", revision: 4, entry: entry(12, "me", 3) };
  const top = view(5, [entry(1, "ada", 9)], { count: 20 });

  assert.equal(ownIn(known, top, "me"), known);
  assert.equal(ownIn(known, view(3, [entry(1, "me", 9)]), "me"), known);
  assert.deepEqual(ownIn(known, view(6, [entry(1, "me", 9)]), "me"), { epoch: "a", revision: 6, entry: entry(1, "me", 9) });
  assert.deepEqual(ownIn(known, view(6, [entry(1, "ada", 9)]), "me"), { epoch: "a", revision: 6, entry: null });
  assert.equal(laterOwn(known, { epoch: "a", revision: 3, entry: null }), known);
});

test("the gap is to the next place above, or to the last that is shown", () => {
  const top = view(5, [entry(1, "ada", 9), entry(2, "me", 4)], { count: 20 });

  assert.deepEqual(gapAbove(top, entry(2, "me", 4)), { ahead: entry(1, "ada", 9), points: 5n });
  assert.equal(gapAbove(top, entry(15, "far", 1)).points, 3n);
  assert.equal(gapAbove(top, entry(1, "ada", 9)), null);
  assert.equal(gapAbove(top, null), null);
});
