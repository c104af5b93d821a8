// Which bundles answer, their proof, and how the server is.
import { readiness, models } from "./api.js";
import { make } from "./panel.js";
import { changed, state } from "./state.js";

const byId = (id) => document.getElementById(id);
const SOON = 2_000;
const LATER = 15_000;
let ready = false;
let timer = 0;
let onReady = () => {};
let onFailure = () => {};

/** Hear of the server: it became ready; it cannot be asked. */
export function whenReady(readied, failed) {
  onReady = readied;
  onFailure = failed;
}

const STATES = {
  verifying: "is being proven on this machine",
  loading: "is being loaded",
  failed: "did not hold its proof and is not served",
  closed: "is closed",
};

function wordsFor(answer) {
  if (answer.draining) return "The server is ending: it finishes what it accepted and takes no new requests.";
  const parts = Object.entries(answer.models)
    .filter(([, one]) => one.state !== "ready")
    .map(([name, one]) => `${name} ${STATES[one.state] ?? one.state}${one.error ? `: ${one.error}` : ""}`);
  return `Not ready: ${parts.join("; ")}. The page goes on by itself.`;
}

function tell(words) {
  const line = byId("server");
  if (line.textContent !== words) line.textContent = words;
  line.hidden = !words;
}

/** Look how the server is, now, and again after a while. */
export async function look() {
  clearTimeout(timer);
  try {
    const answer = await readiness();
    const before = ready;
    ready = answer.ready;
    tell(ready ? "" : wordsFor(answer));
    if (ready !== before || state.models.length === 0) await describe();
    if (ready && !before) onReady();
  } catch (error) {
    ready = false;
    tell(error.status === 401 ? "" : error.message);
    if (error.status === 401) onFailure(error);
  }
  timer = setTimeout(look, ready && !document.hidden ? LATER : SOON);
}

async function describe() {
  const answer = await models();
  state.models = answer.models;
  state.limits = answer.limits;
  const names = state.models.map((one) => one.name);
  if (!names.includes(state.left)) state.left = names[0] ?? "";
  if (!names.includes(state.right)) state.right = names[1] ?? "";
  for (const side of ["left", "right"]) fillSelect(byId(side), names, state[side]);
  byId("bundles").replaceChildren(...state.models.map(card));
  changed();
}

function fillSelect(select, names, chosen) {
  select.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
}

function row(list, name, value) {
  list.append(make("dt", "", name), make("dd", "", value));
}

function card(model) {
  const held = model.verdict.held;
  const label = held ? "proven here" : model.state;
  const summary = make("summary", "", make("span", `dot ${held ? "good" : "bad"}`), make("b", "", model.name), ` ${label}`);
  const digest = make("code", "", model.digest);
  const list = make("dl");
  row(list, "Digest", digest);
  row(list, "Model", `${model.model}, ${model.precision}, for ${model.target}`);
  if (model.processors.length) row(list, "Runs on", model.processors.join("; "));
  row(list, "Takes", model.prompts.join(", "));
  if (model.error) row(list, "Error", model.error);
  const gates = Object.entries(model.verdict.gates);
  const body = make("div", "sheet", list);
  if (gates.length) body.append(gatesOf(gates));
  return make("details", "bundle", summary, body);
}

function gatesOf(gates) {
  const head = make("tr", "", ...["Gate", "Measured here", "Limit"].map((one) => make("th", "", one)));
  for (const cell of head.children) cell.scope = "col";
  const rows = gates.map(([name, { figure, limit }]) =>
    make("tr", "", make("td", "", name.replaceAll("_", " ")), make("td", "number", short(figure)), make("td", "number", short(limit))));
  return make("table", "", make("thead", "", head), make("tbody", "", ...rows));
}

const short = (value) => (Math.abs(value) < 0.001 && value !== 0 ? value.toExponential(1) : `${Number(value.toFixed(4))}`);

document.addEventListener("click", (event) => {
  for (const one of document.querySelectorAll("details.bundle[open]")) {
    if (!one.contains(event.target)) one.open = false;
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  const open = document.querySelector("details.bundle[open]");
  if (!open) return;
  open.open = false;
  open.querySelector("summary").focus();
});
document.addEventListener("visibilitychange", () => document.hidden || look());
