// The page on which a model answers, and remembers what was said.

import {
  ask, boxesSwitch, byId, bytesOf, cameToNothing, copy, isAsking, isEnter, isGreedy, keep,
  keepSoon, kept, make, nextSeed, roomWith, setTexts, showTokens, stop, tell, withAnother,
  word,
} from "/page.js";

// `kept.turns` is what was said. A turn: {question, tokens, html, reason, model, settings}.
// `html` is made by the server, which lets nothing through but text and harmless marks.
// Until something new comes of the last one, `kept.replaced` are those it takes the place of.
// `kept.question` stands in the field; while an earlier question is edited there,
// `kept.editing` is its number, and `kept.draft` what stood in the field before.
const places = new Map(); // of turns: {element, boxes}

const newTurn = (question, tokens = [], model = kept.model) =>
  ({ question, tokens, html: "", reason: "", model, settings: { ...kept.settings } });

const textOf = (turn) => turn.tokens.map((token) => token.text).join("").trim();

/** The turns as they are if nothing comes of the last one. */
const settled = () =>
  kept.replaced ? [...kept.turns.slice(0, -1), ...kept.replaced] : kept.turns;

/** Whether a question has no answer yet: nothing may take its place, or it were lost. */
function isWaiting() {
  if (!isAsking() || kept.turns.at(-1).tokens.length) return false;
  tell(() => word("busy"));
  return true;
}

// --- What is seen ---------------------------------------------------------------------

export function show() {
  places.clear();
  inLog(() => byId("log").replaceChildren(...kept.turns.flatMap(drawTurn)));
  byId("cancel").hidden = kept.editing === undefined;
}

/** Change the log, and keep in sight what was there: its end, or an earlier place. */
function inLog(change) {
  const log = byId("log");
  const at = log.scrollTop;
  const atEnd = log.scrollHeight - log.clientHeight - at < 40;
  change();
  log.scrollTop = atEnd ? log.scrollHeight : at;
}

function drawTurn(turn, index) {
  const button = (name, onclick, more = {}) =>
    make("button", { type: "button", onclick, ...more }, word(name));
  const element = make("div", { class: "text said" });
  places.set(turn, { element });
  fill(turn);
  const last = index === kept.turns.length - 1;
  return [
    make("article", { class: "question", "aria-label": word("you") },
      make("h2", {}, word("you")), make("div", { class: "text" }, turn.question),
      make("p", { class: "row" }, button("edit", () => edit(index)))),
    make("article", { class: "answer", "aria-label": word("model") },
      make("h2", {}, word("model")), element,
      make("p", { class: "row" },
        ...(last ? [button("again", again, { id: "again" })] : []),
        button("copy", () => copy(textOf(turn))))),
  ];
}

function fill(turn) {
  const place = places.get(turn);
  place.boxes = null;
  if (byId("boxes").checked) {
    const choose = (index, taken) => another(turn, index, taken);
    place.boxes = showTokens(place.element, turn.tokens, choose);
  } else if (turn.html) {
    place.element.innerHTML = turn.html;
  } else {
    place.element.textContent = textOf(turn);
  }
}

function grow(turn, text) {
  const { boxes, element } = places.get(turn);
  if (boxes) boxes.add();
  else element.append(text);
}

// --- Asking ---------------------------------------------------------------------------

/**
 * Ask the last of some turns, which take the place of those that are there.
 *
 * If nothing comes of it, all is as it was, and the result is false.
 */
async function go(next) {
  const old = settled();
  const turn = next.at(-1);
  const begun = turn.tokens.length;
  const pressed = byId("log").contains(document.activeElement);
  kept.turns = next;
  kept.replaced = old.slice(next.length - 1);
  keep();
  show();
  byId("log").setAttribute("aria-busy", "true");
  byId("log").scrollTop = byId("log").scrollHeight;
  const sent = asSent(next);
  let leftOut = next.length - 1 - sent.turns.length;
  const asked = ask(sent, (event) => {
    if (kept.turns !== next) return; // a later question has taken its place
    if (event.kind === "token") {
      delete kept.replaced;
      turn.tokens.push(event);
      inLog(() => grow(turn, event.text));
    } else if (event.kind === "begun") {
      setTexts(turn.tokens, event.texts);
      if (!places.get(turn).boxes) fill(turn);
    } else if (event.kind === "leftout") {
      leftOut += event.turns;
    } else if (event.kind === "markup") {
      turn.html = event.html;
    }
  });
  // What was pressed is drawn anew: the keyboard stays at the token that was taken, or
  // goes to the button that ends the answer, and back.
  if (pressed && begun) places.get(turn).boxes?.focus(begun - 1);
  else if (pressed) byId("stop").focus();
  turn.reason = await asked;
  if (kept.turns !== next) return true;
  byId("log").removeAttribute("aria-busy");
  delete kept.replaced;
  if (cameToNothing(turn.reason, begun, turn.tokens.length)) {
    kept.turns = old;
    keep();
    show();
    return false;
  }
  if (!places.get(turn).boxes) inLog(() => fill(turn));
  if (pressed && document.activeElement === byId("send")) byId("again").focus();
  if (leftOut) {
    const name = leftOut === 1 ? "left_out_one" : "left_out";
    tell(() => word(name, { turns: leftOut }));
  }
  keep();
  return true;
}

