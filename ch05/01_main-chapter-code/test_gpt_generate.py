"""Decoding proved: against plain loops, transformers' processors, and itself.

`MAKERS` lists every model so far. What is said of cached, chunked and batched text is
tested for each of them; float64, so that only real mistakes count, within 1e-10.
"""

import io
import math
import sys

import pytest
import tiktoken
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn

import gpt_generate
from course import CourseError
from gpt import GPT_CONFIG_124M, GPTModel, generate_text_simple
from gpt_generate import (
    Sampling,
    generate,
    generate_stream,
    generate_tokens,
    next_token_probabilities,
    pad_left,
)
from gpt_train import save_checkpoint
from kv_cache import KVCache
from llama import SMOLLM2_135M, LlamaModel

BOUND = 1e-10
V, CONTEXT = 23, 10

some = settings(max_examples=15, deadline=None)
many = settings(max_examples=150, deadline=None)


# --- the models -----------------------------------------------------------------------


def _gpt(**changes):
    sizes = {"vocab_size": V, "context_length": CONTEXT, "emb_dim": 12, "n_heads": 3}
    return GPTModel(
        {**GPT_CONFIG_124M, **sizes, "n_layers": 2, "drop_rate": 0.0, **changes}
    )


def _llama(**changes):
    """Heads narrower than D / H, and two query heads to a key."""
    sizes = {"vocab_size": V, "context_length": CONTEXT, "emb_dim": 20, "n_heads": 4}
    more = {"n_kv_groups": 2, "head_dim": 6, "n_layers": 2, "hidden_dim": 24}
    return LlamaModel({**SMOLLM2_135M, **sizes, **more, **changes})


MAKERS = {
    "gpt": _gpt,
    "gpt tied, with biases": lambda: _gpt(tie_weights=True, qkv_bias=True),
    "llama": _llama,
}
every_model = pytest.mark.parametrize("maker", MAKERS)


def make(maker="gpt", seed=0):
    """A model in evaluation mode, in float64, with large weights: see the next test."""
    torch.manual_seed(seed)
    model = MAKERS[maker]().double().eval()
    nn.init.normal_(model.tok_emb.weight, std=0.3)
    for parameter in model.trf_blocks.parameters():
        parameter.data *= 6 if parameter.ndim == 2 else 1
    return model


@every_model
def test_the_models_write_lively_text(maker):
    """A model that repeats its last token would pass most tests below, right or not."""
    texts = [
        generate(make(maker, seed), ids(1, 4, seed=seed), 20, CONTEXT)[0, 4:].tolist()
        for seed in range(4)
    ]
    assert sum(len(set(text)) for text in texts) > 20


def cache_for(model):
    return KVCache(num_layers=model.cfg["n_layers"])


def ids(*shape, seed=0):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def slow(model, prompt, new_tokens, context_size):
    """One prompt, a list, continued as plainly as it can be said."""
    prompt = list(prompt)
    for _ in range(new_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([prompt[-context_size:]]))[0, -1]
        prompt.append(max(range(len(logits)), key=lambda token: logits[token]))
    return prompt


seeds = st.integers(0, 1000)
token_lists = st.lists(st.integers(0, V - 1), min_size=1, max_size=CONTEXT)
batches = st.lists(token_lists, min_size=1, max_size=4)


# --- one choice: against a plain loop -------------------------------------------------


def plain_probabilities(row, temperature, top_k, top_p):
    """Temperature, top-k and top-p by lists and loops; also the margin at top-p."""
    order = sorted(range(len(row)), key=lambda token: (-row[token], token))
    if temperature == 0:
        return [float(token == order[0]) for token in range(len(row))], 1.0
    largest = row[order[0]]
    weights = [math.exp((logit - largest) / temperature) for logit in row]
    if top_k is not None and top_k < len(row):
        bound = row[order[top_k - 1]]
        weights = [w if z >= bound else 0.0 for w, z in zip(weights, row, strict=True)]
    total = math.fsum(weights)
    shares = [weight / total for weight in weights]
    margin = 1.0
    if top_p is not None and top_p < 1:
        so_far, kept = 0.0, set()
        for token in order:
            kept.add(token)
            so_far += shares[token]
            margin = min(margin, abs(so_far - top_p))
            if so_far >= top_p:
                break
        shares = [s if t in kept else 0.0 for t, s in enumerate(shares)]
    total = math.fsum(shares)
    return [share / total for share in shares], margin


rows = st.lists(st.integers(-8, 8).map(lambda n: n / 2), min_size=1, max_size=12)


