// Small pieces of the page, made by hand: elements, icons, faces.

import { hue, initials } from "./words.js";

/**
 * @param {string} name
 * @param {string} [kind] class names
 * @param {...(Node | string)} inside
 * @returns {any}
 */
export const make = (name, kind = "", ...inside) => {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  made.append(...inside);
  return made;
};

const SVG = "http://www.w3.org/2000/svg";
const ICONS = new URL("./icons.svg", import.meta.url).pathname;

/** @param {string} name a symbol of icons.svg */
export const icon = (name) => {
  const made = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", iconAddress(name));
  made.setAttribute("aria-hidden", "true");
  made.setAttribute("class", "icon");
  made.append(use);
  return made;
};

/** @param {string} name */
export const iconAddress = (name) => `${ICONS}#${name}`;

/**
 * Initials on a colour that stays with the id.
 * @param {string} userId
 * @param {string} name
 */
export const face = (userId, name) => {
  const made = make("span", "face", initials(name));
  made.setAttribute("aria-hidden", "true");
  made.style.setProperty("--hue", String(hue(userId)));
  return made;
};

/** @param {string} id @returns {any} */
export const byId = (id) => document.getElementById(id);
