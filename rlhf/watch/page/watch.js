// The page of `rlhf watch` and of `rlhf report A B`. Everything from a run becomes a text node: nothing of it is ever read
// as markup. In a report the data lie in the page; else they come from the server that printed the address.
"use strict";

const element = (id) => document.getElementById(id);
const embedded = element("data") ? JSON.parse(element("data").textContent) : null;
const address = new URLSearchParams(location.search);
const POLL = 3000; // milliseconds between two looks at running runs
const COLOURS = 8;
const AT_FIRST = 4; // newest runs that are chosen where the address names none
const LISTED = 300; // runs in the list
const PAGE = 10; // prompts shown at once
const LONG = 4000; // tokens above which a response is not coloured
const KEY_CHARTS = [
  { title: "Score", curve: "objective/score", held: "score" },
  { title: "KL to the reference, nats", curve: "objective/kl", held: "kl" },
  { title: "Score against KL", against: true },
  { title: "Judge, held out", held: "judge" },
  { title: "Win rate against the start", held: "win_rate" },
  { title: "Loss", curve: "loss", held: "loss" },
  { title: "Pairwise accuracy", curve: "accuracy", held: "accuracy" },
  { title: "Response length, tokens", curve: "response/length", held: "length" },
  { title: "Entropy, nats", curve: "policy/entropy" },
  { title: "Explained variance", curve: "value/explained_variance" },
  { title: "Clip fraction", curve: "policy/clip_fraction" },
  { title: "KL of old to new policy", curve: "policy/approx_kl" },
  { title: "KL coefficient", curve: "objective/kl_coef" },
  { title: "Seconds a step", curve: "time/step" },
];

let runs = []; // the list, as the server sent it
let chosen = []; // names, in the order of their colours
const details = new Map(); // name -> curves, evals, warnings, settings
const samples = new Map(); // name -> {steps, step, rows}
let bin = null; // the chosen bar of the histogram
let limit = PAGE;
let history = null; // {run, index} of the prompt that is shown over time

// -------------------------------------------------------------------------------------------------------- elements

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function shape(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function number(value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size && (size < 0.001 || size >= 1e7)) return value.toExponential(1).replace("-", "−");
  const decimals = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : size >= 0.01 || !size ? 3 : 4;
  return (size ? value.toFixed(decimals) : "0").replace("-", "−");
}

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${(seconds / 86400).toFixed(1)} days`;
}

const colour = (name) => `c${chosen.indexOf(name) % COLOURS}`;
const swatch = (name) => make("i", { class: `swatch ${chosen.includes(name) ? colour(name) : ""}`, "aria-hidden": "true" });

// ---------------------------------------------------------------------------------------------------------- server

async function get(path, query = {}) {
  const response = await fetch(`${path}?${new URLSearchParams(query)}`, {
    headers: { Authorization: `Bearer ${address.get("token") ?? ""}` },
    cache: "no-store",
  });
  if (response.status === 404) return null;
  if (!response.ok) throw new Error((await response.json()).error);
  return response.json();
}

async function list() {
  return embedded ? { folder: null, runs: embedded.runs } : get("/api/runs");
}

async function detailOf(name) {
  return embedded ? embedded.details[name] : get("/api/run", { name });
}

async function samplesOf(name, step) {
  if (!embedded) return get("/api/samples", step === "" ? { name } : { name, step });
  const { steps, by_step } = embedded.samples[name];
  const wanted = step === "" ? steps.at(-1) : Number(step);
  return { steps, step: wanted, rows: by_step[wanted] ?? [] };
}

async function refresh() {
  try {
    const before = new Map(runs.map((run) => [run.name, run.changed]));
    const answer = await list();
    runs = answer.runs;
    document.title = element("title").textContent = answer.folder ? `Runs in ${answer.folder}` : runs.map((r) => r.name).join(", ");
    const names = new Set(runs.map((run) => run.name));
    chosen = chosen.filter((name) => names.has(name) || !before.size);
    const stale = runs.filter((run) => chosen.includes(run.name) && (!details.has(run.name) || before.get(run.name) !== run.changed));
    showRuns();
    for (const run of stale) {
      const detail = await detailOf(run.name);
      if (detail) details.set(run.name, detail);
      showDetails(); // the first run is drawn while the others are read
    }
    if (stale.length || !before.size) {
      showDetails();
      await loadSamples();
    }
    if (!embedded) element("status").textContent = `${runs.length} runs, ${new Date().toLocaleTimeString()}`;
  } catch (error) {
    element("status").textContent = `The server does not answer (${error.message}); this page tries again.`;
  }
  if (!embedded) setTimeout(refresh, POLL);
}

// ------------------------------------------------------------------------------------------- the address keeps the view

const CONTROLS = ["smooth", "order", "colour", "search", "step"];

function remember() {
  const view = new URLSearchParams();
  for (const name of chosen) view.append("run", name);
  for (const id of CONTROLS) if (element(id).value && element(id).value !== element(id).dataset.default) view.set(id, element(id).value);
  if (element("zero").checked) view.set("zero", "1");
  if (bin !== null) view.set("bin", bin);
  if (history !== null) {
    view.set("prompt", history.index);
    view.set("prompt-of", history.run);
  }
  window.history.replaceState(null, "", `#?${view}`);
}

