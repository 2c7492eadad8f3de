import assert from "node:assert/strict";
import { test } from "node:test";

import { exactly, parse, shown, shownChange } from "../../../web/exact.js";
import { ago, because, hue, initials, ordinal, refusal } from "../../../web/words.js";
import { read } from "../../../web/token.js";

test("large scores keep all their digits, and only they become strings", () => {
  assert.deepEqual(parse('{"score":9007199254740993,"points":-9223372036854775808,"rank":1,"revision":12}'), {
    score: "9007199254740993",
    points: "-9223372036854775808",
    rank: 1,
    revision: 12,
  });
  assert.equal(shown("9007199254740993"), "9,007,199,254,740,993");
  assert.equal(shown(-1200), "−1,200");
});

test("text that looks like a score stays text", () => {
  const body = JSON.stringify({ username: '"score":12345678901234567890', score: 1 });

  assert.equal(exactly(body), body);
});

test("changes bear a sign", () => {
  assert.deepEqual([10n, -10n, 0n].map(shownChange), ["+10", "−10", "+0"]);
});

test("ranks are ordinals", () => {
  assert.deepEqual([1, 2, 3, 4, 11, 12, 13, 21, 102, 1111].map(ordinal), ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "102nd", "1,111th"]);
});

test("times are rough, and never in the future", () => {
  assert.deepEqual([-5000, 0, 4000, 61_000, 7_200_000, 200_000_000].map(ago), ["just now", "just now", "4 s ago", "1 min ago", "2 h ago", "2 d ago"]);
});

test("a verdict's reason is said with its numbers", () => {
  assert.equal(because({ code: "rate", rule: "r", limit: 30, seen: 31, window_s: 60 }), "31 actions of this type within 1 minute; the limit is 30.");
  assert.equal(because({ code: "points_rate", rule: "r", limit: 5000, seen: 5010, window_s: 3600 }), "5,010 points within 1 hour; the limit is 5,000.");
  assert.equal(because({ code: "something_new", rule: "types.x.y", limit: null, seen: null, window_s: null }), "Rule types.x.y.");
  assert.equal(because(null), "");
});

test("a refusal says what to do", () => {
  assert.match(refusal({ status: 429, code: "rate_limited", detail: "", retryAfterS: 3 }), /3 seconds/);
  assert.match(refusal({ status: 401, code: "invalid_token", detail: "", retryAfterS: null }), /token/);
  assert.equal(refusal({ status: 422, code: "x", detail: "So it is.", retryAfterS: null }), "So it is.");
});

test("faces have initials and a colour that stays", () => {
  assert.deepEqual(["Ada Lovelace", "ada", "u-12ab", "  ", "Ø", "李 小龙", "👩‍🚀 x"].map(initials).slice(0, 6), ["AL", "A", "U1", "?", "Ø", "李小"]);
  assert.equal(hue("ada"), hue("ada"));
  assert.ok(hue("ada") >= 0 && hue("ada") < 360);
});

test("a token is read as far as it is one", () => {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const token = `${part({})}.${part({ sub: "ada", name: "Ada Ł", scope: "a b", exp: 10 })}.x`;

  assert.deepEqual(read(` ${token}\n`), { raw: token, userId: "ada", name: "Ada Ł", scopes: new Set(["a", "b"]), expiresAtMs: 10_000 });
  for (const none of ["", "a.b", "a.b.c", `${part({})}.${part({ sub: 1, exp: 2 })}.x`]) assert.equal(read(none), null);
});
