// Runs before anything is shown: takes a token out of the address bar and sets the chosen theme.
//
// A token comes in the fragment (`#token=…`), which browsers send to nobody. It goes into this
// tab's session storage, so it ends with the tab, and out of the address, so it is in no history.

"use strict";

(() => {
  const takeToken = () => {
    const given = new URLSearchParams(location.hash.slice(1)).get("token");
    if (given === null) return false;
    history.replaceState(history.state, "", location.pathname + location.search);
    try {
      sessionStorage.setItem("trueboard.token", given.trim());
    } catch {
      globalThis.trueboardToken = given.trim(); // storage is switched off: the page remembers until it is closed
    }
    return true;
  };

  takeToken();
  addEventListener("hashchange", () => {
    if (takeToken()) dispatchEvent(new Event("trueboard:token"));
  });

  try {
    const theme = localStorage.getItem("trueboard.theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // without storage the system's theme holds
  }
})();
