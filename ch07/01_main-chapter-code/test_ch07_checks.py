"""Every exercise check takes the solution, knows the stub and names mistakes."""

import json
import re

import numpy as np
import pytest

from answer_scores import score_answer
from ch07_checks import (
    check_7_1,
    check_7_2,
    check_7_3,
    check_7_4,
    check_7_5,
    check_7_6,
)
from course.exercises import verify
from gpt_class_finetune import bootstrap_interval
from gpt_instruction_finetuning import (
    FORMATS,
    IGNORE_INDEX,
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
}
WRONG_7_1 = {
    **{name: ((one, count_tokens), said) for name, (one, said) in WRONG_7_1.items()},
    **{name: ((phi3_prompt, one), said) for name, (one, said) in WRONG_COUNTS.items()},
}

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
}

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


WRONG_7_3 = {
    "as it is": (read, "as it is"),
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
            e
            for e in read(p)
            if e["output"] and e["input"] not in ("<noinput>", "<noInput>")
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
    "reversed": (lambda p: load_alpaca(p)[::-1], "not those of the file"),
}

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
}

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


WRONG_7_5 = {
    "text": (score_answer, "white space decides"),
    "whole reply": (whole_reply, "a fence around the JSON"),
    "first to last": (first_to_last, "a bracket somewhere behind"),
    "objects only": (objects_only, "an array is refused"),
    "order of keys": (keys_in_order, "the order of the keys decides"),
    "order of arrays": (sorted_lists, "an array in another order passes"),
    "numbers as texts": (all_texts, "a number in quotation marks"),
    "true is 1": (by_equality, "true passes for 1"),
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
}

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
}


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
    check_7_6(lambda *given: family_interval(*given[:3], seed=1000 + seed))
    assert capsys.readouterr().out.startswith("Exercise 7.6: correct")
