// Asks this server for one adapted answer, and shows what happens to the model on the way. No dependencies.

const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
// Which field of the form a field of the request comes from.
const FIELDS = {
  prompt: "query",
  max_tokens: "tokens",
  temperature: "temperature",
  "tttnn.mode": "mode",
  "tttnn.num_neighbors": "neighbors",
  "tttnn.context_neighbors": "context",
  "tttnn.deadline_ms": "deadline",
  "tttnn.where.source": "source",
};
// How an answer is made, and which fields of the form mean nothing to it.
const MODES = {
  exact: ["The model is trained on the neighbors of the text; a limit of seconds ends the training early.", []],
  auto: ["Experts are merged, neighbors are read before the text, and a limit of seconds says how much is trained.", []],
  instant: ["Experts that were trained before are merged; nothing is trained.", ["neighbors"]],
  base: ["The model as it is.", ["neighbors", "context"]],
};
// Stages in the order in which they are; others come last.
const STAGES = ["queue", "embed", "search", "read", "select", "tokenize", "train", "observe", "generate", "score", "restore"];
const MOST_WORDS = 1200; // that are compared: the table of them has a square of cells
let running = null; // AbortController of the request that runs
let losses = []; // on the query, after each neighbor
let expected = 0; // neighbors that will be trained on

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

function say(text, { wrong = false, where = "status" } = {}) {
  at(where).textContent = text;
  at(where).classList.toggle("wrong", wrong);
}

const signed = (value, digits) => (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(digits);

const share = (part) => (part < 0.005 ? "< 1 %" : `${(100 * part).toFixed(0)} %`);

// --- what the server is asked, and what it says where it does not answer ---

class Refusal extends Error {
  constructor(status, { message = "", code = "", param = "" } = {}, wait = null) {
    super(message);
    Object.assign(this, { status, code, param, wait });
  }

  static async of(reply) {
    const said = await reply.json().catch(() => ({}));
    return new Refusal(reply.status, said.error, reply.headers.get("retry-after"));
  }
}

async function send(path, body, signal) {
  const key = at("key").value;
  const headers = { ...(body ? { "content-type": "application/json" } : {}), ...(key ? { authorization: `Bearer ${key}` } : {}) };
  const reply = await fetch(path, {
    method: body ? "POST" : "GET",
    headers,
    body: body && JSON.stringify(body),
    signal,
    // A key that is typed here is the one that counts, not one that the browser remembers.
    credentials: key ? "omit" : "same-origin",
  });
  if (!reply.ok) throw await Refusal.of(reply);
  return reply;
}

// One sentence about what went wrong.
function sentence(error) {
  if (error.name === "AbortError") return "Stopped; every weight is back.";
  if (!(error instanceof Refusal)) return "The server does not answer: start it again, then ask again.";
  const again = `ask again in ${error.wait ?? 5} s.`;
  if (error.status === 401) return at("key").value ? "The server does not know this key." : "The server wants a key.";
  if (error.code === "would_miss_deadline") return `${error.message.replace(/^the answer/, "The answer")}.`;
  if (error.status === 429) return `The server has too much to do: ${again}`;
  if (error.code === "engine_died") return `The engine ended at this request and starts anew from the same weights: ${again}`;
  if (error.status === 503) return `The server is not ready (${error.code.replaceAll("_", " ")}): ${again}`;
  return error.message.replace(/^tttnn\./, "").replace(/\.?$/, ".");
}

// Say what went wrong, at the field that it is about where it is about one.
function complain(error, where = "status") {
  say(sentence(error), { wrong: error.name !== "AbortError", where });
  if (error.status === 401) at("key-field").hidden = false;
  const field = error.status === 401 ? "key" : FIELDS[error.param];
  if (!field) return;
  at(field).setAttribute("aria-invalid", "true");
  at(field).setAttribute("aria-errormessage", where);
  at(field).focus();
}

async function describe() {
  try {
    const info = await (await send("info")).json();
    const documents = info.datastore ? info.datastore.documents.toLocaleString("en") : 0;
    at("about").textContent = `${info.model.name}, adapted to the neighbors of each query among ${documents} documents`;
    at("neighbors").max = at("context").max = Math.max(info.limits.max_neighbors, info.settings.num_neighbors);
    at("neighbors").value = Math.min(info.settings.num_neighbors, 5);
    at("mode").replaceChildren(...info.modes.map((mode) => element("option", mode, { value: mode })));
    at("mode").value = info.modes.includes(info.settings.mode) ? info.settings.mode : "exact";
    explainMode();
  } catch (error) {
    if (error.status === 401) {
      at("about").textContent = "What is served is told to those with a key.";
      complain(error);
      return;
    }
    const reason = error instanceof Refusal ? `The model is not there yet (${error.code})` : "The server does not answer";
    at("about").textContent = `${reason}; looking again every 2 s`;
    setTimeout(describe, 2000);
  }
}

// Say what the chosen mode does, and close the fields that it does not look at.
function explainMode() {
  const [meaning, unused] = MODES[at("mode").value];
  say(meaning, { where: "mode-hint" });
  for (const id of ["neighbors", "context"]) at(id).disabled = unused.includes(id);
}

// Events of a stream, [name, data], as they come; a comment, which says how far a request is, has the name ":".
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
      if (data === undefined) yield [":", lines[0].replace(/^: /, "")];
      else if (data !== "[DONE]") yield [name, JSON.parse(data)];
    }
  }
}

