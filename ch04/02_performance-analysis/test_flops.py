"""The formulas are what PyTorch counts and keeps, for every config of the course."""

import gc
import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import flops
from flops import (
    BESIROGLU_2024,
    HOFFMANN_2022,
    Ceilings,
    ScalingLaw,
    Work,
    activation_bytes,
    backward_flops,
    compute_optimal,
    count_flops,
    fastest,
    forward_flops,
    forward_work,
    generation_flops,
    gpt_for_budget,
    matmul_flops,
    measure_activations,
    measure_ceilings,
    model_on_meta,
    needed_scores,
    parameter_counts,
    processor_peak,
    sizes_of,
    training_bytes,
    training_flops,
    training_work,
    utilisation,
)
from gpt import (
    GPT_CONFIG_124M,
    GPT_CONFIG_355M,
    GPT_CONFIG_774M,
    GPT_CONFIG_1558M,
    GPTModel,
    count_parameters,
    generate_text_simple,
)
from kv_cache import KVCache
from llama import LLAMA2_7B, LLAMA32_1B, SMOLLM2_135M, LlamaModel

PUBLISHED = {
    "GPT-2 124M": GPT_CONFIG_124M,
    "GPT-2 355M": GPT_CONFIG_355M,
    "GPT-2 774M": GPT_CONFIG_774M,
    "GPT-2 1558M": GPT_CONFIG_1558M,
    "SmolLM2 135M": SMOLLM2_135M,
    "Llama 3.2 1B": LLAMA32_1B,
}


@st.composite
def gpt_configs(draw):
    heads = draw(st.integers(1, 4))
    return {
        "vocab_size": draw(st.integers(2, 40)),
        "context_length": 12,
        "emb_dim": heads * draw(st.integers(1, 5)),
        "n_heads": heads,
        "n_layers": draw(st.integers(1, 3)),
        "drop_rate": draw(st.sampled_from([0.0, 0.1])),
        "qkv_bias": draw(st.booleans()),
        "tie_weights": draw(st.booleans()),
    }


@st.composite
def llama_configs(draw):
    groups = draw(st.integers(1, 3))
    return {
        **SMOLLM2_135M,
        "vocab_size": draw(st.integers(2, 40)),
        "emb_dim": draw(st.integers(1, 12)),
        "n_heads": groups * draw(st.integers(1, 3)),
        "n_kv_groups": groups,
        "head_dim": 2 * draw(st.integers(1, 4)),
        "n_layers": draw(st.integers(1, 3)),
        "hidden_dim": draw(st.integers(1, 20)),
        "tie_weights": draw(st.booleans()),
    }


configs = st.one_of(gpt_configs(), llama_configs())
few = settings(max_examples=25, deadline=None)


def make(cfg):
    return LlamaModel(cfg) if "hidden_dim" in cfg else GPTModel(cfg)


def formulas(cfg, batch, tokens):
    """Operations of forward and of backward."""
    forward = forward_flops(cfg, batch, tokens)
    return sum(forward.values()), sum(backward_flops(cfg, batch, tokens).values())


# --- operations -----------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_formula_is_what_pytorch_counts(name):
    cfg = PUBLISHED[name]
    assert count_flops(cfg, 3, 1000) == formulas(cfg, 3, 1000)


@few
@given(configs, st.integers(1, 3), st.integers(1, 12))
def test_the_formula_holds_for_odd_sizes(cfg, batch, tokens):
    assert count_flops(cfg, batch, tokens) == formulas(cfg, batch, tokens)
    assert training_flops(cfg, batch, tokens) == sum(formulas(cfg, batch, tokens))