function recall() {
  const view = new URLSearchParams(location.hash.startsWith("#?") ? location.hash.slice(2) : "");
  chosen = view.getAll("run");
  for (const id of CONTROLS) {
    element(id).dataset.default = element(id).value;
    if (id !== "step" && view.has(id)) element(id).value = view.get(id);
  }
  element("step").dataset.wanted = view.get("step") ?? "";
  element("zero").checked = view.has("zero");
  bin = view.has("bin") ? Number(view.get("bin")) : null;
  history = view.has("prompt") ? { run: view.get("prompt-of"), index: Number(view.get("prompt")) } : null;
  return view.has("run");
}

// ------------------------------------------------------------------------------------------------------ the list

function showRuns() {
  const filter = element("run-filter").value.toLowerCase();
  const matching = runs.filter((run) => run.name.toLowerCase().includes(filter));
  const focused = document.activeElement?.dataset?.run;
  element("runs").replaceChildren(
    ...matching.slice(0, LISTED).map((run) => {
      const box = make("input", { type: "checkbox", "data-run": run.name, onchange: () => choose(run.name, box.checked) });
      box.checked = chosen.includes(run.name);
      const facts = [
        run.total ? `step ${run.step}/${run.total}` : `step ${run.step}`,
        run.score !== null ? `score ${number(run.score)}` : run.loss !== null ? `loss ${number(run.loss)}` : null,
        run.kl !== null ? `KL ${number(run.kl)}` : null,
        run.seconds_left !== null ? `${duration(run.seconds_left)} left` : null,
      ].filter((fact) => fact);
      const detail = chosen.includes(run.name) ? details.get(run.name) : null;
      const count = detail?.warnings.length ?? run.warnings; // rows of older runs do not name theirs
      const warned = count ? make("span", { class: "warned" }, `, ${count} warning${count > 1 ? "s" : ""}`) : null;
      return make("li", {}, make("label", {},
        box,
        make("span", { class: "name" }, swatch(run.name), ` ${run.name}`),
        make("span", { class: `state ${run.state}` }, `${run.stage}, ${run.state}`),
        make("span", { class: "facts" }, facts.join(", "), warned),
      ));
    }),
  );
  if (focused !== undefined) document.querySelector(`[data-run="${CSS.escape(focused)}"]`)?.focus();
  element("more-runs").hidden = matching.length <= LISTED;
  element("more-runs").textContent = `and ${matching.length - LISTED} more; filter by name to see them`;
}

async function choose(name, isChosen) {
  chosen = isChosen ? [...chosen, name] : chosen.filter((other) => other !== name);
  await rechoose();
}

async function rechoose() {
  showRuns();
  for (const name of chosen) {
    if (!details.has(name)) {
      const detail = await detailOf(name);
      if (detail) details.set(name, detail);
    }
  }
  showDetails();
  await loadSamples();
}

