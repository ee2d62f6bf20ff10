"""Makers of passives: entries to learn from, and models that are asked (ch. 7, bonus).

* `gold_pairs` and `sentences_in` find sentences in the course's instructions;
* `ask_model` and `ask_url` ask a language model, here or behind an HTTP interface;
* `passive_entry` is the entry to learn from.

>>> passive_entry("Bees make honey.", "Honey is made by bees.")["input"]
'Bees make honey.'
>>> print(passive_prompt("Bees make honey.", examples=1))
Rewrite each sentence in the passive voice. Answer with the sentence only.
<BLANKLINE>
Active: A dog bit the postman.
Passive: The postman was bitten by a dog.
<BLANKLINE>
Active: Bees make honey.
Passive:
>>> first_sentence('Passive: "Honey is made by bees."')
'Honey is made by bees.'
"""

import hashlib
import re
from typing import Any

from fast_answers import answers_and_loss
from ollama_evaluate import JudgeError, query_model
from verb_forms import ABBREVIATION

INSTRUCTIONS = (
    "Rewrite the sentence in the passive voice.",
    "Turn this active sentence into a passive one.",
    "Put the following into the passive.",
    "Change the sentence to the passive voice.",
)
EXAMPLES = (
    ("A dog bit the postman.", "The postman was bitten by a dog."),
    ("She has painted the doors.", "The doors have been painted by her."),
    ("The cook is frying eggs.", "Eggs are being fried by the cook."),
)


def passive_entry(active: str, passive: str) -> dict[str, str]:
    """An entry to learn from; the same sentence always gets the same wording."""
    number = int.from_bytes(hashlib.sha256(active.encode()).digest()[:4])
    instruction = INSTRUCTIONS[number % len(INSTRUCTIONS)]
    return {"instruction": instruction, "input": active, "output": passive}


def passive_prompt(active: str, examples: int = len(EXAMPLES)) -> str:
    """What a language model is asked, with some examples of how it is done."""
    shown = [f"Active: {a}\nPassive: {p}\n\n" for a, p in EXAMPLES[:examples]]
    if not shown:
        return f"{INSTRUCTIONS[0]}\n\n{active}"
    task = "Rewrite each sentence in the passive voice. Answer with the sentence only."
    return f"{task}\n\n{''.join(shown)}Active: {active}\nPassive:"


def first_sentence(reply: str) -> str:
    """The sentence in a model's reply: its first line, without a label or quotes."""
    line = next((line for line in reply.splitlines() if line.strip()), "")
    return re.sub(r"^\s*passive(?: voice)?:", "", line, flags=re.I).strip('"* \t')


def sentences_in(entries: list[dict]) -> list[str]:
    """All statements in the texts of entries, each once, in their order."""
    pattern = rf"(?<![^\s\"])(?=[A-Z])(?:{ABBREVIATION}|[^.?!\"])+\."
    found = {}
    for entry in entries:
        for part in ("instruction", "input", "output"):
            for sentence in re.findall(pattern, entry[part]):
                found[sentence] = None
    return list(found)


def gold_pairs(entries: list[dict]) -> list[tuple[str, str, list[str]]]:
    """Sentences with the passive that the course has, and all that count as right."""
    pairs = []
    for entry in entries:
        quoted = re.findall(r'"([A-Z][^"]*\.)"', entry["instruction"])
        given = entry["input"] or (quoted or [""])[0]
        if entry["category"] == "passive_voice":
            pairs.append((given, entry["output"], entry["answers"]))
        elif entry["category"] == "active_voice":
            pairs.append((entry["output"], given, [given]))
    return [pair for pair in pairs if pair[0] and pair[1]]


# --- Models --------------------------------------------------------------------------


def ask_model(
    sentences: list[str], model: Any, tokenizer: Any, examples: int = len(EXAMPLES)
) -> list[str]:
    """What a language model makes of each sentence, always taking the likeliest token.

    Args:
        sentences: in the active voice.
        model, tokenizer: as `load_pretrained` returns them.
        examples: how many it is shown first.
    """
    entries = [
        {"instruction": passive_prompt(one, examples), "input": "", "output": "."}
        for one in sentences
    ]
    replies, _ = answers_and_loss(
        entries, model, tokenizer, style="chatml", max_new_tokens=32
    )
    return [first_sentence(reply) for reply in replies]


def ask_url(
    sentences: list[str],
    url: str,
    model: str,
    examples: int = len(EXAMPLES),
    **options: Any,
) -> list[str | None]:
    """What a model behind an HTTP interface makes of each sentence.

    Once the server fails, nothing more is asked, and what it has answered stays.

    Args:
        sentences: in the active voice.
        url, model, options: as for `query_model`: Ollama, llama.cpp and others.
        examples: how many it is shown first.

    Returns:
        A text for each sentence, None where there is no answer.
    """
    made: list[str | None] = [None] * len(sentences)
    for i, sentence in enumerate(sentences):
        try:
            reply = query_model(
                passive_prompt(sentence, examples), model, url, **options
            )
        except JudgeError as problem:
            print(f"{i} of {len(sentences)} answered: {problem}")
            break
        made[i] = first_sentence(reply)
    return made
