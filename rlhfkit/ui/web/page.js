// The ranking page. The server knows what was decided; this page knows the answer that is being made, and
// keeps a draft of it in the tab's own storage, so that a reload changes nothing.

import { element, markdown, plain } from "/markdown.js";

const $ = (id) => document.getElementById(id);
const LONGEST_WAIT = 5000; // milliseconds between two attempts to reach the server

let state = null; // what the server said last
let work = null; // the answer being made; see `begin`
let shownAt = performance.now();
let busy = false;

// -- the server ----------------------------------------------------------------------------------------------

// A reply of the server; asks again while it cannot be reached.
async function ask(path, body) {
  for (let wait = 250; ; wait = Math.min(2 * wait, LONGEST_WAIT)) {
    let reply;
    try {
      reply = await fetch(path, body && {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
      });
      const value = reply.status === 403 ? {} : await reply.json();
      if (reply.ok || reply.status === 409) {
        warn("");
        return { ...value, elsewhere: reply.status === 409 };
      }
      if (reply.status !== 507) throw new Refused(value.error || "The program does not know this page any more. " +
        "What was saved is kept: open the link that it printed last.");
      warn(`Not saved yet, trying again: ${value.error}`);
    } catch (problem) {
      if (problem instanceof Refused) throw problem;
      warn("The program cannot be reached. What you saved is on the disk. This page keeps your answer and goes on " +
        "trying; if rank was stopped, start it again and open the new link.");
    }
    await new Promise((done) => setTimeout(done, wait));
  }
}

class Refused extends Error {}

// Run something that talks to the server, one at a time.
async function alone(action) {
  if (busy) return;
  busy = true;
  document.body.setAttribute("aria-busy", "true");
  try {
    await action();
  } catch (problem) {
    if (!(problem instanceof Refused)) throw problem;
    warn(problem.message);
  } finally {
    busy = false;
    document.body.removeAttribute("aria-busy");
  }
}

function warn(text) {
  $("alert").textContent = text;
  $("alert").hidden = !text;
}

function say(text) {
  $("status").textContent = text;
}

// -- the answer ----------------------------------------------------------------------------------------------

function draftName(item) {
  return `${item.key} ${item.version}`;
}

// Start on an item: from the draft in this tab, or the decision that stands, or nothing.
function begin(item) {
  const kept = sessionStorage.getItem(draftName(item));
  const old = item.answer;
  work = kept ? JSON.parse(kept) : {
    tiers: old?.tiers ?? [], flags: old?.flags ?? [], note: old?.note ?? "",
    ratings: old?.ratings?.length ? old.ratings : item.completions.map(() => null),
    seconds: old?.seconds ?? 0, tie: false, last: null, past: [],
  };
  work.confirm = work.rating = false;
  shownAt = performance.now();
}

function keepDraft() {
  spend();
  try {
    sessionStorage.setItem(draftName(state.item), JSON.stringify(work));
  } catch { /* no room: a reload would lose the draft, no more */ }
}

// Count the time since the last call, when the page was looked at.
function spend(looked = !document.hidden) {
  const now = performance.now();
  if (work && looked) work.seconds += (now - shownAt) / 1000;
  shownAt = now;
}

const rankOf = (place) => work.tiers.findIndex((tier) => tier.includes(place));
const unplaced = () => state.item.completions.map((_, place) => place).filter((place) => rankOf(place) < 0);

// Change the tiers; every change can be undone.
function change(tiers, { last = work.last, tie = false } = {}) {
  if (work.confirm) warn("");
  work.past.push([work.tiers, work.tie, work.last]);
  work.tiers = tiers.filter((tier) => tier.length);
  Object.assign(work, { last, tie, confirm: false });
  keepDraft();
  render();
}

const without = (place) => work.tiers.map((tier) => tier.filter((other) => other !== place));

