// Prompts, threshold, what was found, and what it took.
import { answerOf, answersOf, foundBy, FLOOR, isBusy } from "./asking.js";
import {
  activate, canRedo, canUndo, changed, css, modelOf, nameOf, onChange, removePrompt, shown, state,
} from "./state.js";

const byId = (id) => document.getElementById(id);
const MOST_ROWS = 200;

/** An element with a class, text and children. */
export function make(tag, className = "", ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/** Keep a list's rows by key, so that focus stays where it is. */
function listed(list, rows, build, update) {
  const there = new Map([...list.children].map((row) => [row.dataset.key, row]));
  rows.forEach((one, index) => {
    let row = there.get(one.id);
    there.delete(one.id);
    if (!row) {
      row = build(one);
      row.dataset.key = one.id;
    }
    update(row, one);
    if (list.children[index] !== row) list.insertBefore(row, list.children[index] ?? null);
  });
  for (const row of there.values()) {
    const hadFocus = row.contains(document.activeElement);
    const next = row.nextElementSibling ?? row.previousElementSibling;
    row.remove();
    if (hadFocus) (next?.querySelector("button") ?? byId("phrase")).focus();
  }
}

function swatch(colour) {
  const one = make("span", "swatch");
  one.style.background = css(colour);
  return one;
}

function marksOf(prompt) {
  const count = (number, word, words = `${word}s`) =>
    number ? `${number} ${number === 1 ? word : words}` : "";
  if (prompt.kind === "find") return count(prompt.boxes.length, "box", "boxes");
  return [prompt.box ? "a box" : "", count(prompt.points.length, "click")].filter(Boolean).join(", ");
}

/** What became of a prompt, in a few words. */
function outcome(prompt, model) {
  const answer = answerOf(prompt, model);
  if (!answer) return { words: "" };
  if (answer.state === "waiting") return { words: "…" };
  if (answer.state === "failed") return { words: "no answer", error: answer.error };
  const remark = answer.remarks[0];
  if (prompt.kind === "object") return { words: answer.found[0]?.score.toFixed(2) ?? "none" };
  const above = answer.found.filter((one) => one.score > state.threshold).length;
  return { words: above ? `${above}` : "none", remark };
}

function promptRow(prompt) {
  const choose = make("button", "choose");
  choose.type = "button";
  choose.append(swatch(prompt.colour), make("span", "name"), make("span", "marks"), make("span", "outcome"));
  choose.addEventListener("click", () => activate(state.active === prompt.id ? null : prompt.id));
  const remove = make("button", "remove", "×");
  remove.type = "button";
  remove.addEventListener("click", () => removePrompt(prompt.id));
  return make("li", "", choose, remove, make("p", "why"));
}

function updatePrompt(row, prompt) {
  const [choose, remove, why] = row.children;
  const name = nameOf(prompt);
  const outcomes = shown().map((model) => outcome(prompt, model));
  choose.setAttribute("aria-pressed", String(prompt.id === state.active));
  put(choose.querySelector(".name"), name);
  put(choose.querySelector(".marks"), marksOf(prompt));
  put(choose.querySelector(".outcome"), outcomes.map((one) => one.words).join(" | "));
  remove.setAttribute("aria-label", `Remove ${name}`);
  const said = outcomes.find((one) => one.error) ?? outcomes.find((one) => one.remark);
  put(why, said?.error ?? said?.remark ?? "");
  why.classList.toggle("remark", !said?.error);
}

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function foundRow({ prompt, id }) {
  const choose = make("button", "choose");
  choose.type = "button";
  const bar = make("span", "bar", make("span"));
  bar.firstChild.style.background = css(prompt.colour);
  choose.append(swatch(prompt.colour), make("span", "name"), bar, make("span", "score"));
  const mark = (one) => () => {
    state.marked = one;
    changed();
  };
  choose.addEventListener("pointerenter", mark(id));
  choose.addEventListener("focus", mark(id));
  choose.addEventListener("pointerleave", mark(null));
  choose.addEventListener("blur", mark(null));
  return make("li", "", choose);
}

function updateFound(row, { prompt, row: { score, area } }) {
  const [choose] = row.children;
  choose.title = `${area.toLocaleString("en")} pixels`;
  put(choose.querySelector(".name"), nameOf(prompt));
  put(choose.querySelector(".score"), score.toFixed(2));
  choose.querySelector(".bar span").style.width = `${Math.round(score * 100)}%`;
}

/** Prompts that found nothing above the threshold, with the best score they reached. */
function missedBy(model) {
  return answersOf(model)
    .filter(({ prompt, answer }) =>
      prompt.kind === "find" && !answer.found.some((one) => one.score > state.threshold))
    .map(({ prompt, answer }) => ({ id: prompt.id, prompt, best: answer.best }));
}

function missedRow({ prompt }) {
  const bar = make("span", "bar", make("span"), make("span", "tick"));
  bar.firstChild.style.background = css(prompt.colour);
  return make("li", "", swatch(prompt.colour), make("span", "name"), bar, make("span", "score"));
}

function updateMissed(row, { prompt, best }) {
  put(row.querySelector(".name"), nameOf(prompt));
  put(row.querySelector(".score"), scoreWords(best));
  row.querySelector(".bar span").style.width = `${Math.round(best * 100)}%`;
  row.querySelector(".tick").style.left = `${state.threshold * 100}%`;
}

const scoreWords = (score) => (score > 0 && score < 0.005 ? "<0.01" : score.toFixed(2));

function summary(found, missed) {
  if (!state.picture) return "Open a picture, then say what to find.";
  if (state.prompts.length === 0) return "Say what to find, drag a box, or click on an object.";
  if (isBusy()) return state.picture.uploaded ? "Looking…" : "The picture is being encoded…";
  const parts = [];
  for (const prompt of state.prompts.filter((one) => one.kind === "find")) {
    const count = found.filter((one) => one.prompt.id === prompt.id).length;
    if (count) parts.push(`${nameOf(prompt)}: ${count}`);
  }
  for (const { prompt, best } of missed) parts.push(`${nameOf(prompt)}: none, best ${scoreWords(best)}`);
  return `${found.length} ${found.length === 1 ? "object" : "objects"}. ${parts.join("; ")}`.trim();
}

/** What the next box or click does, in words. */
function belongs(takesClicks) {
  const active = state.prompts.find((one) => one.id === state.active);
  const box =
    state.drag === "object"
      ? "A box shows one object"
      : `A box shows what ${active?.kind === "find" ? `${nameOf(active)} means` : "to find"}`;
  if (!takesClicks) return `${box}.`;
  return `${box}, a click ${active?.kind === "object" ? `corrects ${nameOf(active)}` : "begins an object"}.`;
}

const ms = (value) => (value >= 99.5 ? `${Math.round(value)} ms` : `${value.toFixed(1)} ms`);

/** The last answer's time: what the server took, and what passed until the masks were drawn. */
function timing(model) {
  const answers = answersOf(model).map((one) => one.answer);
  for (const answer of answers) answer.wall ??= performance.now() - answer.started;
  const last = answers.sort((a, b) => b.started - a.started)[0];
  if (!last) {
    const kept = state.picture?.encodeMs;
    return kept ? `Encoded in ${ms(kept.encode || kept.total)}. Prompts are answered from it.` : "";
  }
  const { timings, wall } = last;
  const encoded = timings.encode ? `encode ${ms(timings.encode)}, ` : "";
  return `Masks after ${ms(wall)}. Server: ${ms(timings.total)} (${encoded}detect ${ms(timings.detect)}).`;
}

function detectMs(model) {
  const last = answersOf(model).map((one) => one.answer).sort((a, b) => b.started - a.started)[0];
  return last ? ms(last.timings.detect) : "";
}

function update() {
  const model = state.left;
  const found = model && state.picture ? foundBy(model) : [];
  const missed = model && state.picture ? missedBy(model) : [];
  listed(byId("prompts"), state.prompts, promptRow, updatePrompt);
  listed(byId("found"), found.slice(0, MOST_ROWS), foundRow, updateFound);
  listed(byId("missed"), missed, missedRow, updateMissed);
  byId("missed-title").hidden = missed.length === 0;
  byId("nothing").hidden = found.length > 0 || missed.length > 0;
  const more = found.length - MOST_ROWS;
  put(byId("count"), found.length ? `${found.length}${more > 0 ? `, the best ${MOST_ROWS} here` : ""}` : "");
  put(byId("summary"), summary(found, missed));
  put(byId("timing"), model && state.picture ? timing(model) : "");
  put(byId("left-ms"), detectMs(state.left));
  put(byId("right-ms"), state.right ? detectMs(state.right) : "");
  put(byId("threshold-value"), state.threshold.toFixed(2));
  byId("undo").disabled = !canUndo();
  byId("redo").disabled = !canRedo();
  byId("coco").disabled = byId("png").disabled = found.length === 0;
  byId("over").hidden = !state.picture;
  byId("compare").hidden = !state.picture || !state.right;
  const takesClicks = modelOf(model)?.prompts.includes("points") ?? false;
  byId("new-object").hidden = !takesClicks;
  byId("new-object").disabled = !state.picture || state.active === null;
  put(byId("belongs"), state.picture ? belongs(takesClicks) : "");
  byId("masks").setAttribute("aria-pressed", String(state.showMasks));
  byId("busy").hidden = !isBusy();
}

byId("threshold").min = String(FLOOR);
byId("threshold").addEventListener("input", (event) => {
  state.threshold = Number(event.target.value);
  changed();
});
onChange(update);
