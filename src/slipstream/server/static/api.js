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

/** The name of the first model that the server lists. */
export async function modelName({ key, signal }) {
  const response = await send("v1/models", { headers: headers(key), signal });
  const list = (await response.json()).data ?? [];
  if (!list.length) throw new ApiError("The server lists no model.");
  return list[0].id;
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
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message ?? "The server failed.", { code: chunk.error.code ?? null });
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
