// Follows one channel with the official JavaScript client and says what happens, a JSON object a line.
//
// node --experimental-websocket official.mjs <the client's bundle> <options as JSON>; ends with its input.
import { readFileSync } from "node:fs";
import vm from "node:vm";

const [bundle, options] = process.argv.slice(2);
const { url, channel, token, tokens, delta } = JSON.parse(options);
vm.runInThisContext(readFileSync(bundle, "utf8"));

const say = (is, rest) => process.stdout.write(`${JSON.stringify({ is, ...rest })}\n`);
const client = new globalThis.Centrifuge(url, {
  token: token ?? "",
  getToken: tokens ? async () => tokens.shift() : null,
  minReconnectDelay: 50,
  maxReconnectDelay: 200,
  maxServerPingDelay: 1000,
});
client.on("connected", () => say("connected"));
client.on("connecting", ({ code }) => code && say("connecting", { code }));
client.on("disconnected", ({ code }) => say("disconnected", { code }));

const subscription = client.newSubscription(channel, { delta, minResubscribeDelay: 50, maxResubscribeDelay: 200 });
subscription.on("subscribed", ({ data, recovered, wasRecovering, streamPosition }) =>
  say("subscribed", { data: data ?? null, recovered, wasRecovering, at: [streamPosition.epoch, streamPosition.offset] }),
);
subscription.on("unsubscribed", ({ code }) => say("unsubscribed", { code }));
subscription.on("publication", ({ data, offset }) => say("publication", { data, offset: offset ?? 0 }));
subscription.subscribe();
client.connect();

process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
