// Marks on the picture, by mouse, pen, finger or keys.
import { draw, hand, pictureFrom, view, zoomBy } from "./stage.js";
import {
  addExample, addObjectBox, addPoint, beginObject, changed, modelOf, state,
} from "./state.js";

const canvas = document.getElementById("canvas");
const DRAG = 5; // CSS pixels: less is a click
let say = () => {};
let press = null;
let corner = null; // where a box by keys began

/** Hears what is to be spoken. */
export function whenSaying(listener) {
  say = listener;
}

function able(what) {
  const model = modelOf(state.left);
  return !model || model.prompts.includes(what);
}

function mark(point, label) {
  if (!able("points")) {
    say(`The bundle ${state.left} takes no clicks: it was built without a tracker. Drag a box.`, true);
    return;
  }
  addPoint(point.map((one) => Math.round(one * 10) / 10), label);
  say(`${label ? "Added" : "Taken away"} at ${words(point)}.`);
}

function box(from, to, label) {
  const rounded = (value) => Math.round(value * 10) / 10;
  const [left, right] = [from[0], to[0]].sort((a, b) => a - b).map(rounded);
  const [top, bottom] = [from[1], to[1]].sort((a, b) => a - b).map(rounded);
  if (right - left < 1 || bottom - top < 1) return;
  const asObject = state.drag === "object";
  if (!able(asObject ? "points" : "boxes")) {
    say(`The bundle ${state.left} takes no ${asObject ? "box around one object" : "boxes"}.`, true);
    return;
  }
  if (asObject) addObjectBox([left, top, right, bottom]);
  else addExample([left, top, right, bottom], label);
  say(`Box from ${words([left, top])} to ${words([right, bottom])}.`);
}

const words = ([x, y]) => `${Math.floor(x)}, ${Math.floor(y)}`;
const rectangle = (a, b) => [
  Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1]),
];
const labelOf = (event, away) => (away || event.altKey ? 0 : state.sign);

canvas.addEventListener("pointerdown", (event) => {
  if (!state.picture || press) return;
  canvas.focus({ preventScroll: true, focusVisible: false });
  hand.keys = false;
  const place = [event.offsetX, event.offsetY];
  press = { place, at: pictureFrom(...place), button: event.button, id: event.pointerId };
  press.view = [view.x, view.y];
  canvas.setPointerCapture(event.pointerId);
  event.preventDefault();
});

canvas.addEventListener("pointermove", (event) => {
  if (!press || event.pointerId !== press.id) return;
  const [dx, dy] = [event.offsetX - press.place[0], event.offsetY - press.place[1]];
  if (press.button === 1) {
    [view.x, view.y] = [press.view[0] + dx, press.view[1] + dy];
  } else if (Math.hypot(dx, dy) >= DRAG || press.dragged) {
    press.dragged = true;
    hand.box = rectangle(press.at, pictureFrom(event.offsetX, event.offsetY));
    hand.label = labelOf(event, press.button === 2);
  }
  changed();
});

canvas.addEventListener("pointerup", (event) => {
  if (!press || event.pointerId !== press.id) return;
  const { at, button, dragged } = press;
  press = hand.box = null;
  if (button !== 1) {
    const label = labelOf(event, button === 2);
    if (dragged) box(at, pictureFrom(event.offsetX, event.offsetY), label);
    else mark(at, label);
  }
  changed();
});

canvas.addEventListener("pointercancel", () => {
  press = hand.box = null;
  changed();
});
canvas.addEventListener("contextmenu", (event) => event.preventDefault());
canvas.addEventListener("wheel", (event) => {
  if (event.ctrlKey || event.metaKey) zoomBy(Math.exp(-event.deltaY / 300), event.offsetX, event.offsetY);
  else if (view.zoom > 1) [view.x, view.y] = [view.x - event.deltaX, view.y - event.deltaY];
  else return;
  event.preventDefault();
  changed();
}, { passive: false });

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function move([dx, dy], event) {
  const longer = Math.max(state.picture.width, state.picture.height);
  const step = event.ctrlKey ? 1 : Math.max(1, Math.round(longer / (event.shiftKey ? 10 : 80)));
  const [x, y] = hand.cursor ?? [state.picture.width / 2, state.picture.height / 2];
  const inside = (value, size) => Math.min(size - 0.5, Math.max(0.5, value));
  hand.cursor = [inside(x + dx * step, state.picture.width), inside(y + dy * step, state.picture.height)];
  hand.keys = true;
  if (corner) hand.box = rectangle(corner, hand.cursor);
  follow();
  say(words(hand.cursor));
}

/** Keep the cursor in sight. */
function follow() {
  const [x, y] = [view.left + hand.cursor[0] * view.scale, view.top + hand.cursor[1] * view.scale];
  const edge = 24;
  view.x += Math.max(0, edge - x) - Math.max(0, x - (canvas.clientWidth - edge));
  view.y += Math.max(0, edge - y) - Math.max(0, y - (canvas.clientHeight - edge));
}

function pressAtCursor(label) {
  hand.cursor ??= [state.picture.width / 2, state.picture.height / 2];
  hand.keys = true;
  if (corner) {
    const from = corner;
    dropBox();
    box(from, hand.cursor, label);
  } else {
    mark(hand.cursor, label);
  }
}

function dropBox() {
  corner = hand.box = null;
}

const KEYS = {
  Enter: (event) => pressAtCursor(labelOf(event, false)),
  Backspace: () => pressAtCursor(0),
  Escape: () => dropBox(),
  b: (event) => {
    if (corner) return pressAtCursor(labelOf(event, false));
    hand.cursor ??= [state.picture.width / 2, state.picture.height / 2];
    hand.keys = true;
    hand.label = state.sign;
    corner = [...hand.cursor];
    return say(`A box begins at ${words(corner)}. Move, then Enter.`);
  },
  n: () => {
    beginObject();
    say("The next click begins a new object.");
  },
  m: () => {
    state.showMasks = !state.showMasks;
  },
  "+": () => zoomBy(1.5),
  "=": () => zoomBy(1.5),
  "-": () => zoomBy(1 / 1.5),
  0: () => zoomBy(1 / view.zoom),
};

canvas.addEventListener("keydown", (event) => {
  if (!state.picture || event.metaKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (ARROWS[key]) move(ARROWS[key], event);
  else if (KEYS[key] && !event.ctrlKey) KEYS[key](event);
  else return;
  event.preventDefault();
  changed();
});
canvas.addEventListener("blur", () => {
  hand.keys = false;
  dropBox();
  draw();
});
