// Raw maps to pictures and boxes, by the rules of cam_tf.resize_maps, heatmaps, overlay and boxes.
"use strict";

/** Stretches a map (h, w) linearly over (height, width), half-pixel centres. */
function stretch(map, h, w, height, width) {
  const rows = weights(h, height), columns = weights(w, width);
  const out = new Float32Array(height * width);
  for (let y = 0; y < height; y++) {
    const [top, bottom, down] = rows[y];
    for (let x = 0; x < width; x++) {
      const [left, right, across] = columns[x];
      const upper = map[top * w + left] * (1 - across) + map[top * w + right] * across;
      const lower = map[bottom * w + left] * (1 - across) + map[bottom * w + right] * across;
      out[y * width + x] = upper * (1 - down) + lower * down;
    }
  }
  return out;
}

function weights(old, wanted) {
  return Array.from({ length: wanted }, (_, i) => {
    const centre = Math.min(Math.max(((i + 0.5) * old) / wanted - 0.5, 0), old - 1);
    const first = Math.floor(centre);
    return [first, Math.min(first + 1, old - 1), centre - first];
  });
}

/** The least and the largest value, and whether the map can be drawn: finite and not flat. */
function range(map) {
  let low = Infinity, high = -Infinity, finite = true;
  for (const value of map) {
    finite &&= Number.isFinite(value);
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  const flat = high - low <= 1e-6 * Math.max(Math.abs(low), Math.abs(high));
  return { low, high, good: finite && !flat };
}

/**
 * The largest 8-connected part of what is above a share of the maximum.
 * Returns its mask (0 or 1) and its box [ymin, xmin, ymax, xmax], relative; no part: box null.
 */
function largestRegion(values, height, width, threshold) {
  const { high } = range(values);
  const labels = new Int32Array(values.length);
  const mask = new Uint8Array(values.length);
  if (!(high > 0 && Number.isFinite(high))) return { mask, box: null };
  let count = 0, best = 0, most = 0;
  const stack = [];
  for (let start = 0; start < values.length; start++) {
    if (labels[start] || !(values[start] > threshold * high)) continue;
    labels[start] = ++count;
    stack.push(start);
    let size = 0;
    while (stack.length) {
      const at = stack.pop(), y = Math.floor(at / width), x = at % width;
      size++;
      for (let v = Math.max(y - 1, 0); v <= Math.min(y + 1, height - 1); v++) {
        for (let u = Math.max(x - 1, 0); u <= Math.min(x + 1, width - 1); u++) {
          const next = v * width + u;
          if (!labels[next] && values[next] > threshold * high) {
            labels[next] = count;
            stack.push(next);
          }
        }
      }
    }
    if (size > most) [most, best] = [size, count];
  }
  let [top, left, bottom, right] = [height, width, 0, 0];
  for (let at = 0; at < labels.length; at++) {
    if (labels[at] !== best) continue;
    mask[at] = 1;
    const y = Math.floor(at / width), x = at % width;
    [top, left] = [Math.min(top, y), Math.min(left, x)];
    [bottom, right] = [Math.max(bottom, y + 1), Math.max(right, x + 1)];
  }
  return { mask, box: [top / height, left / width, bottom / height, right / width] };
}

/**
 * Draws a map over a photo: the colours, then the box of what is above the threshold.
 * map: {values, height, width}; size: the [height, width] in which the box is found;
 * colours: 3 bytes for each step from the least to the largest value. Returns the box.
 */
function paint(canvas, photo, map, { size, colours, opacity, threshold, showBox = true }) {
  const context = canvas.getContext("2d");
  const { height, width } = canvas;
  context.drawImage(photo, 0, 0, width, height);
  const { low, high, good } = range(map.values);
  if (!good) return null;
  const stretched = stretch(map.values, map.height, map.width, height, width);
  const picture = context.getImageData(0, 0, width, height);
  const steps = colours.length / 3;
  for (let at = 0; at < stretched.length; at++) {
    const share = (stretched[at] - low) / (high - low);
    const step = Math.max(0, Math.min(Math.floor(share * steps), steps - 1));
    for (let c = 0; c < 3; c++) {
      const was = picture.data[4 * at + c];
      picture.data[4 * at + c] = Math.round((1 - opacity) * was + opacity * colours[3 * step + c]);
    }
  }
  context.putImageData(picture, 0, 0);
  const fine = stretch(map.values, map.height, map.width, ...size);
  const { box } = largestRegion(fine, ...size, threshold);
  if (box && showBox) outline(context, box, height, width);
  return box;
}

/** A white line with a dark edge, which shows on any photo. */
function outline(context, [top, left, bottom, right], height, width) {
  const thick = Math.max(2, Math.round(Math.max(height, width) / 200));
  for (const [style, line] of [["#000", 2 * thick], ["#fff", thick]]) {
    context.strokeStyle = style;
    context.lineWidth = line;
    const edge = thick; // keeps a box along the border whole
    const x = Math.max(left * width, edge), y = Math.max(top * height, edge);
    const w = Math.min(right * width, width - edge) - x;
    const h = Math.min(bottom * height, height - edge) - y;
    context.strokeRect(x, y, w, h);
  }
}

/** A score as people read it: per cent of a probability, or the number. */
function shownScore(score) {
  if (!(score >= 0 && score <= 1)) return `score ${score.toFixed(2)}`;
  return score >= 0.0005 || score === 0 ? `${(100 * score).toFixed(1)} %` : "< 0.1 %";
}

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}
