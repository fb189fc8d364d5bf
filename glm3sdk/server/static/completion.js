// One request to /v1/chat/completions, and its answer as it comes.

/** An answer that says what went wrong, or its absence. */
export class CompletionError extends Error {
  /**
   * @param {string} kind a name in texts.js
   * @param {string} [detail] the server's own words
   * @param {number} [seconds] when to come back
   */
  constructor(kind, detail = "", seconds = 0) {
    super(detail || kind);
    this.kind = kind;
    this.detail = detail;
    this.seconds = seconds;
  }
}

/** The server's name of its model. */
export async function modelName(key) {
  const answer = await ask("v1/models", { headers: bearer(key) });
  return (await answer.json()).data[0].id;
}

/**
 * Ask for a reply; gives the chunks of the stream.
 *
 * @param {object} body the request
 * @param {{key: string, signal: AbortSignal}} options aborting frees the slot of the server
 */
export async function* complete(body, { key, signal }) {
  const answer = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...bearer(key) },
    body: JSON.stringify(body),
    signal,
  });
  for await (const data of events(answer.body, signal)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw fromServer(500, chunk.error);
    yield chunk;
  }
  throw new CompletionError("broken");
}

function bearer(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, { ...options, credentials: "omit", cache: "no-store" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new CompletionError("unreachable");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw fromServer(answer.status, told.error ?? {}, Number(answer.headers.get("Retry-After")));
}

const KINDS = {
  context_length_exceeded: "tooLong",
  body_too_large: "tooLarge",
  timeout: "tooSlow",
  stopping: "stopping",
};

function fromServer(status, { message, code }, seconds = 0) {
  const byStatus = { 401: "key", 429: "busy" };
  const kind = KINDS[code] ?? byStatus[status] ?? (status < 500 ? "refused" : "failed");
  return new CompletionError(kind, message ?? `HTTP ${status}`, seconds || 0);
}

/** The data of server-sent events, in the one form that the server writes. */
async function* events(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const complete = (rest + value).split("\n\n");
      rest = complete.pop();
      for (const event of complete) yield event.replace(/^data: /, "");
    }
  } catch (error) {
    if (signal.aborted) throw error;
    throw new CompletionError("broken");
  } finally {
    reader.cancel().catch(() => {});
  }
}
