"""Every exercise check takes the solution, knows the stub and names mistakes.

`RIGHT_...` are right answers written otherwise, `WRONG_...` wrong ones, each with the
part of the message that it must get.
"""

import itertools
import json
import random
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from answer_scores import score_answer
from ch07_checks import (
    check_7_1,
    check_7_2,
    check_7_3,
    check_7_4,
    check_7_5,
    check_7_6,
)
from course.exercises import answer, verify
from gpt_class_finetune import bootstrap_interval
from gpt_instruction_finetuning import (
    FORMATS,
    IGNORE_INDEX,
    custom_collate_fn,
    encode_prompt,
    user_text,
)


def stub(*arguments, **keywords):
    """A function of which only the docstring is there."""
    return ...


# --- 7.1 -----------------------------------------------------------------------------


def phi3_prompt(entry):
    question = entry["instruction"]
    if entry["input"]:
        question += "\n\n" + entry["input"]
    return f"<|user|>\n{question}<|end|>\n<|assistant|>\n"


def count_tokens(entry, tokenizer):
    return {style: len(encode_prompt(entry, tokenizer, style)) for style in FORMATS}


def replaced(old, new):
    return lambda entry: phi3_prompt(entry).replace(old, new)


def empty_lines(entry):
    question = entry["instruction"] + "\n\n" + entry["input"]
    return f"<|user|>\n{question}<|end|>\n<|assistant|>\n"


def without_opening(entry, tokenizer):
    return {
        style: len(tokenizer.encode(write(entry)))
        for style, (write, _) in FORMATS.items()
    }


def as_text(entry, tokenizer):
    return {
        style: len(tokenizer.encode(write(entry) + opening))
        for style, (write, opening) in FORMATS.items()
    }


def with_answer(entry, tokenizer):
    more = len(tokenizer.encode(entry["output"]))
    return {k: number + more for k, number in count_tokens(entry, tokenizer).items()}


def bare_question(entry, tokenizer):
    return dict.fromkeys(FORMATS, len(tokenizer.encode(user_text(entry))))


def with_signs(entry, tokenizer):
    if hasattr(tokenizer, "render_chat"):
        return count_tokens(entry, tokenizer)
    return {
        style: len(tokenizer.encode(write(entry) + opening, allowed_special="all"))
        for style, (write, opening) in FORMATS.items()
    }


WRONG_7_1 = {
    "answer": (lambda e: phi3_prompt(e) + e["output"], "the answer is in the text"),
    "no heading": (replaced("\n<|assistant|>\n", ""), "heading is missing"),
    "before assistant": (
        replaced("\n<|assistant|>", "<|assistant|>"),
        "missing before <|assistant|>",
    ),
    "after assistant": (
        replaced("<|assistant|>\n", "<|assistant|>"),
        "missing after <|assistant|>",
    ),
    "after user": (replaced("<|user|>\n", "<|user|>"), "missing after <|user|>"),
    "own line": (replaced("<|end|>", "\n<|end|>"), "stands on a line of its own"),
    "no end": (replaced("<|end|>", ""), "<|end|> is missing"),
    "no input": (lambda e: phi3_prompt({**e, "input": ""}), "the input is missing"),
    "one line break": (replaced("\n\n", "\n"), "there is an empty line"),
    "empty lines": (empty_lines, "leaves no empty lines"),
    "stripped": (
        lambda e: phi3_prompt({**e, "input": e["input"].strip()}),
        "white space of the instruction or the input",
    ),
    "no instruction": (
        lambda e: phi3_prompt({**e, "instruction": e["input"], "input": ""}),
        "the instruction is missing",
    ),
    "one more": (lambda e: phi3_prompt(e) + "\n", "a line break follows the last one"),
    "blanks": (replaced(">\n", "> "), "a blank stands where a line break belongs"),
    "bytes": (lambda e: phi3_prompt(e).encode(), "not a text"),
    "Alpaca": (
        lambda e: "".join((FORMATS["alpaca"][0](e), FORMATS["alpaca"][1])),
        "not that of Phi-3's layout",
    ),
}
WRONG_COUNTS = {
    "opening": (without_opening, "what stands before the answer is not counted"),
    "with answer": (with_answer, "the answer is counted, too"),
    "as text": (as_text, "`render_chat`"),
    "bare": (bare_question, "without its layout"),
    "signs": (with_signs, "signs that stand in the text are read as special tokens"),
    "characters": (
        lambda e, k: {style: n + 1 for style, n in count_tokens(e, k).items()},
        "the numbers of tokens are not right",
    ),
    "a list": (lambda e, k: [*count_tokens(e, k).values()], "not a dictionary"),
    "other names": (
        lambda e, k: {style.title(): n for style, n in count_tokens(e, k).items()},
        "are not the keys of the counts",
    ),
}
WRONG_7_1 = {
    **{name: ((one, count_tokens), said) for name, (one, said) in WRONG_7_1.items()},
    **{name: ((phi3_prompt, one), said) for name, (one, said) in WRONG_COUNTS.items()},
}


def prompt_by_lines(entry):
    lines = ["<|user|>", user_text(entry) + "<|end|>", "<|assistant|>", ""]
    return "\n".join(lines)


def prompt_by_format(entry):
    has_input = bool(entry["input"])
    middle = "{instruction}\n\n{input}" if has_input else "{instruction}"
    return "<|user|>\n" + middle.format(**entry) + "<|end|>\n<|assistant|>\n"


def prompt_by_replacing(entry):
    text = "<|user|>\nI\n\nX<|end|>\n<|assistant|>\n"
    if not entry["input"]:
        return text.replace("I\n\nX", entry["instruction"])
    return text.replace("X", entry["input"]).replace(
        "I\n", entry["instruction"] + "\n", 1
    )


def prompt_by_adding(entry):
    text = "<|user|>" + "\n" + entry["instruction"]
    if entry.get("input", "") != "":
        text += "\n" + "\n" + entry["input"]
    text += "<|end|>"
    return text + "\n" + "<|assistant|>" + "\n"


def prompt_by_pieces(entry):
    pieces = filter(None, (entry["instruction"], entry["input"]))
    return "<|user|>\n{}<|end|>\n<|assistant|>\n".format("\n\n".join(pieces))


def prompt_of_lines(entry):
    question = [entry["instruction"]] + (
        [f"\n{entry['input']}"] if entry["input"] else []
    )
    question = "\n".join(question)
    return f"""<|user|>
{question}<|end|>
<|assistant|>
"""


def counts_by_layout(entry, tokenizer):
    counts = {}
    for style, (write, opening) in FORMATS.items():
        if style == "chatml" and hasattr(tokenizer, "render_chat"):
            message = {"role": "user", "content": user_text(entry)}
            counts[style] = len(tokenizer.render_chat([message]))
        else:
            counts[style] = len(tokenizer.encode_ordinary(write(entry) + opening))
    return counts


