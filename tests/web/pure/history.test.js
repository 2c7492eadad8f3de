import assert from "node:assert/strict";
import { test } from "node:test";

import { Histories } from "../../../web/history.js";

const at = (second) => `2026-11-21T09:00:${String(second).padStart(2, "0")}.000000Z`;
const ms = (second) => Date.parse(at(second));
const r = (revision) => ({ epoch: "a", revision });

test("a line is steps, from what held at the start to what holds now", () => {
  const histories = new Histories();
  histories.note("ada", r(1), 10, at(1), ms(1));
  histories.note("ada", r(2), 20, at(12), ms(12));
  histories.note("ada", r(3), 25, at(14), ms(14));

  assert.deepEqual(histories.steps("ada", ms(10), ms(20)), [[ms(10), ms(12), ms(14), ms(20)].map((each) => each / 1000), [10, 20, 25, 25]]);
  assert.deepEqual(histories.gained("ada", ms(10)), { steps: 2, points: 15n });
  assert.deepEqual(histories.gained("ada", ms(14)), { steps: 0, points: 0n });
  assert.deepEqual(histories.gained("nobody", 0), { steps: 0, points: 0n });
  assert.deepEqual(histories.steps("nobody", 0, 1), [[], []]);
});

test("what comes late is put where it belongs, so every order gives the same line", () => {
  const notes = [[1, 10, 1], [2, 20, 2], [3, 30, 3], [4, 40, 4]];
  const orders = [[0, 1, 2, 3], [0, 3, 1, 2], [3, 2, 1, 0], [2, 0, 3, 1]];

  const lines = orders.map((order) => {
    const histories = new Histories();
    for (const index of order) {
      const [revision, score, second] = notes[index];
      histories.note("ada", r(revision), score, at(second), ms(9));
    }
    return histories.steps("ada", 0, ms(9));
  });

  for (const line of lines) assert.deepEqual(line, lines[0]);
  assert.deepEqual(lines[0][1], [10, 20, 30, 40, 40]);
});

test("a score that holds on is no new point, and the same one heard again neither", () => {
  const histories = new Histories();
  assert.equal(histories.note("ada", r(1), 10, at(1), ms(1)), true);
  assert.equal(histories.note("ada", r(1), 10, at(1), ms(2)), false);
  assert.equal(histories.note("ada", r(5), 10, at(1), ms(5)), false);
  assert.equal(histories.note("ada", r(6), null, null, ms(6)), false);
});

test("points that were taken away count from when that was seen", () => {
  const histories = new Histories();
  histories.note("ada", r(1), 10, at(1), ms(1));
  histories.note("ada", r(2), 20, at(5), ms(5));
  histories.note("ada", r(3), 10, at(1), ms(8));

  assert.deepEqual(histories.steps("ada", 0, ms(8))[1], [10, 20, 10]);
  assert.equal(histories.steps("ada", 0, ms(8))[0].at(-1), ms(8) / 1000);
});

test("players and points are bounded", () => {
  const histories = new Histories(2, 3);
  for (let n = 1; n <= 5; n++) histories.note("ada", r(n), n, at(n), ms(n));
  histories.note("bob", r(6), 1, at(6), ms(6));
  histories.note("eve", r(7), 1, at(7), ms(7));

  assert.deepEqual([...histories.players.keys()], ["bob", "eve"]);
  const one = new Histories(2, 3);
  for (let n = 1; n <= 5; n++) one.note("ada", r(n), n, at(n), ms(n));
  assert.deepEqual(one.steps("ada", 0, ms(5))[1], [3, 4, 5]);
});
