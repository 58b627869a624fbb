// One prompt and its images on screen. It shows what it is told; images.js decides.

import { element, icon } from "./dom.js";

/** One image: a bar while it is made, previews as they come, then the picture with its buttons. */
class Frame {
  /** `actions` has onOpen(image), onEdit(image). */
  constructor(number, actions) {
    this.actions = actions;
    this.image = null;
    this.shown = null;
    this.img = element("img", { alt: "", hidden: true, on: { click: () => this.image && actions.onOpen(this.image) } });
    this.bar = element("progress", { max: 1, value: 0, "aria-label": `Image ${number}` });
    this.count = element("span", { class: "count" }, "waiting");
    this.caption = element("figcaption", {}, this.bar, this.count);
    this.node = element("figure", { class: "frame", "data-state": "waiting" }, element("div", { class: "canvas" }, this.img), this.caption);
  }

  progress({ step, steps }) {
    this.node.dataset.state = "running";
    this.bar.max = Math.max(1, steps);
    this.bar.value = step;
    this.count.textContent = `step ${step} of ${steps}`;
  }

  /** Shows a blob, forgetting the one before. */
  preview(blob) {
    const old = this.shown;
    this.shown = URL.createObjectURL(blob);
    this.img.src = this.shown;
    this.img.hidden = false;
    if (old) URL.revokeObjectURL(old);
  }

  /** The finished image: {url, blob, prompt, seed, size, format}. Its URL belongs to the gallery. */
  finish(image) {
    if (this.shown) URL.revokeObjectURL(this.shown);
    this.shown = null;
    this.image = image;
    this.node.dataset.state = "done";
    this.img.src = image.url;
    this.img.alt = image.prompt;
    this.img.hidden = false;
    this.img.tabIndex = 0;
    this.img.setAttribute("role", "button");
    this.img.addEventListener("keydown", (event) => event.key === "Enter" && this.actions.onOpen(image));
    this.caption.replaceChildren(
      element("span", { class: "count" }, `${image.size} · seed ${image.seed}`),
      download(image),
      element(
        "button",
        { type: "button", class: "quiet edit", on: { click: () => this.actions.onEdit(image) } },
        icon("again"),
        element("span", {}, "Edit"),
      ),
    );
  }

  /** Nothing more comes: an image that is not done keeps its preview. */
  stop(word) {
    if (this.image) return;
    this.node.dataset.state = "stopped";
    this.bar.hidden = true;
    this.count.textContent = word;
  }

  dispose() {
    if (this.shown) URL.revokeObjectURL(this.shown);
  }
}

/** A link that saves an image, named by its seed. */
export function download(image) {
  return element(
    "a",
    { class: "quiet", href: image.url, download: `slipstream-${image.seed}.${image.format}` },
    icon("save"),
    element("span", {}, "Save"),
  );
}

export class Picture {
  /** `start` is the image that is edited, or null; `actions` has onOpen, onEdit, onRetry. */
  constructor(prompt, start, actions) {
    this.prompt = prompt;
    this.start = start;
    this.actions = actions;
    this.frames = [];
    this.grid = element("div", { class: "frames" });
    this.stats = element("p", { class: "stats" });
    this.problem = element("div", { class: "problem", role: "alert", hidden: true });
    this.again = element(
      "button",
      { type: "button", class: "quiet", hidden: true, on: { click: () => actions.onRetry(this) } },
      icon("again"),
      element("span", {}, "Again"),
    );
    const bubble = element("p", { class: "bubble" }, prompt);
    if (start) bubble.prepend(element("img", { class: "start", src: start.url, alt: "The image to edit" }));
    this.node = element(
      "article",
      { class: "exchange", "data-mode": "image" },
      element("div", { class: "question" }, element("h3", { class: "unseen" }, "You"), bubble),
      element(
        "div",
        { class: "reply" },
        element("h3", { class: "unseen" }, "Images"),
        this.grid,
        this.problem,
        element("div", { class: "foot" }, this.stats, element("div", { class: "actions" }, this.again)),
      ),
    );
  }

  /** Shows that `count` images are on their way, of this size: {width, height}, or null where it is not known yet. */
  begin(count, size) {
    this.dispose();
    this.frames = Array.from({ length: count }, (_, i) => new Frame(i + 1, this.actions));
    this.grid.replaceChildren(...this.frames.map((frame) => frame.node));
    if (size) this.grid.style.setProperty("--aspect", `${size.width} / ${size.height}`);
    this.grid.dataset.count = String(count);
    this.problem.hidden = true;
    this.again.hidden = true;
    this.stats.replaceChildren();
    this.node.setAttribute("aria-busy", "true");
  }

  /** All is done, or stopped; `parts` is the line under it. */
  finish(parts, word) {
    this.node.removeAttribute("aria-busy");
    for (const frame of this.frames) frame.stop(word);
    this.stats.replaceChildren(...parts.map((part) => element("span", {}, part)));
    this.again.hidden = false;
  }

  fail(message, action = null) {
    this.problem.replaceChildren(element("p", {}, message), element("div", { class: "buttons" }, ...(action ? [action] : [])));
    this.problem.hidden = false;
  }

  dispose() {
    for (const frame of this.frames) frame.dispose();
  }
}
