"use strict";
// What the node sees and thinks of it. The next question is asked when the last answer is drawn, so a slow
// link or phone sees fewer frames instead of late ones; nothing is asked while the page is hidden.

const $ = (id) => document.getElementById(id);
const PAUSE_MS = 150, RETRY_MS = 2000;
let last = 0; // number of the frame that is shown
let held = false;
let busy = false; // a picture of the owner's is shown
let info = null;
const drawn = []; // times of the last frames, for the rate

async function call(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The node does not answer.");
  }
  const value = await answer.json().catch(() => ({ error: "The node's answer cannot be read." }));
  if (answer.status === 401 && path !== "api/login") {
    await login();
    return call(path, options);
  }
  if (!answer.ok) throw new Error(value.error);
  return value;
}

const post = (path, body, type) =>
  call(path, { method: "POST", headers: { "Content-Type": type, "X-Apiary": "1" }, body });

let loggingIn = null;
function login() {
  loggingIn ??= (async () => {
    let text = "Paste the token that lies on the node in labelling.token (apiary label prints it, too).";
    for (;;) {
      $("ask-text").textContent = text;
      $("ask-input").value = "";
      $("asking").showModal();
      await new Promise((done) => $("asking").addEventListener("close", done, { once: true }));
      const token = $("ask-input").value.replace(/^.*token=/, "").trim();
      if (!token) continue;
      try {
        await post("api/login", JSON.stringify({ token }), "application/json");
        return;
      } catch (e) {
        text = e.message;
      }
    }
  })().finally(() => { loggingIn = null; });
  return loggingIn;
}

// -- drawing ---------------------------------------------------------------------------------------------

const percent = (p) => `${(100 * p).toFixed(p < 0.0995 || p > 0.9995 ? 1 : 0)} %`;
const ms = (n) => (n < 10 ? `${n.toFixed(1)} ms` : `${Math.round(n)} ms`);

function drawAnswer(label, bars, timing, more) {
  $("label").textContent = label ?? "Not sure";
  $("label").classList.toggle("unsure", label === null);
  const list = $("bars");
  while (list.children.length > bars.length) list.lastChild.remove();
  bars.forEach(([name, p], i) => {
    let row = list.children[i];
    if (!row) {
      row = document.createElement("li");
      for (const what of ["fill", "name", "percent"]) row.append(Object.assign(document.createElement("span"), { className: what }));
      list.append(row);
    }
    row.classList.toggle("first", i === 0);
    row.querySelector(".fill").style.width = `${100 * p}%`;
    row.querySelector(".name").textContent = name;
    row.querySelector(".percent").textContent = percent(p);
  });
  if (more > bars.length) {
    const rest = document.createElement("li");
    rest.append(Object.assign(document.createElement("span"), { className: "name", textContent: `and ${more - bars.length} more` }));
    list.append(rest);
  }
  $("inference").textContent = ms(timing.classification);
  $("preprocess").textContent = ms(timing.dsp);
}

function drawModel(model) {
  $("model-name").textContent = model ? model.name : "No model yet";
  if (!model) {
    $("model-more").textContent = "It comes with the first round that the coordinator closes.";
    return;
  }
  const accuracy = model.accuracy === null ? "accuracy not known" : `${percent(model.accuracy)} accurate`;
  const tuned = model.personal ? " on this node's held-out pictures, tuned to it" : "";
  $("model-more").textContent = `${accuracy}${tuned} · ${model.digest.slice(0, 12)}`;
}

function drawAround() {
  $("node").textContent = `${info.node} · ${info.federation}`;
  drawModel(info.model);
  $("trouble").hidden = !info.trouble;
  $("trouble").textContent = info.trouble ?? "";
  const shown = info.shown;
  const fresh = shown && shown.age_s < 10;
  state(held ? "held" : fresh ? "live" : shown ? "no new frame" : "waiting", fresh && !held ? "live" : "");
  if (!shown) $("empty").textContent = info.camera;
}

function state(text, kind = "") {
  $("state").textContent = text;
  $("state").className = kind;
}

// A frame is drawn when it is here, with what belongs to it.
async function drawFrame(shown) {
  const next = new Image();
  next.src = `frame/${shown.number}`;
  try {
    await next.decode();
  } catch {
    return; // it was a moment too late; the next one is on its way
  }
  if (busy || held) return;
  $("picture").src = next.src;
  $("picture").alt = shown.label ?? "a frame of the camera";
  show("picture");
  last = shown.number;
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
      info = await call("api/now");
      drawAround();
      if (info.shown && info.shown.number !== last && !held && !busy) await drawFrame(info.shown);
    } catch (e) {
      state("offline", "bad");
      if (!last) $("empty").textContent = e.message;
      pause = RETRY_MS;
    }
  }
  setTimeout(turn, pause);
}

// -- the owner's own pictures ----------------------------------------------------------------------------

function say(text, bad = false) {
  $("said").textContent = text;
  $("said").classList.toggle("bad", bad);
}

async function tryPicture(file) {
  busy = true;
  say("The node looks at it …");
  try {
    const found = await post("api/image", file, file.type || "application/octet-stream");
    const bars = Object.entries(found.result.classification).sort((a, b) => b[1] - a[1]).slice(0, 10);
    await drawFile(file);
    drawAnswer(found.label, bars, found.timing, Object.keys(found.result.classification).length);
    drawModel(found.model);
    state("your picture");
    hold(true);
    say(`${file.name} stays on this node; it is not kept.`);
  } catch (e) {
    say(e.message, true);
  } finally {
    busy = false;
  }
}

async function drawFile(file) {
  // On a canvas: the page may show pictures of the node's own addresses only.
  const bitmap = await createImageBitmap(file);
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

function hold(on) {
  held = on;
  $("hold").setAttribute("aria-pressed", String(on));
  $("hold").textContent = on ? "Go on" : "Hold";
  if (!on) {
    last = 0;
    say("");
    if (!info?.shown) { // no camera: there is nothing to go on with
      show("empty");
      $("label").textContent = "–";
      $("bars").replaceChildren();
    }
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
