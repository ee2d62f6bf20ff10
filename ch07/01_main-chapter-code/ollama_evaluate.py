"""A language model as a judge of answers (chapter 7, section on evaluation).

* `query_model` asks a model behind an HTTP interface, and `check_if_running` whether
  there is one: Ollama's `/api/chat`, or any `/v1/chat/completions`;
* `generate_model_scores` asks it for a score from 0 to 100 for each answer, with
  `judge_prompt` and `read_score`;
* `compare_answers` shows it the answers of several models to the same question side by
  side, without saying whose they are, with `comparison_prompt` and `read_choice`.

A judge that is asked twice may answer differently, likes long answers, and likes what
stands first (Zheng et al., 2023, arXiv:2306.05685, section 3). So every setting goes
into the results, the order is drawn anew for each question, and what cannot be read is
counted and shown, never dropped in silence. A model of 135 million parameters is no
judge at all. Left out: streaming, conversations, embeddings.

Scores are looked for in whatever words they come:

>>> read_score("Score: 85/100")
(85, 'score')
>>> read_score("I would say 250.")
(None, 'out of range')
>>> read_score("I'm sorry, but I cannot judge this.")
(None, 'refusal')
>>> read_choice("The better answer is B.", 2)
(1, 'choice')

Run as a script it judges a file of answers, one that `gpt_instruction_finetuning.py`
wrote: `python ollama_evaluate.py --data answers.json --model llama3`.
"""

import argparse
import os
import random
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from answer_scores import without_thinking
from gpt_class_finetune import bootstrap_interval
from instruction_data import Entry, read_instructions, user_text
from judge_answers import only_choice, only_score
from judge_requests import (
    ServerError,
    ask_server,
    checked_url,
    is_ollama,
    message_in,
    server_is_there,
    usable_key,
)
from kept_answers import ask_each
from script_tools import (
    file_to_write,
    parse,
    positive_float,
    positive_int,
    run,
    seed,
)

OLLAMA_URL = "http://localhost:11434/api/chat"
JudgeError = ServerError  # the server did not answer, or not with a message


# --- Asking --------------------------------------------------------------------------


def check_if_running(url: str = OLLAMA_URL, timeout: float = 5.0) -> bool:
    """Whether a server answers at the address, whatever it says.

    Args:
        url: as for `query_model`.
        timeout: seconds to wait.
    """
    checked_url(url)
    return server_is_there(url, timeout)


def query_model(
    prompt: str,
    model: str = "llama3",
    url: str = OLLAMA_URL,
    *,
    seed: int = 123,
    temperature: float = 0.0,
    num_ctx: int = 2048,
    timeout: float = 120.0,
    retries: int = 3,
    wait: float = 1.0,
    api_key: str | None = None,
) -> str:
    """What a model behind an HTTP interface answers to one message.

    Seed and temperature make an answer repeatable on the same machine, no more: Ollama
    reads them inside "options" only, and a prompt longer than `num_ctx` is cut.

    Args:
        prompt: the message.
        model: its name there, such as "llama3".
        url: an address that ends with `/api/chat` (Ollama) or with
            `/chat/completions` (llama.cpp, vLLM and others).
        seed, temperature: of the draws; temperature 0 takes the likeliest.
        num_ctx: the most tokens of prompt and answer; for Ollama only.
        timeout: seconds for one attempt.
        retries: how often it is tried again when the server is down, slow or broken.
        wait: seconds before the first of these, twice as long before each further one;
            longer if the server asks for it (`Retry-After`), up to a minute.
        api_key: sent as a bearer token, if given, over https or on this machine only.
            No message, answer or file shows it.

    Returns:
        The text of the answer, possibly empty.

    Raises:
        JudgeError: no attempt gave an answer, or the server refused the request; the
            message says which and why.
        ValueError: the address is of another kind.
    """
    options = {"seed": seed, "temperature": temperature}
    body = {"model": model, "messages": [{"role": "user", "content": prompt}]}
    body["stream"] = False
    key = usable_key(url, api_key)
    if is_ollama(url):
        body["options"] = {**options, "num_ctx": num_ctx}
    else:
        body |= options
    return ask_server(
        url,
        body,
        message_in,
        model=model,
        timeout=timeout,
        retries=retries,
        wait=wait,
        key=key,
    )


# --- Scores --------------------------------------------------------------------------


def judge_prompt(entry: Entry, reply: str) -> str:
    """The request for a score: the question, the right answer, and the reply."""
    return (
        "You grade the reply of an assistant.\n\n"
        f"Question:\n{user_text(entry)}\n\n"
        f"A right answer:\n{entry['output']}\n\n"
        f"Reply to grade:\n{reply}\n\n"
        "Give the reply a grade from 0 (useless) to 100 (as good as the right answer). "
        "Other words that say the same are as good. Answer with the whole number only."
    )


