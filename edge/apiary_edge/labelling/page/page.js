"use strict";
// The page of one owner: a queue of pictures, label buttons, a grid. Text from the store goes in as text only.

const $ = (id) => document.getElementById(id);
const PAGE = 60;
let info = { labels: [], labelled: {}, needed: {}, total: 0 };
let samples = []; // what was fetched, in order
let at = 0; // the one that is shown
let total = 0;
let view = "one";
let busy = false;
let deletedLast = false;
const chosen = new Set(); // ids, in the grid

// -- talking to the node ---------------------------------------------------------------------------------

async function call(path, body) {
  const post = { method: "POST", headers: { "Content-Type": "application/json", "X-Apiary": "1" }, body: JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(path, body === undefined ? {} : post);
  } catch {
    throw new Error("The node does not answer. Is `apiary label` still running?");
  }
  const value = await answer.json();
  if (answer.status === 401 && path !== "api/login") {
    await login();
    return call(path, body);
  }
  if (!answer.ok) throw new Error(value.error);
  return value;
}

let loggingIn = null;
function login() {
  loggingIn ??= (async () => {
    let text = "Paste the token from the address that `apiary label` printed on the node.";
    for (;;) {
      const token = await ask("This page has an owner", text, { input: "", yes: "Open" });
      if (token === null) continue;
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
  try {
    await work();
  } catch (e) {
    say(e.message, true);
  } finally {
    busy = false;
    draw();
  }
}

// -- the queue -------------------------------------------------------------------------------------------

const matches = (s) => {
  const state = $("state").value, label = $("label").value;
  const is = s.label !== null ? "labelled" : s.suggestion ? "suggested" : "unlabelled";
  if (state === "todo" ? is === "labelled" : state !== "all" && state !== is) return false;
  return !label || (s.label ?? s.suggestion?.label) === label;
};

async function fetchMore() {
  // What was labelled since no longer matches the filter, so it does not count.
  const query = new URLSearchParams({
    state: $("state").value, label: $("label").value, order: $("order").value,
    offset: samples.filter(matches).length, limit: PAGE,
  });
  const page = await call("api/page?" + query);
  const known = new Set(samples.map((s) => s.id));
  samples.push(...page.samples.filter((s) => !known.has(s.id)));
  total = page.total;
}

async function refresh() {
  info = await call("api/state");
}

async function restart() {
  samples = [];
  at = 0;
  chosen.clear();
  await Promise.all([refresh(), fetchMore()]);
}

async function onward() {
  at += 1;
  if (at >= samples.length - 5) await fetchMore();
  // The next picture is there before it is asked for.
  for (const s of samples.slice(at + 1, at + 3)) new Image().src = `picture/large/${s.id}`;
}

const targets = () =>
  view === "grid" ? samples.filter((s) => chosen.has(s.id)) : samples[at] ? [samples[at]] : [];

const pictures = (n) => (n === 1 ? "1 picture" : `${n} pictures`);

function give(label) {
  return doing(async () => {
    const which = targets();
    if (!which.length) return;
    for (let i = 0; i < which.length; i += 500) {
      await call("api/label", { ids: which.slice(i, i + 500).map((s) => s.id), label });
    }
    for (const s of which) s.label = label;
    deletedLast = false;
    say(label === null ? `${pictures(which.length)}: label taken away` : `${pictures(which.length)}: ${label}`);
    if (view === "grid") {
      chosen.clear();
      samples = samples.filter(matches);
      at = 0;
      await fetchMore();
    } else {
      await onward();
    }
    await refresh();
  });
}

function undo() {
  return doing(async () => {
    if (deletedLast) {
      deletedLast = false;
      say("A deleted picture does not come back. Press again to undo the labelling before it.", true);
      return;
    }
    const undone = await call("api/undo", {});
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
  return doing(async () => {
    const ids = targets().map((s) => s.id);
    if (!ids.length) return;
    const text = "The picture and all that was computed from it leave this machine for good. Undo does not bring it back.";
    if ((await ask(`Delete ${pictures(ids.length)}?`, text, { yes: "Delete", danger: true })) === null) return;
    for (let i = 0; i < ids.length; i += 500) {
      const part = ids.slice(i, i + 500);
      await call("api/delete", { ids: part, confirm: part.length });
    }
    const gone = new Set(ids);
    at -= samples.slice(0, at).filter((s) => gone.has(s.id)).length;
    samples = samples.filter((s) => !gone.has(s.id));
    chosen.clear();
    deletedLast = true;
    if (at >= samples.length - 5) await fetchMore();
    await refresh();
    say(`${pictures(ids.length)} deleted`);
  });
}

async function addLabel() {
  const label = await ask("New label", "It is given to what is chosen now.", { input: "", yes: "Give" });
  if (label?.trim()) await give(label.trim());
}

// -- asking ----------------------------------------------------------------------------------------------

function ask(title, text, { input, yes, danger = false }) {
  return new Promise((resolve) => {
    const dialog = $("asking");
    $("ask-title").textContent = title;
    $("ask-text").textContent = text;
    $("ask-input").hidden = input === undefined;
    $("ask-input").value = input ?? "";
    $("ask-yes").textContent = yes;
    $("ask-yes").classList.toggle("danger", danger);
    dialog.returnValue = "";
    dialog.onclose = () => resolve(dialog.returnValue === "yes" ? $("ask-input").value : null);
    dialog.showModal();
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

function draw() {
  const labelled = Object.values(info.labelled).reduce((a, b) => a + b, 0);
  $("progress").value = info.total ? labelled / info.total : 0;
  $("progress-text").textContent = `${labelled} of ${info.total}`;
  for (const name of ["one", "grid", "help"]) {
    $(name).hidden = view !== name;
    $(`show-${name}`).setAttribute("aria-pressed", view === name);
  }
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

function drawOne() {
  const s = samples[at];
  $("picture").hidden = !s;
  $("empty").hidden = Boolean(s);
  $("caption").replaceChildren();
  if (!s) {
    const left = samples.filter(matches).length;
    $("picture").removeAttribute("src");
    $("empty").textContent = !info.total
      ? "There are no pictures yet.\nThey come from the camera, or by `apiary samples import`."
      : left && $("state").value === "todo"
        ? `That was the last one. ${pictures(left)} skipped: ← goes back to them.`
        : "Nothing is left to label here.";
    return;
  }
  const src = `picture/large/${s.id}`;
  if ($("picture").getAttribute("src") !== src) $("picture").src = src;
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
  $("cells").replaceChildren(...samples.map((s) => {
    const cell = element("button", undefined, "cell");
    const img = element("img");
    img.loading = "lazy";
    img.alt = "";
    img.src = `picture/small/${s.id}`;
    const text = s.label ?? (s.suggestion ? `${s.suggestion.label}? ${percent(s.suggestion.probability)}` : "");
    cell.append(img);
    if (text) cell.append(element("span", text));
    cell.setAttribute("aria-pressed", chosen.has(s.id));
    cell.setAttribute("aria-label", text || "picture without a label");
    cell.onclick = (event) => choose(s.id, event.shiftKey, cell);
    return cell;
  }));
  $("more").hidden = samples.filter(matches).length >= total;
  $("more").textContent = `More (${samples.length} of ${total})`;
}

let anchor = null;
function choose(id, range, cell) {
  const ids = samples.map((s) => s.id);
  const from = ids.indexOf(anchor), to = ids.indexOf(id);
  if (range && from >= 0) {
    for (const one of ids.slice(Math.min(from, to), Math.max(from, to) + 1)) chosen.add(one);
    drawGrid();
  } else {
    if (!chosen.delete(id)) chosen.add(id);
    cell.setAttribute("aria-pressed", chosen.has(id));
  }
  anchor = id;
  drawLabels();
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
  const buttons = info.labels.map((label, i) => {
    const button = element("button");
    if (i < 9) button.append(element("kbd", i + 1));
    button.append(element("span", label));
    const guess = s && s.label === null && s.suggestion?.label === label;
    const more = info.needed[label];
    button.append(element("small", guess ? percent(s.suggestion.probability) : more ? `+${more}` : ""));
    button.classList.toggle("suggested", Boolean(guess));
    button.classList.toggle("given", Boolean(s && s.label === label));
    button.disabled = !which.length;
    button.onclick = () => give(label);
    return button;
  });
  if (info.may_add) {
    const button = element("button", undefined, "new");
    button.append(element("span", "+ new label"));
    button.disabled = !which.length;
    button.onclick = addLabel;
    buttons.push(button);
  }
  const scrolled = $("labels").scrollTop;
  $("labels").replaceChildren(...buttons);
  $("labels").scrollTop = scrolled;
  const grid = view === "grid";
  $("delete").disabled = !which.length;
  $("delete").textContent = grid && which.length ? `Delete ${which.length}` : "Delete";
  $("clear").hidden = !which.some((one) => one.label !== null);
  $("back").hidden = grid;
  $("back").disabled = at === 0;
  $("skip").disabled = !grid && !s;
  $("skip").textContent = !grid ? "Skip →" : chosen.size ? "None" : "All";
}

// -- hands -----------------------------------------------------------------------------------------------

const skip = () => doing(async () => {
  if (view === "grid") {
    if (chosen.size) chosen.clear();
    else for (const s of samples) chosen.add(s.id);
  } else if (samples[at]) {
    say("");
    await onward();
  }
});
const back = () => doing(async () => { if (at > 0) at -= 1; say(""); });
const show = (name) => doing(async () => {
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
$("ask-no").onclick = () => $("asking").close("");
$("more").onclick = () => doing(fetchMore);
$("show-one").onclick = () => show("one");
$("show-grid").onclick = () => show("grid");
$("show-help").onclick = () => show("help");
for (const name of ["state", "label", "order"]) $(name).onchange = () => doing(restart);
$("picture").onerror = () => { if (samples[at]) say("This picture cannot be shown.", true); };

document.addEventListener("keydown", (event) => {
  const typing = $("asking").open || event.target.matches("select, input");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const suggested = view === "one" && samples[at]?.label === null && samples[at]?.suggestion?.label;
  const label = info.labels[Number(event.key) - 1];
  if (/^[1-9]$/.test(event.key) && label && view !== "help") give(label);
  else if (event.key === "Enter" && suggested && !event.target.matches("button")) give(suggested);
  else if (event.key === "u") undo();
  else if (event.key === "ArrowRight" && view === "one") skip();
  else if (event.key === "ArrowLeft" && view === "one") back();
  else if (event.key === "Delete" && view !== "help") remove();
  else if (event.key === "g") show(view === "grid" ? "one" : "grid");
  else return;
  event.preventDefault();
});

// A running node serves it in a folder, beside its other pages.
$("home").hidden = location.pathname === "/";
// The token must not stay in the address, where it would be shown, sent on or kept.
if (location.search) history.replaceState(null, "", location.pathname);
doing(restart);
