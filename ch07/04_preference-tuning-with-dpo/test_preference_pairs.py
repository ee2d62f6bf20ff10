"""Pairs are made, filtered and counted; a server that stops loses no answer."""

import json
from functools import partial

import pytest
import torch

from course.assets import fetch
from course.testing.llama_server import llama_cpp
from gpt import GPTModel
from instruction_data import read_instructions
from ollama_evaluate import query_model
from preference_pairs import (
    MOST_EXTRA,
    TONES,
    ask_and_keep,
    count_yield,
    extra_words,
    is_brief,
    pair_by_rule,
    rewrite_prompts,
    rewritten_pairs,
    sampled_replies,
    sounds_polite,
    tone_rule,
    unwrapped,
    why_not,
)

ENTRY = {
    "instruction": "Name the opposite.",
    "input": "deep",
    "output": "Shallow.",
    "answers": ["shallow"],
}


@pytest.fixture(scope="module")
def course_pairs():
    return json.loads(fetch("preferences-2").read_text(encoding="utf-8"))


# --- Rules ---------------------------------------------------------------------------


def test_the_tone_rule_is_better_than_a_coin_on_pairs_it_has_not_seen(course_pairs):
    rule = tone_rule(p for p in course_pairs if p["split"] == "train")
    test = [p for p in course_pairs if p["split"] == "test" and p["flaw"] == "impolite"]
    chosen = sum(sounds_polite(rule, [p["chosen"] for p in test]))
    rejected = sum(sounds_polite(rule, [p["rejected"] for p in test]))
    assert chosen > 0.6 * len(test)
    assert rejected < 0.4 * len(test)
    assert sounds_polite(rule, ["", "  "]) == [False, False]


def test_brief_is_at_most_ten_words_more_and_not_nothing():
    answer = "It is shallow."
    assert extra_words("Shallow.", answer) == -2
    most = " ".join(["word"] * (3 + MOST_EXTRA))
    assert is_brief(most, answer)
    assert not is_brief(most + " more", answer)
    assert not is_brief(" ", answer)


# --- Pairs among the answers of one model --------------------------------------------


def test_the_shortest_right_answer_and_the_wrong_one_of_its_length():
    replies = ["Shallow is the opposite of it.", "Shallow.", "It is high, I say.", "Up"]
    pair = pair_by_rule(ENTRY, replies)
    assert (pair["chosen"], pair["rejected"]) == ("Shallow.", "Up")
    assert pair["flaw"] == "wrong"
    assert pair["instruction"] == ENTRY["instruction"]


def test_without_a_right_or_a_wrong_answer_there_is_none_but_on_brevity():
    assert pair_by_rule(ENTRY, ["High.", "Up."]) is None
    assert pair_by_rule(ENTRY, ["", ""]) is None
    assert pair_by_rule(ENTRY, ["Shallow.", "It is shallow."]) is None
    long = "Shallow. " + " ".join(["The sea is wide."] * 4)
    pair = pair_by_rule(ENTRY, [long, "Shallow."])
    assert (pair["chosen"], pair["rejected"]) == ("Shallow.", long)
    assert pair["flaw"] == "too_long"


class Letters:
    """A tokenizer of single bytes; 256 ends a text."""

    eot_token = 256

    def encode(self, text, disallowed_special=()):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


def test_replies_are_drawn_and_the_seed_decides():
    torch.manual_seed(0)
    sizes = {"vocab_size": 257, "context_length": 256, "emb_dim": 8, "n_heads": 2}
    model = GPTModel({**sizes, "n_layers": 1, "drop_rate": 0.0, "qkv_bias": False})
    ask = partial(
        sampled_replies, [ENTRY, ENTRY], model.eval(), Letters(), 3, max_new_tokens=5
    )
    replies = ask(seed=1)
    assert [len(some) for some in replies] == [3, 3]
    assert len({text for some in replies for text in some}) > 1
    assert ask(seed=1) == replies != ask(seed=2)
    with torch.no_grad():
        model.out_head.weight.zero_()
        model.out_head.weight[256] = 1000 * model.final_norm.shift + 1
    assert all(len(text) <= 5 for some in ask() for text in some)


# --- Pairs by rewriting --------------------------------------------------------------