def read_score(reply: str) -> tuple[int | None, str]:
    """The score in a judge's answer, and what kind of answer it is.

    A number before "/100" or "out of 100", behind words such as "score" or "I give it",
    or alone. Nothing is guessed at: no number on another scale, none of two, none that
    is denied, and none that a judge names while it thinks.

    Args:
        reply: what the judge said.

    Returns:
        `(score, "score")` with a whole number from 0 to 100, or None with one of
        "out of range", "refusal" and "malformed".
    """
    answer = without_thinking(reply)
    score = only_score(answer)
    if score is None:
        return None, "refusal" if _REFUSAL.search(answer) else "malformed"
    return (round(score), "score") if 0 <= score <= 100 else (None, "out of range")


def generate_model_scores(
    json_data: list[Entry],
    json_key: str = "model_response",
    model: str = "llama3",
    url: str = OLLAMA_URL,
    *,
    keep_places: bool = False,
    results: Path | None = None,
    **options: Any,
) -> list[int | None]:
    """The scores that a judge gives to the replies of one model.

    Args:
        json_data: entries with `instruction`, `input` and `output`.
        json_key: the field of an entry that holds the reply.
        model, url: the judge, as for `query_model`.
        keep_places: whether None stands where no score could be read, so that each
            score can be set beside its entry; otherwise those places are left out.
        results: a JSON file that is rewritten, whole, after each answer. If it exists,
            what it holds is not asked again, so that nothing is lost when the server or
            the program stops; only failed requests are repeated.
        options: passed on to `query_model`.

    Returns:
        A list of the scores, each 0 to 100, in the order of the entries. How many could
        not be read, and why, is printed, with the answers themselves.

    Raises:
        JudgeError: the server is gone; what was answered is in the file.
        ValueError: an entry lacks a field, or the file belongs to other settings.
    """
    prompts = [
        judge_prompt(entry, _reply_of(entry, json_key, i))
        for i, entry in enumerate(json_data, start=1)
    ]
    answers = _ask_all(prompts, model, url, results, options)
    judged = [
        read_score(text) if text is not None else (None, "failed") for text in answers
    ]
    _show_kinds(judged, answers, "score")
    return [score for score, _ in judged if keep_places or score is not None]


# --- Side by side --------------------------------------------------------------------


def comparison_prompt(entry: Entry, replies: list[str]) -> str:
    """The request for a choice: the question, and the replies under letters."""
    shown = "\n\n".join(
        f"Reply {letter}:\n{reply}" for letter, reply in zip(_LETTERS, replies)
    )
    letters = ", ".join(_LETTERS[: len(replies)])
    return (
        "You compare the replies of assistants.\n\n"
        f"Question:\n{user_text(entry)}\n\n"
        f"A right answer:\n{entry['output']}\n\n{shown}\n\n"
        "Which reply is the best? Neither its place nor its length counts. Answer with "
        f"one letter ({letters}), or with the word tie if none is better."
    )


def read_choice(reply: str, number: int) -> tuple[int | None, str]:
    """Which of some replies a judge has chosen, and what kind of answer that is.

    Args:
        reply: what the judge said.
        number: how many replies it was shown.

    Returns:
        `(index, "choice")`, index from 0; `(None, "tie")`; or None with "refusal" or
        "malformed", if no letter is named, or several are and none is called better
        than the other, or one as the worse. What a judge thinks does not count.
    """
    answer = without_thinking(reply)
    choice = only_choice(answer, _LETTERS[:number])
    if choice is None:
        return None, "refusal" if _REFUSAL.search(answer) else "malformed"
    return (None, "tie") if choice == "tie" else (_LETTERS.index(choice), "choice")


def compare_answers(
    json_data: list[Entry],
    json_keys: list[str],
    model: str = "llama3",
    url: str = OLLAMA_URL,
    *,
    seed: int = 123,
    results: Path | None = None,
    **options: Any,
) -> dict[str, int]:
    """How often a judge prefers the replies of each of several models, unnamed.

    All replies to a question are in one request, under letters whose order is drawn
    anew for each question, so that a liking for a place falls on all models alike.

    Args:
        json_data: entries with `instruction`, `input` and `output`.
        json_keys: the fields that hold the replies, one for each model.
        model, url, results, options: as for `generate_model_scores`.
        seed: for the order; the same for the same question, wherever it stands.

    Returns:
        A dictionary: how often each of `json_keys` was chosen, and "tie". Answers that
        could not be read are in neither; they are counted and shown.

    Raises: as `generate_model_scores`.
    """
    prompts, orders = [], []
    for i, entry in enumerate(json_data, start=1):
        order = list(json_keys)
        random.Random(f"{seed} {user_text(entry)}").shuffle(order)
        orders.append(order)
        replies = [_reply_of(entry, key, i) for key in order]
        prompts.append(comparison_prompt(entry, replies))
    answers = _ask_all(prompts, model, url, results, {**options, "seed": seed})
    judged = [
        read_choice(text, len(json_keys)) if text is not None else (None, "failed")
        for text in answers
    ]
    _show_kinds(judged, answers, "choice")
    chosen = Counter(
        order[index] if kind == "choice" else kind
        for order, (index, kind) in zip(orders, judged)
    )
    return {name: chosen[name] for name in (*json_keys, "tie")}


