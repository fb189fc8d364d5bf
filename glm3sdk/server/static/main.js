// The chat page: what is open, what runs, and what each part of the page does about it.

import { CompletionError, complete, modelName } from "./completion.js";
import * as talk from "./conversation.js";
import { Composer } from "./composer.js";
import { element } from "./dom.js";
import { askKey, askSettings, keyReason } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { apiKey, Conversations, prefer, preference } from "./storage.js";
import { preferredLanguage, speak, text } from "./texts.js";
import { Transcript } from "./transcript.js";

const $ = (id) => document.getElementById(id);

/** The model's name; null where the server cannot be asked. */
let model = "";
let problem = null;
let editing = false;
/** The replies that are being written, by the conversation's id; several may be. */
const running = new Map();
/** What went wrong last, by the conversation's id. */
const failures = new Map();

const store = new Conversations((name) => {
  problem = name;
  showNotice();
});
const transcript = new Transcript({ answer, retry, edit });
const composer = new Composer({ send, stop, unedit });
const sidebar = new Sidebar({ open, rename, remove, create });
let current = store.list().find(({ id }) => id === preference("open")) ?? talk.newConversation();

function show() {
  prefer("open", current.id);
  const title = talk.titleOf(current) || text("untitled");
  document.title = `${title} · GLM3`;
  $("title").textContent = title;
  $("model").textContent = model ?? text("disconnected");
  $("export").disabled = !current.messages.length;
  $("active").textContent = activeSettings();
  sidebar.show(store.list(), current.id, (id) => running.has(id));
  showWelcome();
  showFailure();
  transcript.show(current, running.has(current.id));
  composer.show(running.has(current.id));
}

function activeSettings() {
  const words = [];
  if (current.settings.system.trim()) words.push(text("activeSystem"));
  const tools = talk.requestBody(current).tools?.length;
  if (tools) words.push(text("activeTools", tools));
  return words.join(" · ");
}

function showWelcome() {
  const fresh = current.messages.length === 0;
  $("welcome").hidden = !fresh;
  if (!fresh) return;
  const buttons = text("suggestions").map((suggestion) => {
    const made = element("button", { type: "button", textContent: suggestion });
    made.addEventListener("click", () => send(suggestion));
    return made;
  });
  $("suggestions").replaceChildren(...buttons);
}

function showNotice() {
  $("notice").hidden = problem === null;
  $("notice").textContent = problem === null ? "" : text(problem);
}

function showFailure() {
  const failure = failures.get(current.id);
  if (!failure) {
    $("failure").replaceChildren();
    return;
  }
  const known = failure instanceof CompletionError;
  const said = known && failure.kind !== "key" ? text(failure.kind, failure.seconds) : keyReason();
  const again = element("button", { type: "button", className: "plain", textContent: text("retry") });
  again.addEventListener("click", retry);
  const words = element("div", {}, element("p", { textContent: known ? said : text("failed") }));
  if (failure.message !== failure.kind) {
    words.append(element("p", { className: "detail", textContent: failure.message }));
  }
  $("failure").replaceChildren(words, again);
}

function open(conversation) {
  unedit();
  current = conversation;
  transcript.atEnd = true;
  sidebar.fold();
  show();
  // A phone would put its keyboard over what was opened.
  if (!matchMedia("(pointer: coarse)").matches) composer.focus();
}

function create() {
  open(talk.newConversation(current.settings));
}

function rename(conversation, title) {
  conversation.title = title;
  keep(conversation);
  show();
}

function remove(conversation) {
  running.get(conversation.id)?.abort();
  store.delete(conversation.id);
  if (conversation === current) create();
  else show();
}

function keep(conversation) {
  if (conversation.messages.length) store.save(conversation);
}

function send(content) {
  if (running.has(current.id)) return;
  if (editing) current.messages.length = talk.lastQuestion(current);
  unedit();
  current.messages.push({ role: "user", content });
  void run(current);
}

function answer(results) {
  const calls = talk.openCalls(current);
  calls.forEach((call, position) => {
    const content = results[position];
    current.messages.push({ role: "tool", tool_call_id: call.id, content });
  });
  composer.focus();
  void run(current);
}

