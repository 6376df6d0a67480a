"use strict";
// The page of one owner: a queue of pictures, label buttons, a grid. Text from the store goes in as text only.

const $ = (id) => document.getElementById(id);
const PAGE = 60;
const BATCH = 200; // pictures in one request
const SETTLE_MS = 250; // a tap or key this soon after a picture appeared was meant for the one before it
const SLOW_MS = 300;
const LIMIT_MS = 30000;
const GONE = "This picture is gone: somebody deleted it meanwhile. Nothing was labelled.";
let info = { labels: [], keys: {}, labelled: {}, needed: {}, total: 0, undo: null };
let loaded = false; // whether `samples` are what the filters say
let samples = []; // what was fetched, in order
let at = 0; // the one that is shown
let total = 0;
let view = "one";
let busy = false;
let deletedLast = false;
const due = new Map(); // what was asked for while something else was going on, by name
let shownAt = 0; // when the picture on the screen appeared
let endedAt = 0; // when the last work or dialog ended: the second tap of a double tap is not for what comes then
let unanswered = null; // a labelling whose undoing was sent, and whose answer did not come
let seenStep = 0; // the latest labelling that the page knows of
const ownSteps = new Set(); // labellings of this page, which undo takes back without a question
const chosen = new Set(); // ids, in the grid

// -- talking to the node ---------------------------------------------------------------------------------

async function call(path, body) {
  // Kept alive: what was tapped is sent, though the page is left at once.
  const post = { method: "POST", headers: { "Content-Type": "application/json", "X-Apiary": "1" }, body: JSON.stringify(body), keepalive: true };
  let answer;
  try {
    answer = await fetch(path, { ...(body === undefined ? {} : post), signal: AbortSignal.timeout(LIMIT_MS) });
  } catch {
    throw new Error("The node does not answer. The picture stays here: try again.");
  }
  const value = await answer.json().catch(() => ({ error: "The node's answer was cut off. Try again." }));
  if (answer.status === 401 && path !== "api/login") {
    await login();
    return call(path, body);
  }
  if (answer.status === 409 || answer.status === 410) return { ...value, refused: answer.status };
  if (!answer.ok || value.error) throw new Error(value.error);
  return value;
}

let loggingIn = null;
function login() {
  loggingIn ??= (async () => {
    let text = "Only the node's owner may see its pictures. Run `apiary label` on the node (or `apiary label --qr` for a code to scan): it prints an address. Paste that address here, or what follows `token=` in it. The token is also in the file labelling.token of the node's state folder.";
    for (;;) {
      const token = await ask("This page has an owner", text, { input: "", name: "Token or address", yes: "Open" });
      if (token == null) continue;
      try {
        await call("api/login", { token: token.replace(/^.*token=/, "").trim() });
        return;
      } catch (e) {
        text = e.message;
      }
    }
  })().finally(() => { loggingIn = null; });
  return loggingIn;
}

function say(text, bad = false) {
  $("said").textContent = text;
  $("said").classList.toggle("bad", bad);
}

// One change at a time: a key that is held down must not label what is not shown yet.
async function doing(work) {
  if (busy) return;
  busy = true;
  working();
  try {
    await work();
  } catch (e) {
    say(e.message, true);
  } finally {
    busy = false;
    endedAt = performance.now();
    keepFocus(draw);
    working();
  }
  const [next] = due;
  if (next) {
    due.delete(next[0]);
    await doing(next[1]);
  }
}

// What changes the view only waits for its turn; of one kind the last one counts.
const later = (name, work) => (busy ? void due.set(name, work) : doing(work));

// What takes longer than a moment is shown to be going on.
let slow = null;
function working() {
  const on = busy ? !$("asking").open : loading();
  if (!on) {
    clearTimeout(slow);
    slow = null;
    $("working").hidden = true;
  } else {
    slow ??= setTimeout(() => {
      $("working").textContent = busy ? "Working …" : "The picture is loading …";
      $("working").hidden = false;
    }, SLOW_MS);
  }
}

// -- what is on the screen -------------------------------------------------------------------------------

