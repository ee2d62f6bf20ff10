// The page on which a classifier sorts a message and says which words moved it.

import { ask, byId, keep, kept, make, percent, stop, tell, word } from "/page.js";

let shown = null; // {message, decision, shares: by word}

async function go() {
  const message = byId("message").value;
  const mine = shown = { message, decision: null, shares: [] };
  kept.shown = shown;
  byId("result").setAttribute("aria-busy", "true");
  await ask({ message }, (event) => {
    if (event.kind === "decision") mine.decision = event;
    else if (event.kind === "words") mine.shares.push(...event.shares);
    else return;
    if (mine === shown) show();
  });
  if (mine !== shown) return;
  byId("result").removeAttribute("aria-busy");
  const { decision } = mine;
  if (decision && decision.read < decision.tokens) tell(word("cut", decision));
  keep();
}

function show() {
  if (!shown?.decision) {
    byId("result").replaceChildren();
    return;
  }
  const { labels, shares } = shown.decision;
  const best = shares.indexOf(Math.max(...shares));
  const rows = labels.map((label, index) => {
    const bar = make("span", { class: "bar" });
    bar.style.setProperty("--share", shares[index]);
    const name = index === best ? make("strong", {}, label) : label;
    return make("tr", {}, make("th", { scope: "row" }, name),
      make("td", {}, percent(shares[index])), make("td", {}, bar));
  });
  const parts = [
    make("h2", {}, word("sure")), make("table", { class: "shares" }, ...rows),
    make("h2", {}, word("moved")),
  ];
  if (shown.shares.length) {
    parts.push(make("p", {}, make("small", {}, word("moved_why"))),
      make("p", { class: "text" }, ...words(labels[best], shares[best], best)));
  } else {
    parts.push(make("p", {}, word("no_words")));
  }
  byId("result").replaceChildren(...parts);
}

/** The message, each word in a mark as dark as it moved the decision. */
function words(label, share, best) {
  const parts = shown.message.match(/\s+|\S+/g) ?? [];
  let number = -1;
  return parts.map((part) => {
    if (/^\s/.test(part)) return part;
    number += 1;
    const left = shown.shares[number]?.[best];
    if (left === undefined) return part;
    const moved = share - left;
    const told = word("without", { word: part, label, share: percent(left) });
    const mark = make("mark", { class: moved < 0 ? "against" : "for", title: told }, part,
      make("span", { class: "unseen" }, ` (${told}) `));
    mark.style.setProperty("--share", Math.min(1, Math.abs(moved) * 2));
    return mark;
  });
}

export function draw(main) {
  main.replaceChildren(
    make("label", { for: "message", "data-word": "message" }),
    make("textarea", {
      id: "message", rows: 5,
      onkeydown: (key) => {
        if (key.key === "Enter" && (key.ctrlKey || key.metaKey)) {
          key.preventDefault();
          go();
        }
      },
    }),
    make("p", { class: "row" },
      make("button", { type: "button", id: "go", onclick: go, "data-word": "sort" }),
      make("button", { type: "button", id: "stop", onclick: stop, "data-word": "stop" })),
    make("section", { id: "result" }));
  shown = kept.shown ?? null;
  byId("message").value = shown?.message ?? word("first_message");
  show();
}
