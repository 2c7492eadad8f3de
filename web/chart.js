// The line of one player's score, drawn by uPlot: steps, since a score holds until it changes.

import { shown } from "./exact.js";
import { make } from "./make.js";

const HEIGHT = 190;
const NARROWEST_S = 30;

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const clockShort = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const plain = new Intl.NumberFormat("en");
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

/** @param {number} ms */
export const timeOfDay = (ms) => clockShort.format(ms);

export class Chart {
  /** @param {HTMLElement} place */
  constructor(place) {
    this.place = place;
    this.plot = null;
    this.data = [[], []];
    this.tip = make("div", "chart-tip");
    this.tip.hidden = true;
    new ResizeObserver(() => this.plot?.setSize({ width: place.clientWidth, height: HEIGHT })).observe(place);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.repaint());
  }

  /** @param {[number[], number[]]} steps */
  show(steps) {
    this.data = steps;
    this.place.hidden = steps[0].length === 0;
    if (this.place.hidden) return;
    if (this.plot) this.plot.setData(steps);
    else this.#draw();
  }

  /** After the colours of the page have changed. */
  repaint() {
    this.plot?.destroy();
    this.plot = null;
    if (!this.place.hidden) this.#draw();
  }

  #draw() {
    const style = getComputedStyle(this.place);
    const [line, grid, words] = [style.color, style.borderTopColor, style.outlineColor];
    const axis = {
      stroke: words,
      font: `500 11px ${style.fontFamily}`,
      grid: { stroke: grid, width: 1 },
      ticks: { show: false },
      border: { show: false },
    };
    const { uPlot } = globalThis;
    this.plot = new uPlot(
      {
        width: this.place.clientWidth,
        height: HEIGHT,
        padding: [12, 26, 0, 0],
        legend: { show: false },
        cursor: { y: false, drag: { setScale: false }, points: { size: 9, width: 2, fill: () => line } },
        scales: { x: { time: true, range: wide }, y: { range: roomy } },
        axes: [
          { ...axis, grid: { show: false }, size: 30, space: 76, values: times },
          { ...axis, size: (_plot, words) => widest(words) * 7 + 22, space: 44, incrs: WHOLE, values: scores },
        ],
        series: [
          {},
          {
            stroke: line,
            width: 2.25,
            fill: (plot) => shade(plot, line),
            paths: uPlot.paths.stepped({ align: 1 }),
            points: { show: false },
          },
        ],
        hooks: { setCursor: [(plot) => this.#point(plot)] },
      },
      this.data,
      this.place,
    );
    this.plot.over.append(this.tip);
  }

  /** What stands where the pointer is. */
  #point(plot) {
    const { idx, left } = plot.cursor;
    this.tip.hidden = idx === null || idx === undefined || left < 0;
    if (this.tip.hidden) return;
    const at = plot.data[0][idx];
    this.tip.replaceChildren(make("b", "", shown(Math.trunc(plot.data[1][idx]))), ` ${clock.format(at * 1000)}`);
    const x = plot.valToPos(at, "x");
    this.tip.style.left = `${Math.min(Math.max(x, 44), plot.over.clientWidth - 44)}px`;
  }
}

const WHOLE = [1, 2, 5].flatMap((step) => Array.from({ length: 19 }, (_, power) => step * 10 ** power)).sort((a, b) => a - b);

const times = (_plot, ticks, _axis, _space, stepS) =>
  ticks.map((at) => (stepS < 60 ? clock : clockShort).format(at * 1000));

/** Short where the steps are large, else to the point. */
const scores = (_plot, ticks, _axis, _space, step) => ticks.map((at) => (step >= 1000 ? compact : plain).format(at));

const widest = (words) => Math.max(1, ...(words ?? []).map((word) => word.length));

/** At least half a minute, so that the first seconds are no cliff. */
const wide = (_, from, to) => [Math.min(from, to - NARROWEST_S), to];

const roomy = (_, low, high) => {
  const room = Math.max(1, (high - low) * 0.15);
  return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
};

const shade = (plot, colour) => {
  const { top, height } = plot.bbox;
  const gradient = plot.ctx.createLinearGradient(0, top, 0, top + height);
  const [red, green, blue] = colour.match(/[\d.]+/g);
  gradient.addColorStop(0, `rgba(${red}, ${green}, ${blue}, .22)`);
  gradient.addColorStop(1, `rgba(${red}, ${green}, ${blue}, 0)`);
  return gradient;
};
