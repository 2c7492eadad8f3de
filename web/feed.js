// The live feed: one connection by the Centrifuge protocol, which comes back by itself.
//
// Tells what it hears and in which state it is; whoever listens decides what is later than what.

import { exactSocket } from "./exact.js";

const BOARD = "board:main";
const SOONEST_MS = 300;
const LATEST_MS = 5_000;
const AGAIN_MS = 10_000;

/**
 * @typedef {"connecting" | "live" | "away"} State
 * @typedef {{
 *   state: (state: State) => void,
 *   publication: (publication: import("./standings.js").Publication) => void,
 *   receipt: (receipt: any) => void,
 *   refused: () => void,
 * }} Listener `refused`: the feed did not take the token, and goes on without one
 */

export class Feed {
  /**
   * @param {string} base where the feed is: http(s)://…
   * @param {Listener} listener
   */
  constructor(base, listener) {
    this.url = `${base.replace(/^http/, "ws").replace(/\/$/, "")}/connection/websocket`;
    this.listener = listener;
    this.client = null;
    this.again = 0;
  }

  /**
   * Connect, as somebody or as anybody.
   * @param {import("./token.js").Token | null} token
   */
  connect(token) {
    this.close();
    this.listener.state("connecting");
    const client = new globalThis.Centrifuge(this.url, {
      token: token?.raw ?? "",
      websocket: exactSocket(),
      name: "trueboard-page",
      minReconnectDelay: SOONEST_MS,
      maxReconnectDelay: LATEST_MS,
      timeout: 8_000,
      maxServerPingDelay: 15_000,
    });
    this.client = client;
    client.on("connecting", ({ code }) => this.listener.state(code === 0 ? "connecting" : "away"));
    client.on("error", () => client.state === "connected" || this.listener.state("away"));
    client.on("disconnected", ({ code }) => this.#ended(client, code, token));

    const board = client.newSubscription(BOARD, { minResubscribeDelay: SOONEST_MS, maxResubscribeDelay: LATEST_MS });
    board.on("subscribed", ({ data, recovered }) => {
      // after a recovery the publications that were missed come by themselves, one by one
      if (data && !recovered) this.listener.publication(data);
      this.listener.state("live");
    });
    board.on("publication", ({ data }) => this.listener.publication(data));
    board.on("unsubscribed", () => {
      if (client !== this.client) return;
      this.listener.state("away");
      this.again = setTimeout(() => board.subscribe(), AGAIN_MS);
    });
    board.subscribe();

    if (token) {
      const own = client.newSubscription(`user:${token.userId}`);
      own.on("publication", ({ data }) => this.listener.receipt(data.receipt));
      own.subscribe();
    }
    client.connect();
  }

  /** Ends that the client takes for final: a token that was refused, or a server that wants no more of it. */
  #ended(client, code, token) {
    if (client !== this.client) return; // closed from here
    this.client = null;
    this.listener.state("away");
    if (token && code !== 0) this.listener.refused();
    else this.again = setTimeout(() => this.connect(token), AGAIN_MS);
  }

  close() {
    clearTimeout(this.again);
    const client = this.client;
    this.client = null;
    client?.disconnect();
  }
}
