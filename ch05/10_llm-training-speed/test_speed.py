"""Every change of the step leaves loss, gradients and updates what they were."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import GPT2LMHeadModel

import speed
from course.testing.references import gpt2_config
from flops import utilisation
from gpt import GPT_CONFIG_124M, GPTModel, TiedHead, initialise_like_gpt2
from gpt_download import gpt2_key_map
from gpt_train import IGNORE_INDEX, calc_loss_batch
from resize import padded_size
from speed import (
    RECIPES,
    NextTokenLoss,
    Recipe,
    TrainingRun,
    chunked_loss,
    plain_names,
    prefetched,
    why_not_compiled,
)

CFG = {
    **GPT_CONFIG_124M,
    "vocab_size": 101,
    "context_length": 20,
    "emb_dim": 24,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.0,
}
KINDS = [
    pytest.param({"tie_weights": tied, "qkv_bias": bias}, id=f"{tied}-{bias}")
    for tied in (False, True)
    for bias in (False, True)
]
UNCOMPILED = [name for name, recipe in RECIPES.items() if not recipe.compiled]
EXACT = [name for name in UNCOMPILED if not RECIPES[name].bfloat16]


def batch_of(B=3, T=13, vocab_size=101, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocab_size, (B, T + 1), generator=generator)
    return ids[:, :-1], ids[:, 1:]


def loss_and_gradients(run, batch):
    """Both in float64, whatever the run has."""
    run.optimizer.zero_grad()
    loss = run.loss(*batch)
    loss.backward()
    return loss.item(), {n: g.double() for n, g in run.gradients().items()}


def worst(found, expected):
    """The largest difference of a gradient, as a share of its largest entry.

    The bias of the keys has no effect on the loss, so its gradient is rounding alone:
    it is measured by the largest of all.
    """
    largest = max(g.abs().max() for g in expected.values())
    assert found.keys() == expected.keys()
    return max(
        ((found[n] - g).abs().max() / max(g.abs().max(), largest / 1000)).item()
        for n, g in expected.items()
    )


def in_float64(run):
    run.model.double()
    return run


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", EXACT)
def test_each_recipe_has_the_loss_and_the_gradients_of_the_plain_loop(name, kind):
    cfg, batch = CFG | kind, batch_of()
    plain = in_float64(TrainingRun(cfg, RECIPES["plain"]))
    changed = in_float64(TrainingRun(cfg, RECIPES[name]))
    expected_loss, expected = loss_and_gradients(plain, batch)
    loss, gradients = loss_and_gradients(changed, batch)
    assert abs(loss - expected_loss) < 1e-12
    assert worst(gradients, expected) < 1e-9


@pytest.mark.parametrize("name", EXACT)
def test_in_float32_they_differ_by_rounding(name):
    batch = batch_of(seed=1)
    expected_loss, expected = loss_and_gradients(
        TrainingRun(CFG, RECIPES["plain"]), batch
    )
    loss, gradients = loss_and_gradients(TrainingRun(CFG, RECIPES[name]), batch)
    assert abs(loss - expected_loss) < 2e-6
    assert worst(gradients, expected) < 1e-4


def test_bfloat16_is_off_by_its_rounding_and_by_no_more_than_in_the_plain_loop():
    batch = batch_of(seed=2)
    _, expected = loss_and_gradients(TrainingRun(CFG, RECIPES["plain"]), batch)
    short_plain = Recipe(bfloat16=True)
    off = {}
    for name, recipe in (("plain", short_plain), ("all", RECIPES["bfloat16"])):
        run = TrainingRun(CFG, recipe)
        loss, gradients = loss_and_gradients(run, batch)
        assert all(p.dtype == torch.float32 for p in run.model.parameters())
        assert all(g.dtype == torch.float64 for g in gradients.values())
        both = torch.cat([g.flatten() for g in gradients.values()])
        right = torch.cat([expected[n].flatten() for n in gradients])
        off[name] = ((both - right).norm() / right.norm()).item()
    assert 1e-5 < off["plain"] < 0.02
    assert 1e-5 < off["all"] < 1.5 * off["plain"]


@pytest.mark.parametrize("name", EXACT)
def test_after_some_updates_the_weights_are_those_of_the_plain_loop(name):
    """Weight decay and both moments of AdamW included, padding and joining, too."""
    runs = [
        in_float64(TrainingRun(CFG, RECIPES[n], learning_rate=1e-2))
        for n in ("plain", name)
    ]
    losses = [[run.step(*batch_of(seed=s)) for s in range(4)] for run in runs]
    assert losses[0][0] != losses[0][3]
    assert torch.allclose(torch.tensor(losses[0]), torch.tensor(losses[1]), atol=1e-6)
    plain, changed = (run.plain_model().double().state_dict() for run in runs)
    assert plain.keys() == changed.keys()
    for key, value in plain.items():
        if not key.endswith("W_key.bias"):
            # Adam divides by the gradient's size: next to 0, rounding is enlarged.
            assert (changed[key] - value).abs().max() < 1e-5, key


def test_a_planted_mistake_is_found(monkeypatch):
    """The comparison is not blind: forward, backward, and one layer of many."""
    batch = batch_of()
    _, expected = loss_and_gradients(
        in_float64(TrainingRun(CFG, RECIPES["plain"])), batch
    )
    run = in_float64(TrainingRun(CFG, RECIPES["one_projection"]))
    heads = run.model.trf_blocks[1].att
    monkeypatch.setattr(heads, "head_dim", heads.head_dim)
    project = heads.project
    monkeypatch.setattr(heads, "project", lambda x: [project(x)[i] for i in (1, 0, 2)])
    _, gradients = loss_and_gradients(run, batch)
    assert worst(gradients, expected) > 1e-3
    run = in_float64(TrainingRun(CFG, Recipe(fused_parts=True)))
    run.model.trf_blocks[0].ff.layers[1] = nn.GELU()  # not by tanh
    _, gradients = loss_and_gradients(run, batch)
    assert worst(gradients, expected) > 1e-6


# --- The parts ------------------------------------------------------------------------


def buffers_of(recipe):
    return dict(TrainingRun(CFG, recipe).model.named_buffers())


def test_a_mask_is_kept_only_by_the_plain_loop():
    kept = buffers_of(RECIPES["plain"])
    assert sum(mask.numel() for mask in kept.values()) == 2 * 20 * 20
    for name in ("no_mask", "sdpa", "one_projection"):
        assert buffers_of(RECIPES[name]) == {}


def test_changes_share_the_weights_and_copy_none():
    torch.manual_seed(0)
    model = GPTModel(CFG)
    before = {n: p.data_ptr() for n, p in model.named_parameters()}
    speed.fuse_attention(model)
    speed.fuse_norms_and_gelu(model)
    assert {n: p.data_ptr() for n, p in model.named_parameters()} == before


@pytest.mark.parametrize("name", ["no_mask", "sdpa", "one_projection"])
def test_padding_and_a_cache_are_refused_and_not_ignored(name):
    model = TrainingRun(CFG, RECIPES[name]).model
    idx = batch_of()[0]
    with pytest.raises(ValueError, match="whole sequences"):
        model(idx, attention_mask=torch.ones_like(idx))


@pytest.mark.parametrize("name", ["plain", "no_mask", "sdpa", "one_projection"])
def test_dropout_works_in_training_and_rests_in_evaluation(name):
    run = TrainingRun(CFG | {"drop_rate": 0.4}, RECIPES[name])
    idx = batch_of()[0]
    assert not torch.equal(run.model(idx), run.model(idx))
    run.model.eval()
    plain = TrainingRun(CFG | {"drop_rate": 0.4}, RECIPES["plain"]).model.eval()
    assert torch.allclose(run.model(idx), plain(idx), atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_padding_is_never_predicted_and_never_learns(tied):
    cfg, batch = CFG | {"tie_weights": tied}, batch_of()
    run = TrainingRun(cfg, RECIPES["padded"], learning_rate=0.1)
    assert run.model.cfg["vocab_size"] == 128
    for _ in range(3):
        run.step(*batch)
    logits = run.model(batch[0])
    assert logits.shape[-1] == 128
    assert (logits[..., 101:] == -math.inf).all()
    assert logits[..., :101].isfinite().all()
    for table in (run.model.tok_emb.weight, run.model.out_head.weight):
        assert len(table) == 128
        assert not table[101:].any()
        assert not table.grad[101:].any()
    plain = run.plain_model()
    assert plain.cfg["vocab_size"] == len(plain.tok_emb.weight) == 101
    assert torch.allclose(plain(batch[0]), logits[..., :101], atol=1e-5)
    assert isinstance(plain.out_head, TiedHead) == tied


def test_the_124m_is_padded_to_a_multiple_of_128_by_47_rows():
    with torch.device("meta"):
        model = GPTModel(GPT_CONFIG_124M)
    assert padded_size(model.cfg["vocab_size"], 64) == 50304
    assert 50304 % 128 == 0
    assert 50304 - 50257 == 47


@pytest.mark.parametrize("rows", [1, 4, 7, 12, 50])
@pytest.mark.parametrize("ignored", [0, 5])
def test_a_loss_in_chunks_is_the_loss(rows, ignored):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(12, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(31, 8, generator=generator, dtype=torch.float64)
    targets = torch.randint(31, (12,), generator=generator)
    targets[:ignored] = IGNORE_INDEX
    bias = torch.zeros(31, dtype=torch.float64)
    bias[29:] = -math.inf
    targets[targets >= 29] = 0
    found, right = (
        [x.clone().requires_grad_(), weight.clone().requires_grad_()] for _ in range(2)
    )
    loss = chunked_loss(*found, bias, targets, rows)
    (3 * loss).backward()  # scaled, as accumulation does
    expected = F.cross_entropy(F.linear(*right, bias), targets)
    (3 * expected).backward()
    assert torch.allclose(loss, expected, atol=1e-12)
    for one, other in zip(found, right, strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-12)
    with torch.no_grad():
        again = chunked_loss(x, weight, bias, targets, rows)
    assert torch.allclose(again, expected, atol=1e-6)
    assert not again.requires_grad


def test_gradients_in_chunks_are_the_slopes():
    generator = torch.Generator().manual_seed(4)
    x, weight = (
        torch.randn(n, 3, generator=generator, dtype=torch.float64).requires_grad_()
        for n in (5, 7)
    )
    targets = torch.tensor([0, 6, 2, 2, 1])
    assert torch.autograd.gradcheck(
        lambda a, b: chunked_loss(a, b, None, targets, 2), (x, weight)
    )


def test_a_batch_without_a_target_is_refused():
    nothing = torch.full((4,), IGNORE_INDEX)
    with pytest.raises(ValueError, match="No target"):
        chunked_loss(torch.randn(4, 2), torch.randn(3, 2), None, nothing, 2)
    learned = torch.zeros(3, requires_grad=True)
    with pytest.raises(ValueError, match="no gradient"):
        chunked_loss(torch.randn(4, 2), torch.randn(3, 2), learned, nothing, 2)


def test_chunks_never_hold_all_logits(monkeypatch):
    """The largest tensor of the loss has as many rows as a chunk."""
    seen = []
    softmax = torch.log_softmax
    monkeypatch.setattr(
        torch, "log_softmax", lambda t, dim: (seen.append(len(t)), softmax(t, dim))[1]
    )
    recipe = dataclasses.replace(RECIPES["chunks"], rows=8)
    loss_and_gradients(TrainingRun(CFG, recipe), batch_of())
    assert seen == [8, 8, 8, 8, 7]


def test_ids_that_do_not_count_cost_no_logits(monkeypatch):
    seen = []
    softmax = torch.log_softmax
    monkeypatch.setattr(
        torch, "log_softmax", lambda t, dim: (seen.append(len(t)), softmax(t, dim))[1]
    )
    inputs, targets = batch_of()
    targets = targets.masked_fill(torch.arange(13) < 9, IGNORE_INDEX)
    run = TrainingRun(CFG, RECIPES["chunks"])
    loss, gradients = loss_and_gradients(run, (inputs, targets))
    assert seen == [3 * 4]
    expected_loss, expected = loss_and_gradients(
        TrainingRun(CFG, RECIPES["plain"]), (inputs, targets)
    )
    assert abs(loss - expected_loss) < 2e-6
    assert worst(gradients, expected) < 1e-4


def test_the_loss_as_a_module_is_the_loss_of_chapter_5():
    torch.manual_seed(1)
    model, batch = GPTModel(CFG).double(), batch_of()
    expected = calc_loss_batch(*batch, model, "cpu")
    assert torch.allclose(NextTokenLoss(model)(*batch), expected, atol=1e-12)
    assert torch.allclose(NextTokenLoss(model, 5)(*batch), expected, atol=1e-12)


# --- transformers ---------------------------------------------------------------------


def with_weights_of(run):
    """transformers' GPT-2 with the weights of a run, and {our name: their tensor}.

    The second is a function of what is asked for: their weight, or its gradient.
    """
    cfg = run.cfg
    theirs = GPT2LMHeadModel(gpt2_config(cfg)).to(run.model.tok_emb.weight.dtype)

    def named(kind):
        found = {}
        for name, (their_name, turned, third) in gpt2_key_map(cfg).items():
            tensor = kind(theirs.get_parameter(f"transformer.{their_name}"))
            tensor = tensor if third is None else tensor.chunk(3, dim=-1)[third]
            found[name] = tensor.T if turned else tensor
        return found

    with torch.no_grad():
        state = plain_names(dict(run.model.named_parameters()), cfg["vocab_size"])
        for name, tensor in named(lambda parameter: parameter).items():
            tensor.copy_(state[name])  # a view of theirs
    return theirs, named


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", EXACT)
def test_the_gradients_are_those_of_transformers_gpt2(name, dtype):
    """Weights copied across; the same loss, and each gradient within rounding."""
    cfg, batch = CFG | {"qkv_bias": True, "tie_weights": True}, batch_of(seed=5)
    run = TrainingRun(cfg, RECIPES[name])
    run.model.to(dtype)
    theirs, named = with_weights_of(run)
    logits = theirs(batch[0]).logits
    expected_loss = F.cross_entropy(logits.flatten(0, 1), batch[1].flatten())
    expected_loss.backward()
    expected = {n: g.double() for n, g in named(lambda p: p.grad).items()}
    loss, gradients = loss_and_gradients(run, batch)
    bounds = {torch.float32: (2e-6, 1e-4), torch.float64: (1e-12, 1e-9)}[dtype]
    assert abs(loss - expected_loss.item()) < bounds[0]
    assert worst(gradients, expected) < bounds[1]


def test_in_bfloat16_both_are_off_by_as_much():
    """Under the same autocast, the fast step is no farther from float32 than theirs."""
    cfg, batch = CFG | {"qkv_bias": True, "tie_weights": True}, batch_of(seed=6)
    plain = TrainingRun(cfg, RECIPES["plain"])
    _, right = loss_and_gradients(plain, batch)
    theirs, named = with_weights_of(plain)
    with torch.autocast("cpu", torch.bfloat16):
        logits = theirs(batch[0]).logits.float()
        loss = F.cross_entropy(logits.flatten(0, 1), batch[1].flatten())
    loss.backward()
    their = {n: g.double() for n, g in named(lambda p: p.grad).items()}
    _, ours = loss_and_gradients(TrainingRun(cfg, RECIPES["bfloat16"]), batch)

    def off(found):
        squares = sum((found[n] - g).square().sum() for n, g in right.items())
        return (squares / sum(g.square().sum() for g in right.values())).sqrt().item()

    assert 1e-5 < off(ours) < 1.5 * off(their) < 0.05


# --- Compiling ------------------------------------------------------------------------


def test_a_machine_without_a_compiler_is_told_so_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    reason = why_not_compiled()
    assert reason is not None
    assert "C++ compiler" in reason
    assert "\n" not in reason
    with pytest.raises(RuntimeError, match="C\\+\\+ compiler"):
        TrainingRun(CFG, Recipe(compiled=True))
    compiler = tmp_path / "g++"
    compiler.touch(mode=0o755)
    assert why_not_compiled() is None


@pytest.mark.parametrize("name", ["one_projection", "chunks"])
def test_what_is_traced_for_the_compiler_gives_the_same(name, monkeypatch):
    """Without a compiler: the graph that it would get, run as it is."""
    calls = []

    def backend(graph, inputs):
        calls.append(len(inputs))
        return graph.forward

    compile_in_place = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda block: compile_in_place(block, backend=backend)
    )
    monkeypatch.setattr(speed, "why_not_compiled", lambda: None)
    recipe = dataclasses.replace(RECIPES[name], compiled=True)
    run = TrainingRun(CFG, recipe)
    loss, gradients = loss_and_gradients(run, batch_of())
    expected_loss, expected = loss_and_gradients(
        TrainingRun(CFG, RECIPES["plain"]), batch_of()
    )
    assert calls  # something was compiled
    assert abs(loss - expected_loss) < 2e-6
    assert worst(gradients, expected) < 1e-4
    assert set(run.plain_model().state_dict()) == set(GPTModel(CFG).state_dict())
    assert not any("_orig_mod" in key for key in run.model.state_dict())


# --- Batches, recipes, utilisation ----------------------------------------------------


def test_prefetched_batches_are_the_batches_in_order():
    batches = [batch_of(seed=s) for s in range(3)]
    found = list(prefetched(iter(batches), "cpu"))
    assert len(found) == 3
    for one, other in zip(found, batches, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert list(prefetched([], "cpu")) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics card")
def test_prefetched_batches_reach_a_graphics_card():
    batches = [batch_of(seed=s) for s in range(4)]
    for one, other in zip(prefetched(batches, "cuda"), batches, strict=True):
        assert one[0].device.type == "cuda"
        assert all(torch.equal(a.cpu(), b) for a, b in zip(one, other, strict=True))


def test_recipes_change_one_thing_at_a_time():
    pairs = zip(list(RECIPES.values()), list(RECIPES.values())[1:], strict=False)
    for before, after in pairs:
        changed = {
            field.name
            for field in dataclasses.fields(Recipe)
            if getattr(before, field.name) != getattr(after, field.name)
        }
        assert len(changed) == 1, changed
    assert RECIPES["plain"] == Recipe()


def test_names_of_weights_and_gradients_are_those_of_chapter_4():
    model = initialise_like_gpt2(GPTModel(CFG))
    joined = copy.deepcopy(model)
    speed.join_projections(joined)
    speed.pad_vocabulary(joined, 16)
    plain = plain_names(joined.state_dict(), 101)
    assert plain.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(plain[name], value), name


def test_utilisation_by_hand():
    """One block, counted on paper: six operations for each weight of a product.

    D = 4, F = 16, V = 10, T = 2: projections 4 * 16 = 64 weights, feed-forward
    2 * 64 = 128, head 40: 232 weights. Attention: two products of T * D numbers for
    each token, 2 * 2 * 2 * 4 operations forward, three times that with backward.
    """
    cfg = {**GPT_CONFIG_124M, "vocab_size": 10, "context_length": 2, "emb_dim": 4}
    cfg |= {"n_heads": 2, "n_layers": 1}
    by_hand = 6 * 232 + 3 * (2 * 2 * 2 * 4)
    peak = 1e6
    assert utilisation(cfg, 2, 100, peak) == pytest.approx(100 * by_hand / peak)
