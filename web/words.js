// What is said to a person: verdicts, refusals, ranks and times. Pure.

import { shown } from "./exact.js";

const ordinals = new Intl.PluralRules("en", { type: "ordinal" });
const ENDS = { one: "st", two: "nd", few: "rd", other: "th", zero: "th", many: "th" };

/** @param {number} rank */
export const ordinal = (rank) => `${shown(rank)}${ENDS[ordinals.select(rank)]}`;

/**
 * @param {number | bigint | string} count
 * @param {string} one
 * @param {string} [many]
 */
export const counted = (count, one, many = `${one}s`) => `${shown(count)} ${BigInt(count) === 1n ? one : many}`;

/** A type as people say it: `level_complete` → `Level complete`. @param {string} type */
export const typeName = (type) => {
  const words = type.replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
};

/** @param {number} seconds */
const span = (seconds) => {
  if (seconds % 86_400 === 0) return counted(seconds / 86_400, "day");
  if (seconds % 3600 === 0) return counted(seconds / 3600, "hour");
  if (seconds % 60 === 0) return counted(seconds / 60, "minute");
  return Number.isInteger(seconds) ? counted(seconds, "second") : `${seconds} seconds`;
};

/** @param {number} ms */
export const ago = (ms) => {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 3) return "just now";
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86_400)} d ago`;
};

/** @typedef {{code: string, rule: string | null, limit: number | null, seen: number | null, window_s: number | null}} Reason */

/** Why an action was held or rejected, with the numbers the rule saw. @param {Reason | null} reason */
export const because = (reason) => {
  if (reason === null) return "";
  const { code, limit, seen, window_s } = reason;
  const within = window_s === null || window_s === undefined ? "" : ` within ${span(window_s)}`;
  switch (code) {
    case "rate":
      return `${counted(seen ?? 0, "action")} of this type${within}; the limit is ${shown(limit ?? 0)}.`;
    case "points_rate":
      return `${counted(seen ?? 0, "point")}${within}; the limit is ${shown(limit ?? 0)}.`;
    case "cooldown":
      return limit === null ? "Too soon after the one before." : `Too soon: this type needs ${span(limit)} in between.`;
    case "too_fast":
      return limit === null ? "Too fast." : `Too fast: less than ${limit} ms after the one before.`;
    case "out_of_bounds":
      return "The points are outside what this type allows.";
    case "unknown_type":
      return "There is no such type of action.";
    case "score_below_minimum":
      return "The score would fall below the lowest there is.";
    case "score_overflow":
      return "The score would be larger than scores can be.";
    case "period_final":
      return "This period is over.";
    case "erased":
      return "This player was erased.";
    default:
      return `Rule ${reason.rule ?? code}.`;
  }
};

/**
 * What an answer other than a receipt means for whoever sent the action.
 * @param {{status: number, code: string, detail: string, retryAfterS: number | null}} problem
 */
export const refusal = ({ status, code, detail, retryAfterS }) => {
  const after = retryAfterS === null ? "" : ` Free again in ${counted(retryAfterS, "second")}.`;
  if (status === 0) return "There was no answer. Sent again under the same id, it counts once.";
  if (status === 401) return "The token was not accepted: it may have expired. Use another one.";
  if (status === 403) return "This token does not allow this kind of action.";
  if (status === 409) return "This id already stands for another action, and that one counts.";
  if (status === 429) return `Too many requests.${after}`;
  if (status === 503) return `It cannot be confirmed right now. Sent again under the same id, it counts once.`;
  return detail || code;
};

/** @param {string} name */
export const initials = (name) => {
  const words = name.trim().split(/[\s._@:-]+/u).filter(Boolean);
  const letters = words.length > 1 ? [words[0], words[words.length - 1]] : words;
  return letters.map((word) => [...word][0].toUpperCase()).join("") || "?";
};

/** A hue of 0 to 359 that stays with the id. @param {string} id */
export const hue = (id) => {
  let hash = 2166136261;
  for (let index = 0; index < id.length; index++) {
    hash = Math.imul(hash ^ id.charCodeAt(index), 16777619);
  }
  return (hash >>> 0) % 360;
};
