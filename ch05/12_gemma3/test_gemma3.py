"""Gemma 3 proved: against transformers, against itself, with caches that roll.

Bounds: float32 within 1e-5, float64 within 1e-10. The models are tiny, and every one of
them has a local and a global layer and a window shorter than the text; head widths are
not D / H, the scale of the queries is not K, and the norms get factors that differ.
"""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import gemma3
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
from gemma3 import (
    GEMMA3_1B,
    GEMMA3_270M,
    Gemma3Attention,
    Gemma3Block,
    Gemma3Config,
    Gemma3Model,
    Gemma3Norm,
    gemma3_cache,
    gemma3_key_map,
    gemma3_windows,
)
from gemma3_files import gemma3_settings
from gpt import count_parameters, generate_text_simple
from gqa import GroupedQueryAttention
from kv_cache import KVCache, read_in_chunks
from llama import LlamaModel
from small_models import TINY_LLAMA

TINY = Gemma3Config.of(
    {
        **TINY_LLAMA,
        "vocab_size": 23,
        "n_heads": 6,
        "n_kv_groups": 2,
        "hidden_dim": 20,
        "n_layers": 3,
        "rope_base": 100.0,
        "tie_weights": False,
        "window": 3,
        "full_every": 2,
        "rope_factor": 8.0,
        "local_rope_base": 50.0,
        "query_scale": 5,
    }
)


@st.composite
def configs(draw, both_kinds=False):
    """Odd sizes: one key/value head, a window of one token or of the whole context.

    `both_kinds`: at least one local and one global layer, a window that is shorter than
    the context, and no width of few numbers. A sum of few may be nearly 0, and the norm
    behind it makes any rounding of float32 large: 3e-5 was seen with F = 2.
    """
    G, R = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    L = draw(st.integers(2 if both_kinds else 1, 4))
    return Gemma3Config(
        vocab_size=draw(st.integers(3, 40)),
        context_length=CONTEXT,
        emb_dim=G * R * (16 // (G * R) + draw(st.integers(1, 3))),
        n_heads=G * R,
        n_kv_groups=G,
        head_dim=2 * draw(st.integers(3 if both_kinds else 1, 5)),
        n_layers=L,
        hidden_dim=draw(st.integers(16 if both_kinds else 1, 40)),
        rope_base=draw(st.sampled_from([100.0, 1_000_000.0])),
        rope_scaling=None,
        norm_eps=draw(st.sampled_from([1e-5, 1e-6])),
        tie_weights=draw(st.booleans()),
        window=draw(st.integers(1, CONTEXT - 3 if both_kinds else CONTEXT + 2)),
        full_every=draw(st.integers(2, L) if both_kinds else st.integers(1, L + 1)),
        rope_factor=draw(st.sampled_from([1.0, 8.0])),
        local_rope_base=draw(st.sampled_from([10.0, 10_000.0])),
        query_scale=draw(st.integers(3, 20)),
    )


mixed = configs(both_kinds=True)

# --- parity with transformers ---------------------------------------------------------

# Normal numbers of this spread as weights, as in the tests of the Llama.
SPREADS = {torch.float32: 0.1, torch.float64: 0.5}


def reference(cfg, dtype):
    """Theirs; in float64 its norms and the scale of its embedding stay in float64."""
    import transformers

    settings = gemma3_settings(cfg)
    theirs = transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(
            **settings, pad_token_id=None, bos_token_id=None, eos_token_id=None
        )
    )
    theirs = theirs.to(dtype).eval()
    if dtype == torch.float64:
        for module in theirs.modules():
            if type(module).__name__ == "Gemma3RMSNorm":
                module.forward = exact_norm(module)
        scale = torch.tensor(cfg.emb_dim, dtype=dtype).sqrt()
        theirs.model.embed_tokens.embed_scale = scale
    return theirs


def exact_norm(norm):
    shape = norm.weight.shape
    return lambda x: F.rms_norm(x, shape, 1 + norm.weight, norm.eps)


def weights_of(theirs, cfg):
    """Theirs under our names."""
    names = gemma3_key_map(cfg)
    found = {names[n]: t for n, t in theirs.state_dict().items() if n in names}
    assert sorted(found) == sorted(names.values())
    return found


@torch.no_grad()
def twins(cfg, seed, dtype):
    """Our model and theirs with the same weights, drawn in theirs."""
    torch.manual_seed(seed)
    theirs, ours = reference(cfg, dtype), Gemma3Model(cfg).to(dtype).eval()
    torch.manual_seed(seed)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=SPREADS[dtype])
    ours.load_state_dict(weights_of(theirs, cfg))
    return ours, theirs


