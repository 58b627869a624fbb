// Reads Prometheus' text format and turns two readings into rates and quantiles. No DOM here.

const LINE = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?$/;
const LABEL = /([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"\s*,?\s*/g;
const ESCAPES = { "\\n": "\n", '\\"': '"', "\\\\": "\\" };
const SPECIAL = { "+Inf": Infinity, Inf: Infinity, "-Inf": -Infinity, NaN: NaN };

/** Samples by metric name: Map name -> [{labels, value}]. Lines that are not samples are passed over. */
export function parse(text) {
  const samples = new Map();
  for (const line of text.split("\n")) {
    if (line === "" || line.startsWith("#")) continue;
    const match = LINE.exec(line.trim());
    if (!match) continue;
    const [, name, inner = "", number] = match;
    const labels = {};
    for (const [, label, raw] of inner.matchAll(LABEL)) labels[label] = raw.replace(/\\[n"\\]/g, (s) => ESCAPES[s]);
    const value = number in SPECIAL ? SPECIAL[number] : Number(number);
    if (!samples.has(name)) samples.set(name, []);
    samples.get(name).push({ labels, value });
  }
  return samples;
}

/** Sum over all label sets (engines, models); null where the metric is absent. */
export function total(samples, name) {
  const found = samples.get(name);
  return found ? found.reduce((sum, sample) => sum + sample.value, 0) : null;
}

/** Mean over all label sets; null where the metric is absent. */
export function mean(samples, name) {
  const found = samples.get(name);
  return found ? total(samples, name) / found.length : null;
}

/** Cumulative buckets of a histogram, summed over label sets: sorted [[upper bound, count]]; [] where absent. */
export function buckets(samples, name) {
  const counts = new Map();
  for (const { labels, value } of samples.get(`${name}_bucket`) ?? []) {
    const bound = labels.le in SPECIAL ? SPECIAL[labels.le] : Number(labels.le);
    counts.set(bound, (counts.get(bound) ?? 0) + value);
  }
  return [...counts].sort((a, b) => a[0] - b[0]);
}

/** What was counted between two readings of a histogram; null when the counter went back (the server restarted). */
export function difference(older, newer) {
  const before = new Map(older);
  const counted = newer.map(([bound, count]) => [bound, count - (before.get(bound) ?? 0)]);
  return counted.some(([, count]) => count < 0) ? null : counted;
}

/**
 * The q-quantile of cumulative buckets, linear inside a bucket as Prometheus' histogram_quantile does it. A quantile
 * in the last, unbounded bucket is given as that bucket's lower bound. Null without observations.
 */
export function quantile(q, cumulative) {
  if (!cumulative?.length) return null;
  const all = cumulative[cumulative.length - 1][1];
  if (!(all > 0)) return null;
  const rank = q * all;
  let low = 0;
  let below = 0;
  for (const [bound, count] of cumulative) {
    if (count >= rank && count > below) {
      return bound === Infinity ? low : low + ((bound - low) * (rank - below)) / (count - below);
    }
    low = bound;
    below = count;
  }
  return low;
}

/** The vLLM names, and for counters the name with and without the `_total` that client libraries add. */
const NAMES = {
  prompt: ["vllm:prompt_tokens_total", "vllm:prompt_tokens"],
  generation: ["vllm:generation_tokens_total", "vllm:generation_tokens"],
};

const counter = (samples, name) => NAMES[name].map((n) => total(samples, n)).find((v) => v !== null) ?? null;

/** One reading: the few numbers that the plots need. `at` is in seconds. */
export function reading(samples, at) {
  return {
    at,
    prompt: counter(samples, "prompt"),
    generation: counter(samples, "generation"),
    running: total(samples, "vllm:num_requests_running"),
    waiting: total(samples, "vllm:num_requests_waiting"),
    kv: mean(samples, "vllm:kv_cache_usage_perc"),
    ttft: buckets(samples, "vllm:time_to_first_token_seconds"),
    itl: buckets(samples, "vllm:inter_token_latency_seconds"),
  };
}

/** Seconds over which rates and quantiles are taken: rates should move at once, quantiles need some observations. */
const RATE_WINDOW = 3;
const LATENCY_WINDOW = 10;

/** The newest reading that is at least `seconds` older than the last, or the oldest there is. */
function earlier(readings, seconds) {
  const last = readings[readings.length - 1];
  return readings.findLast((r) => last.at - r.at >= seconds) ?? readings[0];
}

/** Values of all series at the last of `readings` (oldest first). Null where there is nothing to say. */
export function derive(readings) {
  const last = readings[readings.length - 1];
  const rate = (name) => {
    const first = earlier(readings, RATE_WINDOW);
    if (first === last || first[name] === null || last[name] === null || last[name] < first[name]) return null;
    return (last[name] - first[name]) / (last.at - first.at);
  };
  const latency = (name, q) => {
    const first = earlier(readings, LATENCY_WINDOW);
    return first === last ? null : quantile(q, difference(first[name], last[name]));
  };
  return {
    at: last.at,
    generation: rate("generation"),
    prompt: rate("prompt"),
    running: last.running,
    waiting: last.waiting,
    kv: last.kv === null ? null : last.kv * 100,
    ttft50: scale(latency("ttft", 0.5)),
    ttft95: scale(latency("ttft", 0.95)),
    itl50: scale(latency("itl", 0.5)),
    itl95: scale(latency("itl", 0.95)),
  };
}

/** Seconds to milliseconds. */
const scale = (seconds) => (seconds === null ? null : seconds * 1000);
