// The form that sends an action.

import { byId, make } from "./make.js";
import { counted, typeName } from "./words.js";
import { shown } from "./exact.js";

/** @typedef {{type: string, points?: number, min?: number, max?: number}} Type worth `points`, or what is sent from `min` to `max` */

export class ActionForm {
  /** @param {(action: {type: string, points?: number}) => void} send */
  constructor(send) {
    this.send = send;
    /** @type {Type[]} */
    this.types = [];
    /** @type {import("./token.js").Token | null} */
    this.token = null;
    byId("type").addEventListener("change", () => this.#showPoints());
    byId("action").addEventListener("submit", (event) => this.#submit(event));
  }

  /** @param {Type[]} types */
  offer(types) {
    this.types = types;
    this.#show();
  }

  /** @param {import("./token.js").Token | null} token */
  allow(token) {
    this.token = token;
    this.#show();
  }

  /** The types that the token may send. */
  get #allowed() {
    const scopes = this.token?.scopes ?? new Set();
    return this.types.filter(({ points }) => scopes.has(points === undefined ? "scores:write" : "actions:write"));
  }

  #show() {
    const allowed = this.#allowed;
    byId("invitation").hidden = this.token !== null;
    byId("action").hidden = this.token === null || allowed.length === 0;
    byId("actions-note").textContent =
      this.token && this.types.length && !allowed.length ? "This token may send none; it may read." : "";
    const chosen = byId("type").value;
    byId("type").replaceChildren(
      ...allowed.map(({ type, points, min, max }) => {
        const worth = points === undefined ? `${shown(min)} to ${shown(max)} points` : counted(points, "point");
        const option = make("option", "", `${typeName(type)} · ${worth}`);
        option.value = type;
        option.selected = type === chosen;
        return option;
      }),
    );
    this.#showPoints();
  }

  #showPoints() {
    const type = this.types.find((each) => each.type === byId("type").value);
    const asks = type !== undefined && type.points === undefined;
    const points = byId("points");
    byId("points-field").hidden = !asks;
    points.disabled = !asks;
    if (!asks) return;
    points.min = String(type.min);
    points.max = String(type.max);
    if (points.value === "" || !points.checkValidity()) points.value = String(Math.min(Math.max(10, type.min), type.max));
  }

  /** @param {SubmitEvent} event */
  #submit(event) {
    event.preventDefault();
    const points = byId("points");
    const type = byId("type").value;
    this.send(points.disabled ? { type } : { type, points: points.valueAsNumber });
  }
}
