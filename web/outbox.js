// The actions this page has sent, and what became of each. An action keeps its id for ever, so
// sending it again is always safe; without an answer it is sent again by itself.

const AGAIN_S = [1, 2, 4, 8];
const ASK_AFTER_MS = [700, 1_500, 3_000, 6_000, 12_000, 30_000];
const MOST = 50;

/**
 * @typedef {{action_id: string, type: string, points?: number}} Action
 * @typedef {"sending" | "waiting" | "submitted" | "accepted" | "held" | "rejected" | "refused"} Status
 * @typedef {{action: Action, status: Status, at: number, receipt: any, problem: any, tries: number, replayed: boolean}} Item
 *   `waiting`: it is sent again in a moment; `refused`: it was not taken, and is not sent again by itself
 */

/** An id nobody else has. */
export const freshId = () =>
  [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

export class Outbox {
  /**
   * @param {{send: (action: Action) => Promise<any>, ask: (actionId: string) => Promise<any>, changed: (item: Item | null) => void}} outside
   *   `changed` is told of each item whose state is new; null where the list was emptied
   */
  constructor(outside) {
    this.outside = outside;
    /** @type {Item[]} the latest first */
    this.items = [];
  }

  /** @param {Omit<Action, "action_id">} action */
  add(action) {
    const item = this.#item({ action_id: freshId(), ...action });
    this.items.unshift(item);
    this.items.length = Math.min(this.items.length, MOST);
    void this.#send(item);
    return item;
  }

  /** Send the same action once more. @param {Item} item */
  repeat(item) {
    if (item.status === "sending") return;
    item.tries = 0;
    void this.#send(item);
  }

  /** A verdict from wherever: of an action of another page of the same person, too. @param {any} receipt */
  judged(receipt) {
    let item = this.items.find((each) => each.action.action_id === receipt.action_id);
    if (!item) {
      item = this.#item({ action_id: receipt.action_id, type: receipt.type });
      item.at = Date.parse(receipt.received_at) || item.at;
      this.items.unshift(item);
      this.items.length = Math.min(this.items.length, MOST);
    }
    this.#take(item, receipt);
  }

  clear() {
    this.items = [];
    this.outside.changed(null);
  }

  /** @param {Action} action @returns {Item} */
  #item(action) {
    return { action, status: "sending", at: Date.now(), receipt: null, problem: null, tries: 0, replayed: false };
  }

  /** @param {Item} item @param {Status} status */
  #set(item, status) {
    item.status = status;
    if (this.items.includes(item)) this.outside.changed(item);
  }

  /** @param {Item} item */
  async #send(item) {
    item.tries += 1;
    item.problem = null;
    this.#set(item, "sending");
    try {
      const receipt = await this.outside.send(item.action);
      item.replayed = receipt.replayed;
      // the verdict may have been quicker than the answer
      if (item.receipt?.judged_revision === undefined || receipt.status !== "submitted") this.#take(item, receipt);
      else this.#set(item, item.receipt.status);
    } catch (problem) {
      item.problem = problem;
      const mayHelp = problem.status === 0 || problem.status >= 500 || problem.status === 408 || problem.status === 429;
      const pauseS = Math.max(AGAIN_S[item.tries - 1] ?? 0, problem.retryAfterS ?? 0);
      if (!mayHelp || item.tries > AGAIN_S.length) {
        // what was judged stays so, whatever became of sending it once more
        this.#set(item, item.receipt?.judged_revision === undefined ? "refused" : item.receipt.status);
        return;
      }
      this.#set(item, "waiting");
      setTimeout(() => {
        if (item.status === "waiting" && this.items.includes(item)) void this.#send(item);
      }, pauseS * 1000);
    }
  }

  /** @param {Item} item @param {any} receipt */
  #take(item, receipt) {
    item.receipt = receipt;
    item.problem = null;
    this.#set(item, receipt.status);
    if (receipt.status === "submitted") void this.#ask(item, 0);
  }

  /** Ask for a verdict that nobody has told. @param {Item} item @param {number} nth */
  async #ask(item, nth) {
    if (nth >= ASK_AFTER_MS.length) return;
    await new Promise((resolve) => setTimeout(resolve, ASK_AFTER_MS[nth]));
    if (item.status !== "submitted" || !this.items.includes(item)) return;
    try {
      const receipt = await this.outside.ask(item.action.action_id);
      if (item.status !== "submitted") return;
      if (receipt.status !== "submitted") {
        this.#take(item, { ...receipt, replayed: item.replayed });
        return;
      }
    } catch {
      // it is asked for again below
    }
    void this.#ask(item, nth + 1);
  }
}
