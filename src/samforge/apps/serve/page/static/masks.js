// Masks: COCO's run lengths to crops, crops to fills and outlines.

/** Lengths of the runs of COCO's compressed text: 5 bits a character, differences from the third on. */
export function runsFromCounts(counts) {
  if (Array.isArray(counts)) return counts;
  const runs = [];
  let at = 0;
  while (at < counts.length) {
    let value = 0;
    let shift = 0;
    let more = true;
    let bits = 0;
    while (more) {
      bits = counts.charCodeAt(at++) - 48;
      value |= (bits & 31) << shift;
      more = (bits & 32) !== 0;
      shift += 5;
    }
    if (bits & 16) value |= shift < 32 ? -1 << shift : 0;
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}

/** Every `step`th pixel of a mask, cut to where it is: `{left, top, width, height, on}`. */
export function cropFromRle(rle, step) {
  const [height] = rle.size;
  const columns = columnsFrom(runsFromCounts(rle.counts), height, step);
  if (columns.length === 0) return { left: 0, top: 0, width: 0, height: 0, on: new Uint8Array(0) };
  let [left, right, top, bottom] = [Infinity, -1, Infinity, -1];
  for (const [x, first, last] of columns) {
    left = Math.min(left, x);
    right = Math.max(right, x);
    top = Math.min(top, first);
    bottom = Math.max(bottom, last);
  }
  const [wide, high] = [right - left + 1, bottom - top + 1];
  const on = new Uint8Array(wide * high);
  for (const [x, first, last] of columns) {
    for (let y = first; y <= last; y++) on[(y - top) * wide + x - left] = 1;
  }
  return { left, top, width: wide, height: high, on };
}

/** Runs down the columns that are looked at: `[x, first y, last y]`, in steps. */
function columnsFrom(runs, height, step) {
  const columns = [];
  let at = 0;
  for (let i = 0; i < runs.length; i++) {
    const end = at + runs[i];
    while (i % 2 === 1 && at < end) {
      const x = Math.floor(at / height);
      const stop = Math.min(end, (x + 1) * height);
      if (x % step === 0) {
        const first = Math.ceil((at - x * height) / step);
        const last = Math.floor((stop - 1 - x * height) / step);
        if (first <= last) columns.push([x / step, first, last]);
      }
      at = stop;
    }
    at = end;
  }
  return columns;
}

/** Whether a mask covers a place, in steps. */
export function covers(crop, x, y) {
  const [column, row] = [x - crop.left, y - crop.top];
  if (column < 0 || row < 0 || column >= crop.width || row >= crop.height) return false;
  return crop.on[row * crop.width + column] === 1;
}

/**
 * The rim of a mask as closed paths, in steps: through the middle of each edge between a pixel of it
 * and one beside it, as marching squares go. Fill it by the even-odd rule.
 */
export function outlineOf(crop) {
  const path = new Path2D();
  const next = edgesOf(crop);
  const wide = crop.width + 1;
  while (next.size) {
    let [from] = next.keys();
    let [to] = next.get(from);
    let begun = false;
    for (;;) {
      const [x, y] = [(from % wide) + (to % wide), Math.floor(from / wide) + Math.floor(to / wide)];
      const place = [crop.left + x / 2, crop.top + y / 2];
      if (begun) path.lineTo(...place);
      else path.moveTo(...place);
      begun = true;
      const ways = next.get(from);
      ways.splice(ways.indexOf(to), 1);
      if (ways.length === 0) next.delete(from);
      const onward = next.get(to);
      if (!onward) break;
      [from, to] = [to, onward[0]];
    }
    path.closePath();
  }
  return path;
}

/** Unit edges around the mask, each with the mask at its right: ends by begin, as corner numbers. */
function edgesOf({ on, width, height }) {
  const next = new Map();
  const wide = width + 1;
  const at = (x, y) => x >= 0 && y >= 0 && x < width && y < height && on[y * width + x] === 1;
  const edge = (from, to) => {
    if (next.has(from)) next.get(from).push(to);
    else next.set(from, [to]);
  };
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!at(x, y)) continue;
      const corner = y * wide + x;
      if (!at(x, y - 1)) edge(corner, corner + 1);
      if (!at(x + 1, y)) edge(corner + 1, corner + 1 + wide);
      if (!at(x, y + 1)) edge(corner + 1 + wide, corner + wide);
      if (!at(x - 1, y)) edge(corner + wide, corner);
    }
  }
  return next;
}
