"""The GPT proved: against transformers' GPT-2, against itself, and known mistakes.

Bounds: float32 within 1e-5, float64 within 1e-10. The models are tiny and keep the
start that PyTorch gives them: its embeddings are large, so a wrong position shows.
"""

import copy
import dataclasses
import io
import itertools
import math
import pickle
import subprocess
import sys

import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

import gpt
from course.copying import copy as copy_module
from gpt import (
    GELU,
    GPT_CONFIG_124M,
    GPT_CONFIG_355M,
    GPT_CONFIG_774M,
    GPT_CONFIG_1558M,
    FeedForward,
    GPTConfig,
    GPTModel,
    LayerNorm,
    TiedHead,
    TransformerBlock,
    count_parameters,
    generate_text_simple,
    initialise_like_gpt2,
)
from kv_cache import KVCache

BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-10}
CONTEXT = 10
TINY = GPTConfig(
    vocab_size=23,
    context_length=CONTEXT,
    emb_dim=12,
    n_heads=3,
    n_layers=2,
    drop_rate=0.0,
    qkv_bias=False,
)
PROJECTIONS = ("W_query", "W_key", "W_value")

some = settings(max_examples=30, deadline=None)
seeds = st.integers(min_value=0, max_value=2**32 - 1)


# --- what the tests are made of -------------------------------------------------------


@st.composite
def configs(draw):
    """Odd sizes, with and without biases, tied and untied.

    At least 4 wide: normalising two or three numbers that happen to lie close together
    makes rounding some hundred times larger.
    """
    heads = draw(st.integers(1, 4))
    head_dim = draw(st.integers(4 if heads == 1 else 2, 7))
    return GPTConfig(
        vocab_size=draw(st.integers(2, 40)),
        context_length=CONTEXT,
        emb_dim=heads * head_dim,
        n_heads=heads,
        n_layers=draw(st.integers(1, 3)),
        drop_rate=0.0,
        qkv_bias=draw(st.booleans()),
        tie_weights=draw(st.booleans()),
    )


@st.composite
def models(draw, dtype=torch.float64):
    """A model in evaluation mode and a batch of ids for it."""
    cfg, seed = draw(configs()), draw(seeds)
    model = make(cfg, seed, dtype)
    B, T = draw(st.integers(1, 3)), draw(st.integers(1, CONTEXT))
    return model, torch.randint(cfg.vocab_size, (B, T))


@st.composite
def chunkings(draw, T):
    """Where chunks of T tokens end, the last of them at T."""
    return [*sorted(draw(st.sets(st.integers(1, T - 1)))), T] if T > 1 else [1]


@st.composite
def ragged(draw, vocab_size, side):
    """Prompts of different lengths as lists, and as one padded batch with its mask."""
    ids = st.integers(0, vocab_size - 1)
    prompt = st.lists(ids, min_size=1, max_size=CONTEXT)
    prompts = draw(st.lists(prompt, min_size=1, max_size=4))
    return prompts, *pad(prompts, side, fill=draw(ids))


def pad(prompts, side, fill=0):
    longest = max(map(len, prompts))
    idx = torch.full((len(prompts), longest), fill)
    real = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for b, prompt in enumerate(prompts):
        n = len(prompt)
        place = slice(longest - n, None) if side == "left" else slice(n)
        idx[b, place], real[b, place] = torch.tensor(prompt), True
    return idx, real


def make(cfg=TINY, seed=0, dtype=torch.float64, **changes):
    torch.manual_seed(seed)
    return GPTModel({**cfg, **changes}).to(dtype).eval()


def ids(*shape, seed=0, vocab_size=TINY.vocab_size):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, shape, generator=generator)


