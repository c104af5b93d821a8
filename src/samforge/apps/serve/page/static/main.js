// Puts the page together.
import { useToken } from "./api.js";
import { currentTrouble, goOn, upload, whenTrouble } from "./asking.js";
import { look, whenReady } from "./bundles.js";
import { pictureFromFile, saveCoco, savePng } from "./files.js";
import "./panel.js";
import { whenSaying } from "./pointing.js";
import { hand, view, zoomBy } from "./stage.js";
import { addPhrases, beginObject, changed, redo, startOver, state, undo } from "./state.js";

const byId = (id) => document.getElementById(id);
let retryTimer = 0;

function showError(words, canRetry = false) {
  byId("error-text").textContent = words;
  byId("error").hidden = !words;
  byId("again").hidden = !canRetry;
}

function retry() {
  clearTimeout(retryTimer);
  showError("");
  goOn();
}

whenTrouble((trouble) => {
  if (trouble.status === 401) {
    byId("token-form").hidden = false;
    byId("token").focus();
    return;
  }
  showError(trouble.message, trouble.canRetry);
  if (trouble.status === 503 || trouble.status === 0) look();
  if (trouble.status === 429) {
    retryTimer = setTimeout(retry, Math.max(1, trouble.retryAfter) * 1000);
  }
});

whenReady(
  () => {
    if (currentTrouble()) retry();
  },
  () => {
    byId("token-form").hidden = false;
  },
);

async function open(file) {
  let picture;
  try {
    picture = await pictureFromFile(file);
  } catch (error) {
    showError(error.message);
    return;
  }
  showError("");
  state.picture?.bitmap.close();
  state.picture = picture;
  startOver();
  Object.assign(view, { zoom: 1, x: 0, y: 0 });
  hand.cursor = null;
  byId("empty").hidden = true;
  byId("stage").classList.add("full");
  const canvas = byId("canvas");
  canvas.hidden = false;
  canvas.setAttribute("aria-label", `${picture.name}, ${picture.width} by ${picture.height} pixels`);
  changed();
  upload();
}

async function sample() {
  const response = await fetch("page/scene.png");
  await open(new File([await response.blob()], "drawn-scene.png", { type: "image/png" }));
  if (state.prompts.length === 0) addPhrases(["red star"]);
}

const pick = () => byId("file").click();
byId("open").addEventListener("click", pick);
byId("choose").addEventListener("click", pick);
byId("sample").addEventListener("click", () => sample().catch((error) => showError(error.message)));
byId("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  event.target.value = "";
  if (file) open(file);
});

let depth = 0;
const hasFile = (event) => [...(event.dataTransfer?.items ?? [])].some((one) => one.kind === "file");
for (const [kind, step] of [["dragenter", 1], ["dragleave", -1]]) {
  document.addEventListener(kind, (event) => {
    if (!hasFile(event)) return;
    depth = Math.max(0, depth + step);
    byId("drop").hidden = depth === 0;
  });
}
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  byId("drop").hidden = true;
  const [file] = event.dataTransfer.files;
  if (file) open(file);
});
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData?.files ?? [];
  if (file) open(file);
});

byId("find").addEventListener("submit", (event) => {
  event.preventDefault();
  const phrases = byId("phrase").value.split(",").map((one) => one.trim().replace(/\s+/g, " "));
  addPhrases(phrases.filter(Boolean));
  byId("phrase").value = "";
});
byId("new-object").addEventListener("click", () => {
  beginObject();
  say("The next click on the picture begins a new object.");
  byId("canvas").focus();
});
for (const [name, read] of [["drag", String], ["sign", Number]]) {
  byId(name).addEventListener("change", (event) => {
    state[name] = read(event.target.value);
    changed();
  });
}
byId("undo").addEventListener("click", undo);
byId("redo").addEventListener("click", redo);
byId("masks").addEventListener("click", () => {
  state.showMasks = !state.showMasks;
  changed();
});
for (const [id, zoom] of [["closer", () => zoomBy(1.5)], ["farther", () => zoomBy(1 / 1.5)], ["whole", () => zoomBy(1 / view.zoom)]]) {
  byId(id).addEventListener("click", () => {
    zoom();
    changed();
  });
}
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=range]):not([type=radio])");
  if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z" || typing) return;
  event.preventDefault();
  (event.shiftKey ? redo : undo)();
});

byId("coco").addEventListener("click", saveCoco);
byId("png").addEventListener("click", () => savePng().catch((error) => showError(error.message)));
byId("again").addEventListener("click", retry);
byId("dismiss").addEventListener("click", () => {
  showError("");
  byId("canvas").focus();
});
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useToken(byId("token").value);
  byId("token").value = "";
  byId("token-form").hidden = true;
  look();
  retry();
});

byId("split").addEventListener("input", (event) => {
  state.split = Number(event.target.value) / 100;
  changed();
});
const handle = byId("seam").firstElementChild;
handle.addEventListener("pointerdown", (event) => handle.setPointerCapture(event.pointerId));
handle.addEventListener("pointermove", (event) => {
  if (!handle.hasPointerCapture(event.pointerId)) return;
  const x = event.clientX - byId("stage").getBoundingClientRect().left;
  const share = (x - view.left) / (view.scale * state.picture.width);
  state.split = Math.min(1, Math.max(0, share));
  byId("split").value = String(state.split * 100);
  changed();
});
for (const side of ["left", "right"]) {
  byId(side).addEventListener("change", (event) => {
    const other = side === "left" ? "right" : "left";
    if (state[other] === event.target.value) {
      state[other] = state[side];
      byId(other).value = state[side];
    }
    state[side] = event.target.value;
    changed();
  });
}

let speaking = 0;
/** Say something where only those who listen hear it; `loud` shows it as well. */
function say(words, loud = false) {
  clearTimeout(speaking);
  speaking = setTimeout(() => {
    byId("spoken").textContent = words;
  }, 250);
  if (loud) showError(words);
}
whenSaying(say);
look();