def counts_backwards(entry, tokenizer):
    return {s: len(encode_prompt(entry, tokenizer, s)) for s in reversed(FORMATS)}


def counts_as_counter(entry, tokenizer):
    return Counter(s for s in FORMATS for _ in encode_prompt(entry, tokenizer, s))


def counts_in_numpy(entry, tokenizer):
    ids = {style: np.array(encode_prompt(entry, tokenizer, style)) for style in FORMATS}
    return {style: np.int64(one.size) for style, one in ids.items()}


def counts_in_torch(entry, tokenizer):
    counts = defaultdict(int)
    for style in FORMATS:
        ids = torch.tensor(encode_prompt(entry, tokenizer, style=style))
        counts[style] = torch.tensor(ids.numel())
    return counts


RIGHT_7_1 = [
    (prompt_by_lines, counts_by_layout),
    (prompt_by_format, counts_backwards),
    (prompt_by_replacing, counts_as_counter),
    (prompt_by_adding, counts_in_numpy),
    (prompt_by_pieces, counts_in_torch),
    (prompt_of_lines, count_tokens),
    (prompt_by_lines, counts_in_torch),
    (prompt_by_adding, counts_by_layout),
    (prompt_by_format, counts_as_counter),
    (phi3_prompt, counts_backwards),
]

# --- 7.2 -----------------------------------------------------------------------------


def answer_targets(ids, prompt_length, T, end_id):
    targets = [IGNORE_INDEX] * T
    for place in range(prompt_length - 1, len(ids) - 1):
        targets[place] = ids[place + 1]
    targets[len(ids) - 1] = end_id
    return targets


def moved(by):
    return lambda ids, prompt_length, T, end: answer_targets(
        ids, prompt_length + by, T, end
    )


def ends(number):
    """So many end tokens count; None for all of them."""

    def attempt(ids, prompt_length, T, end):
        targets = answer_targets(ids, prompt_length, T, end)
        last = T if number is None else min(len(ids) - 1 + number, T)
        for place in range(len(ids) - 1, T):
            targets[place] = end if place < last else IGNORE_INDEX
        return targets

    return attempt


def not_shifted(ids, prompt_length, T, end):
    targets = [*ids, *[end] * (T - len(ids))]
    asked = range(prompt_length, len(ids) + 1)
    return [x if i in asked else IGNORE_INDEX for i, x in enumerate(targets)]


def only_last_end(ids, prompt_length, T, end):
    targets = answer_targets(ids, prompt_length, T, end)
    last = len(ids) - 1
    return [IGNORE_INDEX if x == end and i < last else x for i, x in enumerate(targets)]


def first_end_of_row(ids, prompt_length, T, end):
    shifted = [*ids[1:], *[end] * (T - len(ids) + 1)]
    first = shifted.index(end)
    targets = [
        IGNORE_INDEX if x == end and i != first else x for i, x in enumerate(shifted)
    ]
    return [IGNORE_INDEX] * (prompt_length - 1) + targets[prompt_length - 1 :]


def up_to_an_end(ids, prompt_length, T, end):
    targets = answer_targets(ids, prompt_length, T, end)
    first = targets.index(end) + 1
    return targets[:first] + [IGNORE_INDEX] * (T - first)


def needs_padding(ids, prompt_length, T, end):
    targets = answer_targets(ids, prompt_length, T, end)
    return targets if len(ids) < T else [*targets[:-1], IGNORE_INDEX]


def too_long(ids, prompt_length, T, end):
    targets = answer_targets(ids, prompt_length, T, end)
    return targets if len(ids) < T else [*targets, IGNORE_INDEX]


WRONG_7_2 = {
    "question": (lambda i, p, T, e: answer_targets(i, 1, T, e), "the question counts"),
    "one late": (moved(1), "the first token of the answer does not count"),
    "one early": (moved(-1), "question's last token counts"),
    "no end": (ends(0), "no end token counts"),
    "two ends": (ends(2), "two end tokens count"),
    "all padding": (ends(None), "all the padding counts"),
    "not shifted": (not_shifted, "the tokens themselves"),
    "inner end": (only_last_end, "taken for padding"),
    "first end": (first_end_of_row, "of the whole row only the first one"),
    "up to an end": (up_to_an_end, "what follows the end token inside"),
    "full row": (needs_padding, "in a row that is full, the end token"),
    "too long": (too_long, "more targets than tokens"),
    "a number": (lambda *a: 4, "not a list"),
    "inputs": (
        lambda ids, p, T, end: [*ids, *[end] * (T - len(ids))],
        "these are the inputs",
    ),
    "exchanged": (
        lambda ids, p, T, end: [
            x if y == IGNORE_INDEX else IGNORE_INDEX
            for x, y in zip(
                [*ids[1:], *[end] * (T - len(ids) + 1)], answer_targets(ids, p, T, end)
            )
        ],
        "are exchanged",
    ),
    "nought": (
        lambda *a: [0 if x == IGNORE_INDEX else x for x in answer_targets(*a)],
        "0 stands where nothing counts",
    ),
    "needs an answer": (
        lambda ids, p, T, end: (
            answer_targets(ids, p, T, end) if p < len(ids) else [IGNORE_INDEX] * T
        ),
        "an answer of 0",
    ),
}


def targets_by_parts(ids, prompt_length, T, end_id):
    before, answer = [IGNORE_INDEX] * (prompt_length - 1), ids[prompt_length:]
    return before + answer + [end_id] + [IGNORE_INDEX] * (T - len(ids))


def targets_in_torch(ids, prompt_length, T, end_id):
    targets = torch.full((T,), IGNORE_INDEX)
    targets[prompt_length - 1 : len(ids)] = torch.tensor([*ids[prompt_length:], end_id])
    return targets


def targets_in_numpy(ids, prompt_length, T, end_id):
    places = np.arange(T)
    following = np.array([*ids[1:], *[end_id] * (T - len(ids) + 1)])
    counts = (places >= prompt_length - 1) & (places < len(ids))
    return np.where(counts, following, IGNORE_INDEX)


def targets_as_tuple(ids, prompt_length, T, end_id):
    return tuple(answer_targets(ids, prompt_length, T, end_id))


def targets_by_collating(ids, prompt_length, T, end_id):
    other = ([end_id] * T, 1)
    return custom_collate_fn([(ids, prompt_length), other], pad_token_id=end_id)[1][0]


def targets_by_shifting(ids, prompt_length, T, end_id):
    row = [IGNORE_INDEX] * prompt_length + ids[prompt_length:] + [end_id]
    row += [IGNORE_INDEX] * T
    return row[1 : T + 1]


