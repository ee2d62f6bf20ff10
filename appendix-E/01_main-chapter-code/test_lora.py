"""Tests of lora.py and lora_files.py."""

import copy
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from course.testing.model_contract import close, random_ids, some
from gpt import GPTModel, generate_text_simple
from kv_cache import KVCache
from llama import LlamaModel
from lora import (
    LinearWithLoRA,
    LoRALayer,
    adapter_names,
    chosen_names,
    linear_layers,
    lora_layers,
    lora_parameters,
    low_rank_factors,
    merge_lora,
    replace_linear_with_lora,
    unload_lora,
    unmerge_lora,
    use_adapter,
)
from lora_files import (
    CONFIG,
    WEIGHTS,
    base_hash,
    load_adapter,
    published_names,
    save_adapter,
)
from small_models import small_configs

GPT, LLAMA = small_configs(context_length=10, vocab_size=23).values()
LLAMA |= {"emb_dim": 12, "n_heads": 6}  # heads of width 4, so 24 in all
KINDS = {"gpt": (GPTModel, GPT), "llama": (LlamaModel, LLAMA)}
both_kinds = pytest.mark.parametrize("kind", KINDS)
IDS = random_ids(2, 7, vocab_size=23)


def tiny(kind="llama", seed=0, **changes):
    torch.manual_seed(seed)
    make, cfg = KINDS[kind]
    return make({**cfg, **changes}).eval()


def shake(model, seed=5, adapter=None):
    """Give the active adapter, or the named one, numbers as after a training."""
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        name = adapter or layer.active
        if name in layer.adapters:
            lora = layer.adapters[name]
            nn.init.normal_(lora.B, std=0.3, generator=generator)
    return model


def with_adapter(kind="llama", rank=2, alpha=3, **more):
    return shake(replace_linear_with_lora(tiny(kind), rank, alpha, **more))


def weights_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# --- A layer -------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_scale_is_alpha_over_rank(rank):
    lora = LoRALayer(6, 5, rank, alpha=8)
    nn.init.normal_(lora.B)
    x = torch.randn(3, 6)
    expected = 8 / rank * (x @ lora.A @ lora.B)
    assert torch.allclose(lora(x), expected, atol=1e-6)
    assert torch.allclose(x @ lora.change().T, expected, atol=1e-5)
    books = LoRALayer(6, 5, rank, alpha=8 * rank)  # as in the printed book
    books.load_state_dict(lora.state_dict())
    assert torch.allclose(books(x), 8 * (x @ lora.A @ lora.B), atol=1e-5)


def test_a_is_drawn_as_pytorch_draws_a_linear_layer():
    lora = LoRALayer(400, 3, rank=50, alpha=1)
    bound = 400**-0.5
    assert 0.98 * bound < lora.A.abs().max() <= bound
    reference = nn.Linear(400, 50).weight
    assert math.isclose(lora.A.std().item(), reference.std().item(), rel_tol=0.05)
    assert not lora.B.any()


def test_the_books_call_draws_a_by_the_rank():
    books = nn.init.kaiming_uniform_(torch.empty(576, 4), a=math.sqrt(5))
    ours = LoRALayer(576, 5, 4, 1).A
    assert math.isclose(books.abs().max() / ours.abs().max(), 12, rel_tol=0.02)


def test_the_generator_decides_the_start():
    drawn = [
        LoRALayer(6, 5, 2, 1, generator=torch.Generator().manual_seed(7)).A
        for _ in range(2)
    ]
    torch.manual_seed(0)
    before = torch.get_rng_state()
    LoRALayer(6, 5, 2, 1, generator=torch.Generator())
    assert torch.equal(*drawn)
    assert torch.equal(torch.get_rng_state(), before)


