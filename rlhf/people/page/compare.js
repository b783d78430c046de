// The page of `rlhf compare`. Everything that a model wrote becomes a text node: nothing of it is ever read as markup.
"use strict";

const element = (id) => document.getElementById(id);
const token = new URLSearchParams(location.search).get("token") ?? "";

let state = null; // what the server sent last: question, progress, more_to_come, problem
let busy = false; // an answer is on its way
let marked = false; // differences are shown
let shownAt = 0; // when the question came on the screen, without the time in which the page was hidden
let hiddenAt = null;

// ------------------------------------------------------------------------------------------------------------ server

async function call(path, body) {
  const headers = { Authorization: `Bearer ${token}` };
  if (body) headers["Content-Type"] = "application/json";
  const request = { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), cache: "no-store" };
  for (let attempt = 0; ; attempt++) {
    let problem = "The server does not answer.";
    try {
      const response = await fetch(path, request);
      if (response.ok || response.status === 409) {
        if (attempt) notify("");
        return { conflict: response.status === 409, state: await response.json() };
      }
      const { error } = await response.json();
      if (response.status < 500) {
        notify(`${error[0].toUpperCase()}${error.slice(1)}.`);
        return null;
      }
      problem = `The server reports a problem (${error}).`;
    } catch {
      // no connection: the same answer is sent again, and is saved once, since it names its question
    }
    notify(`${problem} ${body ? "Your choice is not lost: it" : "The question"} is sent again until it does; keep this page open.`);
    await new Promise((resolve) => setTimeout(resolve, 1500));
  }
}

async function load() {
  const result = await call("/api/question");
  if (result) show(result.state);
}

async function choose(choice, clearly) {
  if (busy || !state?.question) return;
  setBusy(true);
  const seconds = Math.round((performance.now() - shownAt) / 10) / 100;
  flash(choice, clearly);
  const result = await call("/api/answer", { question: state.question.id, choice, clearly, seconds });
  await leave();
  if (!result) return setBusy(false);
  const words = { left: "Left", right: "Right", tie: "Tie", skip: "Skipped" }[choice] + (clearly ? ", clearly" : "");
  if (result.conflict) notify("That pair was answered in another window. This is your current one.");
  show(result.state, `${words}.`);
  setBusy(false);
}

async function undo() {
  if (busy) return;
  setBusy(true);
  const result = await call("/api/undo", {});
  if (result?.conflict) announce("There is no answer to undo.");
  else if (result) show(result.state, "Undone.");
  setBusy(false);
}

// ------------------------------------------------------------------------------------------------------------ screen

function show(next, said = "") {
  const other = next.question?.id !== state?.question?.id;
  state = next;
  const { question, progress, more_to_come: more } = state;
  showProgress(progress, more);
  element("main").hidden = !question;
  element("main").classList.remove("leaving");
  element("dock").hidden = !question && !progress.answered;
  for (const button of document.querySelectorAll("[data-choice], #differences")) button.disabled = !question;
  element("undo").disabled = !progress.answered;
  element("pause").hidden = Boolean(question);
  if (state.problem) notify(`No more pairs are made: ${state.problem}`);
  if (!question) return pause(progress, more, said);
  if (other) {
    showPrompt(question.prompt);
    showAnswers();
    scrollTo(0, 0);
    shownAt = performance.now();
    hiddenAt = document.hidden ? shownAt : null;
    announce(`${said} Pair ${progress.answered + 1} of ${progress.answered + progress.open}. Prompt: ${plain(question.prompt).slice(0, 300)}`);
  }
}

function showProgress({ answered, open, pace, repeats, consistent }, more) {
  const total = answered + open;
  element("count").textContent = more ? `${answered} answered, more pairs to come` : `${answered} of ${total}`;
  element("pace").textContent = pace === null ? "" : `${pace < 10 ? pace.toFixed(1) : Math.round(pace)} s a pair`;
  element("consistency").textContent = repeats ? `${consistent} of ${repeats} repeats the same` : "";
  element("done-part").setAttribute("width", total ? (1000 * answered) / total : 0);
  element("track").setAttribute("aria-valuenow", answered);
  element("track").setAttribute("aria-valuemax", Math.max(1, total));
  document.title = total ? `${answered} of ${total} · compare` : "Compare";
}

function pause({ answered }, more, said) {
  element("pause-title").textContent = more ? "The next answers are being written" : "That was the last pair";
  const text = element("pause-text");
  text.textContent = more
    ? "They appear here by themselves."
    : answered
      ? `Thank you: your ${answered} answers are saved. Ctrl-C in the terminal ends; U takes back the last one. `
      : "There is nothing here for you to compare: others have answered every pair.";
  if (!more) text.append(Object.assign(document.createElement("a"), { href: summaryAddress(), textContent: "See the summary" }));
  announce(`${said} ${element("pause-title").textContent}.`);
  if (more) setTimeout(load, 1000);
}

function showPrompt(prompt) {
  const box = element("prompt");
  box.replaceChildren();
  for (const message of typeof prompt === "string" ? [{ content: prompt }] : prompt) {
    if (message.role) box.append(Object.assign(document.createElement("span"), { className: "role", textContent: message.role }));
    box.append(`${message.content ?? JSON.stringify(message)}${message.role ? "\n" : ""}`);
  }
  box.scrollTop = 0;
  box.toggleAttribute("tabindex", false);
  if (box.scrollHeight > box.clientHeight + 1) box.tabIndex = 0; // reachable by keys, so that it can be scrolled
}

