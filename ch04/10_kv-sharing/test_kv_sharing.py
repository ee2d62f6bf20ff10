"""Shared keys and values proved: cached = uncached, Gemma's plan and layers, bytes.

Bounds: float32 within 1e-5, float64 within 1e-10.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course.testing.model_contract import ModelContract, close
from gpt import count_parameters, generate_text_simple
from gqa import GroupedQueryAttention
from kv_cache import KVCache
from kv_sharing import (
    PassedOn,
    QueryOnlyAttention,
    SharingLlama,
    SharingPass,
    last_sources,
    owners_of,
    paired_sources,
    read_prompt,
    shared_cache_bytes,
)
from llama import LlamaModel, apply_rope
from small_models import TINY_LLAMA

some = settings(max_examples=30, deadline=None)
TINY = {**TINY_LLAMA, "n_heads": 4, "n_kv_groups": 2, "n_layers": 4}


# --- what the tests are made of -------------------------------------------------------


@st.composite
def plans(draw, num_layers=None):
    """Sources in which any layer owns or reads from any earlier owner."""
    L = draw(st.integers(1, 6)) if num_layers is None else num_layers
    sources = []
    for layer in range(L):
        owners = [i for i, source in enumerate(sources) if source == i]
        sources.append(draw(st.sampled_from([*owners, layer])))
    return tuple(sources)


def make(sources=(0, 0, 2, 2), seed=0, dtype=torch.float64, **changes):
    torch.manual_seed(seed)
    cfg = {**TINY, "n_layers": len(sources), **changes}
    return SharingLlama(cfg, sources).to(dtype).eval()


def random(*shape, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def random_ids(*shape, seed=1):
    return torch.randint(13, shape, generator=torch.Generator().manual_seed(seed))


# --- who reads from whom --------------------------------------------------------------


def test_neighbours_share():
    assert paired_sources(6, 2) == (0, 0, 2, 2, 4, 4)
    assert paired_sources(5, 3) == (0, 0, 0, 3, 3)
    assert paired_sources(3, 1) == (0, 1, 2)


def test_the_last_layers_read_from_the_last_of_their_kind():
    kinds = ["near", "near", "far", "near", "far", "near", "far"]
    assert last_sources(kinds, 3) == (0, 1, 2, 3, 2, 3, 2)
    assert last_sources(["all"] * 4, 2) == (0, 1, 1, 1)
    assert last_sources(["all"] * 4, 0) == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("kinds", "readers"),
    [(["near", "near", "far"], 1), (["all"] * 4, 5), (["all"] * 4, 4), (["all"], -1)],
)
def test_readers_without_an_owner_are_refused(kinds, readers):
    """Known mistakes: a plan of too few layers; nobody reads, without a word."""
    with pytest.raises(ValueError, match="a layer of each kind is left"):
        last_sources(kinds, readers)


@pytest.mark.parametrize("group", [0, -2, 1.5])
def test_groups_of_less_than_a_layer_are_refused(group):
    with pytest.raises(ValueError, match="group"):
        paired_sources(4, group)


@pytest.mark.parametrize("family", ["gemma3n", "gemma4"])
@some
@given(data=st.data())
def test_the_plan_is_gemmas(family, data):
    """Known mistakes: the last owner of any kind; the first instead of the last."""
    import transformers

    kind = {"gemma3n": "Gemma3nTextConfig", "gemma4": "Gemma4TextConfig"}[family]
    L = data.draw(st.integers(2, 12))
    pattern = st.sampled_from(["sliding_attention", "full_attention"])
    types = [*data.draw(st.lists(pattern, min_size=L - 1, max_size=L - 1)), pattern]
    types[-1] = "full_attention"
    first = data.draw(st.integers(1, L))
    if set(types[:first]) != set(types):
        return  # they refuse it, too
    config = getattr(transformers, kind)(
        num_hidden_layers=L, layer_types=list(types), num_kv_shared_layers=L - first
    )
    sources, modes = last_sources(types, L - first), config.kv_sharing_modes
    assert [mode == "reuse" for mode in modes] == [
        s != i for i, s in enumerate(sources)
    ]
    if first < L:
        stored = {types[i]: i for i, mode in enumerate(modes) if mode == "store"}
        assert all(sources[i] == stored[types[i]] for i in range(first, L))


# --- against what is known ------------------------------------------------------------


@some
@given(plans(), st.booleans(), st.integers(0, 99))
def test_equals_attention_to_the_keys_of_the_source(sources, padded, seed):
    """Layer by layer, with chapter 4's block for owners and plain loops for readers.

    Known mistakes: a reader gets its neighbour's keys; keys turned twice.
    """
    model, idx = make(sources, seed), random_ids(2, 5, seed=seed)
    real = torch.ones(2, 5, dtype=torch.bool)
    if padded:
        real[0, :2] = False
    made, outs = {}, []

    def note(layer, att):
        def hook(module, arguments, out):
            x, mask, cache, rotate = arguments
            outs.append((layer, x, rotate, out))
            if sources[layer] == layer:
                _, keys, values = module.project(x, rotate)
                made[layer] = keys, values

        att.register_forward_hook(hook)

    for layer, block in enumerate(model.trf_blocks):
        note(layer, block.att)
    model(idx, real)
    H, G, K = 4, 2, 4
    for layer, x, rotate, out in outs:
        att = model.trf_blocks[layer].att
        keys, values = made[sources[layer]]
        queries = rotate(att.W_query(x).view(2, 5, H, K).transpose(1, 2))
        context = torch.zeros(2, 5, H, K, dtype=x.dtype)
        for b, t, h in torch.cartesian_prod(*map(torch.arange, (2, 5, H))).tolist():
            seen = [s for s in range(t + 1) if real[b, s]]
            if seen:
                scores = keys[b, h // (H // G), seen] @ queries[b, h, t] / K**0.5
                weights = torch.softmax(scores, dim=0)
                context[b, t, h] = weights @ values[b, h // (H // G), seen]
        assert close(att.out_proj(context.flatten(2)), out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cached", [False, True])
@torch.no_grad()
def test_equals_the_layers_of_gemma_4(dtype, cached):
    """Their attention, six layers of two kinds, three of which read; ours beside it.

    Theirs normalises queries, keys and values and divides by nothing: `Normed` does
    the same with ours. Windows are as long as the text.
    """
    from transformers.cache_utils import DynamicCache, KVSharingDict
    from transformers.models.gemma4 import modeling_gemma4 as gemma

    D, H, G, K, T = 24, 4, 2, 6, 7
    kinds = ["sliding_attention", "full_attention"] * 3
    config = gemma.Gemma4TextConfig(
        hidden_size=D,
        num_attention_heads=H,
        num_key_value_heads=G,
        head_dim=K,
        global_head_dim=K,
        num_hidden_layers=6,
        num_kv_shared_layers=3,
        layer_types=kinds,
        sliding_window=64,
        vocab_size=11,
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    theirs = [gemma.Gemma4TextAttention(config, i).to(dtype).eval() for i in range(6)]
    sources = last_sources(kinds, 3)
    assert sources == (0, 1, 2, 1, 2, 1)
    ours = []
    for layer, source in enumerate(sources):
        kind = NormedOwner if source == layer else NormedReader
        att = kind(D, num_heads=H, num_kv_groups=G, head_dim=K).to(dtype).eval()
        names = {"W_query": "q_proj", "W_key": "k_proj", "W_value": "v_proj"}
        names["out_proj"] = "o_proj"
        for mine, other in names.items():
            if hasattr(att, mine):
                weight = getattr(theirs[layer], other).weight
                getattr(att, mine).weight.copy_(weight)
        ours.append(att)
    assert not hasattr(theirs[3], "k_proj")
    angles = torch.arange(T)[:, None] * torch.linspace(0.3, 1.1, K // 2).double()
    angles = torch.cat((angles, angles), dim=-1).to(dtype)
    cos, sin = angles.cos(), angles.sin()
    x = random(2, T, D, dtype=dtype)
    their_cache = DynamicCache(config=config) if cached else None
    cache = KVCache(3) if cached else None
    for start, end in ((0, 5), (5, 6), (6, 7)) if cached else ((0, T),):
        shared, passing = KVSharingDict(), SharingPass(sources, cache)
        a = b = x[:, start:end]
        hidden = torch.ones(end, end, dtype=torch.bool).tril()[start:]
        here = cos[start:end], sin[start:end]

        def rotate(heads, here=here):
            return apply_rope(heads, *here)

        for layer in range(6):
            both = here[0][None], here[1][None]
            out, _ = theirs[layer](a, both, hidden[None, None], shared, their_cache)
            a = a + out
            b = b + ours[layer](b, None, passing.layer(layer), rotate)
        assert close(b, a, bound=None if dtype == torch.float64 else 2e-5)


def norm(heads):
    """Gemma's norm with factors of 1; like theirs it computes in float32."""
    wide = heads.float()
    wide = wide * (wide.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt()
    return wide.to(heads.dtype)


class NormedOwner(GroupedQueryAttention):
    def project(self, x, rotate=None):
        queries, keys, values = super().project(x)
        unscaled = norm(queries) * self.head_dim**0.5
        return rotate(unscaled), rotate(norm(keys)), norm(values)


class NormedReader(QueryOnlyAttention):
    def project_queries(self, x, rotate=None):
        unscaled = norm(super().project_queries(x)) * self.head_dim**0.5
        return rotate(unscaled)


# --- identities -----------------------------------------------------------------------


@some
@given(st.integers(1, 4), st.integers(0, 99))
def test_nobody_reads_is_a_llama(L, seed):
    model = make(tuple(range(L)), seed)
    plain = LlamaModel(model.cfg).double().eval()
    plain.load_state_dict(model.state_dict())
    idx = random_ids(2, 6, seed=seed)
    assert torch.equal(model(idx), plain(idx))


@some
@given(plans(), st.integers(0, 99), st.data())
def test_cached_equals_uncached_for_any_plan_and_chunks(sources, seed, data):
    """Known mistakes: a reader appends again; it reads before the owner has made keys;
    it counts the new tokens twice.
    """
    model, idx = make(sources, seed), random_ids(2, 8, seed=seed)
    cuts = data.draw(st.sets(st.integers(1, 7)))
    cache, parts, start = KVCache(model.num_owners), [], 0
    with torch.no_grad():
        for end in [*sorted(cuts), 8]:
            parts.append(model(idx[:, start:end], cache=cache))
            start = end
        assert close(torch.cat(parts, dim=1), model(idx))
    assert cache.length == 8


@some
@given(plans(), st.integers(0, 99), st.integers(0, 5), st.integers(1, 4))
def test_a_prompt_that_leaves_early_gives_the_same(sources, seed, past, T):
    """And the same cache, so that writing goes on alike. Known mistake: the last owner
    reads the last token alone.
    """
    model, idx = make(sources, seed), random_ids(2, past + T, seed=seed)
    early, whole = (KVCache(model.num_owners) for _ in range(2))
    with torch.no_grad():
        for cache in (early, whole):
            if past:
                model(idx[:, :past], cache=cache)
        logits = read_prompt(model, idx[:, past:], early)
        assert close(logits, model(idx[:, past:], cache=whole)[:, -1:])
        token = random_ids(2, 1)
        assert close(model(token, cache=early), model(token, cache=whole))


def test_readers_have_no_weights_for_keys_and_values():
    """Known mistake: projections that are made and never used, as in some files."""
    sources, model = (0, 1, 1, 1), make((0, 1, 1, 1))
    plain = LlamaModel(model.cfg)
    D, G, K = 12, 2, 4
    readers = len(sources) - len(owners_of(sources))
    saved = readers * 2 * D * G * K
    assert count_parameters(plain) - count_parameters(model) == saved
    with pytest.raises(AttributeError):
        model.trf_blocks[2].att.W_key  # noqa: B018


def test_gradients_reach_the_owner_from_its_readers():
    """Known mistake: keys handed on without their graph."""
    model = make((0, 0))
    model.trf_blocks[0].att.out_proj.weight.data.zero_()  # the owner's own way
    model(random_ids(2, 5)).square().mean().backward()
    att = model.trf_blocks[0].att
    assert att.W_key.weight.grad.abs().max() > 0
    assert att.W_value.weight.grad.abs().max() > 0


@some
@given(plans(), st.integers(1, 3), st.integers(1, 9), st.booleans())
def test_the_formula_gives_the_bytes_of_the_cache(sources, B, S, wide):
    """Known mistake: all layers counted."""
    dtype = torch.float64 if wide else torch.float32
    model = make(sources, dtype=dtype)
    cache = KVCache(model.num_owners, room=S)
    with torch.no_grad():
        model(random_ids(B, S), cache=cache)
    assert cache.nbytes == shared_cache_bytes(sources, B, 2, S, 4, dtype)


# --- refusals -------------------------------------------------------------------------


@pytest.mark.parametrize("sources", [(0, 0, 1), (1, 1, 2), (0, 3, 2), (0, 0)])
def test_plans_that_cannot_be_are_refused(sources):
    """Readers of readers, of later layers, of layers that do not exist; too few."""
    with pytest.raises(ValueError, match="its own number, or that of an earlier"):
        SharingLlama({**TINY, "n_layers": 3}, sources)


@pytest.mark.parametrize("cache", [None, PassedOn(), KVCache(1).layer(0)])
def test_a_layer_that_has_nothing_to_read_is_refused(cache):
    layer = QueryOnlyAttention(12, num_heads=3, num_kv_groups=3, head_dim=4)
    with pytest.raises(ValueError, match="an owner has appended in this pass"):
        layer(torch.randn(1, 3, 12), cache=cache)


@torch.no_grad()
def test_a_cache_with_a_layer_for_each_layer_is_refused():
    """It would be filled in part, and its lengths disagree at the next token."""
    model = make((0, 0, 2, 2))
    with pytest.raises(ValueError, match="4 layers, but 2 layers .* num_layers=2"):
        model(random_ids(1, 3), cache=KVCache(4))


# --- a model --------------------------------------------------------------------------


def configs():
    return st.builds(
        lambda groups, R, K, D, L, tied: {
            **TINY,
            "n_heads": groups * R,
            "n_kv_groups": groups,
            "head_dim": 2 * K,
            "emb_dim": D,
            "n_layers": L,
            "tie_weights": tied,
        },
        st.integers(1, 2),
        st.integers(1, 2),
        st.integers(1, 2),
        st.integers(2, 9),
        st.integers(1, 4),
        st.booleans(),
    )


def sources_for(cfg):
    """Both plans of the folder, by the number of layers."""
    L = cfg["n_layers"]
    return last_sources(["all"] * L, L // 2) if L % 2 else paired_sources(L, 2)


class TestSharingLlama(ModelContract):
    tiny = {**TINY, "n_layers": 2}  # bfloat16 loses a digit in four
    configs = staticmethod(configs)
    make_model = staticmethod(lambda cfg: SharingLlama(cfg, sources_for(cfg)))
    make_cache = staticmethod(lambda cfg: KVCache(len(owners_of(sources_for(cfg)))))
    generate = staticmethod(generate_text_simple)