def test_at_first_only_b_has_a_gradient_and_with_two_zeros_nothing_has():
    lora = LoRALayer(6, 5, 2, 1)
    lora(torch.randn(3, 6)).sum().backward()
    assert lora.B.grad.any()
    assert not lora.A.grad.any()
    nn.init.zeros_(lora.A)
    lora.zero_grad()
    lora(torch.randn(3, 6)).sum().backward()
    assert not lora.A.grad.any()
    assert not lora.B.grad.any()


def test_dropout_is_for_training_only():
    layer = LinearWithLoRA(nn.Linear(6, 5), 2, 4, dropout=0.5)
    nn.init.ones_(layer.lora.B)
    x = torch.randn(8, 6)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    assert torch.allclose(layer.plain()(x), layer(x), atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_an_adapter_is_in_the_mode_of_its_model(training):
    model = tiny().train(training)
    replace_linear_with_lora(model, 2, 4, dropout=0.5)
    assert {module.training for module in model.modules()} == {training}


@pytest.mark.parametrize(
    ("rank", "alpha"), [(0, 1), (-1, 1), (2, math.nan), (2, math.inf)]
)
def test_ranks_and_alphas_that_are_none_are_refused(rank, alpha):
    model = tiny()
    with pytest.raises(ValueError, match="No rank and alpha"):
        replace_linear_with_lora(model, rank, alpha)
    assert not lora_layers(model)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["", "a.b", "keys", "train", "_modules"])
def test_names_that_torch_could_not_keep_are_refused(name):
    model = tiny()
    with pytest.raises(ValueError, match="is taken, or is no name"):
        replace_linear_with_lora(model, 2, 4, adapter=name)
    assert not lora_layers(model)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_an_adapter_has_the_dtype_of_its_layer(dtype):
    layer = LinearWithLoRA(nn.Linear(6, 5).to(dtype), 2, 4)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    assert layer(torch.randn(3, 6, dtype=dtype)).dtype == dtype


@some
@given(
    sizes=st.tuples(*3 * [st.integers(1, 9)]),
    rank=st.integers(1, 4),
    bias=st.booleans(),
    seed=st.integers(0, 999),
)
def test_merged_is_unmerged(sizes, rank, bias, seed):
    torch.manual_seed(seed)
    rows, width, out = sizes
    layer = LinearWithLoRA(nn.Linear(width, out, bias=bias).double(), rank, 3.0)
    nn.init.normal_(layer.lora.B)
    x = torch.randn(rows, width, dtype=torch.float64)
    apart = layer(x)
    for _ in range(2):  # twice is once
        merge_lora(layer)
        assert close(layer(x), apart)


def test_a_single_layer_can_be_unloaded():
    linear = nn.Linear(6, 5)
    layer = shake(LinearWithLoRA(linear, 2, 4))
    x = torch.randn(3, 6)
    assert torch.allclose(unload_lora(layer, merge=True)(x), layer(x), atol=1e-5)
    assert unload_lora(layer) is linear


@given(seed=st.integers(0, 999), shape=st.tuples(*2 * [st.integers(1, 7)]))
@some
def test_low_rank_factors_are_the_best_of_their_rank(seed, shape):
    torch.manual_seed(seed)
    matrix = torch.randn(*shape, dtype=torch.float64)
    values = torch.linalg.svdvals(matrix)
    for rank in range(1, min(shape) + 1):
        A, B = low_rank_factors(matrix, rank)
        assert (A.shape, B.shape) == ((shape[0], rank), (rank, shape[1]))
        left_over = (matrix - A @ B).square().sum()
        assert torch.allclose(left_over, values[rank:].square().sum(), atol=1e-9)


# --- All layers of a model -----------------------------------------------------------


class Nested(nn.Module):
    """Linear layers at four depths, one of them in two places."""

    def __init__(self):
        super().__init__()
        shared = nn.Linear(4, 4)
        self.top = nn.Linear(4, 4)
        self.list = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.ReLU()), shared])
        self.dict = nn.ModuleDict({"deep": nn.Sequential(nn.Sequential(shared))})

    def forward(self, x):
        x = self.list[0](self.top(x)) + self.list[1](x)
        return self.dict["deep"](x)


