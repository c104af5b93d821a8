// Asks for what is not known yet, each thing once, and keeps the answers by what was asked.
import { keepImage, segment, Trouble } from "./api.js";
import { cropFromRle } from "./masks.js";
import { beforeChange, changed, shown, state } from "./state.js";

/** Detections come down to this score, so that the threshold moves without a request. */
export const FLOOR = 0.05;

const answers = new Map(); // by question: {state, found, best, cutOff, answerId, timings, wall, error}
let aborts = new Map(); // what is under way, by question
let uploading = null;
let lastMask = 0;
let trouble = null;
let onTrouble = () => {};

export function whenTrouble(listener) {
  onTrouble = listener;
}

function fail(error) {
  if (error.name === "AbortError") return;
  trouble = error instanceof Trouble ? error : new Trouble(`The page met an error: ${error.message}`);
  onTrouble(trouble);
  changed();
}

/** What a prompt asks, as the server takes it; null where there is nothing to ask. */
export function bodyOf(prompt) {
  if (prompt.kind === "find") {
    if (prompt.boxes.length === 0) return prompt.phrase ? { text: prompt.phrase } : null;
    return {
      ...(prompt.phrase ? { text: prompt.phrase } : {}),
      boxes_xyxy: prompt.boxes.map((one) => one.box),
      box_labels: prompt.boxes.map((one) => one.label),
    };
  }
  if (prompt.points.length === 0 && !prompt.box) return null;
  const object = {};
  if (prompt.points.length) {
    object.points = prompt.points.map((one) => one.point);
    object.labels = prompt.points.map((one) => one.label);
  }
  if (prompt.box) object.box_xyxy = prompt.box;
  return { objects: [object] };
}

function keyOf(model, body) {
  return JSON.stringify([state.picture.number, model, body]);
}

/** What is known of a prompt: `{state: "waiting" | "done" | "failed", …}`, or null. */
export function answerOf(prompt, model) {
  const body = state.picture && bodyOf(prompt);
  return body ? (answers.get(keyOf(model, body)) ?? null) : null;
}

/** Ask whatever the prompts want to know and nobody asked; leave what nobody wants any more. */
function askWhatIsMissing() {
  if (!state.picture?.uploaded || trouble) return;
  const wanted = new Set();
  for (const model of shown()) {
    const phrases = [];
    for (const prompt of state.prompts) {
      const body = bodyOf(prompt);
      if (!body) continue;
      const key = keyOf(model, body);
      wanted.add(key);
      if (answers.has(key)) continue;
      if (Object.keys(body).length === 1 && body.text) phrases.push(body.text);
      else ask(model, body, [{ key }], earlierOf(prompt, model));
    }
    const most = Math.max(1, state.limits.phrases ?? 64);
    for (let at = 0; at < phrases.length; at += most) {
      const text = phrases.slice(at, at + most);
      const rows = text.map((phrase) => ({ key: keyOf(model, { text: phrase }), phrase }));
      ask(model, { text }, rows, null);
    }
  }
  for (const [key, abort] of aborts) {
    if (![...abort.keys].some((one) => wanted.has(one))) {
      abort.controller.abort();
      for (const one of abort.keys) if (answers.get(one)?.state === "waiting") answers.delete(one);
      aborts.delete(key);
    }
  }
}

/** The model's own mask before the last click: the click corrects it. */
function earlierOf(prompt, model) {
  if (prompt.kind !== "object" || prompt.points.length + (prompt.box ? 1 : 0) < 2) return null;
  const before = answerOf({ ...prompt, points: prompt.points.slice(0, -1) }, model);
  return before?.answerId ?? null;
}

