// The board as it is known at this moment, kept up to date: by the feed, by reading where the feed
// does not reach (below the top ten, one's own line), and by reading alone while the feed is away.

import * as api from "./api.js";
import { Histories } from "./history.js";
import { paced } from "./pace.js";
import { BEFORE_ALL, TOP, compare, later, laterOwn, ownIn, viewOf, viewOfPage } from "./standings.js";

const READ_GAP_MS = 700;
const READ_EVERY_MS = 3_000;
const AGAIN_MS = 2_000;
const WHOLE = 500;

/**
 * @typedef {import("./standings.js").View} View
 * @typedef {{code: string, status: number, againAt: number} | null} Trouble why the last reading failed
 */

export class Live {
  /** @param {() => void} changed something to show is new */
  constructor(changed) {
    this.changed = changed;
    /** @type {View | null} */
    this.view = null;
    /** @type {import("./standings.js").Own | null} */
    this.own = null;
    /** @type {import("./standings.js").Own | null} a chosen player's line */
    this.chosen = null;
    this.histories = new Histories();
    /** @type {Trouble} */
    this.trouble = null;
    this.latest = BEFORE_ALL;
    this.depth = TOP;
    this.ownId = "";
    this.chosenId = "";
    this.changedAt = 0;
    this.feed = "connecting";
    this.readPage = paced(() => this.#readPage(), READ_GAP_MS);
    this.readOwn = paced(() => this.#readPlayer("own"), READ_GAP_MS);
    this.readChosen = paced(() => this.#readPlayer("chosen"), READ_GAP_MS);
    setInterval(() => this.#meanwhile(), READ_EVERY_MS);
  }

  /** @param {import("./feed.js").State} state */
  feedIs(state) {
    const was = this.feed;
    this.feed = state;
    if (state === "live") {
      this.trouble = null;
      // a first verdict may have come while nobody was told
      if (this.own?.entry === null) this.own = null;
      this.#follow();
    }
    if (state !== "live" && (was === "live" || this.view === null)) this.readPage(null);
    this.changed();
  }

  /** @param {import("./standings.js").Publication} publication */
  publication(publication) {
    this.histories.fold(publication, Date.now());
    this.#know(publication);
    if (this.depth > TOP && publication.count > TOP) this.readPage(null);
    this.#offer(viewOf(publication));
  }

  /** What a verdict says of one's own line. @param {any} receipt */
  receipt(receipt) {
    if (receipt.judged_revision === undefined || receipt.epoch === undefined) return;
    this.#know(receipt);
    if (this.feed !== "live") this.readPage(null);
    const { epoch, revision, user_id, rank, score, received_at } = receipt;
    if (user_id !== this.ownId || rank === null) return;
    const username = this.own?.entry?.username ?? "";
    this.own = laterOwn(this.own, { epoch, revision, entry: { rank, user_id, username, score, reached_at: received_at } });
    this.#follow();
    this.changed();
  }

  /** @param {number} depth */
  showMore(depth) {
    this.depth = depth;
    if (this.view && this.view.entries.length < Math.min(depth, this.view.count)) this.readPage(null);
    this.changed();
  }

  /** @param {string} userId */
  setOwn(userId) {
    this.ownId = userId;
    this.own = null;
    this.#follow();
    this.changed();
  }

  /** @param {string} userId */
  choose(userId) {
    this.chosenId = userId;
    this.chosen = null;
    this.#follow();
    this.changed();
  }

  /** Try at once what failed: the network is back, or the page is looked at again. */
  again() {
    this.trouble = null;
    if (this.feed !== "live") this.readPage(null);
    this.#follow();
  }

  /** @param {import("./standings.js").Position} position */
  #know({ epoch, revision }) {
    if (compare({ epoch, revision }, this.latest) > 0) this.latest = { epoch, revision };
  }

  /** @param {View} view */
  #offer(view) {
    this.#know(view);
    const shown = later(this.view, view, this.depth);
    if (shown === this.view) return;
    const moved = this.view === null || compare(shown, this.view) > 0;
    if (moved) this.changedAt = this.view === null ? latestInstant(shown) : Date.now();
    this.view = shown;
    for (const entry of shown.entries) {
      this.histories.note(entry.user_id, shown, entry.score, entry.reached_at, Date.now());
    }
    this.#follow();
    this.changed();
  }

  /** Have the lines of those who are watched, from the view or by asking. */
  #follow() {
    this.#keepUp("own", this.ownId, this.readOwn);
    this.#keepUp("chosen", this.chosenId, this.readChosen);
  }

  /** @param {"own" | "chosen"} which @param {string} userId @param {(argument: null) => void} read */
  #keepUp(which, userId, read) {
    if (!userId) return;
    if (this.view) this[which] = ownIn(this[which], this.view, userId);
    const known = this[which];
    // who has no line gets one by a verdict, which is told
    if (known === null || (known.entry !== null && compare(known, this.latest) < 0)) read(null);
  }