def close(actual, expected, bound=None):
    """Whether two tensors agree within the bound for their type; NaN never does."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    bound = bound or BOUNDS[actual.dtype]
    return torch.allclose(actual, expected, rtol=0, atol=bound)


def cache_for(model):
    return KVCache(model.cfg.n_layers, model.cfg.context_length)


# --- parity with transformers' GPT-2 --------------------------------------------------


def reference(cfg, dtype):
    """A GPT-2 of transformers with these sizes, in evaluation mode."""
    from transformers import GPT2Config, GPT2LMHeadModel

    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=cfg.vocab_size,
            n_positions=cfg.context_length,
            n_embd=cfg.emb_dim,
            n_layer=cfg.n_layers,
            n_head=cfg.n_heads,
            embd_pdrop=cfg.drop_rate,
            attn_pdrop=cfg.drop_rate,
            resid_pdrop=cfg.drop_rate,
            tie_word_embeddings=cfg.tie_weights,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    return theirs.to(dtype).eval()


def pairs(ours, theirs, kind=lambda parameter: parameter.detach()):
    """(name, our part, theirs) for every weight, in the shape that ours has.

    What they give is a view, so both can be written to. `kind` may ask for gradients
    instead. Their linear layers keep matrices the other way round than nn.Linear, with
    queries, keys and values side by side.
    """
    body = theirs.transformer

    def pair(name, our, their, view=lambda tensor: tensor):
        if our is not None:
            yield name, kind(our), view(kind(their))

    def norm(name, our, their):
        yield from pair(f"{name}.scale", our.scale, their.weight)
        yield from pair(f"{name}.shift", our.shift, their.bias)

    def linear(name, our, their, columns=slice(None)):
        transposed = (lambda t: t[:, columns].T), (lambda t: t[columns])
        yield from pair(f"{name}.weight", our.weight, their.weight, transposed[0])
        yield from pair(f"{name}.bias", our.bias, their.bias, transposed[1])

    yield from pair("tok_emb", ours.tok_emb.weight, body.wte.weight)
    yield from pair("pos_emb", ours.pos_emb.weight, body.wpe.weight)
    D = ours.cfg.emb_dim
    for i, (our, their) in enumerate(zip(ours.trf_blocks, body.h, strict=True)):
        yield from norm(f"{i}.norm1", our.norm1, their.ln_1)
        yield from norm(f"{i}.norm2", our.norm2, their.ln_2)
        for part, name in enumerate(PROJECTIONS):
            columns = slice(part * D, (part + 1) * D)
            projection = getattr(our.att, name)
            yield from linear(f"{i}.{name}", projection, their.attn.c_attn, columns)
        yield from linear(f"{i}.out_proj", our.att.out_proj, their.attn.c_proj)
        yield from linear(f"{i}.ff.0", our.ff.layers[0], their.mlp.c_fc)
        yield from linear(f"{i}.ff.2", our.ff.layers[2], their.mlp.c_proj)
    yield from norm("final_norm", ours.final_norm, body.ln_f)
    yield from pair("out_head", ours.out_head.weight, theirs.lm_head.weight)


# Normal numbers of this spread as weights. Large ones show a mistake best; in float32
# they also show the rounding, which layer normalisation of few numbers makes larger.
SPREADS = {torch.float32: 0.1, torch.float64: 0.5}


@torch.no_grad()
def twins(cfg, seed, dtype, source):
    """Our model and theirs with the same weights, drawn in ours or in theirs."""
    ours, theirs = make(cfg, seed, dtype), reference(cfg, dtype)
    for parameter in (ours if source == "ours" else theirs).parameters():
        nn.init.normal_(parameter, std=SPREADS[dtype])
    if not cfg.qkv_bias:  # theirs always has one
        for block in theirs.transformer.h:
            nn.init.zeros_(block.attn.c_attn.bias)
    for name, our, their in pairs(ours, theirs):
        if source == "ours":
            our += name.endswith(".scale")  # these lie around 1
            their.copy_(our)
        else:
            their += name.endswith(".scale")
            our.copy_(their)
    return ours, theirs


directions = pytest.mark.parametrize("source", ["ours", "theirs"])


@directions
@pytest.mark.parametrize("dtype", list(BOUNDS))
@some
@given(configs(), seeds)
def test_logits_equal_those_of_transformers(source, dtype, cfg, seed):
    """Weights drawn in ours and copied to theirs, and the other way round."""
    ours, theirs = twins(cfg, seed, dtype, source)
    idx = torch.randint(cfg.vocab_size, (2, CONTEXT))
    with torch.no_grad():
        assert close(ours(idx), theirs(idx).logits)


@directions
@some
@given(configs(), seeds)
def test_gradients_equal_those_of_transformers(source, cfg, seed):
    ours, theirs = twins(cfg, seed, torch.float64, source)
    idx = torch.randint(cfg.vocab_size, (2, CONTEXT))
    for logits in (ours(idx), theirs(idx).logits):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), idx[:, 1:].flatten()).backward()
    compared = 0
    for name, our, their in pairs(ours, theirs, kind=lambda p: p.grad):
        assert close(our, their), name
        compared += our.numel()
    tied_twice = cfg.tie_weights * ours.tok_emb.weight.numel()
    assert compared == count_parameters(ours) + tied_twice


@pytest.mark.parametrize("side", ["left", "right"])
@some
@given(configs(), seeds, st.data())
def test_padded_batches_equal_those_of_transformers(side, cfg, seed, data):
    """The reference takes positions from its caller, who counts real tokens."""
    ours, theirs = twins(cfg, seed, torch.float64, "ours")
    _, idx, real = data.draw(ragged(cfg.vocab_size, side))
    positions = (real.long().cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = theirs(idx, attention_mask=real.long(), position_ids=positions)
        assert close(ours(idx, real)[real], expected.logits[real])


def test_text_equals_that_of_transformers():
    """Greedy, from prompts of different lengths, padded on the left."""
    cfg = GPTConfig.of({**TINY, "context_length": 40})
    ours, theirs = twins(cfg, 3, torch.float64, "ours")
    idx, real = pad([[5, 1, 7, 2], [3], [9, 9]], "left")
    expected = theirs.generate(
        idx,
        attention_mask=real.long(),
        max_new_tokens=30,
        do_sample=False,
        pad_token_id=0,
    )
    found = generate_text_simple(ours, idx, 30, 40, real)
    assert torch.equal(found, expected)
    assert len(set(found[0, 4:].tolist())) > 3  # no single token over and over


def test_initialisation_has_the_spread_of_transformers():
    """But for the projections at a branch's end, which theirs scale down as ours do."""
    cfg = GPTConfig.of({**TINY, "vocab_size": 300, "emb_dim": 96, "context_length": 50})
    torch.manual_seed(0)
    ours, theirs = initialise_like_gpt2(GPTModel(cfg)), reference(cfg, torch.float32)
    for name, our, their in pairs(ours, theirs):
        if our.ndim == 2:
            ratio = (our.std() / their.std()).item()
            assert ratio == pytest.approx(1.0, abs=0.05), name
            assert abs(our.mean()) < 0.1 * our.std(), name
        else:
            assert torch.equal(our, their), name


# --- parameters -----------------------------------------------------------------------

SIZES = {  # untied, tied, MiB of untied float32
    "124M": (GPT_CONFIG_124M, 163_009_536, 124_412_160, 621.83),
    "355M": (GPT_CONFIG_355M, 406_212_608, 354_749_440, 1_549.58),
    "774M": (GPT_CONFIG_774M, 838_220_800, 773_891_840, 3_197.56),
    "1558M": (GPT_CONFIG_1558M, 1_637_792_000, 1_557_380_800, 6_247.68),
}


