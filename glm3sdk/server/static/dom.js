// Making elements. Text goes in as text: nothing here reads HTML.

/**
 * @param {string} name a tag, such as "button"
 * @param {object} [properties] properties of the element; those with a dash are attributes
 * @param {...(Node|string)} children
 */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

/** A symbol of index.html. */
export function icon(name) {
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("class", "icon");
  picture.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  picture.append(use);
  return picture;
}

/** A button that shows a symbol and has a name for those who do not see it. */
export function iconButton(name, label, act) {
  const made = element(
    "button",
    { type: "button", className: "tiny", title: label, "aria-label": label },
    icon(name),
  );
  made.addEventListener("click", act);
  return made;
}

const looks = new WeakMap();

/**
 * Make a container's children those of the entries. A child that would look the same stays
 * the element that it is, and keeps its focus, selection and what was typed into it.
 *
 * @param {Element} container
 * @param {{key: string, look: string, build: () => HTMLElement}[]} entries
 */
export function arrange(container, entries) {
  const before = new Map([...container.children].map((child) => [child.dataset.key, child]));
  entries.forEach(({ key, look, build }, position) => {
    let child = before.get(key);
    if (!child || looks.get(child) !== look) {
      const made = build();
      made.dataset.key = key;
      looks.set(made, look);
      if (child) child.replaceWith(made);
      child = made;
    }
    before.delete(key);
    const there = container.children[position];
    if (there !== child) container.insertBefore(child, there ?? null);
  });
  while (container.children.length > entries.length) container.lastElementChild.remove();
}

/** Copy a text, also where the page came over plain HTTP from another machine. */
export async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) {
    try {
      await navigator.clipboard.writeText(text);
      return;
    } catch {
      // Not allowed here: the old way may be.
    }
  }
  const focused = document.activeElement;
  const field = element("textarea", { value: text, className: "unseen", readOnly: true });
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
  focused?.focus();
}

/** A button that copies, and shows that it did. */
export function copyButton(label, text) {
  const made = iconButton("copy", label, async () => {
    await copy(text());
    made.replaceChildren(icon("done"));
    setTimeout(() => made.replaceChildren(icon("copy")), 1500);
  });
  return made;
}

/** Show a dialog; resolves to whether it was confirmed. */
export function confirmed(dialog) {
  const form = dialog.querySelector("form");
  return new Promise((resolve) => {
    let answer = false;
    const submit = () => (answer = true);
    const close = (event) => {
      if (event.target.closest("[data-close]")) dialog.close();
    };
    form.addEventListener("submit", submit);
    dialog.addEventListener("click", close);
    dialog.addEventListener(
      "close",
      () => {
        form.removeEventListener("submit", submit);
        dialog.removeEventListener("click", close);
        resolve(answer);
      },
      { once: true },
    );
    dialog.showModal();
  });
}