// ----------------------------------------------------------------------------------------------------------- charts

const W = 360, H = 190, LEFT = 46, RIGHT = 8, TOP = 8, BOTTOM = 22;

function ticks(low, high, whole) {
  const rough = (high - low) / 4 || 1;
  const base = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 2.5, 5, 10].map((m) => m * base).find((s) => s >= 0.999 * rough);
  if (whole) step = Math.max(1, Math.round(step));
  const values = [];
  for (let v = Math.ceil(low / step - 1e-6) * step; v <= high + 1e-6 * step; v += step) values.push(Math.abs(v) < step / 2 ? 0 : v);
  const decimals = [0, 1, 2, 3, 4, 5].find((d) => Math.abs(step * 10 ** d - Math.round(step * 10 ** d)) < 1e-6) ?? 6;
  const label = (v) => (Math.abs(v) >= 1e5 || (v && step < 1e-4) ? v.toExponential(1) : v.toFixed(decimals)).replace("-", "−");
  return values.map((v) => [v, label(v)]);
}

function smoothed(values) {
  const half = Number(element("smooth").value);
  if (!half || values.length < 3) return values;
  return values.map((_, i) => {
    const reach = Math.min(half, i, values.length - 1 - i);
    let sum = 0;
    for (let j = i - reach; j <= i + reach; j++) sum += values[j];
    return sum / (2 * reach + 1);
  });
}

// A line: {name, x, y, low, high}; points: {name, x, y, low, high} of held-out evaluations.
function chart(title, lines, points, xName = "step") {
  const all = [...lines, ...points].filter((s) => s.x.length);
  if (!all.length) return null;
  const drawn = lines.map((s) => ({ ...s, y: smoothed(s.y) }));
  const xs = all.flatMap((s) => s.x);
  const ys = [...drawn, ...points].flatMap((s) => [...s.y, ...(s.low ?? []), ...(s.high ?? [])]).filter((v) => Number.isFinite(v));
  const zero = element("zero").checked;
  let [low, high] = [Math.min(...ys), Math.max(...ys)];
  if (zero) [low, high] = [Math.min(0, low), Math.max(0, high)];
  const margin = 0.06 * (high - low || Math.abs(high) || 1);
  if (!(zero && low === 0)) low -= margin;
  high += margin;
  const [first, last] = [Math.min(0, ...xs), Math.max(...xs, Math.min(0, ...xs) + (xName === "step" ? 1 : 1e-9))];
  const px = (x) => LEFT + ((x - first) / (last - first)) * (W - LEFT - RIGHT);
  const py = (y) => H - BOTTOM - ((y - low) / (high - low)) * (H - TOP - BOTTOM);
  const path = (x, y) => x.map((v, i) => `${i ? "L" : "M"}${px(v).toFixed(1)},${py(y[i]).toFixed(1)}`).join("") + (x.length === 1 ? "h.1" : "");
  const summary = all.map((s) => `${s.name}: ${number(s.y.at(-1))}`).join(", ");
  const svg = shape("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${title}. Last values: ${summary}` });
  for (const [v, text] of ticks(low, high)) {
    svg.append(shape("path", { class: "grid", d: `M${LEFT},${py(v)}H${W - RIGHT}` }));
    const label = shape("text", { class: "tick", x: LEFT - 6, y: py(v) + 3.5, "text-anchor": "end" });
    label.textContent = text;
    svg.append(label);
  }
  for (const [v, text] of ticks(first, last, xName === "step")) {
    const label = shape("text", { class: "tick", x: px(v), y: H - 6, "text-anchor": px(v) > W - 24 ? "end" : "middle" });
    label.textContent = text;
    svg.append(label);
  }
  for (const s of drawn) {
    if (s.low && xName === "step") {
      const back = [...s.x].reverse(), floor = [...s.low].reverse();
      svg.append(shape("path", { class: `band ${colour(s.name)}`, d: `${path(s.x, s.high)}${path(back, floor).replace("M", "L")}Z` }));
    }
    svg.append(shape("path", { class: `line ${colour(s.name)}`, d: path(s.x, s.y) }));
  }
  for (const s of points) {
    if (lines.length === 0 || xName !== "step") svg.append(shape("path", { class: `line ${colour(s.name)}`, d: path(s.x, s.y), "stroke-dasharray": lines.length ? "3 3" : "0" }));
    s.x.forEach((x, i) => {
      if (s.low?.[i] !== undefined && Number.isFinite(s.low[i])) svg.append(shape("path", { class: `whisker ${colour(s.name)}`, d: `M${px(x)},${py(s.low[i])}V${py(s.high[i])}` }));
      svg.append(shape("circle", { class: `dot ${colour(s.name)}`, cx: px(x), cy: py(s.y[i]), r: 3 }));
    });
  }
  const readout = make("div", { class: "readout" });
  const cursor = shape("path", { class: "cursor", d: "" });
  svg.append(cursor);
  const tell = (x) => {
    const values = (lines.length ? drawn : points).map((s) => {
      let at = s.x.length - 1;
      if (x !== null) s.x.forEach((v, i) => { if (Math.abs(v - x) < Math.abs(s.x[at] - x)) at = i; });
      return make("span", {}, swatch(s.name), `${number(s.y[at])}${x === null ? "" : ` at ${xName} ${xName === "step" ? s.x[at] : number(s.x[at])}`}`);
    });
    readout.replaceChildren(...values);
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = first + (((event.clientX - box.left) / box.width) * W - LEFT) / (W - LEFT - RIGHT) * (last - first);
    cursor.setAttribute("d", `M${px(x)},${TOP}V${H - BOTTOM}`);
    tell(x);
  });
  svg.addEventListener("pointerleave", () => { cursor.setAttribute("d", ""); tell(null); });
  tell(null);
  return make("figure", { "data-chart": title }, make("h3", {}, title), svg, readout);
}

