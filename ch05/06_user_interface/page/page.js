// What the three pages share: words, models, settings, and an answer as it comes.
// The part in the middle is a module of its own for each page, named by /about.

export const byId = (id) => document.getElementById(id);

/** An element with attributes and children; texts stay texts, whatever is in them. */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

// --- Words ---------------------------------------------------------------------------

let words = {};
let language = "en";

export function word(name, values = {}) {
  const text = words[language][name] ?? words.en[name] ?? name;
  return text.replace(/\{(\w+)\}/g, (_, key) => values[key]);
}

function sayWords() {
  document.documentElement.lang = language;
  document.title = word(`title_${about.kind}`);
  for (const element of document.querySelectorAll("[data-word]")) {
    const name = element.dataset.word;
    element.textContent = word(name === "title" ? `title_${about.kind}` : name);
  }
}

/** Say something below the page, and to a screen reader once. */
export function tell(text) {
  byId("status").textContent = text;
}

// --- What is kept when the page is loaded again --------------------------------------

let about;
export let kept = {};

export function keep() {
  try {
    localStorage.setItem(`gpt-by-hand ${about.kind}`, JSON.stringify(kept));
  } catch {
    tell(word("not_kept")); // the browser's store is full or shut
  }
}

function remember() {
  let found = null;
  try {
    found = JSON.parse(localStorage.getItem(`gpt-by-hand ${about.kind}`));
  } catch { /* a damaged store: begin anew */ }
  kept = found && typeof found === "object" ? found : {};
  kept.settings = { ...about.defaults, ...kept.settings };
}

// --- Models and settings --------------------------------------------------------------

const RANGES = {
  temperature: [0, 2, 0.1],
  top_k: [0, 1000, 1],
  top_p: [0.05, 1, 0.05],
  max_new_tokens: [1, 1024, 1],
  seed: [0, 999999, 1],
};

function showSettings() {
  const numbers = Object.keys(about.defaults).map((name) => {
    const [min, max, step] = RANGES[name];
    const input = make("input", {
      type: "number", id: name, min, max, step, "aria-describedby": `${name}-why`,
      onchange: () => {
        if (input.value !== "" && input.checkValidity()) {
          kept.settings[name] = Number(input.value);
          keep();
        } else {
          tell(word("range", { name: word(name), min, max }));
          input.value = kept.settings[name];
        }
      },
    });
    input.value = kept.settings[name];
    return make("p", {},
      make("label", { for: name, "data-word": name }), input,
      make("small", { id: `${name}-why`, "data-word": `${name}_why` }));
  });
  byId("numbers").replaceChildren(...numbers);
}

function showModels() {
  byId("model").replaceChildren(
    ...about.models.map((one) => make("option", { value: one.name }, one.title)));
  if (about.models.some((one) => one.name === kept.model)) byId("model").value = kept.model;
  kept.model = byId("model").value;
  byId("model").onchange = () => { kept.model = byId("model").value; keep(); };
}

// --- An answer as it comes ------------------------------------------------------------

let asking = null;

export const isAsking = () => asking !== null;

/** End what is being written: the server notices that nobody listens. */
export const stop = () => asking?.abort();

/**
 * Send a question, and call `take` with each event of its answer.
 *
 * Resolves with the reason why it ended: "end", "stop", "length", "stopped", "error".
 */
export async function ask(question, take) {
  stop();
  const mine = asking = new AbortController();
  const sent = { ...kept.settings, model: kept.model, ...question };
  let reason = "error";
  document.body.classList.add("asking");
  tell(word("writing"));
  try {
    const answer = await fetch("/ask", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(sent),
      signal: mine.signal,
    });
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    for await (const event of events(answer.body)) {
      if (event.kind === "error") throw new Error(event.error.message);
      if (event.kind === "waiting") tell(word("waiting", { before: event.before }));
      else if (event.kind === "end") reason = event.reason;
      take(event);
    }
    tell(word(`ended_${reason}`));
  } catch (problem) {
    reason = mine.signal.aborted ? "stopped" : "error";
    const lost = problem instanceof TypeError ? word("lost") : problem.message;
    tell(reason === "stopped" ? word("ended_stopped") : lost);
  } finally {
    if (asking === mine) {
      asking = null;
      document.body.classList.remove("asking");
    }
  }
  return reason;
}