@many
@given(
    rows,
    st.one_of(st.just(0), st.floats(0.01, 50)),
    st.one_of(st.none(), st.integers(1, 20)),
    st.one_of(st.none(), st.just(1.0), st.floats(0.001, 0.999)),
)
def test_probabilities_equal_those_of_a_plain_loop(row, temperature, top_k, top_p):
    """With many ties, which halves between -4 and 4 give."""
    expected, margin = plain_probabilities(row, temperature, top_k, top_p)
    assume(margin > 1e-9)  # at the bound itself rounding decides; see below
    logits = torch.tensor([row, row[::-1]], dtype=torch.float64)
    found = next_token_probabilities(logits, temperature, top_k, top_p)
    assert found.dtype == torch.float64
    assert torch.allclose(
        found[0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=BOUND
    )
    assert torch.allclose(found.sum(dim=-1), torch.ones(2).double(), rtol=0, atol=BOUND)


@many
@given(
    seeds,
    st.integers(1, 60),
    st.floats(0.05, 5),
    st.one_of(st.none(), st.integers(1, 80)),
    st.one_of(st.none(), st.floats(0.01, 0.99)),
)
def test_probabilities_equal_those_of_transformers(seed, vocab, heat, top_k, top_p):
    from transformers import (
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    logits = 3 * torch.randn(3, vocab, generator=seeded(seed), dtype=torch.float64)
    processors = LogitsProcessorList([TemperatureLogitsWarper(heat)])
    if top_k is not None:
        processors.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        processors.append(TopPLogitsWarper(top_p))
        for row in logits.tolist():
            assume(plain_probabilities(row, heat, top_k, top_p)[1] > 1e-9)
    expected = processors(None, logits).softmax(dim=-1)
    found = next_token_probabilities(logits, heat, top_k, top_p)
    assert torch.allclose(found, expected, rtol=0, atol=BOUND)


def test_top_p_keeps_the_token_that_crosses_the_bound_and_nothing_after_it():
    """Four tokens of exactly a quarter each, so the bounds are exact, too."""
    logits = torch.zeros(1, 4)
    kept = {
        top_p: int((next_token_probabilities(logits, top_p=top_p) > 0).sum())
        for top_p in (1e-9, 0.25, 0.2500001, 0.5, 0.50001, 0.75, 0.76, 0.9999, 1)
    }
    assert list(kept.values()) == [1, 1, 2, 2, 3, 3, 4, 4, 4]


def test_ties_top_k_keeps_all_at_the_bound_and_top_p_the_lower_ids():
    logits = torch.tensor([[1.0, 2.0, 1.0, 1.0, 0.0]])
    kept_by_k = next_token_probabilities(logits, top_k=2) > 0
    assert kept_by_k.tolist() == [[True, True, True, True, False]]
    kept_by_p = next_token_probabilities(logits, top_p=0.6) > 0
    assert kept_by_p.tolist() == [[True, True, False, False, False]]
    assert next_token_probabilities(logits[:, 2:], temperature=0).tolist() == [
        [1.0, 0.0, 0.0]
    ]


def test_top_k_larger_than_the_vocabulary_keeps_all():
    logits = torch.randn(2, V, generator=seeded())
    assert torch.equal(
        next_token_probabilities(logits, top_k=V + 100),
        next_token_probabilities(logits),
    )


def test_top_p_comes_after_temperature_and_top_k():
    """Its bound is on what they left: other orders keep other tokens."""
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    # The two likeliest become 0.625 and 0.375.
    assert (next_token_probabilities(logits, 1.0, 2, 0.6) > 0).sum() == 1
    assert (next_token_probabilities(logits, 1.0, None, 0.6) > 0).sum() == 2
    # At temperature 2 the likeliest has 0.38 only.
    assert (next_token_probabilities(logits, 2.0, None, 0.45) > 0).sum() == 2
    assert (next_token_probabilities(logits, 1.0, None, 0.45) > 0).sum() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-30, 1e-8, 1e-3, 1e3, 1e300])
def test_tiny_and_huge_temperatures_give_no_nan(dtype, temperature):
    """Known mistake: logits divided before the largest is taken away, inf / inf."""
    logits = torch.tensor([[3e4, 2e4, -3e4, -math.inf], [-1.0, -1.0, -2.0, -2.5]])
    for top_k, top_p in ((None, None), (2, None), (None, 0.9), (3, 0.5)):
        found = next_token_probabilities(logits.to(dtype), temperature, top_k, top_p)
        assert found.dtype == torch.float32
        assert torch.allclose(found.sum(-1), torch.ones(2))
        assert found[0, 3] == 0
        if temperature < 1e-3:
            assert found[0].tolist() == [1, 0, 0, 0]
            assert set(found[1].tolist()) <= {0.0, 0.5, 1.0}


@many
@given(seeds, st.integers(2, 30))
def test_greedy_is_the_limit_of_cold_and_uniform_that_of_hot(seed, vocab):
    logits = torch.randn(2, vocab, generator=seeded(seed)).double()
    top = logits.topk(2).values
    assume((top[:, 0] - top[:, 1]).min() > 1e-4)
    greedy = next_token_probabilities(logits, temperature=0)
    cold = next_token_probabilities(logits, temperature=1e-6)
    assert torch.allclose(cold, greedy, rtol=0, atol=BOUND)
    hot = next_token_probabilities(logits, temperature=1e9)
    assert torch.allclose(hot, torch.full_like(hot, 1 / vocab), rtol=0, atol=1e-7)


def test_temperature_moves_mass_and_never_the_order():
    logits = torch.randn(1, 9, generator=seeded(3)).double()
    tops = []
    for temperature in (0.1, 0.5, 1.0, 2.0, 10.0):
        found = next_token_probabilities(logits, temperature)
        assert torch.equal(found.argsort(), logits.argsort())
        tops.append(found.max().item())
    assert tops == sorted(tops, reverse=True)
    assert torch.equal(next_token_probabilities(logits), logits.softmax(dim=-1))


def test_probabilities_run_over_the_last_axis_for_any_leading_shape():
    """Known mistake: softmax over the wrong axis."""
    logits = torch.randn(2, 3, 7, generator=seeded())
    found = next_token_probabilities(logits, 0.7, 5, 0.9)
    for b in range(2):
        for t in range(3):
            alone = next_token_probabilities(logits[b, t], 0.7, 5, 0.9)
            assert torch.allclose(found[b, t], alone, rtol=0, atol=1e-7)
    assert torch.allclose(found.sum(-1), torch.ones(2, 3))


