// One's own place, pinned below the board: also where the board does not reach.

import { shown } from "./exact.js";
import { face, make } from "./make.js";
import { TOP, compare, gapAbove } from "./standings.js";
import { counted, ordinal } from "./words.js";

export class OwnPlace {
  /** @param {HTMLElement} place */
  constructor(place) {
    this.place = place;
    this.written = "";
  }

  /**
   * @param {import("./standings.js").View} view
   * @param {import("./token.js").Token | null} token
   * @param {import("./standings.js").Own | null} own
   */
  show(view, token, own) {
    this.place.hidden = token === null;
    document.body.classList.toggle("has-own", token !== null);
    if (token === null) return;
    const entry = own?.entry ?? null;
    // behind the board: what is shown may be no longer so, and is being asked for
    const settled = own !== null && compare(own, view) >= 0;
    const said = sentence(view, own, entry, settled);
    const written = JSON.stringify([entry, said, token.name]);
    if (written === this.written) return;
    this.written = written;
    const name = entry?.username || token.name;
    this.place.replaceChildren(
      make("span", "own-rank", entry ? shown(entry.rank) : "–"),
      face(token.userId, name),
      make("span", "own-text", make("span", "own-name", name, make("span", "tag", "You")), make("span", "own-said", said)),
      make("span", "score", entry ? shown(entry.score) : "0"),
    );
  }
}

const sentence = (view, own, entry, settled) => {
  if (own === null) return "Looking for your place";
  if (entry === null) return "No points yet: the first action puts you on the board.";
  if (entry.rank === 1) return "You lead.";
  if (!settled) return ordinal(entry.rank);
  const gap = gapAbove(view, entry);
  if (!gap) return `${ordinal(entry.rank)} of ${shown(view.count)}`;
  const { ahead, points } = gap;
  const whom = ahead.rank === entry.rank - 1 ? ahead.username : `the top ${ahead.rank === TOP ? "ten" : shown(ahead.rank)}`;
  if (points === 0n) return `${ordinal(entry.rank)}, level with ${whom}, who was there first`;
  return `${ordinal(entry.rank)}, ${counted(points, "point")} behind ${whom}`;
};
