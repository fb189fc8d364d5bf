// The field in which messages are written.

/** Whether a key press sends: not while an input method still composes a word. */
export function sends(event) {
  const composing = event.isComposing || event.keyCode === 229;
  return event.key === "Enter" && !event.shiftKey && !composing;
}

/** The form `#composer`. */
export class Composer {
  /** @param {{send: (text: string) => void, stop: () => void, unedit: () => void}} actions */
  constructor(actions) {
    this.form = document.getElementById("composer");
    this.field = document.getElementById("message");
    this.sendButton = document.getElementById("send");
    this.stopButton = document.getElementById("stop");
    this.editing = document.getElementById("editing");
    this.running = false;
    this.field.addEventListener("input", () => this.#fit());
    this.field.addEventListener("keydown", (event) => {
      if (!sends(event)) return;
      event.preventDefault();
      this.form.requestSubmit();
    });
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      const written = this.field.value.trim();
      if (!written || this.running) return;
      this.write("");
      actions.send(written);
    });
    this.stopButton.addEventListener("click", actions.stop);
    document.getElementById("unedit").addEventListener("click", actions.unedit);
  }

  /** Put a text into the field, and the cursor behind it. */
  write(written, { editing = false } = {}) {
    this.field.value = written;
    this.editing.hidden = !editing;
    this.#fit();
    if (editing) this.focus();
  }

  /** Show whether a reply is being written. */
  show(running) {
    const focused = [this.sendButton, this.stopButton].includes(document.activeElement);
    this.running = running;
    this.sendButton.hidden = running;
    this.stopButton.hidden = !running;
    this.#fit();
    if (focused) this.focus();
  }

  focus() {
    this.field.focus();
  }

  #fit() {
    this.sendButton.disabled = !this.field.value.trim();
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight}px`;
  }
}
