// Starts the page: joins the conversation, the settings and the metrics to the document.

import { metricsText, modelName } from "./api.js";
import { Chat } from "./chat.js";
import { byId, element } from "./dom.js";
import { Poller } from "./live.js";
import { Dashboard } from "./plots.js";
import { Settings } from "./settings.js";

const IDEAS = ["What is the capital of France?", "Explain a hash table to a ten-year-old.", "Write a haiku about rivers."];
const WIDE = matchMedia("(min-width: 1120px)");
const RECONNECT = 3000;
/** Within this many pixels of the end, the log follows the answer. */
const NEAR_END = 80;

const settings = new Settings(byId("settings-form"));
const message = byId("message");
const scroller = byId("scroll");
let model = null;
let following = true;

// Panels. On a wide screen they stand beside the conversation; on a narrow one they cover it, one at a time.

const panels = ["settings", "metrics"];
const toggle = (name) => byId(`toggle-${name}`);
const isOpen = (name) => !byId(name).hidden;

function setPanel(name, open) {
  byId(name).hidden = !open;
  toggle(name).setAttribute("aria-expanded", String(open));
  if (open && !WIDE.matches) panels.filter((other) => other !== name).forEach((other) => setPanel(other, false));
  document.querySelector("main").inert = !WIDE.matches && panels.some(isOpen);
}

function closePanel(name) {
  setPanel(name, false);
  toggle(name).focus();
}

for (const name of panels) {
  toggle(name).addEventListener("click", () => {
    setPanel(name, !isOpen(name));
    if (isOpen(name) && !WIDE.matches) byId(name).querySelector(".close").focus();
  });
  byId(name).querySelector(".close").addEventListener("click", () => closePanel(name));
}
const arrange = () => panels.forEach((name) => setPanel(name, WIDE.matches));
WIDE.addEventListener("change", arrange);
arrange();

function showSetting(input) {
  setPanel("settings", true);
  input.focus();
}

// The conversation.

function say(text) {
  byId("notice").textContent = text;
}

async function copy(text, button) {
  const label = button.querySelector("span");
  try {
    await navigator.clipboard.writeText(text);
    label.textContent = "Copied";
    byId("announcer").textContent = "Copied.";
  } catch {
    label.textContent = "Copying is blocked";
  }
  setTimeout(() => (label.textContent = "Copy"), 1500);
}

function follow() {
  if (following) scroller.scrollTop = scroller.scrollHeight;
}

scroller.addEventListener("scroll", () => {
  following = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_END;
});

function setMode(mode, why = "") {
  chat.mode = mode;
  document.querySelector(`input[name=mode][value=${mode}]`).checked = true;
  message.placeholder = mode === "chat" ? "Message the model" : "Text for the model to continue";
  say(why);
}

const chat = new Chat(byId("log"), {
  model: () => model,
  read() {
    const { values, error, input } = settings.read();
    if (error) {
      say(error);
      showSetting(input);
      return null;
    }
    say("");
    return { values, key: settings.apiKey, system: settings.systemPrompt };
  },
  onBusy(busy) {
    byId("send").hidden = busy;
    byId("stop").hidden = !busy;
    // The button that had the focus may just have gone; the keyboard goes on in the message box.
    if (document.activeElement === document.body) message.focus();
  },
  onChange(count) {
    byId("welcome").hidden = count > 0;
    byId("clear").disabled = count === 0;
    following = true;
  },
  onDrawn: follow,
  onMode: setMode,
  onKeyNeeded: () => showSetting(settings.key),
  onField(param, text) {
    if (settings.complain(param, text)) setPanel("settings", true);
  },
  announce: (text) => (byId("announcer").textContent = text),
  copy,
});

function fit() {
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight}px`;
}

function submit() {
  const text = message.value;
  if (text.trim() === "" || !chat.submit(text)) return;
  message.value = "";
  fit();
  message.focus();
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
message.addEventListener("input", fit);
message.addEventListener("keydown", (event) => {
  // Enter also ends an input method's composition; that one must not send.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  const covering = WIDE.matches ? undefined : panels.find(isOpen);
  if (covering) closePanel(covering);
  else chat.stop();
});
byId("stop").addEventListener("click", () => chat.stop());
byId("clear").addEventListener("click", () => {
  chat.clear();
  say("");
  message.focus();
});
for (const input of document.querySelectorAll("input[name=mode]")) {
  input.addEventListener("change", () => setMode(input.value));
}
byId("ideas").append(
  ...IDEAS.map((idea) => element("button", { type: "button", on: { click: () => chat.submit(idea) } }, idea)),
);

byId("curl").textContent = [
  `curl ${new URL("v1/chat/completions", document.baseURI)} \\`,
  `  -H 'Content-Type: application/json' \\`,
  `  -d '{"messages": [{"role": "user", "content": "${IDEAS[0]}"}]}'`,
].join("\n");
byId("copy-curl").addEventListener("click", (event) => copy(byId("curl").textContent, event.currentTarget));

// The model's name. A server that is still loading is asked again, while somebody looks.

let reconnect = null;

async function connect() {
  clearTimeout(reconnect);
  try {
    model = await modelName({ key: settings.apiKey });
    showModel("ready", model);
    document.title = `${model} · Slipstream`;
  } catch (error) {
    showModel("away", error.status === 401 ? "API key needed" : "Not reachable");
    if (error.status !== 401) reconnect = setTimeout(whenVisible, RECONNECT);
  }
}

function whenVisible() {
  if (document.visibilityState === "visible") connect();
  else reconnect = setTimeout(whenVisible, RECONNECT);
}

function showModel(state, text) {
  byId("model").dataset.state = state;
  byId("model-name").textContent = text;
}

settings.key.addEventListener("change", connect);
connect();

// The metrics.

const dashboard = new Dashboard(byId("plots"), byId("metrics-table"));
new Poller({
  fetchText: (signal) => metricsText({ key: settings.apiKey, signal }),
  onHistory: (history) => dashboard.draw(history),
  onState(reachable, error) {
    byId("metrics").dataset.state = reachable ? "live" : "away";
    byId("metrics-state").textContent = reachable ? `Last ${dashboard.span} seconds` : "Not reachable";
    byId("metrics-state").title = error?.message ?? "";
  },
}).start();

if (WIDE.matches) message.focus();
