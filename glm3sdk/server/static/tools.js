// The function definitions that a user pastes.

import { text } from "./texts.js";

export const EXAMPLE = JSON.stringify(
  [
    {
      name: "get_weather",
      description: "查询城市的天气 Tell the weather of a city",
      parameters: {
        type: "object",
        properties: { city: { type: "string", description: "城市 The city's name" } },
        required: ["city"],
      },
    },
  ],
  null,
  2,
);

/**
 * Tools in OpenAI's form, from JSON: one or a list of functions, with or without the outer
 * `{"type": "function", "function": ...}`.
 *
 * @param {string} written
 * @throws {Error} with a message for the user
 */
export function readTools(written) {
  if (!written.trim()) return [];
  let value;
  try {
    value = JSON.parse(written);
  } catch (error) {
    throw new Error(text("toolsNoJson", error.message));
  }
  const given = Array.isArray(value) ? value : [value];
  return given.map((each, position) => {
    const tool = each?.function ? each : { type: "function", function: each };
    if (typeof tool.function?.name !== "string" || !tool.function.name) {
      throw new Error(text("toolsNoName", position + 1));
    }
    return tool;
  });
}