const present = () => chosen.filter((name) => details.has(name));

function curves(metric) {
  return present().map((name) => ({ name, ...details.get(name).curves[metric] })).filter((s) => s.x);
}

function evaluations(measure) {
  return present().map((name) => {
    const rows = details.get(name).evals.filter((row) => Number.isFinite(row[measure]));
    const column = (key) => rows.map((row) => row[key] ?? undefined);
    return { name, x: column("step"), y: column(measure), low: column(`${measure}_low`), high: column(`${measure}_high`) };
  }).filter((s) => s.x.length);
}

function scoreAgainstKL() {
  const lines = present().map((name) => {
    const { "objective/kl": kl, "objective/score": score } = details.get(name).curves;
    if (!kl || !score) return null;
    const at = new Map(score.x.map((x, i) => [x, score.y[i]]));
    const both = kl.x.map((x, i) => [kl.y[i], at.get(x)]).filter(([, y]) => y !== undefined);
    return { name, x: smoothed(both.map(([x]) => x)), y: both.map(([, y]) => y) };
  }).filter((s) => s?.x.length);
  const points = present().map((name) => {
    const rows = details.get(name).evals.filter((row) => Number.isFinite(row.kl) && Number.isFinite(row.score));
    return { name, x: rows.map((row) => row.kl), y: rows.map((row) => row.score), low: rows.map((row) => row.score_low), high: rows.map((row) => row.score_high) };
  }).filter((s) => s.x.length);
  return chart("Score against KL", lines, points, "KL");
}

function showCharts() {
  element("key-charts").replaceChildren(
    ...KEY_CHARTS.map(({ title, curve, held, against }) =>
      against ? scoreAgainstKL() : chart(title, curve ? curves(curve) : [], held ? evaluations(held) : [])).filter((figure) => figure),
  );
  showOtherCharts();
}

function showOtherCharts() {
  if (!element("other").open) return;
  const filter = element("metric-filter").value.toLowerCase();
  const names = new Set(present().flatMap((name) => Object.keys(details.get(name).curves)));
  element("other-charts").replaceChildren(
    ...[...names].sort().filter((name) => name.toLowerCase().includes(filter)).map((name) => chart(name, curves(name), [])).filter((figure) => figure),
  );
}

// --------------------------------------------------------------------------------- health, evaluations and settings