def test_each_part_is_counted_in_its_place():
    """The counter knows modules, so no part can hide in another."""
    model, cfg = model_on_meta(SMOLLM2_135M), SMOLLM2_135M
    idx = torch.zeros(2, 5, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(idx)
    found = {
        name: sum(operations.values())
        for name, operations in counter.get_flop_counts().items()
    }
    parts = forward_flops(cfg, 2, 5)
    blocks = range(cfg["n_layers"])
    path = "LlamaModel.trf_blocks.{}.{}"
    linear = ("att.W_query", "att.W_key", "att.W_value", "att.out_proj")
    projections = sum(found[path.format(i, name)] for i in blocks for name in linear)
    assert projections == parts["projections"]
    attention = sum(found[path.format(i, "att")] for i in blocks)
    assert attention - projections == parts["attention products"]
    assert sum(found[path.format(i, "ff")] for i in blocks) == parts["feed-forward"]
    assert found["LlamaModel.out_head"] == parts["head"]


def test_a_product_by_hand():
    assert matmul_flops(2, 3, 4) == 2 * 24
    with FlopCounterMode(display=False) as counter:
        torch.ones(2, 3) @ torch.ones(3, 4)
    assert counter.get_total_flops() == 48


@few
@given(configs, st.integers(1, 2), st.integers(1, 5), st.integers(1, 6), st.booleans())
def test_generation_is_what_pytorch_counts(cfg, batch, prompt, new_tokens, cached):
    model = model_on_meta(cfg).eval()
    idx = torch.zeros(batch, prompt, dtype=torch.long, device="meta")
    cache = KVCache(cfg["n_layers"]) if cached else None
    with FlopCounterMode(display=False) as counter:
        text = generate_text_simple(model, idx, new_tokens, 12, cache=cache)
    assert text.shape == (batch, prompt + new_tokens)
    expected = generation_flops(cfg, batch, prompt, new_tokens, cached)
    assert counter.get_total_flops() == expected


@few
@given(st.integers(1, 30), st.integers(0, 30))
def test_needed_scores_are_the_true_entries_of_the_mask(tokens, past):
    seen = torch.ones(tokens, past + tokens).tril(diagonal=past)
    assert needed_scores(tokens, past) == seen.sum()


def test_cutting_a_prompt_into_chunks_saves_hidden_scores_only():
    cfg, parts = GPT_CONFIG_124M, forward_flops(GPT_CONFIG_124M, 1, 100)
    chunks = [forward_flops(cfg, 1, 10, past) for past in range(0, 100, 10)]
    for part, whole in parts.items():
        pieces = sum(chunk[part] for chunk in chunks)
        assert pieces < whole if part == "attention products" else pieces == whole


def test_the_counter_says_nothing_about_fused_attention_on_the_cpu():
    """If this fails, PyTorch counts it now: take exercise F.2 and its text out."""
    on_cpu, on_meta = torch.ones(1, 2, 8, 4), torch.ones(1, 2, 8, 4, device="meta")
    counts = []
    for x in (on_cpu, on_meta):
        with FlopCounterMode(display=False) as counter:
            F.scaled_dot_product_attention(x, x, x)
        counts.append(counter.get_total_flops())
    assert counts == [0, 2 * 2 * matmul_flops(8, 4, 8)]


def test_a_dictionary_serves_as_a_config():
    assert sizes_of({**LLAMA2_7B}) == sizes_of(LLAMA2_7B)
    assert training_flops({**GPT_CONFIG_124M}, 1, 8) == training_flops(
        GPT_CONFIG_124M, 1, 8
    )


# --- bytes ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_model(name, tied):
    cfg = {**PUBLISHED[name], "tie_weights": tied}
    counts = parameter_counts(cfg)
    assert sum(counts.values()) == count_parameters(model_on_meta(cfg))
    assert (counts["head"] == 0) == tied


@few
@given(configs)
def test_parameters_of_odd_sizes(cfg):
    assert sum(parameter_counts(cfg).values()) == count_parameters(model_on_meta(cfg))


@few
@given(configs, st.integers(1, 3), st.integers(1, 12))
def test_activations_are_those_that_autograd_keeps(cfg, batch, tokens):
    torch.manual_seed(0)
    model = make(cfg)
    idx, targets = torch.randint(cfg["vocab_size"], (2, batch, tokens)).unbind()
    measured = measure_activations(model, idx.clone(), targets.clone())
    assert sum(activation_bytes(cfg, batch, tokens).values()) == measured


def test_what_is_measured_can_go():
    """Known mistake: a hook that returns its tensor keeps the graph, and the model."""
    model = make({**SMOLLM2_135M, "n_layers": 1, "vocab_size": 7})
    weight = weakref.ref(model.tok_emb.weight)
    idx = torch.zeros(1, 3, dtype=torch.long)
    assert measure_activations(model, idx, idx.clone()) > 0
    del model
    gc.collect()
    assert weight() is None


def test_a_frozen_model_is_refused():
    model = make({**SMOLLM2_135M, "n_layers": 1, "vocab_size": 7}).requires_grad_(False)
    idx = torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(AssertionError):
        measure_activations(model, idx, idx)


def test_no_gradient_is_there_when_all_activations_are():
    """So the parts of `training_bytes` are never all held at one moment."""
    model = make({**SMOLLM2_135M, "n_layers": 1, "vocab_size": 7})
    idx, held = torch.zeros(1, 3, dtype=torch.long), []
    optimizer = torch.optim.AdamW(model.parameters())

    def look(module, inputs, logits):
        held.append(sum(p.grad is not None for p in module.parameters()))

    model.register_forward_hook(look)
    for _ in range(2):
        flops.training_step(model, optimizer, idx)
    assert held == [0, 0]
    assert all(p.grad is not None for p in model.parameters())


def test_training_bytes_are_what_a_step_leaves():
    cfg = {**GPT_CONFIG_124M, "vocab_size": 11, "n_layers": 1, "context_length": 4}
    model, idx = make(cfg), torch.zeros(1, 4, dtype=torch.long)
    optimizer = torch.optim.AdamW(model.parameters())
    F.cross_entropy(model(idx).flatten(0, 1), idx.flatten()).backward()
    optimizer.step()
    parts = training_bytes(cfg, 1, 4)
    assert parts["weights"] == sum(p.nbytes for p in model.parameters())
    assert parts["gradients"] == sum(p.grad.nbytes for p in model.parameters())
    states = [tensor for s in optimizer.state.values() for tensor in s.values()]
    steps = 4 * len(list(model.parameters()))  # one number counts each tensor's steps
    assert parts["AdamW's moments"] + steps == sum(t.nbytes for t in states)
    assert parts["activations"] == sum(activation_bytes(cfg, 1, 4).values())


# --- the roofline ---------------------------------------------------------------------


def test_work_of_a_forward_pass():
    """By hand, for one block of the least sizes."""
    cfg = {
        **SMOLLM2_135M,
        "vocab_size": 5,
        "emb_dim": 2,
        "n_heads": 1,
        "n_kv_groups": 1,
        "head_dim": 2,
        "n_layers": 1,
        "hidden_dim": 3,
    }
    matrices = 4 * 2 * 2 + 3 * 2 * 3 + 5 * 2  # attention, feed-forward, tied head
    norms = 3 * 2
    work = forward_work(cfg, batch=1, tokens=1, past=6)
    assert work.bytes == 4 * (matrices + norms + 2 * 2 * 7 + 5)
    assert work.flops == 2 * matrices + 2 * 2 * 2 * 7
    assert work.intensity == work.flops / work.bytes
    untied = forward_work({**cfg, "tie_weights": False}, 1, 1, 6)
    assert untied == work
    assert forward_work(cfg, 1, 1, 6, size=2).bytes == work.bytes / 2
    wider = forward_work(cfg, batch=3, tokens=1, past=6)
    assert wider.bytes == 4 * (matrices + norms + 3 * (2 * 2 * 7 + 5))


def test_work_of_a_training_step():
    cfg = {**GPT_CONFIG_124M, "drop_rate": 0.0}
    work = training_work(cfg, 2, 256)
    kept = sum(activation_bytes(cfg, 2, 256).values())
    assert work.bytes == 40 * 163_009_536 + 2 * kept
    assert work.flops == training_flops(cfg, 2, 256)


def test_a_roofline_has_two_lines():
    machine = Ceilings(flops_per_second=100.0, bytes_per_second=20.0)
    assert machine.ridge == 5
    assert machine.attainable(1) == 20
    assert machine.attainable(5) == machine.attainable(50) == 100
    assert machine.least_seconds(Work(flops=40, bytes=40)) == 2
    assert machine.least_seconds(Work(flops=400, bytes=40)) == 4


def test_the_fastest_round_counts_and_the_first_does_not(monkeypatch):
    clock = iter([0, 1, 10, 15, 20, 23, 30, 34])  # rounds of 1 (warm-up), 5, 3, 4
    monkeypatch.setattr(flops.time, "perf_counter", lambda: next(clock))
    assert fastest(lambda: None, rounds=3) == 3


def test_ceilings_count_what_was_done(monkeypatch):
    """A product of side n is 2 n ** 3 operations; a copy moves its bytes twice."""
    monkeypatch.setattr(
        flops,
        "fastest",
        lambda work, rounds, device: 0.5 if work().dtype == torch.uint8 else 2.0,
    )
    found = measure_ceilings(torch.float32, sides=(10, 30), megabytes=3)
    assert found == Ceilings(2 * 30**3 / 2.0, 2 * 3e6 / 0.5)


def test_ceilings_of_this_machine():
    found = measure_ceilings(sides=(64, 128), megabytes=4, rounds=2)
    assert 1e7 < found.flops_per_second < 1e15
    assert 1e6 < found.bytes_per_second < 1e14


def test_utilisation():
    rate = training_flops(SMOLLM2_135M, 1, 128) / 128
    assert math.isclose(utilisation(SMOLLM2_135M, 128, 10.0, 20 * rate), 0.5)


def test_peak_of_a_processor():
    """A core of 2 GHz with two AVX2 units: 2 * 8 * 2 operations in each cycle."""
    assert processor_peak(cores=4, hertz=2e9, lanes=8, units=2) == 4 * 2e9 * 32


def test_operations_and_bytes_of_a_token_grow_by_the_same_factor():
    """With length and with width, as section 9 says; a batch shares the bytes only."""
    wide = {**GPT_CONFIG_124M, "emb_dim": 2 * 768, "n_heads": 24}

    def per_token(cfg, batch, length):
        prefill = sum(forward_flops(cfg, batch, length).values()) / (batch * length)
        return prefill, forward_work(cfg, batch, 1, past=length).bytes / batch

    base = per_token(GPT_CONFIG_124M, 1, 1024)
    for grown in (per_token(GPT_CONFIG_124M, 1, 2048), per_token(wide, 1, 1024)):
        operations, moved = (new / old for new, old in zip(grown, base, strict=True))
        assert 1.1 < operations < 3.5
        assert math.isclose(operations, moved, rel_tol=0.01)
    operations, moved = per_token(GPT_CONFIG_124M, 2, 1024)
    assert operations == base[0]
    assert moved < 0.6 * base[1]


# --- the right size for a budget ------------------------------------------------------


def test_the_rule_of_twenty():
    parameters, tokens = compute_optimal(1.2e20)
    assert (parameters, tokens) == (1e9, 2e10)
    assert compute_optimal(6e6, tokens_per_parameter=1) == (1e3, 1e3)


@pytest.mark.parametrize(
    ("parameters", "published", "tokens"),
    [(400e6, 1.92e19, 8.0e9), (1e9, 1.21e20, 20.2e9), (67e9, 5.76e23, 1.5e12)],
)
def test_the_rule_is_near_the_published_table(parameters, published, tokens):
    """Hoffmann et al., 2022, table 3."""
    assert math.isclose(compute_optimal(published)[0], parameters, rel_tol=0.04)
    assert math.isclose(compute_optimal(published)[1], tokens, rel_tol=0.1)


@pytest.mark.parametrize("law", [HOFFMANN_2022, BESIROGLU_2024])
@pytest.mark.parametrize("budget", [1e14, 1e20, 1e25])
def test_the_optimum_is_the_least_loss_of_its_budget(law, budget):
    parameters, tokens = law.optimum(budget)
    assert math.isclose(6 * parameters * tokens, budget)
    best = law.loss(parameters, tokens)
    for factor in (0.5, 0.99, 1.01, 2.0):
        assert best < law.loss(parameters * factor, tokens / factor)


def test_the_refit_finds_about_twenty_tokens_for_each_parameter():
    """And the first fit does not, which is how its mistake was found."""
    for budget in (1e20, 1e22, 5.76e23):
        parameters, tokens = BESIROGLU_2024.optimum(budget)
        assert 15 < tokens / parameters < 30
    parameters, tokens = HOFFMANN_2022.optimum(5.76e23)
    assert tokens / parameters > 50


def test_loss_is_a_sum_of_three():
    law = ScalingLaw(E=1.0, A=8.0, alpha=0.5, B=27.0, beta=1 / 3)
    assert math.isclose(law.loss(64, 27), 1 + 1 + 9)


def test_the_gpt_for_a_budget_is_the_widest_that_fits():
    budget = 1e16
    cfg, tokens = gpt_for_budget(budget, vocab_size=4096, context=256)
    parameters = count_parameters(model_on_meta(cfg))
    assert tokens == 20 * parameters
    cost = tokens * training_flops(cfg, 1, 256) / 256
    assert budget / 4 < cost <= budget
    heads = cfg["n_heads"] + 1
    wider = {**cfg, "n_heads": heads, "emb_dim": 64 * heads, "n_layers": heads}
    tokens = 20 * count_parameters(model_on_meta(wider))
    assert tokens * training_flops(wider, 1, 256) / 256 > budget


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: gpt_for_budget(1e9, 4096, 256), "too few even for a width of 64"),
        (lambda: gpt_for_budget(1e33, 4096, 256), "enough for the widest"),
        (lambda: compute_optimal(-1.0), "flops is -1"),
        (lambda: compute_optimal(1e20, 0.0), "tokens_per_parameter 0"),
        (
            lambda: generation_flops(GPT_CONFIG_124M, 1, 4, 0, cached=True),
            "new_tokens is 0",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(attempt, message):
    with pytest.raises(ValueError, match=message):
        attempt()
