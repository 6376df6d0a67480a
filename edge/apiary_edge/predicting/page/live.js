"use strict";
// What the node sees and predicts. The next answer is asked for when the last one is drawn, so a slow link or
// phone sees fewer frames instead of late ones; nothing is asked while the page is hidden.
//
// A correction goes to the picture that was on the screen when the finger came down, and to the label that had
// stood there for a while: what has just moved under the finger is not taken.

const $ = (id) => document.getElementById(id);
const PAUSE_MS = 150, RETRY_MS = 2000, LIMIT_MS = 15000;
const SETTLE_MS = 400; // a finger that is on its way meant what stood there before
const RESUME_MS = 3000; // how long a corrected picture stays
const SLOW_MS = 4000;
let last = 0; // number of the frame that is shown
let held = false;
let busy = false; // a picture of the owner's is being looked at
let sending = false; // a correction is on its way
let pressed = null; // what a finger lies on
let quietAt = 0; // when something ended or was held: the second tap of a double tap is not for what comes then
let tries = 0; // pictures of the owner's: the answer to the last one is shown, whichever comes last
const given = new Map(); // labels that this page gave, by digest: correcting them once more is no question
let drawnFrame = null; // the frame that is shown: its digest, its bars
let resumes = 0; // the timer that ends the hold of a correction
let info = null;
let heardAt = performance.now();
const drawn = []; // times of the last frames, for the rate

async function call(path, options = {}) {
  let answer, value;
  try {
    answer = await fetch(path, { ...options, signal: AbortSignal.timeout(LIMIT_MS) });
    value = await answer.json();
  } catch {
    throw Object.assign(new Error(answer ? "The node's answer cannot be read." : "The node does not answer."), { value: {} });
  }
  if (answer.status === 401 && path !== "api/login") {
    await login();
    return call(path, options);
  }
  if (!answer.ok) throw Object.assign(new Error(value.error), { status: answer.status, value });
  return value;
}

const post = (path, body, type) =>
  call(path, { method: "POST", headers: { "Content-Type": type, "X-Apiary": "1" }, body });
// Kept alive: what was tapped is sent, though the page is left at once.
const postJson = (path, value) =>
  call(path, { method: "POST", headers: { "Content-Type": "application/json", "X-Apiary": "1" }, body: JSON.stringify(value), keepalive: true });

let loggingIn = null;
function login() {
  loggingIn ??= (async () => {
    let text = "These pictures are for the node's owner. On the node, type apiary label --qr and scan the code with this device, or paste the token that apiary label prints.";
    for (;;) {
      $("ask-text").textContent = text;
      $("ask-input").value = "";
      $("asking").showModal();
      await new Promise((done) => $("asking").addEventListener("close", done, { once: true }));
      const token = $("ask-input").value.replace(/^.*token=/, "").trim();
      if (!token) continue;
      try {
        await postJson("api/login", { token });
        return;
      } catch (e) {
        text = e.message;
      }
    }
  })().finally(() => { loggingIn = null; });
  return loggingIn;
}

// -- drawing ---------------------------------------------------------------------------------------------

const percent = (p) => `${(100 * p).toFixed(p < 0.0995 || (p > 0.9995 && p < 1) ? 1 : 0)} %`;
const ms = (n) => (n < 10 ? `${n.toFixed(1)} ms` : `${Math.round(n)} ms`);
const part = (className) => Object.assign(document.createElement("span"), { className });

// As many bars as leave the picture, the answer and the tools on the screen; `All labels` has the others.
const roomy = matchMedia("(min-width: 900px) and (min-height: 600px)");
const FEW = 4;

