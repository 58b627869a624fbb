// The settings panel: one table says each field's label, limits and hint; the form, its checks and the request follow.

import { element } from "./dom.js";

const SAMPLING_KEY = "slipstream.settings";
const API_KEY = "slipstream.api-key";

/** Limits are the server's own. `above` excludes the lower limit. Seeds past 2^53 are not exact in JavaScript. */
export const FIELDS = [
  { name: "temperature", label: "Temperature", min: 0, max: 100, step: 0.1, preset: "0.7", hint: "0 is greedy" },
  { name: "max_tokens", label: "Max tokens", min: 1, max: 2 ** 31 - 1, integer: true, hint: "Longest answer" },
  { name: "top_p", label: "Top p", above: 0, min: 0, max: 1, step: 0.05, hint: "Probability kept" },
  { name: "top_k", label: "Top k", min: -1, max: 2 ** 31 - 1, integer: true, hint: "Tokens kept" },
  { name: "min_p", label: "Min p", min: 0, max: 1, step: 0.05, hint: "Share of likeliest" },
  { name: "seed", label: "Seed", min: -Number.MAX_SAFE_INTEGER, max: Number.MAX_SAFE_INTEGER, integer: true, hint: "Repeats an answer" },
  { name: "repetition_penalty", label: "Repetition", group: "Penalties", above: 0, min: 0, max: 100, step: 0.1 },
  { name: "frequency_penalty", label: "Frequency", group: "Penalties", min: -2, max: 2, step: 0.1 },
  { name: "presence_penalty", label: "Presence", group: "Penalties", min: -2, max: 2, step: 0.1 },
];

/**
 * Of images. `sends`: the request's field, where it has another name. Empty fields leave the choice to the server, whose
 * own values are shown in them.
 */
export const IMAGE_FIELDS = [
  { name: "width", label: "Width", min: 1, max: 65536, integer: true, hint: "Pixels" },
  { name: "height", label: "Height", min: 1, max: 65536, integer: true, hint: "Pixels" },
  { name: "steps", label: "Steps", min: 1, max: 10000, integer: true, hint: "More is slower" },
  { name: "guidance", label: "Guidance", min: 0, max: 100, step: 0.5, hint: "How literally" },
  { name: "n", label: "Images", min: 1, max: 10, integer: true, hint: "At a time" },
  { name: "image_seed", sends: "seed", label: "Image seed", min: 0, max: Number.MAX_SAFE_INTEGER, integer: true, hint: "Repeats an image" },
  { name: "strength", label: "Strength", above: 0, min: 0, max: 1, step: 0.05, hint: "Of an edit" },
];

/** Checks what was typed: {value} or {error}; an empty field is {} and leaves the choice to the server. */
export function check(field, raw) {
  const text = raw.trim();
  if (text === "") return {};
  const value = Number(text);
  if (!Number.isFinite(value)) return { error: `${field.label} must be a number.` };
  if (field.integer && !Number.isInteger(value)) return { error: `${field.label} must be a whole number.` };
  if (field.above !== undefined && value <= field.above) return { error: `${field.label} must be over ${field.above}.` };
  if (value < field.min) return { error: `${field.label} must be at least ${field.min}.` };
  if (value > field.max) return { error: `${field.label} must be at most ${field.max}.` };
  return { value };
}

function load(key) {
  try {
    return sessionStorage.getItem(key);
  } catch {
    return null;
  }
}

function save(key, value) {
  try {
    sessionStorage.setItem(key, value);
  } catch {
    // Storage can be blocked; the fields themselves still hold the values.
  }
}

/** Builds the form's fields and reads them. Everything is kept for this tab only, in sessionStorage. */
export class Settings {
  #inputs = new Map();
  #errors = new Map();

