// What the browser keeps: conversations and preferences in localStorage, the API key until
// the tab is closed.

import { isConversation } from "./conversation.js";

const CONVERSATION = "glm3.conversation.";
const KEY = "glm3.api-key";
export const MOST_CONVERSATIONS = 100;

function open(name) {
  try {
    return window[name];
  } catch {
    return null; // the browser lets this page keep nothing
  }
}

const local = open("localStorage");
const session = open("sessionStorage");

/** A preference, or null. */
export function preference(name) {
  return local?.getItem(`glm3.${name}`) ?? null;
}

/** Keep a preference, where there is room. */
export function prefer(name, value) {
  try {
    local?.setItem(`glm3.${name}`, value);
  } catch {
    // It holds until the page is closed.
  }
}

let unkept = "";

/** The key for this server. */
export function apiKey() {
  return session?.getItem(KEY) ?? unkept;
}

/** Take another key; "" forgets it. */
export function setApiKey(key) {
  unkept = key;
  try {
    if (key) session?.setItem(KEY, key);
    else session?.removeItem(KEY);
  } catch {
    // It holds until the page is closed.
  }
}

/** The conversations, each under a key of its own, so that two tabs do not undo each other. */
export class Conversations {
  /** @param {(problem: string|null) => void} report told the name of a text when nothing is kept */
  constructor(report) {
    this.report = report;
    this.all = new Map();
    if (!local) report("storageMissing");
    for (const key of Object.keys(local ?? {})) this.read(key);
  }

  /** All, the newest first. */
  list() {
    return [...this.all.values()].sort((a, b) => b.changed - a.changed);
  }

  /** Keep a conversation; beyond `MOST_CONVERSATIONS` the oldest go. */
  save(conversation) {
    this.all.set(conversation.id, conversation);
    for (const old of this.list().slice(MOST_CONVERSATIONS)) this.delete(old.id);
    if (!local) return;
    try {
      local.setItem(CONVERSATION + conversation.id, JSON.stringify(conversation));
      this.report(null);
    } catch {
      this.report("storageFull");
    }
  }

  delete(id) {
    this.all.delete(id);
    local?.removeItem(CONVERSATION + id);
  }

  /**
   * Read what another tab has written.
   *
   * @param {string} key a key of the storage, also one that is not a conversation's
   * @returns {string|null} the conversation's id
   */
  read(key) {
    if (!key.startsWith(CONVERSATION)) return null;
    const id = key.slice(CONVERSATION.length);
    const written = local.getItem(key);
    if (written === null) this.all.delete(id);
    try {
      const conversation = JSON.parse(written);
      if (isConversation(conversation) && conversation.id === id) this.all.set(id, conversation);
    } catch {
      // Somebody else's, or cut off: it is left where it is.
    }
    return id;
  }
}