def test_probabilities_leave_the_logits_as_they_were():
    logits = torch.randn(2, 7, generator=seeded())
    before = logits.clone()
    for temperature in (0, 1e-9, 0.7):
        next_token_probabilities(logits, temperature, 3, 0.5)
        assert torch.equal(logits, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1: give a number from 0 up"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": None}, "temperature is None"),
        ({"temperature": True}, "temperature is True"),
        ({"top_k": 0}, "top_k is 0: give a whole number from 1 up"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 2.0}, "top_k is 2.0"),
        ({"top_k": True}, "top_k is True"),
        ({"top_p": 0}, "top_p is 0: give a number above 0"),
        ({"top_p": 1.01}, "top_p is 1.01"),
        ({"top_p": math.nan}, "top_p is nan"),
        ({"top_p": "0.9"}, "top_p is '0.9'"),
    ],
)
def test_impossible_settings_are_refused_everywhere(arguments, message):
    with pytest.raises(ValueError, match=message):
        next_token_probabilities(torch.zeros(1, 3), **arguments)
    with pytest.raises(ValueError, match=message):
        generate(make(), ids(1, 3), 1, CONTEXT, **arguments)
    with pytest.raises(ValueError, match=message):
        Sampling(**arguments)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.tensor([[0.0, math.nan]]), "NaN or infinity as its largest"),
        (torch.tensor([[0.0, 1.0], [0.0, math.inf]]), "NaN or infinity"),
        (torch.full((1, 3), -math.inf), "every token is forbidden"),
        (torch.zeros(1, 3, dtype=torch.long), "The logits are torch.int64"),
        ([[0.0, 1.0]], "The logits are list"),
        (torch.zeros(2, 0), r"have shape \(2, 0\)"),
        (torch.tensor(1.0), r"have shape \(\)"),
    ],
)
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_logits_that_allow_no_choice_are_refused(logits, message, temperature):
    with pytest.raises(ValueError, match=message):
        next_token_probabilities(logits, temperature)


# --- texts: the likeliest token -------------------------------------------------------


@every_model
@settings(max_examples=12, deadline=None)
@given(st.data())
def test_greedy_text_equals_generate_text_simple(maker, data):
    """Ragged batches, cached and not, within the context and far past it.

    Known mistakes: gibberish after many tokens only; the first tokens kept instead of
    the last; a prompt longer than the context ends in NaN; a table asked beyond its
    end.
    """
    model = make(maker, data.draw(seeds))
    prompts = data.draw(st.lists(token_lists.map(lambda p: 2 * p), min_size=1))
    idx, real = pad_left(prompts, pad_id=data.draw(st.integers(0, V - 1)))
    new_tokens = data.draw(st.integers(0, 4 * CONTEXT))
    context_size = data.draw(st.integers(1, CONTEXT))
    cached = data.draw(st.booleans())
    expected = generate_text_simple(model, idx, new_tokens, context_size, real)
    found = generate(
        model,
        idx,
        new_tokens,
        context_size,
        attention_mask=real,
        cache=cache_for(model) if cached else None,
    )
    assert torch.equal(found, expected)
    for b, prompt in enumerate(prompts):
        alone = slow(model, prompt, new_tokens, context_size)
        assert found[b, idx.shape[1] - len(prompt) :].tolist() == alone


@every_model
def test_cached_equals_uncached_equals_every_chunked_prefill(maker):
    """Known mistakes: a cached step with a 1 x 1 mask; a causal mask aligned to the top
    left when queries are fewer than keys; a square mask for a chunked continuation; a
    position offset that grows by the total length at each step; positions checked by
    the length of the chunk; cached = uncached at the last step only.
    """
    model, n, new_tokens = make(maker), 6, 4
    idx = ids(2, n, seed=1)
    whole = generate(model, idx, new_tokens, CONTEXT)
    assert torch.equal(
        generate(model, idx, new_tokens, CONTEXT, cache=cache_for(model)), whole
    )
    with torch.no_grad():
        expected = model(whole[:, :-1])
        for size in range(1, n + 1):
            cache, logits = cache_for(model), []
            for start in range(0, n, size):
                logits.append(
                    model(idx[:, start : start + size][:, : n - start], cache=cache)
                )
                assert cache.length == min(start + size, n)
            text = idx
            for _ in range(new_tokens):
                chosen = logits[-1][:, -1:].argmax(dim=-1)
                text = torch.cat((text, chosen), dim=1)
                if text.shape[1] < n + new_tokens:
                    logits.append(model(chosen, cache=cache))
            assert torch.equal(text, whole), size
            difference = (torch.cat(logits, dim=1) - expected).abs().max()
            assert difference < BOUND, size


@every_model
@some
@given(batches, seeds, st.integers(1, 2 * CONTEXT), st.booleans())
@example([[1], [2, 3, 4], [5, 6]], 0, 2 * CONTEXT, True)
def test_ragged_batch_equals_each_prompt_alone(maker, prompts, seed, n, cached):
    """Known mistakes: ragged prompts padded without a mask, or with a wrong one; the
    last logits taken where the row is padded.

    Also where padding leaves the context before the text does.
    """
    model = make(maker, seed)
    idx, real = pad_left(prompts, pad_id=0)
    cache = cache_for(model) if cached else None
    found = generate(model, idx, n, CONTEXT, attention_mask=real, cache=cache)
    for b, prompt in enumerate(prompts):
        alone = generate(model, torch.tensor([prompt]), n, CONTEXT)
        assert found[b, idx.shape[1] - len(prompt) :].tolist() == alone[0].tolist()


@every_model
def test_next_token_probabilities_are_those_of_each_prompt_alone(maker, monkeypatch):
    """Not just the same likeliest token: all probabilities, at every step."""
    model, prompts, seen = make(maker), [[1, 2, 3, 4, 5], [6], [7, 8]], []
    plain = gpt_generate.next_token_probabilities

    def spy(*arguments):
        seen.append(plain(*arguments))
        return seen[-1]

    monkeypatch.setattr(gpt_generate, "next_token_probabilities", spy)
    idx, real = pad_left(prompts, pad_id=9)
    options = {"temperature": 1.3, "top_k": 9, "top_p": 0.9, "generator": seeded(4)}
    text = generate(
        model, idx, 5, CONTEXT, attention_mask=real, cache=cache_for(model), **options
    )
    for b, prompt in enumerate(prompts):
        new = text[b, idx.shape[1] :].tolist()
        for t in range(5):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + new[:t]]))[:, -1]
            expected = plain(logits, 1.3, 9, 0.9)
            assert torch.allclose(seen[t][b], expected[0], rtol=0, atol=BOUND)
            assert expected[0, new[t]] > 0