_LETTERS = "ABCDEFGH"
_REFUSAL = re.compile(
    r"\b(?:sorry|cannot|can't|can not|unable|won't|will not|refuse|as an ai|decline)\b",
    re.IGNORECASE,
)


# --- All requests --------------------------------------------------------------------


def _reply_of(entry, key, number):
    for name in ("instruction", "input", "output", key):
        if not isinstance(entry.get(name), str):
            raise ValueError(
                f"Entry {number} has no text in the field {name!r}: let the model "
                "answer first, or name the field that holds its replies."
            )
    return entry[key]


def _ask_all(prompts, model, url, results, options):
    """The answer to each prompt, None where the request failed."""
    asked = {"model": model, "url": url, **_DEFAULTS, **options}
    asked = {key: asked[key] for key in ("model", "url", *_DEFAULTS)}
    return ask_each(
        prompts,
        lambda prompt: query_model(prompt, model, url, **options),
        lambda: check_if_running(url),
        asked,
        results,
        done="judged",
    )


_DEFAULTS = {"seed": 123, "temperature": 0.0, "num_ctx": 2048}  # those of query_model


def _show_kinds(judged, answers, wanted):
    """Print how many answers could be read, and those that could not."""
    kinds = Counter(kind for _, kind in judged)
    others = [f"{kinds[kind]} {kind}" for kind in sorted(kinds) if kind != wanted]
    told = f", {', '.join(others)}" if others else ""
    print(
        f"Of {len(judged)} answers of the judge {kinds[wanted]} hold a {wanted}{told}."
    )
    shown = ("malformed", "out of range", "refusal")
    odd = [
        f"  entry {i}, {kind}: {(without_thinking(answer) or answer)[:80]!r}"
        for i, ((_, kind), answer) in enumerate(zip(judged, answers), start=1)
        if kind in shown
    ]
    print(
        "\n".join(odd[:10] + [f"  and {len(odd) - 10} more"] * (len(odd) > 10)), end=""
    )
    print("\n" * bool(odd), end="")


# --- As a script ---------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Let a model judge a file of answers; return the exit code."""
    options = _options(arguments)
    stopped = (
        f"stopped; what was answered is in {options.out}, and the same command goes on "
        "from there."
    )
    return run(_judge, options, stopped=stopped)


def _options(arguments):
    """The script's options."""
    parser = argparse.ArgumentParser(
        prog="ollama_evaluate.py",
        description="Let a model behind Ollama, or any OpenAI-compatible server, give "
        "each answer in a file a score from 0 to 100, or choose among several.",
    )
    add = parser.add_argument
    add(
        "--data",
        "--file_path",
        type=Path,
        required=True,
        help="JSON file with instruction, input, output, and a model's replies",
    )
    add("--key", default="model_response", help="field of the replies (%(default)s)")
    add(
        "--against",
        action="append",
        default=[],
        help="a field of other replies to compare with, such as untuned_response",
    )
    add("--model", default="llama3", help="the judge's name (%(default)s)")
    add("--url", default=OLLAMA_URL, help="where it is (%(default)s)")
    add("--seed", type=seed, default=123, help="of order and judge (%(default)s)")
    add("--num-ctx", type=positive_int, default=2048, help="tokens, for Ollama (2048)")
    add("--timeout", type=positive_float, default=120.0, help="seconds (120)")
    add("--key-from", help="environment variable with a key for the server")
    add("--out", type=Path, help="results file; goes on from it (beside the data)")
    options = parse(parser, arguments)
    if len(options.against) >= len(_LETTERS):
        parser.error(f"--against may be given {len(_LETTERS) - 1} times at most.")
    if options.out is None:
        kind = "comparison" if options.against else "scores"
        options.out = options.data.with_name(f"{options.data.stem}-{kind}.json")
    return options


def _judge(options):
    entries = read_instructions(options.data)
    file_to_write(options.out)
    if not check_if_running(options.url):
        raise JudgeError(
            f"No server answers at {options.url}: start it, for instance with "
            "`ollama serve`, or give its address with --url."
        )
    asked = {
        "seed": options.seed,
        "num_ctx": options.num_ctx,
        "timeout": options.timeout,
        "results": options.out,
        "api_key": os.environ.get(options.key_from) if options.key_from else None,
    }
    judge = (options.model, options.url)
    if options.against:
        keys = [options.key, *options.against]
        for name, count in compare_answers(entries, keys, *judge, **asked).items():
            print(f"{name}: {count} of {len(entries)}")
    else:
        scores = generate_model_scores(
            entries, options.key, *judge, keep_places=True, **asked
        )
        read = [(x, e) for x, e in zip(scores, entries) if x is not None]
        if read:
            families = [e.get("family") or user_text(e) for _, e in read]
            low, high = bootstrap_interval([score for score, _ in read], families)
            mean = np.mean([score for score, _ in read])
            print(f"Mean score {mean:.1f}, 95% interval {low:.1f} to {high:.1f}.")
    print(f"All answers of the judge are in {options.out}.")


if __name__ == "__main__":
    sys.exit(main())