  constructor(form) {
    const stored = JSON.parse(load(SAMPLING_KEY) ?? "{}");
    this.system = element("textarea", { id: "system", rows: "3", placeholder: "None" });
    this.system.value = stored.system ?? "";
    this.key = element("input", {
      id: "api-key",
      type: "password",
      autocomplete: "off",
      spellcheck: "false",
      placeholder: "Not needed by default",
      "aria-describedby": "api-key-hint",
    });
    this.key.value = load(API_KEY) ?? "";
    form.append(
      element("div", { class: "field", "data-for": "text" }, element("label", { for: "system" }, "System prompt"), this.system),
      this.#group("Sampling", FIELDS.filter((f) => !f.group), stored),
      this.#group("Penalties", FIELDS.filter((f) => f.group === "Penalties"), stored, "thirds"),
      element("button", { type: "button", class: "quiet", id: "reset", on: { click: () => this.#reset() } }, "Reset to defaults"),
      element(
        "div",
        { class: "field" },
        element("label", { for: "api-key" }, "API key"),
        this.key,
        element("p", { class: "hint", id: "api-key-hint" }, "Forgotten when the tab closes."),
      ),
    );
    this.form = form;
    this.stored = stored;
    this.limits = null;
    form.addEventListener("input", () => this.#store());
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  get apiKey() {
    return this.key.value.trim();
  }

  get systemPrompt() {
    return this.system.value.trim();
  }

  /** Adds the fields of images, once, with the model's own values and limits in them (see /v1/models). */
  offerImages(limits) {
    if (this.limits) return;
    this.limits = limits;
    const [width, height] = limits.size.split("x");
    const shown = { width, height, steps: limits.steps, guidance: limits.guidance, n: 1, image_seed: "drawn", strength: "default" };
    const fields = IMAGE_FIELDS.filter((field) => field.name !== "strength" || limits.edits);
    const group = this.#group("Images", fields, this.stored, "halves", "image");
    this.negative = element("textarea", { id: "negative", rows: "2", placeholder: "None" });
    this.negative.value = this.stored.negative ?? "";
    const negative = element(
      "div",
      { class: "field", "data-for": "image" },
      element("label", { for: "negative" }, "Negative prompt"),
      this.negative,
    );
    this.form.prepend(group, ...(limits.negative_prompt ? [negative] : []));
    for (const field of fields) this.#inputs.get(field.name).placeholder = shown[field.name];
  }

  /** Shows the fields of texts ("text") or of images ("image"). */
  show(kind) {
    for (const part of this.form.querySelectorAll("[data-for]")) part.hidden = part.dataset.for !== kind;
  }

  /** What a request for images says: {values, size}, or {error, input}. */
  readImages() {
    const { values: read, error, input } = this.#read(IMAGE_FIELDS.filter((field) => this.#inputs.has(field.name)));
    if (error) return { error, input };
    const { width, height, image_seed: seed, ...values } = read;
    const [ownWidth, ownHeight] = this.limits.size.split("x").map(Number);
    const size = { width: width ?? ownWidth, height: height ?? ownHeight };
    const asked = width !== undefined || height !== undefined;
    const negative = this.negative?.isConnected ? this.negative.value.trim() : "";
    return {
      size,
      values: {
        ...values,
        ...(seed === undefined ? {} : { seed }),
        ...(asked ? { size: `${size.width}x${size.height}` } : {}),
        ...(negative ? { negative_prompt: negative } : {}),
      },
    };
  }

  /** The fields of the request's body: {values}, or {error, input} for the first field that is wrong. */
  read() {
    return this.#read(FIELDS);
  }

  #read(fields) {
    const values = {};
    let wrong = null;
    for (const field of fields) {
      const input = this.#inputs.get(field.name);
      const { value, error } = this.#check(field);
      if (error && !wrong) wrong = { error, input };
      if (value !== undefined) values[field.name] = value;
    }
    return wrong ?? { values };
  }

  /** Shows the server's complaint at the field it names. False when there is no such field here. */
  complain(param, message, fields = FIELDS) {
    const name = param === "size" ? "width" : param;
    const field = fields.find((f) => (f.sends ?? f.name) === name && this.#inputs.has(f.name));
    if (field) this.#show(field, message);
    return Boolean(field);
  }

  #group(title, fields, stored, layout = "halves", kind = "text") {
    return element(
      "fieldset",
      { "data-for": kind },
      element("legend", {}, title),
      element("div", { class: layout }, ...fields.map((field) => this.#field(field, stored))),
    );
  }

  #field(field, stored) {
    const id = `field-${field.name}`;
    const input = element("input", {
      id,
      type: "number",
      inputmode: field.integer ? "numeric" : "decimal",
      step: field.integer ? 1 : "any",
      min: field.min,
      max: field.max,
      placeholder: "default",
      "aria-describedby": field.hint ? `${id}-hint ${id}-error` : `${id}-error`,
      on: { input: () => this.#check(field), keydown: (event) => nudge(event, field) },
    });
    input.value = stored[field.name] ?? field.preset ?? "";
    const error = element("p", { class: "error", id: `${id}-error` });
    this.#inputs.set(field.name, input);
    this.#errors.set(field.name, error);
    return element(
      "div",
      { class: "field" },
      element("label", { for: id }, field.label),
      input,
      ...(field.hint ? [element("p", { class: "hint", id: `${id}-hint` }, field.hint)] : []),
      error,
    );
  }

  #check(field) {
    const input = this.#inputs.get(field.name);
    // The browser gives an empty value for text that is no number; only validity tells the two apart.
    const result = input.validity.badInput ? { error: `${field.label} must be a number.` } : check(field, input.value);
    this.#show(field, result.error ?? "");
    return result;
  }

  #show(field, message) {
    this.#errors.get(field.name).textContent = message;
    this.#inputs.get(field.name).setAttribute("aria-invalid", String(message !== ""));
  }

  #store() {
    const values = { system: this.system.value, negative: this.negative?.value ?? this.stored.negative };
    for (const [name, input] of this.#inputs) values[name] = input.value;
    save(SAMPLING_KEY, JSON.stringify(values));
    save(API_KEY, this.key.value);
  }

  #reset() {
    this.system.value = "";
    if (this.negative) this.negative.value = "";
    for (const field of [...FIELDS, ...IMAGE_FIELDS].filter((one) => this.#inputs.has(one.name))) {
      this.#inputs.get(field.name).value = field.preset ?? "";
      this.#check(field);
    }
    this.#store();
  }
}

/** Arrow keys step by the field's own step: `step` itself is "any", so that every number can be typed. */
function nudge(event, field) {
  const direction = { ArrowUp: 1, ArrowDown: -1 }[event.key];
  if (!direction || field.integer) return;
  event.preventDefault();
  const start = Number(event.target.value || (field.above === undefined ? 0 : field.max === 1 ? 1 : field.above));
  const next = Math.min(field.max, Math.max(field.min, start + direction * field.step));
  event.target.value = String(Number(next.toFixed(4)));
  event.target.dispatchEvent(new Event("input", { bubbles: true }));
}
