// The live plots: small SVG line charts with a legend of current values, and the same numbers as a table.

import { element, svg } from "./dom.js";

const WIDTH = 320;
const HEIGHT = 72;

const whole = (value) => Math.round(value).toLocaleString("en");
const short = (value) => (value >= 100 ? whole(value) : value.toLocaleString("en", { maximumSignificantDigits: 3 }));

/** A duration in milliseconds as text. */
function duration(value) {
  return value >= 1000 ? `${short(value / 1000)} s` : `${short(value)} ms`;
}

/** Each plot: its series by key of a derived point, the least top of its axis, and how a value reads. */
export const PLOTS = [
  {
    title: "Tokens/s",
    floor: 10,
    format: short,
    series: [
      { key: "generation", label: "generated", name: "Generated tokens per second" },
      { key: "prompt", label: "prompt", name: "Prompt tokens per second" },
    ],
  },
  {
    title: "Requests",
    floor: 4,
    format: short,
    series: [
      { key: "running", label: "running", name: "Requests running" },
      { key: "waiting", label: "waiting", name: "Requests waiting" },
    ],
  },
  {
    title: "KV cache",
    floor: 5,
    format: (v) => `${v.toLocaleString("en", { maximumFractionDigits: v < 10 ? 1 : 0 })} %`,
    series: [{ key: "kv", label: "in use", name: "KV cache in use" }],
  },
  {
    title: "Time to first token",
    floor: 10,
    format: duration,
    series: [
      { key: "ttft50", label: "p50", name: "Time to first token, p50" },
      { key: "ttft95", label: "p95", name: "Time to first token, p95" },
    ],
  },
  {
    title: "Between tokens",
    floor: 1,
    format: duration,
    series: [
      { key: "itl50", label: "p50", name: "Inter-token latency, p50" },
      { key: "itl95", label: "p95", name: "Inter-token latency, p95" },
    ],
  },
];

/** The least of 1, 2, 2.5, 5 x 10^n that is not under `value`: a calm top for an axis. */
export function niceTop(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((step) => step * power).find((top) => top >= value * (1 - 1e-9));
}

/** SVG path data of [[x, y]] runs; a null y breaks the line. A run of one point is drawn as a short dash. */
export function path(points) {
  let data = "";
  let open = false;
  points.forEach(([x, y], i) => {
    if (y === null) {
      open = false;
      return;
    }
    const alone = !open && (points[i + 1]?.[1] ?? null) === null;
    data += `${open ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}${alone ? "h1" : ""}`;
    open = true;
  });
  return data;
}

/** Runs of neighbouring points without a null, for the filled area. */
function runs(points) {
  const found = [[]];
  for (const point of points) {
    if (point[1] === null) found.push([]);
    else found[found.length - 1].push(point);
  }
  return found.filter((run) => run.length > 1);
}

function area(points) {
  return runs(points)
    .map((run) => `${path(run)}L${run[run.length - 1][0].toFixed(1)} ${HEIGHT}L${run[0][0].toFixed(1)} ${HEIGHT}Z`)
    .join("");
}