function retry() {
  if (running.has(current.id)) return;
  current.messages = talk.withoutReply(current);
  composer.focus();
  void run(current);
}

function edit() {
  editing = true;
  composer.write(current.messages[talk.lastQuestion(current)].content, { editing });
}

function unedit() {
  if (!editing) return;
  editing = false;
  composer.write("");
}

function stop() {
  running.get(current.id)?.abort();
}

async function run(conversation) {
  const control = new AbortController();
  const reply = { role: "assistant", content: "", note: {} };
  const body = {
    ...talk.requestBody(conversation),
    stream: true,
    stream_options: { include_usage: true },
  };
  const started = performance.now();
  running.set(conversation.id, control);
  failures.delete(conversation.id);
  conversation.changed = Date.now();
  conversation.messages.push(reply);
  keep(conversation);
  transcript.atEnd = true;
  show();
  say(text("writing"));
  try {
    for await (const chunk of complete(body, { key: apiKey(), signal: control.signal })) {
      talk.grow(reply, chunk);
      model = chunk.model;
      if (conversation === current) transcript.grow(conversation);
    }
    reply.note.seconds = (performance.now() - started) / 1000;
  } catch (error) {
    talk.breakOff(reply, "stopped");
    if (!control.signal.aborted) failures.set(conversation.id, error);
    if (!reply.content && !reply.tool_calls && !control.signal.aborted) conversation.messages.pop();
  }
  running.delete(conversation.id);
  if (store.all.has(conversation.id)) keep(conversation);
  show();
  if (conversation === current && !failures.has(conversation.id)) say(spoken(reply));
  const failure = failures.get(conversation.id);
  if (failure?.kind === "key" && conversation === current && (await askKey(keyReason()))) retry();
}

/** A reply for those who hear the page: once, when it is whole. */
function spoken({ content, tool_calls: calls }) {
  const names = (calls ?? []).map((call) => call.function.name).join(", ");
  return [content && text("replied", content), names && text("calls", names)]
    .filter(Boolean)
    .join(" ");
}

function say(words) {
  $("spoken").textContent = words;
}

async function connect() {
  try {
    model = await modelName(apiKey());
  } catch (error) {
    model = null;
    if (error.kind === "key") {
      show();
      if (await askKey(keyReason())) return connect();
    }
  }
  return show();
}

function download() {
  const { messages, ...options } = talk.requestBody(current);
  const content = JSON.stringify({ model, ...options, messages }, null, 2);
  const url = URL.createObjectURL(new Blob([content], { type: "application/json" }));
  const name = (talk.titleOf(current) || "conversation").replace(/[^\p{L}\p{N}]+/gu, "-");
  element("a", { href: url, download: `${name}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

async function change() {
  const conversation = current;
  const settings = await askSettings(conversation.settings);
  if (!settings) return;
  conversation.settings = settings;
  keep(conversation);
  show();
}

function choose(id, chosen, apply) {
  $(id).value = chosen;
  $(id).addEventListener("change", () => {
    prefer(id, $(id).value);
    apply($(id).value);
    show();
    showNotice();
  });
  apply(chosen);
}

choose("language", preference("language") ?? preferredLanguage(), speak);
choose("theme", preference("theme") ?? "system", (theme) => {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
});
$("settings").addEventListener("click", change);
$("export").addEventListener("click", download);
$("key").addEventListener("click", async () => (await askKey()) && connect());

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || document.querySelector("dialog[open]")) return;
  if (sidebar.unfolded) sidebar.fold();
  else if (editing) unedit();
  else stop();
});

addEventListener("pagehide", () => {
  for (const id of running.keys()) {
    const conversation = store.all.get(id);
    if (!conversation) continue;
    talk.breakOff(conversation.messages.at(-1), "stopped");
    keep(conversation);
  }
});

addEventListener("storage", ({ key }) => {
  const writing = [...running.keys()].some((id) => key?.endsWith(id));
  const id = key && !writing ? store.read(key) : null;
  if (!id) return;
  if (id === current.id && store.all.has(id)) current = store.all.get(id);
  show();
});

showNotice();
show();
void connect();