const source = (s) => `picture/large/${s.id}`;
const isWanted = () => samples[at] && $("picture").getAttribute("src") === source(samples[at]);
const loading = () => view === "one" && Boolean(samples[at]) && !(isWanted() && $("picture").complete);
const failed = () => view === "one" && isWanted() && $("picture").complete && !$("picture").naturalWidth;

// Whether input is taken: the picture that it is for is on the screen, and was long enough to be seen.
function ready(unseen = false) {
  const now = performance.now();
  if (busy || $("asking").open || now - endedAt < SETTLE_MS) return false;
  if (view !== "one" || !samples[at]) return true;
  return !loading() && (unseen || !failed()) && now - shownAt >= SETTLE_MS;
}

$("picture").onload = () => {
  shownAt = performance.now();
  $("picture").classList.remove("loading");
  keepFocus(() => { $("retry").hidden = true; });
  working();
};
$("picture").onerror = async () => {
  const s = samples[at];
  if (!s || !isWanted()) return;
  shownAt = performance.now();
  working();
  // An image's error does not say why.
  const status = await fetch(source(s), { method: "HEAD", signal: AbortSignal.timeout(LIMIT_MS) }).then((a) => a.status, () => 0);
  if (samples[at] !== s || !failed()) return;
  if (status === 404) {
    later("gone", async () => {
      forget(new Set([s.id]));
      say(GONE, true);
      await Promise.all([refresh(), at >= samples.length - 5 ? fetchMore() : undefined]);
    });
  } else if (status === 401) {
    await login();
    again();
  } else {
    say("This picture could not be loaded: it cannot be labelled unseen.", true);
    $("retry").hidden = false;
  }
};
function again() {
  $("picture").removeAttribute("src");
  say("");
  keepFocus(draw);
}
$("retry").onclick = () => {
  if (loaded) again();
  else later("restart", restart);
};

// -- the queue -------------------------------------------------------------------------------------------

const matches = (s) => {
  const state = $("state").value, label = $("label").value;
  const is = s.label !== null ? "labelled" : s.suggestion ? "suggested" : "unlabelled";
  if (state === "todo" ? is === "labelled" : state !== "all" && state !== is) return false;
  return !label || (s.label ?? s.suggestion?.label) === label;
};

// `anew`: what comes after the picture on the screen as well.
async function fetchMore(anew = false) {
  const seen = anew ? samples.slice(0, at) : samples;
  // What was labelled since no longer matches the filter, so it does not count.
  const offset = seen.filter(matches).length;
  const query = new URLSearchParams({
    state: $("state").value, label: $("label").value, order: $("order").value, offset, limit: PAGE,
  });
  const page = await call("api/page?" + query);
  const known = new Set(seen.map((s) => s.id));
  samples = [...seen, ...page.samples.filter((s) => !known.has(s.id))];
  total = page.total;
}

async function refresh() {
  info = await call("api/state");
}

async function restart() {
  loaded = false;
  samples = [];
  at = 0;
  chosen.clear();
  await Promise.all([refresh(), fetchMore()]);
  seenStep = info.undo?.step ?? 0;
  loaded = true;
}

async function onward() {
  at += 1;
  const latest = info.undo?.step ?? 0;
  let foreign = false;
  for (let step = latest; step > Math.max(seenStep, latest - BATCH); step -= 1) foreign ||= !ownSteps.has(step);
  seenStep = Math.max(seenStep, latest);
  // Where somebody else labels as well, what has a label by now is not shown.
  if (foreign || at >= samples.length - 5) await fetchMore(foreign);
  // The next picture is there before it is asked for.
  for (const s of samples.slice(at + 1, at + 3)) new Image().src = `picture/large/${s.id}`;
}

const targets = () =>
  view === "grid" ? samples.filter((s) => chosen.has(s.id)) : samples[at] ? [samples[at]] : [];

const pictures = (n) => (n === 1 ? "1 picture" : `${n} pictures`);