@pytest.mark.parametrize("size", SIZES)
def test_number_of_parameters(size):
    cfg, untied, tied, mebibytes = SIZES[size]
    with torch.device("meta"):
        model = GPTModel(cfg)
        assert count_parameters(model) == untied
        assert count_parameters(GPTModel({**cfg, "tie_weights": True})) == tied
        assert model(torch.zeros(2, 1024, dtype=torch.long)).shape == (2, 1024, 50257)
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    assert round(held / 2**20, 2) == mebibytes


def test_published_weights_have_query_key_and_value_biases_too():
    """124,439,808 is what GPT-2's own checkpoint holds."""
    with torch.device("meta"):
        cfg = {**GPT_CONFIG_124M, "qkv_bias": True, "tie_weights": True}
        assert count_parameters(GPTModel(cfg)) == 124_439_808


@some
@given(configs())
def test_number_of_parameters_by_arithmetic(cfg):
    V, T, D, L = cfg.vocab_size, cfg.context_length, cfg.emb_dim, cfg.n_layers
    attention = 4 * D * D + D + 3 * D * cfg.qkv_bias
    feed_forward = 8 * D * D + 5 * D
    blocks = L * (attention + feed_forward + 4 * D)
    heads = 1 if cfg.tie_weights else 2
    assert count_parameters(GPTModel(cfg)) == heads * V * D + T * D + blocks + 2 * D


def test_only_weights_are_saved():
    """Known mistake: causal masks as buffers in every checkpoint."""
    model = make(qkv_bias=True)
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()]


# --- tied weights ---------------------------------------------------------------------


def is_tied(model):
    """One tensor, in one place of memory, counted and listed once."""
    embedding, head = model.tok_emb.weight, model.out_head.weight
    names = [name for name, p in model.named_parameters() if p is embedding]
    untied = count_parameters(GPTModel({**model.cfg, "tie_weights": False}))
    return (
        embedding is head
        and names == ["tok_emb.weight"]
        and count_parameters(model) == untied - embedding.numel()
    )


def through_file(model):
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = make(model.cfg, seed=1)
    loaded.load_state_dict(torch.load(file))
    return loaded


def assigned(model):
    loaded = make(model.cfg, seed=1)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    loaded.load_state_dict(state, assign=True)
    return loaded


def by_way_of_meta(model):
    """What is not saved must be computed again: `to_empty` leaves masks undefined."""
    empty = copy.deepcopy(model).to("meta").to_empty(device="cpu")
    empty.load_state_dict(model.state_dict())
    for block in empty.trf_blocks:
        block.att.mask = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).triu(1)
    return empty


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.to(torch.float32).to(torch.float64),
        lambda model: model.half().double(),
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        through_file,
        assigned,
        by_way_of_meta,
    ],
    ids=["to", "half", "deepcopy", "pickle", "file", "assign", "meta"],
)
def test_tied_weights_stay_one_tensor(change):
    """Known mistake: "tied" weights copied, not shared."""
    model = make(tie_weights=True)
    assert is_tied(model)
    expected = model(ids(2, 5))
    changed = change(model)
    assert is_tied(changed)
    assert close(changed(ids(2, 5)), expected, bound=0.05)  # half keeps 3 digits
    with torch.no_grad():
        changed.tok_emb.weight.zero_()
    assert not changed(ids(2, 5)).any()


def test_tied_weights_learn_from_both_ends():
    tied, untied = make(tie_weights=True), make()
    untied.load_state_dict(
        {**tied.state_dict(), "out_head.weight": tied.tok_emb.weight}
    )
    for model in (tied, untied):
        model(ids(2, 5)).square().mean().backward()
    both = untied.tok_emb.weight.grad + untied.out_head.weight.grad
    assert close(tied.tok_emb.weight.grad, both)


