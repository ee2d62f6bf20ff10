"""A model that criticises instruction data, and revises it (chapter 7, bonus).

* `critique_prompt` and `revision_prompt`: the two requests for an answer;
  `question_critique_prompt` and `question_revision_prompt`: the same for a question;
* `read_revision`: the new text in what the model says, if there is one;
* `revise_answers` and `revise_questions`: all of it for a list of entries, by a chat:
  `LocalChat`, the course's own model, or `ServerChat`, one behind Ollama's or OpenAI's
  interface (`ollama_evaluate.query_model`);
* `revision_counts`: how many answers were right before and after.

Reflection-Tuning (Li et al., 2023, arXiv:2310.11716, section 3) has a much larger model
do so, first with the questions, then with the answers, and tunes a small one on what
comes out. The requests here are in our own words.

>>> read_revision("Sure! Here is the improved answer:\\n\\n\\"Dew is water.\\"")
('Dew is water.', 'revision')
>>> read_revision("The answer is good. No change is needed.")
(None, 'no change')

A critique may be wrong, and a revision may be worse than what it replaces: so both are
kept, and what a rule can decide is counted.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from answer_scores import without_thinking
from instruction_data import Entry, user_text
from kept_answers import ask_each
from ollama_evaluate import OLLAMA_URL, check_if_running, query_model
from pair_filters import refuses
from raw_prompts import LocalWriter, Sampled

_Chat = Callable[[Sequence[str]], list[str | None]]

# --- Requests ------------------------------------------------------------------------


def critique_prompt(entry: Entry, answer: str) -> str:
    """The request for a critique of an answer."""
    return (
        "Here are a question and an answer to it.\n\n"
        f"Question:\n{user_text(entry)}\n\n"
        f"Answer:\n{answer}\n\n"
        "What is wrong with the answer? Say in one or two sentences whether it is "
        "true, whether it does what the question asks, and what is missing or too "
        "much. Do not write a new answer."
    )


def revision_prompt(entry: Entry, answer: str, critique: str = "") -> str:
    """The request for a better answer, with a critique or without one."""
    said = f"What is wrong with it:\n{critique}\n\n" if critique else ""
    return (
        "Here are a question and an answer to it.\n\n"
        f"Question:\n{user_text(entry)}\n\n"
        f"Answer:\n{answer}\n\n{said}"
        "Write a better answer to the question. Write the new answer only."
    )


def question_critique_prompt(entry: Entry) -> str:
    """The request for a critique of a question."""
    return (
        "Somebody will ask an assistant this:\n\n"
        f"{user_text(entry)}\n\n"
        "What is wrong with the question? Say in one or two sentences whether it is "
        "clear, and whether it can be answered without knowing anything else. Do not "
        "answer it."
    )


def question_revision_prompt(entry: Entry, critique: str = "") -> str:
    """The request for a better question."""
    said = f"What is wrong with it:\n{critique}\n\n" if critique else ""
    return (
        "Somebody will ask an assistant this:\n\n"
        f"{user_text(entry)}\n\n{said}"
        "Write a better question, one that is clear and can be answered by itself. "
        "Write the new question only."
    )


# --- What comes back -----------------------------------------------------------------

_LEAD = re.compile(
    r"^(?:\W*(?:sure|certainly|of course|okay|ok|thank you)\b[^:\n]*[!.:,]\s*)?"
    r"(?:(?:here(?:'s| is)|this is|the|a|my)?\s*(?:an? |the |your |my )?"
    r"(?:new|better|revised|improved|rewritten|corrected)\s+(?:version|answer|question|"
    r"response|text)[^:\n]{0,60}:[*_\s]*"
    r"|\W*(?:answer|question|new answer|new question)\W*:[*_\s]*)?",
    re.IGNORECASE,
)
_NO_CHANGE = re.compile(
    r"\b(?:no (?:change|changes|revision|improvement)s? (?:is|are)? ?(?:needed|"
    r"necessary|required)|(?:answer|question) is (?:already )?(?:good|fine|perfect|"
    r"correct|clear)(?: as it is)?\.?$|nothing (?:is wrong|needs to be changed))",
    re.IGNORECASE,
)


def read_revision(reply: str) -> tuple[str | None, str]:
    """The new text in what a model says, and what kind of reply that is.

    A sentence that only announces the text is taken off, and quotation marks around all
    of it.

    Returns:
        `(text, "revision")`, or None with "empty", "refusal" or "no change".
    """
    text = _LEAD.sub("", without_thinking(reply).strip()).strip()
    if re.fullmatch(r"\"[^\"]+\"|\u201c[^\u201d]+\u201d", text):
        text = text[1:-1].strip()
    if not text:
        return None, "empty"
    if refuses(text):
        return None, "refusal"
    if _NO_CHANGE.search(text):
        return None, "no change"
    return text, "revision"


# --- Who is asked --------------------------------------------------------------------


class LocalChat:
    """The course's own model in a chat, the likeliest words, many requests at once.

    Args:
        writer: a `LocalWriter`.
        most: tokens of an answer, at most.
    """

    def __init__(self, writer: LocalWriter, most: int = 64):
        self.writer, self.most = writer, most

    def __call__(self, prompts: Sequence[str]) -> list[str | None]:
        """The answer to each request, as long as it may be."""
        render = self.writer.tokenizer.render_chat
        ids = [render([{"role": "user", "content": prompt}]) for prompt in prompts]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        answers: list[str | None] = [None] * len(ids)
        size, sampled = self.writer.batch_size, Sampled(self.most, temperature=0.0)
        for start in tqdm(range(0, len(order), size), "chat", disable=None):
            chosen = order[start : start + size]
            texts = self.writer.write_ids([ids[i] for i in chosen], sampled)
            for i, written in zip(chosen, texts):
                answers[i] = written.text.strip()
        return answers


class ServerChat:
    """A model behind Ollama's or OpenAI's chat interface, one request after another.

    Args:
        model, url: as for `query_model`.
        results: a file in which each answer is kept as it comes, and is not asked for
            again; None for none.
        options: for `query_model`: seed, temperature, timeout, retries, wait, api_key.
            The key goes into no file.
    """

    def __init__(
        self,
        model: str,
        url: str = OLLAMA_URL,
        results: Path | None = None,
        **options: Any,
    ):
        self.model, self.url, self.results = model, url, results
        self.options = options

    def __call__(self, prompts: Sequence[str]) -> list[str | None]:
        """The answer to each request, None where it failed."""
        settings = {"model": self.model, "url": self.url}
        settings |= {k: self.options[k] for k in _SETTINGS if k in self.options}
        return ask_each(
            prompts,
            lambda prompt: query_model(prompt, self.model, self.url, **self.options),
            lambda: check_if_running(self.url),
            settings,
            self.results,
        )


_SETTINGS = ("seed", "temperature", "num_ctx")

# --- All of it -----------------------------------------------------------------------


def revise_answers(
    entries: Sequence[Entry],
    answers: Sequence[str],
    chat: _Chat,
    criticise: bool = True,
) -> list[dict[str, str | None]]:
    """Have each answer criticised and revised.

    Args:
        entries: the questions.
        answers: one for each.
        chat: a `LocalChat` or `ServerChat`, or any function from texts to texts.
        criticise: whether a critique is asked for first; without it the model is only
            asked for a better answer.

    Returns:
        For each a dictionary: `critique` ("" without one), `reply` (all that was said),
        `revision` and `kind`, as from `read_revision`, or None and "failed".
    """
    prompts = [critique_prompt(*pair) for pair in zip(entries, answers, strict=True)]
    critiques = chat(prompts) if criticise else [""] * len(entries)
    prompts = [
        revision_prompt(entry, answer, critique or "")
        for entry, answer, critique in zip(entries, answers, critiques)
    ]
    return _revised(prompts, critiques, chat)


def revise_questions(
    entries: Sequence[Entry], chat: _Chat
) -> list[dict[str, str | None]]:
    """Have each question criticised and revised; returns as `revise_answers`."""
    critiques = chat([question_critique_prompt(entry) for entry in entries])
    prompts = [
        question_revision_prompt(entry, critique or "")
        for entry, critique in zip(entries, critiques)
    ]
    return _revised(prompts, critiques, chat)


def _revised(prompts, critiques, chat):
    """The results of the second request, made only where the first one succeeded."""
    asked = [i for i, critique in enumerate(critiques) if critique is not None]
    replies = dict(zip(asked, chat([prompts[i] for i in asked])))
    results = []
    for i, critique in enumerate(critiques):
        reply = replies.get(i)
        text, kind = (None, "failed") if reply is None else read_revision(reply)
        row = {"critique": critique, "reply": reply, "revision": text, "kind": kind}
        results.append(row)
    return results


def revision_counts(before: Sequence[bool], after: Sequence[bool]) -> dict[str, int]:
    """How many answers were repaired, broken, right both times and wrong both times.

    Args:
        before, after: whether each answer was right, and whether its revision is, or
            the old one where there is no revision.
    """
    names = {
        (False, True): "repaired",
        (True, False): "broken",
        (True, True): "right both times",
        (False, False): "wrong both times",
    }
    pairs = zip(before, after, strict=True)
    found = Counter(names[bool(a), bool(b)] for a, b in pairs)
    return {name: found[name] for name in names.values()}