function drawAnswer(label, all, timing, more) {
  const bars = roomy.matches || all.length <= FEW + 1 ? all : all.slice(0, FEW);
  $("label-name").textContent = label ?? "Not sure";
  $("label-percent").textContent = bars.length ? percent(bars[0][1]) : "";
  $("label").classList.toggle("unsure", label === null);
  const list = $("bars");
  while (list.children.length > bars.length) list.lastChild.remove();
  bars.forEach(([name, p], i) => {
    let row = list.children[i];
    if (!row) {
      row = document.createElement("li");
      const button = document.createElement("button");
      button.append(part("fill"), part("name"), part("percent"));
      row.append(button);
      list.append(row);
    }
    const button = row.firstChild;
    if (button.dataset.label !== name) {
      button.dataset.label = name;
      button.since = performance.now();
    }
    button.querySelector(".fill").style.width = `${100 * p}%`;
    button.querySelector(".name").textContent = name;
    button.querySelector(".percent").textContent = percent(p);
  });
  $("correcting").hidden = !bars.length;
  $("all").hidden = more <= bars.length;
  $("inference").textContent = ms(timing.classification);
  $("preprocess").textContent = ms(timing.dsp);
  allow();
}

/** Corrections are taken of a frame of the camera's, one at a time. */
function allow() {
  const may = drawnFrame !== null && drawnFrame.digest !== null && !sending && !busy;
  // A disabled button would lose the focus; this one keeps it and does nothing.
  for (const button of [...$("bars").querySelectorAll("button"), $("all")]) button.setAttribute("aria-disabled", String(!may));
  $("hint").textContent = drawnFrame === null ? "The most probable labels" : "Wrong? Tap the right label.";
}

function pictures(n) {
  return n === 1 ? "1 held-out picture" : `${n} held-out pictures`;
}

function drawModel(model) {
  $("model-name").textContent = model ? model.name : "No model yet";
  $("digest").textContent = model ? model.digest.slice(0, 12) : "–";
  if (!model) {
    $("model-more").textContent = "It comes with the first round that the coordinator closes. Pictures that you label until then train it.";
    return;
  }
  const whose = model.personal ? "tuned to this node, " : "";
  let how = "accuracy not known";
  if (model.accuracy !== null) {
    const on = model.tested_on === null ? "of an unknown number of pictures" : `of ${pictures(model.tested_on)}`;
    const few = model.tested_on > 0 && model.tested_on < 30 ? ` (few: one is ${percent(1 / model.tested_on)})` : "";
    how = `${percent(model.accuracy)} right ${on}${few}`;
  }
  $("model-more").textContent = `${whose}${how}`;
}

const cameraText = () => [info.camera.text, info.camera.todo].filter(Boolean).join("\n");

function troubles() {
  const found = [];
  if (info.trouble && info.model) found.push(`${info.trouble}\nIt is tried again every minute; sudo journalctl -u apiary-edge on the node says more.`);
  else if (info.trouble) found.push(`The model cannot be used: ${info.trouble}\nIt is tried again every minute; sudo journalctl -u apiary-edge on the node says more.`);
  if (!info.camera.works && info.shown) found.push(cameraText()); // without a picture it stands in its place
  return found.join("\n");
}

function drawAround() {
  $("node").textContent = info.node;
  drawModel(info.model);
  const trouble = troubles();
  $("trouble").hidden = !trouble;
  if ($("trouble").textContent !== trouble) $("trouble").textContent = trouble;
  const shown = info.shown;
  const fresh = shown && shown.age_s < 10;
  const broken = trouble || !info.camera.works;
  state(
    held ? "held" : fresh ? "live" : broken ? "needs you" : !info.model ? "no model yet" : shown ? "no new frame" : "waiting",
    held ? "" : fresh ? "live" : broken ? "bad" : "",
  );
  if (!shown) {
    const text = cameraText();
    $("empty").textContent = info.model || !info.camera.works ? text : `${text}\nPredictions begin with the first model.`;
  }
}

function state(text, kind = "") {
  if ($("state").textContent !== text) $("state").textContent = text;
  $("state").className = kind;
}

const still = () => held || busy || sending || pressed !== null;