def test_an_optimizer_moves_tied_weights_once():
    model = make(tie_weights=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(ids(2, 5)).square().mean().backward()
    before, slope = model.tok_emb.weight.detach().clone(), model.tok_emb.weight.grad
    optimizer.step()
    assert close(model.tok_emb.weight.detach(), before - 0.5 * slope)
    assert is_tied(model)


def test_tied_weights_lie_in_a_file_once(tmp_path):
    """safetensors refuses a tensor under two names; here there is only one."""
    model, path = make(tie_weights=True), tmp_path / "model.safetensors"
    save_file(model.state_dict(), path)
    loaded = make(tie_weights=True, seed=1)
    loaded.load_state_dict(load_file(path))
    assert torch.equal(loaded(ids(2, 5)), model(ids(2, 5)))
    assert path.stat().st_size < 8 * count_parameters(model) + 4000


@pytest.mark.parametrize(("of", "into"), [(True, False), (False, True)])
def test_tied_and_untied_weights_are_not_mistaken_for_one_another(of, into):
    state = make(tie_weights=of).state_dict()
    with pytest.raises(RuntimeError, match=r"key\(s\).*out_head\.weight"):
        make(tie_weights=into).load_state_dict(state)


def test_tied_head_is_a_product_with_the_embedding():
    embedding = nn.Embedding(7, 4)
    head, x = TiedHead(embedding), torch.randn(2, 3, 4)
    assert torch.equal(head(x), x @ embedding.weight.T)
    assert not list(head.parameters())


# --- the parts ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", list(BOUNDS))
@some
@given(st.integers(4, 40), seeds)
def test_layer_norm_equals_that_of_pytorch(dtype, D, seed):
    """Known mistakes: variance over D - 1; epsilon outside the root, seen where the
    variance is small.
    """
    torch.manual_seed(seed)
    norm = LayerNorm(D).to(dtype)
    nn.init.normal_(norm.scale)
    nn.init.normal_(norm.shift)
    for spread in (1.0, 1e-3):
        x = spread * torch.randn(2, 3, D, dtype=dtype)
        expected = F.layer_norm(x, (D,), norm.scale, norm.shift, eps=1e-5)
        assert close(norm(x), expected)


def test_layer_norm_gives_mean_0_and_variance_1_to_each_token():
    x = 7 * torch.randn(4, 5, 64, dtype=torch.float64) + 3
    out = LayerNorm(64).double()(x)
    assert close(out.mean(dim=-1), torch.zeros(4, 5, dtype=torch.float64))
    ones = torch.ones(4, 5, dtype=torch.float64)
    assert close(out.var(dim=-1, unbiased=False), ones, bound=1e-5)  # by eps


def test_layer_norm_of_equal_numbers_is_the_shift():
    norm = LayerNorm(6)
    nn.init.normal_(norm.shift)
    out = norm(torch.full((2, 3, 6), 3.0))
    assert torch.equal(out, norm.shift.expand(2, 3, 6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_layer_norm_computes_in_float32_and_returns_the_dtype_it_got(dtype):
    """Known mistakes: norm computed in low precision, or its result left in float32."""
    torch.manual_seed(0)
    x = (torch.randn(8, 768) + 20).to(dtype)  # far from 0, where few digits are left
    norm = LayerNorm(768)
    exact = norm(x.float())
    out = norm.to(dtype)(x)
    assert out.dtype == dtype
    assert ((out - exact).abs() <= torch.finfo(dtype).eps * exact.abs()).all()


def test_gelu_equals_that_of_pytorch():
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    assert close(GELU()(x), F.gelu(x, approximate="tanh"))
    assert not close(GELU()(x), F.gelu(x))  # the exact one is another function
    assert (GELU()(x) - F.gelu(x)).abs().max() < 5e-4


def test_feed_forward_treats_each_token_by_itself():
    torch.manual_seed(0)
    part, x = FeedForward(TINY).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    out = part(x)
    assert out.shape == x.shape
    for t in range(5):
        assert close(part(x[:, t : t + 1]), out[:, t : t + 1])
    assert part.layers[0].out_features == 4 * 12


def test_block_is_pre_norm_with_two_shortcuts():
    """Known mistakes: a shortcut forgotten, or normalisation after the sum."""
    block, x = make().trf_blocks[0], torch.randn(2, 5, 12, dtype=torch.float64)
    middle = x + block.att(block.norm1(x))
    assert close(block(x), middle + block.ff(block.norm2(middle)))
    nn.init.zeros_(block.att.out_proj.weight)
    nn.init.zeros_(block.att.out_proj.bias)
    nn.init.zeros_(block.ff.layers[2].weight)
    nn.init.zeros_(block.ff.layers[2].bias)
    assert torch.equal(block(x), x)  # without branches only the shortcut is left


def test_block_takes_a_plain_dictionary():
    """As the chapter makes one: before there is a model that checks the config."""
    block = TransformerBlock({**TINY, "qkv_bias": True})
    assert block.att.W_query.bias is not None
    assert block(torch.zeros(1, 4, 12)).shape == (1, 4, 12)


# --- what must hold whatever the weights ----------------------------------------------


@some
@given(models(), st.data())
def test_future_token_never_changes_a_past_logit(case, data):
    """Known mistakes: mask added as 0/1; mask off by one; a mask that leaks."""
    model, idx = case
    t = data.draw(st.integers(0, idx.shape[1] - 1))
    changed = idx.clone()
    changed[:, t:] = (changed[:, t:] + 1) % model.cfg.vocab_size
    before, after = model(idx), model(changed)
    assert close(after[:, :t], before[:, :t])


def test_a_token_changes_its_own_logits_and_those_of_all_later_places():
    model, idx = make(), ids(1, CONTEXT)
    before = model(idx)
    for t in range(CONTEXT):
        changed = idx.clone()
        changed[0, t] = (changed[0, t] + 1) % 23
        moved = (model(changed) - before).abs().amax(dim=-1)[0] > 1e-6
        assert moved.tolist() == [False] * t + [True] * (CONTEXT - t)


def test_order_counts():
    """Known mistake: a table of positions that is never added, or always at one row."""
    model = make()
    out = model(torch.tensor([[5, 5, 5, 5]]))[0]
    for first, second in itertools.combinations(out, 2):
        assert (first - second).abs().max() > 1e-3


@some
@given(models(), st.data())
def test_cached_equals_uncached_for_any_chunks(case, data):
    """Known mistakes: a cached step with a 1 x 1 mask; causal mask aligned to the top
    left when queries are fewer than keys; square mask misapplied to a continuation;
    position offset that grows by the total length at each step.
    """
    model, idx = case
    cache, parts, start = cache_for(model), [], 0
    with torch.no_grad():
        for end in data.draw(chunkings(idx.shape[1])):
            parts.append(model(idx[:, start:end], cache=cache))
            assert cache.length == end
            start = end
        assert close(torch.cat(parts, dim=1), model(idx))


@torch.no_grad()
def test_token_by_token_equals_one_pass_at_every_length():
    model, idx = make(), ids(2, CONTEXT)
    expected, cache = model(idx), cache_for(model)
    for t in range(CONTEXT):
        assert close(model(idx[:, t : t + 1], cache=cache)[:, 0], expected[:, t])


@pytest.mark.parametrize("side", ["left", "right"])
@some
@given(configs(), seeds, st.data())
def test_padded_batch_equals_each_prompt_alone(side, cfg, seed, data):
    """Known mistakes: ragged prompts padded without a mask or with a wrong one;
    positions counted over padding; last logits taken at -1 although the row is padded.
    """
    model = make(cfg, seed)
    prompts, idx, real = data.draw(ragged(cfg.vocab_size, side))
    together = model(idx, real)
    for b, prompt in enumerate(prompts):
        alone = model(torch.tensor([prompt]))
        assert close(together[b][real[b]], alone[0])
        last = real[b].nonzero().max()
        assert close(together[b, last], alone[0, -1])


@pytest.mark.parametrize("side", ["left", "right"])
@some
@given(configs(), seeds, st.data())
def test_padded_and_cached_equals_padded(side, cfg, seed, data):
    model = make(cfg, seed)
    _, idx, real = data.draw(ragged(cfg.vocab_size, side))
    cache, parts, start = cache_for(model), [], 0
    with torch.no_grad():
        for end in data.draw(chunkings(idx.shape[1])):
            parts.append(model(idx[:, start:end], real[:, :end], cache))
            start = end
        assert close(torch.cat(parts, dim=1)[real], model(idx, real)[real])


@some
@given(models())
def test_batched_equals_single(case):
    model, idx = case
    together = model(idx)
    for b in range(len(idx)):
        assert close(together[b : b + 1], model(idx[b : b + 1]))


def test_what_stands_at_padding_does_not_matter():
    model = make()
    idx, real = pad([[1, 2, 3], [4]], "left", fill=0)
    other, _ = pad([[1, 2, 3], [4]], "left", fill=22)
    assert close(model(other, real)[real], model(idx, real)[real])


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.int32, torch.uint8])
def test_mask_may_be_truth_values_or_integers(kind):
    model = make()
    idx, real = pad([[1, 2, 3], [4]], "left")
    assert torch.equal(model(idx, real.to(kind)), model(idx, real))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_row_of_padding_alone_gives_finite_numbers(dtype):
    """Known mistake: NaN from fully masked rows, here also in the gradients."""
    model, real = make(dtype=dtype), torch.ones(2, 4, dtype=torch.bool)
    real[0] = False
    out = model(ids(2, 4), real)
    out.float().square().mean().backward()
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_whole_model_stays_in_half_precision():
    """Known mistake: a part left in float32."""
    model = make(dtype=torch.float32)
    expected = model(ids(2, 5))
    half = copy.deepcopy(model).to(torch.bfloat16)(ids(2, 5))
    assert half.dtype == torch.bfloat16
    assert (half - expected).abs().max() < 0.1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(ids(2, 5))
    assert (mixed - expected).abs().max() < 0.1


def test_evaluation_is_deterministic_and_training_is_not():
    """Known mistake: dropout left on in evaluation."""
    model, without = make(drop_rate=0.5), make()
    idx = ids(2, 5)
    first, second = model(idx), model(idx)
    assert torch.equal(first, second)
    assert torch.equal(first, without(idx))
    model.train()
    first, second = model(idx), model(idx)
    assert not close(first, second)


def test_dropout_acts_in_its_three_places():
    model, called = make(drop_rate=0.1), []
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            assert module.p == 0.1
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    model(ids(1, 3))
    of_block = ["att.dropout", "drop_shortcut", "drop_shortcut"]
    blocks = [f"trf_blocks.{i}.{name}" for i in range(2) for name in of_block]
    assert called == ["drop_emb", *blocks]


def test_no_state_between_calls():
    model, idx = make(), ids(2, 5)
    fresh, weights = model(idx), copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model(ids(3, 4, seed=1), cache=cache_for(model))
    model(ids(1, 9, seed=2), torch.zeros(1, 9, dtype=torch.bool))
    assert torch.equal(model(idx), fresh)
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())