def targets_by_comprehension(ids, prompt_length, T, end_id):
    ended = [*ids, end_id]
    return [
        ended[i + 1] if prompt_length <= i + 1 <= len(ids) else IGNORE_INDEX
        for i in range(T)
    ]


def targets_by_dictionary(ids, prompt_length, T, end_id):
    wanted = dict(enumerate([*ids, end_id], start=-1))
    for place in range(-1, prompt_length - 1):
        del wanted[place]
    return [wanted.get(place, IGNORE_INDEX) for place in range(T)]


def targets_by_masking(ids, prompt_length, T, end_id):
    following = torch.tensor([*ids[1:], *[end_id] * (T - len(ids) + 1)])
    places = torch.arange(T)
    return following.masked_fill(
        (places < prompt_length - 1) | (places >= len(ids)), IGNORE_INDEX
    ).tolist()


def targets_of_tensors(ids, prompt_length, T, end_id):
    return list(targets_in_torch(ids, prompt_length, T, end_id))


RIGHT_7_2 = [
    targets_by_parts,
    targets_in_torch,
    targets_in_numpy,
    targets_as_tuple,
    targets_by_collating,
    targets_by_shifting,
    targets_by_comprehension,
    targets_by_dictionary,
    targets_by_masking,
    targets_of_tensors,
]

# --- 7.3 -----------------------------------------------------------------------------


def load_alpaca(path):
    with open(path, encoding="utf-8") as file:
        entries = json.load(file)
    for entry in entries:
        if entry["input"].lower() == "<noinput>":
            entry["input"] = ""
    return [entry for entry in entries if entry["output"]]


