// What is known of a board: views, each at one position, of which only later ones are ever taken.
//
// A view is never put together from two revisions. Pure: no clock, no page, no network.

/**
 * @typedef {{epoch: string, revision: number}} Position
 * @typedef {{rank: number, user_id: string, username: string, score: number | string, reached_at: string}} Entry
 * @typedef {Position & {count: number, entries: Entry[], digest?: string}} View
 * @typedef {Position & {previous: number, digest: string, count: number, top: Entry[],
 *   changed?: {user_id: string, username: string, score: number | string | null, reached_at: string | null}[],
 *   changed_count?: number}} Publication
 */

/** How many entries a publication has. */
export const TOP = 10;

/** @type {Position} */
export const BEFORE_ALL = { epoch: "", revision: 0 };

/**
 * Less than 0 where `one` is the earlier. Epochs sort by time, revisions within an epoch.
 * @param {Position} one
 * @param {Position} other
 */
export const compare = (one, other) =>
  one.epoch === other.epoch ? one.revision - other.revision : one.epoch < other.epoch ? -1 : 1;

/**
 * A position as `at_least` takes it.
 * @param {Position} position
 */
export const spelled = ({ epoch, revision }) => `${epoch}-${revision}`;

/**
 * A publication or the snapshot before the first, as a view of the top.
 * @param {Publication} publication
 * @returns {View}
 */
export const viewOf = ({ epoch, revision, digest, count, top }) => ({
  epoch,
  revision,
  digest,
  count,
  entries: top.slice(0, TOP),
});

/**
 * A page of the standings as a view.
 * @param {View} page
 * @returns {View}
 */
export const viewOfPage = ({ epoch, revision, count, entries }) => ({ epoch, revision, count, entries });

/**
 * The view to show of two: the later; of one position the longer, with what the other knows of it.
 * @param {View | null} shown
 * @param {View} offered
 * @param {number} depth entries that are wanted
 * @returns {View | null}
 */
export const later = (shown, offered, depth) => {
  const whole = offered.entries.length >= Math.min(depth, offered.count);
  if (shown === null) return offered;
  const order = compare(offered, shown);
  if (order > 0) return whole ? offered : shown;
  if (order < 0) return shown;
  if (offered.entries.length > shown.entries.length) return { ...offered, digest: offered.digest ?? shown.digest };
  if (shown.digest === undefined && offered.digest !== undefined) return { ...shown, digest: offered.digest };
  return shown;
};

/**
 * How ranks and scores changed between two views, by user id: `by` places up (down: negative),
 * `gained` points as bigint; `entered` for those the earlier view did not have.
 * @param {View | null} before
 * @param {View} after
 * @returns {Map<string, {by: number, gained: bigint, entered: boolean}>}
 */
export const movements = (before, after) => {
  const moved = new Map();
  if (before === null) return moved;
  const known = new Map(before.entries.map((entry) => [entry.user_id, entry]));
  for (const entry of after.entries) {
    const was = known.get(entry.user_id);
    if (was === undefined) {
      // a longer list is no news of those who were below it
      if (entry.rank <= before.entries.length || before.entries.length >= before.count) {
        moved.set(entry.user_id, { by: 0, gained: 0n, entered: true });
      }
    } else {
      const by = was.rank - entry.rank;
      const gained = BigInt(entry.score) - BigInt(was.score);
      if (by !== 0 || gained !== 0n) moved.set(entry.user_id, { by, gained, entered: false });
    }
  }
  return moved;
};

/**
 * One player's own line, kept from whatever names it last.
 * @typedef {Position & {entry: Entry | null}} Own
 */

/**
 * @param {Own | null} known
 * @param {View} view
 * @param {string} userId
 * @returns {Own | null} the line as of the view, if the view can tell, else what was known
 */
export const ownIn = (known, view, userId) => {
  if (known !== null && compare(view, known) < 0) return known;
  const entry = view.entries.find((each) => each.user_id === userId);
  if (entry) return { epoch: view.epoch, revision: view.revision, entry };
  if (view.entries.length >= view.count) return { epoch: view.epoch, revision: view.revision, entry: null };
  return known;
};

/**
 * The later of two lines.
 * @param {Own | null} known
 * @param {Own} offered
 */
export const laterOwn = (known, offered) =>
  known === null || compare(offered, known) >= 0 ? offered : known;

/**
 * What a player is short of the next place above, as far as the view shows it.
 * @param {View} view
 * @param {Entry | null} own
 * @returns {{ahead: Entry, points: bigint} | null}
 */
export const gapAbove = (view, own) => {
  if (own === null || own.rank === 1) return null;
  const above = view.entries.filter((each) => each.rank < own.rank && each.user_id !== own.user_id);
  const ahead = above.at(-1);
  return ahead ? { ahead, points: BigInt(ahead.score) - BigInt(own.score) } : null;
};
