// The rows of the board: each player has one row for as long as they are shown, and it moves.
//
// A row glides from where it was seen to where it belongs now (first, last, invert, play), so that
// an overtaking can be followed. What is written in a row is always of the view's one revision.

import { shown, shownChange } from "./exact.js";
import { face, icon, make } from "./make.js";
import { counted } from "./words.js";

const GLIDE_MS = 520;
const LEAVE_MS = 260;
const NEWS_MS = 7_000;
const LONG = 12;
const EASE = "cubic-bezier(.22, .8, .2, 1)";

const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** @typedef {import("./standings.js").Entry} Entry */

class Row {
  /** @param {string} userId @param {(userId: string) => void} choose */
  constructor(userId, choose) {
    this.userId = userId;
    this.rank = make("span", "rank");
    this.move = make("span", "move");
    this.name = make("span", "name");
    this.tag = make("span", "tag", "You");
    this.button = make("button", "who");
    this.button.type = "button";
    this.button.tabIndex = -1;
    this.face = face(userId, userId);
    this.id = make("span", "id");
    this.button.append(this.face, make("span", "names", this.name, this.tag, this.id));
    this.button.addEventListener("click", () => choose(userId));
    this.gain = make("span", "gain");
    this.gain.setAttribute("aria-hidden", "true");
    this.score = make("span", "score");
    this.bar = make("span", "bar");
    this.bar.setAttribute("aria-hidden", "true");

    this.element = make("tr", "row");
    this.element.setAttribute("role", "row");
    this.element.append(
      cell("place", this.rank, this.move),
      cell("player", this.button, this.bar),
      cell("points", this.gain, this.score),
    );
    this.news = 0;
    this.glide = null;
  }

  /** @param {Entry} entry @param {{own: boolean, chosen: boolean, share: number}} how */
  write(entry, { own, chosen, share }) {
    text(this.rank, shown(entry.rank));
    this.element.dataset.place = entry.rank <= 3 ? String(entry.rank) : "";
    if (text(this.name, entry.username)) this.face.replaceWith((this.face = face(entry.user_id, entry.username)));
    text(this.id, entry.username === entry.user_id ? "" : entry.user_id);
    text(this.score, shown(entry.score));
    this.score.classList.toggle("is-long", this.score.textContent.length > LONG);
    this.tag.hidden = !own;
    this.element.classList.toggle("is-own", own);
    this.element.classList.toggle("is-chosen", chosen);
    this.button.setAttribute("aria-pressed", String(chosen));
    this.bar.style.setProperty("--share", share.toFixed(4));
  }

  /** Say for a while what has changed. @param {{by: number, gained: bigint, entered: boolean}} moved */
  tell({ by, gained, entered }) {
    if (by === 0 && gained === 0n && !entered) return;
    clearTimeout(this.news);
    if (by !== 0 || entered) {
      const word = entered ? "new here" : `${by > 0 ? "up" : "down"} ${counted(Math.abs(by), "place")}`;
      this.move.replaceChildren(
        ...(entered ? [make("span", "new", "new")] : [icon(by > 0 ? "up" : "down"), make("span", "", String(Math.abs(by)))]),
      );
      this.move.dataset.way = entered ? "new" : by > 0 ? "up" : "down";
      this.move.setAttribute("role", "img");
      this.move.setAttribute("aria-label", word);
    }
    if (gained !== 0n) {
      this.gain.textContent = shownChange(gained);
      this.gain.dataset.way = gained > 0n ? "up" : "down";
    }
    this.element.classList.remove("has-gained");
    void this.element.offsetWidth; // so that the same news twice is seen twice
    this.element.classList.toggle("has-gained", gained !== 0n || entered);
    this.news = setTimeout(() => {
      this.element.classList.remove("has-gained");
      this.move.replaceChildren();
      this.move.removeAttribute("role");
      this.move.removeAttribute("aria-label");
      this.gain.textContent = "";
    }, NEWS_MS);
  }

  /** @param {number} from px above (negative) or below where it now is */
  glideFrom(from) {
    this.glide?.cancel();
    this.element.classList.toggle("is-rising", from > 0);
    this.glide = this.element.animate(
      [{ transform: `translateY(${from}px)` }, { transform: "none" }],
      { duration: GLIDE_MS, easing: EASE },
    );
    this.glide.onfinish = () => this.element.classList.remove("is-rising");
  }
}

