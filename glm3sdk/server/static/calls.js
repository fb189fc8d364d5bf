// Tool calls as cards, with a field for the result of each that waits for one.

import { sends } from "./composer.js";
import { element, icon } from "./dom.js";
import { text } from "./texts.js";

/**
 * The cards of one reply.
 *
 * @param {object[]} calls in OpenAI's form; while they are streamed their arguments are not whole
 * @param {Map<string, string>} results by the call's id
 * @param {{growing: boolean, answer: ((results: string[]) => void)|null}} state whether they are
 *   still written, and what takes the results where those are waited for
 */
export function callCards(calls, results, { growing, answer }) {
  const cards = calls.map((call) => card(call, results.get(call.id), { growing, answer }));
  if (!answer) return element("div", { className: "calls" }, ...cards);
  const submit = element("button", {
    type: "submit",
    className: "main",
    textContent: text("sendResults"),
  });
  const form = element("form", { className: "calls" }, ...cards, submit);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    answer(Array.from(form.querySelectorAll("textarea"), (field) => field.value));
  });
  form.addEventListener("keydown", (event) => {
    if (event.target.tagName === "TEXTAREA" && sends(event)) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  return form;
}

function card(call, result, { growing, answer }) {
  const { name, arguments: written } = call.function;
  const made = element(
    "section",
    { className: "call", "aria-label": `${text("call")}: ${name}` },
    element("h3", {}, icon("tool"), element("code", { textContent: name })),
    shownArguments(written),
  );
  if (result !== undefined) {
    const shown = element("pre", { className: "result", textContent: result });
    made.append(element("h4", { textContent: text("result") }), shown);
  } else if (answer) {
    const field = element("textarea", {
      rows: 2,
      required: true,
      spellcheck: false,
      placeholder: text("resultHint"),
    });
    made.append(element("label", { className: "field" }, text("result"), field));
  } else if (!growing) {
    made.append(element("p", { className: "hint", textContent: text("unanswered") }));
  }
  return made;
}

function shownArguments(written) {
  let values = null;
  try {
    values = JSON.parse(written || "{}");
  } catch {
    // Still streamed, or the model's own words.
  }
  if (values === null || typeof values !== "object" || Array.isArray(values)) {
    return element("pre", { textContent: written });
  }
  const names = Object.keys(values);
  if (!names.length) {
    return element("p", { className: "hint", textContent: written && text("noArguments") });
  }
  const list = element("dl");
  for (const name of names) {
    const value = values[name];
    const shown = typeof value === "string" ? value : JSON.stringify(value, null, 1);
    list.append(element("dt", { textContent: name }), element("dd", { textContent: shown }));
  }
  return list;
}
