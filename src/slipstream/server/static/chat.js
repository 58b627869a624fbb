// The conversation: what is sent, what is kept, when it stops, when it is tried again.

import { ApiError, stream } from "./api.js";
import { element } from "./dom.js";
import { Exchange } from "./exchange.js";

/** The code of the 400 that a model without a chat template gives: it can only continue a text. */
const NO_TEMPLATE = "no_chat_template";
/** How often a full queue (429) is tried again without being asked, and the wait where the server names none. */
const AUTOMATIC_RETRIES = 3;
const DEFAULT_WAIT = 2;

function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

/**
 * `log` is the element that exchanges go into. `read()` gives {values, key, system} or null when a setting is wrong;
 * the other callbacks tell the page: onBusy(bool), onChange(count), onDrawn(), onMode(mode, why), onKeyNeeded(),
 * onField(param, message), announce(text), model() and copy(text, button).
 */
export class Chat {
  #exchanges = [];
  #abort = null;

  constructor(log, page) {
    this.log = log;
    this.page = page;
    this.mode = "chat";
  }

  get busy() {
    return this.#abort !== null;
  }

  /** Sends a message. False when it was not sent (busy, or a setting is wrong). */
  submit(prompt) {
    const settings = this.#ready();
    if (!settings) return false;
    const exchange = new Exchange(prompt, this.mode, {
      onCopy: (one) => this.page.copy(one.answer, one.copy),
      onRegenerate: (one) => this.regenerate(one),
      onRetry: (one) => this.regenerate(one),
    });
    this.#exchanges.push(exchange);
    this.#exchanges.forEach((one) => one.setNewest(one === exchange));
    this.log.append(exchange.node);
    this.page.onChange(this.#exchanges.length);
    this.#run(exchange, settings);
    return true;
  }

  /** Asks again for the answer of the newest exchange. */
  regenerate(exchange) {
    const settings = this.#ready();
    if (settings && exchange === this.#exchanges.at(-1)) this.#run(exchange, settings);
  }

  /** Ends the running answer (or the wait for a retry) and keeps what has come. */
  stop() {
    this.#abort?.abort();
  }

  /** Forgets the conversation. */
  clear() {
    this.stop();
    for (const exchange of this.#exchanges) exchange.dispose();
    this.#exchanges = [];
    this.log.replaceChildren();
    this.page.onChange(0);
  }

  #ready() {
    return this.busy ? null : this.page.read();
  }

  #body(exchange, { values, system }) {
    const shared = { model: this.page.model() ?? undefined, ...values };
    if (exchange.mode === "complete") return { ...shared, prompt: exchange.prompt };
    const messages = system ? [{ role: "system", content: system }] : [];
    for (const one of this.#exchanges) {
      if (one === exchange) break;
      if (one.mode !== "chat" || !one.answer) continue;
      messages.push({ role: "user", content: one.prompt }, { role: "assistant", content: one.answer });
    }
    return { ...shared, messages: [...messages, { role: "user", content: exchange.prompt }] };
  }

  async #run(exchange, settings) {
    const abort = new AbortController();
    this.#abort = abort;
    this.page.onBusy(true);
    try {
      for (let retries = 0; ; retries += 1) {
        const error = await this.#attempt(exchange, settings, abort.signal);
        if (error === null) break;
        if (this.#fallsBack(error, exchange)) continue;
        if (error.status !== 429 || retries >= AUTOMATIC_RETRIES) {
          this.#explain(error, exchange);
          break;
        }
        const wait = 1000 * (error.retryAfter ?? DEFAULT_WAIT);
        await this.#pause(exchange, error, wait, abort.signal);
      }
    } catch (error) {
      if (!abort.signal.aborted) throw error; // Else stopped during a wait: its error stays on screen.
    } finally {
      if (this.#abort === abort) {
        this.#abort = null;
        this.page.onBusy(false);
        this.page.onDrawn();
      }
    }
  }

  async #pause(exchange, error, wait, signal) {
    const readyAt = performance.now() + wait;
    exchange.fail(error.message, { readyAt, automatic: true });
    this.page.onDrawn();
    try {
      await sleep(wait, signal);
    } catch (stopped) {
      exchange.fail(error.message, { readyAt });
      throw stopped;
    }
  }

  /** One request. Null when it gave an answer or was stopped, else the error. */
  async #attempt(exchange, settings, signal) {
    const timing = { sent: performance.now(), first: null, last: null, chunks: 0, tokens: null };
    let ending = "lost";
    exchange.begin();
    this.page.onDrawn();
    try {
      for await (const part of stream(exchange.mode, this.#body(exchange, settings), { key: settings.key, signal })) {
        if (part.text) {
          timing.last = performance.now();
          timing.first ??= timing.last;
          timing.chunks += 1;
          exchange.append(part.text, () => timing, this.page.onDrawn);
        }
        if (part.finish) ending = part.finish;
        if (part.usage) timing.tokens = part.usage.completion_tokens;
      }
      exchange.finish(timing, ending);
      this.page.announce(`Answer: ${exchange.answer}`);
      return null;
    } catch (error) {
      if (signal.aborted) {
        exchange.finish(timing, "stopped");
        this.page.announce("Stopped.");
        return null;
      }
      exchange.finish(timing, "lost");
      return error instanceof ApiError ? error : new ApiError(`The answer could not be read: ${error.message}`);
    }
  }

  #fallsBack(error, exchange) {
    if (error.code !== NO_TEMPLATE || exchange.mode !== "chat") return false;
    this.mode = "complete";
    exchange.setMode("complete");
    this.page.onMode("complete", "This model has no chat template, so it continues your text instead of answering it.");
    return true;
  }

  #explain(error, exchange) {
    if (error.param) this.page.onField(error.param, error.message);
    const open = element("button", { type: "button", class: "quiet", on: { click: () => this.page.onKeyNeeded() } }, "Enter API key");
    const readyAt = error.retryAfter === null ? 0 : performance.now() + 1000 * error.retryAfter;
    exchange.fail(error.message, { readyAt, action: error.status === 401 ? open : null });
  }
}
