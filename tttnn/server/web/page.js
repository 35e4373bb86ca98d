// Asks this server for one adapted answer, and shows what happens to the model on the way. No dependencies.

const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
let running = null; // AbortController of the request that runs
let report = null; // of the last adaptation

function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function shape(name, attributes, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function say(text, wrong = false) {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", wrong);
}

async function describe() {
  const reply = await fetch("info");
  if (!reply.ok) {
    at("about").textContent = "The model is loading…";
    setTimeout(describe, 2000);
    return;
  }
  const info = await reply.json();
  const documents = info.datastore.documents.toLocaleString("en");
  at("about").textContent = `${info.model.name}, adapted to the neighbors of each query among ${documents} documents`;
  at("neighbors").max = Math.max(info.limits.max_neighbors, info.settings.num_neighbors);
  at("neighbors").value = Math.min(info.settings.num_neighbors, 5);
}

// Events of a stream: [name, data] as they come.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    for (let end; (end = held.indexOf("\n\n")) >= 0; held = held.slice(end + 2)) {
      const lines = held.slice(0, end).split("\n");
      const name = lines.find((line) => line.startsWith("event: "))?.slice(7) ?? "";
      const data = lines.find((line) => line.startsWith("data: "))?.slice(6);
      if (data === undefined) say(lines[0].replace(/^: /, ""));
      else if (data !== "[DONE]") yield [name, JSON.parse(data)];
    }
  }
}

function asked() {
  const source = at("source").value.trim();
  return {
    prompt: at("query").value,
    max_tokens: Number(at("tokens").value),
    temperature: Number(at("temperature").value),
    stream: true,
    tttnn: {
      num_neighbors: Number(at("neighbors").value),
      compare: true,
      events: true,
      ...(source ? { where: { source: source.split(",").map((name) => name.trim()) } } : {}),
    },
  };
}

async function ask() {
  running?.abort();
  const mine = (running = new AbortController());
  for (const id of ["adapted", "base", "loss", "rows", "time", "stages", "receipt", "replayed"]) at(id).replaceChildren();
  at("copy").disabled = at("replay").disabled = true;
  at("stop").disabled = false;
  say("Searching…");
  const losses = [];
  try {
    const reply = await fetch("v1/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(asked()),
      signal: mine.signal,
    });
    if (!reply.ok) {
      say((await reply.json()).error.message, true);
      return;
    }
    for await (const [name, data] of events(reply.body)) {
      if (data.error) return say(data.error.message, true);
      if (name === "neighbors") showNeighbors(data.neighbors);
      else if (name === "step") showStep(data, losses);
      else if (name === "base") at("base").textContent = data.text;
      else {
        at("adapted").textContent += data.choices[0]?.text ?? "";
        if (data.tttnn) finish(data.tttnn);
        else say("Writing…");
      }
    }
  } catch (error) {
    say(error.name === "AbortError" ? "Stopped; the weights are put back." : "The connection broke.", error.name !== "AbortError");
  } finally {
    if (running === mine) {
      running = null;
      at("stop").disabled = true;
    }
  }
}

function showNeighbors(neighbors) {
  at("rows").replaceChildren(
    ...neighbors.map((neighbor, i) => {
      const row = element("tr");
      row.append(
        element("td", String(i + 1)),
        element("td", neighbor.source ?? "none"),
        element("td", neighbor.distance.toFixed(4), { class: "number" }),
        element("td", "", { class: "number" }),
        element("td", neighbor.excerpt.slice(0, 160), { class: "excerpt" }),
      );
      return row;
    }),
  );
  say(`${neighbors.length} neighbors found; training…`);
}

function showStep(step, losses) {
  losses[step.step] = step.loss;
  drawLoss(losses, step.of);
  if (step.step === 0) return;
  const moved = losses[step.step] - losses[step.step - 1];
  const rows = [...at("rows").children];
  if (rows[step.step - 1]) rows[step.step - 1].children[3].textContent = signed(moved);
  const moves = losses.slice(1).map((loss, i) => loss - losses[i]);
  rows.forEach((row, i) => row.classList.toggle("most", moves[i] < 0 && moves[i] === Math.min(...moves)));
  say(`Trained on neighbor ${step.step} of ${step.of}`);
}