// A frame is drawn when it is here, with what belongs to it.
async function drawFrame(shown) {
  const next = new Image();
  next.src = `frame/${shown.number}`;
  try {
    await next.decode();
  } catch {
    return; // it was a moment too late; the next one is on its way
  }
  if (still()) return;
  $("picture").src = next.src;
  $("picture").alt = shown.label ?? "a frame of the camera";
  show("picture");
  last = shown.number;
  drawnFrame = shown;
  const now = performance.now();
  drawn.push(now);
  while (drawn.length > 12 || now - drawn[0] > 5000) drawn.shift();
  const span = (now - drawn[0]) / 1000;
  $("rate").textContent = span > 0.5 ? `${((drawn.length - 1) / span).toFixed(1)}/s` : "–";
  drawAnswer(shown.label, shown.bars, shown.timing, info.labels);
}

async function turn() {
  let pause = PAUSE_MS;
  if (!document.hidden && !busy) {
    try {
      // A held page does not look: what it holds stays kept by the node the longer.
      info = await call(still() ? "api/now" : "api/now?look=1");
      heardAt = performance.now();
      drawAround();
      if (info.shown && info.shown.digest && info.shown.number !== last && !still()) await drawFrame(info.shown);
      heardAt = performance.now();
    } catch (e) {
      state("offline", "bad");
      if (!last) $("empty").textContent = e.message;
      pause = RETRY_MS;
      heardAt = performance.now();
    }
  } else heardAt = performance.now();
  setTimeout(turn, pause);
}

setInterval(() => {
  if (!document.hidden && performance.now() - heardAt > SLOW_MS && !$("asking").open) state("slow link");
}, 1000);

// -- corrections -----------------------------------------------------------------------------------------

const refuses = (button) => button.getAttribute("aria-disabled") === "true";

function say(text, { bad = false, act = null, todo = null } = {}) {
  $("told").hidden = !text;
  $("told").classList.toggle("bad", bad);
  $("said").textContent = text;
  if (act === null && document.activeElement === $("act")) $("hold").focus({ preventScroll: true });
  $("act").hidden = act === null;
  $("act").textContent = act ?? "";
  $("act").onclick = todo;
}

const wish = (button) => ({
  digest: drawnFrame?.digest ?? null,
  label: button.dataset.label,
  settled: performance.now() - Math.max(button.since, quietAt) >= SETTLE_MS,
});

async function correct({ digest, label }, was = given.get(digest) ?? null) {
  if (sending) return;
  clearTimeout(resumes);
  const own = held;
  sending = true;
  allow();
  say("Saving …");
  try {
    const done = await postJson("api/correct", { digest, label, was });
    given.set(digest, label);
    const text = done.before === label ? `It has the label ${label} already.` : `Saved as ${label}.`;
    const undo = done.before === label ? {} : { act: "Undo", todo: () => undoing(done, digest) };
    say(text, undo);
    if (!own) resumes = setTimeout(() => { if (!sending) hold(false, true); }, RESUME_MS);
    if (!own) hold(true, true);
  } catch (e) {
    hold(true, true);
    if (e.status === 409 && e.value.label !== label) {
      say(`It has ${e.value.label === null ? "no label" : `the label ${e.value.label}`} by now.`, { act: `Change to ${label}`, todo: () => correct({ digest, label }, e.value.label) });
    } else if (e.status === 410) {
      say("This picture is no longer kept, so it was not labelled. Hold the next one first.", { bad: true });
    } else {
      say(`Not saved: ${e.message}`, { bad: true, act: "Try again", todo: () => correct({ digest, label }, was) });
    }
  } finally {
    sending = false;
    quietAt = performance.now();
    allow();
  }
}

async function undoing({ id, label, before }, digest) {
  if (sending) return;
  sending = true;
  allow();
  say("Taking it back …");
  try {
    await postJson("api/undo", { id, label, before });
    given.set(digest, before);
    say(before === null ? "Taken back: the picture waits for a label." : `Taken back: its label is ${before} again.`);
  } catch (e) {
    if (e.status === 409 || e.status === 410) say(`Not taken back: ${e.message}`, { bad: true });
    else say(`Not taken back: ${e.message}`, { bad: true, act: "Try again", todo: () => undoing({ id, label, before }, digest) });
  } finally {
    sending = false;
    quietAt = performance.now();
    allow();
  }
}

