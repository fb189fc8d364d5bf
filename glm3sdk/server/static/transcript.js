// The messages of a conversation, and where they are scrolled to.

import { callCards } from "./calls.js";
import { openCalls, lastQuestion } from "./conversation.js";
import { arrange, copyButton, element, iconButton } from "./dom.js";
import { showProse } from "./prose.js";
import { text } from "./texts.js";

const NEAR_THE_END_PX = 48;

/** Shows messages in `#messages` and keeps the newest in view while nobody scrolled away. */
export class Transcript {
  /** @param {{answer, retry, edit}} actions what the buttons do */
  constructor(actions) {
    this.actions = actions;
    this.list = document.getElementById("messages");
    this.scroller = document.getElementById("scroller");
    this.newest = document.getElementById("newest");
    this.atEnd = true;
    this.extent = "";
    this.frame = 0;
    this.scroller.addEventListener("scroll", () => this.#scrolled());
    this.newest.addEventListener("click", () => this.toEnd());
    new ResizeObserver(() => this.atEnd && this.toEnd()).observe(this.scroller);
  }

  /**
   * Show a conversation.
   *
   * @param {object} conversation
   * @param {boolean} running whether its last message is still being written
   */
  show(conversation, running) {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    const { messages } = conversation;
    const results = new Map(
      messages.filter((each) => each.role === "tool").map((each) => [each.tool_call_id, each.content]),
    );
    const shown = messages.filter((message) => message.role !== "tool");
    const question = lastQuestion(conversation);
    const entries = shown.map((message, position) => {
      const last = message === messages.at(-1);
      const state = {
        results,
        growing: running && last,
        waits: !running && last && openCalls(conversation).length > 0,
        // While a reply is written nothing before it can be changed.
        retry: !running && message === shown.at(-1),
        edit: !running && message === messages[question],
      };
      const given = (message.tool_calls ?? []).map((call) => results.get(call.id));
      return {
        key: `${conversation.id} ${position}`,
        look: JSON.stringify([message, { ...state, results: given }, document.documentElement.lang]),
        build: () => this.#article(message, state),
      };
    });
    arrange(this.list, entries);
    this.list.setAttribute("aria-busy", String(running));
    if (this.atEnd) this.toEnd();
  }

  /** Show what came to the last message, with the next picture that is drawn. */
  grow(conversation) {
    this.frame ||= requestAnimationFrame(() => this.#draw(conversation));
  }

  /** Scroll to the newest message. */
  toEnd() {
    this.atEnd = true;
    this.newest.hidden = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.extent = this.#extent();
  }

  #extent() {
    const { clientWidth, clientHeight, scrollHeight } = this.scroller;
    return `${clientWidth} ${clientHeight} ${scrollHeight}`;
  }

  #draw({ messages }) {
    this.frame = 0;
    const message = messages.at(-1);
    const article = this.list.lastElementChild;
    if (message?.role !== "assistant" || !article) return;
    showProse(article.querySelector(".prose"), message.content);
    if (message.tool_calls) {
      const calls = message.tool_calls.filter(Boolean);
      const cards = callCards(calls, new Map(), { growing: true, answer: null });
      article.querySelector(".calls").replaceWith(cards);
    }
    article.classList.toggle("silent", !message.content && !message.tool_calls);
    if (this.atEnd) this.toEnd();
  }

  #scrolled() {
    // A turned phone or an opened keyboard moves the text too, and nobody asked for that.
    if (this.atEnd && this.#extent() !== this.extent) return this.toEnd();
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.atEnd = scrollHeight - scrollTop - clientHeight < NEAR_THE_END_PX;
    this.newest.hidden = this.atEnd;
    return undefined;
  }

  #article(message, state) {
    const mine = message.role === "user";
    const made = element("article", {
      className: mine ? "user" : "assistant",
      "aria-label": text(mine ? "you" : "assistant"),
    });
    if (mine) {
      made.append(element("p", { className: "bubble", textContent: message.content }));
    } else {
      const prose = element("div", { className: "prose" });
      showProse(prose, message.content);
      const calls = (message.tool_calls ?? []).filter(Boolean);
      const answer = state.waits ? this.actions.answer : null;
      made.append(prose, callCards(calls, state.results, { growing: state.growing, answer }));
      made.classList.toggle("growing", state.growing);
      made.classList.toggle("silent", !message.content && !calls.length);
    }
    if (!state.growing) made.append(this.#footer(message, state));
    return made;
  }

  #footer(message, state) {
    const buttons = element("span", { className: "buttons" });
    if (message.content) buttons.append(copyButton(text("copy"), () => message.content));
    if (state.edit) buttons.append(iconButton("rename", text("edit"), this.actions.edit));
    if (state.retry) buttons.append(iconButton("retry", text("retry"), this.actions.retry));
    const note = element("span", { className: "note", textContent: noteOf(message) });
    return element("footer", {}, buttons, note);
  }
}

function noteOf({ role, content, tool_calls: calls, note = {} }) {
  if (role === "user") return "";
  const words = [];
  if (note.end === "stopped") words.push(text("stopped"));
  else if (note.end === "length") words.push(text("cut"));
  else if (!content && !calls) words.push(text("empty"));
  if (note.tokens !== undefined) words.push(text("tokens", note.tokens));
  if (note.seconds !== undefined) words.push(text("seconds", note.seconds.toFixed(1)));
  return words.join(" · ");
}
