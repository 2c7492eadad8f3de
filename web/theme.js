// Light, dark, or as the system has it; start.js sets what was chosen before anything is shown.

import { byId, iconAddress } from "./make.js";

const KEY = "trueboard.theme";
const NEXT = { system: "light", light: "dark", dark: "system" };

/** @param {() => void} changed */
export const startTheme = (changed) => {
  const button = byId("theme");
  const say = () => {
    const theme = document.documentElement.dataset.theme ?? "system";
    button.setAttribute("aria-label", `Theme: ${theme}`);
    button.title = `Theme: ${theme}`;
    byId("theme-icon").setAttribute("href", iconAddress(theme));
    return theme;
  };
  say();
  button.addEventListener("click", () => {
    const theme = NEXT[say()];
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // it holds until the page is closed
    }
    say();
    changed();
  });
};