async function ask(model, question, rows, earlier) {
  const keys = rows.map((one) => one.key);
  const controller = new AbortController();
  const started = performance.now();
  const picture = state.picture;
  for (const key of keys) answers.set(key, { state: "waiting" });
  aborts.set(keys[0], { controller, keys });
  try {
    const body = { model, ...question, masks: "rle" };
    if (!question.objects) body.threshold = FLOOR;
    if (earlier) body.earlier = earlier;
    const answer = await asked(picture, model, body, controller.signal);
    for (const row of rows) answers.set(row.key, known(answer, row.phrase, picture, started));
  } catch (error) {
    for (const key of keys) {
      if (answers.get(key)?.state === "waiting") answers.delete(key);
      // A question that cannot be answered is not asked again: the row says why.
      if (error instanceof Trouble && !error.canRetry) {
        answers.set(key, { state: "failed", error: error.message });
      }
    }
    if (!(error instanceof Trouble) || error.canRetry || error.status === 401) fail(error);
  } finally {
    aborts.delete(keys[0]);
    changed();
  }
}

/** One answer; a picture or mask that the server dropped meanwhile is given again. */
async function asked(picture, model, body, signal) {
  try {
    return await segment(picture.imageId, body, signal);
  } catch (error) {
    if (error.status !== 404) throw error;
    const { earlier: _, ...rest } = body;
    picture.imageId = (await keepImage(picture.file, model, signal)).image_id;
    return segment(picture.imageId, rest, signal);
  }
}

function known(answer, phrase, picture, started) {
  const rows = phrase ? answer.detections.filter((one) => one.label === phrase) : answer.detections;
  const scores = Object.values(answer.best_scores);
  return {
    state: "done",
    found: rows.map((one) => ({ ...one, number: ++lastMask, crop: cropFromRle(one.rle, picture.step) })),
    best: phrase ? (answer.best_scores[phrase] ?? 0) : Math.max(0, ...scores),
    cutOff: answer.cut_off,
    answerId: answer.answer_id,
    remarks: (answer.warnings ?? []).filter(
      (one) => !phrase || [`phrase '${phrase}'`, `phrase "${phrase}"`].some((named) => one.includes(named)),
    ),
    timings: answer.timings_ms,
    bundle: answer.bundle,
    started,
    wall: null,
  };
}

/** Upload the picture, once for all questions. */
export async function upload() {
  uploading?.abort();
  for (const { controller } of aborts.values()) controller.abort();
  aborts = new Map();
  answers.clear();
  trouble = null;
  const picture = state.picture;
  const controller = (uploading = new AbortController());
  changed();
  try {
    const kept = await keepImage(picture.file, state.left, controller.signal);
    if (state.picture !== picture) return;
    Object.assign(picture, { imageId: kept.image_id, uploaded: true, encodeMs: kept.timings_ms });
  } catch (error) {
    if (state.picture === picture) fail(error);
  } finally {
    if (uploading === controller) uploading = null;
    changed();
  }
}

/** Whether something is under way. */
export const isBusy = () => uploading !== null || aborts.size > 0;

/** What went wrong and stands in the way, if anything. */
export const currentTrouble = () => trouble;

/** Go on after trouble: what was not answered is asked again. */
export function goOn() {
  trouble = null;
  if (state.picture && !state.picture.uploaded && !uploading) upload();
  changed();
}

/** Every known answer of one bundle, with its prompt. */
export function answersOf(model) {
  return state.prompts
    .map((prompt) => ({ prompt, answer: answerOf(prompt, model) }))
    .filter(({ answer }) => answer?.state === "done");
}

/** What one bundle found above the threshold, best first: `{prompt, row, id}`. Clicks always show. */
export function foundBy(model) {
  const found = [];
  for (const { prompt, answer } of answersOf(model)) {
    answer.found.forEach((row, index) => {
      if (prompt.kind === "object" || row.score > state.threshold) {
        found.push({ prompt, row, id: `${prompt.id} ${index}` });
      }
    });
  }
  return found.sort((a, b) => b.row.score - a.row.score);
}

beforeChange(askWhatIsMissing); // what is asked counts as under way before anybody draws