const signed = (value) => (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(4);

function drawLoss(losses, of) {
  const [width, height, left, bottom] = [640, 180, 52, 28];
  const low = Math.min(...losses), high = Math.max(...losses), span = high - low || 1;
  const x = (k) => left + ((width - left - 16) * k) / Math.max(of, 1);
  const y = (loss) => 14 + ((high - loss) / span) * (height - bottom - 28);
  const change = losses.length > 1 ? `, from ${losses[0].toFixed(3)} to ${losses.at(-1).toFixed(3)}` : "";
  const picture = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Loss on the query${change}` });
  picture.append(
    shape("line", { class: "axis", x1: left, x2: width - 16, y1: height - bottom, y2: height - bottom }),
    shape("text", { x: left - 6, y: y(high) + 4, "text-anchor": "end" }, high.toFixed(3)),
    shape("text", { x: width - 16, y: height - 8, "text-anchor": "end" }, `${of} neighbors`),
    shape("text", { x: left, y: height - 8 }, "0"),
    shape("polyline", { class: "curve", points: losses.map((loss, k) => `${x(k)},${y(loss)}`).join(" ") }),
    ...losses.map((loss, k) => shape("circle", { class: "dot", cx: x(k), cy: y(loss), r: 3.5 })),
  );
  if (high > low) picture.append(shape("text", { x: left - 6, y: y(low) + 4, "text-anchor": "end" }, low.toFixed(3)));
  at("loss").replaceChildren(picture);
  at("loss-caption").textContent = `Nats per token of the text above; lower is likelier${change}.`;
}

function finish(about) {
  markChanges();
  const seconds = { queue: about.queue_seconds, ...about.seconds };
  drawTime(seconds);
  report = about.adaptations[0]?.report ?? null;
  at("receipt").textContent = JSON.stringify(about, null, 1);
  at("copy").disabled = false;
  at("replay").disabled = report === null;
  const trained = about.coverage.trained;
  const how = trained ? `adapted to ${trained} neighbors, weights back` : "not adapted";
  say(`Done in ${(about.queue_seconds + about.actual_seconds).toFixed(2)} s: ${how}.`);
}

// Words of two texts that are in one and not, in this order, in the other.
function markChanges() {
  const [after, before] = ["adapted", "base"].map((id) => at(id).textContent.split(/(\s+)/).slice(0, 1200));
  const table = Array.from({ length: after.length + 1 }, () => new Uint16Array(before.length + 1));
  for (let i = after.length - 1; i >= 0; i--)
    for (let j = before.length - 1; j >= 0; j--)
      table[i][j] = after[i] === before[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
  const shown = { adapted: [], base: [] };
  const put = (id, word, own) => shown[id].push(own && word.trim() ? element("mark", word) : document.createTextNode(word));
  let i = 0, j = 0;
  while (i < after.length || j < before.length) {
    if (i < after.length && j < before.length && after[i] === before[j]) {
      put("adapted", after[i++], false);
      put("base", before[j++], false);
    } else if (j >= before.length || (i < after.length && table[i + 1][j] >= table[i][j + 1])) put("adapted", after[i++], true);
    else put("base", before[j++], true);
  }
  for (const id of ["adapted", "base"]) at(id).replaceChildren(...shown[id]);
}

function drawTime(seconds) {
  const stages = Object.entries(seconds).filter(([, value]) => value > 0).sort((a, b) => b[1] - a[1]);
  const total = stages.reduce((sum, [, value]) => sum + value, 0);
  const shown = stages.slice(0, 5);
  const rest = stages.slice(5).reduce((sum, [, value]) => sum + value, 0);
  if (rest > 0) shown.push(["other", rest]);
  const label = shown.map(([name, value]) => `${name} ${value.toFixed(3)} s`).join(", ");
  const picture = shape("svg", { viewBox: "0 0 640 24", role: "img", "aria-label": `Seconds by stage: ${label}` });
  let begin = 0;
  shown.forEach(([, value], i) => {
    picture.append(shape("rect", { class: `f${i}`, x: begin, y: 0, width: (640 * value) / total, height: 24 }));
    begin += (640 * value) / total;
  });
  at("time").replaceChildren(picture);
  at("stages").replaceChildren(
    ...shown.map(([name, value], i) => {
      const row = element("tr"), first = element("td");
      const swatch = shape("svg", { class: "swatch", viewBox: "0 0 8 8", "aria-hidden": "true" });
      swatch.append(shape("rect", { class: `f${i}`, width: 8, height: 8 }));
      first.append(swatch, name);
      row.append(first, element("td", `${value.toFixed(3)} s`, { class: "number" }));
      return row;
    }),
  );
}

async function replay() {
  at("replayed").textContent = "Training again…";
  const reply = await fetch("v1/replay", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ report }),
  });
  const said = await reply.json();
  at("replayed").textContent = !reply.ok
    ? said.error.message
    : said.same
      ? `${said.steps} steps, every loss the same to the last bit.`
      : `${said.steps} steps, losses differ by up to ${said.largest_difference.toExponential(1)}.`;
}

async function copy() {
  await navigator.clipboard.writeText(at("receipt").textContent);
  at("replayed").textContent = "Copied.";
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
at("stop").addEventListener("click", () => running?.abort());
at("copy").addEventListener("click", copy);
at("replay").addEventListener("click", replay);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && at("ask").reportValidity()) ask();
});
describe().then(() => {
  // A link may hold a query: it is asked at once.
  const given = new URLSearchParams(location.hash.slice(1)).get("query");
  if (given) {
    at("query").value = given;
    ask();
  }
});
