"""A model that writes its own instruction data (chapter 7, bonus).

* `generate_pairs`: a model writes questions, and answers those without a fault; each
  text goes into a `PairJournal` as soon as it is there;
* `judged_pairs`, `yield_table`: what the filters say of all of them, and how many are
  left behind each;
* `write_instructions`: those that are left, as a file of instructions.

An empty user's turn makes a tuned model write a question, since that is what it has
seen there (Xu et al., 2024, "Magpie", arXiv:2406.08464). That generated data must be
filtered is older: Wang et al., 2022, "Self-Instruct", arXiv:2212.10560.

A journal of three questions, of which one is asked twice and one has no answer yet:

>>> found = [
...     {"number": 0, "question": "What is dew?", "question_ended": True,
...      "answer": "Water from the air.", "answer_ended": True},
...     {"number": 1, "question": "What is dew?", "question_ended": True},
...     {"number": 2, "question": "What is fog?", "question_ended": True}]
>>> for pair in judged_pairs(found):
...     print(pair["question"], pair["faults"])
What is dew? []
What is dew? ['seen before']
What is fog? ['not answered yet']

Run as a script it writes a file of instructions, by the course's own model, or by one
behind a server: `python generate_instructions.py --number 64`. Left out: instructions
with an input, and dialogues of several turns.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from instruction_data import course_instructions, read_instructions, user_text
from judge_requests import ServerError, server_is_there
from pair_filters import PairFilter, holds_marks
from pretrained import load_pretrained
from raw_prompts import (
    CHAT_MARKS,
    LocalWriter,
    Sampled,
    ServerWriter,
    answer_prompt,
    empty_prompt,
)
from script_tools import (
    device,
    file_to_write,
    parse,
    positive_float,
    positive_int,
    run,
    runs_folder,
    seed,
)

QUESTIONS = Sampled(most=64, temperature=0.8, top_p=0.95)
ANSWERS = Sampled(most=96, temperature=0.0)
ORDER = [  # of the filters, as they are asked
    "unfinished",
    "length",
    "repetition",
    "other script",
    "chat marks",
    "no request",
    "no input",
    "seen before",
    "not answered yet",
    "no answer",
    "unfinished answer",
    "repetition in answer",
    "other script in answer",
    "chat marks in answer",
    "refusal",
    "asks back",
    "says the question",
    "wrong sum",
]

# --- What was written ----------------------------------------------------------------


class PairJournal:
    """Questions and answers in a file, one object in each line, none ever changed.

    The first line says with which settings they were written. A line that a kill has
    torn is cut off; so at most the text that was being written is lost.

    Args:
        path: the file; made if it is not there. None keeps all in memory.
        settings: of this run.

    Attributes:
        pairs: by number, in the order in which the questions were written: a dictionary
            with `number`, `question` and `question_ended`, and once there is an answer
            `answer` and `answer_ended`.

    Raises:
        ValueError: the file is no journal, or one with other settings.
    """

    def __init__(self, path: Path | None = None, settings: dict | None = None):
        self.path = path
        self.pairs: dict[int, dict[str, Any]] = {}
        wanted = json.loads(json.dumps(settings or {}))
        if path is None:
            return
        lines = _whole_lines(path)
        if not lines:
            path.parent.mkdir(parents=True, exist_ok=True)
            _append(path, {"settings": wanted})
            return
        try:
            found = [json.loads(line) for line in lines]
            written = found[0]["settings"]
            for line in found[1:]:
                self.pairs.setdefault(line["number"], {}).update(line)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f"{path} is no journal of questions and answers: give another file."
            ) from None
        if written != wanted:
            names = sorted(set(written) | set(wanted))
            other = [k for k in names if written.get(k) != wanted.get(k)]
            raise ValueError(
                f"{path} was written with another {', '.join(other)}: go on with the "
                "same settings, or give another file."
            )

    def add(self, number: int, **fields: Any) -> None:
        """Write down a question, or its answer."""
        line = {"number": number, **fields}
        if self.path is not None:
            _append(self.path, line)
        self.pairs.setdefault(number, {}).update(line)


def _whole_lines(path):
    """The lines of a journal; one that was torn is cut off."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return whole.decode("utf-8", "replace").split("\n")[:-1]


def _append(path, line):
    text = json.dumps(line, ensure_ascii=False) + "\n"
    with path.open("ab") as file:
        file.write(text.encode("utf-8", "backslashreplace"))
        file.flush()
        os.fsync(file.fileno())