function asked() {
  const given = (id, scale = 1) => (at(id).disabled || at(id).value === "" ? undefined : scale * Number(at(id).value));
  const sources = at("source").value.split(",").map((name) => name.trim()).filter(Boolean);
  return {
    prompt: at("query").value,
    max_tokens: Number(at("tokens").value),
    temperature: Number(at("temperature").value),
    stream: true,
    tttnn: {
      mode: at("mode").value,
      num_neighbors: given("neighbors"), // a field without a value is not sent
      context_neighbors: given("context"),
      deadline_ms: given("deadline", 1000),
      compare: true,
      events: true,
      ...(sources.length ? { where: { source: sources } } : {}),
    },
  };
}

async function ask() {
  running?.abort();
  const mine = (running = new AbortController());
  const request = asked();
  begin(request);
  let ended = false;
  try {
    const reply = await send("v1/completions", request, mine.signal);
    for await (const [name, data] of events(reply.body)) {
      if (running !== mine) return;
      if (data.error) throw new Refusal(0, data.error);
      ended ||= show(name, data);
    }
    if (!ended) throw new TypeError("the stream ended before its end");
  } catch (error) {
    if (running === mine) complain(error);
  } finally {
    if (running === mine) {
      running = null;
      if (document.activeElement === at("stop")) at("go").focus();
      at("stop").disabled = true;
      at("progress").hidden = true;
    }
  }
}

// --- what is shown of an answer ---

