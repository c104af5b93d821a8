// Draws the picture, what was found in it, and what was marked on it.
import { foundBy } from "./asking.js";
import { outlineOf } from "./masks.js";
import { css, nameOf, onChange, shown, state } from "./state.js";

const canvas = document.getElementById("canvas");
const stage = document.getElementById("stage");
const seam = document.getElementById("seam");
export const view = { zoom: 1, x: 0, y: 0, scale: 1, left: 0, top: 0 };
/** What the pointer or the keys are about: `{cursor: [x, y] | null, box: [...] | null, label}`. */
export const hand = { cursor: null, box: null, label: 1, keys: false };
const FILL = 0.45;

/** Where the picture lies on the canvas, CSS pixels, at the present zoom. */
function fit() {
  const { picture } = state;
  const width = stage.clientWidth;
  const most = Math.max(240, Math.min(window.innerHeight * (window.innerWidth < 860 ? 0.6 : 0.74), 900));
  const height = Math.round(Math.min(most, (width * picture.height) / picture.width));
  const whole = Math.min(width / picture.width, height / picture.height);
  view.scale = whole * view.zoom;
  const [wide, high] = [picture.width * view.scale, picture.height * view.scale];
  const clamp = (at, inside, size) =>
    inside <= size ? (size - inside) / 2 : Math.min(0, Math.max(size - inside, at));
  view.left = view.x = clamp(view.x, wide, width);
  view.top = view.y = clamp(view.y, high, height);
  const ratio = window.devicePixelRatio || 1;
  const size = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== size[0] || canvas.height !== size[1]) {
    [canvas.width, canvas.height] = size;
    canvas.style.height = `${height}px`;
  }
  return { width, height, ratio };
}

/** From a place on the canvas, CSS pixels, to one on the picture, inside it. */
export function pictureFrom(x, y) {
  const inside = (value, size) => Math.min(size - 0.5, Math.max(0.5, value));
  return [
    inside((x - view.left) / view.scale, state.picture.width),
    inside((y - view.top) / view.scale, state.picture.height),
  ];
}

/** Zoom by a factor; the place under `x`, `y` (CSS pixels) stays where it is. */
export function zoomBy(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
  const zoom = Math.min(32, Math.max(1, view.zoom * factor));
  const ratio = zoom / view.zoom;
  view.x = x - (x - view.left) * ratio;
  view.y = y - (y - view.top) * ratio;
  view.zoom = zoom;
}

/** Something as it lies on the canvas now, by its name: drawn anew only when its sign is another. */
const layers = new Map();
function layerOf(name, sign, place, drawOn) {
  const whole = JSON.stringify([state.picture.number, place, canvas.width, canvas.height, sign]);
  const kept = layers.get(name);
  if (kept?.sign === whole) return kept.surface;
  const surface = new OffscreenCanvas(canvas.width, canvas.height);
  const context = surface.getContext("2d");
  context.setTransform(...place);
  drawOn(context);
  layers.set(name, { sign: whole, surface });
  return surface;
}

/** Put a layer on the canvas, pixel by pixel. */
function put(context, surface) {
  context.save();
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.drawImage(surface, 0, 0);
  context.restore();
}

function drawPicture(context, scale) {
  context.imageSmoothingEnabled = scale < 4;
  context.imageSmoothingQuality = "high";
  context.drawImage(state.picture.bitmap, 0, 0);
}

/** Draw masks in the picture's coordinates; `unit` is a screen pixel's size there. */
function drawMasks(context, found, unit, marked = false) {
  const { step } = state.picture;
  context.save();
  context.scale(step, step);
  context.lineJoin = "round";
  for (const { row, prompt } of found) {
    row.outline ??= outlineOf(row.crop);
    context.fillStyle = css(prompt.colour, marked ? 0.2 : FILL);
    context.fill(row.outline, "evenodd");
    context.lineWidth = ((marked ? 5 : 3.4) * unit) / step;
    context.strokeStyle = "rgb(0 0 0 / 0.45)";
    context.stroke(row.outline);
    context.lineWidth = ((marked ? 3 : 1.8) * unit) / step;
    context.strokeStyle = marked ? "white" : css(prompt.colour);
    context.stroke(row.outline);
  }
  context.restore();
}

function drawBox(context, [left, top, right, bottom], label, colour, unit) {
  for (const [width, style] of [[4, "rgb(0 0 0 / 0.6)"], [2, label ? css(colour) : "#ff6b5e"]]) {
    context.setLineDash(label ? [] : [6 * unit, 4 * unit]);
    context.lineWidth = width * unit;
    context.strokeStyle = style;
    context.strokeRect(left, top, right - left, bottom - top);
  }
  context.setLineDash([]);
}

function drawPoint(context, [x, y], label, colour, unit) {
  context.beginPath();
  context.arc(x, y, 7 * unit, 0, 2 * Math.PI);
  context.fillStyle = label ? css(colour) : "#c62f22";
  context.fill();
  context.lineWidth = 1.75 * unit;
  context.strokeStyle = "white";
  context.stroke();
  context.beginPath();
  context.strokeStyle = label ? "#10151c" : "white";
  context.moveTo(x - 3.2 * unit, y);
  context.lineTo(x + 3.2 * unit, y);
  if (label) {
    context.moveTo(x, y - 3.2 * unit);
    context.lineTo(x, y + 3.2 * unit);
  }
  context.stroke();
}

