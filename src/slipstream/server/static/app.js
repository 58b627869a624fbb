// Starts the page: joins the conversation, the images, the settings and the metrics to the document.

import { metricsText, models } from "./api.js";
import { Chat } from "./chat.js";
import { byId, element } from "./dom.js";
import { Gallery } from "./gallery.js";
import { Images } from "./images.js";
import { Poller } from "./live.js";
import { Dashboard } from "./plots.js";
import { IMAGE_FIELDS, Settings } from "./settings.js";

/** What the page says in a mode of this kind. `curl` is the path and body of a request that can be pasted. */
const KINDS = {
  text: {
    title: "What shall the model answer?",
    ideas: ["What is the capital of France?", "Explain a hash table to a ten-year-old.", "Write a haiku about rivers."],
    curl: ["v1/chat/completions", (idea) => ({ messages: [{ role: "user", content: idea }] })],
  },
  image: {
    title: "What shall the model draw?",
    ideas: ["A red apple", "A smiling face", "A lighthouse at dawn, oil on canvas"],
    curl: ["v1/images/generations", (idea) => ({ prompt: idea, response_format: "url" })],
  },
};
const PLACEHOLDERS = {
  chat: "Message the model",
  complete: "Text for the model to continue",
  image: "What the image should show",
};
const WIDE = matchMedia("(min-width: 1120px)");
const RECONNECT = 3000;
/** Within this many pixels of the end, the log follows the answer. */
const NEAR_END = 80;

const settings = new Settings(byId("settings-form"));
const message = byId("message");
const scroller = byId("scroll");
let model = null;
let imageModel = null;
let mode = "chat";

const kindOf = (name) => (name === "image" ? "image" : "text");
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

function setMode(name, why = "") {
  mode = name;
  if (kindOf(name) === "text") chat.mode = name;
  document.querySelector(`input[name=mode][value=${name}]`).checked = true;
  message.placeholder = PLACEHOLDERS[name];
  settings.show(kindOf(name));
  gallery.visible = kindOf(name) === "image";
  byId("starting").hidden = kindOf(name) === "text" || images.start === null;
  invite(KINDS[kindOf(name)]);
  say(why);
}

function invite({ title, ideas, curl: [path, body] }) {
  byId("welcome-title").textContent = title;
  byId("ideas").replaceChildren(
    ...ideas.map((idea) => element("button", { type: "button", on: { click: () => send(idea) } }, idea)),
  );
  byId("curl").textContent = [
    `curl ${new URL(path, document.baseURI)} \\`,
    `  -H 'Content-Type: application/json' \\`,
    `  -d '${JSON.stringify(body(ideas[0]))}'`,
  ].join("\n");
}

function readyOrSay(read) {
  const { error, input, ...found } = read;
  if (error) {
    say(error);
    showSetting(input);
    return null;
  }
  say("");
  return { ...found, key: settings.apiKey };
}

const counts = { texts: 0, images: 0 };

function changed(which, count) {
  counts[which] = count;
  const none = counts.texts + counts.images === 0;
  byId("welcome").hidden = !none;
  byId("clear").disabled = none;
  following = true;
}

function busy(now) {
  byId("send").hidden = now;
  byId("stop").hidden = !now;
  // The button that had the focus may just have gone; the keyboard goes on in the message box.
  if (document.activeElement === document.body) message.focus();
}

const announce = (text) => (byId("announcer").textContent = text);

const chat = new Chat(byId("log"), {
  model: () => model,
  read: () => readyOrSay({ ...settings.read(), system: settings.systemPrompt }),
  onBusy: busy,
  onChange: (count) => changed("texts", count),
  onDrawn: follow,
  onMode: setMode,
  onKeyNeeded: () => showSetting(settings.key),
  onField(param, text) {
    if (settings.complain(param, text)) setPanel("settings", true);
  },
  announce,
  copy,
});

const gallery = new Gallery(byId("gallery"), byId("viewer"), (image) => (images.start = image));
const images = new Images(byId("log"), gallery, {
  model: () => imageModel,
  read: () => readyOrSay(settings.readImages()),
  onBusy: busy,
  onChange: (count) => changed("images", count),
  onDrawn: follow,
  onKeyNeeded: () => showSetting(settings.key),
  onField(param, text) {
    if (settings.complain(param, text, IMAGE_FIELDS)) setPanel("settings", true);
  },
  onStart(image) {
    byId("starting").hidden = image === null;
    if (image === null) return;
    byId("starting-image").src = image.url;
    if (mode !== "image") setMode("image");
    message.focus();
  },
  announce,
});
byId("starting-clear").addEventListener("click", () => (images.start = null));
setMode("chat");

function fit() {
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight}px`;
}

/** Sends a text to what the mode asks. One thing is made at a time, whichever it is. */
function send(text) {
  if (chat.busy || images.busy) return false;
  return kindOf(mode) === "image" ? images.submit(text) : chat.submit(text);
}

function stop() {
  chat.stop();
  images.stop();
}

function submit() {
  const text = message.value;
  if (text.trim() === "" || !send(text)) return;
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
  if (event.key !== "Escape" || byId("viewer").open) return;
  const covering = WIDE.matches ? undefined : panels.find(isOpen);
  if (covering) closePanel(covering);
  else stop();
});
byId("stop").addEventListener("click", stop);
byId("clear").addEventListener("click", () => {
  chat.clear();
  images.clear();
  say("");
  message.focus();
});
for (const input of document.querySelectorAll("input[name=mode]")) {
  input.addEventListener("change", () => setMode(input.value));
}
byId("copy-curl").addEventListener("click", (event) => copy(byId("curl").textContent, event.currentTarget));

// The models' names. A server that is still loading is asked again, while somebody looks.

let reconnect = null;

async function connect() {
  clearTimeout(reconnect);
  try {
    meet(await models({ key: settings.apiKey }));
  } catch (error) {
    showModel("away", error.status === 401 ? "API key needed" : "Not reachable");
    if (error.status !== 401) reconnect = setTimeout(whenVisible, RECONNECT);
  }
}

/** Fits the page to the models: a mode that none of them serves is not offered. */
function meet(list) {
  const texts = list.find((one) => one.task !== "image");
  const drawing = list.find((one) => one.task === "image");
  model = texts?.id ?? null;
  imageModel = drawing?.id ?? null;
  if (drawing) settings.offerImages(drawing.image);
  const offered = { chat: texts, complete: texts, image: drawing };
  for (const input of document.querySelectorAll("input[name=mode]")) input.parentElement.hidden = !offered[input.value];
  setMode(offered[mode] ? mode : texts ? "chat" : "image", byId("notice").textContent);
  const names = [model, imageModel].filter((name) => name !== null).join(" + ");
  showModel("ready", names);
  document.title = `${names} · Slipstream`;
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