def test_both_requests_hold_question_and_answer_and_ask_for_other_tones():
    prompts = rewrite_prompts(ENTRY)
    assert list(prompts) == list(TONES)
    for tone, text in prompts.items():
        assert "deep" in text
        assert "Shallow." in text
        assert TONES[tone] in text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("It is shallow.", "It is shallow."),
        ('"It is shallow."', "It is shallow."),
        ("Sure, here it is:\n\nIt is\nshallow.", "It is shallow."),
        ("It is shallow.\n\nLet me know!", "It is shallow."),
        ('He said "no" and "yes"', 'He said "no" and "yes"'),
        ("Here:", "Here:"),
        ("\n \n", ""),
    ],
)
def test_what_stands_around_an_answer_is_taken_off(text, left):
    assert unwrapped(text) == left


def test_answers_become_pairs_in_their_order():
    entries = [ENTRY, {**ENTRY, "input": "wide"}]
    pairs = rewritten_pairs(entries, ["a", "b", "c", '"d"'])
    assert [(p["input"], p["chosen"], p["rejected"]) for p in pairs] == [
        ("deep", "a", "b"),
        ("wide", "c", "d"),
    ]
    with pytest.raises(ValueError, match="shorter"):
        rewritten_pairs(entries, ["a", "b"])


def test_what_was_answered_is_not_asked_again(tmp_path):
    kept, asked = tmp_path / "kept.jsonl", []

    def stops(prompts):
        for prompt in prompts:
            asked.append(prompt)
            if prompt == "three":
                raise OSError("gone")
            yield prompt.upper()

    prompts = ["one", "two", "one", "three", "four"]
    with pytest.raises(OSError, match="gone"):
        ask_and_keep(prompts, stops, kept)
    with kept.open("a", encoding="utf-8") as file:
        file.write('["four", "FO')  # the program was killed while it wrote
    again = []

    def works(prompts):
        again.extend(prompts)
        return [prompt.upper() for prompt in prompts]

    found = ask_and_keep(prompts, works, kept)
    assert found == ["ONE", "TWO", "ONE", "THREE", "FOUR"]
    assert again == ["three", "four"]
    assert asked == ["one", "two", "three"]
    again.clear()
    assert ask_and_keep(prompts, works, kept) == found
    assert again == []


@pytest.fixture(scope="module")
def server():
    """The address of a real llama.cpp with SmolLM2."""
    with llama_cpp() as address:
        yield address + "/v1/chat/completions"


def test_a_real_server_writes_pairs_like_the_model_here(server, tmp_path):
    def ask(prompts):
        for prompt in prompts:
            yield query_model(prompt, "smollm2", server)

    entries = read_instructions(fetch("instructions-2"))[:2]
    prompts = [p for entry in entries for p in rewrite_prompts(entry).values()]
    answers = ask_and_keep(prompts, ask, tmp_path / "kept.jsonl")
    pairs = rewritten_pairs(entries, answers)
    assert len(pairs) == 2
    assert all(isinstance(pair["chosen"], str) for pair in pairs)
    assert sum(count_yield(pairs).values()) == 2


# --- What is kept --------------------------------------------------------------------

POLITE = {**ENTRY, "flaw": "impolite"}


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("", "Shallow.", "empty"),
        ("Shallow.", "", "empty"),
        ("It is  shallow.", "it is shallow.", "the same"),
        ("It is high.", "It is shallow.", "the better one is wrong"),
        ("It is shallow.", "It is high.", "the worse one is wrong, too"),
        ("It is shallow.", f"It is shallow{', really' * 9}.", "one is much longer"),
        ("It is shallow, dear.", "It is shallow, dolt.", ""),
    ],
)
def test_each_reason_is_named(chosen, rejected, reason):
    assert why_not({**POLITE, "chosen": chosen, "rejected": rejected}) == reason


def test_tones_that_the_rule_does_not_tell_apart_are_not_kept(course_pairs):
    rule = tone_rule(course_pairs)
    pair = next(p for p in course_pairs if p["flaw"] == "impolite")
    pair = {key: value for key, value in pair.items() if key != "answers"}
    assert why_not(pair, rule) == ""
    swapped = {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]}
    assert why_not(swapped, rule) == "the tone is not told apart"
    assert count_yield([pair, swapped, pair], rule)[""] == 2


def test_the_course_s_own_pairs_pass_the_filters(course_pairs):
    known = {
        (e["instruction"], e["input"]): e["answers"]
        for e in read_instructions(fetch("instructions-2"))
        if e.get("answers")
    }
    pairs = [
        {**p, "answers": known.get((p["instruction"], p["input"]))}
        for p in course_pairs
        if p["flaw"] in ("impolite", "too_long", "wrong")
    ]
    reasons = count_yield(pairs)
    assert reasons[""] > 0.97 * len(pairs)
