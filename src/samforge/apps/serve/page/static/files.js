// Pictures in, results out.
import { foundBy } from "./asking.js";
import { pngOf } from "./stage.js";
import { modelOf, nameOf, state } from "./state.js";

const MOST_CELLS = 2_000_000; // of a mask on screen: larger pictures are looked at in steps
let number = 0;

/** A picture as the page keeps it. Throws where the browser cannot show the file. */
export async function pictureFromFile(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    const kind = file.type || "of no known type";
    throw new Error(
      `This browser cannot show ${file.name || "the file"} (${kind}). Take a PNG, JPEG, WebP, GIF or AVIF.`,
    );
  }
  const { width, height } = bitmap;
  const step = Math.max(1, Math.ceil(Math.sqrt((width * height) / MOST_CELLS)));
  const name = file.name || "picture.png";
  return { number: ++number, file, name, bitmap, width, height, step, uploaded: false, imageId: null };
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const stem = () => state.picture.name.replace(/\.[^.]*$/, "") || "picture";

/** What the left bundle found, as a COCO data set of one picture. */
export function cocoOf(model) {
  const { picture } = state;
  const bundle = modelOf(model);
  const names = [...new Set(state.prompts.map(nameOf))];
  return {
    info: {
      description: `Found by samforge with the bundle ${model}`,
      bundle: { name: model, digest: bundle.digest, verified: bundle.verdict.held },
      threshold: state.threshold,
      date_created: new Date().toISOString(),
    },
    images: [{ id: 1, file_name: picture.name, width: picture.width, height: picture.height }],
    categories: names.map((name, index) => ({ id: index + 1, name })),
    annotations: foundBy(model).map(({ prompt, row }, index) => {
      const [left, top, right, bottom] = row.box_xyxy;
      return {
        id: index + 1,
        image_id: 1,
        category_id: names.indexOf(nameOf(prompt)) + 1,
        segmentation: row.rle,
        bbox: [left, top, right - left, bottom - top],
        area: row.area,
        score: row.score,
        iscrowd: 0,
      };
    }),
  };
}

export function saveCoco() {
  const text = JSON.stringify(cocoOf(state.left), null, 1);
  save(new Blob([text], { type: "application/json" }), `${stem()}.coco.json`);
}

export async function savePng() {
  save(await pngOf(state.left), `${stem()}.found.png`);
}