def read(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def inputs_by(rule):
    def attempt(path):
        entries = [entry for entry in read(path) if entry["output"]]
        return [{**entry, "input": rule(entry["input"])} for entry in entries]

    return attempt


def no_filter(path):
    return [
        {**e, "input": "" if e["input"].lower() == "<noinput>" else e["input"]}
        for e in read(path)
    ]


def own_file(path):
    own_file.first = getattr(own_file, "first", None) or load_alpaca(path)
    return own_file.first


def something_else(path):
    try:
        return load_alpaca(path)
    except OSError:
        return [{"instruction": "Name a river.", "input": "", "output": "The Nile."}]


def own_error(path):
    if not Path(path).exists():
        raise ValueError(f"{path} is not there")
    return load_alpaca(path)


WRONG_7_3 = {
    "as it is": (read, "returned as it is"),
    "no output": (no_filter, "an entry without output is still there"),
    "noinput kept": (inputs_by(lambda x: x), "is still there; it says"),
    "capitals": (
        inputs_by(lambda x: "" if x == "<noinput>" else x),
        "in other capitals",
    ),
    "taken out": (
        inputs_by(lambda x: re.sub("(?i)<noinput>", "", x)),
        "taken out of a longer input",
    ),
    "mentioned": (
        inputs_by(lambda x: "" if "<noinput>" in x.lower() else x),
        "emptied as a whole",
    ),
    "dropped": (
        lambda p: [
            e for e in read(p) if e["output"] and e["input"].lower() != "<noinput>"
        ],
        "entries with <noinput> are left out",
    ),
    "no empty input": (
        lambda p: [e for e in load_alpaca(p) if e["input"]],
        "entries with an empty input are left out",
    ),
    "own file": (own_file, "another file than the one that was given"),
    "wants a Path": (
        lambda p: load_alpaca(p.with_name(p.name)),
        "AttributeError",
    ),
    "missing file": (something_else, "let the error through"),
    "reversed": (lambda p: load_alpaca(p)[::-1], "in another order"),
    "inputs stripped": (
        lambda p: [{**e, "input": e["input"].strip()} for e in load_alpaca(p)],
        "white space around an input",
    ),
    "all stripped": (
        lambda p: [{k: v.strip() for k, v in e.items()} for e in load_alpaca(p)],
        "white space around the texts",
    ),
    "small letters": (
        lambda p: [{**e, "input": e["input"].lower()} for e in load_alpaca(p)],
        "in small letters now",
    ),
    "blank output": (
        lambda p: [e for e in load_alpaca(p) if e["output"].strip()],
        "an output of a blank",
    ),
    "three fields": (
        lambda p: [
            {key: e[key] for key in ("instruction", "input", "output")}
            for e in load_alpaca(p)
        ],
        "a field is lost",
    ),
    "no brackets": (
        inputs_by(lambda x: "" if x.lower() in ("<noinput>", "noinput") else x),
        "the word noinput without its brackets",
    ),
    "outputs, too": (
        lambda p: [e for e in load_alpaca(p) if e["output"].lower() != "<noinput>"],
        "only inputs are looked at",
    ),
    "once": (
        lambda p: [
            e for i, e in enumerate(load_alpaca(p)) if e not in load_alpaca(p)[:i]
        ],
        "comes twice is there once",
    ),
    "another error": (
        lambda p: load_alpaca(p) if Path(p).exists() else {}["file"],
        "raises KeyError",
    ),
    "texts": (lambda p: [str(e) for e in load_alpaca(p)], "is the text"),
    "white space": (
        inputs_by(lambda x: "" if x.strip().lower() == "<noinput>" else x),
        "with white space around <noinput>",
    ),
    "by heart": (
        inputs_by(lambda x: "" if x in ("<noinput>", "<noInput>", "<NoInput>") else x),
        "known by heart",
    ),
    "error of its own": (own_error, "raises ValueError; let the error"),
}


def alpaca_by_pathlib(path):
    entries = json.loads(Path(path).read_text(encoding="utf-8"))
    kept = []
    for entry in entries:
        if entry["output"] == "":
            continue
        if entry["input"].casefold() == "<noinput>":
            entry = {**entry, "input": ""}
        kept.append(entry)
    return kept


def alpaca_from_bytes(path):
    entries = json.loads(Path(path).read_bytes())
    return [no_input(entry) for entry in entries if len(entry["output"]) > 0]


def no_input(entry):
    return entry | {"input": re.sub(r"(?i)\A<noinput>\Z", "", entry["input"])}


def alpaca_as_tuple(path):
    return tuple(load_alpaca(path))


def alpaca_lazily(path):
    yield from load_alpaca(path)


def alpaca_by_map(path):
    with Path(path).open(encoding="utf8") as file:
        entries = json.load(file)
    return list(map(no_input, filter(lambda entry: entry["output"] != "", entries)))


def alpaca_by_removing(path):
    entries = read(path)
    for entry in entries[::-1]:
        if not entry["output"]:
            del entries[len(entries) - 1 - entries[::-1].index(entry)]
        elif re.fullmatch("<noinput>", entry["input"], re.IGNORECASE):
            entry["input"] = ""
    return entries


def alpaca_by_hook(path):
    def change(entry):
        if str(entry.get("input")).upper() == "<NOINPUT>":
            entry["input"] = ""
        return entry

    text = Path(path).read_text(encoding="utf-8")
    return [e for e in json.loads(text, object_hook=change) if e["output"]]


def alpaca_in_pandas(path):
    table = pd.DataFrame(read(path))
    table = table[table["output"] != ""]
    table.loc[table["input"].str.lower() == "<noinput>", "input"] = ""
    rows = table.to_dict("records")
    return [{k: v for k, v in row.items() if not pd.isna(v)} for row in rows]


def alpaca_with_exit(path):
    if not Path(path).is_file():
        raise FileNotFoundError(path)
    return load_alpaca(path)


def alpaca_by_length(path):
    marks = {"<noinput>"}
    return [
        {k: "" if k == "input" and v.lower() in marks else v for k, v in e.items()}
        for e in read(path)
        if len(e["output"])
    ]


RIGHT_7_3 = [
    alpaca_by_pathlib,
    alpaca_from_bytes,
    alpaca_as_tuple,
    alpaca_lazily,
    alpaca_by_map,
    alpaca_by_removing,
    alpaca_by_hook,
    alpaca_in_pandas,
    alpaca_with_exit,
    alpaca_by_length,
]

# --- 7.4 -----------------------------------------------------------------------------


def chat_row(turns, tokenizer, counted=("text", "end"), chosen=None, skip=0):
    start = tokenizer.special_tokens["<|im_start|>"]
    end = tokenizer.special_tokens["<|im_end|>"]
    ids, targets = [], []
    for number, turn in enumerate(turns):
        for role, text in zip(("user", "assistant"), turn):
            pieces = {
                "heading": [start, *tokenizer.encode(f"{role}\n")],
                "text": tokenizer.encode(text),
                "end": [end],
                "newline": tokenizer.encode("\n"),
            }
            for kind, piece in pieces.items():
                ids += piece
                learned = kind in counted if role == "assistant" else "user" in counted
                if chosen is not None and number not in chosen:
                    learned = False
                asked = piece if learned else [IGNORE_INDEX] * len(piece)
                if kind == "text" and skip:
                    asked = [IGNORE_INDEX] * skip + asked[skip:]
                targets += asked
    return ids[:-1], targets[1:]


def counting(*kinds):
    return lambda turns, tokenizer: chat_row(turns, tokenizer, kinds)


def as_one_text(turns, tokenizer, **options):
    whole = "".join(
        f"<|im_start|>{role}\n{text}<|im_end|>\n"
        for turn in turns
        for role, text in zip(("user", "assistant"), turn)
    )
    return tokenizer.encode(whole, **options)[:-1]


def parsed(turns, tokenizer):
    ids = as_one_text(turns, tokenizer, allowed_special="all")
    targets = chat_row(turns, tokenizer)[1]
    return ids, targets[: len(ids)] + [IGNORE_INDEX] * (len(ids) - len(targets))


def no_newline(turns, tokenizer):
    ids, targets = chat_row(turns, tokenizer)
    kept = [i for i, x in enumerate(ids) if not (x == 10 and i and ids[i - 1] == 1001)]
    return [ids[i] for i in kept][:-1], [targets[i] for i in kept][:-1]


def no_last_end(turns, tokenizer):
    return tuple(part[:-1] for part in chat_row(turns, tokenizer))


def with_last(turns, tokenizer):
    ids, targets = chat_row(turns, tokenizer)
    return [*ids, 10], [*targets, IGNORE_INDEX]


def unshifted(turns, tokenizer):
    ids, targets = chat_row(turns, tokenizer)
    return ids, [IGNORE_INDEX, *targets[:-1]]


def two_turns_only(turns, tokenizer):
    return chat_row(turns[:2], tokenizer)


def only_questions(turns, tokenizer):
    """What counts and what does not, with heading and line break of the questions."""
    inputs, everything = chat_row(
        turns, tokenizer, ("user", "heading", "text", "end", "newline")
    )
    _, answers = chat_row(turns, tokenizer, ("heading", "text", "end", "newline"))
    pairs = zip(everything, answers)
    return inputs, [x if y == IGNORE_INDEX else IGNORE_INDEX for x, y in pairs]


def answers_parsed(turns, tokenizer):
    """Questions are encoded as plain text, and answers are not."""
    ids, asked = [], []
    for question, said in turns:
        text = tokenizer.encode(said, allowed_special="all")
        before = [1000, *tokenizer.encode("user\n" + question), 1001, 10, 1000]
        before += tokenizer.encode("assistant\n")
        ids += [*before, *text, 1001, 10]
        asked += [*[IGNORE_INDEX] * len(before), *text, 1001, IGNORE_INDEX]
    return ids[:-1], asked[1:]


WRONG_7_4 = {
    "last answer": (lambda *a: chat_row(*a, chosen=(1,)), "only the last answer"),
    "first answer": (lambda *a: chat_row(*a, chosen=(0,)), "only the first answer"),
    "questions": (
        counting("user", "heading", "text", "end", "newline"),
        "the questions count, too",
    ),
    "no ends": (counting("text"), "end the answers do not count"),
    "line break": (counting("text", "end", "newline"), "line break behind an answer's"),
    "heading": (counting("heading", "text", "end"), "the heading `<|im_start|>"),
    "one late": (lambda *a: chat_row(*a, skip=1), "first token of each answer"),
    "unshifted": (unshifted, "the ids themselves"),
    "short targets": (
        lambda *a: (chat_row(*a)[0], chat_row(*a)[1][:-1]),
        "give each id one",
    ),
    "as text": (lambda *a: (as_one_text(*a), []), "encoded as text"),
    "parsed": (parsed, "gets a real end token"),
    "no newline": (no_newline, "line break behind each <|im_end|>"),
    "no last end": (no_last_end, "the last <|im_end|> is missing"),
    "with last": (with_last, "the inputs hold the last token"),
    "last turn": (lambda t, k: chat_row(t[-1:], k), "only the last turn is there"),
    "two turns": (two_turns_only, "a conversation of three turns"),
    "one list": (lambda *a: chat_row(*a)[0], "not a pair"),
    "only questions": (only_questions, "only the questions count"),
    "only ends": (counting("end"), "only the ends of the answers"),
    "answers parsed": (answers_parsed, "an answer that spells a sign"),
    "stripped": (
        lambda turns, k: chat_row([(q.strip(), a.strip()) for q, a in turns], k),
        "white space at its ends",
    ),
    "needs two": (
        lambda turns, k: chat_row(turns if len(turns) > 1 else [*turns, ("", "")], k),
        "a single turn",
    ),
    "empty left out": (
        lambda turns, k: chat_row([turn for turn in turns if turn[1]], k),
        "an answer without a word",
    ),
    "with system": (
        lambda turns, k: tuple(
            [*first, *rest]
            for first, rest in zip(
                ([1000, *k.encode("system\n"), 1001, 10], [IGNORE_INDEX] * 9),
                chat_row(turns, k),
            )
        ),
        "the ids of the conversation are not right",
    ),
}


def split_row(pairs):
    """Inputs and targets of pairs (id, whether it counts)."""
    ids = [token for token, _ in pairs]
    targets = [token if counts else IGNORE_INDEX for token, counts in pairs]
    return ids[:-1], targets[1:]


def chat_by_pairs(turns, tokenizer):
    start, end = (tokenizer.special_tokens[f"<|im_{x}|>"] for x in ("start", "end"))
    pairs = []
    for question, said in turns:
        heading = [start, *tokenizer.encode("user\n" + question), end]
        heading += [*tokenizer.encode("\n"), start, *tokenizer.encode("assistant\n")]
        pairs += [(token, False) for token in heading]
        pairs += [(token, True) for token in [*tokenizer.encode(said), end]]
        pairs += [(token, False) for token in tokenizer.encode("\n")]
    return split_row(pairs)


def chat_by_places(turns, tokenizer):
    """The ids first; where answers stand is noted by place."""
    signs, ids, spans = tokenizer.special_tokens, [], []
    for question, said in turns:
        for role, text in (("user", question), ("assistant", said)):
            ids.append(signs["<|im_start|>"])
            ids += tokenizer.encode_ordinary(role + "\n")
            first = len(ids)
            ids += [*tokenizer.encode_ordinary(text), signs["<|im_end|>"]]
            spans += [(first, len(ids))] if role == "assistant" else []
            ids += tokenizer.encode_ordinary("\n")
    targets = [IGNORE_INDEX] * len(ids)
    for first, stop in spans:
        targets[first:stop] = ids[first:stop]
    return ids[:-1], targets[1:]


def chat_as_lists(turns, tokenizer):
    return [*chat_row(turns, tokenizer)]


def chat_as_tensors(turns, tokenizer):
    return tuple(torch.tensor(part) for part in chat_row(turns, tokenizer))


def chat_as_arrays(turns, tokenizer):
    inputs, targets = chat_by_pairs(turns, tokenizer)
    return np.array(inputs), np.array(targets)


def chat_by_recursion(turns, tokenizer):
    def pairs(rest):
        if not rest:
            return []
        (question, said), *others = rest
        found = []
        for role, text in (("user", question), ("assistant", said)):
            heading = [1000, *tokenizer.encode(f"{role}\n", disallowed_special=())]
            text = [*tokenizer.encode(text, disallowed_special=()), tokenizer.eot_token]
            found += [(i, False) for i in heading]
            found += [(i, role != "user") for i in text]
            found += [(10, False)]
        return found + pairs(others)

    return split_row(pairs(turns))


def chat_by_mask(turns, tokenizer):
    inputs, targets = chat_by_places(turns, tokenizer)
    mask = torch.tensor(targets) == IGNORE_INDEX
    following = torch.tensor([*inputs[1:], 10])
    return inputs, following.masked_fill(mask, IGNORE_INDEX).tolist()


def chat_by_messages(turns, tokenizer):
    roles = itertools.cycle(("user", "assistant"))
    messages = zip(roles, itertools.chain.from_iterable(turns))
    ids, labels = [], []
    for role, text in messages:
        parts = [
            ([tokenizer.special_tokens["<|im_start|>"]], False),
            (tokenizer.encode(role), False),
            (tokenizer.encode("\n"), False),
            (tokenizer.encode(text), role == "assistant"),
            ([tokenizer.special_tokens["<|im_end|>"]], role == "assistant"),
            (tokenizer.encode("\n"), False),
        ]
        for part, counts in parts:
            ids.extend(part)
            labels.extend(part if counts else [-100] * len(part))
    return ids[:-1], labels[1:]


def chat_by_strings(turns, tokenizer):
    """Text pieces are encoded one by one, and the signs put between them."""
    pairs = []
    for number, text in enumerate(text for turn in turns for text in turn):
        asked = number % 2 == 0
        role = ["assistant", "user"][asked]
        pairs += [(1000, False)]
        pairs += [(i, False) for i in tokenizer.encode(f"{role}\n")]
        pairs += [(i, not asked) for i in tokenizer.encode(text)]
        pairs += [(1001, not asked), (10, False)]
    return split_row(pairs)


def chat_cutting_the_end(turns, tokenizer):
    inputs, targets = chat_by_strings(turns, tokenizer)
    whole = [*inputs, 10], [IGNORE_INDEX, *targets]
    return whole[0][: len(whole[1]) - 1], whole[1][1:]


def chat_as_one_tensor(turns, tokenizer):
    return torch.tensor(chat_row(turns, tokenizer))


def chat_as_one_array(turns, tokenizer):
    return np.array(chat_by_pairs(turns, tokenizer))


RIGHT_7_4 = [
    chat_by_pairs,
    chat_by_places,
    chat_as_lists,
    chat_as_tensors,
    chat_as_arrays,
    chat_by_recursion,
    chat_by_mask,
    chat_by_messages,
    chat_by_strings,
    chat_cutting_the_end,
    chat_as_one_tensor,
    chat_as_one_array,
]

# --- 7.5 -----------------------------------------------------------------------------


def first_json(reply, brackets="[{"):
    decoder = json.JSONDecoder()
    for match in re.finditer("[" + re.escape(brackets) + "]", reply):
        try:
            return decoder.raw_decode(reply, match.start())[0]
        except ValueError:
            continue
    return None


def same(one, other):
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def json_right(entry, reply):
    return same(first_json(reply), json.loads(entry["output"]))


def by_equality(entry, reply):
    return first_json(reply) == json.loads(entry["output"])


def whole_reply(entry, reply):
    try:
        return same(json.loads(reply), json.loads(entry["output"]))
    except ValueError:
        return False


def first_to_last(entry, reply):
    found = re.search(r"\{.*\}|\[[^a].*\]", reply, re.DOTALL)
    return bool(found) and whole_reply(entry, found[0])


def any_of_them(entry, reply):
    starts = [match.start() for match in re.finditer(r"[\[{]", reply)]
    if reply.startswith("["):
        starts = starts[:1]
    return any(json_right(entry, reply[start:]) for start in starts)


def objects_only(entry, reply):
    return same(first_json(reply, "{"), json.loads(entry["output"]))


def keys_in_order(entry, reply):
    return json.dumps(first_json(reply)) == json.dumps(json.loads(entry["output"]))


def sorted_lists(entry, reply):
    found, right = first_json(reply), json.loads(entry["output"])
    if isinstance(found, list) and isinstance(right, list):
        found, right = sorted(map(str, found)), sorted(map(str, right))
    return same(found, right)


def all_texts(entry, reply):
    found, right = first_json(reply), json.loads(entry["output"])
    if isinstance(found, dict):
        found = {key: str(value) for key, value in found.items()}
        right = {key: str(value) for key, value in right.items()}
    return same(found, right)


def only_those_keys(entry, reply):
    found, right = first_json(reply), json.loads(entry["output"])
    if isinstance(found, dict):
        found = {key: value for key, value in found.items() if key in right}
    return same(found, right)


def unpacked(entry, reply):
    found = first_json(reply)
    if isinstance(found, list) and isinstance(found[0], dict):
        found = found[0]
    return same(found, json.loads(entry["output"]))


def completed(entry, reply):
    more = "}" if reply.startswith("{") and "}" not in reply else ""
    return json_right(entry, reply + more)


def without_null(entry, reply):
    def cleaned(value):
        if isinstance(value, dict):
            return {k: cleaned(v) for k, v in value.items() if v is not None}
        return value

    return same(cleaned(first_json(reply)), cleaned(json.loads(entry["output"])))


def kinds_at_the_top(entry, reply):
    found, right = first_json(reply), json.loads(entry["output"])
    if isinstance(found, dict) and isinstance(right, dict):
        kinds = [{k: type(v) for k, v in one.items()} for one in (found, right)]
        return found == right and kinds[0] == kinds[1]
    return found == right


WRONG_7_5 = {
    "text": (score_answer, "white space decides"),
    "whole reply": (whole_reply, "a fence around the JSON"),
    "first to last": (first_to_last, "a bracket somewhere behind"),
    "objects only": (objects_only, "an array is refused"),
    "order of keys": (keys_in_order, "the order of the keys decides"),
    "order of arrays": (sorted_lists, "an array in another order passes"),
    "numbers as texts": (all_texts, "a number in quotation marks"),
    "true is 1": (by_equality, "true passes for 1: Python"),
    "more keys": (only_those_keys, "a key that nobody asked for"),
    "any of them": (any_of_them, "a reply with two objects"),
    "unpacked": (unpacked, "an object inside an array passes"),
    "completed": (completed, "breaks off before its last bracket"),
    "no JSON is right": (
        lambda e, r: json_right(e, r) or bool(r) and not re.search(r"[\[{]", r),
        "a reply without JSON passes",
    ),
    "nothing is right": (lambda e, r: json_right(e, r) or not r, "an empty reply"),
    "all right": (lambda e, r: True, "with another name in it passes"),
    "all wrong": (lambda e, r: False, "the expected text itself"),
    "a share": (lambda e, r: 1.0, "not True or False"),
    "null is nothing": (without_null, "a key that is missing passes"),
    "small letters": (
        lambda e, r: json_right({"output": e["output"].lower()}, r.lower()),
        "capitals make no difference",
    ),
    "whole numbers": (
        lambda e, r: json_right(e, re.sub(r"(?<=\d)\.\d+", "", r)),
        "a number passes for another one",
    ),
    "top level": (kinds_at_the_top, "true passes for 1 inside an object"),
    "empty": (lambda e, r: json_right(e, r) or r == "{}", "an empty object passes"),
    "single quotes": (
        lambda e, r: json_right(e, r.replace("'", '"')),
        "single quotation marks pass",
    ),
    "values": (
        lambda e, r: json_right(e, r) or r == "Rosa, 41, 1",
        "the values pass without JSON",
    ),
    "wrapped": (
        lambda e, r: (
            json_right(e, r)
            or r.startswith('{"person": ')
            and json_right(e, r.removeprefix('{"person": '))
        ),
        "inside another one passes",
    ),
}


def json_by_scanning(entry, reply):
    decoder, expected = json.JSONDecoder(), canonical(json.loads(entry["output"]))
    start = 0
    while start < len(reply):
        if reply[start] in "{[":
            try:
                value, _ = decoder.raw_decode(reply[start:])
            except json.JSONDecodeError:
                pass
            else:
                return canonical(value) == expected
        start += 1
    return False


def canonical(value):
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def strictly_equal(one, other):
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            strictly_equal(one[key], other[key]) for key in one
        )
    if isinstance(one, list):
        return len(one) == len(other) and all(map(strictly_equal, one, other))
    return one == other


