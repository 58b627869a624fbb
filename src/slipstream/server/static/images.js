// Making images: what is sent, what is shown while it is made, what goes into the gallery.

import { ApiError, makeImages } from "./api.js";
import { element } from "./dom.js";
import { Picture } from "./picture.js";

function describe(ms, steps) {
  const seconds = ms / 1000;
  const parts = [`${seconds.toFixed(seconds < 10 ? 1 : 0)} s`];
  if (steps > 0) parts.push(`${(steps / seconds).toFixed(steps / seconds < 10 ? 2 : 0)} steps/s`);
  return parts;
}

/**
 * `log` is the element that pictures go into, `gallery` keeps the finished ones. `read()` gives {values, size, key} or
 * null when a setting is wrong; the other callbacks tell the page: onBusy(bool), onChange(count), onDrawn(),
 * onKeyNeeded(), onField(param, message), onStart(image), announce(text), model().
 */
export class Images {
  #pictures = [];
  #abort = null;
  #start = null;

  constructor(log, gallery, page) {
    this.log = log;
    this.gallery = gallery;
    this.page = page;
  }

  get busy() {
    return this.#abort !== null;
  }

  /** The image that the next ones begin with, or null. */
  get start() {
    return this.#start;
  }

  set start(image) {
    this.#start = image;
    this.page.onStart(image);
  }

  /** Asks for images. False when nothing was sent (busy, or a setting is wrong). */
  submit(prompt) {
    const settings = this.busy ? null : this.page.read();
    if (!settings) return false;
    const picture = new Picture(prompt, this.#start, {
      onOpen: (image) => this.gallery.open(image),
      onEdit: (image) => (this.start = image),
      onRetry: (one) => this.#again(one),
    });
    this.#pictures.push(picture);
    this.log.append(picture.node);
    this.page.onChange(this.#pictures.length);
    this.start = null;
    this.#run(picture, settings);
    return true;
  }

  /** Ends what is being made; finished images stay. */
  stop() {
    this.#abort?.abort();
  }

  /** Forgets the prompts; the gallery keeps its images. */
  clear() {
    this.stop();
    for (const picture of this.#pictures) picture.dispose();
    this.#pictures = [];
    this.page.onChange(0);
  }

  #again(picture) {
    const settings = this.busy ? null : this.page.read();
    if (settings) this.#run(picture, settings);
  }

  async #run(picture, { values, size, key }) {
    const abort = new AbortController();
    this.#abort = abort;
    this.page.onBusy(true);
    const { strength, ...others } = values;
    const body = { model: this.page.model() ?? undefined, prompt: picture.prompt, ...others };
    if (picture.start && strength !== undefined) body.strength = strength;
    const sent = performance.now();
    const done = new Map();
    let word = "interrupted";
    picture.begin(body.n ?? 1, picture.start ? null : size);
    this.page.onDrawn();
    try {
      for await (const event of makeImages(body, { key, signal: abort.signal, start: picture.start?.blob ?? null })) {
        done.set(event.index, event.step);
        this.#show(picture, event);
        this.page.onDrawn();
      }
      this.page.announce("The images are done.");
    } catch (error) {
      if (abort.signal.aborted) word = "stopped";
      else this.#explain(error, picture);
      if (abort.signal.aborted) this.page.announce("Stopped.");
    }
    const steps = [...done.values()].reduce((sum, step) => sum + step, 0);
    picture.finish(describe(performance.now() - sent, steps), word);
    if (this.#abort === abort) {
      this.#abort = null;
      this.page.onBusy(false);
      this.page.onDrawn();
    }
  }

  #show(picture, event) {
    const frame = picture.frames[event.index];
    frame.progress(event);
    if (event.kind === "partial_image") frame.preview(event.blob);
    if (event.kind === "completed") {
      const { blob, seed, size, output_format: format } = event;
      frame.finish(this.gallery.add({ blob, seed, size, format, prompt: picture.prompt }));
    }
  }

  #explain(given, picture) {
    const error = given instanceof ApiError ? given : new ApiError(`The images could not be read: ${given.message}`);
    if (error.param) this.page.onField(error.param, error.message);
    const open = element("button", { type: "button", class: "quiet", on: { click: () => this.page.onKeyNeeded() } }, "Enter API key");
    picture.fail(error.message, error.status === 401 ? open : null);
  }
}