function put(place) {
  if (rankOf(place) >= 0) {
    say(`Completion ${place + 1} has its place already.`);
    return;
  }
  const tiers = work.tiers.map((tier) => [...tier]);
  if (work.tie && tiers.length) tiers.at(-1).push(place);
  else tiers.push([place]);
  change(tiers, { last: place });
  say(`Completion ${place + 1}: ${placeText(place)}. ${unplaced().length} left.`);
}

function remove(place) {
  change(without(place));
  say(`Completion ${place + 1} taken out.`);
}

// Put a completion before the tier with this index, or (onto) into it.
function move(place, index, onto) {
  const tiers = without(place);
  if (onto) tiers[index].push(place);
  else tiers.splice(index, 0, [place]);
  change(tiers, { last: place });
  say(`Completion ${place + 1}: ${placeText(place)}.`);
}

function step(place, by) {
  const at = rankOf(place);
  if (work.tiers[at].length > 1) move(place, by < 0 ? at : at + 1, false);
  else if (work.tiers[at + by]) move(place, at + by, true);
  $("ranking").querySelector(`[data-place="${place}"]`)?.focus();
}

function tie() {
  if (!work.tiers.length) {
    say("Place one first; the next can tie with it.");
  } else if (unplaced().length) {
    work.tie = !work.tie;
    keepDraft();
    render();
    say(work.tie ? "The next one ties." : "The next one does not tie.");
  } else if (work.tiers.length > 1) {
    change([...work.tiers.slice(0, -2), [...work.tiers.at(-2), ...work.tiers.at(-1)]]);
    say("The last two tie.");
  }
}

function placeText(place) {
  const at = rankOf(place);
  if (at < 0) return "not placed";
  const rank = work.tiers.slice(0, at).reduce((sum, tier) => sum + tier.length, 1);
  const suffix = ["th", "st", "nd", "rd"][rank] ?? "th";
  return `${rank}${suffix}${work.tiers[at].length > 1 ? ", tied" : ""}`;
}

function toggleFlag(name) {
  const on = work.flags.includes(name);
  work.flags = on ? work.flags.filter((other) => other !== name) : [...work.flags, name];
  keepDraft();
  render();
  say(`${name}: ${on ? "off" : "on"}`);
}

function rate(place, value) {
  work.ratings[place] = work.ratings[place] === value ? null : value;
  work.rating = false;
  keepDraft();
  render();
  say(`Completion ${place + 1} rated ${work.ratings[place] ?? "not"}${work.ratings[place] ? " of 7" : ""}.`);
}

// The completion that `r` rates: the one with the focus, or else the one placed last.
function focused() {
  const holder = document.activeElement?.closest("[data-place]");
  return holder ? Number(holder.dataset.place) : work.last;
}

// -- deciding ------------------------------------------------------------------------------------------------

function next() {
  const left = unplaced();
  if (left.length === 1 && work.tiers.length) {
    put(left[0]);
  } else if (left.length && !(work.confirm && work.tiers.flat().length > 1)) {
    work.confirm = true;
    const numbers = left.map((place) => place + 1).join(", ");
    const again = work.tiers.flat().length > 1 ? " Enter once more leaves them out of the ranking." : "";
    warn(`Not placed yet: ${numbers}.${again}`);
    return;
  }
  decide(work.tiers);
}

function decide(tiers) {
  alone(async () => {
    spend();
    const { key, version } = state.item;
    const reply = await ask("/api/decision", {
      item: key, version, decision: crypto.randomUUID(), tiers, seconds: work.seconds,
      flags: work.flags, ratings: work.ratings, note: work.note,
    });
    sessionStorage.removeItem(draftName(state.item));
    show(reply);
    if (reply.elsewhere) warn("That item was decided in another tab, which counts; here is the next one.");
  });
}

