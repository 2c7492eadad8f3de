// The list of one's own actions: each with its verdict, as soon as there is one.

import { shown, shownChange } from "./exact.js";
import { icon, make } from "./make.js";
import { ago, because, ordinal, refusal, typeName } from "./words.js";

const SHOWN = 12;

const HEADS = {
  sending: "Sending",
  waiting: "Not confirmed yet",
  submitted: "Confirmed, to be judged",
  accepted: "Accepted",
  held: "Held for review",
  rejected: "Rejected",
  refused: "Not taken",
};
const ICONS = { accepted: "accepted", held: "held", rejected: "rejected", refused: "rejected" };

export class Verdicts {
  /** @param {HTMLElement} list @param {(item: import("./outbox.js").Item) => void} repeat */
  constructor(list, repeat) {
    this.list = list;
    this.repeat = repeat;
    /** @type {Map<import("./outbox.js").Item, HTMLElement>} */
    this.lines = new Map();
  }

  /** @param {import("./outbox.js").Item[]} items the latest first */
  show(items) {
    const wanted = items.slice(0, SHOWN);
    for (const [item, line] of this.lines) {
      if (!wanted.includes(item)) {
        this.lines.delete(item);
        line.remove();
      }
    }
    wanted.forEach((item, index) => {
      let line = this.lines.get(item);
      if (!line) this.lines.set(item, (line = make("li", "verdict")));
      this.#write(line, item);
      if (this.list.children[index] !== line) this.list.insertBefore(line, this.list.children[index]);
    });
  }

  /** The times, again. */
  tick() {
    for (const [item, line] of this.lines) line.querySelector("time").textContent = ago(Date.now() - item.at);
  }

  /** @param {HTMLElement} line @param {import("./outbox.js").Item} item */
  #write(line, item) {
    const signature = `${item.status}|${item.tries}|${item.replayed}|${item.receipt?.revision ?? ""}`;
    if (line.dataset.signature === signature) return;
    line.dataset.signature = signature;
    line.dataset.status = item.status;
    const points = worth(item);
    const time = make("time", "quiet", ago(Date.now() - item.at));
    time.dateTime = new Date(item.at).toISOString();
    const head = make("p", "verdict-head", make("span", "type", typeName(item.action.type)));
    if (points) head.append(make("span", "worth", points));
    head.append(time);
    const body = make("p", "verdict-body", make("strong", "", HEADS[item.status]), rest(item));
    const mark = make("span", "verdict-mark", icon(ICONS[item.status] ?? "waiting"));
    const again = make("button", "again", icon("rebuilding"));
    again.type = "button";
    again.setAttribute("aria-label", `Send again: ${typeName(item.action.type)}`);
    again.title = "Send the same action again: it counts once";
    again.disabled = item.status === "sending" || item.status === "waiting";
    again.addEventListener("click", () => this.repeat(item));
    // the button that has the focus keeps it
    const focused = line.contains(document.activeElement);
    line.replaceChildren(mark, head, again, body);
    if (focused) again.focus();
  }
}

/** @param {import("./outbox.js").Item} item */
const worth = ({ receipt, action, status }) => {
  if (status === "accepted") return shownChange(receipt.points);
  if (receipt?.points !== undefined) return shown(receipt.points);
  return action.points === undefined ? "" : shown(action.points);
};

/** What there is to say beside the verdict itself. @param {import("./outbox.js").Item} item */
const rest = ({ status, receipt, problem, replayed }) => {
  if (status === "waiting" || status === "refused") return `. ${refusal(problem)}`;
  if (status === "held" || status === "rejected") return `. ${because(receipt.reason)}`;
  const counted = replayed ? " Sent again: counted once." : "";
  if (status !== "accepted") return counted && `.${counted}`;
  const place = receipt.rank === null || receipt.rank === undefined ? "" : `, ${ordinal(receipt.rank)} with ${shown(receipt.score)}`;
  return `${place} at revision ${shown(receipt.revision)}.${counted}`;
};

/** The same for whoever listens. @param {import("./outbox.js").Item} item */
export const spoken = (item) => `${typeName(item.action.type)}: ${HEADS[item.status]}${rest(item)}`;
