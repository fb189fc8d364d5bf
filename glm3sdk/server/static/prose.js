// A reply's text as elements: paragraphs, fenced code, `code` and **strong** words. Everything
// else is what it is: text.

import { arrange, copyButton, element } from "./dom.js";
import { text } from "./texts.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*)[^`]*$/;
const INLINE = /`([^`\n]+)`|\*\*(?=\S)([^*\n]+?)\*\*/g;

/** Cut a text into paragraphs and code; a fence that is still open holds the rest. */
export function blocks(written) {
  const found = [];
  let paragraph = [];
  let code = null;
  const endParagraph = () => {
    if (paragraph.length) found.push({ kind: "paragraph", text: paragraph.join("\n") });
    paragraph = [];
  };
  for (const line of written.split("\n")) {
    const fence = FENCE.exec(line);
    if (code) {
      const closes = fence && !fence[2] && fence[1].startsWith(code.fence);
      if (closes) code = null;
      else code.lines.push(line);
    } else if (fence) {
      endParagraph();
      code = { kind: "code", fence: fence[1], language: fence[2], lines: [] };
      found.push(code);
    } else if (line.trim()) {
      paragraph.push(line);
    } else {
      endParagraph();
    }
  }
  endParagraph();
  return found.map(({ kind, text: inside, language, lines }) =>
    kind === "code" ? { kind, language, text: lines.join("\n") } : { kind, text: inside },
  );
}

/** Show a text in a container; what did not change since the last time stays as it is. */
export function showProse(container, written) {
  const entries = blocks(written).map((block, position) => ({
    key: String(position),
    look: JSON.stringify(block),
    build: () => (block.kind === "code" ? codeBlock(block) : paragraph(block.text)),
  }));
  arrange(container, entries);
}

function paragraph(written) {
  const made = element("p");
  let end = 0;
  for (const match of written.matchAll(INLINE)) {
    const [whole, code, strong] = match;
    made.append(written.slice(end, match.index));
    made.append(element(code ? "code" : "strong", { textContent: code ?? strong }));
    end = match.index + whole.length;
  }
  made.append(written.slice(end));
  return made;
}

function codeBlock({ language, text: written }) {
  const caption = element(
    "figcaption",
    {},
    element("span", { textContent: language }),
    copyButton(text("copyCode"), () => written),
  );
  return element(
    "figure",
    { className: "code" },
    caption,
    element("pre", { tabIndex: 0 }, element("code", { textContent: written })),
  );
}
