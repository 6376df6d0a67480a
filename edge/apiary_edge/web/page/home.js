"use strict";
// The overview of a node's pages, and where a phone signs in: by the code of a QR code, or by the token.

const $ = (id) => document.getElementById(id);
const AGAIN_MS = 5000, RETRY_MS = 2000;

async function call(path, body) {
  const post = { method: "POST", headers: { "Content-Type": "application/json", "X-Apiary": "1" }, body: JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(path, body === undefined ? {} : post);
  } catch {
    throw Object.assign(new Error("The node does not answer."), { status: 0 });
  }
  const value = await answer.json().catch(() => ({ error: "The node's answer cannot be read." }));
  if (!answer.ok) throw Object.assign(new Error(value.error), { status: answer.status });
  return value;
}

function say(text, bad = false) {
  $("said").textContent = text;
  $("said").classList.toggle("bad", bad);
}

function ask(on) {
  if (on && $("asking").hidden) $("pages").hidden = $("off").hidden = true;
  $("asking").hidden = !on;
}

const pictures = (n) => (n === 1 ? "1 picture" : `${n} pictures`);

function draw(info) {
  if (!info.pages.length) { // a page in the foreground: there is nothing to choose from
    location.replace("../");
    return;
  }
  say("");
  ask(false);
  $("node").textContent = info.node;
  $("federation").textContent = info.federation;
  $("pages").hidden = false;
  const predicts = info.pages.includes("predictions");
  $("to-predictions").hidden = !predicts;
  $("off").hidden = predicts;
  $("predicting").classList.toggle("bad", Boolean(info.trouble));
  $("predicting").textContent = info.trouble ? info.trouble : info.model ? `with ${info.model}` : "No model yet: it comes with the first round";
  $("to-label").hidden = !info.pages.includes("label");
  $("waiting").textContent = info.waiting
    ? `${pictures(info.waiting)} without a label, ${info.labelled} with one`
    : info.labelled ? `${pictures(info.labelled)}, all with a label` : "No picture yet";
}

async function turn() {
  let pause = AGAIN_MS;
  if (!document.hidden && $("asking").hidden) {
    try {
      draw(await call("api/overview"));
    } catch (e) {
      pause = RETRY_MS;
      if (e.status === 401) {
        if ($("said").textContent.startsWith("Connecting")) say("");
        ask(true);
      } else say(e.message, true);
    }
  }
  setTimeout(turn, pause);
}

$("asking").addEventListener("submit", async (event) => {
  event.preventDefault();
  const token = $("ask-input").value.replace(/^.*token=/, "").trim();
  try {
    await call("api/login", { token });
    $("ask-input").value = "";
    draw(await call("api/overview"));
  } catch (e) {
    say(e.message, true);
  }
});

$("node").textContent = document.title.split(" · ")[1] ?? "Apiary";

// What stands behind the # was never sent to the node, and is taken out of the address before anything else.
const code = new URLSearchParams(location.hash.slice(1)).get("code");
if (location.search || location.hash) history.replaceState(null, "", location.pathname);

(async () => {
  if (code) {
    try {
      await call("api/login", { code });
    } catch (e) {
      say(e.message, true);
    }
  }
  turn();
})();