function begin(request) {
  losses = [];
  expected = 0;
  for (const field of document.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
  for (const old of document.querySelectorAll("#neighbors-shown tbody")) old.remove();
  for (const id of ["adapted", "base", "loss", "loss-figure", "difference"]) at(id).replaceChildren();
  for (const id of ["intro", "training", "answers", "spent"]) at(id).hidden = true;
  const last = request.prompt.split("\n").at(-1);
  for (const end of document.querySelectorAll("[data-end]")) end.textContent = (last.length > 60 ? "…" : "") + last.slice(-60);
  at("how").textContent = "Adapted to the neighbors";
  at("receipt").value = "";
  say("", { where: "replayed" });
  at("stop").disabled = false;
  say(request.tttnn.mode === "base" ? "Writing…" : "Searching…");
}

// Show one event; say whether it was the last one.
function show(name, data) {
  if (name === ":") say(data.startsWith("waiting") ? `In the line: ${data}…` : "Working…");
  else if (name === "neighbors") showNeighbors(data.neighbors);
  else if (name === "step") showStep(data);
  else {
    at("answers").hidden = false;
    if (name === "base") at("base").textContent = data.text;
    else {
      at("adapted").append(data.choices[0]?.text ?? "");
      if (data.tttnn) finish(data.tttnn);
      else say("Writing…");
    }
  }
  return Boolean(data.tttnn);
}

function showNeighbors(neighbors) {
  at("training").hidden = false;
  at("neighbors-box").hidden = neighbors.length === 0;
  at("falling").hidden = neighbors.length === 0;
  at("no-neighbors").hidden = neighbors.length > 0;
  say(neighbors.length ? "" : "No document is near enough: both answers are of the model as it is.", { where: "no-neighbors" });
  expected = neighbors.length;
  at("neighbors-shown").append(
    ...neighbors.map((neighbor, i) => {
      const group = element("tbody"), row = element("tr", "", { class: "neighbor" }), below = element("tr");
      const distance = element("td", "", { class: "number" });
      distance.append(element("span", neighbor.distance.toFixed(3), { "data-value": neighbor.distance }));
      row.append(
        element("td", String(i + 1), { class: "number" }),
        element("td", neighbor.source ?? "no source"),
        distance,
        element("td", "", { class: "number moved" }),
      );
      const excerpt = element("td", "", { class: "excerpt", colspan: 3 });
      const details = element("details"), summary = element("summary");
      summary.append(element("span", neighbor.excerpt.trim(), { class: "cut" }));
      details.append(summary);
      excerpt.append(details);
      below.append(element("td"), excerpt);
      group.append(row, below);
      return group;
    }),
  );
  say(`${counted(neighbors.length)} found; adapting…`);
}

function showStep(step) {
  losses[step.step] = step.loss;
  expected = step.of;
  at("progress").hidden = false;
  at("progress").max = Math.max(step.of, 1);
  at("progress").value = step.step;
  drawLoss();
  showMoves();
  if (step.step) say(`Trained on neighbor ${step.step} of ${step.of}…`);
}

// What each neighbor did to the loss, the one that lowered it most with a tag.
function showMoves() {
  const moves = losses.slice(1).map((loss, i) => loss - losses[i]);
  const largest = Math.max(...moves.map(Math.abs)) || 1;
  document.querySelectorAll("#neighbors-shown tbody").forEach((group, i) => {
    if (i >= moves.length) return;
    const most = moves[i] < 0 && moves[i] === Math.min(...moves);
    group.classList.toggle("most", most);
    const cell = group.querySelector(".moved"), source = group.querySelector("td:nth-child(2)");
    const bar = shape("svg", { class: "move", viewBox: "0 0 80 4", width: 80, height: 4, "aria-hidden": "true" });
    const long = (80 * Math.abs(moves[i])) / largest;
    bar.append(shape("rect", { class: moves[i] < 0 ? "fell" : "rose", x: 80 - long, width: long, height: 4, rx: 1 }));
    cell.replaceChildren(element("span", signed(moves[i], 4), { "data-value": moves[i] }), bar);
    const tag = most && moves.length > 1 ? [" ", element("span", "helped most", { class: "tag" })] : [];
    source.replaceChildren(source.firstChild, ...tag);
  });
}

// Round numbers between two, about as many as asked for, and the digits that they need.
function ticks(low, high, about) {
  const raw = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * power).find((each) => each >= raw);
  const found = [];
  for (let n = Math.ceil(low / step); n * step <= high; n++) found.push(n * step);
  return [found, Math.max(0, -Math.floor(Math.log10(step)))];
}

