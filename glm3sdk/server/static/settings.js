// The dialogs for a conversation's settings and for the API key.

import { confirmed } from "./dom.js";
import { apiKey, setApiKey } from "./storage.js";
import { text } from "./texts.js";
import { EXAMPLE, readTools } from "./tools.js";

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

const settingsDialog = document.getElementById("settings-dialog");
const form = settingsDialog.querySelector("form");
const { system, tools, greedy } = form.elements;
const toolsError = document.getElementById("tools-error");

/** Ask for settings; resolves to those that were saved, or null. */
export async function askSettings(settings) {
  system.value = settings.system;
  tools.value = settings.tools;
  greedy.checked = settings.greedy;
  for (const name of NUMBERS) form.elements[name].value = settings[name] ?? "";
  checkTools();
  showGreedy();
  if (!(await confirmed(settingsDialog))) return null;
  const saved = { system: system.value, tools: tools.value, greedy: greedy.checked };
  for (const name of NUMBERS) {
    const { value, valueAsNumber } = form.elements[name];
    saved[name] = value === "" ? null : valueAsNumber;
  }
  return saved;
}

function checkTools() {
  try {
    readTools(tools.value);
    toolsError.textContent = "";
  } catch (error) {
    toolsError.textContent = error.message;
  }
  tools.setAttribute("aria-invalid", String(toolsError.textContent !== ""));
  return !toolsError.textContent;
}

function showGreedy() {
  for (const name of ["temperature", "top_p", "seed"]) {
    form.elements[name].disabled = greedy.checked;
  }
}

greedy.addEventListener("change", showGreedy);
tools.addEventListener("input", () => toolsError.textContent && checkTools());
document.getElementById("tools-example").addEventListener("click", () => {
  tools.value = EXAMPLE;
  checkTools();
});
form.querySelector("[type=submit]").addEventListener("click", (event) => {
  if (checkTools()) return;
  event.preventDefault();
  tools.focus();
});

const keyDialog = document.getElementById("key-dialog");
const { key } = keyDialog.querySelector("form").elements;

/**
 * Ask for the API key.
 *
 * @param {string} reason why it is asked for, or ""
 * @returns {Promise<boolean>} whether one was given
 */
export async function askKey(reason = "") {
  if (keyDialog.open) return false;
  document.getElementById("key-reason").textContent = reason;
  key.value = apiKey();
  const given = await confirmed(keyDialog);
  if (given) setApiKey(key.value.trim());
  key.value = "";
  return given;
}

/** Why a key is asked for. */
export function keyReason() {
  return text(apiKey() ? "keyWrong" : "keyMissing");
}
