// One question and its answer on screen. It shows what it is told; chat.js decides.

import { element, icon } from "./dom.js";
import { render } from "./markdown.js";

const ENDINGS = { length: "cut at max tokens", stopped: "stopped", lost: "interrupted" };

/**
 * What is known about an answer's speed. Times are in ms of performance.now(); `tokens` comes from the server's usage,
 * or null, where the number of received chunks stands in for it.
 */
export function speed({ sent, first, last, chunks, tokens }) {
  const count = tokens ?? chunks;
  const streaming = first === null ? 0 : last - first;
  return {
    count,
    exact: tokens !== null,
    ttft: first === null ? null : first - sent,
    // The first token's time is prefill, so the rate is over the gaps after it.
    rate: count > 1 && streaming > 0 ? ((count - 1) * 1000) / streaming : null,
  };
}

/** The line under an answer, as parts: "41 tokens", "86.2 tok/s", "first token 112 ms", an unusual ending. */
export function describe(timing, ending) {
  const { count, exact, ttft, rate } = speed(timing);
  const parts = [`${exact ? "" : "about "}${count} token${count === 1 ? "" : "s"}`];
  if (rate !== null) parts.push(`${rate.toFixed(rate < 100 ? 1 : 0)} tok/s`);
  if (ttft !== null) parts.push(`first token ${ttft < 1000 ? `${Math.round(ttft)} ms` : `${(ttft / 1000).toFixed(2)} s`}`);
  if (ENDINGS[ending]) parts.push(ENDINGS[ending]);
  return parts;
}

export class Exchange {
  #frame = null;
  #ticker = null;

  /** `mode` is "chat" or "complete"; `actions` has onCopy, onRegenerate, onRetry. */
  constructor(prompt, mode, actions) {
    this.prompt = prompt;
    this.mode = mode;
    this.answer = "";
    this.prose = element("div", { class: "prose" });
    this.stats = element("p", { class: "stats" });
    this.problem = element("div", { class: "problem", role: "alert", hidden: true });
    this.retry = element("button", { type: "button", class: "quiet", on: { click: () => actions.onRetry(this) } }, "Retry");
    this.copy = this.#action("copy", "Copy", () => actions.onCopy(this));
    this.again = this.#action("again", "Regenerate", () => actions.onRegenerate(this));
    this.actions = element("div", { class: "actions", hidden: true }, this.copy, this.again);
    this.question = element(
      "div",
      { class: "question" },
      element("h3", { class: "unseen" }, "You"),
      element("p", { class: "bubble" }, prompt),
    );
    this.reply = element(
      "div",
      { class: "reply" },
      element("h3", { class: "unseen" }, "Model"),
      this.prose,
      this.problem,
      element("div", { class: "foot" }, this.stats, this.actions),
    );
    this.node = element("article", { class: "exchange" }, this.question, this.reply);
    this.setMode(mode);
  }

  setMode(mode) {
    this.mode = mode;
    this.node.dataset.mode = mode;
    this.question.hidden = mode === "complete";
  }

  /** Empties the answer and shows that one is on its way. */
  begin() {
    this.answer = "";
    this.prose.replaceChildren();
    this.stats.replaceChildren();
    this.#clearProblem();
    this.actions.hidden = true;
    this.reply.setAttribute("aria-busy", "true");
    this.node.dataset.state = "waiting";
    if (this.mode === "complete") this.#show();
  }

  /** Appends text. Many pieces within one frame are drawn once. */
  append(text, timing, onDrawn) {
    this.answer += text;
    this.node.dataset.state = "streaming";
    this.#frame ??= requestAnimationFrame(() => {
      this.#frame = null;
      this.#show();
      this.#tell(describe(timing(), null));
      onDrawn();
    });
  }

  /** Shows the finished (or stopped) answer with its numbers; `last`: whether it can be regenerated. */
  finish(timing, ending) {
    this.#settle();
    if (!this.answer && ending === "stopped") this.#tell(["stopped before the first token"]);
    else if (!this.answer && ending !== "lost") this.#tell(["an empty answer", ...describe(timing, ending)]);
    else if (this.answer) this.#tell(describe(timing, ending));
    this.copy.hidden = !this.answer;
    this.actions.hidden = ending === "lost";
  }

  /**
   * Shows an error. `readyAt` (ms of performance.now()) is the earliest moment at which a retry is allowed; `automatic`
   * says that it then happens by itself; `action` is one more button.
   */
  fail(message, { readyAt = 0, automatic = false, action = null } = {}) {
    this.#settle();
    this.#clearProblem();
    this.problem.append(element("p", {}, message), element("div", { class: "buttons" }, this.retry, ...(action ? [action] : [])));
    this.problem.hidden = false;
    const tick = () => {
      const left = Math.ceil((readyAt - performance.now()) / 1000);
      this.retry.disabled = left > 0;
      this.retry.textContent = left > 0 ? `${automatic ? "Trying again" : "Retry"} in ${left} s` : "Retry";
      if (left <= 0) clearInterval(this.#ticker);
    };
    this.#ticker = setInterval(tick, 250);
    tick();
  }

  /** Only the newest exchange can be regenerated or retried. */
  setNewest(newest) {
    this.again.hidden = !newest;
    this.retry.hidden = !newest;
  }

  /** Stops timers; the node is about to go. */
  dispose() {
    clearInterval(this.#ticker);
    if (this.#frame !== null) cancelAnimationFrame(this.#frame);
  }

  #settle() {
    if (this.#frame !== null) cancelAnimationFrame(this.#frame);
    this.#frame = null;
    this.reply.removeAttribute("aria-busy");
    this.node.dataset.state = "done";
    this.#show();
  }

  #show() {
    if (this.mode === "complete") {
      this.prose.replaceChildren(
        element("p", { class: "verbatim" }, element("span", { class: "given" }, this.prompt), this.answer),
      );
    } else {
      render(this.prose, this.answer);
    }
  }

  #tell(parts) {
    this.stats.replaceChildren(...parts.map((part) => element("span", {}, part)));
  }

  #clearProblem() {
    clearInterval(this.#ticker);
    this.problem.replaceChildren();
    this.problem.hidden = true;
  }

  #action(symbol, label, click) {
    return element("button", { type: "button", class: "quiet", on: { click } }, icon(symbol), element("span", {}, label));
  }
}
