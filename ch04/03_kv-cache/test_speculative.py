"""Guessing ahead proved: the same tokens, the same distribution, fewer passes."""

import copy
import functools
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt import GPTModel, generate_text_simple
from gpt_generate import next_token_probabilities
from small_models import small_configs, small_model
from speculative import (
    ModelDraft,
    PromptLookup,
    generate_speculatively,
    keep_or_replace,
    likeliest,
)

CONTEXT, V = 64, 13
CONFIGS = small_configs(CONTEXT, V)
MODELS = {kind: small_model(cfg) for kind, cfg in CONFIGS.items()}
models = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def prompt(length, seed=0):
    return torch.randint(V, (1, length), generator=seeded(seed))


def drafts(model):
    """Drafts that are always right, seldom right, and of no use."""
    other = small_model(model.cfg, seed=5)
    return {
        "itself": ModelDraft(model),
        "noise": ModelDraft(other),
        "lookup": PromptLookup(V),
        "long lookup": PromptLookup(V, longest=6),
        "none": PromptLookup(V, longest=0),
    }


# --- greedy: the same tokens ----------------------------------------------------------


@models
@settings(max_examples=10, deadline=None)
@given(
    length=st.integers(1, 9),
    new=st.integers(0, 25),
    ahead=st.integers(1, 7),
    seed=st.integers(0, 999),
)
def test_greedy_text_is_that_of_the_large_model(model, length, new, ahead, seed):
    idx = prompt(length, seed)
    expected = generate_text_simple(model, idx, new, CONTEXT)
    for name, draft in drafts(model).items():
        text, counts = generate_speculatively(model, draft, idx, new, ahead)
        assert torch.equal(text, expected), name
        assert counts.accepted <= counts.drafted
        assert counts.accepted + counts.passes == new


@models
@pytest.mark.parametrize("ahead", [1, 3, 4])
def test_a_draft_that_is_always_right_saves_all_it_can(model, ahead):
    _, counts = generate_speculatively(model, ModelDraft(model), prompt(4), 24, ahead)
    assert counts.passes == math.ceil(24 / (ahead + 1))
    assert counts.accepted == counts.drafted


class Wrong:
    """Guesses tokens that the model does not want."""

    def __init__(self, model):
        self.model = model

    def propose(self, ids, count):
        worst = self.model(ids[None])[0, -1].argmin()
        drafted = worst.expand(count)
        return drafted, torch.nn.functional.one_hot(drafted, V).float()


@models
def test_a_draft_that_is_always_wrong_costs_no_token(model):
    idx = prompt(4)
    text, counts = generate_speculatively(model, Wrong(model), idx, 10)
    assert torch.equal(text, generate_text_simple(model, idx, 10, CONTEXT))
    assert (counts.accepted, counts.passes) == (0, 10)


class Eager(Wrong):
    """Guesses more than it is asked for, the first of them right."""

    def propose(self, ids, count):
        first, row = self.model(ids[None])[0, -1].argmax(), super().propose(ids, 3)
        drafted = torch.cat((first[None], row[0]))
        return drafted, torch.nn.functional.one_hot(drafted, V).float()


@models
def test_a_draft_that_guesses_too_much_makes_no_text_longer(model):
    idx = prompt(4)
    for new in (1, 2, 7):
        text, _ = generate_speculatively(model, Eager(model), idx, new, 2)
        assert torch.equal(text, generate_text_simple(model, idx, new, CONTEXT))


def test_one_draft_may_serve_several_texts():
    """Its cache goes back by itself."""
    model, draft = MODELS["Llama"], ModelDraft(small_model(CONFIGS["Llama"], seed=3))
    for seed in range(4):
        idx = prompt(6, seed)
        text, _ = generate_speculatively(model, draft, idx, 12)
        assert torch.equal(text, generate_text_simple(model, idx, 12, CONTEXT))


def test_each_pass_reads_what_is_new_only():
    """Known mistake: a demonstration that reads the text again each time."""
    model, read = copy.deepcopy(MODELS["GPT"]), []
    model.tok_emb.register_forward_hook(lambda _, args, out: read.append(out.shape[1]))
    draft = ModelDraft(MODELS["GPT"])
    generate_speculatively(model, draft, prompt(6), 12, num_drafted=3)
    assert read == [9, 4, 4]


# --- sampling: the same distribution --------------------------------------------------

