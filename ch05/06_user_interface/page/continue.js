// The page on which a model goes on with a text.

import {
  ask, boxesSwitch, byId, cameToNothing, copy, isAsking, isEnter, isGreedy, keep, keepSoon,
  kept, make, nextSeed, setTexts, showTokens, stop, tell, withAnother, word,
} from "/page.js";

// `kept.text` stands in the field. `kept.asked` is what was last asked, {text, model,
// settings}, and `kept.tokens` what came; `kept.rest` may be half a character at the end.
// Until something new comes, `kept.before` is what these three were.
let boxes = null;

const written = () => kept.tokens.map((token) => token.text).join("");

/** The text with what came. Half a character stays behind: nothing could complete it. */
const both = () => byId("text").value + written();

export function show() {
  const place = byId("answer");
  boxes = null;
  if (byId("boxes").checked) boxes = showTokens(place, kept.tokens, another);
  else place.textContent = written() + kept.rest;
  allow();
}

/** Some buttons do something with an answer, so there must be one. */
function allow() {
  for (const name of ["again", "take-over", "copy"]) byId(name).disabled = !kept.tokens.length;
}

function grow(text) {
  if (boxes) boxes.add();
  else byId("answer").append(text);
}

/** Ask for the tokens that follow a text, and those of its answer that are there. */
async function go(text = byId("text").value, begun = [], model = kept.model) {
  const { asked, tokens, rest } = kept;
  const before = kept.before ?? { asked, tokens, rest };
  const pressed = byId("answer").contains(document.activeElement);
  const known = begun.length;
  kept.text = byId("text").value;
  const now = { text, model, settings: { ...kept.settings } };
  Object.assign(kept, { asked: now, tokens: begun, rest: "", before });
  keep();
  show();
  byId("answer").setAttribute("aria-busy", "true");
  const answer = ask({ text, model, begun: begun.map((token) => token.id) }, (event) => {
    if (kept.tokens !== begun) return; // a later question has taken its place
    if (event.kind === "token") {
      delete kept.before;
      begun.push(event);
      grow(event.text);
    } else if (event.kind === "begun") {
      setTexts(begun, event.texts);
      if (!boxes) show();
    } else if (event.kind === "end") {
      kept.rest = event.text;
    }
  });
  if (pressed && known) boxes?.focus(known - 1);
  const reason = await answer;
  if (kept.tokens !== begun) return;
  byId("answer").removeAttribute("aria-busy");
  delete kept.before;
  // If nothing came, all is as it was.
  const nothing = cameToNothing(reason, known, begun.length);
  if (nothing) Object.assign(kept, before);
  keep();
  if (boxes && !nothing) allow(); // a token that the reader has opened stays open
  else show();
}

/** Take another token in the place of one, and let the model go on from there. */
function another(index, taken) {
  const { text, model } = kept.asked ?? { text: kept.text };
  go(text, withAnother(kept.tokens, index, taken), model);
}

function takeOver() {
  stop();
  byId("answer").removeAttribute("aria-busy");
  byId("text").value = both();
  delete kept.before;
  Object.assign(kept, { text: byId("text").value, asked: null, tokens: [], rest: "" });
  keep();
  show();
  byId("text").focus();
}

async function again() {
  nextSeed();
  await go();
  if (isGreedy() && !isAsking()) tell(() => word("greedy"));
}

export function draw(main) {
  const button = (id, onclick) =>
    make("button", { type: "button", id, onclick, "data-word": id });
  main.replaceChildren(
    make("label", { for: "text", "data-word": "text" }),
    make("textarea", {
      id: "text", rows: 5, spellcheck: "false",
      oninput: () => { kept.text = byId("text").value; keepSoon(); },
      onkeydown: (key) => {
        if (isEnter(key) && (key.ctrlKey || key.metaKey)) {
          key.preventDefault();
          go();
        }
      },
    }),
    make("p", { class: "row" },
      button("go", () => go()), button("stop", stop), button("again", again),
      button("take-over", takeOver), button("copy", () => copy(both())),
      boxesSwitch(show)),
    make("section", { "aria-labelledby": "answer-title" },
      make("h2", { id: "answer-title", "data-word": "answer" }),
      make("div", { id: "answer", class: "text" })));
  byId("text").value = kept.text ?? word("first_text");
  Object.assign(kept, kept.before); // left before anything came
  delete kept.before;
  kept.tokens ??= [];
  kept.rest ??= "";
}