def test_model_is_traced_in_one_piece():
    """What torch.compile needs; asking the ids for their bounds would break it."""
    model, idx = make(), ids(2, 5)
    traced = torch.compile(model, backend="eager", fullgraph=True)
    assert close(traced(idx), model(idx))


# --- initialisation -------------------------------------------------------------------


def first_loss(model, seed=0):
    V = model.cfg.vocab_size
    idx = ids(8, 33, seed=seed, vocab_size=V)
    logits = model(idx[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), idx[:, 1:].flatten()).item()


WIDE = GPTConfig.of(
    {**TINY, "vocab_size": 500, "context_length": 32, "emb_dim": 192, "n_layers": 3}
)


@pytest.mark.parametrize("tied", [False, True])
def test_first_loss_is_near_that_of_a_uniform_guess(tied):
    model = make(WIDE, dtype=torch.float32, tie_weights=tied)
    initialise_like_gpt2(model)
    assert first_loss(model) == pytest.approx(math.log(500), abs=0.15)


def test_a_tied_model_needs_it():
    """PyTorch's own start draws an embedding with standard deviation 1."""
    model = make(WIDE, dtype=torch.float32, tie_weights=True)
    assert first_loss(model) > 5 * math.log(500)


def branches(model):
    """How much the blocks add to the embeddings, as a standard deviation."""
    seen = {}
    model.drop_emb.register_forward_hook(lambda *call: seen.update(start=call[2]))
    model.final_norm.register_forward_pre_hook(lambda _, args: seen.update(end=args[0]))
    model(ids(4, 32, vocab_size=500))
    return (seen["end"] - seen["start"]).std().item()


def test_branches_add_up_to_about_the_same_whatever_the_depth():
    shallow, deep = (
        initialise_like_gpt2(make(WIDE, dtype=torch.float32, n_layers=L))
        for L in (2, 32)
    )
    assert branches(deep) / branches(shallow) == pytest.approx(1.0, abs=0.25)
    for block in deep.trf_blocks:  # without the scaling they grow with the depth
        block.att.out_proj.weight.data *= math.sqrt(2 * 32)
        block.ff.layers[2].weight.data *= math.sqrt(2 * 32)
    assert branches(deep) / branches(shallow) > 4


