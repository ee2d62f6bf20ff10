"""Olmo 3 proved: against transformers' Olmo 3 and Olmo 2, against itself.

Bounds: float32 within 1e-5, float64 within 1e-10. The models are tiny: windows shorter
than the text beside blocks that see everything, groups, a stretched rotation. Their
norms get factors that differ, so a norm in a wrong place shows.
"""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import olmo3
from course.testing.model_contract import (
    BOUNDS,
    CONTEXT,
    ModelContract,
    chunkings,
    close,
    ragged,
    random_ids,
    seeds,
    sides,
    some,
)
from gpt import count_parameters, generate_text_simple
from kv_cache import KVCache, read_in_chunks
from llama import RMSNorm, apply_rope, rope_cos_sin, rope_frequencies
from olmo3 import (
    OLMO3_7B,
    OLMO3_32B,
    Olmo3Attention,
    Olmo3Config,
    Olmo3Model,
    YarnScaling,
    olmo3_key_map,
    olmo3_windows,
    yarn_frequencies,
)
from olmo3_files import olmo3_settings
from small_models import TINY_LLAMA, with_exact_norms

TINY = Olmo3Config.of(
    {
        **TINY_LLAMA,
        "vocab_size": 23,
        "n_heads": 6,
        "n_kv_groups": 2,
        "hidden_dim": 20,
        "n_layers": 3,
        "tie_weights": False,
        "rope_scaling": YarnScaling(
            factor=4.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_context_length=16,
            attention_factor=1.2,
        ),
        "window": 3,
        "full_every": 2,
    }
)
OLMO2 = {"rope_scaling": None, "window": None, "full_every": None}


@st.composite
def scalings(draw):
    """Factors are powers of two: dividing by others, theirs rounds in another place."""
    low = draw(st.sampled_from([0.5, 1.0]))
    return YarnScaling(
        factor=draw(st.sampled_from([1.0, 2.0, 8.0])),
        low_freq_factor=low,
        high_freq_factor=low * draw(st.sampled_from([2.0, 32.0])),
        original_context_length=draw(st.sampled_from([16, 64, 8192])),
        attention_factor=draw(st.floats(0.5, 2)),
    )


@st.composite
def configs(draw, mixed=False):
    """Odd sizes; all mixtures of windows, or only such with both kinds of blocks."""
    G, R = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    window, full_every = draw(st.integers(1, 12)), draw(st.sampled_from([None, 1, 2]))
    scaling = draw(st.none() | scalings())
    if mixed:
        window, full_every = draw(st.integers(1, 6)), 2
    elif draw(st.booleans()):
        window, full_every, scaling = OLMO2.values()
    return Olmo3Config(
        vocab_size=draw(st.integers(2, 40)),
        context_length=CONTEXT,
        emb_dim=G * R * draw(st.integers(4, 6)),
        n_heads=G * R,
        n_kv_groups=G,
        head_dim=2 * draw(st.integers(1, 5)),
        n_layers=draw(st.integers(2, 4)),
        hidden_dim=draw(st.integers(1, 30)),
        rope_base=draw(st.sampled_from([100.0, 10_000.0, 500_000.0])),
        rope_scaling=scaling,
        norm_eps=draw(st.sampled_from([1e-5, 1e-6])),
        tie_weights=draw(st.booleans()),
        window=window,
        full_every=full_every,
    )


# --- parity with transformers ---------------------------------------------------------


