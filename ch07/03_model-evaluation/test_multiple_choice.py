"""Scores equal those of a plain reimplementation; the questions are fair."""

import re
from collections import Counter

import numpy as np
import pytest
import tiktoken
import torch

from multiple_choice import (
    LETTERS,
    ChoiceQuestion,
    changed_by_order,
    cloze_prompt,
    cloze_scores,
    continuation_logprobs,
    encode_pair,
    hits,
    letter_prompt,
    letter_scores,
    letter_shares,
    read_choice_questions,
    rotations,
)
from small_models import small_configs, small_model

GPT2 = tiktoken.get_encoding("gpt2")
ASK = ChoiceQuestion(
    "x", "What do bees make?", ("milk", "silk", "salt", "honey pot"), 3
)


@pytest.fixture(scope="module", params=["GPT", "Llama"])
def model(request):
    return small_model(small_configs(96, GPT2.n_vocab)[request.param])


# --- A plain reimplementation ---------------------------------------------------------


def log_softmax(logits):
    logits = np.asarray(logits, dtype=np.float64)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def plain_logprob(model, context, continuation):
    """Token by token, each with all of the text before it: no cache, no batch."""
    total, ids = 0.0, list(context)
    for token in continuation:
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0, -1]
        total += log_softmax(logits.double().numpy())[token]
        ids.append(token)
    return total


def plain_scores(model, question):
    context = GPT2.encode(f"Question: {question.question}\nAnswer:")
    found = {name: [] for name in ("sum", "tokens", "characters", "bytes", "question")}
    for choice in question.choices:
        ids = GPT2.encode(" " + choice)
        total = plain_logprob(model, context, ids)
        found["sum"].append(total)
        found["tokens"].append(total / len(ids))
        found["characters"].append(total / len(choice))
        found["bytes"].append(total / len(choice.encode("utf-8")))
        alone = plain_logprob(model, GPT2.encode("Answer:"), ids)
        found["question"].append(total - alone)
    return found


def test_cloze_scores_are_those_of_a_plain_reimplementation(model):
    questions = [ASK, *read_choice_questions()[::31]]
    questions.append(
        ChoiceQuestion(
            "x", "O\u00f9 ?", ("\u00e0 l'\u00e9t\u00e9", "a", "\u65e5\u672c", "no"), 0
        )
    )
    for question in questions:
        ours, theirs = (
            cloze_scores(model, GPT2, question),
            plain_scores(model, question),
        )
        assert list(ours) == list(theirs)
        for way in theirs:
            assert np.allclose(ours[way], theirs[way], rtol=0, atol=1e-4), way


def test_letter_scores_are_those_of_a_plain_reimplementation(model):
    for order in [(0, 1, 2, 3), (2, 0, 3, 1)]:
        lines = [f"{x}. {ASK.choices[i]}" for x, i in zip("ABCD", order)]
        text = f"Question: {ASK.question}\n" + "\n".join(lines) + "\nAnswer:"
        assert letter_prompt(ASK, order) == text
        ours = letter_scores(model, GPT2, ASK, order)
        for place, choice in enumerate(order):
            (token,) = GPT2.encode(" " + "ABCD"[place])
            theirs = plain_logprob(model, GPT2.encode(text), [token])
            assert ours[choice] == pytest.approx(theirs, abs=1e-4)
    assert letter_prompt(ASK) == letter_prompt(ASK, (0, 1, 2, 3))
    assert np.array_equal(
        letter_scores(model, GPT2, ASK), letter_scores(model, GPT2, ASK, range(4))
    )


def test_continuations_do_not_see_each_other(model):
    context, ids = [5, 7, 11], [[3], [9, 4, 1, 2], [9, 8]]
    together = continuation_logprobs(model, context, ids)
    for one, sum_ in zip(ids, together):
        assert torch.allclose(continuation_logprobs(model, context, [one])[0], sum_)
        assert sum_.item() == pytest.approx(
            plain_logprob(model, context, one), abs=1e-4
        )
    assert together[0].dtype == torch.float32
    alone = continuation_logprobs(model, context, [[3], [9]])
    assert torch.allclose(alone[0], together[0])


def test_all_continuations_of_one_token_make_up_one(model):
    ids = [[token] for token in range(GPT2.n_vocab)]
    total = continuation_logprobs(model, [5, 7], ids).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-4)


def test_context_and_continuation_are_encoded_as_one():
    assert encode_pair(GPT2, "Answer:", " honey") == (
        GPT2.encode("Answer:"),
        GPT2.encode(" honey"),
    )
    # A blank at the end would be a token of its own, and the word another one.
    assert encode_pair(GPT2, "Answer: ", "honey") == encode_pair(
        GPT2, "Answer:", " honey"
    )
    for question in read_choice_questions():
        for choice in question.choices:
            ids, behind = encode_pair(GPT2, cloze_prompt(question), f" {choice}")
            assert GPT2.decode(behind) == f" {choice}"
            assert GPT2.decode(ids) == cloze_prompt(question)


# --- What came of it ------------------------------------------------------------------


def test_a_tie_counts_as_its_share():
    scores = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]]
    assert hits(scores, [0, 1, 2, 0]).tolist() == [1, 0.5, 0.25, 0]


def test_each_choice_stands_once_under_each_letter():
    assert len(rotations()) == 4
    for place in zip(*rotations()):
        assert sorted(place) == [0, 1, 2, 3]


def test_a_judge_of_letters_and_one_of_choices():
    draw = np.random.default_rng(4)
    content = draw.normal(size=(50, 4))
    orders = np.array(rotations())
    by_content = np.stack([content] * 4)
    assert changed_by_order(by_content) == 0
    places = np.argsort(orders, axis=1)  # the letter of each choice
    likes_b = np.stack([np.tile(row == 1, (50, 1)).astype(float) for row in places])
    assert letter_shares(likes_b, orders).tolist() == [0, 1, 0, 0]
    assert changed_by_order(likes_b) == 1
    shares = letter_shares(by_content, orders)
    assert np.allclose(shares, 0.25)  # over all rotations no letter is favoured
    answers = draw.integers(4, size=50)
    hit = np.mean([hits(scores, answers).mean() for scores in likes_b])
    assert hit == pytest.approx(0.25)


# --- The questions --------------------------------------------------------------------


def test_the_questions_are_many_balanced_and_different():
    questions = read_choice_questions()
    assert len(questions) == 128
    by_subject = Counter(one.subject for one in questions)
    assert set(by_subject.values()) == {16}
    assert len(by_subject) == 8
    for subject in by_subject:
        places = Counter(one.answer for one in questions if one.subject == subject)
        assert set(places.values()) == {4}
    assert len({one.question for one in questions}) == 128
    for one in questions:
        assert len({choice.lower() for choice in one.choices}) == len(LETTERS)
        assert one.question.endswith("?")
        right = re.escape(one.choices[one.answer].lower())
        assert not re.search(rf"\b{right}\b", one.question.lower()), one


def test_neither_length_nor_letter_gives_the_answer_away():
    questions = read_choice_questions()
    answers = [one.answer for one in questions]
    for sign in (1, -1):
        lengths = [[sign * len(choice) for choice in one.choices] for one in questions]
        share = hits(lengths, answers).mean()
        assert 0.25 - 0.077 < share < 0.25 + 0.077, share  # two standard errors
