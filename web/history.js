// Scores over time, as far as this page has seen them: for each player the instants at which the
// score became what it then was. Pure: no clock, no page, no network.

import { compare } from "./standings.js";

/**
 * @typedef {import("./standings.js").Position} Position
 * @typedef {{at: number, score: number | string, position: Position}} Point `at` in ms since 1970
 */

/** Bounded: the least recently seen player and the oldest points go first. */
export class Histories {
  /**
   * @param {number} mostPlayers
   * @param {number} mostPoints of each
   */
  constructor(mostPlayers = 400, mostPoints = 1500) {
    this.mostPlayers = mostPlayers;
    this.mostPoints = mostPoints;
    /** @type {Map<string, Point[]>} */
    this.players = new Map();
  }

  /**
   * A player's score at a position. An entry's own instant says when it came to be; one that lies
   * before that of an earlier position (points were taken away) counts from `nowMs`.
   * @param {string} userId
   * @param {Position} position
   * @param {number | string | null} score null: the player is gone from the board
   * @param {string | null} reachedAt
   * @param {number} nowMs
   * @returns {boolean} whether there is a new point
   */
  note(userId, position, score, reachedAt, nowMs) {
    if (score === null) return false;
    const points = this.players.get(userId) ?? [];
    // what was missed may come after what was read meanwhile
    const index = points.findLastIndex((point) => compare(point.position, position) <= 0) + 1;
    const [before, after] = [points[index - 1], points[index]];
    if (before && (before.score === score || compare(before.position, position) === 0)) return false;
    const reached = reachedAt === null ? NaN : Date.parse(reachedAt);
    const known = Number.isNaN(reached) || (before && reached < before.at) ? nowMs : reached;
    const at = Math.min(Math.max(known, before?.at ?? known), after?.at ?? Infinity);
    points.splice(index, after?.score === score ? 1 : 0, { at, score, position });
    if (points.length > this.mostPoints) points.shift();
    this.players.delete(userId);
    this.players.set(userId, points);
    if (this.players.size > this.mostPlayers) this.players.delete(this.players.keys().next().value);
    return true;
  }

  /**
   * Everything a publication says of players.
   * @param {import("./standings.js").Publication} publication
   * @param {number} nowMs
   */
  fold(publication, nowMs) {
    for (const entry of [...publication.top, ...(publication.changed ?? [])]) {
      this.note(entry.user_id, publication, entry.score, entry.reached_at, nowMs);
    }
  }

  /**
   * By how much and how often a player's score changed since `fromMs`, as far as it was seen.
   * @param {string} userId
   * @param {number} fromMs
   */
  gained(userId, fromMs) {
    const points = this.players.get(userId) ?? [];
    const first = Math.max(0, points.findLastIndex((point) => point.at <= fromMs));
    const steps = Math.max(0, points.length - 1 - first);
    return { steps, points: steps ? BigInt(points.at(-1).score) - BigInt(points[first].score) : 0n };
  }

  /**
   * The steps to draw from `fromMs` until `untilMs`: [instants in s, scores]. What held at the
   * start is its first point, what holds now its last. Empty for a player never seen.
   * @param {string} userId
   * @param {number} fromMs
   * @param {number} untilMs
   * @returns {[number[], number[]]}
   */
  steps(userId, fromMs, untilMs) {
    const points = this.players.get(userId) ?? [];
    if (points.length === 0) return [[], []];
    const within = points.filter((point) => point.at > fromMs);
    const held = points.filter((point) => point.at <= fromMs).at(-1);
    const drawn = held ? [{ at: fromMs, score: held.score }, ...within] : within;
    const last = drawn[drawn.length - 1];
    if (untilMs > last.at) drawn.push({ at: untilMs, score: last.score });
    return [drawn.map((point) => point.at / 1000), drawn.map((point) => Number(point.score))];
  }
}
