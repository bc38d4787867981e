// The page of `cam-tf export --format web`: a photo in, its maps out, all in the browser.
const element = (id) => document.getElementById(id);
const data = JSON.parse(element("data").textContent);
const colours = bytesOf(data.colours);
const LARGEST_PICTURE = 1024; // pixels: the drawing follows the sliders
let session, photo, answer, chosen = 0;

const take = (id) => {
  const bytes = bytesOf(element(id).textContent);
  element(id).remove(); // the text takes memory
  return bytes;
};

async function load() {
  const code = URL.createObjectURL(new Blob([take("runtime")], { type: "text/javascript" }));
  globalThis.ort = await import(code);
  ort.env.wasm.wasmBinary = take("wasm");
  ort.env.wasm.numThreads = 1; // several need headers that a file does not have
  session = await ort.InferenceSession.create(take("model"), { executionProviders: ["wasm"] });
  say("Ready.");
}

function say(text) {
  element("status").textContent = text;
}

/** The pixels of a photo, (H, W) and RGBA, upright, over white. */
function pixelsOf(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height).data;
}

/** Pillow's bilinear filter along one axis, whose support grows with the reduction. */
function filter(old, wanted) {
  const scale = old / wanted, support = Math.max(scale, 1);
  return Array.from({ length: wanted }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const last = Math.min(Math.trunc(centre + support + 0.5), old);
    const shares = [];
    for (let at = first; at < last; at++) {
      shares.push(Math.max(1 - Math.abs((at - centre + 0.5) / support), 0));
    }
    const total = shares.reduce((sum, one) => sum + one, 0);
    return [first, shares.map((one) => one / total)];
  });
}

/** Warps RGBA pixels (H, W) to RGB (height, width), rounded after each axis as in 8 bits. */
function resized(pixels, H, W, height, width) {
  const columns = filter(W, width), rows = filter(H, height);
  const narrow = new Uint8ClampedArray(H * width * 3);
  for (let y = 0; y < H; y++) {
    for (let x = 0; x < width; x++) {
      const [first, shares] = columns[x];
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let k = 0; k < shares.length; k++) {
          sum += shares[k] * pixels[4 * (y * W + first + k) + c];
        }
        narrow[3 * (y * width + x) + c] = sum;
      }
    }
  }
  const out = new Float32Array(height * width * 3);
  for (let y = 0; y < height; y++) {
    const [first, shares] = rows[y];
    for (let at = 0; at < 3 * width; at++) {
      let sum = 0;
      for (let k = 0; k < shares.length; k++) sum += shares[k] * narrow[3 * (first + k) * width + at];
      out[3 * y * width + at] = Math.floor(sum + 0.5);
    }
  }
  return out;
}

async function explain(file) {
  if (!session) return say("The network is still loading: try again in a moment.");
  say("Looking…");
  element("result").hidden = true;
  await new Promise((done) => setTimeout(done)); // lets the page say so
  try {
    photo = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    return say(`${file.name || "This"} is not a picture that this browser can read: use a JPEG or PNG.`);
  }
  try {
    const [height, width] = data.size;
    const input = resized(pixelsOf(photo), photo.height, photo.width, height, width);
    const images = new ort.Tensor("float32", input, [1, height, width, 3]);
    const { scores, maps } = await session.run({ images });
    answer = explanation(scores, maps);
  } catch (error) {
    return say(`${file.name || "The photo"} could not be explained (${error.message}): try a smaller one.`);
  }
  say(`${file.name || "Photo"}: ${nameOf(answer.ids[0])}, ${shownScore(answer.scores[0])}`);
  show();
}

/** The likeliest classes, with their scores and maps. */
function explanation(scores, maps) {
  const [, classes, height, width] = maps.dims;
  const order = Array.from(scores.data.keys()).sort((a, b) => scores.data[b] - scores.data[a]);
  const ids = order.slice(0, Math.min(data.top_k, classes));
  const area = height * width;
  return {
    ids,
    scores: ids.map((id) => scores.data[id]),
    maps: ids.map((id) => ({ values: maps.data.slice(id * area, (id + 1) * area), height, width })),
  };
}

const nameOf = (id) => (data.class_names ? data.class_names[id] : `class ${id}`);

function show() {
  element("result").hidden = false;
  const scale = Math.min(1, LARGEST_PICTURE / Math.max(photo.width, photo.height));
  element("picture").width = Math.max(1, Math.round(scale * photo.width));
  element("picture").height = Math.max(1, Math.round(scale * photo.height));
  element("classes").replaceChildren(
    ...answer.ids.map((id, rank) => {
      const button = document.createElement("button");
      button.textContent = `${nameOf(id)}  ${shownScore(answer.scores[rank])}`;
      button.addEventListener("click", () => choose(rank));
      return button;
    })
  );
  choose(0);
}

function choose(rank) {
  chosen = rank;
  [...element("classes").children].forEach((button, i) =>
    button.setAttribute("aria-pressed", String(i === rank))
  );
  draw();
}

function draw() {
  for (const id of ["opacity", "threshold"]) {
    element(`${id}-value`).textContent = `${element(id).value} %`;
  }
  if (!answer) return;
  const map = answer.maps[chosen], name = nameOf(answer.ids[chosen]);
  const box = paint(element("picture"), photo, map, {
    size: data.size,
    colours,
    opacity: element("opacity").value / 100,
    threshold: element("threshold").value / 100,
    showBox: element("box").checked,
  });
  const { low, high, good } = range(map.values);
  element("about").textContent = good
    ? `Bright is evidence for ${name}: from ${low.toPrecision(3)} to ${high.toPrecision(3)}, in ` +
      `units of the logit. The box holds the largest region above ${element("threshold").value} % ` +
      "of the maximum."
    : `The map of ${name} is flat or not finite: it cannot be drawn.`;
  const place = box ? `, box ${box.map((side) => `${Math.round(100 * side)} %`).join(", ")}` : "";
  element("picture").setAttribute("aria-label", `Where the evidence for ${name} is${place}`);
  globalThis.explained = { ...answer, chosen, box }; // for the console, and for tests
}

element("threshold").value = Math.round(100 * data.threshold);
for (const id of ["opacity", "threshold", "box"]) element(id).addEventListener("input", draw);
element("file").addEventListener("change", () => {
  const [file] = element("file").files;
  element("file").value = ""; // the same photo may be chosen again
  if (file) explain(file);
});
addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) explain(file);
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  element("drop").classList.add("over");
});
addEventListener("dragleave", () => element("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  element("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) explain(file);
});
draw();
load().catch((error) => say(`The network could not be loaded (${error.message}).`));