def test_layers_are_replaced_at_any_depth_and_shared_ones_stay_shared():
    model = Nested()
    names = ["top", "list.0.0", "list.1", "dict.deep.0.0"]
    assert list(linear_layers(model)) == names
    replace_linear_with_lora(model, 2, 4)
    assert list(lora_layers(model)) == names
    assert list(linear_layers(model)) == names  # not those within
    assert model.list[1] is model.dict["deep"][0][0]
    assert len(lora_parameters(model)) == 6
    model(torch.randn(2, 4)).sum().backward()
    assert all(layer.lora.B.grad.any() for layer in lora_layers(model).values())
    unload_lora(model)
    assert model.list[1] is model.dict["deep"][0][0]
    assert not lora_layers(model)


def test_shared_layers_stay_shared_when_they_are_merged_for_good():
    model = Nested()
    count = sum(p.numel() for p in model.parameters())
    shake(replace_linear_with_lora(model, 2, 4))
    x = torch.randn(2, 4)
    apart = model(x)
    unload_lora(model, merge=True)
    assert model.list[1] is model.dict["deep"][0][0]
    assert sum(p.numel() for p in model.parameters()) == count
    assert torch.allclose(model(x), apart, atol=1e-5)


def test_a_name_that_is_taken_in_one_layer_changes_none():
    model = replace_linear_with_lora(Nested(), 2, 4, "list.0.*")
    before = [*lora_layers(model)]
    with pytest.raises(ValueError, match="list.0.0 has an adapter 'default'"):
        replace_linear_with_lora(model, 2, 4)
    assert [*lora_layers(model)] == before
    assert len(lora_parameters(model)) == 2


@both_kinds
def test_every_linear_layer_of_a_model_is_replaced_and_nothing_else_learns(kind):
    model = tiny(kind, tie_weights=False)
    count = sum(type(m) is nn.Linear for m in model.modules())
    replace_linear_with_lora(model, 2, 4)
    layers = lora_layers(model)
    assert len(layers) == count
    assert "out_head" in layers
    learning = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in learning} == {id(p) for p in lora_parameters(model)}
    sizes = [(m.linear.in_features, m.linear.out_features) for m in layers.values()]
    assert sum(p.numel() for p in learning) == sum(2 * (a + b) for a, b in sizes)


@pytest.mark.parametrize(
    ("names", "count"),
    [
        ("*.W_query", 2),
        ("trf_blocks.1.*", 7),
        (["*.W_query", "*.0.att.W_value", "*.W_query"], 3),
        (lambda name: name.endswith("down"), 2),
    ],
)
def test_names_choose_layers(names, count):
    model = replace_linear_with_lora(tiny(), 2, 4, names)
    assert len(lora_layers(model)) == count


@pytest.mark.parametrize(
    "names", ["W_query", ["*.W_query", "*.q_proj"], "out_head", []]
)
def test_a_pattern_that_fits_nothing_is_refused(names):
    model = tiny()  # its head is tied, so no linear layer
    with pytest.raises(ValueError, match="No linear layer is chosen by"):
        replace_linear_with_lora(model, 2, 4, names)
    assert all(p.requires_grad for p in model.parameters())


def test_names_keep_the_order_of_the_model():
    assert chosen_names(["b", "a", "c"], ["c", "b"]) == ["b", "c"]
    with pytest.raises(ValueError, match="none inside"):
        replace_linear_with_lora(nn.Linear(3, 3), 1, 1)


@both_kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_untrained_adapter_gives_bit_identical_logits(kind, dtype):
    model = tiny(kind).to(dtype)
    before = model(IDS)
    replace_linear_with_lora(model, 4, 8, dropout=0.3)
    assert torch.equal(model(IDS), before)
    assert torch.equal(merge_lora(model)(IDS), before)


