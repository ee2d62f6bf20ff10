"""Which answers are right, by a rule (chapter 7, section 7.6): support for scoring.

* `score_answer`: whether a reply holds an answer that counts; `can_be_read`: whether it
  says anything that could be one;
* `score_interval`, `score_by_category`: the share of right answers, and how sure it is;
* `plain_text`, `answer_pattern`, `find_echoes`, `offered_labels`, `named_labels`: what
  the rule looks at; `without_thinking`: an answer without the thoughts before it.

The rule is the same before and after training, and lenient to wording. It does not
understand: "Not shallow" holds the word that it looks for.

>>> entry = {"instruction": "Name the opposite.", "input": "deep"}
>>> entry["answers"] = ["shallow"]
>>> score_answer(entry, "The opposite of deep is shallow!")
True
>>> score_answer(entry, "It is high."), can_be_read(entry, "It is high.")
(False, True)
"""

import itertools
import json
import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

from gpt_class_finetune import bootstrap_interval
from instruction_data import Entry, user_text

# How models mark their thoughts: DeepSeek, Qwen and others; Mistral; Kimi; gpt-oss.
_MARK = r"(?:think|thinking|thought|thoughts|reasoning|analysis)\b"
_THOUGHT = re.compile(
    rf"(?i:<\s*/\s*{_MARK}[^>]*>|\[/{_MARK}\]|\u25c1/{_MARK}\u25b7|"
    r"<\|channel\|>\s*final\s*<\|message\|>)"
)
_THINKING = re.compile(
    rf"(?i:<\s*{_MARK}[^>]*>|\[{_MARK}\]|\u25c1{_MARK}\u25b7|<\|channel\|>)"
)

# In these, capitals, signs and line breaks are what was asked for.
EXACT_CATEGORIES = {"punctuation", "text_format", "json", "code"}

