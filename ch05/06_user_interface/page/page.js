// What the three pages share: words, models, settings, and an answer as it comes.
// The part in the middle is a module of its own for each page, named by /about: `draw`
// makes it, and `show` says what is there again, in the language of the moment.

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

/** What something is called: on this kind of page, or else on all. */
export function word(name, values = {}) {
  const known = words[language];
  const text = known[`${name}_${about.kind}`] ?? known[name] ?? name;
  return text.replace(/\{(\w+)\}/g, (_, key) => {
    const value = values[key];
    return typeof value === "number" ? value.toLocaleString(language) : value;
  });
}

function sayWords() {
  document.documentElement.lang = language;
  document.title = word("title");
  for (const element of document.querySelectorAll("[data-word]")) {
    element.textContent = word(element.dataset.word);
  }
  for (const element of document.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", word(element.dataset.label));
  }
  tell(told);
}

let told = () => "";

/**
 * Say something below the page, and to a screen reader once.
 *
 * A function says it again in another language. A text is the server's, in English.
 */
export function tell(what) {
  told = what;
  const place = byId("status");
  const text = typeof what === "function" ? what() : what;
  place.lang = typeof what === "function" ? language : "en";
  if (place.textContent !== text) place.textContent = text;
}

// --- What is kept when the page is loaded again --------------------------------------

let about;
let soon = 0;
export let kept = {};

const storeName = () => `gpt-by-hand ${about.kind}`;

/** Keep what is here for this tab, and for the next one that is opened. */
export function keep() {
  clearTimeout(soon);
  soon = 0;
  try {
    const text = JSON.stringify(kept);
    for (const store of [sessionStorage, localStorage]) store.setItem(storeName(), text);
  } catch {
    tell(() => word("not_kept")); // the browser's store is full or shut
  }
}

/** Keep what changes with each key that is pressed. */
export function keepSoon() {
  clearTimeout(soon);
  soon = setTimeout(keep, 300);
}

// Closing or loading again comes at any time, in the middle of a word or an answer.
window.addEventListener("pagehide", () => { if (soon || isAsking()) keep(); });

function remember() {
  let found = null;
  try {
    const name = storeName(); // another tab may have kept something else since
    found = JSON.parse(sessionStorage.getItem(name) ?? localStorage.getItem(name));
  } catch { /* a damaged store: begin anew */ }
  kept = found && typeof found === "object" ? found : {};
  kept.settings = { ...about.defaults, ...kept.settings };
}

// --- Models and settings --------------------------------------------------------------

const WHOLE = ["top_k", "max_new_tokens", "seed"];

function showSettings() {
  const numbers = Object.keys(about.defaults).map((name) => {
    const [min, max] = about.ranges[name];
    const whole = WHOLE.includes(name);
    const change = (value) => {
      input.value = kept.settings[name] = value;
      keep();
    };
    const input = make("input", {
      type: "number", id: name, min, max, step: whole ? 1 : "any",
      "aria-describedby": `${name}-why`,
      onchange: () => {
        if (input.value !== "" && input.checkValidity()) {
          change(Number(input.value));
        } else {
          const wrong = whole ? "range_whole" : "range";
          tell(() => word(wrong, { name: word(name), min, max }));
          input.value = kept.settings[name];
        }
      },
      onkeydown: (key) => {
        const by = { ArrowUp: 0.05, ArrowDown: -0.05 }[key.key];
        if (whole || !by) return; // the browser itself goes by 1
        key.preventDefault();
        const value = Number((Number(input.value) + by).toFixed(3));
        change(Math.min(max, Math.max(min, value)));
      },
    });
    input.value = kept.settings[name];
    return make("p", {},
      make("label", { for: name, "data-word": name }), input,
      make("small", { id: `${name}-why`, "data-word": `${name}_why` }));
  });
  byId("numbers").replaceChildren(...numbers);
}

/** The next seed, so that the same question gets another answer. */
export function nextSeed() {
  const [min, max] = about.ranges.seed;
  kept.settings.seed = kept.settings.seed < max ? kept.settings.seed + 1 : min;
  byId("seed").value = kept.settings.seed;
}

/** Whether each seed writes the same. */
export const isGreedy = () => kept.settings.temperature === 0;

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

const bodyOf = (question) =>
  JSON.stringify({ ...kept.settings, model: kept.model, ...question });

export const bytesOf = (text) => new Blob([text]).size;

/** How many bytes more could be sent with a question. */
export const roomWith = (question) => about.most_bytes - bytesOf(bodyOf(question));

/**
 * Send a question, and call `take` with each event of its answer.
 *
 * Resolves with the reason why it ended: "end", "stop", "length", "stopped", "error".
 */
export async function ask(question, take) {
  stop();
  const mine = asking = new AbortController();
  // A later question may have taken the place of this one: then that one is spoken of.
  const say = (what) => { if (asking === mine) tell(what); };
  const pressed = document.activeElement?.matches("#go, #send");
  let reason = "error";
  let waited = false;
  document.body.classList.add("asking");
  if (pressed) byId("stop").focus(); // the button that was pressed has just gone
  say(() => word("writing"));
  try {
    const body = bodyOf(question);
    const bytes = bytesOf(body);
    if (bytes > about.most_bytes) {
      say(() => word("too_long", { bytes, most: about.most_bytes }));
      return reason;
    }
    const answer = await fetch("/ask", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body,
      signal: mine.signal,
    });
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    for await (const event of events(answer.body)) {
      if (event.kind === "error") throw new Error(event.error.message);
      if (event.kind === "end") reason = event.reason;
      if (event.kind === "waiting") say(() => word("waiting", { before: event.before }));
      else if (waited) say(() => word("writing")); // once: other things are said below, too
      waited = event.kind === "waiting";
      take(event);
    }
    say(() => word(`ended_${reason}`));
  } catch (problem) {
    reason = mine.signal.aborted ? "stopped" : "error";
    if (reason === "stopped") say(() => word("ended_stopped"));
    else say(problem instanceof TypeError ? () => word("lost") : problem.message);
  } finally {
    if (asking === mine) {
      const back = document.activeElement === byId("stop");
      asking = null;
      document.body.classList.remove("asking");
      if (back) document.querySelector("#go, #send").focus();
    }
  }
  return reason;
}