// One step back: of this ranking, or else to the item decided before.
function undo() {
  const before = work?.past.pop();
  if (before) {
    [work.tiers, work.tie, work.last] = before;
    work.confirm = false;
    keepDraft();
    render();
    say("Undone.");
  } else if (state.previous) {
    alone(async () => {
      show(await ask(`/api/item?key=${encodeURIComponent(state.previous)}`));
      warn("Back at an item that you decided on. Enter saves it anew; until then the former answer stands.");
    });
  } else {
    say("Nothing to undo.");
  }
}

function finish() {
  alone(async () => {
    await ask("/api/finish", {});
    state = work = null;
    $("keys").close();
    $("main").hidden = $("tray").hidden = true;
    $("done").hidden = false;
    $("done").querySelector(".actions").hidden = true;
    $("done-title").textContent = "Finished";
    $("done-text").textContent = "The rankings are being written. You can close this page.";
    $("done-title").focus();
  });
}

// -- drawing -------------------------------------------------------------------------------------------------

function show(reply) {
  state = reply;
  $("rater").textContent = reply.rater;
  const done = reply.ranked + reply.skipped;
  $("progress").max = Math.max(reply.total, 1);
  $("progress").value = done;
  const skipped = reply.skipped ? `, ${reply.skipped} skipped` : "";
  $("count").textContent = `${done} of ${reply.total}${skipped}`;
  const item = reply.item;
  $("main").hidden = $("tray").hidden = !item;
  $("done").hidden = Boolean(item);
  if (!item) {
    work = null;
    $("done-title").textContent = "All done";
    $("done-text").textContent = `${reply.ranked} ranked${skipped}. Everything is on the disk.`;
    $("back").hidden = !reply.previous;
    $("done-title").focus();
    document.title = "Ranking: all done";
    return;
  }
  begin(item);
  draw();
  render();
  warn("");
  document.title = `Ranking ${done} of ${reply.total}`;
  window.scrollTo(0, 0);
  $("prompt-title").focus({ preventScroll: true });
  say(`${item.answer ? "A decided item" : `Item ${Math.min(done + 1, reply.total)} of ${reply.total}`}, ` +
    `${item.completions.length} completions.`);
}

const isPlain = () => localStorage.getItem("plain") === "true";

function texts(turns) {
  const form = isPlain() ? plain : markdown;
  return turns.map(({ role, text }) => {
    const shown = text.trim() ? form(text) : element("p", "empty", "(empty)");
    return element("div", "turn", ...(role ? [element("div", "role", role)] : []), shown);
  });
}

// Build what only changes with the item.
function draw() {
  const { prompt, completions } = state.item;
  $("prompt").replaceChildren(...texts(prompt));
  $("completions").replaceChildren(...completions.map(card));
  for (const text of document.querySelectorAll(".text")) scrollable(text);
  $("flags").replaceChildren($("flags").firstElementChild, ...state.flags.map((name) => {
    const box = element("input");
    box.type = "checkbox";
    box.value = name;
    box.addEventListener("change", () => toggleFlag(name));
    const key = { flagged: "f", "none acceptable": "x" }[name];
    return element("label", "", box, name, ...(key ? [element("kbd", "", key)] : []));
  }));
  $("note").value = work.note;
}

// What scrolls must be reachable by keyboard.
function scrollable(text) {
  if (text.scrollHeight > text.clientHeight + 1) text.tabIndex = 0;
}

function card(turns, place) {
  const badge = element("button", "badge", String(place + 1));
  badge.type = "button";
  badge.addEventListener("click", () => (rankOf(place) < 0 ? put(place) : remove(place)));
  const grip = element("span", "grip", "⠿");
  grip.setAttribute("aria-hidden", "true");
  const header = element("header", "", badge, element("span", "place"), grip);
  liftable(header, place);
  const text = element("div", "text", ...texts(turns));
  text.dir = "auto";
  text.setAttribute("role", "region");
  text.setAttribute("aria-label", `Text of completion ${place + 1}`);
  const made = element("article", "card", header, text, rating(place));
  made.dataset.place = place;
  made.setAttribute("aria-label", `Completion ${place + 1}`);
  return made;
}

