// Whole numbers of 64 bits: JSON.parse rounds beyond 2^53, and a leaderboard that rounds is none.
//
// Scores and points are numbers where they are exact as numbers, else strings of digits; what is
// here takes both.

const LARGE = /((?:score|points)":\s*)(-?\d{16,})/g;

/**
 * JSON text with every large score as a string. The quotation mark before the colon is one that
 * ends a name: within a string it would have a backslash before it.
 * @param {string} text
 */
export const exactly = (text) => text.replace(LARGE, '$1"$2"');

/** @param {string} text */
export const parse = (text) => JSON.parse(exactly(text));

/** A WebSocket whose messages keep their large numbers; for clients that parse by themselves. */
export const exactSocket = () =>
  class extends WebSocket {
    set onmessage(handler) {
      super.onmessage = handler && ((event) => handler({ data: exactly(event.data) }));
    }
  };

/** @typedef {number | string} Score */

const plain = new Intl.NumberFormat("en");
const signed = new Intl.NumberFormat("en", { signDisplay: "always" });

/** @param {Score | bigint} score */
export const shown = (score) => plain.format(BigInt(score)).replace("-", "−");

/** @param {Score | bigint} change */
export const shownChange = (change) => signed.format(BigInt(change)).replace("-", "−");
