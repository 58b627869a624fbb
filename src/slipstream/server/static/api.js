// The OpenAI API of the server that this page came from.

import { events } from "./sse.js";

/** A request that did not give an answer. `retryAfter` is in seconds, or null where the server named none. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, param = null, retryAfter = null } = {}) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
    this.param = param;
    this.retryAfter = retryAfter;
  }
}

/** Previews of each image: the most that the server sends. */
const PREVIEWS = 3;
const PATHS = { chat: "v1/chat/completions", complete: "v1/completions" };
const EXPLAINED = {
  401: "The server wants an API key. Enter it in the settings.",
  403: "The API key does not allow this.",
  404: "The server does not have this path or model.",
  413: "The message is larger than the server takes.",
  429: "The server's queue is full.",
  503: "The server is not ready yet.",
  504: "The request took longer than the server allows.",
};

/** The path on this server, also where a proxy puts the page under a prefix. */
const at = (path) => new URL(path, document.baseURI);

function headers(key, extra = {}) {
  return key ? { ...extra, Authorization: `Bearer ${key}` } : extra;
}

/** Seconds of a Retry-After header: a number or a date (RFC 9110, 10.2.3). Null when absent or unreadable. */
export function retryAfter(value, now = Date.now()) {
  if (value === null || value.trim() === "") return null;
  if (/^\s*\d+(\.\d+)?\s*$/.test(value)) return Number(value);
  const date = Date.parse(value);
  return Number.isNaN(date) ? null : Math.max(0, Math.ceil((date - now) / 1000));
}

async function send(path, options) {
  let response;
  try {
    response = await fetch(at(path), { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Is it still running?");
  }
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  let said = {};
  try {
    said = (await response.json()).error ?? {};
  } catch {
    // Not OpenAI's shape (a proxy's page, say): the status has to do.
  }
  const message = said.message || EXPLAINED[response.status] || `The server answered with status ${response.status}.`;
  return new ApiError(message, {
    status: response.status,
    code: said.code ?? null,
    param: said.param ?? null,
    retryAfter: retryAfter(response.headers.get("Retry-After")),
  });
}

/** The models that the server lists: each has an id and a task ("image" for one that makes images, which has its limits). */
export async function models({ key, signal }) {
  const response = await send("v1/models", { headers: headers(key), signal });
  const list = (await response.json()).data ?? [];
  if (!list.length) throw new ApiError("The server lists no model.");
  return list;
}

/** The text of /metrics. */
export async function metricsText({ key, signal }) {
  const response = await send("metrics", { headers: headers(key), signal });
  return response.text();
}

/**
 * Streams one answer. `mode` is "chat" (body has messages) or "complete" (body has a prompt).
 * Yields {text}, {finish} and {usage} parts as they come. Throws ApiError; an abort throws AbortError.
 */
export async function* stream(mode, body, { key, signal }) {
  const response = await send(PATHS[mode], {
    method: "POST",
    headers: headers(key, { "Content-Type": "application/json" }),
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  let finished = false;
  for await (const chunk of chunks(response)) {
    const choice = chunk.choices?.[0];
    const text = choice ? (mode === "chat" ? choice.delta?.content : choice.text) : null;
    if (text) yield { text };
    if (choice?.finish_reason) {
      finished = true;
      yield { finish: choice.finish_reason };
    }
    if (chunk.usage) yield { usage: chunk.usage };
  }
  if (!finished) throw new ApiError("The connection ended before the answer did.");
}

/** Yields the events of a stream, parsed, until its [DONE] or its end. Throws the error that the stream itself tells. */
async function* chunks(response) {
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message ?? "The server failed.", { code: chunk.error.code ?? null });
    yield chunk;
  }
}

/**
 * Makes images. With `start`, a file, it is what they begin with. Yields the server's events with their `kind`:
 * "progress", "partial_image" or "completed"; the last two have the image as a `blob`.
 */
export async function* makeImages(body, { key, signal, start = null }) {
  const wanted = { ...body, stream: true, progress: true, partial_images: PREVIEWS };
  const response = await send(start ? "v1/images/edits" : "v1/images/generations", {
    method: "POST",
    headers: headers(key, start ? {} : { "Content-Type": "application/json" }),
    body: start ? form(wanted, start) : JSON.stringify(wanted),
    signal,
  });
  let missing = body.n ?? 1;
  for await (const event of chunks(response)) {
    const kind = event.type.split(".").at(-1);
    if (kind === "completed") missing -= 1;
    yield { ...event, kind, blob: event.b64_json ? picture(event) : null };
  }
  if (missing > 0) throw new ApiError("The connection ended before the images were done.");
}

function picture({ b64_json: data, output_format: format }) {
  return new Blob([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], { type: `image/${format}` });
}

function form(fields, file) {
  const data = new FormData();
  for (const [name, value] of Object.entries(fields)) if (value !== undefined) data.append(name, String(value));
  data.append("image", file, "image");
  return data;
}