def generate_pairs(
    writer: Any,
    number: int,
    journal: PairJournal,
    *,
    known: Iterable[str] = (),
    system: str | None = None,
    openings: Sequence[str] = ("",),
    questions: Sampled = QUESTIONS,
    answers: Sampled = ANSWERS,
    seed: int = 123,
    answer_all: bool = False,
) -> list[str]:
    """Let a model write questions, and answer those in which no filter finds a fault.

    What the journal holds is not written again. A request that fails is counted and
    left for the next call; if the server is gone, the call stops.

    Args:
        writer: a `LocalWriter` or `ServerWriter`, or anything with `write`,
            `batch_size`, `marks` and `system`.
        number: of questions, from number 0 on.
        journal: where they are written down.
        known: questions that count as seen.
        system: a system message before each question, and before its answer; None takes
            the writer's own.
        openings: with what the questions begin, in turn.
        questions, answers: how they are written.
        seed: question i is drawn with seed + i, or its batch with that of its first.
        answer_all: whether questions with a fault are answered, too, to see what the
            filters throw away. One that holds chat marks never is.

    Returns:
        What was said of the requests that failed.

    Raises:
        ServerError: the server is gone; the message says what is kept.
    """
    system = writer.system if system is None else system
    filters, failed = PairFilter(known), []
    sound = set(_sound_numbers(journal.pairs.values(), filters))
    ask = partial(_asked, writer, journal, failed)
    for start in tqdm(range(0, number, writer.batch_size), "pairs", disable=None):
        batch = range(start, min(start + writer.batch_size, number))
        begun = [openings[i % len(openings)] for i in batch]
        if any(i not in journal.pairs for i in batch):
            prompts = [empty_prompt(writer.marks, system, words) for words in begun]
            texts = ask(prompts, questions, [seed + i for i in batch])
            for i, words, (text, ended) in zip(batch, begun, texts):
                if i not in journal.pairs:
                    question = (words + text).strip()
                    journal.add(i, question=question, question_ended=ended)
                    sound.update(_sound_numbers([journal.pairs[i]], filters))
        pairs = [journal.pairs[i] for i in batch if i in journal.pairs]
        pairs = [
            pair
            for pair in pairs
            if "answer" not in pair and not holds_marks(pair["question"])
            if answer_all or pair["number"] in sound
        ]
        if pairs:
            prompts = [
                answer_prompt(writer.marks, pair["question"], system) for pair in pairs
            ]
            texts = ask(prompts, answers, [seed + pair["number"] for pair in pairs])
            for pair, (text, ended) in zip(pairs, texts):
                journal.add(pair["number"], answer=text.strip(), answer_ended=ended)
    return failed


def _sound_numbers(pairs, filters):
    """The numbers of the questions without a fault, which are seen from now on."""
    for pair in pairs:
        if not filters.question_faults(pair["question"], pair["question_ended"]):
            yield pair["number"]


def _asked(writer, journal, failed, prompts, sampled, seeds):
    """What a writer writes; nothing where the request failed, which is noted."""
    try:
        return list(writer.write(prompts, sampled, seeds))
    except ServerError as problem:
        if not problem.for_all and server_is_there(writer.url):
            failed.append(str(problem))
            return []
        answered = sum("answer" in pair for pair in journal.pairs.values())
        kept = (
            f" and kept in {journal.path}; run the same again" if journal.path else ""
        )
        raise ServerError(
            f"{problem} {len(journal.pairs)} questions were written, {answered} of "
            f"them answered{kept}."
        ) from None


# --- What is left --------------------------------------------------------------------