  #mayAsk() {
    return navigator.onLine || this.feed === "live";
  }

  async #readPage() {
    if (!this.#mayAsk()) return;
    try {
      const page = await api.standings(Math.max(this.depth, TOP), after(this.view, this.latest));
      this.trouble = null;
      this.#offer(viewOfPage(page));
      if (this.view && compare(this.view, this.latest) < 0) this.readPage(null);
      this.changed();
    } catch (problem) {
      this.#troubled(problem);
    }
  }

  /** @param {"own" | "chosen"} which */
  async #readPlayer(which) {
    const userId = which === "own" ? this.ownId : this.chosenId;
    // who was found to have no line is told of the first one
    if (!userId || !this.#mayAsk() || this.view === null || this[which]?.entry === null) return;
    try {
      const line = await this.#lineOf(userId, this[which] === null);
      if (userId !== (which === "own" ? this.ownId : this.chosenId)) return;
      this.#know(line);
      this[which] = laterOwn(this[which], line);
      if (line.entry) this.histories.note(userId, line, line.entry.score, line.entry.reached_at, Date.now());
      this.changed();
    } catch (problem) {
      if (problem instanceof api.Problem && this.feed !== "live") this.#troubled(problem);
      else setTimeout(() => this.#follow(), AGAIN_MS);
    }
  }

  /**
   * A player's line. One who may have none is looked for in the whole of a small board, since
   * browsers note every 404 as an error.
   * @param {string} userId
   * @param {boolean} mayHaveNone
   */
  async #lineOf(userId, mayHaveNone) {
    if (!mayHaveNone || this.view === null || this.view.count > WHOLE) return api.player(userId, this.latest);
    const page = await api.standings(WHOLE, this.latest);
    if (page.next !== null) return api.player(userId, this.latest);
    return ownIn(null, viewOfPage(page), userId);
  }

  /** @param {any} problem */
  #troubled(problem) {
    if (!(problem instanceof api.Problem)) throw problem;
    const pauseMs = Math.max(AGAIN_MS, (problem.retryAfterS ?? 0) * 1000);
    this.trouble = { code: problem.code, status: problem.status, againAt: Date.now() + pauseMs };
    setTimeout(() => {
      if (this.trouble) this.readPage(null);
    }, pauseMs);
    this.changed();
  }

  /** Reading instead of the feed. */
  #meanwhile() {
    if (this.feed !== "live" && !document.hidden && this.trouble === null) this.readPage(null);
  }
}

/**
 * What to ask a page for: the next revision of what is shown, not the latest there is. Where much
 * happens, waiting for that would take longer than the next few revisions.
 * @param {View | null} view
 * @param {import("./standings.js").Position} latest
 */
const after = (view, latest) =>
  view && view.epoch === latest.epoch && view.revision < latest.revision
    ? { epoch: view.epoch, revision: view.revision + 1 }
    : latest;

/** @param {View} view */
const latestInstant = (view) => Math.max(0, ...view.entries.map((entry) => Date.parse(entry.reached_at) || 0));