@pytest.mark.parametrize("dtype", list(BOUNDS))
@some
@given(cfg=mixed, seed=seeds)
def test_logits_equal_those_of_transformers(dtype, cfg, seed):
    ours, theirs = twins(cfg, seed, dtype)
    idx = torch.randint(cfg.vocab_size, (2, CONTEXT))
    with torch.no_grad():
        assert close(ours(idx), theirs(idx).logits)


@sides
@pytest.mark.parametrize("dtype", list(BOUNDS))
@some
@given(data=st.data(), cfg=mixed, seed=seeds)
def test_padded_batches_equal_those_of_transformers(dtype, side, data, cfg, seed):
    ours, theirs = twins(cfg, seed, dtype)
    _, idx, real = data.draw(ragged(cfg.vocab_size, side))
    positions = (real.long().cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = theirs(idx, attention_mask=real.long(), position_ids=positions)
        assert close(ours(idx, real)[real], expected.logits[real])


@sides
@pytest.mark.parametrize("dtype", list(BOUNDS))
@torch.no_grad()
def test_chunks_and_twenty_steps_equal_transformers(dtype, side):
    """A padded batch is read in two chunks, then twenty tokens more, one at a time.

    Theirs reads each text alone and anew each time: it counts a window over columns, so
    padding between two tokens would take places in it.
    """
    cfg = Gemma3Config.of({**TINY, "context_length": 64})
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
        for b, row in enumerate(real):
            if row[-1]:
                alone = theirs(idx[b, row][None]).logits[0, -1]
                assert close(step[b, -1], alone)
        new = random_ids(3, 1, vocab_size=23, seed=idx.shape[1])
        idx = torch.cat((idx, new), dim=1)
        real = torch.cat((real, torch.ones(3, 1, dtype=torch.bool)), dim=1)
        step = ours(new, real, cache)
    assert idx.shape == (3, 29)


@some
@given(cfg=mixed, seed=seeds)
def test_gradients_equal_those_of_transformers(cfg, seed):
    ours, theirs = twins(cfg, seed, torch.float64)
    idx = torch.randint(cfg.vocab_size, (2, CONTEXT))
    for logits in (ours(idx), theirs(idx).logits):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), idx[:, 1:].flatten()).backward()
    names = gemma3_key_map(cfg)
    for name, parameter in theirs.named_parameters():
        found = ours.get_parameter(names[name]).grad
        assert close(found, parameter.grad), name


@torch.no_grad()
def test_bfloat16_is_rounded_where_theirs_is():
    """Known mistakes: 1 + w added in bfloat16, where 1.003 is 1; the root of D not
    rounded before it multiplies; the scaled embedding kept in float32.
    """
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

    torch.manual_seed(0)
    ours, theirs = Gemma3Norm(12, 1e-6), Gemma3RMSNorm(12, 1e-6)
    nn.init.normal_(theirs.weight, std=0.01)
    ours.scale.copy_(theirs.weight)
    x = torch.randn(50, 12).bfloat16()
    ours, theirs = ours.bfloat16(), theirs.bfloat16()
    assert torch.equal(ours(x), theirs(x))
    assert not torch.equal(ours(x), (1 + ours.scale) * F.rms_norm(x, (12,), eps=1e-6))

    ours, theirs = (model.bfloat16() for model in twins(TINY, 0, torch.float32))
    seen = []
    ours.trf_blocks[0].register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    idx = random_ids(2, 9, vocab_size=23)
    found = ours(idx)
    expected = theirs.model.embed_tokens(idx)
    assert torch.equal(seen[0], expected)
    exactly = ours.tok_emb(idx).float() * 12**0.5
    assert not torch.equal(exactly.bfloat16(), expected)
    assert (found - theirs(idx).logits).abs().mean() < 0.01


# --- what is special to it ------------------------------------------------------------


def test_which_layers_are_global():
    """Known mistake: the plan shifted by one, the first layer global."""
    plan = [i + 1 for i, w in enumerate(gemma3_windows(GEMMA3_270M)) if w is None]
    assert plan == [6, 12, 18]
    plan = [i + 1 for i, w in enumerate(gemma3_windows(GEMMA3_1B)) if w is None]
    assert plan == [6, 12, 18, 24]  # of 26: the last is local
    with torch.device("meta"):
        blocks = Gemma3Model(TINY).trf_blocks
    assert [block.is_local for block in blocks] == [True, False, True]
    assert [block.att.window for block in blocks] == [3, CONTEXT, 3]


