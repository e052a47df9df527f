// The console's views: which one is shown, what each asks of the API, and where its answer goes.

import { Problem, ask, session } from "./api.js";
import { announce, card, chip, complain, el, judgement, quote } from "./parts.js";

const MOST = 20_000;
const PAGE = 20;
const KEPT = 20;

const similarities = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2, signDisplay: "negative" });

const at = (id) => document.getElementById(id);
const answerOf = (form) => form.querySelector(".answer");
const fieldsOf = (form) => Object.fromEntries(new FormData(form));

// ---- Asking: one request a view, the last one counts

const running = new Map();

async function work(view, place, task) {
  running.get(view)?.abort();
  const controller = new AbortController();
  running.set(view, controller);
  const section = at(`view-${view}`);
  section.setAttribute("aria-busy", "true");
  complain(place, null);
  try {
    await task(controller.signal);
  } catch (problem) {
    if (problem.name === "AbortError" || controller.signal.aborted) return;
    if (!(problem instanceof Problem)) throw problem;
    if (problem.status === 401 && view !== "key") return leave(problem.message);
    complain(place, problem);
  } finally {
    if (running.get(view) === controller) section.removeAttribute("aria-busy");
  }
}

// ---- Versions: from the catalogue, or, where the key may not read it, from the predictions seen

const catalogue = { models: [], seen: new Map(), readable: false };

async function readCatalogue(signal) {
  try {
    const { items } = (await ask("v1/models", { signal })).content;
    const answers = await Promise.all(items.map(({ name }) => ask(`v1/models/${encodeURIComponent(name)}`, { signal })));
    catalogue.models = answers.map(({ content }) => content);
    catalogue.readable = true;
  } finally {
    offerVersions();
  }
}

function learn({ model, model_version: version }) {
  const name = JSON.stringify([model, version]);
  if (catalogue.readable || catalogue.seen.has(name)) return;
  catalogue.seen.set(name, { model, version });
  offerVersions();
}

function offerVersions() {
  const groups = new Map(catalogue.models.map(({ name, versions }) => [name, versions]));
  if (!catalogue.readable) {
    for (const { model, version } of catalogue.seen.values()) groups.set(model, [...(groups.get(model) ?? []), { version }]);
  }
  for (const select of document.querySelectorAll("select.versions")) {
    const chosen = select.value;
    const free = select.id === "version" ? "Chosen by the platform" : "Any";
    select.replaceChildren(
      el("option", { value: "", textContent: free }),
      ...[...groups].map(([model, versions]) =>
        el("optgroup", { label: model }, ...versions.map((each) => el("option", { value: JSON.stringify([model, each.version]), textContent: title(each) }))),
      ),
    );
    select.value = [...select.options].some(({ value }) => value === chosen) ? chosen : "";
  }
}

// A version that idles on purpose is no fault.
const STATES = { absent: "asleep" };

function title({ version, aliases = [], kind, state }) {
  const facts = [...aliases, kind, state === "ready" ? null : (STATES[state] ?? state)].filter(Boolean);
  return facts.length ? `Version ${version}: ${facts.join(", ")}` : `Version ${version}`;
}

function versionOf(value) {
  const [model, version] = value ? JSON.parse(value) : [];
  return { model, version };
}

// ---- Predict

function count() {
  const length = [...at("text").value.trim()].length;
  at("text-count").textContent = `${length.toLocaleString("en")} of ${MOST.toLocaleString("en")} characters`;
  at("text-count").classList.toggle("over", length > MOST);
}

async function predict(event) {
  event?.preventDefault();
  const form = at("form-predict");
  const { text, version } = fieldsOf(form);
  await work("predict", answerOf(form), async (signal) => {
    const { content, ...measured } = await ask("v1/predict", { body: { text, ...versionOf(version) }, signal });
    learn(content);
    at("made").querySelector(".empty")?.remove();
    at("made").querySelector(".fresh")?.classList.remove("fresh");
    at("made").prepend(card(content, text.trim(), { measured, findSimilar }));
    [...at("made").children].slice(KEPT).forEach((old) => old.remove());
    announce(`${content.sentiment}, ${Math.round(content.confidence * 100)} percent, by version ${content.model_version}.`);
  });
}

