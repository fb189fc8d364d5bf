// The list of conversations.

import { titleOf } from "./conversation.js";
import { arrange, confirmed, element, iconButton } from "./dom.js";
import { text } from "./texts.js";

/** The list `#conversations`, which on a narrow screen lies above the page. */
export class Sidebar {
  /** @param {{open, rename, remove, create}} actions the first three take a conversation */
  constructor(actions) {
    this.actions = actions;
    this.list = document.getElementById("conversations");
    this.menu = document.getElementById("menu");
    document.getElementById("new").addEventListener("click", () => actions.create());
    document.getElementById("shade").addEventListener("click", () => this.fold());
    this.menu.addEventListener("click", () => this.unfold());
  }

  get unfolded() {
    return document.body.classList.contains("unfolded");
  }

  unfold() {
    document.body.classList.add("unfolded");
    this.menu.setAttribute("aria-expanded", "true");
    document.getElementById("page").inert = true;
    document.getElementById("new").focus();
  }

  /** Put it away, where it lies above the page. */
  fold() {
    if (!this.unfolded) return;
    document.body.classList.remove("unfolded");
    this.menu.setAttribute("aria-expanded", "false");
    document.getElementById("page").inert = false;
    this.menu.focus();
  }

  /**
   * Show the list.
   *
   * @param {object[]} conversations
   * @param {string} current the id of the one that is open
   * @param {(id: string) => boolean} running
   */
  show(conversations, current, running) {
    const entries = conversations.map((conversation) => {
      const { id } = conversation;
      const state = { current: id === current, running: running(id) };
      const title = titleOf(conversation) || text("untitled");
      return {
        key: id,
        look: JSON.stringify([title, state, document.documentElement.lang]),
        build: () => this.#item(conversation, title, state),
      };
    });
    arrange(this.list, entries);
  }

  #item(conversation, title, { current, running }) {
    const open = element("button", { type: "button", className: "open", textContent: title });
    open.addEventListener("click", () => this.actions.open(conversation));
    if (current) open.setAttribute("aria-current", "true");
    const item = element(
      "li",
      { className: [current && "current", running && "running"].filter(Boolean).join(" ") },
      open,
      iconButton("rename", `${text("rename")}: ${title}`, () => this.#rename(conversation, item)),
      iconButton("delete", `${text("delete")}: ${title}`, () => this.#remove(conversation, title)),
    );
    return item;
  }

  #rename(conversation, item) {
    const field = element("input", {
      value: titleOf(conversation),
      maxLength: 200,
      "aria-label": text("rename"),
    });
    let done = false;
    const finish = (title) => {
      if (done) return;
      done = true;
      field.remove();
      item.classList.remove("renaming");
      if (title !== null) this.actions.rename(conversation, title.trim());
      this.list.querySelector(`[data-key="${CSS.escape(conversation.id)}"] .open`)?.focus();
    };
    field.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) return;
      if (event.key !== "Enter" && event.key !== "Escape") return;
      // The button that is focused next would be pressed by the same key.
      event.preventDefault();
      event.stopPropagation();
      finish(event.key === "Enter" ? field.value : null);
    });
    field.addEventListener("blur", () => finish(field.value));
    item.classList.add("renaming");
    item.prepend(field);
    field.select();
    field.focus();
  }

  async #remove(conversation, title) {
    document.getElementById("delete-name").textContent = title;
    if (!(await confirmed(document.getElementById("delete-dialog")))) return;
    this.actions.remove(conversation);
  }
}