/** The events of a stream: each stands in a line, with an empty line after it. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (waiting + value).split("\n\n");
    waiting = lines.pop();
    for (const line of lines) yield JSON.parse(line.slice("data: ".length));
  }
}

// --- Tokens as boxes ------------------------------------------------------------------

export const percent = (share) =>
  share < 0.0005 ? "< 0.1 %" : `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;

/** A white space as something that can be seen. */
const visible = (text) => text.replace(/\n/g, "⏎").replace(/ /g, "␣") || "∅";

/**
 * Show tokens as buttons that tell what else could have come.
 *
 * The arrow keys go from one to the next. `choose(index, {id, text})` is called when
 * another token is taken in the place of one.
 */
export function showTokens(place, tokens, choose) {
  const more = make("div", { class: "likely", role: "group" });
  const boxes = tokens.map((token, index) => {
    const box = make("button", {
      type: "button", class: "token", tabindex: index === 0 ? 0 : -1,
      "aria-label": `${visible(token.alone)}, ${percent(token.probability)}`,
      onclick: () => open(index), onkeydown: (key) => move(key, index),
    }, token.alone);
    box.style.setProperty("--share", token.probability);
    return box;
  });

  function move(key, index) {
    const next = { ArrowRight: index + 1, ArrowLeft: index - 1 }[key.key];
    if (boxes[next] === undefined) return;
    key.preventDefault();
    boxes[index].tabIndex = -1;
    boxes[next].tabIndex = 0;
    boxes[next].focus();
  }

  function open(index) {
    const token = tokens[index];
    const known = token.likely.some(([id]) => id === token.id);
    const chosen = known ? [] : [[token.id, token.alone, token.probability]];
    const rows = [...token.likely, ...chosen].map(([id, text, share]) => {
      const bar = make("span", { class: "bar" });
      bar.style.setProperty("--share", share);
      return make("li", {},
        make("button", {
          type: "button", onclick: () => choose(index, { id, text }),
          "aria-current": id === token.id,
          "aria-label": word("take", { text: visible(text), share: percent(share) }),
        }, visible(text)), bar, ` ${percent(share)}`);
    });
    more.replaceChildren(
      make("h3", {}, word("likely", { text: visible(token.alone) })),
      make("ol", {}, ...rows));
    boxes[index].after(more);
    for (const box of boxes) box.removeAttribute("aria-expanded");
    boxes[index].setAttribute("aria-expanded", "true");
  }

  place.replaceChildren(...boxes);
}

// --- Start ----------------------------------------------------------------------------

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    tell(word("copied"));
  } catch {
    tell(word("not_copied"));
  }
}

function exportAll() {
  const data = JSON.stringify(kept, null, 1);
  const link = make("a", {
    href: URL.createObjectURL(new Blob([data], { type: "application/json" })),
    download: `${about.kind}.json`,
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

async function begin() {
  [about, words] = await Promise.all(
    ["/about", "/words.json"].map(async (place) => (await fetch(place)).json()));
  remember();
  language = kept.language ?? (navigator.language.startsWith("ja") ? "ja" : "en");
  byId("language").value = language;
  showModels();
  const page = await import(`/${about.kind}.js`);
  const draw = () => { showSettings(); page.draw(byId("main")); sayWords(); };
  byId("language").onchange = () => {
    kept.language = language = byId("language").value;
    keep();
    draw();
  };
  byId("usual").onclick = () => { kept.settings = { ...about.defaults }; keep(); draw(); };
  byId("export").onclick = exportAll;
  byId("clear").onclick = () => {
    stop();
    kept = { settings: kept.settings, model: kept.model, language: kept.language };
    keep();
    draw();
    tell(word("cleared"));
  };
  document.addEventListener("keydown", (key) => {
    if (key.key === "Escape" && isAsking()) stop();
  });
  draw();
}

begin().catch((problem) => tell(`${problem}`));