// ---- Similar

function findSimilar(text) {
  at("query").value = text;
  location.hash = "#similar";
  scrollTo(0, 0);
  similar();
}

async function similar(event) {
  event?.preventDefault();
  const form = at("form-similar");
  const { text, k, sentiment, judged, exact } = fieldsOf(form);
  const filters = {
    ...(sentiment && { sentiment }),
    ...(judged === "none" ? { has_feedback: false } : judged && { is_correct: judged === "correct" }),
  };
  await work("similar", answerOf(form), async (signal) => {
    const { content } = await ask("v1/similar", { body: { text, k: Number(k), filters, exact: exact === "on" }, signal });
    const { results, complete } = content;
    const many = results.length === 1 ? "1 text" : `${results.length} texts`;
    at("found-note").textContent = complete ? `${many}.` : `${many}; some that fit may be missing. Compare every text to be sure.`;
    at("found-note").hidden = false;
    at("found").replaceChildren(...results.map(neighbour));
    announce(at("found-note").textContent);
  });
}

function neighbour({ text, similarity, predictions, feedback }) {
  const again = el("button", { type: "button", className: "link", textContent: "Find similar" });
  again.addEventListener("click", () => findSimilar(text));
  return el(
    "li",
    { className: "panel near" },
    el(
      "p",
      { className: "similarity", style: { "--share": Math.max(0, similarity) } },
      el("b", {}, similarities.format(similarity)),
      el("span", { className: "hint" }, "similarity"),
    ),
    el(
      "div",
      {},
      quote(text),
      el("p", { className: "chips" }, ...predictions.map((each) => chip(each, { named: true })), again),
      feedback.length ? el("ul", { className: "said" }, ...feedback.map(judgement)) : null,
    ),
  );
}

// ---- Predictions: a stack of cursors leads back

let cursors = [""];

async function list() {
  const form = at("form-predictions");
  const { version, since, until, ...rest } = fieldsOf(form);
  const named = versionOf(version);
  const moment = (local) => local && new Date(local).toISOString();
  const query = {
    ...rest,
    model: named.model,
    model_version: named.version,
    since: moment(since),
    until: moment(until),
    limit: PAGE,
    cursor: cursors.at(-1),
  };
  await work("predictions", answerOf(form), async (signal) => {
    const { content } = await ask("v1/predictions", { query, signal });
    content.items.forEach(learn);
    const cards = content.items.map((item) => card(item, item.text, { findSimilar }));
    at("listed").replaceChildren(...(cards.length ? cards : [el("p", { className: "empty" }, "No prediction fits these filters.")]));
    at("newer").disabled = cursors.length === 1;
    at("older").disabled = content.next_cursor === null;
    at("older").dataset.cursor = content.next_cursor ?? "";
    at("page").textContent = `Page ${cursors.length}`;
    at("newer").parentElement.hidden = at("newer").disabled && at("older").disabled;
    announce(`${cards.length} predictions, page ${cursors.length}.`);
  });
}

function turn(move) {
  move();
  list().then(() => at("title-predictions").focus());
}

function listAnew() {
  cursors = [""];
  list();
}

// ---- Models

async function models() {
  const place = answerOf(at("view-models"));
  await work("models", place, async (signal) => {
    await readCatalogue(signal);
    at("models").replaceChildren(
      ...catalogue.models.map(({ name, versions }) =>
        el("section", {}, el("h2", {}, name), el("div", { className: "versions-grid" }, ...versions.map((each) => version(name, each)))),
      ),
    );
  });
}