_QUOTES = str.maketrans({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'})
_NUMBER = re.compile(
    r"\d|\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|"
    r"\w+teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|hundred|thousand|million)"
)


def score_answer(entry: Entry, reply: str) -> bool:
    """Whether a reply holds one of the answers that count as right.

    The rule is the same for every model, and lenient to wording:

    1. An answer may stand anywhere in the reply, between word boundaries, with or
       without its last full stop. A number is not found inside another number: 8 is not
       in 18, 8.5 or -8.
    2. Capitals, the kind of quotation marks and the amount of white space do not
       matter, except in `EXACT_CATEGORIES`.
    3. Where the reply repeats the instruction or the input word for word, nothing is
       found.
    4. In the category "classification" the reply must not name another label that was
       offered: who names several has not decided.

    Args:
        entry: with `instruction`, `input`, `answers` and perhaps `category`.
        reply: any text.

    Raises:
        ValueError: the entry lists no answers.
    """
    if not entry.get("answers"):
        raise ValueError(
            f"The entry {entry['instruction']!r} lists no answers, so no rule can "
            "decide: score only entries with the field answers."
        )
    exact = entry.get("category") in EXACT_CATEGORIES
    text = plain_text(reply, exact)
    echoes = find_echoes(entry, text, exact)
    found = [
        match.span()
        for answer in entry["answers"]
        for match in re.finditer(answer_pattern(plain_text(answer, exact), exact), text)
    ]
    said = any(
        not any(low <= start and end <= high for low, high in echoes)
        for start, end in found
    )
    if entry.get("category") == "classification":
        return said and len(named_labels(entry, reply)) == 1
    return said


def can_be_read(entry: Entry, reply: str) -> bool:
    """Whether a reply says anything that could be an answer, right or wrong.

    It must say something besides repeating the question: one of the labels offered and
    no second one, a number where one was asked for, JSON where JSON was, and otherwise
    any word or sign at all.

    Args:
        entry: as in `score_answer`.
        reply: any text.
    """
    if score_answer(entry, reply):
        return True
    if entry.get("category") == "classification":
        return len(named_labels(entry, reply)) == 1
    if entry.get("category") == "json" and entry["answers"][0][0] in "[{":
        return _has_json(reply)
    text = _without_echoes(entry, reply)
    if any(re.fullmatch(r"[\d.,:/]+", answer) for answer in entry["answers"]):
        return _NUMBER.search(text.casefold()) is not None
    return bool(text.strip())


def offered_labels(entry: Entry) -> set[str]:
    """The labels that a question offers: the words beside a comma or an "or".

    Sentences in quotation marks are left out: they are what is to be labelled.

    >>> sorted(offered_labels({"instruction": "Is it a noun, a verb or an adjective?"}))
    ['adjective', 'noun', 'verb']
    """
    question = re.sub(r'"[^"]* [^"]*"', "", entry["instruction"].casefold())
    beside = r"(\w+)(?=,| or\b)|(?:,|\bor) (?:an? )?(\w+)"
    pairs = re.findall(beside, question)
    return {word for pair in pairs for word in pair if word not in ("", "a", "an")}


def score_interval(right: object, families: Iterable) -> tuple[float, float]:
    """The `bootstrap_interval` of a share over families, whose entries ask the same.

    One family alone says nothing about others: then it is (0.0, 1.0).
    """
    if len(set(families)) < 2:
        return 0.0, 1.0
    return bootstrap_interval(right, families)


def score_by_category(entries: list[Entry], right: object) -> pd.DataFrame:
    """The share of right answers in each category, and in all together.

    Args:
        entries: N of them; `category` and `family` may be missing.
        right: (N,), whether each answer is right, or its mean over several runs.

    Returns:
        A data frame with the columns `category`, `entries`, `families`, `share`, `low`
        and `high`, the last row being "all"; shares from 0 to 1, with the interval of
        `score_interval`. Few families make it wide, or, if all agree, falsely narrow.
    """
    table = pd.DataFrame(
        {
            "category": [entry.get("category", "") for entry in entries],
            "family": [entry.get("family") or user_text(entry) for entry in entries],
            "right": np.asarray(right, dtype=float),
        }
    )
    rows = []
    for name, part in [*table.groupby("category"), ("all", table)]:
        low, high = score_interval(part["right"], part["family"])
        share, families = part["right"].mean(), part["family"].nunique()
        rows.append((name, len(part), families, share, low, high))
    columns = ["category", "entries", "families", "share", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def without_thinking(text: str) -> str:
    """What a model answers, without what it says to itself before that.

    Models that think aloud do so between marks such as `<think>` and `</think>`. The
    first mark may be missing, as it may stand in the prompt. Who never closes them has
    not answered: then nothing is left.

    >>> without_thinking("<think>40 would be too low.</think> 85")
    '85'
    """
    *_, text = _THOUGHT.split(text)
    return "" if _THINKING.search(text) else text.strip()


def plain_text(text: str, exact: bool) -> str:
    """A text without what does not matter: thoughts, capitals, quotes, white space."""
    text = without_thinking(text)
    if exact:
        return text.strip()
    return " ".join(text.translate(_QUOTES).casefold().split())


def answer_pattern(answer: str, exact: bool) -> str:
    """A regular expression that finds an answer between its boundaries."""
    if not exact:
        answer = answer.rstrip(".?!") or answer
    before = r"(?<!\w)" + (r"(?<!\d[.,:/])(?<!\W-)(?<!^-)" * answer[0].isdigit())
    after = r"(?!\w)" + (r"(?![.,:/]\d)" * answer[-1].isdigit())
    return before + re.escape(answer) + after


def find_echoes(entry: Entry, text: str, exact: bool) -> list[tuple[int, int]]:
    """Where a reply repeats the instruction or the input: pairs of start and end."""
    questions = [plain_text(entry[name], exact) for name in ("instruction", "input")]
    return [
        match.span()
        for question in questions
        if question
        for match in re.finditer(re.escape(question), text)
    ]


def named_labels(entry: Entry, reply: str) -> set[str]:
    """The labels offered that a reply names besides repeating the question."""
    words = set(re.findall(r"\w+", _without_echoes(entry, reply)))
    labels = offered_labels(entry) | {
        plain_text(a, exact=False) for a in entry["answers"]
    }
    return {label for label in labels if words.issuperset(label.split())}


def _without_echoes(entry, reply):
    """What a reply says besides repeating the question."""
    exact = entry.get("category") in EXACT_CATEGORIES
    text = plain_text(reply, exact)
    for low, high in sorted(find_echoes(entry, text, exact), reverse=True):
        text = text[:low] + " " + text[high:]
    return text


def _has_json(text):
    """Whether a text holds an array or an object of JSON, the first ten brackets."""
    decoder = json.JSONDecoder()
    for match in itertools.islice(re.finditer(r"[\[{]", text), 10):
        try:
            decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        return True
    return False