function rating(place) {
  const made = element("fieldset", "rating", element("legend", "", "Rating"));
  for (let value = 1; value <= 7; value++) {
    const choice = element("input");
    choice.type = "radio";
    choice.name = `rating-${place}`;
    choice.value = value;
    choice.setAttribute("aria-label", `${value} of 7`);
    choice.addEventListener("click", () => rate(place, value));
    made.append(element("label", "", choice, element("span", "", String(value))));
  }
  return made;
}

// Bring everything else in line with `work`.
function render() {
  for (const made of $("completions").children) {
    const place = Number(made.dataset.place);
    const placed = rankOf(place) >= 0;
    made.classList.toggle("placed", placed);
    made.querySelector(".place").textContent = placed ? placeText(place) : "";
    const badge = made.querySelector(".badge");
    badge.setAttribute("aria-pressed", placed);
    badge.setAttribute("aria-label", `Completion ${place + 1}, ${placeText(place)}`);
    for (const choice of made.querySelectorAll(".rating input")) {
      choice.checked = Number(choice.value) === work.ratings[place];
    }
  }
  for (const box of $("flags").querySelectorAll("input")) box.checked = work.flags.includes(box.value);
  $("flag").setAttribute("aria-pressed", work.flags.includes("flagged"));
  $("tie").setAttribute("aria-pressed", work.tie);
  $("undo").disabled = !work.past.length && !state.previous;
  const list = work.tiers.flatMap((tier, index) => [gap(index), tierOf(tier, index)]);
  const hint = element("li", "hint", `Press 1 to ${state.item.completions.length}, best first, or drag the numbers here`);
  $("ranking").replaceChildren(...list, ...(work.tiers.length ? [] : [hint]), gap(work.tiers.length));
}

function gap(index) {
  const made = element("li", index === work.tiers.length ? "gap last" : "gap");
  made.setAttribute("role", "presentation");
  made.dataset.gap = index;
  return made;
}

function tierOf(tier, index) {
  const open = work.tie && index === work.tiers.length - 1;
  const made = element("li", open ? "tier open" : "tier", ...tier.map((place) => {
    const chip = element("button", "chip", String(place + 1));
    chip.type = "button";
    chip.dataset.place = place;
    chip.setAttribute("aria-label", `Completion ${place + 1}, ${placeText(place)}`);
    chip.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) step(place, by);
      else if (event.key === "Delete" || event.key === "Backspace") remove(place);
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    liftable(chip, place);
    return chip;
  }));
  made.dataset.tier = index;
  return made;
}

// -- dragging ------------------------------------------------------------------------------------------------

// Pointer events rather than HTML's own dragging: they work with fingers too.
function liftable(handle, place) {
  handle.addEventListener("dragstart", (event) => event.preventDefault());
  handle.addEventListener("pointerdown", (down) => {
    if (down.button !== 0 || busy || !down.isPrimary) return;
    let ghost = null;
    let over = null;
    const target = (event) => document.elementFromPoint(event.clientX, event.clientY)?.closest("[data-gap], [data-tier]");
    const moved = (event) => {
      if (event.pointerId !== down.pointerId) return;
      if (!ghost) {
        if (Math.hypot(event.clientX - down.clientX, event.clientY - down.clientY) < 6) return;
        ghost = element("div", "ghost", String(place + 1));
        document.body.append(ghost);
        document.body.classList.add("lifting");
        handle.closest(".card")?.classList.add("lifted");
      }
      ghost.style.left = `${event.clientX}px`;
      ghost.style.top = `${event.clientY}px`;
      over?.classList.remove("over");
      over = target(event);
      over?.classList.add("over");
    };
    const ended = (event) => {
      if (event.pointerId !== down.pointerId) return;
      for (const [name, listener] of listeners) document.removeEventListener(name, listener);
      if (!ghost) return;
      const at = event.type === "pointerup" ? target(event) : null; // while the gaps are still wide
      ghost.remove();
      document.body.classList.remove("lifting");
      handle.closest(".card")?.classList.remove("lifted");
      // The click that follows a drag is not meant.
      window.addEventListener("click", swallow, { capture: true, once: true });
      setTimeout(() => window.removeEventListener("click", swallow, { capture: true }), 50);
      if (at) drop(place, at.dataset);
      else render();
    };
    const listeners = [["pointermove", moved], ["pointerup", ended], ["pointercancel", ended]];
    for (const [name, listener] of listeners) document.addEventListener(name, listener);
  });
}

