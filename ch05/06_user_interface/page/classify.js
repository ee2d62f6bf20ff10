// The page on which a classifier sorts a message and says which words moved it.

import { ask, byId, isEnter, keep, keepSoon, kept, make, percent, stop, tell, word } from "/page.js";

const NOTICED = 0.005; // half a percent: words that moved the decision less are not marked

// `kept.message` stands in the field. `kept.shown` is what was sorted last: {message,
// model, decision, shares, reason}, the shares without each of its words.

async function go() {
  const message = kept.message = byId("message").value;
  const { model } = kept;
  const mine = kept.shown = { message, model, decision: null, shares: [], reason: "" };
  keep();
  show();
  byId("result").setAttribute("aria-busy", "true");
  const reason = await ask({ message }, (event) => {
    if (event.kind === "decision") mine.decision = event;
    else if (event.kind === "words") mine.shares.push(...event.shares);
    if (mine === kept.shown) show();
  });
  mine.reason = reason;
  if (mine !== kept.shown) return;
  byId("result").removeAttribute("aria-busy");
  const { decision } = mine;
  if (reason === "end" && decision.read < decision.tokens) tell(() => word("cut", decision));
  keep();
  show();
}

export function show() {
  if (!kept.shown?.decision) {
    byId("result").replaceChildren();
    return;
  }
  const { labels, shares } = kept.shown.decision;
  const best = shares.indexOf(Math.max(...shares));
  const rows = labels.map((label, index) => {
    const bar = make("span", { class: "bar" });
    bar.style.setProperty("--share", shares[index]);
    const name = index === best ? make("strong", {}, label) : label;
    return make("tr", {}, make("th", { scope: "row" }, name),
      make("td", {}, percent(shares[index])), make("td", {}, bar));
  });
  byId("result").replaceChildren(
    make("h2", {}, word("sure")), make("table", { class: "shares" }, ...rows),
    make("h2", {}, word("moved")), ...moved(labels[best], shares[best], best));
}

/** Which words moved the decision, or how far it is with finding out. */
function moved(label, share, best) {
  const { decision, shares, reason } = kept.shown;
  const words = Math.floor(decision.parts.length / 2);
  const tried = shares.length;
  if (!reason && !tried) return [make("p", {}, word("looking"))];
  if (reason && words === 1) return [make("p", {}, word("no_words"))];
  if (reason && !tried) return [make("p", {}, word(`ended_${reason}`))];
  const how = tried < words
    ? word(reason ? "moved_part" : "looking", { tried, words }) : word("moved_all");
  return [
    make("p", {}, make("small", {}, `${how} ${word("moved_why")}`)),
    make("p", { class: "text" }, ...marked(label, share, best)),
  ];
}

/** The message, each word in a mark as dark as it moved the decision. */
function marked(label, share, best) {
  const { decision, shares } = kept.shown;
  return decision.parts.map((part, index) => { // blank, word, blank, word, ...
    const left = shares[(index - 1) / 2]?.[best];
    if (left === undefined) return part;
    const by = share - left;
    const told = word("without", { word: part, label, share: percent(left) });
    const mark = make("mark", { class: by < -NOTICED ? "against" : "for", title: told }, part,
      make("span", { class: "unseen" }, ` (${told}) `));
    mark.style.setProperty("--share", Math.min(1, Math.abs(by) * 2));
    return mark;
  });
}

export function draw(main) {
  main.replaceChildren(
    make("label", { for: "message", "data-word": "message" }),
    make("textarea", {
      id: "message", rows: 5,
      oninput: () => { kept.message = byId("message").value; keepSoon(); },
      onkeydown: (key) => {
        if (isEnter(key) && (key.ctrlKey || key.metaKey)) {
          key.preventDefault();
          go();
        }
      },
    }),
    make("p", { class: "row" },
      make("button", { type: "button", id: "go", onclick: go, "data-word": "sort" }),
      make("button", { type: "button", id: "stop", onclick: stop, "data-word": "stop" })),
    make("section", { id: "result" }));
  if (kept.shown?.decision && !kept.shown.decision.parts) kept.shown = null; // an older page's
  if (kept.shown) kept.shown.reason ||= "stopped"; // loaded again before it was done
  byId("message").value = kept.message ?? kept.shown?.message ?? word("first_message");
}