@every_model
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_second_generation_equals_a_fresh_one(maker, temperature):
    """Known mistakes: a cache cleared but not rebuilt, or leaking between calls; a
    position not reset.
    """
    model = make(maker)
    cache = cache_for(model)
    generate(model, ids(2, 5, seed=1), 4 * CONTEXT, CONTEXT, cache=cache)
    cache.reset()

    def text(model, cache):
        return generate(
            model,
            ids(3, 4, seed=2),
            15,
            CONTEXT,
            temperature,
            cache=cache,
            generator=seeded(7),
        )

    again = text(model, cache)
    assert torch.equal(again, text(make(maker), cache_for(model)))
    assert torch.equal(again, text(make(maker), None))


@every_model
def test_each_cached_step_reads_one_token_until_the_context_is_full(maker):
    """Known mistakes: a demonstration "with cache" that does not use it; a guard on the
    context that reads the wrong axis and never fires.
    """
    model, read, cache = make(maker), [], cache_for(make(maker))
    model.tok_emb.register_forward_hook(lambda _, args, out: read.append(out.shape[1]))
    generate(model, ids(1, 6), 7, CONTEXT, cache=cache)
    assert read == [6, 1, 1, 1, 1, 10, 10]
    assert cache.length == CONTEXT
    read.clear()
    generate(model, ids(1, 6), 7, CONTEXT)
    assert read == [6, 7, 8, 9, 10, 10, 10]


@every_model
def test_a_future_token_never_changes_a_past_logit(maker):
    """Known mistake: a mask added as 0 and 1 instead of minus infinity."""
    model, idx = make(maker), ids(2, 7)
    changed = idx.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % V
    with torch.no_grad():
        assert torch.allclose(
            model(idx)[:, :4], model(changed)[:, :4], rtol=0, atol=BOUND
        )
        assert not torch.allclose(model(idx)[:, 4], model(changed)[:, 4])


@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_padding_alone_gives_finite_numbers(maker, dtype):
    """Known mistake: a row that is masked all along turns into NaN."""
    model = make(maker).to(dtype)
    real = torch.tensor([[False, False, False], [True, True, True]])
    with torch.no_grad():
        assert model(ids(2, 3), attention_mask=real).isfinite().all()


@every_model
def test_half_precision_is_enough_to_choose(maker):
    model = make(maker).bfloat16()
    for temperature in (0.0, 1.0):
        out = generate(
            model, ids(2, 3), 5, CONTEXT, temperature, cache=cache_for(model)
        )
        assert out.shape == (2, 8)
        assert out.dtype == torch.long


# --- texts: drawn ---------------------------------------------------------------------


@every_model
def test_the_same_seed_gives_the_same_text_with_a_cache_or_without(maker):
    model = make(maker)

    def text(seed, cache=None):
        state = torch.random.get_rng_state()
        out = generate(
            model,
            ids(2, 3),
            25,
            CONTEXT,
            1.0,
            15,
            top_p=0.95,
            cache=cache,
            generator=seeded(seed),
        )
        assert torch.equal(torch.random.get_rng_state(), state)
        return out

    assert torch.equal(text(1), text(1))
    assert torch.equal(text(1), text(1, cache_for(model)))
    assert not torch.equal(text(1), text(2))
    assert not torch.equal(text(1)[0], text(1)[1])


def test_without_a_generator_the_draws_are_those_of_torch():
    model = make()
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(generate(model, ids(1, 3), 20, CONTEXT, temperature=1.0))
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])


def test_greedy_draws_nothing():
    generator = seeded(5)
    before = generator.get_state()
    generate(make(), ids(2, 3), 5, CONTEXT, generator=generator)
    assert torch.equal(generator.get_state(), before)


def test_tokens_come_as_often_as_their_probabilities_say():
    """Chi-square over the tokens that may come, at five standard deviations."""
    model, draws = make(), 20000
    prompt = ids(1, 4, seed=3)
    with torch.no_grad():
        logits = model(prompt)[:, -1]
    expected = next_token_probabilities(logits, 1.2, 8, 0.9)[0]
    idx = prompt.expand(draws, -1)
    options = {"top_p": 0.9, "generator": seeded(11)}
    drawn = generate(model, idx, 1, CONTEXT, 1.2, 8, **options)[:, -1]
    counts = torch.bincount(drawn, minlength=V).double()
    allowed = expected > 0
    assert 3 <= allowed.sum() <= 8
    assert counts[~allowed].sum() == 0
    wanted = draws * expected[allowed]
    chi_square = ((counts[allowed] - wanted) ** 2 / wanted).sum().item()
    freedom = int(allowed.sum()) - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


# --- the end of a text ----------------------------------------------------------------


class Scripted(nn.Module):
    """A model that says what it is told: row b gets the tokens of texts[b] in turn."""

    def __init__(self, texts, vocab_size=V):
        super().__init__()
        self.cfg = {"vocab_size": vocab_size, "context_length": 10**6, "n_layers": 1}
        self.tok_emb = nn.Embedding(1, 1)
        self.texts, self.calls = texts, 0

    def forward(self, idx, attention_mask=None, cache=None):
        logits = torch.zeros(*idx.shape, self.cfg["vocab_size"])
        for b, text in enumerate(self.texts):
            logits[b, -1, text[min(self.calls, len(text) - 1)]] = 1.0
        self.calls += 1
        return logits