def test_initialisation_follows_its_generator_and_no_other():
    first, second = make(), make(seed=1)
    state = torch.get_rng_state()
    for model in (first, second):
        assert initialise_like_gpt2(model, torch.Generator().manual_seed(7)) is model
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first(ids(2, 5)), second(ids(2, 5)))
    initialise_like_gpt2(second, torch.Generator().manual_seed(8))
    assert not close(first(ids(2, 5)), second(ids(2, 5)))


# --- generating -----------------------------------------------------------------------


def slow(model, prompt, new_tokens, context_size):
    """One prompt, a list, continued as plainly as it can be said."""
    prompt = list(prompt)
    for _ in range(new_tokens):
        logits = model(torch.tensor([prompt[-context_size:]]))[0, -1]
        prompt.append(max(range(len(logits)), key=lambda token: logits[token]))
    return prompt


@some
@given(models(), st.integers(0, 4 * CONTEXT), st.integers(1, CONTEXT), st.booleans())
def test_generation_equals_the_plain_one(case, new_tokens, context_size, cached):
    """With a cache and without, within the context and far past it.

    Known mistakes: gibberish after many tokens only; the first tokens kept instead of
    the last; a table asked beyond its end.
    """
    model, idx = case
    cache = cache_for(model) if cached else None
    found = generate_text_simple(model, idx, new_tokens, context_size, cache=cache)
    with torch.no_grad():
        expected = [slow(model, row, new_tokens, context_size) for row in idx.tolist()]
    assert found.tolist() == expected


@some
@given(configs(), seeds, st.integers(1, 2 * CONTEXT), st.booleans(), st.data())
def test_ragged_prompts_equal_each_prompt_alone(cfg, seed, new_tokens, cached, data):
    """Also past the context, where the padding of the short ones leaves first."""
    model = make(cfg, seed)
    prompts, idx, real = data.draw(ragged(cfg.vocab_size, "left"))
    cache = cache_for(model) if cached else None
    found = generate_text_simple(model, idx, new_tokens, CONTEXT, real, cache)
    for b, prompt in enumerate(prompts):
        alone = generate_text_simple(model, torch.tensor([prompt]), new_tokens, CONTEXT)
        assert found[b, idx.shape[1] - len(prompt) :].tolist() == alone[0].tolist()


def test_second_generation_equals_a_fresh_one():
    """Known mistakes: cache leaking between calls; position not reset."""
    model, cache = make(), KVCache(num_layers=2)
    generate_text_simple(model, ids(2, 5, seed=1), 4 * CONTEXT, CONTEXT, cache=cache)
    cache.reset()
    again = generate_text_simple(model, ids(3, 4, seed=2), 15, CONTEXT, cache=cache)
    fresh = generate_text_simple(
        make(), ids(3, 4, seed=2), 15, CONTEXT, cache=KVCache(num_layers=2)
    )
    assert torch.equal(again, fresh)


def test_each_cached_step_reads_one_token_until_the_context_is_full():
    """Known mistake: a demonstration "with cache" that does not use the cache."""
    model, read = make(), []
    model.tok_emb.register_forward_hook(lambda _, args, out: read.append(out.shape[1]))
    generate_text_simple(model, ids(1, 6), 7, CONTEXT, cache=cache_for(model))
    assert read == [6, 1, 1, 1, 1, 10, 10]
    read.clear()
    generate_text_simple(model, ids(1, 6), 7, CONTEXT)
    assert read == [6, 7, 8, 9, 10, 10, 10]


def test_equal_logits_go_to_the_lower_id():
    model = make()
    nn.init.zeros_(model.out_head.weight)
    assert generate_text_simple(model, ids(1, 3), 2, CONTEXT)[0, 3:].tolist() == [0, 0]


def test_generation_needs_no_gradients_and_leaves_its_arguments():
    model = make()
    idx, real = pad([[1, 2, 3], [4]], "left")
    before = idx.clone(), real.clone()
    out = generate_text_simple(model, idx, 3, CONTEXT, real)
    assert not out.requires_grad
    assert torch.equal(idx, before[0])
    assert torch.equal(real, before[1])
    assert torch.equal(generate_text_simple(model, idx, 0, CONTEXT), idx)


# --- the config -----------------------------------------------------------------------


def test_config_reads_like_a_dictionary():
    cfg = GPT_CONFIG_124M
    assert cfg["emb_dim"] == cfg.emb_dim == cfg.get("emb_dim") == 768
    assert list(cfg) == list(cfg.keys()) == [f.name for f in dataclasses.fields(cfg)]
    assert len(cfg) == 8
    changed = {**cfg, "context_length": 256}
    assert changed == {**dict(cfg.items()), "context_length": 256}
    assert "emb_dim" in cfg
    assert "__len__" not in cfg
    with pytest.raises(KeyError, match="head_dim"):
        cfg["head_dim"]
    assert cfg.get("head_dim") is None


def test_config_equals_what_has_the_same_entries():
    assert GPTConfig.of({**TINY}) == TINY == {**TINY}
    assert {**TINY, "n_layers": 3} != TINY
    assert GPTConfig.of(TINY) is TINY
    assert copy.deepcopy(TINY) == pickle.loads(pickle.dumps(TINY)) == TINY
    assert dataclasses.replace(TINY, n_layers=3) == {**TINY, "n_layers": 3}


def test_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.emb_dim = 16
    with pytest.raises(TypeError, match="item assignment"):
        TINY["emb_dim"] = 16


