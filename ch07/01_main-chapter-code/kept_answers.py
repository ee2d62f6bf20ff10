"""Answers of a model to many prompts, kept as they come (chapter 7): support.

`ask_each` asks a model one prompt after another. With a file it writes down each answer
before the next prompt is sent, and what the file holds is not asked again; so a server
or a program that stops costs one answer.

>>> ask_each(["Hi", "Bye"], str.upper, lambda: True, {})
['HI', 'BYE']
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from judge_requests import ServerError


def ask_each(
    prompts: Sequence[str],
    ask: Callable[[str], str],
    is_there: Callable[[], bool],
    settings: dict[str, Any],
    results: Path | None = None,
    *,
    done: str = "answered",
) -> list[str | None]:
    """The answer to each prompt, None where the request failed, which is printed.

    Args:
        prompts: the texts; the same one twice is asked once.
        ask: what answers one of them, or raises `ServerError`.
        is_there: whether the server is still there after such an error.
        settings: with what is asked; a file with others is refused.
        results: a JSON file, rewritten whole after each answer. If it exists, only what
            it lacks is asked.
        done: what was done with those in the file, for the message.

    Raises:
        ServerError: the server is gone; what was answered is in the file.
        ValueError: the file is none of these, or belongs to other settings.
    """
    known = _read_results(results, settings)
    names = [hashlib.sha256(prompt.encode()).hexdigest()[:16] for prompt in prompts]
    failed = []
    for name, prompt in zip(names, tqdm(prompts, "asking", disable=None)):
        if name in known:
            continue
        try:
            answer = ask(prompt)
        except ServerError as problem:
            if problem.for_all or not is_there():
                count = sum(one in known for one in names)
                kept = f" and kept in {results}; run the same again" if results else ""
                raise ServerError(
                    f"{problem} {count} of {len(prompts)} were {done}{kept}."
                ) from None
            failed.append(str(problem))
            continue
        known[name] = {"prompt": prompt, "answer": answer}
        _write_results(results, settings, known)
    if failed:
        print(f"{len(failed)} requests failed; the first: {failed[0]}")
    return [known[name]["answer"] if name in known else None for name in names]


def _read_results(path, settings):
    """The answers in a results file by the hash of their prompt; none without one."""
    if path is None or not Path(path).exists():
        return {}
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        written, answers = found["settings"], dict(found["answers"])
        _ = [one["answer"] + one["prompt"] for one in answers.values()]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{path} holds no answers of a model: give another file, or delete it."
        ) from None
    if written != settings:
        raise ValueError(
            f"{path} holds answers with {written}, not {settings}: those of two models "
            "cannot be mixed; give another file."
        )
    return answers


def _write_results(path, settings, known):
    """Replace the results file in one step."""
    if path is None:
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    text = json.dumps({"settings": settings, "answers": known}, indent=1)
    part.write_text(text + "\n", encoding="utf-8")
    os.replace(part, path)