def test_a_row_that_has_ended_is_filled_and_the_others_go_on():
    model = Scripted([[5, 9, 6, 6, 6], [7, 7, 7, 9, 6], [9, 1, 2, 3, 4]])
    out = generate(model, torch.ones(3, 2, dtype=torch.long), 50, 100, eos_id=9)
    assert out[:, 2:].tolist() == [[5, 9, 9], [7, 7, 7], [9, 9, 9]]
    assert model.calls == 4  # nothing is computed when all have ended


def test_any_of_several_end_tokens_ends_a_row():
    """Known mistake: a chat went on behind the end that its model chose."""
    model = Scripted([[5, 9, 6, 6], [7, 7, 8, 6], [8, 1, 2, 3]])
    idx = torch.ones(3, 2, dtype=torch.long)
    out = generate(model, idx, 50, 100, eos_id=(9, 8))
    assert out[:, 2:].tolist() == [[5, 9], [7, 7], [8, 9]]
    assert model.calls == 3
    assert Sampling().ends == []
    assert Sampling(eos_id=0).ends == [0]
    assert Sampling(eos_id=torch.tensor(3)).ends == [3]
    assert Sampling(eos_id=(9, 8)).ends == [9, 8]


def test_an_end_token_in_the_prompt_or_none_at_all_ends_nothing():
    prompt = torch.tensor([[9, 3, 9]])
    assert generate(Scripted([[5]]), prompt, 4, 100, eos_id=9).shape == (1, 7)
    assert generate(Scripted([[9]]), prompt, 4, 100).shape == (1, 7)
    assert torch.equal(generate(Scripted([[9]]), prompt, 4, 100, eos_id=9), prompt)
    assert torch.equal(generate(Scripted([[0]]), prompt, 4, 100, eos_id=0), prompt)


@every_model
@some
@given(batches, seeds, st.integers(0, V - 1), st.booleans())
def test_a_batch_with_an_end_token_equals_single_runs(
    maker, prompts, seed, eos_id, cached
):
    model = make(maker, seed)
    idx, real = pad_left(prompts, pad_id=eos_id)
    found = generate(
        model,
        idx,
        12,
        CONTEXT,
        eos_id=eos_id,
        attention_mask=real,
        cache=cache_for(model) if cached else None,
    )
    longest = 0
    for b, prompt in enumerate(prompts):
        alone = generate(model, torch.tensor([prompt]), 12, CONTEXT, eos_id=eos_id)
        new = alone[0, len(prompt) :].tolist()
        longest = max(longest, len(new))
        filled = found[b, idx.shape[1] :].tolist()
        assert filled[: len(new)] == new
        assert set(filled[len(new) :]) <= {eos_id}
        assert eos_id not in new
    assert found.shape[1] == idx.shape[1] + longest


# --- what goes in and comes out -------------------------------------------------------


def test_generation_leaves_its_arguments_and_needs_no_gradients():
    model = make()
    idx, real = pad_left([[1, 2, 3], [4]], pad_id=0)
    before = idx.clone(), real.clone()
    out = generate(model, idx, 3, CONTEXT, 0.8, attention_mask=real)
    assert not out.requires_grad
    assert torch.equal(idx, before[0])
    assert torch.equal(real, before[1])
    assert torch.equal(generate(model, idx, 0, CONTEXT), idx)


def test_gradients_are_off_inside_and_back_between_the_tokens():
    model, inside = make(), []
    model.register_forward_hook(lambda *_: inside.append(torch.is_grad_enabled()))
    for _ in generate_tokens(model, ids(1, 3), 3, CONTEXT):
        assert torch.is_grad_enabled()
    assert inside == [False] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"idx": torch.zeros(1, 0, dtype=torch.long)}, "no token at all: give at"),
        ({"idx": torch.zeros(3, dtype=torch.long)}, r"\(3,\): give"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5"),
        ({"context_size": 0}, "context_size"),
        (
            {"attention_mask": torch.tensor([[True, True, False]])},
            "pad prompts of different lengths on the left",
        ),
    ],
)
def test_generation_refuses_what_it_cannot_continue(arguments, message):
    """The checks of `generate_text_simple`, here as well."""
    call = {"idx": ids(1, 3), "max_new_tokens": 2, "context_size": CONTEXT}
    with pytest.raises(ValueError, match=message):
        generate(make(), **{**call, **arguments})


def test_generation_refuses_a_used_cache_and_dropout():
    """Known mistake: dropout left on while generating."""
    model = make()
    cache = cache_for(model)
    generate(model, ids(1, 3), 2, CONTEXT, cache=cache)
    with pytest.raises(ValueError, match=r"holds 4 tokens already: call cache\.reset"):
        generate(model, ids(1, 3), 2, CONTEXT, cache=cache)
    awake = _gpt(drop_rate=0.1)
    with pytest.raises(ValueError, match=r"Dropout is on.*model\.eval\(\)"):
        generate(awake, ids(1, 3), 2, CONTEXT)


def test_pad_left_puts_fillers_in_front():
    idx, real = pad_left([[1, 2, 3], [4], (5, 6)], pad_id=9)
    assert idx.tolist() == [[1, 2, 3], [9, 9, 4], [9, 5, 6]]
    assert real.tolist() == [[True] * 3, [False, False, True], [False, True, True]]
    assert (idx.dtype, real.dtype) == (torch.long, torch.bool)


@pytest.mark.parametrize("prompts", [[], [[]], [[1, 2], []]])
def test_pad_left_refuses_what_has_nothing_to_continue(prompts):
    with pytest.raises(ValueError, match="no prompt, or an empty one"):
        pad_left(prompts, pad_id=0)


