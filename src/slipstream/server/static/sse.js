// Server-sent events from a fetch body (EventSource can neither POST nor send an Authorization header).

/**
 * Splits a byte stream into the `data` of its events. Feed chunks to `push`; an event, a line or a character may be
 * cut anywhere between two chunks. Comments and other fields are dropped, as the standard says.
 */
export class EventParser {
  #decoder = new TextDecoder();
  #rest = "";
  #data = [];

  /** The data of the events that this chunk (Uint8Array) completes, in order. */
  push(chunk) {
    this.#rest += this.#decoder.decode(chunk, { stream: true });
    // A lone CR at the very end may be the first half of CRLF: it waits for the next chunk.
    const end = this.#rest.endsWith("\r") ? this.#rest.length - 1 : this.#rest.length;
    const lines = this.#rest.slice(0, end).split(/\r\n|\r|\n/);
    this.#rest = lines.pop() + this.#rest.slice(end);
    const events = [];
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length) events.push(this.#data.join("\n"));
        this.#data = [];
      } else if (line === "data" || line.startsWith("data:")) {
        this.#data.push(line.slice(5).replace(/^ /, ""));
      }
    }
    return events;
  }
}

/** Yields the data of each event of a response body until it ends. */
export async function* events(body) {
  const parser = new EventParser();
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.push(value);
    }
  } finally {
    reader.releaseLock();
  }
}
