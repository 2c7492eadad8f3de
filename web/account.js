// Who is looking: the token of this tab, the dialog to change it, and what becomes of it.

import { byId, face } from "./make.js";
import { forget, keep, kept, read } from "./token.js";

const LONGEST_TIMER_MS = 2 ** 31 - 1;
const until = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });

export class Account {
  /** @param {(token: import("./token.js").Token | null) => void} changed */
  constructor(changed) {
    this.changed = changed;
    /** @type {import("./token.js").Token | null} */
    this.token = null;
    /** What there is to say of the token, as a sentence. */
    this.news = "";
    this.timer = 0;
    this.dialog = byId("token");
    byId("account").addEventListener("click", () => this.open());
    byId("token-cancel").addEventListener("click", () => this.dialog.close());
    byId("token-forget").addEventListener("click", () => {
      this.dialog.close();
      this.#become(null, "");
    });
    byId("token-form").addEventListener("submit", (event) => this.#submit(event));
    this.dialog.addEventListener("close", () => (byId("token-text").value = ""));
  }

  /** Begin with the token that the address or this tab has, and take later ones. */
  start() {
    this.#take(kept());
    addEventListener("trueboard:token", () => this.#take(kept()));
  }

  open() {
    byId("token-error").textContent = "";
    byId("token-present").hidden = this.token === null;
    byId("token-forget").hidden = this.token === null;
    if (this.token) {
      byId("token-user").textContent = this.token.name;
      byId("token-until").textContent = until.format(this.token.expiresAtMs);
      byId("token-scopes").textContent = [...this.token.scopes].join(" · ") || "It allows nothing in particular.";
    }
    this.dialog.showModal();
  }

  /** The service did not accept the token. */
  refused() {
    const expired = this.token !== null && this.token.expiresAtMs <= Date.now();
    this.#become(null, expired ? EXPIRED : "The token was not accepted, so this is the public board. Use another one.");
  }

  /** Only the feed did not; verdicts are asked for instead. */
  notTakenByFeed() {
    if (this.token && this.token.expiresAtMs <= Date.now()) this.#become(null, EXPIRED);
    else this.news = "The live feed did not accept the token: verdicts come a little later.";
  }

  /** @param {string} raw */
  #take(raw) {
    const token = raw ? read(raw) : null;
    if (raw && !token) this.#become(null, "What the address had is no token, so this is the public board.");
    else if (token && token.expiresAtMs <= Date.now()) this.#become(null, EXPIRED);
    else this.#become(token, "");
  }

  /** @param {SubmitEvent} event */
  #submit(event) {
    const token = read(byId("token-text").value);
    const amiss =
      token === null ? "This is no token: it should be three parts with dots between them."
      : token.expiresAtMs <= Date.now() ? "This token has expired."
      : "";
    byId("token-error").textContent = amiss;
    if (amiss) {
      event.preventDefault();
      byId("token-text").focus();
      return;
    }
    keep(token.raw);
    this.#become(token, "");
  }

  /** @param {import("./token.js").Token | null} token @param {string} news */
  #become(token, news) {
    clearTimeout(this.timer);
    this.token = token;
    this.news = news;
    if (token) {
      const leftMs = Math.min(token.expiresAtMs - Date.now(), LONGEST_TIMER_MS);
      this.timer = setTimeout(() => this.#take(token.raw), leftMs);
    } else forget();
    const place = byId("account-face");
    const made = token ? face(token.userId, token.name) : document.createElement("span");
    made.id = "account-face";
    made.hidden = token === null;
    place.replaceWith(made);
    byId("account-name").textContent = token ? token.name : "Use a token";
    byId("account").classList.toggle("is-somebody", token !== null);
    this.changed(token);
  }
}

const EXPIRED = "The token has expired, so this is the public board. Use another one.";
