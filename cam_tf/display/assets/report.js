// The page of `cam-tf report`: photos, their classes and methods, and the raw maps behind them.
const element = (id) => document.getElementById(id);
const data = JSON.parse(element("data").textContent);
const colours = bytesOf(data.colours);
const cases = [...document.querySelectorAll("script.case")];
let shown, chosen = 0;

function build(tag, text, parent) {
  const made = document.createElement(tag);
  made.textContent = text;
  parent.append(made);
  return made;
}

const className = (one) => one.name ?? `class ${one.id}`;

function floats(base64) {
  return new Float32Array(bytesOf(base64).buffer);
}

function listPhotos() {
  if (cases.length < 2) element("photos").parentElement.hidden = true;
  cases.forEach((script, index) => {
    const button = build("button", "", build("li", "", element("photos")));
    const image = build("img", "", button);
    image.loading = "lazy";
    image.alt = "";
    image.src = script.dataset.thumbnail;
    build("span", script.dataset.name, button);
    build("span", script.dataset.label, button);
    button.addEventListener("click", () => open(index));
  });
}

async function open(index) {
  const one = JSON.parse(cases[index].textContent);
  const image = element("photo");
  image.src = one.photo;
  image.alt = `The photo ${one.title}`;
  await image.decode();
  shown = one;
  [...element("photos").querySelectorAll("button")].forEach((button, i) =>
    button.setAttribute("aria-pressed", String(i === index))
  );
  element("name").textContent = one.title;
  element("picture").width = image.naturalWidth;
  element("picture").height = image.naturalHeight;
  element("classes").replaceChildren();
  one.classes.forEach((each, rank) => {
    const text = each.score === null ? "not a number" : shownScore(each.score);
    const tab = build("button", `${className(each)}  ${text}`, element("classes"));
    tab.id = `tab-${rank}`;
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", "panel");
    tab.addEventListener("click", () => choose(rank));
  });
  choose(0);
}

function choose(rank) {
  chosen = rank;
  [...element("classes").children].forEach((tab, i) => {
    tab.setAttribute("aria-selected", String(i === rank));
    tab.tabIndex = i === rank ? 0 : -1;
  });
  element("panel").setAttribute("aria-labelledby", `tab-${rank}`);
  draw();
  showUnits();
}

function onKey(event) {
  const last = shown.classes.length - 1;
  const to = { ArrowRight: chosen + 1, ArrowLeft: chosen - 1, Home: 0, End: last }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  choose((to + last + 1) % (last + 1));
  element(`tab-${chosen}`).focus();
}

function draw() {
  for (const id of ["opacity", "threshold"]) {
    element(`${id}-value`).textContent = `${element(id).value} %`;
  }
  const each = shown.classes[chosen], method = shown.methods[element("method").selectedIndex];
  const map = method.maps[chosen];
  const values = floats(map.values);
  const box = paint(element("picture"), element("photo"), { ...method, values }, {
    size: data.size,
    colours,
    opacity: element("opacity").value / 100,
    threshold: element("threshold").value / 100,
    showBox: element("box").checked,
  });
  const { low, high, good } = range(values);
  element("scale").hidden = !good;
  element("low").textContent = low.toPrecision(3);
  element("high").textContent = high.toPrecision(3);
  element("unit").textContent = method.unit;
  element("caption").textContent = good
    ? `${method.name}: where the evidence for ${className(each)} is`
    : `${method.name}: this map cannot be drawn`;
  const place = box ? `, box from ${percent(box[1])} to ${percent(box[3])} of the width and ` +
    `${percent(box[0])} to ${percent(box[2])} of the height` : "";
  element("picture").setAttribute("aria-label", element("caption").textContent + place);
  element("diagnosis").hidden = map.status === "fine";
  element("diagnosis").textContent = `This map is ${map.status}. ${map.advice}`;
  const logit = each.logit === null ? "not a number" : each.logit.toFixed(3);
  element("numbers").textContent = `Logit ${logit}. ` + (box
    ? `The box holds the largest region above ${element("threshold").value} % of the maximum:${place.slice(5)}.`
    : "No box: the map has no positive part.");
  globalThis.explained = { name: shown.title, classId: each.id, method: method.name, box };
}

const percent = (share) => `${Math.round(100 * share)} %`;

function showUnits() {
  const found = shown.units?.[chosen];
  element("units").hidden = !found;
  if (!found) return;
  const body = element("units").tBodies[0];
  body.replaceChildren();
  const largest = Math.max(...found.top.map(([, value]) => Math.abs(value)));
  for (const [unit, value] of found.top) {
    const row = build("tr", "", body);
    build("th", String(unit), row).scope = "row";
    build("td", value.toFixed(3), row);
    const cell = build("td", `${((100 * value) / found.sum).toFixed(1)} % `, row);
    const bar = build("span", "", cell);
    bar.className = "share";
    bar.style.width = `${(5 * Math.abs(value)) / largest}em`;
  }
}

function start() {
  element("summary").textContent = data.summary;
  for (const [name, value] of Object.entries(data.about)) {
    const row = build("tr", "", element("about"));
    build("th", name, row).scope = "row";
    build("td", String(value), row);
  }
  for (const [name, why] of Object.entries(data.left_out)) {
    element("left-out").hidden = false;
    build("li", `${name}: ${why}`, element("left-out").querySelector("ul"));
  }
  for (const name of data.methods) build("option", name, element("method"));
  element("opacity").value = Math.round(100 * data.opacity);
  element("threshold").value = Math.round(100 * data.threshold);
  const context = element("bar").getContext("2d"), steps = colours.length / 3;
  for (let x = 0; x < 256; x++) {
    const at = 3 * Math.floor((x * steps) / 256);
    context.fillStyle = `rgb(${colours.slice(at, at + 3).join(",")})`;
    context.fillRect(x, 0, 1, 1);
  }
  for (const id of ["method", "opacity", "threshold", "box"]) {
    element(id).addEventListener("input", draw);
  }
  element("classes").addEventListener("keydown", onKey);
  listPhotos();
  if (cases.length) open(0);
  else element("panel").hidden = true;
}

start();