// Ask until the node has taken it: what was shown may have changed there, and the owner decides.
async function labelAs(which, label) {
  let left = which, fresh = false;
  const was = new Map(which.map((s) => [s.id, s.label]));
  for (;;) {
    const body = { ids: left.map((s) => s.id), was: left.map((s) => was.get(s.id)), label, new: fresh };
    const answer = await call("api/label", body);
    if (answer.alike !== undefined) {
      const taken = await ask(`${answer.alike} or ${answer.label}?`, "They differ in case, blanks or hyphens only. Two spellings would be two labels.",
        { yes: `Use “${answer.alike}”`, no: `Add “${answer.label}”` });
      if (taken === undefined) return { done: [], label };
      if (taken === null) fresh = true;
      else label = answer.alike;
      continue;
    }
    if (!answer.refused) {
      if (answer.step) ownSteps.add(answer.step);
      label = answer.label;
      for (const s of left) s.label = label;
      return { done: left, label };
    }
    const gone = new Set(answer.gone);
    if (gone.size) {
      say(gone.size === 1 ? GONE : `${pictures(gone.size)} are gone: somebody deleted them meanwhile.`, true);
      forget(gone);
      left = left.filter((s) => !gone.has(s.id));
    }
    if (answer.samples.length) {
      const n = answer.samples.length;
      const text = `${meanwhile(answer.samples)} Your label was ${label === null ? "none" : `“${label}”`}.`;
      const mine = await ask(byNow(answer.samples), text, { yes: "Use mine", no: "Keep theirs" });
      for (const one of answer.samples) was.set(one.id, one.label);
      if (mine === null || mine === undefined) {
        const kept = new Map(answer.samples.map((one) => [one.id, one]));
        samples = samples.map((s) => kept.get(s.id) ?? s);
        left = left.filter((s) => !kept.has(s.id));
        if (!left.length) return { done: [], label, kept: n };
      }
    }
    if (!left.length) return { done: [], label, gone: gone.size };
  }
}

function byNow([first, ...more]) {
  const has = first.label === null ? "no label" : `“${first.label}”`;
  return more.length ? `${pictures(more.length + 1)} have other labels by now` : `It has ${has} by now`;
}

function meanwhile([first]) {
  if (first.labelled_by === null) return "The label was taken away meanwhile.";
  return `It was given ${first.labelled_by === "page" ? "on a page like this one" : `by ${first.labelled_by}`} meanwhile.`;
}

function forget(gone) {
  at -= samples.slice(0, at).filter((s) => gone.has(s.id)).length;
  samples = samples.filter((s) => !gone.has(s.id));
  for (const id of gone) chosen.delete(id);
}

// To what is chosen; a new label to what was chosen when its name was asked for.
function give(label, which = null) {
  if (!which && !ready()) return undefined;
  return doing(async () => {
    which ??= targets();
    if (!which.length) return;
    let done = [], kept = 0, gone = 0;
    for (let i = 0; i < which.length; i += BATCH) {
      const result = await labelAs(which.slice(i, i + BATCH), label);
      label = result.label;
      done = done.concat(result.done);
      kept += result.kept ?? 0;
      gone += result.gone ?? 0;
    }
    deletedLast = false;
    if (done.length) say(label === null ? `${pictures(done.length)}: label taken away` : `${pictures(done.length)}: ${label}`);
    else if (kept) say(`${pictures(kept)} kept as it was.`);
    else if (!gone) say("Nothing was changed.");
    try {
      if (view === "grid") {
        chosen.clear();
        samples = samples.filter(matches);
        at = 0;
        await fetchMore();
        await refresh();
      } else {
        await refresh();
        if (done.length || kept) await onward();
      }
    } catch (e) {
      say(`${$("said").textContent} That is saved; what comes next was not loaded: ${e.message}`, true);
    }
  });
}