def test_models_of_a_config_and_of_a_dictionary_are_equal():
    torch.manual_seed(0)
    from_config = GPTModel(TINY)
    torch.manual_seed(0)
    from_dictionary = GPTModel(dict(TINY))
    assert from_config.cfg == from_dictionary.cfg
    assert isinstance(from_dictionary.cfg, GPTConfig)
    assert torch.equal(from_config(ids(1, 4)), from_dictionary(ids(1, 4)))


@pytest.mark.parametrize("make_config", [GPTModel, GPTConfig.of])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_head": 3}, r"unknown field 'n_head': did you mean 'n_heads'\?$"),
        ({"zebra": 3}, "unknown field 'zebra': leave it out; known are vocab_size, "),
        ({"emb_dim": 13}, "emb_dim=13 cannot be shared by n_heads=3 evenly"),
        ({"drop_rate": -0.1}, "drop_rate is -0.1: it is the share"),
        ({"drop_rate": 1.0}, "at least 0 and less than 1"),
        ({"drop_rate": math.nan}, "drop_rate is nan"),
        ({"drop_rate": "0.1"}, "drop_rate is '0.1': give a number"),
        ({"drop_rate": True}, "drop_rate is True: give a number"),
        ({"n_layers": 0}, "n_layers is 0: give a whole number from 1 up"),
        ({"vocab_size": 50257.0}, "vocab_size is 50257.0"),
        ({"context_length": -1}, "context_length is -1"),
        ({"n_heads": True}, "n_heads is True"),
        ({"emb_dim": None}, "emb_dim is None"),
        ({"qkv_bias": 1}, "qkv_bias is 1: give True or False"),
        ({"tie_weights": "yes"}, "tie_weights is 'yes': give True or False"),
    ],
)
def test_impossible_config_is_refused(make_config, changes, message):
    with pytest.raises(ValueError, match=message):
        make_config({**TINY, **changes})


def test_missing_fields_are_named():
    """No silent defaults: what is not said is an error. Only tying has one."""
    given_fields = {"vocab_size": 23, "emb_dim": 12, "qkv_bias": False, "n_layers": 2}
    lacking = "lacks 'context_length' and 'n_heads' and 'drop_rate': give every field"
    with pytest.raises(ValueError, match=lacking):
        GPTModel(given_fields)
    with pytest.raises(TypeError, match="'context_length', 'n_heads', and 'drop_rate'"):
        GPTConfig(**given_fields)
    without = {name: TINY[name] for name in TINY if name != "tie_weights"}
    assert GPTConfig.of(without).tie_weights is False


def test_config_made_directly_is_checked_too():
    with pytest.raises(ValueError, match="drop_rate is 2"):
        GPTConfig(**{**TINY, "drop_rate": 2})
    with pytest.raises(ValueError, match="n_layers is 0"):
        dataclasses.replace(TINY, n_layers=0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'n_head'"):
        GPTConfig(**{**TINY, "n_head": 3})


@pytest.mark.parametrize("cfg", [None, "124M", [1, 2], 768])
def test_what_is_no_config_is_refused(cfg):
    with pytest.raises(TypeError, match="give a GPTConfig, or a dictionary"):
        GPTModel(cfg)


# --- bad input: one clear sentence ----------------------------------------------------


@pytest.mark.parametrize(
    ("idx", "message"),
    [
        (ids(5), r"shape \(5,\): give \(batch, tokens\).*unsqueeze"),
        (ids(1, 2, 3), r"shape \(1, 2, 3\): give \(batch, tokens\)\.$"),
        (ids(1, 0), "no token at all"),
        (ids(0, 3), "no token at all"),
        (torch.tensor([[1, 23]]), "token id 23, but this model knows the ids 0 to 22"),
        (torch.tensor([[-1, 2]]), "token id -1, but this model knows"),
        (ids(1, CONTEXT + 1), "has 11 tokens, but the model reads at most context_"),
    ],
)
def test_wrong_ids_are_refused(idx, message):
    cache = cache_for(make())
    with pytest.raises(ValueError, match=message):
        make()(idx, cache=cache)
    assert cache.length == 0


@torch.no_grad()
def test_cached_and_new_tokens_together_must_fit_the_context():
    """Known mistake: a bound checked on the chunk instead of on offset plus chunk."""
    model, cache = make(), KVCache(num_layers=2)
    model(ids(1, CONTEXT), cache=cache)
    with pytest.raises(ValueError, match=r"11 tokens \(10 of them in the cache\)"):
        model(ids(1, 1), cache=cache)
    assert cache.length == CONTEXT


@torch.no_grad()
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 3, dtype=torch.bool), r"must be \(2, 5\).* 2 cached and 3 new"),
        (torch.ones(1, 5, dtype=torch.bool), r"must be \(2, 5\)"),
        (torch.ones(2, 5), "give bool, or integers"),
        (ids(2, 5, seed=5), "does not hold token ids"),
    ],
)
def test_wrong_mask_is_refused_and_the_cache_stays(mask, message):
    """Known mistake: targets, which are token ids, passed as attention mask."""
    model, cache = make(), KVCache(num_layers=2)
    model(ids(2, 2), cache=cache)
    with pytest.raises(ValueError, match=message):
        model(ids(2, 3), mask, cache)
    assert cache.length == 2


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        (KVCache(3), "made for 3 layers, but this model has 2: make it with num_layer"),
        (KVCache(1), "made for 1 layers, but this model has 2"),
        (KVCache(2).layer(0), r"LayerCache, which lacks layer\(index\)"),
    ],
)
def test_wrong_cache_is_refused(cache, message):
    with pytest.raises(ValueError, match=message):
        make()(ids(1, 3), cache=cache)


