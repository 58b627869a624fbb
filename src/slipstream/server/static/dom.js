// Builds DOM nodes. Text always goes in as text nodes: nothing that a model or a server says is parsed as HTML.

/** An element with attributes and children. Strings become text nodes; `on` maps event names to handlers. */
export function element(tag, { on = {}, ...attributes } = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, String(value));
  }
  for (const [event, handler] of Object.entries(on)) node.addEventListener(event, handler);
  node.append(...children);
  return node;
}

const SVG = "http://www.w3.org/2000/svg";

/** An SVG element with attributes and children. */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  node.append(...children);
  return node;
}

/** A symbol of icons.svg, hidden from screen readers. */
export function icon(name) {
  return svg("svg", { "aria-hidden": "true" }, svg("use", { href: `static/icons.svg#${name}` }));
}

/** The element with this id. */
export const byId = (id) => document.getElementById(id);