function showWarnings() {
  const blocks = present().flatMap((name) => details.get(name).warnings.map((warning) =>
    make("div", { class: "warning" }, make("b", {}, swatch(name), ` ${name}`),
      make("dl", {}, make("dt", {}, "Symptom"), make("dd", {}, warning.symptom),
        make("dt", {}, "Cause"), make("dd", {}, `${warning.cause}.`),
        make("dt", {}, "To change"), make("dd", {}, `${warning.setting[0].toUpperCase()}${warning.setting.slice(1)}.`)))));
  element("warnings").replaceChildren(...(blocks.length ? blocks : [make("p", { class: "soft" }, present().length ? "No health rule is broken." : "")]));
}

// A column for each run: its evaluation with the best score, or else its last one, with intervals and the start's value.
function showEvaluations() {
  const columns = present().map((name) => {
    const rows = details.get(name).evals;
    return { name, start: rows[0], row: rows.findLast((row) => row.best === 1) ?? rows.at(-1) };
  }).filter(({ row }) => row);
  const isMeasure = (key) => key !== "step" && key !== "best" && !/_(low|high)$/.test(key);
  const keys = [...new Set(columns.flatMap(({ row }) => Object.keys(row).filter(isMeasure)))];
  element("evaluations").hidden = !keys.length;
  const cell = ({ start, row }, key) => {
    const [low, high] = [row[`${key}_low`], row[`${key}_high`]];
    const bounds = Number.isFinite(low) && Number.isFinite(high) ? make("small", {}, `${number(low)} to ${number(high)}`) : null;
    const before = start !== row && Number.isFinite(start[key]) && key !== "prompts" ? make("small", {}, `start ${number(start[key])}`) : null;
    return make("td", {}, number(row[key]), bounds, before);
  };
  const heading = ({ name, row }) => make("th", { scope: "col" }, swatch(name), ` ${name}, step ${row.step}`);
  element("measures").replaceChildren(make("table", {},
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Measure, 95% interval"), ...columns.map(heading))),
    make("tbody", {}, ...keys.map((key) => make("tr", {}, make("th", { scope: "row" }, key), ...columns.map((column) => cell(column, key)))))));
}

function showDifferences() {
  const names = present();
  const keys = [...new Set(names.flatMap((name) => Object.keys(details.get(name).settings)))].sort();
  const value = (name, key) => details.get(name).settings[key];
  const different = keys.filter((key) => names.some((name) => value(name, key) !== value(names[0], key)));
  if (names.length < 2 || !different.length) {
    const text = names.length < 2 ? "Choose two runs to see how their settings differ." : "All settings are equal.";
    element("differences").replaceChildren(make("p", { class: "soft" }, text));
    return;
  }
  element("differences").replaceChildren(make("table", {},
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Setting"), ...names.map((name) => make("th", { scope: "col" }, swatch(name), ` ${name}`)))),
    make("tbody", {}, ...different.map((key) => make("tr", {}, make("th", { scope: "row" }, key), ...names.map((name) => make("td", {}, value(name, key) ?? "–")))))));
}

function showDetails() {
  showRuns();
  element("nothing").hidden = chosen.length > 0;
  showWarnings();
  showCharts();
  showEvaluations();
  showDifferences();
  remember();
}

// ---------------------------------------------------------------------------------------------------------- samples

async function loadSamples() {
  const wanted = element("step").dataset.wanted || element("step").value;
  const followsLast = element("step").selectedIndex <= 0 && !element("step").dataset.wanted;
  for (const name of chosen) {
    const answer = await samplesOf(name, followsLast ? "" : wanted);
    if (answer) samples.set(name, answer);
  }
  const steps = [...new Set(chosen.flatMap((name) => samples.get(name)?.steps ?? []))].sort((a, b) => b - a);
  element("step").replaceChildren(make("option", { value: "" }, "last"), ...steps.map((step) => make("option", { value: step }, step)));
  element("step").value = followsLast || !steps.includes(Number(wanted)) ? "" : wanted;
  element("step").dataset.wanted = "";
  element("samples").hidden = !steps.length && history === null;
  await showSamples();
}