function undo() {
  if (!ready(true)) return undefined;
  return doing(async () => {
    if (deletedLast) {
      deletedLast = false;
      say("A deleted picture does not come back. Press again to undo the labelling before it.", true);
      return;
    }
    await refresh();
    const last = info.undo;
    if (unanswered !== null && unanswered !== last?.step) {
      // It was undone, and the answer was lost: a second press must not undo the one before.
      unanswered = null;
      await restart();
      return say("Undone.");
    }
    if (last === null) return say("There is nothing left to undo.");
    if (!ownSteps.has(last.step)) {
      const by = last.who === "page" ? "on a page like this one" : `by ${last.who}`;
      const text = `The latest labelling was made ${by}, not here: ${pictures(last.count)}.`;
      if (typeof (await ask("Undo it?", text, { yes: "Undo", danger: true })) !== "string") return;
    }
    unanswered = last.step;
    const undone = await call("api/undo", { step: last.step });
    unanswered = null;
    if (undone.refused) throw new Error("Something was labelled or undone meanwhile: press again to see what undo would take back.");
    if (undone.who === null) return say("There is nothing left to undo.");
    const back = new Set(undone.samples.map((s) => s.id));
    const before = samples.slice(0, at).filter((s) => !back.has(s.id)).length;
    samples = samples.filter((s) => !back.has(s.id));
    at = Math.min(before, samples.length);
    samples.splice(at, 0, ...undone.samples);
    await refresh();
    const who = undone.who === "page" ? "" : ` (by ${undone.who})`;
    say(`Undone: ${pictures(undone.samples.length)}${who}`);
  });
}

function remove() {
  if (!ready(true)) return undefined;
  return doing(async () => {
    const which = targets();
    if (!which.length) return;
    const text = "The picture and all that was computed from it leave this machine for good. Undo does not bring it back.";
    if ((await ask(`Delete ${pictures(which.length)}?`, text, { yes: "Delete", danger: true })) == null) return;
    let done = 0;
    for (let i = 0; i < which.length; i += BATCH) done += await deleteThese(which.slice(i, i + BATCH));
    chosen.clear();
    if (!done) return say("Nothing was deleted.");
    deletedLast = true;
    if (at >= samples.length - 5) await fetchMore();
    await refresh();
    say(`${pictures(done)} deleted`);
  });
}

// As with labels: one that somebody else labelled meanwhile is a question. How many were deleted.
async function deleteThese(which) {
  const was = new Map(which.map((s) => [s.id, s.label]));
  for (;;) {
    const ids = [...was.keys()];
    const answer = await call("api/delete", { ids, was: [...was.values()], confirm: ids.length });
    if (!answer.refused) {
      forget(new Set(ids));
      return ids.length;
    }
    const text = `${meanwhile(answer.samples)} Deleting cannot be undone.`;
    const mine = await ask(byNow(answer.samples), text, { yes: "Delete", no: "Keep", danger: true });
    for (const one of answer.samples) {
      if (typeof mine === "string") was.set(one.id, one.label);
      else was.delete(one.id);
    }
    if (typeof mine !== "string") {
      const kept = new Map(answer.samples.map((one) => [one.id, one]));
      samples = samples.map((s) => kept.get(s.id) ?? s);
      if (!was.size) return 0;
    }
  }
}

async function addLabel() {
  if (!ready()) return;
  const which = targets();
  const label = await ask("New label", "It is given to what is chosen now.", { input: "", name: "Name of the label", yes: "Give" });
  if (label?.trim()) await give(label.trim(), which);
}

// -- asking ----------------------------------------------------------------------------------------------

// A text, or "" without a field, for yes; null for no; undefined where the dialog was left by Escape.
// One question at a time: the next one waits.
let asked = Promise.resolve();
function ask(title, text, options) {
  return (asked = asked.then(() => askNow(title, text, options)));
}

function askNow(title, text, { input, name = "", yes, no = "Cancel", danger = false }) {
  return new Promise((resolve) => {
    const dialog = $("asking");
    $("ask-title").textContent = title;
    $("ask-text").textContent = text;
    $("ask-field").hidden = input === undefined;
    $("ask-name").textContent = name;
    $("ask-no").textContent = no;
    $("ask-input").value = input ?? "";
    $("ask-yes").textContent = yes;
    $("ask-yes").classList.toggle("danger", danger);
    dialog.returnValue = "";
    dialog.onclose = () => {
      endedAt = performance.now();
      working();
      resolve(dialog.returnValue === "yes" ? $("ask-input").value : dialog.returnValue === "no" ? null : undefined);
    };
    dialog.showModal();
    working();
    (input === undefined ? $("ask-no") : $("ask-input")).focus();
  });
}