export class Rows {
  /** @param {HTMLElement} body @param {(userId: string) => void} choose */
  constructor(body, choose) {
    this.body = body;
    this.choose = choose;
    /** @type {Map<string, Row>} */
    this.rows = new Map();
    this.leaving = make("tbody", "leaving");
    this.leaving.setAttribute("aria-hidden", "true");
    body.parentElement.append(this.leaving);
    body.addEventListener("keydown", (event) => this.#key(event));
    body.addEventListener("focusin", (event) => this.#reach(event.target.closest("tr")));
  }

  /**
   * @param {import("./standings.js").View} view
   * @param {Map<string, {by: number, gained: bigint, entered: boolean}>} moved
   * @param {{own: string | null, chosen: string | null}} who
   */
  show(view, moved, { own, chosen }) {
    const still = calm.matches || document.hidden;
    const seen = still ? null : this.#tops();
    const best = view.entries.length ? view.entries[0].score : 0;
    const wanted = view.entries.map((entry) => {
      let row = this.rows.get(entry.user_id);
      if (!row) this.rows.set(entry.user_id, (row = new Row(entry.user_id, this.choose)));
      row.write(entry, {
        own: entry.user_id === own,
        chosen: entry.user_id === chosen,
        share: Number(best) > 0 ? Math.max(0, Number(entry.score) / Number(best)) : 0,
      });
      return row;
    });
    const stays = new Set(wanted);
    for (const row of [...this.rows.values()]) if (!stays.has(row)) this.#drop(row, still);
    this.#arrange(wanted);
    if (seen) this.#play(wanted, seen);
    for (const row of wanted) {
      const news = moved.get(row.userId);
      if (news) row.tell(news);
    }
    this.#reach(null);
  }

  /** Where rows are on the screen at this moment, in the middle of a movement too. */
  #tops() {
    return new Map([...this.rows.values()].map((row) => [row, row.element.getBoundingClientRect().top]));
  }

  /** Everything into its order, without ever moving the row that has the focus. @param {Row[]} wanted */
  #arrange(wanted) {
    const held = wanted.findIndex((row) => row.element.contains(document.activeElement));
    if (held < 0) {
      wanted.forEach((row, index) => {
        if (this.body.children[index] !== row.element) this.body.insertBefore(row.element, this.body.children[index]);
      });
      return;
    }
    const anchor = wanted[held].element;
    for (const row of wanted.slice(0, held)) this.body.insertBefore(row.element, anchor);
    for (const row of wanted.slice(held + 1)) this.body.append(row.element);
  }

  /** @param {Row[]} wanted @param {Map<Row, number>} seen */
  #play(wanted, seen) {
    // read all, then write all: one layout
    const paths = wanted.map((row) => {
      if (row.glide?.playState === "running") row.glide.cancel();
      row.element.classList.remove("is-rising");
      return { row, top: row.element.getBoundingClientRect().top };
    });
    for (const { row, top } of paths) {
      const was = seen.get(row);
      if (was === undefined) {
        row.element.animate([{ opacity: 0, transform: "translateY(10px)" }, { opacity: 1, transform: "none" }], {
          duration: GLIDE_MS,
          easing: EASE,
        });
      } else if (Math.abs(was - top) > 0.5) row.glideFrom(was - top);
    }
  }

  /** @param {Row} row @param {boolean} still */
  #drop(row, still) {
    this.rows.delete(row.userId);
    clearTimeout(row.news);
    const { element } = row;
    if (still || !element.isConnected) {
      element.remove();
      return;
    }
    const ghost = element.cloneNode(true);
    ghost.inert = true;
    ghost.style.top = `${element.offsetTop}px`;
    element.remove();
    this.leaving.append(ghost);
    ghost.animate([{ opacity: 1 }, { opacity: 0, transform: "translateY(14px)" }], { duration: LEAVE_MS, easing: EASE })
      .onfinish = () => ghost.remove();
  }

  /** One row is reached by Tab: the given one, else the one reached last, else the first. @param {Element | null} element */
  #reach(element) {
    const buttons = [...this.body.querySelectorAll(".who")];
    const reached = buttons.find((button) => element?.contains(button)) ?? buttons.find((button) => button.tabIndex === 0);
    for (const button of buttons) button.tabIndex = button === (reached ?? buttons[0]) ? 0 : -1;
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const here = event.target.closest("tr");
    if (!here) return;
    const all = [...this.body.children];
    const at = all.indexOf(here);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined || to < 0 || to >= all.length) return;
    event.preventDefault();
    all[to].querySelector("button").focus();
  }
}

/** @param {string} kind @param {...Node} inside */
const cell = (kind, ...inside) => {
  const made = make("td", kind);
  made.setAttribute("role", "cell");
  made.append(...inside);
  return made;
};

/** Write a text if it is another; whether it was. @param {HTMLElement} element @param {string} value */
const text = (element, value) => {
  if (element.textContent === value) return false;
  element.textContent = value;
  return true;
};

