// The calls the page makes. Every answer is either what was asked for or a Problem.

import { parse } from "./exact.js";
import { spelled } from "./standings.js";

const LONGEST_MS = 15_000;

/** An answer that is not what was asked for; status 0: there was none. */
export class Problem extends Error {
  /**
   * @param {number} status
   * @param {string} code
   * @param {string} detail
   * @param {number | null} retryAfterS
   * @param {import("./standings.js").Position | null} position what it is true of, if it says so
   */
  constructor(status, code, detail, retryAfterS, position = null) {
    super(detail);
    this.status = status;
    this.code = code;
    this.detail = detail;
    this.retryAfterS = retryAfterS;
    this.position = position;
  }
}

/**
 * @param {string} path
 * @param {RequestInit} [options]
 * @returns {Promise<any>}
 */
const call = async (path, options = {}) => {
  let response, text;
  try {
    response = await fetch(path, {
      ...options,
      cache: "no-store",
      credentials: "omit",
      signal: AbortSignal.timeout(LONGEST_MS),
    });
    text = await response.text();
  } catch {
    throw new Problem(0, "no_answer", "There was no answer.", null);
  }
  let body = null;
  try {
    body = parse(text);
  } catch {
    // a proxy's page, say: its status tells enough
  }
  if (response.ok && body !== null) return body;
  const retryAfter = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  throw new Problem(
    response.status,
    body?.code ?? "unexpected",
    body?.detail ?? `The answer was ${response.status}.`,
    Number.isNaN(retryAfter) ? null : retryAfter,
    positionOf(response.headers),
  );
};

/** @param {Headers} headers */
const positionOf = (headers) => {
  const epoch = headers.get("Trueboard-Epoch");
  const revision = Number.parseInt(headers.get("Trueboard-Revision") ?? "", 10);
  return epoch && !Number.isNaN(revision) ? { epoch, revision } : null;
};

/** @param {string | null} token */
const bearer = (token) => (token ? { Authorization: `Bearer ${token}` } : {});

/** Where the feed is, and the types of action there are. */
export const about = () => call("/page.json");

/**
 * A page of the board from the top, at this position or a later one.
 * @param {number} limit
 * @param {import("./standings.js").Position | null} atLeast
 */
export const standings = (limit, atLeast) => {
  const query = new URLSearchParams({ limit: String(limit) });
  if (atLeast?.revision) query.set("at_least", spelled(atLeast));
  return call(`/v1/boards/main/standings?${query}`);
};

/**
 * One player's line; `entry` null for one without.
 * @param {string} userId
 * @param {import("./standings.js").Position | null} atLeast
 */
export const player = async (userId, atLeast) => {
  const query = atLeast?.revision ? `?at_least=${spelled(atLeast)}` : "";
  try {
    return await call(`/v1/boards/main/players/${encodeURIComponent(userId)}${query}`);
  } catch (problem) {
    if (problem instanceof Problem && problem.status === 404 && problem.position) {
      return { ...problem.position, entry: null };
    }
    throw problem;
  }
};

/**
 * Send an action: its receipt.
 * @param {{action_id: string, type: string, points?: number}} action
 * @param {string} token
 */
export const send = (action, token) =>
  call("/v1/actions", {
    method: "POST",
    headers: { ...bearer(token), "Content-Type": "application/json" },
    body: JSON.stringify(action),
  });

/**
 * @param {string} actionId
 * @param {string} token
 */
export const receipt = (actionId, token) =>
  call(`/v1/actions/${encodeURIComponent(actionId)}`, { headers: bearer(token) });