# --- the stream -----------------------------------------------------------------------

TOKENIZER = tiktoken.get_encoding("gpt2")
scripts = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("\U0001f600\U0001f469\u200d\U0001f680\U0001f1ef\U0001f1f5"),
        st.sampled_from("\u65e5\u672c\u8a9e\u4f60\u597d\uc548\ub155\u0e20\u0e32"),
        st.sampled_from("e\u0301\u05e9\u05dc\u0645\u0633 \n"),
    ),
    min_size=1,
    max_size=30,
)


def stream(tokens, **choice):
    model, sampling = Scripted([tokens], TOKENIZER.n_vocab), Sampling(**choice)
    return model, generate_stream(model, [1], TOKENIZER, len(tokens), 1000, sampling)


@many
@given(scripts)
@example("\U0001f469\u200d\U0001f680 \u65e5\u672c")
def test_a_stream_never_shows_half_a_character(text):
    tokens = TOKENIZER.encode(text, disallowed_special=())
    _, pieces = stream(tokens)
    pieces = list(pieces)
    assert "".join(pieces) == text
    assert all(pieces)
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text


@many
@given(st.lists(st.integers(0, TOKENIZER.n_vocab - 1), min_size=1, max_size=40))
def test_all_pieces_are_what_decoding_at_the_end_gives(tokens):
    """Any tokens, most of them no valid text: the same U+FFFD in the same places."""
    assert "".join(stream(tokens)[1]) == TOKENIZER.decode(tokens)


@many
@given(st.lists(st.integers(0, 255), min_size=1, max_size=40))
def test_all_pieces_are_what_decoding_gives_byte_by_byte(tokens):
    """GPT-2's first 256 tokens are single bytes: every way to break a character."""
    assert "".join(stream(tokens)[1]) == TOKENIZER.decode(tokens)


def test_a_character_is_shown_as_soon_as_its_last_byte_is_there():
    tokens = TOKENIZER.encode("a\U0001f680b")
    model, pieces = stream(tokens)
    assert len(tokens) > 3
    found = [(piece, model.calls) for piece in pieces]
    assert found == [("a", 1), ("\U0001f680", len(tokens) - 1), ("b", len(tokens))]


def test_a_stream_that_stops_inside_a_character_says_so_at_its_end():
    tokens = TOKENIZER.encode("a\U0001f680")
    assert list(stream(tokens[:-1])[1]) == ["a", "\ufffd"]
    assert TOKENIZER.decode(tokens[:-1]) == "a\ufffd"


def test_a_stream_computes_nothing_ahead():
    model, pieces = stream(TOKENIZER.encode(" one two three"))
    assert model.calls == 0
    assert next(pieces) == " one"
    assert model.calls == 1


def test_the_end_token_ends_a_stream_and_is_not_shown():
    tokens = [*TOKENIZER.encode("Done."), TOKENIZER.eot_token, 500, 501]
    model, pieces = stream(tokens, eos_id=TOKENIZER.eot_token)
    assert "".join(pieces) == "Done."
    assert model.calls == 3
    assert "".join(stream(tokens)[1]) == TOKENIZER.decode(tokens)
    model, pieces = stream(tokens[:2] + [500, 501], eos_id=(TOKENIZER.eot_token, 500))
    assert "".join(pieces) == "Done."
    assert model.calls == 3


@every_model
def test_a_stream_has_the_text_of_generate(maker):
    """Drawn with the same seed, with a cache and without."""
    model = make(maker)
    options = {"temperature": 0.9, "top_k": 20, "top_p": 0.9}
    prompt = [3, 1, 4]
    expected = generate(
        model, torch.tensor([prompt]), 15, CONTEXT, generator=seeded(3), **options
    )
    for cache in (None, cache_for(model)):
        for form in (prompt, torch.tensor(prompt), torch.tensor([prompt])):
            if cache is not None:
                cache.reset()
            pieces = generate_stream(
                model,
                form,
                TOKENIZER,
                15,
                CONTEXT,
                Sampling(generator=seeded(3), **options),
                cache=cache,
            )
            assert "".join(pieces) == TOKENIZER.decode(expected[0, 3:].tolist())


def test_a_stream_refuses_batches_and_foreign_tokens():
    with pytest.raises(ValueError, match=r"\(2, 3\): a stream continues one prompt"):
        next(generate_stream(make(), ids(2, 3), TOKENIZER, 1, CONTEXT))
    with pytest.raises(ValueError, match="no token at all: give at least one"):
        next(generate_stream(make(), [], TOKENIZER, 1, CONTEXT))
    model = Scripted([[50300]], 50304)
    with pytest.raises(ValueError, match="token 50300, which the tokenizer does not"):
        next(generate_stream(model, [1], TOKENIZER, 1, CONTEXT))


# --- the script -----------------------------------------------------------------------


class ChatTokenizer:
    """GPT-2's tokens, with a chat form of its own."""

    def __init__(self):
        self.eot_token = TOKENIZER.eot_token
        self.encode = TOKENIZER.encode
        self.decode_single_token_bytes = TOKENIZER.decode_single_token_bytes

    def render_chat(self, messages):
        assert [m["role"] for m in messages] == ["user"]
        text = f"Q: {messages[0]['content']} A:"
        return TOKENIZER.encode(text, disallowed_special=())


@pytest.fixture
def loaded(monkeypatch):
    """What the script loads: a tiny model; the list gets the names it asks for."""
    asked = []

    def load(name, dtype):
        asked.append(name)
        torch.manual_seed(0)
        tiny = _gpt(vocab_size=TOKENIZER.n_vocab, context_length=16).eval()
        chat = name == "smollm2-135m"
        return tiny.to(dtype), ChatTokenizer() if chat else TOKENIZER, tiny.cfg

    monkeypatch.setattr(gpt_generate, "load_pretrained", load)
    return asked