const rowsOf = (name) => (chosen.includes(name) ? (samples.get(name)?.rows ?? []) : []);
const scoreOf = (row) => row.scores?.score;

function bins() {
  const scores = chosen.flatMap((name) => rowsOf(name).map(scoreOf)).filter((s) => Number.isFinite(s));
  if (!scores.length) return null;
  const [low, high] = [Math.min(...scores), Math.max(...scores)];
  const count = Math.min(16, Math.max(4, Math.ceil(Math.sqrt(scores.length)) + 3));
  const width = (high - low) / count || 1;
  return { low, high, count, of: (score) => (Number.isFinite(score) ? Math.min(count - 1, Math.floor((score - low) / width)) : -1), edge: (i) => low + i * width };
}

function showHistogram() {
  const split = history === null ? bins() : null;
  if (!split) {
    element("histogram").replaceChildren();
    return;
  }
  const counts = chosen.map((name) => {
    const of = new Array(split.count).fill(0);
    for (const row of rowsOf(name)) if (split.of(scoreOf(row)) >= 0) of[split.of(scoreOf(row))]++;
    return of;
  });
  const most = Math.max(1, ...counts.flat());
  const bars = Array.from({ length: split.count }, (_, i) => {
    const total = counts.reduce((sum, of) => sum + of[i], 0);
    const label = `${total} samples with scores from ${number(split.edge(i))} to ${number(split.edge(i + 1))}`;
    const parts = chosen.map((name, k) => {
      const bar = make("i", { class: colour(name) });
      bar.style.height = `${(100 * counts[k][i]) / most}%`;
      return bar;
    });
    return make("button", { type: "button", "aria-label": label, title: label, "aria-pressed": String(bin === i), disabled: !total,
      onclick: () => { bin = bin === i ? null : i; limit = PAGE; showSamples(); } }, ...parts);
  });
  element("histogram").replaceChildren(
    make("div", { class: "bars", role: "group", "aria-label": "Histogram of scores" }, ...bars),
    make("div", { class: "scale" }, make("span", {}, number(split.low)), make("span", {}, "score"), make("span", {}, number(split.high))),
  );
}

function tokens(row) {
  const values = row[element("colour").value];
  const list = row.tokens ?? [];
  if (!list.length || list.length > LONG || !element("colour").value && !row.from_environment) return null;
  const known = (values ?? []).filter((v) => Number.isFinite(v)).map(Math.abs);
  const largest = known.length ? Math.max(...known) : 0;
  const edges = element("colour").value === "token_kl" ? [0.1, 0.5, 1, 2] : [0.15, 0.35, 0.6, 0.85].map((share) => share * largest);
  return list.map((token, i) => {
    if (row.from_environment?.[i]) return make("span", { class: "environment", title: "written by the environment" }, token);
    const value = values?.[i];
    if (!Number.isFinite(value)) return token;
    const level = edges.filter((edge) => edge > 0 && Math.abs(value) >= edge).length;
    return make("span", { class: level ? `${value > 0 ? "more" : "less"}-${level}` : null, title: `${value > 0 ? "+" : ""}${number(value)}` }, token);
  });
}

function response(name, row, title) {
  const facts = [`score ${number(scoreOf(row))}`];
  for (const [key, value] of Object.entries(row.scores ?? {})) if (key !== "score" && Number.isFinite(value)) facts.push(`${key} ${number(value)}`);
  if (row.truncated) facts.push("cut at the limit");
  const text = make("div", { class: "text", dir: "auto" });
  const pieces = tokens(row);
  if (!row.response && !row.from_environment) text.append(make("span", { class: "empty" }, "(no text)"));
  else text.append(...(pieces ?? [row.response]));
  return make("div", { class: "side" }, make("div", { class: "head" }, swatch(name), make("b", {}, title), ...facts.map((fact) => make("span", {}, fact))), text);
}