/** Whether an answer broke off before anything new of it came. */
export const cameToNothing = (reason, before, after) =>
  ["error", "stopped"].includes(reason) && before === after;

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

/** What shows tokens instead of text, and is kept; `change` is called after that. */
export function boxesSwitch(change) {
  const input = make("input", {
    type: "checkbox", id: "boxes", checked: kept.boxes === true,
    onchange: () => {
      kept.boxes = input.checked;
      keep();
      change();
    },
  });
  return make("label", {}, input, " ", make("span", { "data-word": "boxes" }));
}

export const percent = (share) =>
  share < 0.0005 ? "< 0.1 %" : `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;

/** A white space as something that can be seen. */
const visible = (text) => text.replace(/\n/g, "⏎").replace(/ /g, "␣") || "∅";

/** The tokens before one, and in its place another that its reader takes. */
export const withAnother = (tokens, index, taken) => [
  ...tokens.slice(0, index).map((token) => ({ ...token })),
  { ...taken, likely: tokens[index].likely },
];

/** Put into tokens what each shows in its place, as the server says it. */
export const setTexts = (tokens, texts) =>
  texts.forEach((text, index) => { tokens[index].text = text; });

/**
 * Show tokens as buttons that tell what else could have come.
 *
 * The arrow keys go from one to the next. `choose(index, token)` is called when another
 * token is taken in the place of one. Returns `add()`, which shows those that have come
 * since, and `focus(index)`.
 */
export function showTokens(place, tokens, choose) {
  const more = make("div", { class: "likely", role: "group" });
  const boxes = [];
  let reached = 0; // by the key Tab

  function box(token, index) {
    const made = make("button", {
      type: "button", class: "token", tabindex: index === reached ? 0 : -1,
      "aria-label": `${visible(token.alone)}, ${percent(token.probability)}`,
      onclick: () => open(index), onkeydown: (key) => move(key, index),
    }, token.alone);
    made.style.setProperty("--share", token.probability);
    return made;
  }

  function add() {
    const fresh = tokens.slice(boxes.length).map((token, n) => box(token, boxes.length + n));
    boxes.push(...fresh);
    place.append(...fresh);
  }

  function focus(index) {
    boxes[reached].tabIndex = -1;
    reached = index;
    boxes[index].tabIndex = 0;
    boxes[index].focus();
  }

  function move(key, index) {
    const next = { ArrowRight: index + 1, ArrowLeft: index - 1 }[key.key];
    if (boxes[next] === undefined) return;
    key.preventDefault();
    focus(next);
  }

  function open(index) {
    const token = tokens[index];
    const known = token.likely.some(([id]) => id === token.id);
    const chosen = known ? [] : [[token.id, token.alone, token.probability]];
    const rows = [...token.likely, ...chosen].map(([id, alone, probability]) => {
      const bar = make("span", { class: "bar" });
      const share = percent(probability);
      bar.style.setProperty("--share", probability);
      return make("li", {},
        make("button", {
          type: "button",
          onclick: () => choose(index, { id, text: alone, alone, probability }),
          "aria-current": id === token.id && "true",
          "aria-label": word("take", { text: visible(alone), share }),
        }, visible(alone)), bar, ` ${share}`);
    });
    more.replaceChildren(
      make("h3", {}, word("likely", { text: visible(token.alone) })),
      make("ol", {}, ...rows));
    boxes[index].after(more);
    for (const box of boxes) box.removeAttribute("aria-expanded");
    boxes[index].setAttribute("aria-expanded", "true");  // whose border takes room
    more.scrollIntoView({ block: "nearest" });
  }

  place.replaceChildren();
  add();
  return { add, focus };
}

// --- Start ----------------------------------------------------------------------------

/** Whether a key sends: not the one that confirms what was converted into Japanese. */
export const isEnter = (key) =>
  key.key === "Enter" && !key.isComposing && key.keyCode !== 229; // Safari says only 229

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    tell(() => word("copied"));
  } catch {
    tell(() => word("not_copied"));
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
  const page = await import(`/${about.kind}.js`);
  const draw = () => {
    page.draw(byId("main"));
    page.show();
    sayWords();
  };
  byId("language").onchange = () => {
    kept.language = language = byId("language").value;
    keep();
    page.show();
    sayWords();
  };
  byId("usual").onclick = () => {
    kept.settings = { ...about.defaults };
    keep();
    showSettings();
    sayWords();
  };
  byId("export").onclick = exportAll;
  byId("clear").onclick = () => {
    stop();
    const { settings, model, language: spoken, boxes } = kept;
    kept = { settings, model, language: spoken, boxes };
    keep();
    draw();
    tell(() => word("cleared"));
  };
  document.addEventListener("keydown", (key) => {
    if (key.key === "Escape" && !key.isComposing && isAsking()) stop();
  });
  showModels();
  showSettings();
  draw();
}

begin().catch((problem) => tell(`${problem}`));