def test_cache_is_for_generating_only():
    with pytest.raises(ValueError, match=r"torch\.no_grad\(\)"):
        make()(ids(1, 3), cache=KVCache(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"idx": ids(1, 0)}, r"shape \(1, 0\).* can start from <\|endoftext\|>"),
        ({"idx": ids(4)}, r"shape \(4,\): give \(batch, tokens\)"),
        ({"idx": torch.tensor([[99]])}, "token id 99"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1: give a whole number from 0"),
        ({"max_new_tokens": 2.0}, "max_new_tokens is 2.0"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"context_size": 0}, "context_size is 0"),
        ({"context_size": 20}, "reads at most context_length=10"),
        ({"attention_mask": torch.tensor([[1, 1, 0]])}, "ends with padding.* left"),
        ({"attention_mask": torch.tensor([[1, 1]])}, r"must be \(1, 3\)"),
    ],
)
def test_generation_refuses_what_it_cannot_continue(arguments, message):
    call = {"idx": ids(1, 3), "max_new_tokens": 12, "context_size": CONTEXT}
    with pytest.raises(ValueError, match=message):
        generate_text_simple(make(), **{**call, **arguments})


def test_generation_refuses_dropout():
    model = make(drop_rate=0.1).train()
    with pytest.raises(ValueError, match=r"matter of chance: call model\.eval\(\)"):
        generate_text_simple(model, ids(1, 3), 2, CONTEXT)
    model = make().train()  # a rate of 0 harms nothing
    assert generate_text_simple(model, ids(1, 3), 2, CONTEXT).shape == (1, 5)


def test_generation_refuses_a_used_cache():
    model, cache = make(), KVCache(2)
    generate_text_simple(model, ids(1, 3), 2, CONTEXT, cache=cache)
    with pytest.raises(ValueError, match=r"holds 4 tokens already: call cache\.reset"):
        generate_text_simple(model, ids(1, 3), 2, CONTEXT, cache=cache)


# --- the script -----------------------------------------------------------------------


@pytest.fixture
def small_script(monkeypatch):
    """The script with a model that is GPT-2 in its vocabulary only."""
    small = {**TINY, "vocab_size": 50257, "context_length": 12}
    monkeypatch.setitem(gpt._CONFIGS, "124M", GPTConfig.of(small))
    return gpt.main


def test_script_continues_the_prompt_and_says_how_fast(small_script, capsys, tmp_path):
    out = tmp_path / "text.txt"
    arguments = ["--prompt", "Every lamp", "--max-new-tokens", "6", "--out", str(out)]
    assert small_script(arguments) == 0
    printed, bar = capsys.readouterr()
    text = out.read_text(encoding="utf-8")
    assert printed.startswith("124M: drawing random weights, seed 123.")
    assert "1,210,032 parameters. The prompt has 2 tokens." in printed
    assert text.startswith("Every lamp")
    assert text in printed
    assert "6 tokens in " in printed
    assert " tokens per second, without a cache (try --cache)." in printed
    assert bar == ""  # no terminal, no progress bar
    new = len(tiktoken.get_encoding("gpt2").encode(text)) - 2
    assert new > 0


def test_script_gives_the_same_text_for_a_seed_with_or_without_cache(
    small_script, tmp_path
):
    texts = {}
    for name, more in {"a": [], "b": ["--cache"], "c": ["--seed", "5"]}.items():
        out = tmp_path / name
        assert small_script(["--max-new-tokens", "15", "--out", str(out), *more]) == 0
        texts[name] = out.read_text(encoding="utf-8")
    assert texts["a"] == texts["b"]
    assert texts["a"] != texts["c"]


def test_script_shows_a_step_of_its_bar_for_each_token(small_script, monkeypatch):
    steps = []

    class Bar:
        def __init__(self, total, **_):
            steps.append(total)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            steps.append("closed")

        def update(self):
            steps.append(1)

    monkeypatch.setattr(gpt, "tqdm", Bar)
    assert small_script(["--max-new-tokens", "3"]) == 0
    assert steps == [3, 1, 1, 1, "closed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "--prompt is empty: give at least one character"),
        (["--max-new-tokens", "0"], "--max-new-tokens: must be 1 or more"),
        (["--config", "125M"], "invalid choice: '125M'"),
    ],
)
def test_script_refuses_bad_options(small_script, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        small_script(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_script_refuses_a_prompt_longer_than_the_context(small_script, capsys):
    assert small_script(["--prompt", "a " * 30]) == 1
    error = capsys.readouterr().err
    assert "tokens, but the model reads at most 12. Give a shorter one." in error


def test_script_says_what_to_do_without_a_vocabulary(small_script, capsys, monkeypatch):
    def fail(name):
        raise ConnectionError(f"no route to {name}")

    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    assert small_script([]) == 1
    error = capsys.readouterr().err
    assert "vocabulary cannot be loaded (no route to gpt2): run the set-up" in error


def test_script_prints_any_text_on_any_terminal(small_script, monkeypatch):
    """Noise from 50,257 tokens holds characters that some terminals do not know."""
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert small_script(["--prompt", "caf\u00e9", "--max-new-tokens", "2"]) == 0
    terminal.flush()
    assert rb"caf\xe9" in terminal.buffer.getvalue()


def test_a_copy_of_the_script_runs_at_the_size_of_gpt2(tmp_path):
    """The only full-sized model of these tests: 124M, for two tokens."""
    assert copy_module("gpt", tmp_path) == 0
    done = subprocess.run(
        [sys.executable, "gpt.py", "--max-new-tokens", "2", "--cache"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "163,009,536 parameters" in done.stdout
    assert "Hello, I am" in done.stdout
    assert "2 tokens in" in done.stdout