@both_kinds
def test_merged_and_unmerged_agree_and_the_base_stays_bit_for_bit(kind):
    model = tiny(kind)
    before, logits = weights_of(model), model(IDS)
    shake(replace_linear_with_lora(model, 2, 4))
    apart = model(IDS)
    assert not torch.allclose(apart, logits, atol=1e-2)
    merge_lora(model)
    merge_lora(model)
    assert torch.allclose(model(IDS), apart, atol=1e-5)
    unmerge_lora(model)
    assert torch.equal(model(IDS), apart)
    merged = unload_lora(copy.deepcopy(model), merge=True)
    assert torch.allclose(merged(IDS), apart, atol=1e-5)
    merge_lora(model)
    unload_lora(model)
    after = weights_of(model)
    assert after.keys() == before.keys() == weights_of(merged).keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(model(IDS), logits)


def test_what_is_merged_is_no_part_of_the_state():
    model = with_adapter()
    names, count = [*model.state_dict()], len([*model.parameters()])
    merge_lora(model)
    assert [*model.state_dict()] == names
    assert len([*model.parameters()]) == count
    other = with_adapter(rank=2)
    for layer in lora_layers(other).values():
        nn.init.ones_(layer.lora.B)
    model.load_state_dict(other.state_dict())  # takes out what was merged
    assert torch.equal(model(IDS), other(IDS))


def test_a_bias_that_learns_does_not_make_the_merged_weight_learn():
    layer = LinearWithLoRA(nn.Linear(3, 3), 2, 4)
    layer.linear.requires_grad_(True)
    assert not any(p.requires_grad for p in layer.plain().parameters())
    assert not merge_lora(layer).merged.requires_grad


def test_merging_leaves_a_tied_weight_alone():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    model[1].weight = model[0].weight
    replace_linear_with_lora(model, 2, 4)
    shake(model)
    apart = model(torch.arange(5))
    assert torch.allclose(merge_lora(model)(torch.arange(5)), apart, atol=1e-6)


@both_kinds
def test_training_changes_the_adapter_and_nothing_else(kind):
    model = replace_linear_with_lora(tiny(kind), 4, 8, ["*.att.*"])
    before = weights_of(model)
    optimizer = torch.optim.AdamW(lora_parameters(model), lr=0.05, weight_decay=0.1)
    losses = []
    for _ in range(12):
        logits = model(IDS[:, :-1]).flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, IDS[:, 1:].flatten())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.3
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != (".adapters." in name), name


def test_a_state_dict_and_a_copy_keep_the_adapters():
    model = with_adapter()
    again = replace_linear_with_lora(tiny(seed=3), 2, 3)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(IDS), model(IDS))
    assert torch.equal(copy.deepcopy(model)(IDS), model(IDS))
    wide = copy.deepcopy(merge_lora(model)).double()
    assert close(wide(IDS), unmerge_lora(wide)(IDS), 1e-5)


# --- Several adapters ----------------------------------------------------------------


def test_adapters_are_switched_and_do_not_touch_one_another():
    model = tiny()
    base = model(IDS)
    answers = {None: base}
    for seed, name in enumerate(["spam", "topic"]):
        where = ["*.W_query", "*.down"][seed:] or "*"
        replace_linear_with_lora(model, 2 + seed, 4, where, adapter=name)
        shake(model, seed)
        answers[name] = model(IDS)
    assert adapter_names(model) == ["spam", "topic"]
    assert not torch.allclose(answers["spam"], answers["topic"], atol=1e-2)
    for name in ["spam", "topic", None, "topic", "spam"]:
        use_adapter(model, name)
        assert torch.equal(model(IDS), answers[name])
        merge_lora(model)  # switching takes it out
        assert torch.allclose(model(IDS), answers[name], atol=1e-5)
        learning = [n for n, p in model.named_parameters() if p.requires_grad]
        assert all(f".adapters.{name}." in n for n in learning)
        assert len(lora_parameters(unmerge_lora(model))) == len(learning)
    assert torch.equal(unload_lora(model)(IDS), base)