@torch.no_grad()
@pytest.mark.parametrize("full_every", [2, 9])
def test_a_token_reaches_as_far_as_the_windows_say(full_every):
    """With local layers alone, L layers of W tokens reach L (W - 1) places on."""
    cfg = Gemma3Config.of({**TINY, "full_every": full_every})
    model = Gemma3Model(cfg).double().eval()
    idx = random_ids(1, CONTEXT, vocab_size=23)
    other = idx.clone()
    other[:, 0] = (other[:, 0] + 1) % 23
    moved = (model(idx) - model(other)).abs().amax(dim=-1)[0] > 1e-12
    reach = 3 * 2 + 1 if full_every == 9 else CONTEXT
    assert moved.tolist() == [t < reach for t in range(CONTEXT)]


@torch.no_grad()
def test_near_and_far_layers_turn_differently():
    """Each kind has a base, and only the global ones are slowed down."""
    model, idx = Gemma3Model(TINY).double().eval(), random_ids(1, 9, vocab_size=23)
    turns = {}
    for i, block in enumerate(model.trf_blocks):
        block.register_forward_pre_hook(
            lambda _, arguments, i=i: turns.update({i: angles(arguments[3])})
        )
    model(idx)
    for i, (base, factor) in enumerate([(50, 1), (100, 8), (50, 1)]):
        expected = torch.tensor([1 / factor, base**-0.5 / factor])
        assert close(turns[i], expected.double(), bound=1e-6)


def angles(rotate):
    """By how much both pairs of a head of four numbers turn from token 0 to 1."""
    unit = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64).expand(1, 1, 9, 4)
    first, second = rotate(unit)[0, 0, 1].chunk(2)
    return torch.atan2(second, first)


@torch.no_grad()
def test_the_scale_of_the_queries_is_not_the_width_of_a_head():
    """Known mistake in the 27B: K = 128 in place of 168."""
    torch.manual_seed(0)
    x = torch.randn(1, 6, 12, dtype=torch.float64)
    layer = Gemma3Attention(TINY, None).double()
    queries, keys, values = layer.project(x)
    plain = GroupedQueryAttention.project(layer, x)[0]
    unit = plain / (plain.square().mean(-1, keepdim=True) + TINY.norm_eps).sqrt()
    scores = queries @ keys.repeat_interleave(3, dim=1).transpose(2, 3) / 4**0.5
    expected = unit @ keys.repeat_interleave(3, dim=1).transpose(2, 3) / 5**0.5
    assert close(scores, expected)
    assert torch.equal(values, layer.split_heads(layer.W_value(x)))  # no norm


@torch.no_grad()
def test_a_block_adds_vectors_of_a_known_size():
    """Whatever the weights, what a fresh block adds has a mean square of 1."""
    torch.manual_seed(0)
    block = Gemma3Block(TINY, 3).double()
    for parameter in block.parameters():
        if parameter.ndim > 1:
            parameter.mul_(50)
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    added = block.norm1_after(block.att(block.norm1(x)))
    assert close(added.square().mean(dim=-1), torch.ones(2, 7).double(), bound=1e-4)
    middle = x + added
    expected = middle + block.norm2_after(block.ff(block.norm2(middle)))
    assert torch.equal(block(x), expected)


def test_a_fresh_norm_is_that_of_a_llama():
    """Factors are 1 + 0; no buffers, no biases."""
    model = Gemma3Model(TINY)
    norms = [m for m in model.modules() if isinstance(m, Gemma3Norm)]
    assert len(norms) == 3 * 6 + 1
    assert all((norm.scale == 0).all() for norm in norms)
    assert not list(model.buffers())
    assert not [name for name, _ in model.named_parameters() if "bias" in name]
    x = torch.randn(5, 12)
    assert close(norms[-1](x), LlamaModel(TINY_LLAMA).final_norm(x))


# --- the cache that rolls -------------------------------------------------------------


@some
@given(data=st.data(), cfg=configs(), seed=seeds)
@torch.no_grad()
def test_a_rolling_cache_changes_no_number(data, cfg, seed):
    """Whatever the chunks, four windows and more; the oldest keys are gone."""
    T = 4 * CONTEXT
    cfg = Gemma3Config.of({**cfg, "context_length": T, "window": min(cfg.window, 7)})
    torch.manual_seed(seed)
    model = Gemma3Model(cfg).double().eval()
    idx = torch.randint(cfg.vocab_size, (2, T))
    cache, parts, start = gemma3_cache(cfg), [], 0
    for end in data.draw(chunkings(T)):
        parts.append(model(idx[:, start:end], cache=cache))
        start = end
    assert close(torch.cat(parts, dim=1), model(idx))
    held = [cache.layer(i).held for i in range(cfg.n_layers)]
    assert held == [T if w is None else w for w in gemma3_windows(cfg)]