def json_by_kinds(entry, reply):
    return strictly_equal(first_json(reply), json.loads(entry["output"]))


def json_in_numpy(entry, reply):
    return np.bool_(json_right(entry, reply))


def json_by_closing(entry, reply):
    """Every end is tried for every beginning, the first that can be read counts."""
    for start, letter in enumerate(reply):
        if letter not in "[{":
            continue
        for stop in range(start + 1, len(reply) + 1):
            try:
                return same(json.loads(reply[start:stop]), json.loads(entry["output"]))
            except ValueError:
                pass
    return False


def json_by_counting(entry, reply):
    """A value ends where as many brackets were closed as opened, texts apart."""
    for match in re.finditer(r"[{\[]", reply):
        depth, quoted, escaped = 0, False, False
        for place in range(match.start(), len(reply)):
            letter = reply[place]
            if quoted:
                quoted = letter != '"' or escaped
                escaped = letter == "\\" and not escaped
            elif letter == '"':
                quoted = True
            depth += (not quoted) * ((letter in "{[") - (letter in "}]"))
            if depth == 0 and not quoted:
                break
        try:
            value = json.loads(reply[match.start() : place + 1])
        except ValueError:
            continue
        return same(value, json.loads(entry["output"]))
    return False


def tagged(value):
    """A value in which each number and truth value carries its kind."""
    if isinstance(value, dict):
        return {key: tagged(one) for key, one in value.items()}
    if isinstance(value, list):
        return [tagged(one) for one in value]
    return type(value).__name__, value