def test_unknown_and_repeated_names_are_refused():
    model = with_adapter()
    with pytest.raises(ValueError, match=r"no adapter 'spam', only \['default'\]"):
        use_adapter(model, "spam")
    with pytest.raises(ValueError, match="has an adapter 'default' already"):
        replace_linear_with_lora(model, 2, 3)
    with pytest.raises(ValueError, match="'default' is taken"):
        next(iter(lora_layers(model).values())).add(2, 3, "default")


def test_one_adapter_may_have_several_ranks():
    model = replace_linear_with_lora(tiny(), 2, 4, "*.att.*")
    replace_linear_with_lora(model, 5, 10, "*.ff.*")
    ranks = {layer.lora.rank for layer in lora_layers(model).values()}
    assert ranks == {2, 5}
    assert len(lora_parameters(model)) == 2 * 14


# --- What a model keeps when it has adapters -----------------------------------------


@both_kinds
def test_with_a_cache_and_without_the_same_text(kind):
    model = with_adapter(kind)
    prompt = IDS[:, :3]
    plain = generate_text_simple(model, prompt, 6, context_size=10)
    cached = generate_text_simple(model, prompt, 6, 10, cache=KVCache(2))
    assert torch.equal(cached, plain)
    assert not torch.allclose(model(IDS), tiny(kind)(IDS), atol=1e-2)


@both_kinds
def test_padding_changes_no_answer_and_the_model_is_traced_in_one_piece(kind):
    model = with_adapter(kind).double()
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], dim=1)
    mask = torch.arange(10).expand(2, 10) >= 3
    alone = model(IDS)
    assert close(model(padded, mask)[:, 3:], alone)
    assert close(torch.compile(model, backend="eager", fullgraph=True)(IDS), alone)


# --- Files ---------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("published", [False, True])
def test_a_saved_adapter_gives_the_same_logits(kind, published, tmp_path):
    model = with_adapter(kind, names=["*.att.*", "*ff*"], dropout=0.1)
    save_adapter(tmp_path, model, published=published, base="tiny")
    again = load_adapter(tmp_path, tiny(kind), "other")
    assert torch.allclose(again(IDS), model(IDS), atol=1e-6)
    assert adapter_names(again) == ["other"]
    assert {layer.lora.dropout.p for layer in lora_layers(again).values()} == {0.1}
    if not published:
        assert torch.equal(again(IDS), model(IDS))
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, WEIGHTS]


def test_the_file_holds_the_adapter_alone_in_the_layout_of_peft(tmp_path):
    model = with_adapter(names="*.1.att.W_key")
    save_adapter(tmp_path, model)
    tensors = load_file(tmp_path / WEIGHTS)
    key = "base_model.model.trf_blocks.1.att.W_key.lora_"
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes == {f"{key}A.weight": (2, 12), f"{key}B.weight": (8, 2)}
    lora = lora_layers(model)["trf_blocks.1.att.W_key"].lora
    assert torch.equal(tensors[f"{key}A.weight"], lora.A.T)
    config = json.loads((tmp_path / CONFIG).read_text(encoding="utf-8"))
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 3)
    assert config["target_modules"] == ["trf_blocks.1.att.W_key"]
    size = (tmp_path / WEIGHTS).stat().st_size
    assert 4 * (24 + 16) < size < 4 * (24 + 16) + 1000


def test_several_ranks_and_adapters_go_to_files_and_back(tmp_path):
    model = replace_linear_with_lora(tiny(), 2, 4, "*.att.*", "spam")
    replace_linear_with_lora(model, 5, 4, "*.ff.*", "spam")
    replace_linear_with_lora(model, 1, 4, "*.W_key", "topic")
    for name in ("spam", "topic"):
        shake(model, adapter=name)
        save_adapter(tmp_path / name, model, name)
    again = tiny()
    for name in ("topic", "spam"):
        load_adapter(tmp_path / name, again, name)
    for name in ("spam", "topic"):
        assert torch.equal(use_adapter(again, name)(IDS), use_adapter(model, name)(IDS))


