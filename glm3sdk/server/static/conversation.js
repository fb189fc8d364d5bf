// A conversation: messages in OpenAI's form, and the settings that go with them.
//
// A message has one property more, `note`, which is never sent: how a reply ended, its token
// count and seconds.

import { readTools } from "./tools.js";

export const NO_SETTINGS = Object.freeze({
  system: "",
  tools: "",
  greedy: false,
  temperature: null,
  top_p: null,
  max_tokens: null,
  seed: null,
});

/** An empty conversation. */
export function newConversation(settings = NO_SETTINGS) {
  const id = Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(36)).join("");
  return { id, title: "", changed: Date.now(), settings: { ...settings }, messages: [] };
}

/** Whether a value from the storage is a conversation; it may be anything. */
export function isConversation(value) {
  const texts = (...each) => each.every((one) => typeof one === "string");
  const isMessage = ({ role, content, tool_calls: calls = [] }) =>
    texts(role, content) && calls.every((call) => texts(call.function.name, call.function.arguments));
  try {
    readTools(value.settings.tools);
    return (
      texts(value.id, value.title, value.settings.system) &&
      typeof value.changed === "number" &&
      value.messages.every(isMessage)
    );
  } catch {
    return false;
  }
}

const LONGEST_TITLE = 60;

/** What the list calls it: its title, or the beginning of its first message. */
export function titleOf({ title, messages }) {
  const first = messages.find((message) => message.role === "user")?.content ?? "";
  return title || first.trim().replace(/\s+/g, " ").slice(0, LONGEST_TITLE);
}

/** The calls of the last reply that wait for a result. */
export function openCalls({ messages }) {
  return messages.at(-1)?.tool_calls ?? [];
}

/** Where the last message of the user is; -1 where there is none. */
export function lastQuestion({ messages }) {
  return messages.findLastIndex((message) => message.role === "user");
}

/** Take the last reply back, so that another can be asked for. */
export function withoutReply({ messages }) {
  const kept = messages.slice();
  while (kept.at(-1)?.role === "assistant") kept.pop();
  return kept;
}

/** The body of a request for the next reply. */
export function requestBody({ messages, settings }) {
  const told = messages
    // A reply that was stopped before its first word says nothing.
    .filter((message) => message.role !== "assistant" || message.content || message.tool_calls)
    .map(({ note, ...message }) => message);
  if (settings.system.trim()) told.unshift({ role: "system", content: settings.system });
  const body = { messages: told };
  const tools = readTools(settings.tools);
  if (tools.length) body.tools = tools;
  const sampling = settings.greedy
    ? { temperature: 0 }
    : { temperature: settings.temperature, top_p: settings.top_p, seed: settings.seed };
  for (const [name, value] of Object.entries({ ...sampling, max_tokens: settings.max_tokens })) {
    if (value !== null) body[name] = value;
  }
  return body;
}

/** Add a chunk of a stream to the reply that it belongs to. */
export function grow(reply, chunk) {
  if (chunk.usage) reply.note.tokens = chunk.usage.completion_tokens;
  const [choice] = chunk.choices;
  if (!choice) return;
  reply.content += choice.delta.content ?? "";
  for (const { index, id, function: part } of choice.delta.tool_calls ?? []) {
    reply.tool_calls ??= [];
    reply.tool_calls[index] ??= { id, type: "function", function: { name: "", arguments: "" } };
    const call = reply.tool_calls[index].function;
    call.name += part.name ?? "";
    call.arguments += part.arguments ?? "";
  }
  if (choice.finish_reason) reply.note.end = choice.finish_reason;
}

/** Close a reply that broke off: a call that is not whole was never made. */
export function breakOff(reply, end) {
  reply.note.end = end;
  const whole = (reply.tool_calls ?? []).filter((call) => isJson(call.function.arguments));
  if (whole.length) reply.tool_calls = whole;
  else delete reply.tool_calls;
}

function isJson(written) {
  try {
    JSON.parse(written);
    return true;
  } catch {
    return false;
  }
}