const plain = (prompt) => (typeof prompt === "string" ? prompt : prompt.map((message) => message.content).join("\n"));

function showAnswers() {
  const { left, right } = state.question;
  const marks = marked ? differences(left, right) : [[], []];
  fill(element("left-text"), left, marks[0]);
  fill(element("right-text"), right, marks[1]);
}

function fill(box, text, marks) {
  box.replaceChildren();
  if (!text.trim()) {
    const what = text ? `${text.length} blank characters, no text` : "no text";
    box.append(Object.assign(document.createElement("span"), { className: "empty", textContent: `(${what})` }));
    return;
  }
  let end = 0;
  for (const [from, to] of marks) {
    box.append(text.slice(end, from), Object.assign(document.createElement("mark"), { textContent: text.slice(from, to) }));
    end = to;
  }
  box.append(text.slice(end));
}

function flash(choice, clearly) {
  const button = document.querySelector(`[data-choice="${choice}"]${clearly ? "[data-clearly]" : ":not([data-clearly])"}`);
  button.classList.add("pressed");
  element(choice)?.classList.add("chosen");
  setTimeout(() => button.classList.remove("pressed"), 200);
}

async function leave() {
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
    element("main").classList.add("leaving");
    await new Promise((resolve) => setTimeout(resolve, 130));
  }
  for (const side of ["left", "right"]) element(side).classList.remove("chosen");
  element("main").classList.remove("leaving");
}

function setBusy(value) {
  busy = value;
  document.body.setAttribute("aria-busy", value);
}

function announce(text) {
  element("status").textContent = text.trim();
}

function notify(text) {
  element("notice").textContent = text;
  element("notice").hidden = !text;
}

function toggleDifferences() {
  if (!state?.question) return;
  marked = !marked;
  element("differences").setAttribute("aria-pressed", marked);
  showAnswers();
  announce(marked ? "Differences are marked." : "Differences are not marked.");
}

const summaryAddress = () => `/summary?token=${encodeURIComponent(token)}`;

function toggleHelp() {
  const dialog = element("keys");
  dialog.open ? dialog.close() : dialog.showModal();
}

// ------------------------------------------------------------------------------------------------------- differences

const LARGEST_TABLE = 4_000_000; // words of one answer times words of the other that are aligned exactly

/** For each of two texts, the ranges [from, to] that the other does not have: by longest common subsequence of words. */
function differences(left, right) {
  const words = [left, right].map((text) => [
    ...text.matchAll(/\p{Script=Han}|\p{Script=Hiragana}|\p{Script=Katakana}|[\p{L}\p{M}\p{N}_]+|[^\s]/gu),
  ]);
  const [a, b] = words.map((list) => list.map((match) => match[0]));
  const common = a.length * b.length > LARGEST_TABLE ? commonWords(a, b) : commonSubsequence(a, b);
  return [left, right].map((text, i) => joined(text, words[i].filter((_, k) => !common[i].has(k))));
}

function commonSubsequence(a, b) {
  const width = b.length + 1;
  const table = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--) {
      const k = i * width + j;
      table[k] = a[i] === b[j] ? table[k + width + 1] + 1 : Math.max(table[k + width], table[k + 1]);
    }
  const common = [new Set(), new Set()];
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    if (a[i] === b[j]) {
      common[0].add(i++);
      common[1].add(j++);
    } else if (table[(i + 1) * width + j] >= table[i * width + j + 1]) i++;
    else j++;
  }
  return common;
}

/** For very long texts: the words that both have, wherever they stand. */
function commonWords(a, b) {
  const [inA, inB] = [new Set(a), new Set(b)];
  const indices = (list, others) => new Set(list.flatMap((word, k) => (others.has(word) ? [k] : [])));
  return [indices(a, inB), indices(b, inA)];
}

/** The ranges of words, those with only white space between them as one. */
function joined(text, words) {
  const ranges = [];
  for (const match of words) {
    const [from, to] = [match.index, match.index + match[0].length];
    const last = ranges.at(-1);
    if (last && !/[^ \t]/.test(text.slice(last[1], from))) last[1] = to;
    else ranges.push([from, to]);
  }
  return ranges;
}

// -------------------------------------------------------------------------------------------------- keys and buttons

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  if (event.key === "?") return event.preventDefault(), toggleHelp();
  if (element("keys").open) return;
  const onControl = event.target.closest?.("button, a");
  if (onControl && (event.key === " " || event.key === "Enter")) return; // presses that control
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const action = {
    ArrowLeft: () => choose("left", event.shiftKey),
    ArrowRight: () => choose("right", event.shiftKey),
    t: () => choose("tie", false),
    " ": () => choose("skip", false),
    u: undo,
    d: toggleDifferences,
  }[key];
  if (!action) return;
  event.preventDefault();
  action();
});

document.addEventListener("click", (event) => {
  const button = event.target.closest?.("button");
  if (!button) return;
  if (button.dataset.choice) choose(button.dataset.choice, Boolean(button.dataset.clearly));
  else ({ undo, differences: toggleDifferences, help: toggleHelp })[button.id]?.();
  if (event.detail) button.blur(); // after a click with the mouse the space bar skips, and does not press it again
});

document.addEventListener("visibilitychange", () => {
  if (document.hidden) hiddenAt = performance.now();
  else if (hiddenAt !== null) {
    shownAt += performance.now() - hiddenAt;
    hiddenAt = null;
  }
});

element("summary").href = summaryAddress();
load();