function drawMarks(context, unit) {
  for (const prompt of state.prompts) {
    for (const { box, label } of prompt.boxes ?? []) drawBox(context, box, label, prompt.colour, unit);
    if (prompt.box) drawBox(context, prompt.box, 1, prompt.colour, unit);
    for (const { point, label } of prompt.points ?? []) {
      drawPoint(context, point, label, prompt.colour, unit);
    }
  }
  if (hand.box) drawBox(context, hand.box, hand.label, [255, 255, 255], unit);
  if (hand.cursor && hand.keys) drawCursor(context, hand.cursor, unit);
}

function drawCursor(context, [x, y], unit) {
  for (const [width, style] of [[4, "rgb(0 0 0 / 0.7)"], [1.75, "white"]]) {
    context.lineWidth = width * unit;
    context.strokeStyle = style;
    context.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      context.moveTo(x + dx * 4 * unit, y + dy * 4 * unit);
      context.lineTo(x + dx * 15 * unit, y + dy * 15 * unit);
    }
    context.stroke();
  }
}

/** A tag with name and score at the object that is marked in the list. */
function drawTag(context, found, unit) {
  const one = found.find(({ id }) => id === state.marked);
  if (!one) return;
  const { step } = state.picture;
  const text = `${nameOf(one.prompt)} ${one.row.score.toFixed(2)}`;
  context.font = `600 ${13 * unit}px system-ui, sans-serif`;
  const width = context.measureText(text).width + 12 * unit;
  const high = 21 * unit;
  const left = Math.min(one.row.crop.left * step, state.picture.width - width);
  const top = Math.max(0, one.row.crop.top * step - high - 4 * unit);
  context.fillStyle = "rgb(16 21 28 / 0.88)";
  context.beginPath();
  context.roundRect(Math.max(0, left), top, width, high, 5 * unit);
  context.fill();
  context.fillStyle = "white";
  context.textBaseline = "middle";
  context.fillText(text, Math.max(0, left) + 6 * unit, top + high / 2);
}

/** What is on the canvas, in words: what would look the same is not drawn again. */
let drawn = "";
const numbersOf = (found) => found.map(({ row, prompt }) => [row.number, prompt.number]);
function signOf(place, split, sides) {
  const seen = sides.map(({ model, found }) => [model, numbersOf(found)]);
  const marked = sides[0]?.found.find(({ id }) => id === state.marked);
  const marks = state.prompts
    .filter(({ boxes, box, points }) => boxes?.length || box || points?.length)
    .map(({ colour, boxes, box, points }) => [colour, boxes, box, points]);
  return JSON.stringify([
    state.picture.number, canvas.width, canvas.height, place, split, seen, state.marked,
    marked && nameOf(marked.prompt), marks, hand,
  ]);
}

/** Draw everything. */
export function draw() {
  if (!state.picture || canvas.hidden) return;
  const { width, ratio } = fit();
  const context = canvas.getContext("2d");
  const unit = 1 / view.scale;
  const scale = view.scale * ratio;
  const place = [scale, 0, 0, scale, view.left * ratio, view.top * ratio];
  const models = shown();
  const split = models.length > 1 ? state.split * state.picture.width : state.picture.width;
  const sides = state.showMasks
    ? models.map((model) => ({ model, found: foundBy(model).reverse() })) // the best ends on top
    : [];
  const sign = signOf(place, split, sides);
  if (sign !== drawn) {
    drawn = sign;
    drawScene(context, { place, scale, unit, split, sides });
  }
  drawSeam(models, view.left + split * view.scale, width);
}

function drawScene(context, { place, scale, unit, split, sides }) {
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.setTransform(...place);
  put(context, layerOf("", null, place, (one) => drawPicture(one, scale)));
  sides.forEach(({ model, found }, side) => {
    context.save();
    context.beginPath();
    if (side) context.rect(split, 0, state.picture.width - split, state.picture.height);
    else context.rect(0, 0, split, state.picture.height);
    context.clip();
    put(context, layerOf(model, numbersOf(found), place, (one) => drawMasks(one, found, unit)));
    drawMasks(context, found.filter(({ id }) => id === state.marked), unit, true);
    context.restore();
    if (side === 0) drawTag(context, found, unit);
  });
  drawMarks(context, unit);
}

/** The line between two bundles, and the slider below it, which is as wide as the picture. */
function drawSeam(models, at, width) {
  seam.hidden = models.length < 2 || at < 0 || at > width;
  if (models.length < 2) return;
  seam.style.transform = `translateX(${at}px)`;
  const [left, right] = seam.querySelectorAll("b");
  [left.textContent, right.textContent] = models;
  const slider = document.getElementById("split");
  const beyond = view.left + state.picture.width * view.scale;
  const [from, to] = [Math.max(0, view.left), Math.max(0, width - beyond)];
  slider.style.margin = `4px ${to - 8}px 4px ${from - 8}px`; // the thumb's half
  slider.style.width = `${width - from - to + 16}px`;
}

/** The picture at its own size with what was found in it, as a PNG. */
export async function pngOf(model) {
  const { picture } = state;
  const surface = new OffscreenCanvas(picture.width, picture.height);
  const context = surface.getContext("2d");
  context.drawImage(picture.bitmap, 0, 0);
  const unit = Math.max(1, Math.max(picture.width, picture.height) / 1000) / 1.5;
  drawMasks(context, foundBy(model).reverse(), unit);
  return surface.convertToBlob({ type: "image/png" });
}

onChange(draw);
canvas.addEventListener("contextrestored", () => {
  drawn = "";
  layers.clear();
  draw();
});
new ResizeObserver(draw).observe(stage);
