// The part of Markdown that models write most: paragraphs, headings, lists, quotes, code, bold, italic. Text becomes
// text nodes, so markup in an answer stays text. Links and images stay as written: an answer must not be able to make
// this page, or a click on it, carry the conversation to another host.

import { element } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.+?)\s*#*$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const ITEM = /^(\s*)(?:([-*+])|(\d{1,9})[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;

/** Blocks of a text: [{kind, ...}], each with its `source` so that an unchanged one can be kept on screen. */
export function parse(text) {
  const lines = text.split("\n");
  const blocks = [];
  let i = 0;
  while (i < lines.length) {
    if (lines[i].trim() === "") {
      i += 1;
      continue;
    }
    const [block, next] = readBlock(lines, i);
    blocks.push({ ...block, source: lines.slice(i, next).join("\n") });
    i = next;
  }
  return blocks;
}

function readBlock(lines, start) {
  const line = lines[start];
  const fence = FENCE.exec(line);
  if (fence) return readFence(lines, start, fence);
  const heading = HEADING.exec(line);
  if (heading) return [{ kind: "heading", level: heading[1].length, text: heading[2] }, start + 1];
  if (RULE.test(line)) return [{ kind: "rule" }, start + 1];
  if (ITEM.test(line)) return readList(lines, start);
  if (QUOTE.test(line)) {
    const end = until(lines, start, (l) => !QUOTE.test(l));
    return [{ kind: "quote", text: lines.slice(start, end).map((l) => QUOTE.exec(l)[1]).join("\n") }, end];
  }
  const end = until(lines, start + 1, (l) => l.trim() === "" || [FENCE, HEADING, RULE, QUOTE, ITEM].some((r) => r.test(l)));
  return [{ kind: "paragraph", text: lines.slice(start, end).join("\n") }, end];
}

function until(lines, start, stop) {
  let end = start;
  while (end < lines.length && !stop(lines[end])) end += 1;
  return end;
}

/** An unclosed fence runs to the end: an answer that is still streaming has one. */
function readFence(lines, start, [, mark, language]) {
  const closing = new RegExp(`^ {0,3}${mark[0]}{${mark.length},}\\s*$`);
  const end = until(lines, start + 1, (l) => closing.test(l));
  return [{ kind: "code", language, text: lines.slice(start + 1, end).join("\n") }, Math.min(end + 1, lines.length)];
}

/** One list: items with their depth (in steps of indentation), following lines joined to their item. */
function readList(lines, start) {
  const items = [];
  let i = start;
  while (i < lines.length) {
    const item = ITEM.exec(lines[i]);
    if (item && !RULE.test(lines[i])) {
      items.push({ indent: item[1].length, number: item[3] ? Number(item[3]) : null, text: item[4] });
    } else if (lines[i].trim() === "") {
      // A blank line stays in the list only where another item follows it.
      const next = until(lines, i, (l) => l.trim() !== "");
      if (next >= lines.length || !ITEM.test(lines[next])) break;
    } else if (/^\s+\S/.test(lines[i])) {
      items[items.length - 1].text += `\n${lines[i].trim()}`;
    } else {
      break;
    }
    i += 1;
  }
  return [{ kind: "list", items }, i];
}

/** Code, **bold**, *italic*, _italic_. Marks inside a word (2*3*4, snake_case_name) are text. */
const INLINE =
  /(`+)(.+?)\1(?!`)|\*\*(?=\S)(.+?)(?<=\S)\*\*(?!\*)|(?<![\w*])\*(?=[^\s*])(.+?)(?<=[^\s*])\*(?![\w*])|(?<!\w)_(?=\S)(.+?)(?<=\S)_(?!\w)/gs;

/** Child nodes of a line of text: strings and elements. */
export function inline(text) {
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    const [whole, , code, bold, starred, underscored] = match;
    if (match.index > end) nodes.push(text.slice(end, match.index));
    if (code !== undefined) nodes.push(element("code", {}, code));
    else if (bold !== undefined) nodes.push(element("strong", {}, ...inline(bold)));
    else nodes.push(element("em", {}, ...inline(starred ?? underscored)));
    end = match.index + whole.length;
  }
  if (end < text.length) nodes.push(text.slice(end));
  return nodes;
}

const BUILD = {
  // The page's own headings end at level 3.
  heading: ({ level, text }) => element(`h${Math.min(level + 3, 6)}`, {}, ...inline(text)),
  rule: () => element("hr"),
  quote: ({ text }) => element("blockquote", {}, ...inline(text)),
  paragraph: ({ text }) => element("p", {}, ...inline(text)),
  code: ({ language, text }) =>
    element(
      "div",
      { class: "code" },
      element("pre", { tabindex: "0", "aria-label": language ? `${language} code` : "code" }, element("code", {}, text)),
    ),
  list: ({ items }) => list(items),
};

function list(items) {
  const indent = items[0].indent;
  const first = items[0].number;
  const node = element(first === null ? "ul" : "ol", { start: first !== null && first !== 1 ? first : null });
  for (let i = 0; i < items.length; ) {
    let next = i + 1;
    while (next < items.length && items[next].indent > indent + 1) next += 1;
    const item = element("li", {}, ...inline(items[i].text));
    if (next > i + 1) item.append(list(items.slice(i + 1, next)));
    node.append(item);
    i = next;
  }
  return node;
}

const sources = new WeakMap();

/** Shows `text` in `container`. Blocks that did not change keep their nodes, so a reader's selection lives on. */
export function render(container, text) {
  const blocks = parse(text);
  blocks.forEach((block, i) => {
    const shown = container.children[i];
    if (shown && sources.get(shown) === block.source) return;
    const node = BUILD[block.kind](block);
    sources.set(node, block.source);
    if (shown) shown.replaceWith(node);
    else container.append(node);
  });
  while (container.children.length > blocks.length) container.lastElementChild.remove();
}