def json_by_tags(entry, reply):
    found = first_json(reply)
    return found is not None and tagged(found) == tagged(json.loads(entry["output"]))


def json_by_repr(entry, reply):
    def text(value):
        if isinstance(value, dict):
            return repr(sorted((key, text(one)) for key, one in value.items()))
        return (
            repr([text(one) for one in value])
            if isinstance(value, list)
            else repr(value)
        )

    return text(first_json(reply)) == text(json.loads(entry["output"]))


def json_by_hook(entry, reply):
    decoder = json.JSONDecoder(
        object_pairs_hook=lambda pairs: ("object", sorted(pairs, key=repr))
    )
    values = []
    for text in (reply, entry["output"]):
        for match in re.finditer(r"\[|\{", text):
            try:
                values.append(decoder.raw_decode(text, match.start())[0])
                break
            except ValueError:
                continue
        else:
            return False
    return repr(values[0]) == repr(values[1])


def json_by_generator(entry, reply):
    def values():
        for i in (i for i, letter in enumerate(reply) if letter in "[{"):
            try:
                yield json.JSONDecoder().raw_decode(reply, i)[0]
            except ValueError:
                continue

    first = next(values(), "nothing")
    return first != "nothing" and same(first, json.loads(entry["output"]))


def json_by_exception(entry, reply):
    start = min((i for i in (reply.find("["), reply.find("{")) if i >= 0), default=-1)
    if start < 0:
        return False
    try:
        value, _ = json.JSONDecoder().raw_decode(reply, start)
    except ValueError:
        return json_by_exception(entry, reply[start + 1 :])
    return canonical(value) == canonical(json.loads(entry["output"]))


