// A small subset of Markdown as DOM nodes. Text only ever becomes text nodes: nothing that a model writes is
// parsed as HTML, no link can be followed and nothing is loaded.

const INLINE = /(`+)(.+?)\1(?!`)|\*\*(?=\S)(.+?\S|\S)\*\*|__(?=\S)(.+?\S|\S)__|\*(?=\S)([^*\n]*?[^\s*])\*(?!\*)|(?<![\w_])_(?=\S)([^_\n]*?[^\s_])_(?![\w_])/su;
const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const BULLET = /^(\s*)[-*+]\s+(.*)$/;
const NUMBERED = /^(\s*)(\d{1,9})[.)]\s+(.*)$/;
const QUOTE = /^ {0,3}>\s?(.*)$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const DEEPEST = 6;
// A paragraph longer than this stays as it is written: looking for pairs of marks takes quadratic time.
const LONGEST = 20_000;

export function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

// The text as written.
export function plain(text) {
  return element("div", "plain", text);
}

export function markdown(text, depth = 0) {
  const root = element("div", "markdown");
  const lines = text.split(/\r?\n/);
  for (let at = 0; at < lines.length;) at = block(root, lines, at, depth);
  return root;
}

// Append the block that begins at a line; returns the line after it.
function block(root, lines, at, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return code(root, lines, at, fence[1]);
  if (!line.trim()) return at + 1;
  if (RULE.test(line)) {
    root.append(element("hr"));
    return at + 1;
  }
  const heading = HEADING.exec(line);
  if (heading) {
    root.append(inline(element("p", `heading level-${heading[1].length}`), heading[2]));
    return at + 1;
  }
  if (depth < DEEPEST && QUOTE.test(line)) {
    const inside = [];
    for (; at < lines.length && QUOTE.test(lines[at]); at++) inside.push(QUOTE.exec(lines[at])[1]);
    root.append(element("blockquote", "", markdown(inside.join("\n"), depth + 1)));
    return at;
  }
  if (depth < DEEPEST && (BULLET.test(line) || NUMBERED.test(line))) return list(root, lines, at, depth);
  const paragraph = [line];
  for (at++; at < lines.length && !starts(lines[at]); at++) paragraph.push(lines[at]);
  root.append(inline(element("p"), paragraph.join("\n")));
  return at;
}

function starts(line) {
  return !line.trim() || [FENCE, HEADING, BULLET, NUMBERED, QUOTE, RULE].some((form) => form.test(line));
}

function code(root, lines, at, fence) {
  const inside = [];
  for (at++; at < lines.length && !lines[at].trim().startsWith(fence); at++) inside.push(lines[at]);
  root.append(element("pre", "", element("code", "", inside.join("\n"))));
  return at + 1;
}

function list(root, lines, at, depth) {
  const numbered = NUMBERED.exec(lines[at]);
  const form = numbered ? NUMBERED : BULLET;
  const made = element(numbered ? "ol" : "ul");
  if (numbered) made.start = Number(numbered[2]);
  const indent = form.exec(lines[at])[1].length;
  while (at < lines.length) {
    const match = form.exec(lines[at]);
    if (!match || match[1].length !== indent || RULE.test(lines[at])) break;
    const inside = [match[match.length - 1]];
    for (at++; at < lines.length && belongs(lines, at, indent); at++) inside.push(lines[at].slice(indent + 2));
    made.append(element("li", "", markdown(inside.join("\n"), depth + 1)));
    while (at + 1 < lines.length && !lines[at].trim() && form.test(lines[at + 1])) at++;
  }
  root.append(made);
  return at;
}

// Whether a line goes on with the item of a list: it is indented further, or blank before such a line.
function belongs(lines, at, indent) {
  const deeper = (line) => line !== undefined && line.trim() && /^\s*/.exec(line)[0].length > indent;
  return deeper(lines[at]) || (!lines[at].trim() && deeper(lines[at + 1]));
}

function inline(parent, text) {
  for (let match; text.length < LONGEST && (match = INLINE.exec(text));) {
    parent.append(text.slice(0, match.index));
    const [all, , literal, strong, strong2, soft, soft2] = match;
    if (literal !== undefined) parent.append(element("code", "", literal));
    else if (strong ?? strong2) parent.append(inline(element("strong"), strong ?? strong2));
    else parent.append(inline(element("em"), soft ?? soft2));
    text = text.slice(match.index + all.length);
  }
  parent.append(text);
  return parent;
}
