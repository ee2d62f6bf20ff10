"""Making pairs of a better and a worse answer, and judging them (chapter 7).

* `sampled_replies`: several answers of a model to the same question; `pair_by_rule`:
  a right one and a wrong one among them, or a brief and a long one;
* `rewrite_prompts`, `ask_and_keep`, `unwrapped`, `rewritten_pairs`: an answer in two
  tones, written by any model that can be asked;
* `tone_rule`, `sounds_polite`, `extra_words`, `is_brief`: the rules that decide what is
  kept, and later what a tuned model has learned;
* `why_not` and `count_yield`: why a pair is of no use, and how many are left.

Whoever makes data with a small model throws most of it away, so each reason is counted.
Pairs whose better answer is found by a rule among a model's own answers are those of
"rejection sampling" (Touvron et al., 2023, arXiv:2307.09288, section 3.2.3), where a
reward model stands in the place of the rule. Left out: judges, ties, more than two.

>>> entry = {"instruction": "Name the opposite.", "input": "deep", "output": "Shallow."}
>>> entry["answers"] = ["shallow"]
>>> pair = pair_by_rule(entry, ["It is high.", "Shallow.", "Deep is deep."])
>>> pair["chosen"], pair["rejected"], pair["flaw"]
('Shallow.', 'It is high.', 'wrong')
>>> why_not({**pair, "rejected": "Shallow."})
'the same'
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from answer_scores_v2 import score_answer_v2
from gpt_generate import generate, pad_left
from gpt_instruction_finetuning import encode_prompt
from instruction_data import Entry, user_text
from kv_cache import KVCache
from model_config import config_of

MOST_EXTRA = 10  # words that a brief answer may have more than the course's own
TONES = {
    "polite": "warmly and politely",
    "impolite": "rudely and impatiently, without swearing",
}


# --- Rules ---------------------------------------------------------------------------


def tone_rule(pairs: Iterable[Entry]) -> Any:
    """A classifier of the tone of an answer, fitted on pairs: a weight for each word.

    Logistic regression on the words of both answers of pairs with the flaw "impolite".
    It knows neither the question nor the order of words.
    """
    pairs = [pair for pair in pairs if pair["flaw"] == "impolite"]
    texts = [pair[side] for pair in pairs for side in ("chosen", "rejected")]
    rule = make_pipeline(CountVectorizer(), LogisticRegression())
    return rule.fit(texts, [True, False] * len(pairs))


def sounds_polite(rule: Any, texts: Sequence[str]) -> list[bool]:
    """What a `tone_rule` says of each text; of an empty one, that it is not polite."""
    said = rule.predict(list(texts))
    return [bool(polite) and bool(text.strip()) for polite, text in zip(said, texts)]


def extra_words(text: str, answer: str) -> int:
    """How many words a text has more than an answer, below 0 if it has fewer."""
    return len(text.split()) - len(answer.split())


def is_brief(text: str, answer: str) -> bool:
    """Whether a text says something, in at most `MOST_EXTRA` words more than needed."""
    return bool(text.strip()) and extra_words(text, answer) <= MOST_EXTRA


# --- Pairs among the answers of one model --------------------------------------------


@torch.no_grad()
def sampled_replies(
    entries: Sequence[Entry],
    model: Any,
    tokenizer: Any,
    samples: int,
    *,
    style: str = "alpaca",
    temperature: float = 0.8,
    max_new_tokens: int = 32,
    seed: int = 123,
) -> list[list[str]]:
    """Several answers of a model to each question, drawn by their probability.

    Args:
        entries: with `instruction` and `input`.
        model, tokenizer: in evaluation mode; takes an attention mask and a cache.
        samples: answers to each question.
        style: the layout of the question, one of chapter 7's `FORMATS`.
        temperature, seed: of the draws.
        max_new_tokens: where an answer that does not end is cut.

    Returns:
        A list for each entry, without white space at the ends of the answers.
    """
    prompts = [encode_prompt(entry, tokenizer, style) for entry in entries]
    idx, mask = pad_left([prompt for prompt in prompts for _ in range(samples)], 0)
    cfg, end = config_of(model), tokenizer.eot_token
    rows = generate(
        model,
        idx,
        max_new_tokens,
        cfg["context_length"],
        temperature,
        eos_id=end,
        generator=torch.Generator().manual_seed(seed),
        attention_mask=mask,
        cache=KVCache(cfg["n_layers"]),
    )
    written = rows[:, idx.shape[1] :].tolist()
    ends = [row.index(end) if end in row else None for row in written]
    texts = [tokenizer.decode(row[:end]).strip() for row, end in zip(written, ends)]
    return [texts[i : i + samples] for i in range(0, len(texts), samples)]


def pair_by_rule(entry: Entry, replies: Sequence[str]) -> Entry | None:
    """A better and a worse one among the answers to a question that a rule can judge.

    The shortest right answer is the better one. The worse one is the wrong answer whose
    length is nearest to its, so that length does not decide; if all are right, the
    longest of them, provided that it is not brief.

    Returns:
        A pair with the entry's question and `chosen`, `rejected` and `flaw` ("wrong" or
        "too_long"), or None.
    """
    right = sorted((r for r in replies if score_answer_v2(entry, r)), key=len)
    wrong = [r for r in replies if r and not score_answer_v2(entry, r)]
    if not right:
        return None
    chosen, rejected, flaw = right[0], right[-1], "too_long"
    if wrong:
        rejected = min(wrong, key=lambda reply: abs(extra_words(reply, chosen)))
        flaw = "wrong"
    elif is_brief(rejected, chosen):
        return None
    return {**entry, "chosen": chosen, "rejected": rejected, "flaw": flaw}


# --- Pairs by rewriting --------------------------------------------------------------


def rewrite_prompts(entry: Entry) -> dict[str, str]:
    """The two requests to a model: the same answer, politely and rudely."""
    return {
        tone: (
            f"Question:\n{user_text(entry)}\n\nAnswer:\n{entry['output']}\n\n"
            f"Write the same answer {how}, in one sentence that still holds it. "
            "Write only that sentence."
        )
        for tone, how in TONES.items()
    }


def ask_and_keep(
    prompts: Sequence[str], ask: Callable[[list[str]], Iterable[str]], kept: Path
) -> list[str]:
    """The answers to some requests, each written to a file as soon as it is there.

    Args:
        prompts: the requests.
        ask: takes requests and yields an answer to each, in their order.
        kept: a file of lines of JSON. Requests that it answers are not made again, so
            nothing is lost when a server or the program stops.
    """
    lines = kept.read_text("utf-8").splitlines() if kept.exists() else []
    whole = [line for line in lines if line.endswith("]")]  # the last may be torn
    answers = dict(json.loads(line) for line in whole)
    missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in answers]
    with kept.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in whole)
        for prompt, answer in zip(missing, ask(missing) if missing else ()):
            answers[prompt] = answer
            file.write(json.dumps([prompt, answer]) + "\n")
            file.flush()
    return [answers[prompt] for prompt in prompts]


def unwrapped(text: str) -> str:
    """What a model wrote without what it put around it.

    >>> unwrapped('Sure! Here is the polite version:\\n\\n"It is shallow, my friend."')
    'It is shallow, my friend.'
    """
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    if len(paragraphs) > 1 and paragraphs[0].endswith(":"):
        del paragraphs[0]
    first = " ".join(paragraphs[0].split()) if paragraphs else ""
    quoted = re.fullmatch(r'"([^"]+)"', first)
    return quoted[1] if quoted else first


def rewritten_pairs(entries: Sequence[Entry], answers: Sequence[str]) -> list[Entry]:
    """The pairs of entries whose `rewrite_prompts` were answered, two answers each."""
    texts = [unwrapped(answer) for answer in answers]
    return [
        {**entry, "chosen": polite, "rejected": rude, "flaw": "impolite"}
        for entry, polite, rude in zip(entries, texts[::2], texts[1::2], strict=True)
    ]


# --- What is kept --------------------------------------------------------------------


def why_not(pair: Entry, rule: Any = None) -> str:
    """Why a pair is of no use; "" if nothing speaks against it.

    Args:
        pair: with `chosen`, `rejected`, `flaw`, and `answers` if a rule can judge them.
        rule: a `tone_rule`, for pairs that differ in tone.
    """
    chosen, rejected = pair["chosen"], pair["rejected"]
    if not chosen or not rejected:
        return "empty"
    if chosen.casefold().split() == rejected.casefold().split():
        return "the same"
    if pair.get("answers") and not score_answer_v2(pair, chosen):
        return "the better one is wrong"
    if pair["flaw"] != "impolite":
        return ""
    if pair.get("answers") and not score_answer_v2(pair, rejected):
        return "the worse one is wrong, too"
    longer = max(len(chosen), len(rejected))
    if abs(len(chosen) - len(rejected)) > 0.5 * longer:
        return "one is much longer"
    if rule is not None and sounds_polite(rule, [chosen, rejected]) != [True, False]:
        return "the tone is not told apart"
    return ""


def count_yield(pairs: Iterable[Entry], rule: Any = None) -> Counter:
    """How many pairs there are of each reason of `why_not`; "" are those to keep."""
    return Counter(why_not(pair, rule) for pair in pairs)