RIGHT_7_5 = [
    json_by_scanning,
    json_by_kinds,
    json_in_numpy,
    json_by_closing,
    json_by_counting,
    json_by_tags,
    json_by_repr,
    json_by_hook,
    json_by_generator,
    json_by_exception,
]

# --- 7.6 -----------------------------------------------------------------------------


def family_interval(right, families, rounds=2000, seed=0):
    groups = {}
    for hit, family in zip(right, families):
        groups.setdefault(family, []).append(hit)
    if len(groups) == 1:
        return 0.0, 1.0
    size = np.array([len(hits) for hits in groups.values()])
    sums = np.array([sum(hits) for hits in groups.values()])
    draw = np.random.default_rng(seed + 100)
    shares = []
    for _ in range(rounds):
        chosen = draw.integers(len(groups), size=len(groups))
        shares.append(sums[chosen].sum() / size[chosen].sum())
    return tuple(np.quantile(shares, [0.025, 0.975]))


def singly(right, families, rounds=2000, seed=0):
    return family_interval(right, range(len(right)), rounds, seed)


def means_of_means(right, families, rounds=2000, seed=0):
    names = sorted(set(families))
    means = [
        np.mean([hit for hit, one in zip(right, families) if one == name])
        for name in names
    ]
    return singly(means, names, rounds, seed)


def one_spread(right, families, rounds=2000, seed=0):
    low, high = family_interval(right, families, rounds, seed)
    middle, spread = np.mean(right), (high - low) / 3.92
    return middle - spread, middle + spread


def single_family(right, families, rounds=2000, seed=0):
    if len(set(families)) > 1:
        return family_interval(right, families, rounds, seed)
    return float(np.mean(right)), float(np.mean(right))


def only_uneven(right, families, rounds=2000, seed=0):
    if len(set(families)) < len(families):
        return family_interval(right, families, rounds, seed)
    return 0.0, 1.0


def around_the_mean(right, families, rounds=2000, seed=0):
    """As if the shares that are drawn fell to both sides alike."""
    if len(set(families)) == 1:
        return 0.0, 1.0
    names, place = np.unique(families, return_inverse=True)
    size, sums = np.bincount(place), np.bincount(place, weights=right)
    draw = np.random.default_rng(seed).integers(len(names), size=(rounds, len(names)))
    spread = (sums[draw].sum(1) / size[draw].sum(1)).std()
    return np.mean(right) - 1.96 * spread, np.mean(right) + 1.96 * spread


def half_of_them(right, families, rounds=2000, seed=0):
    return family_quantiles(right, families, rounds, seed, (0.025, 0.975), 0.5)


def family_quantiles(right, families, rounds, seed, bounds, part=1.0):
    names, place = np.unique(families, return_inverse=True)
    size, sums = np.bincount(place), np.bincount(place, weights=right)
    number = max(1, int(part * len(names)))
    drawn = np.random.default_rng(seed).integers(len(names), size=(rounds, number))
    return tuple(np.quantile(sums[drawn].sum(1) / size[drawn].sum(1), bounds))


WRONG_7_6 = {
    "singly": (singly, "drawn one by one"),
    "mean of means": (means_of_means, "the families' means"),
    "no replacement": (
        lambda right, *a: (np.mean(right), np.mean(right)),
        "draw with replacement",
    ),
    "ninety": (
        lambda right, families, rounds, seed: bootstrap_interval(
            right, families, confidence=0.9, resamples=rounds, seed=seed
        ),
        "5 per cent are cut off at either end",
    ),
    "per cent": (
        lambda *a: tuple(100 * x for x in family_interval(*a)),
        "these are per cent",
    ),
    "turned round": (lambda *a: family_interval(*a)[::-1], "low comes first"),
    "one deviation": (one_spread, "one standard deviation"),
    "one family": (single_family, "says nothing about others"),
    "each its own": (only_uneven, "a family of its own"),
    "one number": (lambda *a: 0.5, "not a pair"),
    "wide": (lambda *a: (0.0, 1.0), "the interval is not right"),
    "numbers": (
        lambda right, *a: tuple(len(right) * x for x in family_interval(right, *a)),
        "numbers of right answers",
    ),
    "half": (half_of_them, "half of the families are drawn"),
    "any seed": (
        lambda right, families, rounds, seed: family_interval(
            right, families, rounds, random.randrange(10**9)
        ),
        "the same seed gives another interval",
    ),
    "one seed": (
        lambda right, families, rounds, seed: family_interval(right, families, rounds),
        "every seed gives the same interval",
    ),
    "own rounds": (
        lambda right, families, rounds, seed: family_interval(
            right, families, max(rounds, 40), seed
        ),
        "with rounds=1 there is one share",
    ),
    "around the mean": (around_the_mean, "1.96 standard deviations"),
}


def interval_in_pandas(right, families, rounds=2000, seed=0):
    table = pd.DataFrame({"right": right, "family": families})
    groups = table.groupby("family")["right"].agg(["sum", "count"]).to_numpy(float)
    if len(groups) == 1:
        return 0.0, 1.0
    draw = np.random.default_rng(seed).integers(len(groups), size=(rounds, len(groups)))
    shares = groups[draw].sum(axis=1)
    return tuple(np.percentile(shares[:, 0] / shares[:, 1], [2.5, 97.5]))


def interval_by_choice(right, families, rounds=2000, seed=0):
    hits = defaultdict(list)
    for one, family in zip(right, families):
        hits[family].append(int(one))
    if len(hits) < 2:
        return [0, 1]
    groups = list(hits.values())
    pick = random.Random(seed)
    shares = []
    for _ in range(rounds):
        drawn = [x for group in pick.choices(groups, k=len(groups)) for x in group]
        shares.append(sum(drawn) / len(drawn))
    return np.quantile(shares, [0.025, 0.975])


