// The page: a picture that moves by itself, and events that the rest is drawn from.

import { Chart, short } from "./charts.js";

const find = (id) => document.getElementById(id);
const charts = find("charts");
const residual = new Chart(charts, { title: "Residual", log: true });
const iterations = new Chart(charts, { title: "Iterations", steps: true, floor: 0 });
const stages = new Chart(charts, { title: "Time by stage", unit: " ms", stack: true, floor: 0 });
const rate = new Chart(charts, { title: "Frames per second", floor: 0 });
const memory = new Chart(charts, { title: "Memory", unit: " MB" });
const heat = new Chart(charts, { title: "Temperature", unit: " °C", optional: true });
const all = [residual, iterations, stages, rate, memory, heat];

let now = 0;
let source = null; // of events; none while nobody looks
let frames = { count: 0, at: 0 }; // when they last went on
let editing = false; // somebody has touched the controls

function watch() {
  showPicture();
  let lost = false;
  source = new EventSource("/events");
  source.onopen = () => {
    all.forEach((chart) => chart.clear()); // the history comes again
    if (lost) showPicture(); // a stream that ended is no error to a picture
    lost = false;
  };
  source.onmessage = (message) => take(JSON.parse(message.data));
  source.onerror = () => {
    lost = true;
    if (source?.readyState === EventSource.CLOSED) {
      show("bad", "refused", "reload this page; it may ask for its token");
      leave();
      setTimeout(() => document.hidden || source || watch(), 5000);
    } else show("bad", "connection lost", "trying again");
  };
}

function showPicture() {
  const picture = find("picture");
  picture.src = `/stream.mjpg?${Date.now()}`;
  picture.onerror = () => setTimeout(() => source && showPicture(), 2000);
}

// A page that nobody looks at costs the device nothing; browsers allow few connections, too.
function leave() {
  source?.close();
  source = null;
  find("picture").onerror = null;
  find("picture").removeAttribute("src");
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) leave();
  else if (!source) watch();
});

function take(said) {
  now = said.time;
  for (const [time, size, count] of said.points) {
    residual.add("residual", time, size);
    iterations.add("iterations", time, count);
  }
  // another policy has other stages
  for (const stage of new Set([...stages.series.keys(), ...Object.keys(said.stages)]))
    stages.add(stage, now, said.stages[stage] ?? 0);
  rate.add("frames per second", now, said.fps);
  if (said.rss) memory.add("process", now, said.rss / 1e6);
  if (said.device) memory.add("device", now, said.device / 1e6);
  for (const [zone, celsius] of Object.entries(said.celsius)) heat.add(zone, now, celsius);
  latest = said;
  if (!queued) queued = requestAnimationFrame(draw);
}

let latest = null;
let queued = 0;

function draw() {
  queued = 0;
  const said = latest;
  for (const chart of all) chart.draw(now);
  const last = said.points.at(-1);
  const percent = (share) => (share === null ? "–" : `${Math.round(100 * share)} %`);
  if (said.name) find("name").textContent = document.title = said.name;
  find("fps").textContent = said.fps.toFixed(1);
  find("residual").textContent = last && last[1] !== null ? short(last[1]) : "–";
  find("iterations").textContent = last ? last[2] : "–";
  find("warm").textContent = percent(said.warm);
  find("age").textContent = said.age_ms === null ? "–" : `${Math.round(said.age_ms)} ms`;
  find("dropped").textContent = said.dropped;
  find("viewers").textContent = said.viewers;
  residual.mark = said.policy?.tolerance ?? null;
  drawClasses(said);
  drawState(said);
  if (!editing && said.policy) fill(said.policy);
}

function drawClasses(said) {
  find("classes-title").textContent = said.kind === "scores" ? "Best classes" : "Classes by area";
  find("classes").replaceChildren(
    ...said.classes.map(([label, colour, share]) => {
      const row = document.createElement("li");
      const swatch = row.appendChild(document.createElement("span"));
      swatch.className = "swatch";
      swatch.style.background = colour;
      const name = row.appendChild(document.createElement("span"));
      name.className = "label";
      name.textContent = name.title = label;
      const bar = row.appendChild(document.createElement("progress"));
      bar.value = share;
      bar.setAttribute("aria-label", label);
      const text = row.appendChild(document.createElement("span"));
      text.className = "share";
      text.textContent = `${(100 * share).toFixed(1)} %`;
      return row;
    }),
  );
}

function drawState(said) {
  if (said.frames !== frames.count) frames = { count: said.frames, at: said.time };
  const quiet = said.time - frames.at;
  const camera = said.source;
  if (camera && camera.state !== "ok") show("bad", camera.state, camera.detail);
  else if (camera && camera.picture !== "ok") show("", `picture is ${camera.picture}`, "");
  else if (!said.frames) show("", "waiting for frames", "");
  else if (quiet > 3) show("bad", `no frame for ${Math.round(quiet)} s`, "");
  else if (said.limit !== null) show("", `at most ${said.limit} evaluations`, "limited by --target-ms");
  else show("ok", "running", said.reason);
}

function show(kind, state, detail) {
  find("state").className = `badge ${kind}`;
  find("state").textContent = state;
  find("detail").textContent = detail;
}

// Controls

const policy = find("policy");
const fields = {
  iterations: find("set-iterations"),
  deadline_ms: find("set-deadline"),
  tolerance: find("set-tolerance"),
  max_iterations: find("set-most"),
};

function arrange() {
  for (const label of document.querySelectorAll("label[data-for]"))
    label.hidden = !label.dataset.for.split(" ").includes(policy.value);
}

function fill(known) {
  policy.value = known.policy;
  for (const [name, field] of Object.entries(fields))
    if (known[name] !== undefined) field.value = known[name] ?? "";
  arrange();
}

async function ask(path, body) {
  const answer = find("answer");
  answer.className = "";
  answer.textContent = "…";
  try {
    const reply = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    const said = await reply.json().catch(() => ({ error: reply.statusText }));
    answer.textContent = reply.ok ? "done" : said.error;
    answer.className = reply.ok ? "" : "bad";
    if (reply.ok) editing = false;
  } catch (error) {
    answer.textContent = `the device does not answer (${error.message})`;
    answer.className = "bad";
  }
}

find("controls").addEventListener("input", () => {
  editing = true;
  arrange();
});
find("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  const wish = { policy: policy.value };
  for (const [name, field] of Object.entries(fields))
    if (!field.closest("label").hidden && field.value !== "") wish[name] = Number(field.value);
  ask("/policy", wish);
});
find("reset").addEventListener("click", () => ask("/reset", {}));

arrange();
if (!document.hidden) watch();
