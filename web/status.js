// What the page says about itself: the connection, what is amiss, and what a listener should hear.

import { byId, iconAddress } from "./make.js";

const CONNECTIONS = {
  connecting: "Connecting",
  live: "Live",
  reading: "Reconnecting",
  offline: "Offline",
};

const TELL_EVERY_MS = 4_000;

/** @param {keyof typeof CONNECTIONS} state */
export const showConnection = (state) => {
  byId("connection").dataset.state = state;
  byId("connection-text").textContent = CONNECTIONS[state];
};

/**
 * The one thing that is amiss now; null: nothing is.
 * @param {{kind: "info" | "offline" | "rebuilding", text: string} | null} news
 */
export const showBanner = (news) => {
  const banner = byId("banner");
  if (banner.hidden && news === null) return;
  banner.hidden = news === null;
  if (news === null || (banner.dataset.kind === news.kind && byId("banner-text").textContent === news.text)) return;
  banner.dataset.kind = news.kind;
  byId("banner-icon").setAttribute("href", iconAddress(news.kind));
  byId("banner-text").textContent = news.text;
};

let waiting = "";
let quietUntil = 0;
let timer = 0;

/** Say something to whoever listens instead of looking: the latest, and not all the time. @param {string} text */
export const tell = (text) => {
  waiting = text;
  if (timer) return;
  timer = setTimeout(() => {
    timer = 0;
    quietUntil = Date.now() + TELL_EVERY_MS;
    byId("told").textContent = waiting;
  }, Math.max(0, quietUntil - Date.now()));
};