function version(model, each) {
  const metrics = Object.entries(each.metrics);
  const use = el("button", { type: "button", className: "link", textContent: "Predict with it" });
  use.addEventListener("click", () => {
    at("version").value = JSON.stringify([model, each.version]);
    location.hash = "#predict";
  });
  return el(
    "article",
    { className: "panel version", data: { state: each.state } },
    el(
      "header",
      {},
      el("h3", {}, `Version ${each.version}`),
      ...each.aliases.map((alias) => el("span", { className: "alias" }, alias)),
      el("span", { className: "state" }, STATES[each.state] ?? each.state),
    ),
    each.name ? el("p", {}, each.name) : null,
    each.description ? el("p", { className: "hint" }, each.description) : null,
    each.reason ? el("p", { className: each.state === "failed" ? "problem" : "hint" }, each.reason) : null,
    el("p", { className: "hint" }, each.kind, each.encoder ? " on encoder " : "", each.encoder ? el("code", { title: each.encoder }, each.encoder.slice(0, 12)) : null),
    metrics.length
      ? el("dl", { className: "metrics" }, ...metrics.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, Number(value.toFixed(4)).toString()))))
      : el("p", { className: "hint" }, "Nothing measured."),
    use,
  );
}

// ---- The key, and which view is shown

const VIEWS = { predict: null, similar: null, predictions: listAnew, models };

function show(focus = true) {
  const asked = location.hash.slice(1);
  const view = session.key ? (asked in VIEWS ? asked : "predict") : "key";
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== `view-${view}`;
  at("tabs").hidden = at("forget").hidden = view === "key";
  for (const tab of at("tabs").children) {
    if (tab.hash === `#${view}`) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  const heading = at(`title-${view}`);
  document.title = view === "key" ? "Valence" : `${heading.textContent} · Valence`;
  if (focus) {
    scrollTo(0, 0);
    heading.focus({ preventScroll: true });
  }
  VIEWS[view]?.();
  if (view === "key") at("key").focus();
}

async function open(event) {
  event.preventDefault();
  const place = answerOf(at("form-key"));
  const key = at("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(key)) {
    complain(place, new Problem({ title: "That is no key", detail: "Paste the whole key; it has no blanks in it." }));
    return;
  }
  session.open(key);
  await work("key", place, async (signal) => {
    try {
      await ask("v1/predictions", { query: { limit: 1 }, signal });
    } catch (problem) {
      session.close();
      throw problem;
    }
    at("key").value = "";
    enter();
  });
}

function enter() {
  show();
  // A client's key may not read the catalogue: its versions are learnt from what it sees.
  readCatalogue().catch(() => {});
}

/** The page starts anew, so that nothing the key could see stays in it. */
function leave(why = "") {
  session.close(why);
  location.replace(location.pathname);
}

at("form-key").addEventListener("submit", open);
at("forget").addEventListener("click", () => leave());
at("form-predict").addEventListener("submit", predict);
at("form-similar").addEventListener("submit", similar);
at("form-predictions").addEventListener("submit", (event) => event.preventDefault());
at("form-predictions").addEventListener("change", listAnew);
at("form-predictions").addEventListener("reset", () => setTimeout(listAnew));
at("newer").addEventListener("click", () => turn(() => cursors.pop()));
at("older").addEventListener("click", () => turn(() => cursors.push(at("older").dataset.cursor)));
at("text").addEventListener("input", count);
for (const form of [at("form-predict"), at("form-similar")]) {
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
}
for (const example of document.querySelectorAll(".example")) {
  example.addEventListener("click", () => {
    at("text").value = example.textContent;
    count();
    predict();
  });
}
at("view-predictions").querySelector(".refresh").addEventListener("click", listAnew);
at("view-models").querySelector(".refresh").addEventListener("click", models);
addEventListener("hashchange", () => show());

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  at("main").focus();
});

offerVersions();
if (session.key) enter();
else show(false);
const farewell = session.farewell();
if (farewell) complain(answerOf(at("form-key")), new Problem({ title: "The key is no longer good", detail: farewell }));