P = torch.tensor([[0.5, 0.2, 0.2, 0.1], [0.1, 0.6, 0.0, 0.3], [0.25, 0.25, 0.4, 0.1]])
Q = torch.tensor([[0.1, 0.6, 0.2, 0.1], [0.4, 0.1, 0.4, 0.1]])


def frequencies(texts, length):
    """How often each start of that length occurs, as a dictionary."""
    counts = {}
    for text in texts:
        key = tuple(text[:length])
        counts[key] = counts.get(key, 0) + 1
    return {key: count / len(texts) for key, count in counts.items()}


def distance(found, expected):
    """Half the sum of differences (total variation), 0 to 1."""
    keys = found.keys() | expected.keys()
    return sum(abs(found.get(k, 0) - expected.get(k, 0)) for k in keys) / 2


def draw_rounds(rule, rounds, seed=0):
    generator = seeded(seed)
    for _ in range(rounds):
        drafted = torch.multinomial(Q, 1, generator=generator)[:, 0]  # (2,)
        yield rule(drafted, Q, P, generator).tolist()


def refill_from_p(drafted, q, p, generator):
    """A tempting slip: after a refusal draw from p itself."""
    for i, token in enumerate(drafted):
        if torch.rand((), generator=generator) >= p[i, token] / q[i, token]:
            return torch.cat(
                (drafted[:i], torch.multinomial(p[i], 1, generator=generator))
            )
    return torch.cat((drafted, torch.multinomial(p[-1], 1, generator=generator)))


def test_kept_and_replaced_tokens_have_the_large_models_distribution():
    """The first token, and the second where there is one, on 4 tokens. Of 12,000 draws
    the distance by chance is about 0.006; the slip is at 0.1.
    """
    expected = {(t,): P[0, t].item() for t in range(4)}
    rounds = list(draw_rounds(keep_or_replace, 12_000))
    assert distance(frequencies(rounds, 1), expected) < 0.012
    second = [row[1:] for row in rounds if len(row) > 1]
    assert 0.4 < len(second) / len(rounds) < 0.6
    expected = {(t,): P[1, t].item() for t in range(4)}
    assert distance(frequencies(second, 1), expected) < 0.015
    third = [row[2:] for row in rounds if len(row) > 2]
    expected = {(t,): P[2, t].item() for t in range(4)}
    assert distance(frequencies(third, 1), expected) < 0.03
    slip = list(draw_rounds(refill_from_p, 4000))
    assert (
        distance(frequencies(slip, 1), {(t,): P[0, t].item() for t in range(4)}) > 0.05
    )


def test_the_share_that_stays_is_the_overlap():
    """Leviathan and others, theorem 3.5 and corollary 3.6: the sum of min(p, q)."""
    rounds = list(draw_rounds(keep_or_replace, 5000, seed=1))
    overlap = torch.minimum(P[0], Q[0]).sum().item()
    share = sum(len(row) > 1 for row in rounds) / len(rounds)
    assert abs(share - overlap) < 0.02


def test_equal_distributions_keep_everything():
    row = torch.rand(3, 5, generator=seeded(1)).softmax(dim=-1)
    for seed in range(200):
        generator = seeded(seed)
        drafted = torch.multinomial(row[:2], 1, generator=generator)[:, 0]
        kept = keep_or_replace(drafted, row[:2], row, generator)
        assert torch.equal(kept[:2], drafted)
        assert len(kept) == 3


def test_a_guess_that_the_large_model_never_makes_goes():
    p, q = torch.tensor([[0.0, 1.0], [0.5, 0.5]]), torch.tensor([[1.0, 0.0]])
    for seed in range(50):
        kept = keep_or_replace(torch.tensor([0]), q, p, seeded(seed))
        assert kept.tolist() == [1]


def test_rounding_alone_leaves_something_to_draw_from():
    """q above p by a rounding error: nothing is missing, and the guess may still go."""
    q = torch.tensor([[0.5, 0.5]])
    for seed in range(50):
        kept = keep_or_replace(torch.tensor([0]), q, q.repeat(2, 1) * 0.5, seeded(seed))
        assert kept.isfinite().all()