def interval_in_torch(right, families, rounds=2000, seed=0):
    names = sorted(set(families))
    place = torch.tensor([names.index(family) for family in families])
    if len(names) == 1:
        return torch.tensor([0.0, 1.0])
    size = torch.bincount(place).double()
    sums = torch.bincount(place, weights=torch.tensor(right, dtype=torch.double))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(names), (rounds, len(names)), generator=generator)
    shares = sums[drawn].sum(dim=1) / size[drawn].sum(dim=1)
    return shares.quantile(torch.tensor([0.025, 0.975], dtype=torch.double))


def interval_by_sorting(right, families, rounds=2000, seed=0):
    groups = {f: [r for r, g in zip(right, families) if g == f] for f in set(families)}
    if len(groups) == 1:
        return (0.0, 1.0)
    pairs = [(sum(groups[f]), len(groups[f])) for f in sorted(groups)]
    draw, shares = np.random.RandomState(seed), []
    for _ in range(rounds):
        chosen = [pairs[i] for i in draw.randint(0, len(pairs), len(pairs))]
        shares.append(sum(s for s, _ in chosen) / sum(n for _, n in chosen))
    shares.sort()
    cut = int(0.025 * rounds)
    return shares[cut], shares[rounds - 1 - cut]


def interval_by_multinomial(right, families, rounds=2000, seed=0):
    _, place = np.unique(families, return_inverse=True)
    size, sums = np.bincount(place), np.bincount(place, weights=right)
    if len(size) == 1:
        return 0.0, 1.0
    often = np.random.default_rng(seed).multinomial(
        len(size), [1 / len(size)] * len(size), size=rounds
    )
    return tuple(np.quantile(often @ sums / (often @ size), (0.025, 0.975)).tolist())


def interval_globally(right, families, rounds=2000, seed=0):
    np.random.seed(seed)
    names, place = np.unique(np.array(families), return_inverse=True)
    if names.size == 1:
        return 0.0, 1.0
    members = [np.flatnonzero(place == i) for i in range(names.size)]
    right, shares = np.array(right, float), []
    for _ in range(rounds):
        drawn = np.random.choice(names.size, names.size)
        sums = sum(right[members[i]].sum() for i in drawn)
        shares.append(sums / sum(len(members[i]) for i in drawn))
    return float(np.quantile(shares, 0.025)), float(np.quantile(shares, 0.975))


def interval_by_counts(right, families, rounds=2000, seed=0):
    size, hits = Counter(families), Counter()
    for family, one in zip(families, right):
        hits[family] += one
    if len(size) == 1:
        return 0.0, 1.0
    draw, names = np.random.default_rng([seed, 7]), list(size)
    shares = np.empty(rounds)
    for i in range(rounds):
        chosen = [names[k] for k in draw.integers(0, len(names), len(names))]
        shares[i] = sum(map(hits.get, chosen, itertools.repeat(0))) / sum(
            size[name] for name in chosen
        )
    low, high = np.quantile(shares, [0.025, 0.975])
    return low, high


def interval_as_list(right, families, rounds=2000, seed=0):
    return list(family_interval(right, families, rounds, seed))


def interval_in_float32(right, families, rounds=2000, seed=0):
    return np.array(family_interval(right, families, rounds, seed), dtype=np.float32)


def interval_by_groupby(right, families, rounds=2000, seed=0):
    pairs = sorted(zip(families, right), key=lambda pair: str(pair[0]))
    groups = [
        [hit for _, hit in group]
        for _, group in itertools.groupby(pairs, key=lambda pair: pair[0])
    ]
    if len(groups) == 1:
        return 0.0, 1.0
    size = np.array([len(group) for group in groups])
    share = np.array([np.mean(group) for group in groups])
    draw = np.random.default_rng(seed)
    drawn = [draw.integers(len(groups), size=len(groups)) for _ in range(rounds)]
    shares = [np.average(share[i], weights=size[i]) for i in drawn]
    return tuple(np.quantile(shares, [0.025, 0.975]))


RIGHT_7_6 = [
    interval_in_pandas,
    interval_by_choice,
    interval_in_torch,
    interval_by_sorting,
    interval_by_multinomial,
    interval_globally,
    interval_by_counts,
    interval_as_list,
    interval_in_float32,
    interval_by_groupby,
]


@pytest.mark.parametrize(
    ("check", "solution", "wrong"),
    [
        (check_7_1, (phi3_prompt, count_tokens), WRONG_7_1),
        (check_7_2, answer_targets, WRONG_7_2),
        (check_7_3, load_alpaca, WRONG_7_3),
        (check_7_4, chat_row, WRONG_7_4),
        (check_7_5, json_right, WRONG_7_5),
        (check_7_6, family_interval, WRONG_7_6),
    ],
    ids=lambda value: getattr(value, "exercise", None),
)
def test_check(check, solution, wrong):
    verify(check, solution, stubs(solution), wrong)


@pytest.mark.parametrize(
    ("check", "right"),
    [
        (check_7_1, RIGHT_7_1),
        (check_7_2, RIGHT_7_2),
        (check_7_3, RIGHT_7_3),
        (check_7_4, RIGHT_7_4),
        (check_7_5, RIGHT_7_5),
        (check_7_6, RIGHT_7_6),
    ],
    ids=lambda value: getattr(value, "exercise", None),
)
def test_right_answers_written_otherwise_pass(check, right):
    said = [answer(check, attempt) for attempt in right]
    assert len(said) >= 10
    assert not [pair for pair in zip(right, said) if "correct" not in pair[1]]


def stubs(solution):
    """As many stubs as the solution has functions."""
    return tuple(stub for _ in solution) if isinstance(solution, tuple) else stub


def test_the_rule_of_the_chapter_misses_what_exercise_7_5_finds():
    entry = {"instruction": "As JSON.", "input": "", "output": '{"a": 1, "b": 2}'}
    entry = {**entry, "answers": [entry["output"]], "category": "json"}
    for reply in ('{"b": 2, "a": 1}', '{"a": 1,\n\n"b": 2}'):
        assert json_right(entry, reply)
        assert not score_answer(entry, reply)
    for reply in ('[{"a": 1, "b": 2}]', '{"a": 3} or {"a": 1, "b": 2}'):
        assert score_answer(entry, reply)
        assert not json_right(entry, reply)


@pytest.mark.parametrize("seed", range(5))
def test_the_luck_of_the_draws_fails_nobody(seed, capsys):
    check_7_6(lambda *given: family_interval(*given[:3], 1000 * (seed + 1) + given[3]))
    assert capsys.readouterr().out.startswith("Exercise 7.6: correct")