// -- drawing ---------------------------------------------------------------------------------------------

function element(tag, text, name) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}

const percent = (p) => `${Math.round(p * 100)} %`;

// A disabled button would lose the focus; this one keeps it and does nothing.
const enable = (button, on) => button.setAttribute("aria-disabled", String(!on));
document.addEventListener("click", (event) => {
  if (event.target.closest("[aria-disabled=true]")) event.stopPropagation();
}, true);

// What has the focus may be drawn anew, or hidden: the focus stays at its place, and never falls back to the top.
function keepFocus(drawing) {
  const had = document.activeElement;
  const within = ["labels", "cells"].find((id) => $(id).contains(had));
  const place = within && [...$(within).children].indexOf(had);
  drawing();
  const seen = (one) => one.isConnected && one.getClientRects().length > 0;
  const now = document.activeElement;
  if (had === document.body || (now !== document.body && seen(now))) return;
  const all = within ? [...$(within).children] : [];
  const same = all.find((one) => one.dataset.key === had.dataset.key) ?? all[Math.min(place, all.length - 1)];
  const next = [had, same].find((one) => one && seen(one)) ?? (view === "one" ? $("shown") : $(`show-${view}`));
  next.focus({ preventScroll: true });
}

function draw() {
  const labelled = Object.values(info.labelled).reduce((a, b) => a + b, 0);
  $("progress").value = info.total ? labelled / info.total : 0;
  $("progress-text").textContent = `${labelled} of ${info.total}`;
  for (const name of ["one", "grid", "help"]) {
    $(name).hidden = view !== name;
    $(`show-${name}`).setAttribute("aria-pressed", view === name);
  }
  document.body.dataset.view = view;
  $("actions").hidden = $("filters").hidden = view === "help";
  drawFilter();
  if (view === "one") drawOne();
  if (view === "grid") drawGrid();
  if (view === "help") drawCounts();
  drawLabels();
}

function drawFilter() {
  const before = $("label").value;
  const every = element("option", "Every label");
  every.value = "";
  const options = info.labels.map((label) => element("option", label));
  $("label").replaceChildren(every, ...options);
  $("label").value = info.labels.includes(before) ? before : "";
}

// How many are left to label: skipped under these filters, and under others.
function remaining() {
  const labelled = Object.values(info.labelled).reduce((a, b) => a + b, 0);
  const here = samples.filter((s) => s.label === null && matches(s)).length;
  return { here, others: Math.max(0, info.total - labelled - here) };
}

function nothingMore({ here, others }) {
  if (!loaded) return "The pictures could not be loaded.";
  if (!info.total) return "There are no pictures yet.\nThey come from the camera, or by `apiary samples import`.";
  const lines = [];
  if (here) lines.push(`That was the last one here. ${pictures(here)} skipped: ← goes back to them.`);
  else if (samples.some(matches)) lines.push("That was the last one here.");
  else if (others) lines.push("No picture here.");
  if (others) lines.push(`${pictures(others)} to label under other filters.`);
  else if (!here) lines.push(`Nothing is left to label: all ${pictures(info.total)} have a label.`);
  return lines.join("\n");
}