/**
 * A question with what was said before: as tokens, where the model has the same ones.
 *
 * The oldest turns are left out where the server would not take all.
 */
function asSent(turns) {
  const { question, tokens, model } = turns.at(-1);
  const ids = (turn) => turn.tokens.map((token) => token.id);
  const before = turns.slice(0, -1).map((turn) => ({
    question: turn.question,
    ...(turn.model === model ? { ids: ids(turn) } : { text: textOf(turn) }),
  }));
  const sent = { question, begun: ids({ tokens }), model };
  let room = roomWith({ ...sent, turns: [] });
  const isTooMuch = (turn) => (room -= bytesOf(JSON.stringify(turn)) + 1) < 0; // 1: a comma
  return { ...sent, turns: before.slice(before.findLastIndex(isTooMuch) + 1) };
}

async function send() {
  const field = byId("question");
  const question = field.value;
  if (isAsking() || !question.trim()) {
    const why = isAsking() ? "busy" : "no_question";
    tell(() => word(why));
    return;
  }
  const { editing } = kept;
  endEditing("");
  if (await go([...kept.turns.slice(0, editing), newTurn(question)])) return;
  if (kept.editing !== undefined) { // meanwhile another one is being edited
    kept.draft = both(question, kept.draft);
    keep();
  } else if (editing === undefined) {
    typed(both(question, field.value));
  } else {
    beginEditing(editing, question);
  }
}

/** Answer the last question again, with the next seed. */
async function again() {
  if (isWaiting()) return;
  nextSeed();
  const { question } = kept.turns.at(-1);
  const came = await go([...kept.turns.slice(0, -1), newTurn(question)]);
  if (came && isGreedy() && !isAsking()) tell(() => word("greedy"));
}

/** Take another token in the place of one, and let the model go on from there. */
function another(turn, index, taken) {
  if (isWaiting()) return;
  if (turn !== kept.turns.at(-1) && !confirm(word("cuts"))) return;
  const tokens = withAnother(turn.tokens, index, taken);
  const before = kept.turns.slice(0, kept.turns.indexOf(turn));
  go([...before, newTurn(turn.question, tokens, turn.model)]);
}

// --- The field ------------------------------------------------------------------------

const both = (...texts) => texts.filter(Boolean).join("\n");

function typed(text) {
  byId("question").value = kept.question = text;
  keep();
}

/** Put a question into the field again; nothing goes before it is sent. */
function edit(index) {
  const isEdited = kept.editing !== undefined;
  if (isEdited && byId("question").value !== kept.turns[kept.editing]?.question) {
    tell(() => word("editing_other"));
    byId("question").focus();
    return;
  }
  beginEditing(index, kept.turns[index].question);
  tell(() => word("editing"));
  byId("question").focus();
}

function beginEditing(index, question) {
  if (kept.editing === undefined) kept.draft = byId("question").value;
  kept.editing = index;
  byId("cancel").hidden = false;
  typed(question);
}

/** The field has what stood there before an edit, or else the text that is given. */
function endEditing(text) {
  const draft = kept.editing === undefined ? text : kept.draft;
  delete kept.editing;
  delete kept.draft;
  byId("cancel").hidden = true;
  typed(draft);
}

export function draw(main) {
  const button = (id, onclick) =>
    make("button", { type: "button", id, onclick, "data-word": id });
  main.replaceChildren(
    make("div", { id: "log", role: "log", tabindex: 0, "data-label": "log" }),
    make("label", { for: "question", "data-word": "question" }),
    make("textarea", {
      id: "question", rows: 3,
      oninput: () => { kept.question = byId("question").value; keepSoon(); },
      onkeydown: (key) => {
        if (isEnter(key) && !key.shiftKey) {
          key.preventDefault();
          send();
        }
      },
    }),
    make("p", { class: "row" },
      button("send", send), button("stop", stop),
      button("cancel", () => { endEditing(""); byId("question").focus(); tell(() => ""); }),
      boxesSwitch(() => kept.turns.forEach(fill))));
  kept.turns ??= [];
  if (kept.replaced) { // left before anything came
    const { question } = kept.turns.at(-1);
    if (kept.replaced.every((turn) => turn.question !== question)) {
      kept.question = both(question, kept.question);
    }
    kept.turns = settled();
    delete kept.replaced;
  }
  byId("question").value = kept.question ?? "";
}