function promptBlock(prompt, sides, identity) {
  const over = history === null
    ? make("button", { type: "button", onclick: () => { history = identity; showSamples(); element("samples").scrollIntoView(); } }, "Over time")
    : make("button", { type: "button", onclick: () => { history = null; showSamples(); } }, "All prompts");
  return make("article", { class: "sample" }, make("div", { class: "text", dir: "auto" }, prompt || "(no prompt)"), make("div", { class: "sides" }, ...sides), make("p", { class: "tools" }, over));
}

async function showHistory() {
  const sides = [];
  let prompt = null;
  const wanted = history;
  // Runs on other data have other prompts under the same index: the run of the prompt comes first.
  const names = [...chosen].sort((a, b) => (b === wanted.run) - (a === wanted.run));
  for (const name of names) {
    for (const step of samples.get(name)?.steps ?? []) {
      const row = (await samplesOf(name, String(step)))?.rows.find((candidate) => candidate.index === wanted.index);
      if (!row || (prompt !== null && row.prompt !== prompt)) continue;
      prompt = row.prompt;
      sides.push(response(name, row, `${chosen.length > 1 ? `${name}, ` : ""}step ${step}`));
    }
  }
  if (history !== wanted) return; // another view was chosen meanwhile
  element("shown").textContent = `One prompt at ${sides.length} evaluations`;
  element("responses").replaceChildren(promptBlock(prompt, sides, wanted));
  element("more").hidden = true;
}

async function showSamples() {
  remember();
  showHistogram();
  if (history !== null) {
    await showHistory();
    return;
  }
  const split = bins(), search = element("search").value.toLowerCase(), prompts = new Map();
  for (const name of chosen) {
    for (const row of rowsOf(name)) {
      if (bin !== null && split?.of(scoreOf(row)) !== bin) continue;
      if (search && !`${row.prompt}\n${row.response}`.toLowerCase().includes(search)) continue;
      const key = `${row.index} ${row.prompt}`; // runs on other data have other prompts under the same index
      if (!prompts.has(key)) prompts.set(key, []);
      prompts.get(key).push([name, row]);
    }
  }
  const order = element("order").value, sign = order === "best" ? -1 : 1;
  const best = (entries) => Math[order === "best" ? "max" : "min"](...entries.map(([, row]) => scoreOf(row) ?? NaN));
  const index = (entries) => entries[0][1].index;
  const sorted = [...prompts.values()].sort((a, b) => (order === "prompt" ? 0 : sign * (best(a) - best(b))) || index(a) - index(b));
  element("shown").textContent = `${Math.min(limit, sorted.length)} of ${sorted.length} prompts`;
  element("responses").replaceChildren(...sorted.slice(0, limit).map((entries) =>
    promptBlock(entries[0][1].prompt, entries.map(([name, row]) => response(name, row, `${name}, step ${row.step}`)), { run: entries[0][0], index: index(entries) })));
  element("more").hidden = sorted.length <= limit;
}

// ------------------------------------------------------------------------------------------------------------ start

for (const id of ["smooth", "zero"]) element(id).addEventListener("input", () => { showCharts(); remember(); });
for (const id of ["order", "colour", "search"]) element(id).addEventListener("input", () => { limit = PAGE; showSamples(); });
element("step").addEventListener("change", () => { bin = null; element("step").dataset.wanted = element("step").value; loadSamples(); });
element("more").addEventListener("click", () => { limit += PAGE; showSamples(); });
element("other").addEventListener("toggle", showOtherCharts);
element("metric-filter").addEventListener("input", showOtherCharts);
element("run-filter").addEventListener("input", showRuns);
element("pick-newest").addEventListener("click", () => { chosen = runs.slice(0, AT_FIRST).map((run) => run.name); rechoose(); });
element("pick-running").addEventListener("click", () => { chosen = runs.filter((run) => run.state === "running").slice(0, COLOURS).map((run) => run.name); rechoose(); });
element("pick-none").addEventListener("click", () => { chosen = []; rechoose(); });

const named = recall();
(async () => {
  if (!named) chosen = embedded ? embedded.runs.map((run) => run.name) : ((await list().catch(() => null))?.runs ?? []).slice(0, AT_FIRST).map((run) => run.name);
  await refresh();
})();