@pytest.mark.parametrize("parts", ["query", "query value", "query key value"])
def test_gpt2s_joined_layer_takes_adapters_of_some_of_its_three(parts, tmp_path):
    model = with_adapter("gpt", names=[f"*.W_{part}" for part in parts.split()])
    save_adapter(tmp_path, model, published=True)
    tensors = load_file(tmp_path / WEIGHTS)
    count = len(parts.split())
    key = "base_model.model.transformer.h.0.attn.c_attn.lora_"
    assert tuple(tensors[f"{key}A.weight"].shape) == (2 * count, 12)
    assert tuple(tensors[f"{key}B.weight"].shape) == (36, 2 * count)
    assert json.loads((tmp_path / CONFIG).read_text())["fan_in_fan_out"]
    again = load_adapter(tmp_path, tiny("gpt"))
    assert torch.allclose(again(IDS), model(IDS), atol=1e-6)
    save_adapter(tmp_path, again, published=True)  # one A for all three: no wider now
    assert load_file(tmp_path / WEIGHTS)[f"{key}A.weight"].shape[0] == 2 * count


def test_the_rank_stabilised_scale_is_taken_over(tmp_path):
    model = with_adapter(rank=4, alpha=6)
    save_adapter(tmp_path, model)
    change(tmp_path, use_rslora=True, lora_alpha=3)  # 3 / sqrt(4) = 6 / 4
    again = load_adapter(tmp_path, tiny())
    assert torch.allclose(again(IDS), model(IDS), atol=1e-6)