def judged_pairs(
    pairs: Iterable[dict[str, Any]], known: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """The pairs of a journal with what the filters say of each.

    Args:
        pairs: in the order in which the questions were written: of two that are nearly
            the same, the first is kept.
        known: questions that count as seen.

    Returns:
        Each pair with `faults`, the names of all filters that find one, those of the
        question first; none of them for a pair that is kept. A question without a
        fault that has no answer has "not answered yet".
    """
    filters, judged = PairFilter(known), []
    for pair in pairs:
        question = pair["question"]
        faults = filters.question_faults(question, pair["question_ended"])
        if "answer" in pair:
            faults += filters.answer_faults(
                question, pair["answer"], pair["answer_ended"]
            )
        elif not faults:
            faults = ["not answered yet"]
        judged.append({**pair, "faults": faults})
    return judged


def yield_table(judged: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many pairs each filter finds, how many it removes, and how many are left.

    Args:
        judged: as from `judged_pairs`.

    Returns:
        A row for each filter that finds something, in the order of `ORDER`: `filter`,
        `found` (with a fault of this kind), `removed` (for which it is the first) and
        `left` (without this and all faults before it).
    """
    found = Counter(fault for pair in judged for fault in pair["faults"])
    first = Counter(pair["faults"][0] for pair in judged if pair["faults"])
    rows, left = [], len(judged)
    for name in ORDER:
        left -= first[name]
        row = {"filter": name, "found": found[name], "removed": first[name]}
        rows += [{**row, "left": left}] if found[name] else []
    return rows


def write_instructions(
    path: Path, judged: Iterable[dict[str, Any]], source: str
) -> int:
    """Write the pairs without a fault as a file of instructions, never over another.

    Args:
        path: a new file, which `read_instructions` reads.
        judged: as from `judged_pairs`.
        source: who wrote them, for the field `source` of each entry.

    Returns:
        How many there are.

    Raises:
        ValueError: the file is there already, or no pair is left.
    """
    check_new(path)
    entries = [
        {
            "instruction": pair["question"],
            "input": "",
            "output": pair["answer"],
            "source": f"{source}, question {pair['number']}",
        }
        for pair in judged
        if not pair["faults"]
    ]
    if not entries:
        raise ValueError("No pair is without a fault: write more of them (--number).")
    part = path.with_name(path.name + ".part")
    text = json.dumps(entries, indent=1, ensure_ascii=False)
    part.write_text(text + "\n", encoding="utf-8", errors="replace")
    os.replace(part, path)
    return len(entries)


def check_new(path: Path) -> None:
    """Raise `ValueError` if a file is there: somebody may have read and changed it."""
    if path.exists():
        raise ValueError(f"{path} is there already: give another file with --out.")


# --- As a script ---------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Write a file of instructions; return the exit code."""
    options = _options(arguments)
    stopped = (
        f"stopped; what was written is in {_journal_of(options)}, and the same command "
        "goes on from there."
    )
    return run(_generate, options, stopped=stopped)


def _options(arguments):
    parser = argparse.ArgumentParser(
        prog="generate_instructions.py",
        description="Let a model write questions and answer them, and keep the pairs "
        "in which no rule finds a fault.",
    )
    add = parser.add_argument
    out = runs_folder() / "ch07-generated" / "instructions.json"
    add("--number", type=positive_int, default=64, help="questions (%(default)s)")
    add("--out", type=Path, default=out, help="a new file (%(default)s)")
    add("--seed", type=seed, default=123, help="of the draws (%(default)s)")
    add("--temperature", type=positive_float, default=0.8, help="(%(default)s)")
    add("--question-tokens", type=positive_int, default=64, help="at most (64)")
    add("--answer-tokens", type=positive_int, default=96, help="at most (96)")
    add("--system", help="a system message before each pair (the model's own)")
    add("--opening", action="append", help="words with which questions begin (none)")
    add("--url", help="a server for raw text: .../api/generate or .../v1/completions")
    add("--model", default="llama3", help="its name there (%(default)s)")
    families = ", ".join(CHAT_MARKS)
    add("--family", choices=list(CHAT_MARKS), default="llama3", help=families)
    add("--key-from", help="environment variable with a key for the server")
    return parse(parser, arguments)


def _journal_of(options):
    return options.out.with_suffix(".journal.jsonl")


def _generate(options):
    check_new(options.out)
    file_to_write(options.out)
    settings = {
        "writer": options.model if options.url else LocalWriter.name,
        "family": options.family if options.url else "chatml",
        "system": options.system,
        "openings": options.opening or [""],
        "seed": options.seed,
        "questions": [options.question_tokens, options.temperature, QUESTIONS.top_p],
        "answers": [options.answer_tokens, ANSWERS.temperature, ANSWERS.top_p],
    }
    journal = PairJournal(_journal_of(options), settings)
    known = [user_text(entry) for entry in read_instructions(course_instructions())]
    writer = _writer(options)
    failed = generate_pairs(
        writer,
        options.number,
        journal,
        known=known,
        system=options.system,
        openings=settings["openings"],
        questions=Sampled(*settings["questions"]),
        answers=Sampled(*settings["answers"]),
        seed=options.seed,
    )
    judged = judged_pairs(journal.pairs.values(), known)
    print(f"{len(judged)} questions")
    for row in yield_table(judged):
        print(f"  {row['filter']:24}{row['removed']:4} removed, {row['left']:4} left")
    if failed:
        raise ServerError(
            f"{len(failed)} requests failed; the first: {failed[0]} Run the same again."
        )
    count = write_instructions(options.out, judged, writer.name)
    print(f"{count} instructions are in {options.out}. Read them before you use them.")


def _writer(options):
    if options.url is None:
        model, tokenizer, _ = load_pretrained(LocalWriter.name)
        return LocalWriter(model.to(device()), tokenizer, device())
    key = os.environ.get(options.key_from) if options.key_from else None
    return ServerWriter(options.url, options.model, options.family, api_key=key)


if __name__ == "__main__":
    sys.exit(main())