@torch.no_grad()
def test_the_cache_of_long_texts_is_small():
    """Five of six layers of the 270M stop growing at 512 tokens."""
    cfg = Gemma3Config.of({**TINY, "context_length": 4000, "n_layers": 6})
    cfg = Gemma3Config.of({**cfg, "full_every": 6})
    model = Gemma3Model(cfg).eval()
    idx = random_ids(1, 1000, vocab_size=23)
    everything, rolling = KVCache(6, room=1000), gemma3_cache(cfg)
    expected = read_in_chunks(model, idx, everything, 250)
    assert close(read_in_chunks(model, idx, rolling, 250), expected)
    assert rolling.nbytes < everything.nbytes / 2
    with pytest.raises(ValueError, match="do not go together"):
        model(idx[:, :1], torch.ones(1, 1001).bool(), rolling)


# --- what must hold whatever the weights ----------------------------------------------


class TestGemma3(ModelContract):
    """As every model of the course; the cache keeps everything, for padded batches."""

    tiny = TINY
    configs = staticmethod(configs)
    make_model = Gemma3Model
    make_cache = staticmethod(lambda cfg: KVCache(cfg["n_layers"]))
    generate = staticmethod(generate_text_simple)


# --- sizes ----------------------------------------------------------------------------

# What the model hub counts in the published files, images included.
PUBLISHED = {
    "GEMMA3_270M": 268_098_176,
    "GEMMA3_1B": 999_885_952,
    "GEMMA3_4B": 4_300_079_472,
    "GEMMA3_12B": 12_187_325_040,
    "GEMMA3_27B": 27_432_406_640,
}
TEXT_ONLY = {"GEMMA3_270M", "GEMMA3_1B"}
# The part that sees, the same in all; a projection to D numbers and a norm follow it.
EYES = {
    "image_size": 896,
    "patch_size": 14,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "vision_use_head": False,
}


def count_of_all_layers(count, cfg):
    """From models of one and two layers: one of 62 would be slow even on meta."""
    one, two = (count(Gemma3Config.of({**cfg, "n_layers": n})) for n in (1, 2))
    return one + (cfg.n_layers - 1) * (two - one)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    import transformers

    cfg = getattr(gemma3, name)

    def ours(cfg):
        return count_parameters(Gemma3Model(cfg))

    def theirs(cfg):
        text = transformers.Gemma3TextConfig(**gemma3_settings(cfg))
        if name in TEXT_ONLY:
            return count_parameters(transformers.Gemma3ForCausalLM(text))
        whole = transformers.Gemma3Config(
            text_config=text.to_dict(), vision_config=EYES
        )
        return count_parameters(transformers.Gemma3ForConditionalGeneration(whole))

    with torch.device("meta"):
        found = count_of_all_layers(ours, cfg)
        assert count_of_all_layers(theirs, cfg) == PUBLISHED[name]
        eyes = theirs(cfg) - ours(cfg) if name not in TEXT_ONLY else 0
    assert found + eyes == PUBLISHED[name]


def test_the_smallest_is_counted_whole():
    with torch.device("meta"):
        assert count_parameters(Gemma3Model(GEMMA3_270M)) == PUBLISHED["GEMMA3_270M"]


def test_key_map_names_every_weight_once():
    for tied in (False, True):
        cfg = Gemma3Config.of({**TINY, "tie_weights": tied})
        names = gemma3_key_map(cfg)
        assert sorted(names.values()) == sorted(Gemma3Model(cfg).state_dict())
        assert ("lm_head.weight" in names) is not tied


# --- the config -----------------------------------------------------------------------


@pytest.mark.parametrize("make_config", [Gemma3Model, Gemma3Config.of])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_kv_groups": 4}, "n_heads=6 cannot share n_kv_groups=4"),
        ({"window": 0}, "window is 0: give a whole"),
        ({"full_every": 0}, "full_every is 0: give a whole"),
        ({"rope_factor": 0}, "rope_factor is 0"),
        ({"local_rope_base": 1}, "local_rope_base is 1"),
        ({"query_scale": 0}, "query_scale is 0"),
        ({"windows": 4}, r"unknown field 'windows': did you mean 'window'\?$"),
        (
            {
                "rope_scaling": {
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_context_length": 8,
                }
            },
            "rope_scaling is that of Llama 3: give None",
        ),
    ],
)
def test_wrong_configs_are_refused(make_config, changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make_config({**TINY, **changes})


def test_no_field_has_a_default():
    """A window, a base or a scale that is guessed gives another model."""
    for name in TINY:
        fields = {key: value for key, value in TINY.items() if key != name}
        with pytest.raises(ValueError, match=f"lacks '{name}': give every field"):
            Gemma3Model(fields)


def test_copies_keep_the_kind_of_each_layer():
    blocks = copy.deepcopy(Gemma3Model(TINY)).trf_blocks
    assert [block.is_local for block in blocks] == [True, False, True]