def change(folder, **entries):
    """Change entries of an adapter's config, as if peft had written the files."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps({**config, **entries}), encoding="utf-8")
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, {"format": "pt"})


def another_base(folder):
    return tiny(seed=1)


def a_wider_model(folder):
    return tiny(emb_dim=16)


def fewer_blocks(folder):
    return tiny(n_layers=1)


def damaged(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def without_config(folder):
    (folder / CONFIG).unlink()


def one_matrix_missing(folder):
    tensors = load_file(folder / WEIGHTS)
    del tensors[sorted(tensors)[0]]
    save_file(tensors, folder / WEIGHTS)


def not_finite(folder):
    tensors = load_file(folder / WEIGHTS)
    next(iter(tensors.values()))[0, 0] = math.inf
    save_file(tensors, folder / WEIGHTS)


def a_head_trained_whole(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors["base_model.model.score.weight"] = torch.ones(1)
    save_file(tensors, folder / WEIGHTS)


def config_of_another(folder):
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps({**config, "lora_alpha": 99}))


BAD_NUMBERS = [
    *(("r", {"r": bad}) for bad in (None, "2", 0, 2.5, True)),
    *(("lora_alpha", {"lora_alpha": bad}) for bad in (None, "8", math.nan, 10**400)),
    *(("lora_dropout", {"lora_dropout": bad}) for bad in (None, "x", 1.5, -0.1)),
    *(("r", {"rank_pattern": bad}) for bad in ({"(": 2}, ["W_key"], {"W_key": None})),
    *(("lora_alpha", {"alpha_pattern": bad}) for bad in ({"*": 2.0}, {"W_key": "3"})),
]
WRONG = {
    another_base: "trained on another base model",
    a_wider_model: "from 12 to 8 numbers, but this model's is from 16 to 8",
    fewer_blocks: "has a layer trf_blocks.1.att.W_key, and the model has none",
    damaged: "is missing or damaged",
    without_config: f"There is no {CONFIG}",
    one_matrix_missing: "only lora_B is there",
    not_finite: "not finite",
    a_head_trained_whole: "is no matrix of an adapter",
    config_of_another: "are of different adapters",
    lambda folder: change(folder, r=3): "is not the rank 3 of its config",
    lambda folder: change(folder, use_dora=True): "DoRA",
    lambda folder: change(folder, bias="all"): "trained biases",
    lambda folder: change(folder, modules_to_save=["head"]): "trained whole",
    lambda folder: change(folder, peft_type="IA3"): "of the kind IA3",
    lambda folder: change(folder, init_lora_weights="pissa_niter_4"): "'pissa_niter_4'",
    lambda folder: change(folder, init_lora_weights="olora"): "'olora', a start",
    lambda folder: change(folder, init_lora_weights="loftq"): "'loftq', a start",
    **{
        lambda folder, name=name: change(folder, **{name: [7]}): f"{name} is set"
        for name in (
            *("alora_invocation_tokens", "use_bdlora", "use_qalora", "kasa_config"),
            *("monteclora_config", "arrow_config", "target_parameters", "made_up"),
        )
    },
    **{
        lambda folder, bad=bad: change(folder, **bad): f"{word} or its patterns cannot"
        for word, bad in BAD_NUMBERS
    },
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(folder, with_adapter(names="*.att.W_*"))
    return folder


@pytest.mark.parametrize(("spoil", "message"), WRONG.items(), ids=WRONG.values())
def test_what_does_not_fit_is_refused_and_nothing_changes(
    spoil, message, saved, tmp_path
):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    model = spoil(tmp_path) or tiny()
    before = model(IDS)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_adapter(tmp_path, model)
    assert torch.equal(model(IDS), before)
    assert not lora_layers(model)
    assert all(p.requires_grad for p in model.parameters())


def test_a_name_that_is_taken_is_refused_before_anything_changes(saved):
    model = load_adapter(saved, tiny())
    before = model(IDS)
    with pytest.raises(ValueError, match="under another name"):
        load_adapter(saved, model)
    assert torch.equal(model(IDS), before)


def test_what_else_has_learned_is_not_lost_silently(tmp_path):
    model = with_adapter()
    model.final_norm.requires_grad_(True)
    with pytest.raises(ValueError, match=r"final_norm\.scale learns as well"):
        save_adapter(tmp_path, model)
    model.final_norm.requires_grad_(False)
    with pytest.raises(ValueError, match="no adapter 'spam' to save"):
        save_adapter(tmp_path, model, "spam")
    use_adapter(model, None)
    with pytest.raises(ValueError, match=r"No adapter is active: .* \['default'\]"):
        save_adapter(tmp_path, model)
    assert not list(tmp_path.iterdir())


def test_an_alpha_of_numpy_goes_to_a_file(tmp_path):
    save_adapter(tmp_path, with_adapter(alpha=np.float32(1.5)))
    config = json.loads((tmp_path / CONFIG).read_text(encoding="utf-8"))
    assert config["lora_alpha"] == 1.5


def test_the_hash_is_of_the_base_alone():
    model = tiny()
    of_base = base_hash(model)
    shake(replace_linear_with_lora(model, 2, 4, "*.att.*"))
    assert base_hash(model) == base_hash(merge_lora(model)) == of_base
    assert base_hash(tiny().bfloat16(), torch.float32) == of_base
    assert base_hash(tiny(seed=1)) != of_base


def test_an_adapter_trained_in_one_number_type_fits_the_base_in_another(saved):
    model = load_adapter(saved, tiny().double())
    expected = with_adapter(names="*.att.W_*")(IDS)
    assert torch.allclose(model(IDS).float(), expected, atol=1e-5)


@both_kinds
def test_published_names_are_without_gaps(kind):
    names = published_names(tiny(kind, tie_weights=False))
    linear = linear_layers(tiny(kind, tie_weights=False))
    assert set(linear) <= set(names)
    assert len({names[ours] for ours in linear}) == len(linear)
