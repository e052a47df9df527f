// The pieces that views are made of. Whatever came from elsewhere becomes a text node, never markup.

import { ask } from "./api.js";

export const LABELS = ["negative", "neutral", "positive"];

const percents = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
const times = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const LONG = 600;

/** An element: `properties` are set on it, `data` and `aria…` as attributes; strings become text nodes. */
export function el(tag, { data = {}, style = {}, attributes = {}, ...properties } = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, properties);
  Object.assign(made.dataset, data);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  for (const [name, value] of Object.entries(style)) made.style.setProperty(name, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function percent(share) {
  return percents.format(share);
}

export function announce(message) {
  document.getElementById("status").textContent = message;
}

/** Shows the problem where the user asked; null clears it. */
export function complain(place, problem) {
  const wait = problem?.retryAfter ? ` in ${problem.retryAfter} s.` : "";
  const again = wait && !problem.message.endsWith("again") ? ". Try again" : "";
  place.replaceChildren(
    ...(problem
      ? [
          el(
            "div",
            { className: "problem", attributes: { role: "alert" } },
            el("strong", {}, problem.title ?? "Something went wrong"),
            el("p", {}, `${again ? problem.message.replace(/\.$/, "") : problem.message}${again}${wait}`),
            problem.errors?.length > 1
              ? el("ul", {}, ...problem.errors.map(({ loc, msg }) => el("li", {}, `${loc.slice(1).join(" › ")}: ${msg}`)))
              : null,
          ),
        ]
      : []),
  );
}

/** A text as its author wrote it; a long one is cut until it is asked for. */
export function quote(text) {
  const quoted = el("blockquote", { className: "prose", dir: "auto" }, text);
  if (text.length <= LONG) return quoted;
  quoted.classList.add("cut");
  const more = el("button", { type: "button", className: "link", textContent: "Show all" });
  more.addEventListener("click", () => {
    more.textContent = quoted.classList.toggle("cut") ? "Show all" : "Show less";
  });
  return el("div", {}, quoted, more);
}

export function chip({ sentiment, confidence, model_version: version }, { named = false } = {}) {
  return el(
    "span",
    { className: "chip", data: { sentiment } },
    named ? el("span", { className: "chip-version" }, `version ${version}`) : null,
    el("b", {}, sentiment),
    ` ${percent(confidence)}`,
  );
}

/** The three probabilities in one line. */
export function spectrum(scores) {
  const label = LABELS.map((name) => `${name} ${percent(scores[name])}`).join(", ");
  return el(
    "div",
    { className: "spectrum", title: label, attributes: { role: "img", "aria-label": label } },
    ...LABELS.map((name) => el("i", { data: { sentiment: name }, style: { "--share": scores[name] } })),
  );
}

/** The three probabilities as bars. */
export function bars(scores) {
  const top = Math.max(...Object.values(scores));
  return el(
    "dl",
    { className: "bars" },
    ...LABELS.map((name) =>
      el(
        "div",
        { className: scores[name] === top ? "top-score" : "", data: { sentiment: name } },
        el("dt", {}, name),
        el("dd", {}, el("i", { style: { "--share": scores[name] } }), el("span", {}, percent(scores[name]))),
      ),
    ),
  );
}

/** Where the time went, as the platform and this page measured it. */
export function timing(stages, milliseconds) {
  const within = stages.reduce((total, stage) => total + stage.milliseconds, 0);
  const parts = [...stages, { name: "the rest", milliseconds: Math.max(0, milliseconds - within) }];
  return el(
    "div",
    { className: "timing" },
    el(
      "div",
      { className: "lanes", attributes: { "aria-hidden": "true" } },
      ...parts.map((part) => el("i", { data: { stage: part.name }, style: { "--share": part.milliseconds / milliseconds } })),
    ),
    el(
      "p",
      { className: "hint" },
      el("b", {}, `${milliseconds.toFixed(0)} ms`),
      " in all: ",
      ...parts.map((part) =>
        el("span", { className: "stage", data: { stage: part.name } }, `${part.name} ${part.milliseconds.toFixed(1)} ms`),
      ),
    ),
  );
}

/** What people said of a prediction, and two buttons to say it. */
export function feedback(prediction, given) {
  const judgements = [...given];
  const said = el("ul", { className: "said" });
  const place = el("div", { className: "answer" });
  const [right, wrong] = ["Correct", "Wrong"].map((name) =>
    el("button", { type: "button", className: "judge", textContent: name, attributes: { "aria-pressed": "false" } }),
  );
  const form = correction(prediction);

  const show = () => said.replaceChildren(...judgements.map(judgement));
  const send = async (body) => {
    complain(place, null);
    right.disabled = wrong.disabled = true;
    try {
      const { content } = await ask("v1/feedback", { body: { prediction_id: prediction.id, ...body } });
      // A later judgement replaces the caller's earlier one, which keeps its date.
      const earlier = judgements.findIndex((each) => each.created_at === content.created_at);
      judgements.splice(earlier < 0 ? judgements.length : earlier, 1, content);
      show();
      form.hidden = true;
      right.setAttribute("aria-pressed", content.is_correct);
      wrong.setAttribute("aria-pressed", !content.is_correct);
      announce("Feedback stored.");
    } catch (problem) {
      complain(place, problem);
    } finally {
      right.disabled = wrong.disabled = false;
    }
  };

  wrong.setAttribute("aria-expanded", "false");
  const unfold = (open) => {
    form.hidden = !open;
    wrong.setAttribute("aria-expanded", open);
  };
  right.addEventListener("click", () => send({ is_correct: true }).then(() => unfold(false)));
  wrong.addEventListener("click", () => {
    unfold(form.hidden);
    if (!form.hidden) form.querySelector("input").focus();
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const { label, comment } = Object.fromEntries(new FormData(form));
    await send({ is_correct: false, label, comment });
    wrong.setAttribute("aria-expanded", !form.hidden);
    if (form.hidden) wrong.focus();
  });
  show();
  const question = el("div", { className: "judges", attributes: { role: "group", "aria-label": "Is this right?" } },
    el("span", { className: "hint", attributes: { "aria-hidden": "true" } }, "Is this right?"), right, wrong);
  return el("div", { className: "feedback" }, said, question, form, place);
}

function correction({ id, sentiment }) {
  const choices = [...LABELS.filter((label) => label !== sentiment), ""].map((label, index) =>
    el(
      "label",
      { className: "choice", data: { sentiment: label } },
      el("input", { type: "radio", name: "label", value: label, checked: index === 0 }),
      label || "can’t say",
    ),
  );
  const comment = el("input", { type: "text", name: "comment", id: `comment-${id}`, maxLength: 4000, autocomplete: "off" });
  return el(
    "form",
    { className: "correction", hidden: true },
    el("fieldset", {}, el("legend", {}, "What is it really?"), ...choices),
    el("label", { htmlFor: comment.id }, "Comment, if you like"),
    el("div", { className: "joined" }, comment, el("button", { type: "submit", className: "primary", textContent: "Save" })),
  );
}

export function judgement({ is_correct: isCorrect, label, comment }) {
  const verdict = isCorrect ? "Judged correct" : "Judged wrong";
  return el(
    "li",
    { data: { correct: isCorrect } },
    el("b", {}, verdict),
    label && !isCorrect ? el("span", {}, ", really ", el("b", { data: { sentiment: label } }, label)) : null,
    comment ? el("q", { className: "prose", dir: "auto" }, comment) : null,
  );
}

/** Why an answer means little: its version doesn't know what the text says. */
function unsupported({ supported, mostly_unknown: unknown, language, model_version: version }) {
  if (supported !== false) return null;
  const why = unknown
    ? `Version ${version} doesn't know most of these characters`
    : `This is in “${language}”, a language that version ${version} doesn't know`;
  return el("p", { className: "hint" }, `${why}: its answer means little.`);
}

/** One prediction with its text; `measured`, for a fresh one, opens it up. */
export function card(prediction, text, { measured = null, findSimilar }) {
  const similar = el("button", { type: "button", className: "link", textContent: "Find similar" });
  similar.addEventListener("click", () => findSimilar(text));
  const { model, model_version: version, arm, predicted_at: at } = prediction;
  return el(
    "article",
    { className: measured ? "panel card fresh" : "panel card", data: { sentiment: prediction.sentiment } },
    el(
      "header",
      {},
      chip(prediction),
      el("time", { className: "hint", dateTime: at, title: at }, times.format(new Date(at))),
    ),
    quote(text),
    prediction.truncated ? el("p", { className: "hint" }, "Longer than the encoder reads: only its beginning was judged.") : null,
    unsupported(prediction),
    spectrum(prediction.scores),
    measured ? bars(prediction.scores) : null,
    measured ? timing(measured.stages, measured.milliseconds) : null,
    el("p", { className: "hint meta" }, `${model}, version ${version}, ${arm} `, el("code", {}, prediction.id)),
    el("footer", {}, feedback(prediction, prediction.feedback ?? []), similar),
  );
}