def run(*arguments):
    return gpt_generate.main([*arguments, "--max-new-tokens", "12"])


def test_script_streams_a_text_and_says_how_fast(loaded, capsys, tmp_path):
    out = tmp_path / "text.txt"
    assert run("--prompt", "Every lamp", "--out", str(out)) == 0
    printed = capsys.readouterr().out
    assert loaded == ["smollm2-135m"]
    text = out.read_text(encoding="utf-8")
    assert text.startswith("Every lamp")
    assert text.removesuffix("\n") in printed
    assert "Loading smollm2-135m ..." in printed
    assert "[2 tokens read, 12 written in " in printed
    assert " per second]" in printed


def test_script_follows_its_seed_and_nothing_else(loaded, tmp_path):
    texts = {}
    more = {"a": [], "b": ["--no-cache"], "c": ["--seed", "5"], "d": ["--top-k", "1"]}
    more["e"] = ["--temperature", "0", "--seed", "9"]
    for name, options in more.items():
        assert run("--out", str(tmp_path / name), *options) == 0
        texts[name] = (tmp_path / name).read_text(encoding="utf-8")
    assert texts["a"] == texts["b"]
    assert texts["a"] != texts["c"]
    assert texts["d"] == texts["e"] != texts["a"]


def test_script_hands_its_options_on(loaded, monkeypatch):
    """Known mistakes: an option that is read and never used, as a cache that is made
    and not given; a text that goes on after its end; a prompt whose words end it.
    """
    seen = []

    def spy(model, ids, tokenizer, max_new_tokens, *arguments, **options):
        seen.append((ids, max_new_tokens, arguments, options))
        yield ""

    monkeypatch.setattr(gpt_generate, "generate_stream", spy)
    prompt = ["--prompt", "A<|endoftext|>"]
    assert run(*prompt) == 0
    assert run(*prompt, "--chat") == 0
    more = ["--temperature", "2", "--top-k", "3", "--top-p", "0.5", "--no-cache"]
    assert run(*prompt, *more, "--seed", "4") == 0
    plain, chat, chosen = seen
    eot = TOKENIZER.eot_token
    assert {(new_tokens, size) for _, new_tokens, (size, _), _ in seen} == {(12, 16)}
    choices = [sampling for _, _, (_, sampling), _ in seen]
    assert [
        (choice.temperature, choice.top_k, choice.top_p, choice.eos_id)
        for choice in choices
    ] == [
        (0.7, None, 0.95, (eot,)),
        (0.0, None, 0.95, (eot,)),
        (2.0, 3, 0.5, (eot,)),
    ]
    assert [choice.generator.initial_seed() for choice in choices] == [123, 123, 4]
    assert eot not in plain[0] + chat[0]
    assert chosen[3]["cache"] is None
    for *_, options in (plain, chat):
        assert (options["cache"].num_layers, options["cache"].length) == (2, 0)


def test_script_takes_its_prompts_from_a_file(loaded, capsys, tmp_path):
    data, out = tmp_path / "prompts.txt", tmp_path / "out.txt"
    data.write_text("\ufeffOne lamp\n\nTwo lamps\n", encoding="utf-8")
    assert run("--data", str(data), "--out", str(out)) == 0
    text = out.read_text(encoding="utf-8")
    assert text.index("One lamp") < text.index("Two lamps")
    assert capsys.readouterr().out.count("tokens read") == 2
    assert len(loaded) == 1


def test_script_writes_with_fast_copies(loaded, monkeypatch, capsys):
    kinds = []
    stream = gpt_generate.generate_stream

    def spy(model, *arguments, **options):
        kinds.append({type(module).__name__ for module in model.modules()})
        return stream(model, *arguments, **options)

    monkeypatch.setattr(gpt_generate, "generate_stream", spy)
    assert run("--int8") == run("--arrange") == run() == 0
    for kind, places in (("Int8Linear", [0]), ("ColumnLinear", [1])):
        assert [i for i, seen in enumerate(kinds) if kind in seen] == places
    with pytest.raises(SystemExit):
        run("--int8", "--arrange")
    assert "not allowed with argument" in capsys.readouterr().err