function swallow(event) {
  event.stopPropagation();
  event.preventDefault();
}

function drop(place, { gap, tier }) {
  if (tier === undefined) return move(place, Number(gap), false);
  if (!work.tiers[tier].includes(place)) return move(place, Number(tier), true);
  return render();
}

// -- keys and buttons ----------------------------------------------------------------------------------------

const ACTIONS = {
  t: tie, u: undo, f: () => toggleFlag("flagged"), x: () => toggleFlag("none acceptable"),
  s: () => decide(null), n: () => $("note").focus(), m: togglePlain, "?": () => $("keys").showModal(),
  r: () => {
    const which = focused();
    if (which === null) return say("Place or focus a completion first.");
    work.rating = true;
    return say(`Rate completion ${which + 1}: 1 to 7.`);
  },
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || $("keys").open || !state) return;
  const writing = event.target.matches("textarea");
  if (writing) {
    if (event.key === "Escape") $("note").blur();
    return;
  }
  const native = event.target.matches("button:not(.chip)");
  if (event.key === "Enter" && !event.repeat && !native) {
    event.preventDefault();
    if (!busy) (state.item ? next : finish)();
    return;
  }
  if (event.key === "?" || event.key === "u" || event.key === "m") {
    event.preventDefault();
    if (!busy) ACTIONS[event.key]();
    return;
  }
  if (!work || busy || event.repeat) return;
  if (/^[1-9]$/.test(event.key)) {
    const number = Number(event.key);
    const which = focused();
    if (work.rating && number <= 7 && which !== null) rate(which, number);
    else if (number <= state.item.completions.length) put(number - 1);
    else say(`There is no completion ${number}.`);
    work.rating = false;
  } else if (ACTIONS[event.key]) {
    event.preventDefault();
    ACTIONS[event.key]();
  }
});

function togglePlain() {
  localStorage.setItem("plain", !isPlain());
  $("plain").setAttribute("aria-pressed", isPlain());
  if (!work) return;
  draw();
  render();
  say(isPlain() ? "Plain text" : "Markdown");
}

const BUTTONS = {
  undo, tie, back: undo, finish, "finish-early": finish, plain: togglePlain, next,
  flag: () => toggleFlag("flagged"), skip: () => decide(null), help: () => $("keys").showModal(),
  "close-keys": () => $("keys").close(),
};
for (const [id, action] of Object.entries(BUTTONS)) {
  $(id).addEventListener("click", () => {
    if (!busy) action();
  });
}
// After a click with the mouse, Enter means the next item again, not this button once more.
document.addEventListener("click", (event) => {
  if (event.detail) event.target.closest("button:not(.chip)")?.blur();
}, { capture: true });
$("note").addEventListener("input", () => {
  work.note = $("note").value;
  keepDraft();
});

// Back in this tab: what it shows may have been decided elsewhere meanwhile.
document.addEventListener("visibilitychange", () => {
  spend(document.hidden);
  if (!document.hidden && state?.item) alone(look);
});

async function look() {
  const { key, version } = state.item;
  const reply = await ask(`/api/item?key=${encodeURIComponent(key)}`);
  if (reply.item.version === version) return;
  show(await ask("/api/item"));
  warn("That item was decided in another tab, which counts; here is the next one.");
}

$("plain").setAttribute("aria-pressed", isPlain());
alone(async () => show(await ask("/api/item")));
