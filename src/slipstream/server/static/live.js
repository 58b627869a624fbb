// Polls /metrics while the tab is visible and keeps the last two minutes of what it says.

import { derive, parse, reading } from "./metrics.js";

const SPAN = 120;
const PERIOD = 1000;
const PERIOD_UNREACHABLE = 5000;
/** Seconds without a reading (a hidden tab) after which the lines break and rates start anew. */
const GAP = 5;
/** Readings to keep for the longest window of metrics.js, at one a second. */
const KEPT = 15;

const EMPTY = { generation: null, prompt: null, running: null, waiting: null, kv: null, ttft50: null, ttft95: null, itl50: null, itl95: null };

/**
 * `fetchText(signal)` gives the text of /metrics; `onHistory(points)` gets the derived points, oldest first;
 * `onState(reachable, error)` is told how it goes.
 */
export class Poller {
  #readings = [];
  #history = [];
  #timer = null;
  #abort = null;

  constructor({ fetchText, onHistory, onState }) {
    this.fetchText = fetchText;
    this.onHistory = onHistory;
    this.onState = onState;
  }

  /** Follows the tab's visibility from now on. */
  start() {
    document.addEventListener("visibilitychange", () => this.#follow());
    this.#follow();
  }

  #follow() {
    if (document.visibilityState === "visible") this.#poll();
    else this.#pause();
  }

  #pause() {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#abort?.abort();
    this.#abort = null;
  }

  async #poll() {
    this.#pause();
    const abort = new AbortController();
    this.#abort = abort;
    let next = PERIOD;
    try {
      const samples = parse(await this.fetchText(abort.signal));
      this.#take(reading(samples, performance.now() / 1000));
      this.onHistory(this.#history);
      this.onState(true, null);
    } catch (error) {
      if (abort.signal.aborted) return;
      next = PERIOD_UNREACHABLE;
      this.onState(false, error);
    }
    if (!abort.signal.aborted) this.#timer = setTimeout(() => this.#poll(), next);
  }

  #take(now) {
    const last = this.#readings[this.#readings.length - 1];
    if (last && now.at - last.at > GAP) {
      this.#history.push({ ...EMPTY, at: last.at + 1 });
      this.#readings = [];
    }
    this.#readings = [...this.#readings, now].slice(-KEPT);
    this.#history = [...this.#history, derive(this.#readings)].filter((point) => now.at - point.at <= SPAN);
  }
}