function drawOne() {
  const s = samples[at];
  $("picture").hidden = !s;
  $("empty").hidden = Boolean(s);
  $("caption").replaceChildren();
  $("show-all").hidden = true;
  if (!s) {
    const more = remaining();
    $("retry").hidden = loaded;
    $("picture").removeAttribute("src");
    $("empty").textContent = nothingMore(more);
    $("show-all").textContent = more.others ? "Show what is left" : "Show all pictures";
    $("show-all").hidden = !loaded || !info.total || ($("state").value === "all" && !$("label").value);
    return;
  }
  if (!isWanted()) {
    // The picture before it must not stay under this one's caption.
    $("picture").classList.add("loading");
    shownAt = Infinity; // until it is there: one from the cache is complete before it is drawn
    $("picture").src = source(s);
    $("retry").hidden = true;
  }
  $("picture").alt = `picture ${s.id.slice(0, 8)}`;
  const parts = [];
  if (s.label !== null) parts.push(element("b", s.label));
  else if (s.suggestion) {
    const says = element("span", "the model says ");
    says.append(element("b", `${s.suggestion.label}, ${percent(s.suggestion.probability)}`));
    parts.push(says);
  }
  if (s.held_out) parts.push(element("span", "held out"));
  parts.push(element("span", new Date(s.captured_at * 1000).toLocaleString([], { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" })));
  parts.forEach((part, i) => $("caption").append(i ? " · " : "", part));
}

function drawGrid() {
  const made = new Map([...$("cells").children].map((cell) => [cell.dataset.key, cell]));
  keepFocus(() => $("cells").replaceChildren(...samples.map((s) => {
    const cell = made.get(s.id) ?? makeCell(s.id);
    const text = s.label ?? (s.suggestion ? `${s.suggestion.label}? ${percent(s.suggestion.probability)}` : "");
    cell.lastChild.textContent = text;
    cell.lastChild.hidden = !text;
    cell.setAttribute("aria-pressed", chosen.has(s.id));
    cell.setAttribute("aria-label", text || "picture without a label");
    return cell;
  })));
  $("more").hidden = samples.filter(matches).length >= total;
  $("more").textContent = `More (${samples.length} of ${total})`;
}

function makeCell(id) {
  const cell = element("button", undefined, "cell");
  const img = element("img");
  img.loading = "lazy";
  img.alt = "";
  img.onerror = () => cell.classList.add("failed");
  img.src = `picture/small/${id}`;
  cell.dataset.key = id;
  cell.append(img, element("span"));
  cell.onclick = (event) => choose(id, event.shiftKey, cell);
  return cell;
}

let anchor = null;
function choose(id, range, cell) {
  const ids = samples.map((s) => s.id);
  const from = ids.indexOf(anchor), to = ids.indexOf(id);
  const wanted = range && from >= 0 ? ids.slice(Math.min(from, to), Math.max(from, to) + 1) : [id];
  if (wanted.length === 1 && chosen.delete(id)) {
    cell.setAttribute("aria-pressed", false);
  } else {
    chooseSeen(wanted);
  }
  anchor = id;
  drawLabels();
}

// Pictures that are on the screen, or were loaded for it; others would be labelled unseen.
function chooseSeen(ids) {
  const wanted = new Set(ids);
  let unseen = 0;
  for (const cell of $("cells").children) {
    if (!wanted.has(cell.dataset.key)) continue;
    if (cell.firstChild.naturalWidth) chosen.add(cell.dataset.key);
    else unseen += 1;
    cell.setAttribute("aria-pressed", chosen.has(cell.dataset.key));
  }
  say(unseen ? `${pictures(unseen)} not chosen: not loaded yet. Scroll there first.` : "");
}

function drawCounts() {
  const head = element("tr");
  for (const name of ["label", "labelled", "more would help"]) head.append(element("th", name));
  $("counts").replaceChildren(head, ...info.labels.map((label) => {
    const row = element("tr");
    const more = info.needed[label] ?? 0;
    row.append(element("td", label), element("td", info.labelled[label] ?? 0));
    row.append(element("td", more ? `+${more}` : "enough", more ? "short" : "enough"));
    return row;
  }));
  $("rule").textContent = info.rule ?? "";
}

function drawLabels() {
  const which = targets();
  const s = view === "one" ? which[0] : undefined;
  const buttons = info.labels.map((label) => {
    const button = element("button");
    button.dataset.label = button.dataset.key = label;
    if (info.keys[label]) button.append(element("kbd", info.keys[label]));
    button.append(element("span", label));
    const guess = s && s.label === null && s.suggestion?.label === label;
    const more = info.needed[label];
    button.append(element("small", guess ? percent(s.suggestion.probability) : more ? `+${more}` : "", guess ? "guess" : ""));
    button.classList.toggle("suggested", Boolean(guess));
    button.classList.toggle("given", Boolean(s && s.label === label));
    enable(button, which.length);
    button.setAttribute("aria-pressed", Boolean(s && s.label === label));
    button.onclick = () => give(label);
    return button;
  });
  if (info.may_add) {
    const button = element("button", undefined, "new");
    button.append(element("span", "+ new label"));
    button.dataset.key = "";
    enable(button, which.length);
    button.onclick = addLabel;
    buttons.push(button);
  }
  const scrolled = $("labels").scrollTop;
  keepFocus(() => $("labels").replaceChildren(...buttons));
  $("labels").classList.toggle("many", info.labels.length > 8);
  $("labels").scrollTop = scrolled;
  const grid = view === "grid";
  enable($("delete"), which.length);
  $("delete").textContent = grid && which.length ? `Delete ${which.length}` : "Delete";
  enable($("clear"), which.some((one) => one.label !== null));
  $("back").hidden = grid;
  enable($("back"), at > 0);
  enable($("skip"), grid || s);
  $("skip").textContent = !grid ? "Skip →" : chosen.size ? "None" : "All";
}

// -- hands -----------------------------------------------------------------------------------------------

const skip = () => ready(true) && doing(async () => {
  if (view === "grid") {
    if (chosen.size) chosen.clear();
    else chooseSeen(samples.map((s) => s.id));
  } else if (samples[at]) {
    say("");
    await onward();
  }
});
const back = () => ready(true) && doing(async () => { if (at > 0) at -= 1; say(""); });
const show = (name) => later("show", async () => {
  if (name === "grid" && view !== "grid") { samples = samples.filter(matches); at = 0; await fetchMore(); }
  chosen.clear();
  view = name;
  say(name === "grid" ? "Tap pictures to choose them, then a label." : "");
});

$("undo").onclick = undo;
$("delete").onclick = remove;
$("clear").onclick = () => give(null);
$("skip").onclick = skip;
$("back").onclick = back;
$("ask-no").onclick = () => $("asking").close("no");
$("more").onclick = () => later("more", async () => {
  const first = samples.length, focused = document.activeElement === $("more");
  await fetchMore();
  drawGrid();
  if (focused) $("cells").children[first]?.focus({ preventScroll: true });
});
$("show-one").onclick = () => show("one");
$("show-grid").onclick = () => show("grid");
$("show-help").onclick = () => show("help");
for (const name of ["state", "label", "order"]) $(name).onchange = () => later("restart", restart);
$("show-all").onclick = () => {
  $("state").value = remaining().others ? "todo" : "all";
  $("label").value = "";
  later("restart", restart);
};

// Enter takes the suggestion wherever the focus is, except where the Tab key brought it to a link or to a button
// that is no label's, in fields and in dialogs: there Enter is their own. Without a suggestion it presses a label
// that the Tab key led to, and not one that was tapped for the picture before. Space presses what has the focus.
let byTab = false;
document.addEventListener("pointerdown", () => { byTab = false; });

document.addEventListener("keydown", (event) => {
  if (event.key === "Tab") byTab = true;
  if ($("asking").open) {
    if (event.repeat && event.key === "Enter") event.preventDefault(); // held since before the question
    return;
  }
  if (event.target.matches("select, input") || event.ctrlKey || event.metaKey || event.altKey) return;
  const suggested = view === "one" && samples[at]?.label === null && samples[at]?.suggestion?.label;
  const label = info.labels.find((one) => info.keys[one] === event.key);
  const control = event.target.closest("button, a");
  const own = control && (view !== "one" || (byTab && !(suggested && control.closest("#labels"))));
  let act;
  if (label !== undefined && view !== "help") act = () => give(label);
  else if (event.key === "Enter" && !own) act = () => suggested && give(suggested);
  else if (event.key === "u") act = undo;
  else if (event.key === "ArrowRight" && view === "one") act = skip;
  else if (event.key === "ArrowLeft" && view === "one") act = back;
  else if (event.key === "Delete" && view !== "help") act = remove;
  else if (event.key === "g") act = () => show(view === "grid" ? "one" : "grid");
  else {
    if (event.repeat && event.key === "Enter") event.preventDefault();
    return;
  }
  event.preventDefault();
  if (!event.repeat) act();
});

// A running node serves it in a folder, beside its other pages.
$("home").hidden = location.pathname === "/";
// The token must not stay in the address, where it would be shown, sent on or kept.
if (location.search) history.replaceState(null, "", location.pathname);
doing(restart);