def test_sampled_texts_have_the_large_models_distribution():
    """Two tokens after a prompt, 16 texts in all, against their exact probabilities."""
    cfg = {**CONFIGS["GPT"], "vocab_size": 4, "context_length": 8, "n_layers": 1}
    large, small = small_model(cfg, seed=1), small_model(cfg, seed=2)
    heat = functools.partial(next_token_probabilities, temperature=0.5)
    idx = torch.tensor([[1, 3]])
    expected = {}
    with torch.no_grad():
        first = heat(large(idx)[:, -1])[0]
        for a, b in itertools.product(range(4), repeat=2):
            after = torch.cat((idx, torch.tensor([[a]])), dim=1)
            expected[a, b] = (first[a] * heat(large(after)[:, -1])[0, b]).item()
    assert abs(sum(expected.values()) - 1) < 1e-6
    generator = seeded(3)
    draft = ModelDraft(small, heat, generator)
    texts = [
        generate_speculatively(large, draft, idx, 2, 2, heat, generator)[0][0, 2:]
        for _ in range(800)
    ]
    found = frequencies([text.tolist() for text in texts], 2)
    assert distance(found, expected) < 0.07  # by chance about 0.04
    own = frequencies([[t] for text in texts for t in text[:1].tolist()], 1)
    alone = {(t,): heat(small(idx)[:, -1])[0, t].item() for t in range(4)}
    assert distance(own, alone) > 0.1  # the draft's own would be noticed


def test_top_k_of_chapter_5_goes_through():
    model = MODELS["GPT"]
    choice = functools.partial(next_token_probabilities, top_k=1)
    draft = ModelDraft(model, choice)
    text, _ = generate_speculatively(model, draft, prompt(3), 8, probabilities=choice)
    assert torch.equal(text, generate_text_simple(model, prompt(3), 8, CONTEXT))


def test_the_same_seed_gives_the_same_text():
    model, other = MODELS["GPT"], small_model(CONFIGS["GPT"], seed=4)
    heat = functools.partial(next_token_probabilities, temperature=1.0)

    def write(seed):
        generator = seeded(seed)
        draft = ModelDraft(other, heat, generator)
        idx = prompt(3)
        return generate_speculatively(model, draft, idx, 20, 3, heat, generator)[0]

    assert torch.equal(write(1), write(1))
    assert not torch.equal(write(1), write(2))


# --- the parts ------------------------------------------------------------------------


def test_likeliest_takes_the_lowest_id_of_equals():
    rows = likeliest(torch.tensor([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]]))
    assert rows.tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize(
    ("text", "count", "guess"),
    [
        ([1, 2, 3, 4, 1, 2, 3], 3, [4, 1, 2]),
        ([1, 2, 3, 4, 1, 2, 3], 9, [4, 1, 2, 3]),  # up to the end of the text
        ([5, 1, 6, 1, 7, 1], 1, [7]),  # the latest place
        ([9, 2, 3, 8, 2, 3, 7, 9, 2, 3], 1, [8]),  # the longer match comes first
        ([1, 2, 3], 4, []),
        ([4], 4, []),
        ([4, 4], 2, [4]),
        ([1, 2, 1], 0, []),
    ],
)
def test_lookup_guesses_what_followed_before(text, count, guess):
    drafted, rows = PromptLookup(V).propose(torch.tensor(text), count)
    assert drafted.tolist() == guess
    assert rows.shape == (len(guess), V)
    assert rows.argmax(dim=-1).tolist() == guess


def test_a_model_draft_says_how_likely_its_guesses_were():
    model = MODELS["GPT"]
    heat = functools.partial(next_token_probabilities, temperature=0.7)
    draft = ModelDraft(model, heat, seeded(0))
    ids = prompt(4)[0]
    drafted, rows = draft.propose(ids, 3)
    whole = torch.cat((ids, drafted))
    with torch.no_grad():
        expected = heat(model(whole[None])[0, 3:-1])
    assert torch.allclose(rows.double(), expected, atol=1e-10)
    drafted, rows = draft.propose(ids, 0)
    assert drafted.shape == (0,)
    assert rows.shape == (0, V)


def test_what_cannot_be_done_is_said():
    model = MODELS["GPT"]
    draft = ModelDraft(model)
    with pytest.raises(ValueError, match="one prompt at a time"):
        generate_speculatively(model, draft, torch.ones(2, 3, dtype=torch.long), 4)
    with pytest.raises(ValueError, match="context_length=64"):
        generate_speculatively(model, draft, prompt(60), 9)
    with pytest.raises(ValueError, match="both need one vocabulary"):
        generate_speculatively(model, PromptLookup(V + 1), prompt(3), 4)
    for number in (-1, 1.5):
        with pytest.raises(ValueError, match="num_drafted is"):
            generate_speculatively(model, draft, prompt(3), 4, number)
    training = GPTModel({**CONFIGS["GPT"], "drop_rate": 0.5})
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        generate_speculatively(training, draft, prompt(3), 4)