function drawLoss() {
  const [width, height, left, right, top, bottom] = [at("loss").clientWidth || 400, 256, 48, 14, 12, 40];
  const spread = Math.max(...losses) - Math.min(...losses) || 0.01;
  const low = Math.min(...losses) - 0.08 * spread, high = Math.max(...losses) + 0.08 * spread;
  const x = (k) => left + ((width - left - right) * k) / Math.max(expected, 1);
  const y = (loss) => top + ((high - loss) / (high - low)) * (height - bottom - top);
  const said = `Loss on the text, in nats per token: ${losses.map((loss) => loss.toFixed(3)).join(", ")}`;
  const picture = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": said });
  const [values, digits] = ticks(low, high, 4);
  for (const value of values) {
    picture.append(
      shape("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      shape("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(digits)),
    );
  }
  const every = Math.max(1, Math.ceil(expected / 8));
  for (let k = 0; k <= expected; k += every)
    picture.append(shape("text", { x: x(k), y: height - bottom + 18, "text-anchor": "middle" }, String(k)));
  picture.append(
    shape("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, "neighbors trained on"),
    shape("polyline", { class: "curve", points: losses.map((loss, k) => `${x(k)},${y(loss)}`).join(" ") }),
    ...losses.map((loss, k) => {
      const dot = shape("circle", { class: k === losses.length - 1 ? "dot last" : "dot", cx: x(k), cy: y(loss), r: 3.5 });
      dot.append(shape("title", {}, `after ${k}: ${loss.toFixed(4)}`));
      return dot;
    }),
  );
  at("loss").replaceChildren(picture);
  const change = losses.at(-1) - losses[0];
  const figure = [`${losses[0].toFixed(3)}`];
  if (losses.length > 1) {
    const percent = `${signed((100 * change) / losses[0], 1)} %`;
    figure.push(` → ${losses.at(-1).toFixed(3)} `, element("small", percent, { class: change < 0 ? "fell" : "rose" }));
  }
  at("loss-figure").replaceChildren(...figure);
}

function finish(about) {
  const trained = about.coverage.trained;
  if (about.base) {
    at("base").textContent = about.base[0];
    markChanges();
  }
  at("difference").textContent = !about.base
    ? ""
    : document.querySelector("#answers mark")
      ? "Marked: words that the other answer does not have there."
      : "Both answers are the same.";
  const total = about.queue_seconds + about.actual_seconds;
  at("spent").hidden = false;
  at("time-figure").textContent = `${total.toFixed(2)} s`;
  drawTime({ queue: about.queue_seconds, ...about.seconds });
  at("receipt").value = JSON.stringify(about, null, 1);
  const ways = waysOf(about.adaptations.map((adaptation) => adaptation.report));
  at("how").textContent = !ways.length ? "Not adapted" : ways.length === 1 && trained ? "Adapted to the neighbors" : `Adapted: ${ways.join(", ")}`;
  const to = ways.length === 1 && trained ? `adapted to ${counted(trained)}` : ways.join(", ");
  say(`Done in ${total.toFixed(2)} s: ${ways.length ? `${to}, every weight is back` : "not adapted"}.`);
}

const counted = (n) => `${n} ${n === 1 ? "neighbor" : "neighbors"}`;

// What made an answer another one than that of the model as it is, by the reports of its adaptations.
function waysOf(reports) {
  const sum = (count) => reports.reduce((all, report) => all + count(report), 0);
  const trained = sum((report) => report.neighbors.length), merged = sum((report) => report.experts?.used.length ?? 0);
  const read = sum((report) => report.context.filter((neighbor) => neighbor.tokens).length);
  return [
    ...(merged ? [`${merged} ${merged === 1 ? "expert" : "experts"} merged`] : []),
    ...(trained ? [`trained on ${counted(trained)}`] : []),
    ...(read ? [`${counted(read)} read before it`] : []),
  ];
}

// Marks words of two texts that are in one and not, in this order, in the other.
function markChanges() {
  const [after, before] = ["adapted", "base"].map((id) => at(id).textContent.split(/(\s+)/));
  const [rows, columns] = [Math.min(after.length, MOST_WORDS), Math.min(before.length, MOST_WORDS)];
  const table = Array.from({ length: rows + 1 }, () => new Uint16Array(columns + 1));
  for (let i = rows - 1; i >= 0; i--)
    for (let j = columns - 1; j >= 0; j--)
      table[i][j] = after[i] === before[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
  const shown = { adapted: [], base: [] };
  const put = (id, word, own) => shown[id].push(own && word.trim() ? element("mark", word) : document.createTextNode(word));
  const mark = (id, rest) => {
    at(id).replaceChildren(...shown[id], rest);
    joinMarks(at(id));
  };
  let i = 0, j = 0;
  while (i < rows || j < columns) {
    if (i < rows && j < columns && after[i] === before[j]) {
      put("adapted", after[i++], false);
      put("base", before[j++], false);
    } else if (j >= columns || (i < rows && table[i + 1][j] >= table[i][j + 1])) put("adapted", after[i++], true);
    else put("base", before[j++], true);
  }
  mark("adapted", after.slice(rows).join(""));
  mark("base", before.slice(columns).join(""));
}

// Marks with nothing but spaces between them become one.
function joinMarks(place) {
  for (const first of place.querySelectorAll("mark")) {
    const space = first.nextSibling, second = space?.nextSibling;
    if (second?.nodeName !== "MARK" || !/^ +$/.test(space.textContent)) continue;
    second.prepend(...first.childNodes, space);
    first.remove();
  }
}

// The five longest stages, in the order in which they were, and what the others took together.
function drawTime(seconds) {
  const place = (name) => (STAGES.includes(name) ? STAGES.indexOf(name) : STAGES.length);
  const stages = Object.entries(seconds).filter(([, value]) => value > 0).sort(([a], [b]) => place(a) - place(b));
  const longest = [...stages].sort((a, b) => b[1] - a[1]).slice(0, 5);
  const shown = stages.filter((stage) => longest.includes(stage));
  const rest = stages.filter((stage) => !longest.includes(stage)).reduce((sum, [, value]) => sum + value, 0);
  if (rest > 0) shown.push(["other", rest]);
  const total = shown.reduce((sum, [, value]) => sum + value, 0);
  const label = shown.map(([name, value]) => `${name} ${value.toFixed(3)} s`).join(", ");
  const picture = shape("svg", { viewBox: "0 0 1000 20", preserveAspectRatio: "none", role: "img", "aria-label": `Seconds by stage: ${label}` });
  let from = 0;
  shown.forEach(([, value], i) => {
    picture.append(shape("rect", { class: `f${i}`, x: from, width: (1000 * value) / total, height: 20 }));
    from += (1000 * value) / total;
  });
  at("time").replaceChildren(picture);
  at("stages").replaceChildren(
    ...shown.map(([name, value], i) => {
      const row = element("tr"), first = element("td"), second = element("td", "", { class: "number" });
      const swatch = shape("svg", { class: "swatch", viewBox: "0 0 8 8", "aria-hidden": "true" });
      swatch.append(shape("rect", { class: `f${i}`, width: 8, height: 8 }));
      first.append(swatch, name);
      second.append(element("span", value.toFixed(3), { "data-value": value }));
      row.append(first, second, element("td", share(value / total), { class: "number" }));
      return row;
    }),
  );
}

// --- receipts ---

// The report in a receipt, in a whole reply of the API, or itself; null where the text is no JSON.
function reportOf(text) {
  try {
    const held = JSON.parse(text);
    const about = held?.tttnn ?? held;
    return about?.adaptations?.[0]?.report ?? about?.report ?? about;
  } catch {
    return null;
  }
}

async function replay() {
  const where = "replayed";
  const report = reportOf(at("receipt").value);
  if (report === null) {
    say("A receipt is JSON, whole, as Copy gives it.", { wrong: true, where });
    at("receipt").focus();
    return;
  }
  at("replay").disabled = true;
  say("Training again…", { where });
  try {
    const said = await (await send("v1/replay", { report })).json();
    const steps = said.steps === 1 ? "1 step" : `${said.steps} steps`;
    const difference = `the losses differ by up to ${said.largest_difference.toExponential(1)}`;
    say(`${steps}: ${said.same ? "every loss is the same to the last bit" : difference}.`, { wrong: !said.same, where });
  } catch (error) {
    complain(error, where);
  } finally {
    at("replay").disabled = false;
  }
}

async function copy() {
  const where = "replayed";
  try {
    await navigator.clipboard.writeText(at("receipt").value);
    say("Copied.", { where });
  } catch {
    // A browser gives the clipboard to safe addresses alone.
    at("receipt").select();
    say("Marked: Ctrl+C copies it.", { where });
  }
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
at("stop").addEventListener("click", () => running?.abort());
at("copy").addEventListener("click", copy);
at("replay").addEventListener("click", replay);
at("key").addEventListener("change", describe);
at("mode").addEventListener("change", explainMode);
addEventListener("resize", () => losses.length && drawLoss());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target !== at("receipt") && at("ask").reportValidity()) ask();
});
describe().then(() => {
  // A link may hold a query: it is asked at once.
  const given = new URLSearchParams(location.hash.slice(1)).get("query");
  if (given) {
    at("query").value = given;
    ask();
  }
});