def test_script_answers_a_question(loaded, capsys):
    assert run("--chat", "--prompt", "Why?") == 0
    assert "Why?\n" in capsys.readouterr().out
    assert run("--chat", "--model", "gpt2-small-124M") == 2
    error = capsys.readouterr().err
    assert "gpt2-small-124M was not trained to chat: leave --chat out" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "--prompt is empty"),
        (["--max-new-tokens", "0"], "--max-new-tokens: must be 1 or more"),
        (["--temperature", "-1"], "temperature is -1.0: give a number from 0 up"),
        (["--top-k", "0"], "top_k is 0: give a whole number from 1 up"),
        (["--top-p", "2"], "top_p is 2.0: give a number above 0"),
        (["--seed", "9" * 30], "--seed: has too many digits: give at most 18"),
    ],
)
def test_script_refuses_bad_options(loaded, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        gpt_generate.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert loaded == []


def test_script_passes_on_why_a_file_cannot_be_had(monkeypatch, capsys):
    def fail(name, dtype):
        raise CourseError(f"There is no network, and {name} is not in the cache.")

    monkeypatch.setattr(gpt_generate, "load_pretrained", fail)
    assert run() == 1
    assert capsys.readouterr().err == (
        "gpt_generate.py: There is no network, and smollm2-135m is not in the cache.\n"
    )


def test_script_reads_the_folder_of_a_checkpoint(capsys, tmp_path):
    torch.manual_seed(0)
    model = _gpt(vocab_size=TOKENIZER.n_vocab, context_length=16).eval()
    save_checkpoint(tmp_path / "gpt", model, tokenizer=TOKENIZER)
    options = ["--model", str(tmp_path / "gpt"), "--temperature", "0"]
    assert run(*options, "--out", str(tmp_path / "text.txt")) == 0
    ids = generate(model, torch.tensor([TOKENIZER.encode("Once upon a time")]), 12, 16)
    text = (tmp_path / "text.txt").read_text(encoding="utf-8")
    assert text == TOKENIZER.decode(ids[0].tolist()) + "\n"

    save_checkpoint(tmp_path / "other", _llama())
    messages = {"other": "holds a LlamaModel, not", ".": "There is no checkpoint in"}
    for folder, message in messages.items():
        capsys.readouterr()
        assert run("--model", str(tmp_path / folder)) == 2
        assert message in capsys.readouterr().err


def test_script_prints_any_text_on_any_terminal(loaded, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert run("--prompt", "caf\u00e9") == 0
    terminal.flush()
    assert rb"caf\xe9" in terminal.buffer.getvalue()


def test_script_says_what_is_wrong_with_its_files_in_one_line(loaded, capsys, tmp_path):
    contents = {"has no prompt": b"\n \n", "is not text in UTF-8": b"\xff\xfea\x00"}
    said = [(tmp_path / "no", "cannot be read (No such file"), (tmp_path, "directory")]
    for message, content in contents.items():
        said.append((tmp_path / f"{len(said)}.txt", message))
        said[-1][0].write_bytes(content)
    for data, message in said:
        assert run("--data", str(data)) == 2
        error = capsys.readouterr().err
        assert f"{data} " in error
        assert message in error
        assert error.count("\n") == 1
    assert loaded == []


def test_script_makes_the_folder_that_its_text_goes_to(loaded, tmp_path):
    out = tmp_path / "new" / "folder" / "text.txt"
    assert run("--out", str(out)) == 0
    assert out.read_text(encoding="utf-8").startswith("Once upon a time")


def test_script_can_be_stopped(monkeypatch, capsys):
    def interrupt(name, dtype):
        raise KeyboardInterrupt

    monkeypatch.setattr(gpt_generate, "load_pretrained", interrupt)
    assert run() == 130
    assert capsys.readouterr().err == "\ngpt_generate.py: stopped.\n"


# --- What was read, what was cut, and what is tried first -----------------------------


def test_script_says_what_it_cuts_off(loaded, capsys):
    """Known mistake: a prompt of 421 tokens, of which 256 were read, is said read."""
    assert run("--prompt", "lamp " * 20) == 0
    printed = capsys.readouterr().out
    number = len(TOKENIZER.encode("lamp " * 20))
    said = f"The prompt has {number} tokens, but the model reads at most 16: the first "
    assert f"{said}{number - 16} are cut off." in printed
    assert f"[the last 16 of {number} tokens read, 12 written" in printed
    assert run("--prompt", "lamp " * 20, "--chat") == 2
    assert "the model reads at most 16: shorten it" in capsys.readouterr().err


def test_script_gives_a_gpt_the_end_of_a_text_as_one_token(loaded, capsys):
    """As in training; for a model that can chat it stays text, so nobody forges one."""
    mark = ["--prompt", "<|endoftext|>"]
    assert run(*mark, "--model", "gpt2-small-124M") == 0
    assert "[1 tokens read" in capsys.readouterr().out
    assert run(*mark) == 0
    assert "[7 tokens read" in capsys.readouterr().out


def test_script_tries_its_places_before_it_loads(loaded, capsys, tmp_path):
    """Known mistake: all prompts are answered, and then the file cannot be written."""
    file = tmp_path / "file"
    file.write_text("mine", encoding="utf-8")
    for out in (tmp_path, file / "text.txt"):
        assert run("--out", str(out)) == 2
        said = capsys.readouterr().err
        assert f"{out} cannot be written" in said
        assert "choose another place with --out" in said
        assert said.count("\n") == 1
    assert loaded == []
    assert file.read_text(encoding="utf-8") == "mine"


def test_script_takes_device_and_dtype_as_everything_does(loaded, monkeypatch, capsys):
    seen = []

    def spy(model, *arguments, **options):
        seen.append((model.tok_emb.weight.dtype, model.tok_emb.weight.device.type))
        yield ""

    monkeypatch.setattr(gpt_generate, "generate_stream", spy)
    monkeypatch.setenv("COURSE_DTYPE", "bfloat16")
    assert run() == 0
    assert seen == [(torch.bfloat16, "cpu")]
    for variable, value in (("COURSE_DTYPE", "float8"), ("COURSE_DEVICE", "banana")):
        monkeypatch.setenv(variable, value)
        assert run() == 2
        assert value in capsys.readouterr().err
        monkeypatch.delenv(variable)


def test_script_refuses_bytes_that_are_no_text(loaded, capsys):
    with pytest.raises(SystemExit):
        run("--prompt", "caf\udce9")
    assert "--prompt: 'caf\\udce9' holds bytes that are not" in capsys.readouterr().err


def test_a_context_larger_than_the_models_is_refused_at_the_start():
    """Known mistake: hundreds of tokens are written, and lost at the one too many."""
    model = make()
    with pytest.raises(ValueError, match=f"reads at most context_length={CONTEXT}"):
        next(generate_tokens(model, ids(1, 3), 60, 1024))
    with pytest.raises(ValueError, match="would have to read"):
        generate(model, ids(1, 3), 60, CONTEXT + 1)
    # What fits is written whatever the limit is.
    expected = generate(model, ids(1, 3), CONTEXT - 2, CONTEXT)
    assert torch.equal(generate(model, ids(1, 3), CONTEXT - 2, 1024), expected)