/** One chart. `update(history, span, at)` draws points of the last `span` seconds; `at` is the time hovered or null. */
class Plot {
  constructor(spec) {
    this.spec = spec;
    this.fill = svg("path", { class: "area s0" });
    this.lines = spec.series.map((_, i) => svg("path", { class: `line s${i}`, "vector-effect": "non-scaling-stroke" }));
    this.cursor = svg("line", { class: "cursor", y1: 0, y2: HEIGHT, visibility: "hidden", "vector-effect": "non-scaling-stroke" });
    const grid = [0.5, HEIGHT / 2, HEIGHT - 0.5].map((y) =>
      svg("line", { class: "rule", x1: 0, x2: WIDTH, y1: y, y2: y, "vector-effect": "non-scaling-stroke" }),
    );
    this.svg = svg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": `${spec.title}: no data yet` },
      ...grid,
      this.fill,
      ...this.lines.toReversed(),
      this.cursor,
    );
    this.top = element("span", { class: "top", "aria-hidden": "true" });
    this.values = spec.series.map(() => element("b", {}, "–"));
    const legend = element(
      "p",
      { class: "legend", "aria-hidden": "true" },
      ...spec.series.map((series, i) =>
        element("span", {}, element("i", { class: `swatch s${i}` }), `${series.label} `, this.values[i]),
      ),
    );
    this.node = element(
      "section",
      { class: "plot" },
      element("div", { class: "plot-head" }, element("h3", {}, spec.title), legend),
      element("div", { class: "frame" }, this.svg, this.top),
    );
  }

  update(history, span, at) {
    const end = history[history.length - 1].at;
    const x = (time) => WIDTH * (1 - (end - time) / span);
    const values = this.spec.series.flatMap(({ key }) => history.map((point) => point[key])).filter((v) => v !== null);
    const top = niceTop(Math.max(this.spec.floor, ...values));
    const y = (value) => (value === null ? null : 1 + (HEIGHT - 2) * (1 - value / top));
    this.spec.series.forEach(({ key }, i) => {
      const points = history.map((point) => [x(point.at), y(point[key])]);
      this.lines[i].setAttribute("d", path(points));
      if (i === 0) this.fill.setAttribute("d", area(points));
    });
    this.top.textContent = this.spec.format(top);
    const shown = nearest(history, at ?? end);
    this.spec.series.forEach(({ key }, i) => {
      this.values[i].textContent = shown[key] === null ? "–" : this.spec.format(shown[key]);
    });
    this.cursor.setAttribute("visibility", at === null ? "hidden" : "visible");
    this.cursor.setAttribute("x1", x(shown.at));
    this.cursor.setAttribute("x2", x(shown.at));
    this.svg.setAttribute("aria-label", `${this.spec.title}: ${this.describe(history)}`);
  }

  describe(history) {
    return this.spec.series
      .map(({ key, label }) => {
        const { now, peak } = summary(history, key);
        const read = (value) => (value === null ? "no data" : this.spec.format(value));
        return `${label} ${read(now)}, peak ${read(peak)}`;
      })
      .join("; ");
  }
}

const nearest = (history, time) =>
  history.reduce((best, point) => (Math.abs(point.at - time) < Math.abs(best.at - time) ? point : best));

/** Now, mean and peak of one series; null where it has no value. */
export function summary(history, key) {
  const values = history.map((point) => point[key]).filter((value) => value !== null);
  if (!values.length) return { now: null, mean: null, peak: null };
  return {
    now: history[history.length - 1][key],
    mean: values.reduce((a, b) => a + b, 0) / values.length,
    peak: Math.max(...values),
  };
}

/** Seconds that the plots span: they begin with the first of these and grow with the history. */
const SPANS = [30, 60, 120];

/** All plots in `container` and their table in `body`. `draw(history)` shows derived points, oldest first. */
export class Dashboard {
  #plots = PLOTS.map((spec) => new Plot(spec));
  #cells = [];
  #history = [];
  #hovered = null;

  /** Seconds that the plots show. */
  span = SPANS[0];

  constructor(container, body) {
    container.append(...this.#plots.map((plot) => plot.node));
    for (const spec of PLOTS) {
      for (const series of spec.series) {
        const cells = ["now", "mean", "peak"].map((field) => [field, element("td", {}, "–")]);
        body.append(element("tr", {}, element("th", { scope: "row" }, series.name), ...cells.map(([, cell]) => cell)));
        this.#cells.push({ key: series.key, format: spec.format, cells });
      }
    }
    container.addEventListener("pointermove", (event) => this.#hover(event));
    container.addEventListener("pointerleave", () => this.#leave());
  }

  draw(history) {
    this.#history = history;
    if (!history.length) return;
    const age = history[history.length - 1].at - history[0].at;
    this.span = SPANS.find((span) => span >= age) ?? SPANS[SPANS.length - 1];
    for (const plot of this.#plots) plot.update(history, this.span, this.#hovered);
    for (const { key, format, cells } of this.#cells) {
      const numbers = summary(history, key);
      for (const [field, cell] of cells) cell.textContent = numbers[field] === null ? "–" : format(numbers[field]);
    }
  }

  #hover(event) {
    if (!this.#history.length) return;
    const frame = event.target.closest(".frame");
    if (!frame) return this.#leave();
    const box = frame.getBoundingClientRect();
    const end = this.#history[this.#history.length - 1].at;
    this.#hovered = end - this.span * (1 - (event.clientX - box.left) / box.width);
    this.draw(this.#history);
  }

  #leave() {
    if (this.#hovered === null) return;
    this.#hovered = null;
    this.draw(this.#history);
  }
}
