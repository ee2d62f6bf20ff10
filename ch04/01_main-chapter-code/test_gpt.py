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
import re
import subprocess
import sys

import pytest
import tiktoken
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import gpt
from course import assets
from course.copying import copy as copy_module
from course.testing.model_contract import (
    BOUNDS,
    CONTEXT,
    ModelContract,
    close,
    pad,
    ragged,
    random_ids,
    seeds,
    some,
)
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


def make(cfg=TINY, seed=0, dtype=torch.float64, **changes):
    torch.manual_seed(seed)
    return GPTModel({**cfg, **changes}).to(dtype).eval()


def ids(*shape, seed=0, vocab_size=TINY.vocab_size):
    return random_ids(*shape, vocab_size=vocab_size, seed=seed)


class TestGPT(ModelContract):
    """As every model of the course."""

    tiny = TINY
    configs = staticmethod(configs)
    make_model = GPTModel
    make_cache = staticmethod(lambda cfg: KVCache(cfg.n_layers, cfg.context_length))
    generate = staticmethod(generate_text_simple)

    def by_way_of_meta(self, model):
        """What is not saved must be computed again: masks are undefined."""
        empty = super().by_way_of_meta(model)
        for block in empty.trf_blocks:
            hidden = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool)
            block.att.mask = hidden.triu(diagonal=1)
        return empty


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


# --- tied weights ---------------------------------------------------------------------


def test_tied_weights_learn_from_both_ends():
    tied, untied = make(tie_weights=True), make()
    untied.load_state_dict(
        {**tied.state_dict(), "out_head.weight": tied.tok_emb.weight}
    )
    for model in (tied, untied):
        model(ids(2, 5)).square().mean().backward()
    both = untied.tok_emb.weight.grad + untied.out_head.weight.grad
    assert close(tied.tok_emb.weight.grad, both)


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


def test_order_counts():
    """Known mistake: a table of positions that is never added, or always at one row."""
    model = make()
    out = model(torch.tensor([[5, 5, 5, 5]]))[0]
    for first, second in itertools.combinations(out, 2):
        assert (first - second).abs().max() > 1e-3


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


def test_config_equals_what_has_the_same_entries():
    assert GPTConfig.of({**TINY}) == TINY == {**TINY}
    assert {**TINY, "n_layers": 3} != TINY
    assert GPTConfig.of(TINY) is TINY
    assert copy.deepcopy(TINY) == pickle.loads(pickle.dumps(TINY)) == TINY
    assert dataclasses.replace(TINY, n_layers=3) == {**TINY, "n_layers": 3}


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
    assert small_script(["--prompt", "a " * 30]) == 2
    error = capsys.readouterr().err
    assert "tokens, but the model reads at most 12. Give a shorter one." in error


def test_script_says_what_to_do_without_a_vocabulary(small_script, capsys, monkeypatch):
    def fail(name):
        raise ConnectionError(f"no route to {name}")

    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    assert small_script([]) == 2
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


def test_a_context_holds_about_900_words_of_the_story():
    """Chapter 1 draws GPT-2's reach at 900 of its words, punctuation included."""
    story = assets.fetch("short-story").read_text(encoding="utf-8")
    words = re.findall(r"[a-z]+(?:['-][a-z]+)*|[.,;:?!]", story.lower())
    tokens = tiktoken.get_encoding("gpt2").encode(story)
    reach = GPT_CONFIG_124M.context_length * len(words) / len(tokens)
    assert abs(reach - 900) < 10
