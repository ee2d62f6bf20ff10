// The page on which a model goes on with a text.

import { ask, byId, copy, keep, kept, make, showTokens, stop, word } from "/page.js";

let tokens = [];

const written = () => tokens.map((token) => token.text).join("");

function show() {
  const place = byId("answer");
  if (byId("boxes").checked) showTokens(place, tokens, another);
  else place.textContent = written();
  for (const name of ["again", "take-over", "copy"]) byId(name).disabled = !tokens.length;
}

async function go(text = byId("text").value) {
  tokens = [];
  kept.text = byId("text").value;
  kept.tokens = tokens;
  byId("answer").setAttribute("aria-busy", "true");
  byId("answer").replaceChildren();
  const mine = tokens;
  await ask({ text }, (event) => {
    if (mine !== tokens) return; // a later question has taken its place
    if (event.kind === "token") tokens.push(event);
    else if (event.kind === "end" && event.text) tokens.push(rest(event.text));
    else return;
    if (byId("boxes").checked) show();
    else byId("answer").append(tokens.at(-1).text);
  });
  if (mine !== tokens) return;
  byId("answer").removeAttribute("aria-busy");
  show();
  keep();
}

const rest = (text) => ({ text, alone: "", probability: 0, likely: [] });

/** Take another token in the place of one, and let the model go on from there. */
function another(index, { text }) {
  const before = tokens.slice(0, index).map((token) => token.text).join("");
  byId("text").value += before + text;
  go();
}

function takeOver() {
  byId("text").value += written();
  tokens = [];
  kept.text = byId("text").value;
  kept.tokens = tokens;
  keep();
  show();
  byId("text").focus();
}

function again() {
  kept.settings.seed = (kept.settings.seed + 1) % 1000000;
  byId("seed").value = kept.settings.seed;
  go();
}

export function draw(main) {
  const button = (id, onclick) =>
    make("button", { type: "button", id, onclick, "data-word": id });
  main.replaceChildren(
    make("label", { for: "text", "data-word": "text" }),
    make("textarea", {
      id: "text", rows: 5, spellcheck: "false",
      onkeydown: (key) => {
        if (key.key === "Enter" && (key.ctrlKey || key.metaKey)) {
          key.preventDefault();
          go();
        }
      },
    }),
    make("p", { class: "row" },
      button("go", () => go()), button("stop", stop), button("again", again),
      button("take-over", takeOver), button("copy", () => copy(byId("text").value + written())),
      make("label", {}, make("input", { type: "checkbox", id: "boxes", onchange: show }),
        " ", make("span", { "data-word": "boxes" }))),
    make("section", { "aria-labelledby": "answer-title" },
      make("h2", { id: "answer-title", "data-word": "answer" }),
      make("div", { id: "answer", class: "text" })));
  byId("text").value = kept.text ?? word("first_text");
  tokens = kept.tokens ?? [];
  show();
}
