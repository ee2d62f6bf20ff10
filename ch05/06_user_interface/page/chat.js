// The page on which a model answers, and remembers what was said.

import { ask, byId, copy, keep, kept, make, showTokens, stop, tell, word } from "/page.js";

// A turn: {question, tokens, html, reason}. `html` is made by the server, which lets
// nothing through but text and a few harmless marks.
let turns = [];

const textOf = (turn) => turn.tokens.map((token) => token.text).join("").trim();

function save() {
  kept.turns = turns;
  keep();
}

function show() {
  byId("log").replaceChildren(...turns.flatMap(drawTurn));
}

function drawTurn(turn, index) {
  const button = (name, onclick) => make("button", { type: "button", onclick }, word(name));
  const said = make("div", { class: "text said" });
  turn.place = said;
  fill(turn);
  const last = index === turns.length - 1;
  return [
    make("article", { class: "question", "aria-label": word("you") },
      make("h2", {}, word("you")), make("div", { class: "text" }, turn.question),
      make("p", { class: "row" }, button("edit", () => edit(index)))),
    make("article", { class: "answer", "aria-label": word("model") },
      make("h2", {}, word("model")), said,
      make("p", { class: "row" },
        ...(last ? [button("again", again)] : []),
        button("copy", () => copy(textOf(turn))))),
  ];
}

function fill(turn) {
  if (byId("boxes").checked) {
    showTokens(turn.place, turn.tokens, (index, chosen) => another(turn, index, chosen));
  } else if (turn.html) {
    turn.place.innerHTML = turn.html;
  } else {
    turn.place.textContent = textOf(turn);
  }
}

/** Ask the last question of the list; what is said before goes along. */
async function go(begun = []) {
  const turn = turns.at(-1);
  const before = turns.slice(0, -1).map((one) => ({
    question: one.question, ids: one.tokens.map((token) => token.id),
  }));
  Object.assign(turn, { tokens: [...begun], html: "", reason: "" });
  show();
  byId("log").setAttribute("aria-busy", "true");
  turn.place.scrollIntoView({ block: "nearest" });
  const question = { question: turn.question, turns: before, begun: begun.map((t) => t.id) };
  let leftOut = 0;
  turn.reason = await ask(question, (event) => {
    if (!turns.includes(turn)) return;
    if (event.kind === "token") {
      turn.tokens.push(event);
      if (byId("boxes").checked) fill(turn);
      else turn.place.append(event.text);
    } else if (event.kind === "leftout") {
      leftOut = event.turns;
    } else if (event.kind === "markup") {
      turn.html = event.html;
    }
  });
  if (!turns.includes(turn)) return;
  byId("log").removeAttribute("aria-busy");
  fill(turn);
  if (leftOut) tell(word("left_out", { turns: leftOut }));
  save();
}

function send() {
  const question = byId("question").value;
  if (!question.trim()) {
    tell(word("no_question"));
    return;
  }
  byId("question").value = "";
  turns.push({ question, tokens: [] });
  go();
}

/** Answer the last question again, with the next seed. */
function again() {
  kept.settings.seed = (kept.settings.seed + 1) % 1000000;
  byId("seed").value = kept.settings.seed;
  if (kept.settings.temperature === 0) tell(word("greedy"));
  go();
}

/** Put a question back into the field; what came after it goes. */
function edit(index) {
  stop();
  byId("question").value = turns[index].question;
  turns = turns.slice(0, index);
  save();
  show();
  byId("question").focus();
}

/** Take another token in the place of one, and let the model go on from there. */
function another(turn, index, { id, text }) {
  turns = turns.slice(0, turns.indexOf(turn) + 1);
  go([...turn.tokens.slice(0, index), { ...turn.tokens[index], id, text, alone: text }]);
}

export function draw(main) {
  main.replaceChildren(
    make("div", { id: "log", role: "log", tabindex: 0, "aria-label": word("log") }),
    make("label", { for: "question", "data-word": "question" }),
    make("textarea", {
      id: "question", rows: 3,
      onkeydown: (key) => {
        if (key.key === "Enter" && !key.shiftKey && !key.isComposing) {
          key.preventDefault();
          send();
        }
      },
    }),
    make("p", { class: "row" },
      make("button", { type: "button", id: "send", onclick: send, "data-word": "send" }),
      make("button", { type: "button", id: "stop", onclick: stop, "data-word": "stop" }),
      make("label", {},
        make("input", { type: "checkbox", id: "boxes", onchange: () => turns.forEach(fill) }),
        " ", make("span", { "data-word": "boxes" }))));
  turns = kept.turns ?? [];
  show();
}