def olmo3_model(cfg):
    """Theirs, with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        **olmo3_settings(cfg), pad_token_id=None, eos_token_id=None
    )
    return AutoModelForCausalLM.from_config(config)


# Normal numbers of this spread as weights, as in the tests of the Llama.
SPREADS = {torch.float32: 0.1, torch.float64: 0.5}


def weights_of(theirs, cfg):
    names = olmo3_key_map(cfg)
    found = {names[n]: t for n, t in theirs.state_dict().items() if n in names}
    assert sorted(found) == sorted(names.values())
    return found


@torch.no_grad()
def twins(cfg, seed, dtype):
    """Our model and theirs with the same weights, drawn in theirs."""
    torch.manual_seed(seed)
    theirs, ours = olmo3_model(cfg).to(dtype).eval(), Olmo3Model(cfg).to(dtype).eval()
    if dtype == torch.float64:
        with_exact_norms(theirs)
    for name, parameter in theirs.named_parameters():
        nn.init.normal_(parameter, std=SPREADS[dtype])
        parameter += "norm" in name  # these lie around 1
    ours.load_state_dict(weights_of(theirs, cfg))
    return ours, theirs


def agree(ours, theirs, model, *given):
    """Within the bound; or as near as theirs comes to float64.

    A layer that puts out nearly nothing but rounding gets it magnified by its norm:
    one drawn model of some hundreds does, in float32.
    """
    if ours.dtype == torch.float64:
        return close(ours, theirs)
    exact = copy.deepcopy(model).double()(*given)
    rounding = (theirs - (exact[given[1]] if len(given) > 1 else exact)).abs().max()
    return close(ours, theirs, bound=max(1e-5, 4 * rounding.item()))


kinds = pytest.mark.parametrize("mixed", [True, False], ids=["mixed", "any"])
dtypes = pytest.mark.parametrize("dtype", list(BOUNDS))


@kinds
@dtypes
@some
@given(data=st.data(), seed=seeds)
def test_logits_equal_those_of_transformers(dtype, mixed, data, seed):
    cfg = data.draw(configs(mixed))
    ours, theirs = twins(cfg, seed, dtype)
    idx = torch.randint(cfg.vocab_size, (2, CONTEXT))
    with torch.no_grad():
        assert agree(ours(idx), theirs(idx).logits, ours, idx)


@sides
@dtypes
@some
@given(data=st.data(), seed=seeds)
def test_padded_batches_equal_those_of_transformers(dtype, side, data, seed):
    cfg = data.draw(configs(mixed=True))
    ours, theirs = twins(cfg, seed, dtype)
    _, idx, real = data.draw(ragged(cfg.vocab_size, side))
    positions = (real.long().cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = theirs(idx, attention_mask=real.long(), position_ids=positions)
        assert agree(ours(idx, real)[real], expected.logits[real], ours, idx, real)


@sides
@dtypes
@torch.no_grad()
def test_chunks_and_twenty_steps_equal_transformers(dtype, side):
    """A padded batch is read in two chunks, then twenty tokens more, one at a time;
    theirs reads each text anew, alone. (In a batch, theirs counts the padding between
    prompt and answer as part of a window.)
    """
    cfg = Olmo3Config.of({**TINY, "context_length": 64})
    ours, theirs = twins(cfg, 3, dtype)
    idx = random_ids(3, 9, vocab_size=23, seed=1)
    real = torch.ones(3, 9, dtype=torch.bool)
    for b, length in enumerate([9, 4, 7]):
        real[b, slice(length, None) if side == "right" else slice(9 - length)] = False
    cache = KVCache(cfg.n_layers)
    ours(idx[:, :5], real[:, :5], cache)
    step = ours(idx[:, 5:], real, cache)
    assert cache.layer(0).keys.shape == (3, 2, 9, 4)  # groups, not heads
    for _ in range(20):
        T = step.shape[1]
        for b in range(3):
            alone = theirs(idx[b, real[b]][None]).logits[0]
            found = step[b, real[b, -T:]]
            assert close(found, alone[len(alone) - len(found) :])
        new = random_ids(3, 1, vocab_size=23, seed=idx.shape[1])
        idx = torch.cat((idx, new), dim=1)
        real = torch.cat((real, torch.ones(3, 1, dtype=torch.bool)), dim=1)
        step = ours(new, real, cache)
    assert idx.shape == (3, 29)


@some
@given(data=st.data(), seed=seeds)
def test_gradients_equal_those_of_transformers(data, seed):
    cfg = data.draw(configs(mixed=True))
    ours, theirs = twins(cfg, seed, torch.float64)
    idx = torch.randint(cfg.vocab_size, (2, CONTEXT))
    for logits in (ours(idx), theirs(idx).logits):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), idx[:, 1:].flatten()).backward()
    for parameter in theirs.parameters():
        parameter.data = parameter.grad
    expected = weights_of(theirs, cfg)
    for name, parameter in ours.named_parameters():
        assert close(parameter.grad, expected[name]), name


# --- the rotation ---------------------------------------------------------------------


def their_rotation(cfg):
    """{kind of block: (frequencies, factor)} of the library."""
    from transformers.models.olmo3.modeling_olmo3 import Olmo3RotaryEmbedding

    with torch.device("meta"):
        config = olmo3_model({**cfg, "n_layers": 4, "full_every": 4}).config
    found = Olmo3RotaryEmbedding(config)
    return {
        kind: (
            getattr(found, f"{kind}_attention_inv_freq"),
            getattr(found, f"{kind}_attention_attention_scaling"),
        )
        for kind in ("full", "sliding")
    }


@some
@given(scaling=scalings(), head_dim=st.sampled_from([2, 6, 64, 128]))
def test_frequencies_are_theirs_to_the_last_bit(scaling, head_dim):
    cfg = {**OLMO3_7B, "rope_scaling": scaling, "head_dim": head_dim}
    theirs = their_rotation(cfg)
    ours = yarn_frequencies(head_dim, cfg["rope_base"], scaling)
    assert torch.equal(ours, theirs["full"][0])
    assert theirs["full"][1] == scaling["attention_factor"]
    plain = rope_frequencies(head_dim, cfg["rope_base"], None)
    assert torch.equal(plain, theirs["sliding"][0])
    assert theirs["sliding"][1] == 1.0


def test_frequencies_of_the_published_models():
    """Known mistake: positions divided by the factor, and so fast pairs slowed, too."""
    for cfg in (OLMO3_7B, OLMO3_32B):
        scaling = cfg.rope_scaling
        plain = rope_frequencies(128, 500_000.0, None)
        ratio = plain / yarn_frequencies(128, 500_000.0, scaling)
        turns = 8192 * plain / (2 * math.pi)  # within the original context
        assert torch.equal(ratio[turns > 32.01], torch.ones(19))  # 18 is the first
        assert (ratio[turns < 0.99] == 8).all()
        assert (ratio.diff() >= 0).all()
        assert ratio[18] == 1 < ratio[19] < ratio[34] < 8 == ratio[35]
        their_factor = 1.2079441541679836  # in the published config.json
        assert math.isclose(scaling.attention_factor, their_factor, rel_tol=1e-15)


def test_no_context_is_stretched_by_a_factor_of_one():
    scaling = {**OLMO3_7B.rope_scaling, "factor": 1.0}
    plain = rope_frequencies(128, 500_000.0, None)
    found = yarn_frequencies(128, 500_000.0, scaling)
    assert torch.allclose(found, plain, rtol=1e-6, atol=0)
    assert yarn_frequencies(128, 500_000.0, scaling, torch.device("meta")).is_meta


@torch.no_grad()
def test_blocks_with_a_window_are_not_stretched():
    """Known mistakes: one rotation for all blocks; the factor of the scores in all."""
    idx = random_ids(2, CONTEXT, vocab_size=23)
    for full_every, equal in ((None, True), (2, False), (1, False)):
        cfg = {**TINY, "full_every": full_every}
        torch.manual_seed(0)
        stretched = Olmo3Model(cfg).double()
        plain = Olmo3Model({**cfg, "rope_scaling": None}).double()
        plain.load_state_dict(stretched.state_dict())
        assert torch.equal(plain(idx), stretched(idx)) == equal


# --- the parts ------------------------------------------------------------------------


@torch.no_grad()
def test_norms_span_the_projection_and_come_before_the_rotation():
    """Known mistakes: head by head (as in Qwen3), after the rotation, without scales,
    with the query's factors on the keys, over values as well.
    """
    torch.manual_seed(0)
    layer = Olmo3Attention(TINY, 3).double()
    for norm in (layer.query_norm, layer.key_norm):
        nn.init.normal_(norm.scale)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    cos, sin = rope_cos_sin(torch.arange(5), rope_frequencies(4, 100.0, None))
    found = layer.project(x, lambda heads: apply_rope(heads, cos, sin))
    for b, t, h in [(0, 0, 0), (1, 4, 5), (1, 2, 3)]:
        query = x[b, t] @ layer.W_query.weight.T  # (H K,)
        length = (query.square().mean() + TINY.norm_eps).sqrt()
        query = (query / length * layer.query_norm.scale)[4 * h : 4 * h + 4]
        turn = torch.complex(cos[t, :2], sin[t, :2])
        turned = torch.complex(query[:2], query[2:]) * turn
        expected = torch.cat((turned.real, turned.imag))
        assert close(found[0][b, h, t], expected, bound=1e-7)
    keys = layer.W_key(x)
    keys = keys / (keys.square().mean(-1, keepdim=True) + TINY.norm_eps).sqrt()
    keys = apply_rope(layer.split_heads(keys * layer.key_norm.scale), cos, sin)
    assert close(found[1], keys)
    assert torch.equal(found[2], layer.split_heads(layer.W_value(x)))


@torch.no_grad()
def test_a_block_adds_no_more_than_its_norms_let_through():
    """Whatever stands in the weights; and what is read is not normalised."""
    torch.manual_seed(0)
    block = Olmo3Model(TINY).trf_blocks[0]
    x = torch.randn(2, 5, 12)
    for parameter in (*block.att.parameters(), *block.ff.parameters()):
        parameter *= 30
    added = block(x) - x
    assert added.square().mean(dim=-1).sqrt().max() < 2.001  # two norms
    seen = []
    block.att.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    block(7 * x)
    assert torch.equal(seen[0], 7 * x)


@some
@given(data=st.data(), seed=seeds)
def test_a_rolling_cache_keeps_no_more_than_the_windows(data, seed):
    """Known mistakes: a cache cut before a chunk is read; a window off by one."""
    cfg = data.draw(configs(mixed=True))
    torch.manual_seed(seed)
    model = Olmo3Model(cfg).double().eval()
    idx = torch.randint(cfg.vocab_size, (2, CONTEXT))
    windows = olmo3_windows(cfg)
    cache = KVCache(cfg.n_layers, window=windows, masked=True)
    with torch.no_grad():
        parts = [
            model(idx[:, start:end], cache=cache)
            for start, end in itertools.pairwise([0, *data.draw(chunkings(CONTEXT))])
        ]
        assert close(torch.cat(parts, dim=1), model(idx))
    held = [cache.layer(i).keys.shape[2] for i in range(cfg.n_layers)]
    assert held == [min(window or CONTEXT, CONTEXT) for window in windows]


@torch.no_grad()
def test_long_texts_stay_right():
    """Known mistake: right up to some windows, nonsense after that."""
    torch.manual_seed(0)
    model = Olmo3Model({**TINY, "context_length": 200}).double().eval()
    idx = random_ids(1, 150, vocab_size=23)
    cache = KVCache(3, window=olmo3_windows(TINY), masked=True)
    last = read_in_chunks(model, idx, cache, chunk_size=41)
    assert close(last, model(idx)[:, -1])


@torch.no_grad()
def test_a_window_as_long_as_the_text_is_none():
    idx = random_ids(2, CONTEXT, vocab_size=23)
    plain = {**TINY, "rope_scaling": None}
    torch.manual_seed(0)
    model = Olmo3Model({**plain, "window": CONTEXT}).double()
    full = Olmo3Model({**plain, "window": None}).double()
    full.load_state_dict(model.state_dict())
    assert torch.equal(full(idx), model(idx))


def test_it_is_a_llama_but_for_its_parts():
    """No biases, no buffers; one norm behind each layer, two within attention."""
    model = Olmo3Model(TINY)
    assert not [name for name, _ in model.named_parameters() if "bias" in name]
    assert not list(model.buffers())
    assert len([m for m in model.modules() if isinstance(m, RMSNorm)]) == 4 * 3 + 1
    assert [block.att.window for block in model.trf_blocks] == [3, CONTEXT, 3]


def test_three_blocks_of_four_have_a_window():
    """As in the published `layer_types`; the last block sees everything."""
    for cfg in (OLMO3_7B, OLMO3_32B):
        windows = olmo3_windows(cfg)
        full = [i for i, window in enumerate(windows) if window is None]
        assert full == list(range(3, cfg.n_layers, 4))
        assert windows[-1] is None
        assert {window for window in windows if window} == {4096}
    assert set(olmo3_windows(olmo3.OLMO2_7B)) == {None}


# --- what must hold whatever the weights ----------------------------------------------


class TestOlmo3(ModelContract):
    """As every model of the course."""

    tiny = TINY
    configs = staticmethod(configs)
    make_model = Olmo3Model
    make_cache = staticmethod(lambda cfg: KVCache(cfg["n_layers"]))
    generate = staticmethod(generate_text_simple)


# --- sizes ----------------------------------------------------------------------------

# Of the files on the model hub, "total_parameters" of their index.
PUBLISHED = {
    "OLMO3_7B": 7_298_011_136,
    "OLMO3_32B": 32_233_522_176,
    "OLMO2_1B": 1_484_916_736,
    "OLMO2_7B": 7_298_617_344,
    "OLMO2_13B": 13_716_198_400,
    "OLMO2_32B": 32_234_279_936,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    cfg = getattr(olmo3, name)
    few = Olmo3Config.of({**cfg, "n_layers": 1}), Olmo3Config.of({**cfg, "n_layers": 2})
    with torch.device("meta"):
        one, two = (count_parameters(Olmo3Model(small)) for small in few)
        theirs = olmo3_model(few[0])
    assert one + (cfg.n_layers - 1) * (two - one) == PUBLISHED[name]
    assert count_parameters(theirs) == one


@pytest.mark.parametrize("tied", [False, True])
def test_key_map_names_every_weight_once(tied):
    cfg = Olmo3Config.of({**TINY, "tie_weights": tied})
    names = olmo3_key_map(cfg)
    assert sorted(names.values()) == sorted(Olmo3Model(cfg).state_dict())
    assert ("lm_head.weight" in names) is not tied
    block = "model.layers.1.post_attention_layernorm.weight"
    assert names[block] == "trf_blocks.1.norm1.scale"  # in a Llama it is norm2


# --- the config -----------------------------------------------------------------------

YARN = dict(TINY.rope_scaling)


@pytest.mark.parametrize("make_config", [Olmo3Model, Olmo3Config.of])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_kv_groups": 4}, "n_heads=6 cannot share n_kv_groups=4"),
        ({"head_dim": 5}, "head_dim=5 is odd"),
        ({"windows": 4}, r"unknown field 'windows': did you mean 'window'\?$"),
        ({"window": 0}, "window is 0: give a whole"),
        ({"full_every": 0}, "full_every is 0|every is 0"),
        ({"rope_scaling": {**YARN, "attention_factor": 0}}, "attention_factor is 0"),
        ({"rope_scaling": {**YARN, "low_freq_factor": 9}}, "low_freq_factor=9 must"),
        ({"rope_scaling": {**YARN, "beta_fast": 32}}, "unknown field 'beta_fast'"),
        ({"rope_scaling": 8}, "The config is int: give a YarnScaling"),
    ],
)
def test_wrong_configs_are_refused(make_config, changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make_config({**TINY, **changes})


def test_no_field_has_a_default():
    """Above all none for windows and scaling: short texts would look right."""
    for name in TINY:
        fields = {key: value for key, value in TINY.items() if key != name}
        with pytest.raises(ValueError, match=f"lacks '{name}': give every field"):
            Olmo3Model(fields)
    for name in YARN:
        scaling = {key: value for key, value in YARN.items() if key != name}
        with pytest.raises(ValueError, match=f"lacks '{name}': give every field"):
            Olmo3Model({**TINY, "rope_scaling": scaling})
