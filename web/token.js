// The token of this tab: where it is kept, and what it says of itself. Nothing here checks it;
// the service does. What it says is shown, and decides what the page offers.

const KEY = "trueboard.token";

/** @typedef {{raw: string, userId: string, name: string, scopes: Set<string>, expiresAtMs: number}} Token */

/**
 * What a JWT says; null if the text is none.
 * @param {string} raw
 * @returns {Token | null}
 */
export const read = (raw) => {
  const parts = raw.trim().split(".");
  if (parts.length !== 3) return null;
  try {
    const bytes = Uint8Array.from(atob(parts[1].replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
    const claims = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
    if (typeof claims.sub !== "string" || typeof claims.exp !== "number") return null;
    return {
      raw: raw.trim(),
      userId: claims.sub,
      name: typeof claims.name === "string" ? claims.name : claims.sub,
      scopes: new Set(String(claims.scope ?? "").split(" ").filter(Boolean)),
      expiresAtMs: claims.exp * 1000,
    };
  } catch {
    return null;
  }
};

/** @returns {string} */
export const kept = () => {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return globalThis.trueboardToken ?? "";
  }
};

/** @param {string} raw */
export const keep = (raw) => {
  try {
    sessionStorage.setItem(KEY, raw);
  } catch {
    globalThis.trueboardToken = raw;
  }
};

export const forget = () => {
  globalThis.trueboardToken = "";
  try {
    sessionStorage.removeItem(KEY);
  } catch {
    // it was not kept there
  }
};