$("bars").addEventListener("pointerdown", (event) => {
  const button = event.target.closest("button");
  if (button && !refuses(button)) pressed = { button, wish: wish(button) };
});
for (const kind of ["pointerup", "pointercancel"]) {
  // After the click that the lifted finger makes.
  addEventListener(kind, () => setTimeout(() => { pressed = null; }, 0));
}
$("bars").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button || refuses(button)) return;
  const meant = pressed?.button === button ? pressed.wish : wish(button);
  if (meant.settled) correct(meant);
  else if (!held) {
    hold(true);
    quietAt = performance.now();
    say("The labels were just moving: the picture is held now, tap again.");
  }
});

$("all").addEventListener("click", async () => {
  if (refuses($("all"))) return;
  const digest = drawnFrame.digest;
  hold(true);
  try {
    const first = drawnFrame.bars.map(([name]) => name);
    const labels = (await call("api/info")).modelParameters.labels;
    choose([...first, ...labels.filter((name) => !first.includes(name))], digest);
  } catch (e) {
    say(e.message, { bad: true });
  }
});

function choose(labels, digest) {
  $("choices").replaceChildren(...labels.map((name) => {
    const row = document.createElement("li");
    row.append(Object.assign(document.createElement("button"), { textContent: name, value: name }));
    return row;
  }));
  $("choosing").returnValue = "";
  $("choosing").showModal();
  $("choosing").onclose = () => {
    quietAt = performance.now();
    if ($("choosing").returnValue) correct({ digest, label: $("choosing").returnValue });
  };
}

// -- the owner's own pictures ----------------------------------------------------------------------------

async function tryPicture(file) {
  const mine = ++tries;
  busy = true;
  allow();
  say("The node looks at it …");
  try {
    const found = await post("api/image", file, file.type || "application/octet-stream");
    if (mine !== tries) return;
    const bars = Object.entries(found.result.classification).sort((a, b) => b[1] - a[1]).slice(0, 10);
    await drawFile(file, () => mine === tries);
    if (mine !== tries) return;
    drawnFrame = null;
    drawAnswer(found.label, bars, found.timing, 0);
    drawModel(found.model);
    state("your picture");
    hold(true);
    say(`${file.name} stays on this node; it is not kept.`);
  } catch (e) {
    if (mine === tries) say(e.message, { bad: true });
  } finally {
    if (mine === tries) {
      busy = false;
      allow();
    }
  }
}

async function drawFile(file, wanted) {
  // On a canvas: the page may show pictures of the node's own addresses only.
  const bitmap = await createImageBitmap(file);
  if (!wanted()) return bitmap.close();
  const scale = Math.min(1, 1280 / Math.max(bitmap.width, bitmap.height));
  const canvas = $("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  show("canvas");
}

function show(which) {
  for (const id of ["picture", "canvas", "empty"]) $(id).hidden = id !== which;
}

/** Keep what is shown, or go on. By itself: for a correction, whose message stays. */
function hold(on, byItself = false) {
  if (!byItself) clearTimeout(resumes);
  held = on;
  $("hold").setAttribute("aria-pressed", String(on));
  $("hold").textContent = on ? "Go on" : "Hold";
  if (on) {
    if (info && drawnFrame !== null) state("held");
    return;
  }
  last = 0;
  if (!byItself) say("");
  if (!info?.shown) { // no camera: there is nothing to go on with
    show("empty");
    drawnFrame = null;
    $("label-name").textContent = "–";
    $("label-percent").textContent = "";
    $("bars").replaceChildren();
    $("correcting").hidden = true;
  }
}

$("hold").addEventListener("click", () => hold(!held));
$("try").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  if ($("file").files.length) tryPicture($("file").files[0]);
  $("file").value = "";
});
if (location.search) history.replaceState(null, "", location.pathname); // the token is in a cookie now
turn();
