// Joins the parts of the page: what is known (live, outbox, token) to what is shown.

import { about, receipt as askFor, send } from "./api.js";
import { Account } from "./account.js";
import { Chart, timeOfDay } from "./chart.js";
import { shown, shownChange } from "./exact.js";
import { Feed } from "./feed.js";
import { ActionForm } from "./form.js";
import { Live } from "./live.js";
import { byId, face } from "./make.js";
import { Outbox } from "./outbox.js";
import { OwnPlace } from "./own.js";
import { paced } from "./pace.js";
import { Rows } from "./rows.js";
import { TOP, compare, movements } from "./standings.js";
import { showBanner, showConnection, tell } from "./status.js";
import { startTheme } from "./theme.js";
import { Verdicts, spoken } from "./verdicts.js";
import { ago, counted, ordinal } from "./words.js";

const SHOW_GAP_MS = 400;
const TICK_MS = 1_000;
const FEED_MISSED_MS = 2_500;

const openedAt = Date.now();

const live = new Live(() => show(null));
/** Whose line was asked for; without anybody it is one's own, else the leader's. */
let picked = "";
const rows = new Rows(byId("rows"), (userId) => live.choose((picked = userId)));
const own = new OwnPlace(byId("own"));
const chart = new Chart(byId("chart"));
startTheme(() => chart.repaint());

const account = new Account((token) => {
  live.setOwn(token?.userId ?? "");
  outbox.clear();
  form.allow(token);
  if (feed) feed.connect(token);
});

const outbox = new Outbox({
  send: (action) => withToken((token) => send(action, token)),
  ask: (actionId) => withToken((token) => askFor(actionId, token)),
  changed: (item) => {
    verdicts.show(outbox.items);
    if (item === null) return;
    if (item.receipt) live.receipt(item.receipt);
    if (["accepted", "held", "rejected", "refused"].includes(item.status)) tell(spoken(item));
  },
});
const verdicts = new Verdicts(byId("verdicts"), (item) => outbox.repeat(item));
const form = new ActionForm((action) => outbox.add(action));

/** @type {Feed | null} */
let feed = null;
let feedMissedAt = 0;

/** A call with the token; one that is no longer good is put away. @param {(token: string) => Promise<any>} call */
const withToken = async (call) => {
  const { token } = account;
  try {
    return await call(token?.raw ?? "");
  } catch (problem) {
    if (problem.status === 401 && token === account.token) account.refused();
    throw problem;
  }
};

// showing ------------------------------------------------------------------------------------

/** @type {import("./standings.js").View | null} */
let before = null;

const show = paced(() => {
  showState();
  const view = live.view && { ...live.view, entries: live.view.entries.slice(0, live.depth) };
  byId("skeleton").hidden = view !== null || live.trouble !== null;
  showEmpty(view);
  if (view === null) return;
  const moved = before && compare(before, view) < 0 ? movements(before, view) : new Map();
  const token = account.token;
  const chosen = chosenId(view);
  if (chosen !== live.chosenId) live.choose(chosen);
  rows.show(view, moved, { own: token?.userId ?? null, chosen });
  showPosition(view);
  own.show(view, token, live.own);
  const rank = live.own?.entry?.rank;
  document.title = token && rank ? `${ordinal(rank)} · Trueboard` : "Trueboard";
  if (before) speak(before, view);
  byId("more").hidden = view.count <= TOP;
  byId("count").textContent = counted(view.count, "player");
  before = view;
  showPlayer();
}, SHOW_GAP_MS);

/** Who the line is of. @param {import("./standings.js").View} view */
const chosenId = (view) => {
  if (picked) return picked;
  if (account.token && live.own?.entry !== null) return live.ownId;
  return live.chosenId && live.chosenId !== account.token?.userId ? live.chosenId : (view.entries[0]?.user_id ?? "");
};

/** @param {import("./standings.js").View} view */
const showPosition = ({ revision, epoch, digest }) => {
  const number = byId("revision-number");
  if (number.textContent !== shown(revision)) {
    number.textContent = shown(revision);
    byId("revision").classList.remove("is-new");
    void number.offsetWidth;
    if (before) byId("revision").classList.add("is-new");
  }
  byId("position-revision").textContent = shown(revision);
  byId("position-epoch").textContent = epoch;
  byId("position-digest").textContent = digest ?? "comes with the live feed";
  document.documentElement.dataset.position = `${epoch}-${revision}`;
};

/** @param {import("./standings.js").View | null} view */
const showEmpty = (view) => {
  const empty = byId("empty");
  empty.hidden = view === null ? live.trouble === null : view.count > 0;
  if (empty.hidden) return;
  const [title, text] =
    view !== null
      ? ["Nobody has scored yet", "The first action makes the first place. It will appear here by itself."]
      : live.trouble.code === "board_rebuilding"
        ? ["The board is being rebuilt", "It is made anew from the ledger and will appear here by itself."]
        : ["The board cannot be read right now", "It is asked for again and will appear here by itself."];
  byId("empty-title").textContent = title;
  byId("empty-text").textContent = text;
};

