// What the page knows: the picture, the prompts and how they came to be, what was answered.

// samforge.draw's colours, for colour-blind readers.
const PALETTE = [
  [86, 180, 233], [230, 159, 0], [0, 158, 115], [204, 121, 167], [240, 228, 66], [213, 94, 0],
  [0, 114, 178], [136, 204, 238], [170, 68, 153], [153, 153, 51], [136, 34, 85],
];

export const state = {
  models: [],
  limits: {},
  left: "",
  right: "",
  split: 0.5,
  picture: null,
  prompts: [],
  active: null,
  threshold: 0.5,
  showMasks: true,
  drag: "like",
  sign: 1,
  marked: null,
};

const past = [];
const future = [];
let lastNumber = 0;
const listeners = new Set();
let scheduled = false;
let beforeAll = () => {};

/** Call `listener` after changes, once a frame. */
export function onChange(listener) {
  listeners.add(listener);
}

/** Call `listener` first, without waiting for a frame: what is to be asked is asked at once. */
export function beforeChange(listener) {
  beforeAll = listener;
}

/** Something changed: everybody draws at the next frame. */
export function changed() {
  if (scheduled) return;
  scheduled = true;
  queueMicrotask(() => beforeAll());
  requestAnimationFrame(() => {
    scheduled = false;
    beforeAll();
    for (const listener of listeners) listener();
  });
}

export const css = ([red, green, blue], alpha = 1) => `rgb(${red} ${green} ${blue} / ${alpha})`;
export const canUndo = () => past.length > 0;
export const canRedo = () => future.length > 0;
export const promptOf = (id) => state.prompts.find((one) => one.id === id);
export const activePrompt = () => promptOf(state.active);
export const modelOf = (name) => state.models.find((one) => one.name === name);
export const shown = () => (state.right ? [state.left, state.right] : [state.left].filter(Boolean));

function snapshot() {
  return { prompts: state.prompts, active: state.active };
}

/** Put other prompts in place; the step can be undone. Prompts are never changed, only replaced. */
export function setPrompts(prompts, active = state.active) {
  past.push(snapshot());
  future.length = 0;
  state.prompts = prompts;
  state.active = prompts.some((one) => one.id === active) ? active : (prompts.at(-1)?.id ?? null);
  changed();
}

function step(from, to) {
  if (from.length === 0) return;
  to.push(snapshot());
  Object.assign(state, from.pop());
  changed();
}
export const undo = () => step(past, future);
export const redo = () => step(future, past);

/** A new picture keeps the phrases: what points at places goes. */
export function startOver() {
  state.prompts = state.prompts
    .filter((one) => one.kind === "find" && one.phrase)
    .map((one) => ({ ...one, boxes: [] }));
  state.active = state.prompts.at(-1)?.id ?? null;
  state.marked = null;
  past.length = future.length = 0;
}

function fresh(kind, fields) {
  const used = new Set(state.prompts.map((one) => one.number % PALETTE.length));
  let number = lastNumber++;
  if (used.size < PALETTE.length) {
    for (number = 0; used.has(number); number++);
  }
  return { id: `p${lastNumber}`, kind, number, colour: PALETTE[number % PALETTE.length], ...fields };
}

/** Add phrases that are not there yet; gives how many are new. */
export function addPhrases(phrases) {
  let prompts = state.prompts;
  let active = state.active;
  const before = prompts.length;
  for (const phrase of phrases) {
    const there = prompts.find((one) => one.phrase === phrase);
    const kept = state.prompts;
    state.prompts = prompts; // colours of those that are just being added count as used
    const one = there ?? fresh("find", { phrase, boxes: [] });
    state.prompts = kept;
    if (!there) prompts = [...prompts, one];
    active = one.id;
  }
  if (prompts.length > before) setPrompts(prompts, active);
  else if (active !== state.active) activate(active);
  return prompts.length - before;
}

export function removePrompt(id) {
  setPrompts(state.prompts.filter((one) => one.id !== id));
}

export function activate(id) {
  state.active = id;
  changed();
}

function put(prompt) {
  const there = state.prompts.some((one) => one.id === prompt.id);
  const prompts = there
    ? state.prompts.map((one) => (one.id === prompt.id ? prompt : one))
    : [...state.prompts, prompt];
  setPrompts(prompts, prompt.id);
}

/** An example of what to find, or to leave out, for the active phrase or for none. */
export function addExample(box, label) {
  const active = activePrompt();
  const prompt = active?.kind === "find" ? active : fresh("find", { phrase: "", boxes: [] });
  put({ ...prompt, boxes: [...prompt.boxes, { box, label }] });
}

/** A click on the active object, or on a new one. */
export function addPoint(point, label) {
  const active = activePrompt();
  const prompt = active?.kind === "object" ? active : fresh("object", { points: [], box: null });
  put({ ...prompt, points: [...prompt.points, { point, label }] });
}

/** A box around one object: it begins a new one. */
export function addObjectBox(box) {
  put(fresh("object", { points: [], box }));
}

/** The next click begins another object. */
export function beginObject() {
  state.active = null;
  changed();
}

/** What a prompt is called. */
export function nameOf(prompt) {
  if (prompt.kind === "find") return prompt.phrase || "like the boxes";
  const objects = state.prompts.filter((one) => one.kind === "object");
  return `object ${objects.findIndex((one) => one.id === prompt.id) + 1}`;
}