const showState = () => {
  // Without a network a feed on this machine goes on all the same.
  const offline = !navigator.onLine && live.feed !== "live";
  const state = offline ? "offline" : live.feed === "live" ? "live" : feedMissedAt ? "reading" : "connecting";
  showConnection(state);
  showBanner(news(offline));
};

/** @param {boolean} offline @returns {Parameters<typeof showBanner>[0]} */
const news = (offline) => {
  const at = live.view ? ` What you see is the board at revision ${shown(live.view.revision)}.` : "";
  if (offline) return { kind: "offline", text: `You are offline.${at} It goes on by itself once you are back.` };
  if (live.trouble) {
    const { code, status } = live.trouble;
    if (code === "board_rebuilding") {
      return { kind: "rebuilding", text: `The board is being rebuilt from the ledger.${at}` };
    }
    if (status === 429) return { kind: "info", text: `Too many requests came from here.${at} It goes on in a moment.` };
    return { kind: "offline", text: `The service does not answer.${at} It is asked again every few seconds.` };
  }
  if (feedMissedAt && Date.now() - feedMissedAt > FEED_MISSED_MS) {
    return { kind: "info", text: "The live feed is away. Until it is back, the board is read every three seconds." };
  }
  return account.news ? { kind: "info", text: account.news } : null;
};

/** What a listener should hear of a change. */
const speak = (was, is) => {
  const mine = (view) => view.entries.find((entry) => entry.user_id === account.token?.userId);
  const [old, now] = [mine(was), mine(is)];
  if (now && old && now.rank !== old.rank) tell(`You are ${ordinal(now.rank)} now, with ${shown(now.score)} points.`);
  else if (is.entries[0] && is.entries[0].user_id !== was.entries[0]?.user_id) {
    tell(`${is.entries[0].username} leads now, with ${shown(is.entries[0].score)} points.`);
  }
};

/** The player of the line. */
const showPlayer = () => {
  const userId = live.chosenId;
  const entry = live.view?.entries.find((each) => each.user_id === userId) ?? live.chosen?.entry ?? null;
  const [xs, scores] = live.histories.steps(userId, openedAt, Date.now());
  byId("player-head").dataset.user = userId;
  if (entry === null) {
    byId("player-title").textContent = "Score over time";
    byId("player-place").textContent = live.view?.count === 0 ? "It begins with the first action." : "Choose a player on the board.";
    byId("player-score").textContent = "";
    byId("player-face").hidden = true;
    byId("chart-summary").textContent = "";
    chart.show([[], []]);
    return;
  }
  if (byId("player-face").dataset.user !== userId + entry.username) {
    const made = face(userId, entry.username);
    made.id = "player-face";
    made.dataset.user = userId + entry.username;
    byId("player-face").replaceWith(made);
  }
  byId("player-title").textContent = entry.username;
  byId("player-place").textContent = `${ordinal(entry.rank)} of ${shown(live.view.count)}`;
  byId("player-score").textContent = shown(entry.score);
  chart.show([xs, scores]);
  const since = timeOfDay(openedAt);
  const { points, steps } = live.histories.gained(userId, openedAt);
  byId("chart-summary").textContent =
    steps === 0
      ? `No change since ${since}, when this page was opened.`
      : `${shownChange(points)} ${points === 1n || points === -1n ? "point" : "points"} in ${counted(steps, "step")} since ${since}, when this page was opened.`;
};

// beginning ----------------------------------------------------------------------------------

const tick = () => {
  byId("changed").textContent = live.changedAt ? `changed ${ago(Date.now() - live.changedAt)}` : "";
  verdicts.tick();
  showState();
  if (!document.hidden) showPlayer();
};

byId("depth").addEventListener("change", (event) => live.showMore(Number(event.target.value)));
byId("revision").addEventListener("click", () => {
  const open = byId("position").hidden;
  byId("position").hidden = !open;
  byId("revision").setAttribute("aria-expanded", String(open));
});
byId("invitation-button").addEventListener("click", () => account.open());
addEventListener("online", () => live.again());
addEventListener("offline", () => show(null));
document.addEventListener("visibilitychange", () => document.hidden || live.again());
setInterval(tick, TICK_MS);

const begin = async () => {
  try {
    const { feed: base, types } = await about();
    form.offer(types);
    feed = new Feed(base ?? location.origin, {
      state: (state) => {
        if (state === "live") feedMissedAt = 0;
        else if (state === "away") feedMissedAt ||= Date.now();
        live.feedIs(state);
      },
      publication: (publication) => live.publication(publication),
      receipt: (receipt) => outbox.judged(receipt),
      refused: () => {
        account.notTakenByFeed();
        feed?.connect(null);
      },
    });
    feed.connect(account.token);
  } catch (problem) {
    if (problem.status === undefined) throw problem;
    feedMissedAt ||= Date.now();
    setTimeout(begin, 2_000);
  }
};

account.start();
live.readPage(null);
void begin();
