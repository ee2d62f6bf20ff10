"""Sliding windows proved: masks, caches, schedules; against Mistral and Gemma.

Bounds: float32 within 1e-5, float64 within 1e-10.
"""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from course.testing.model_contract import seeds
from gpt import generate_text_simple
from gqa import GroupedQueryAttention
from kv_cache import KVCache, kv_cache_bytes
from llama import LlamaModel, apply_rope, rope_cos_sin, rope_frequencies
from swa import SlidingWindowAttention, layer_windows
from variants import SMALL, draw_weights, with_parts

BOUND = 1e-10  # float64
some = settings(max_examples=30, deadline=None)
sizes = st.integers(min_value=1, max_value=3)
TINY = {**SMALL, "emb_dim": 16, "n_heads": 4, "n_kv_groups": 2, "head_dim": 4}
TINY |= {"hidden_dim": 20, "n_layers": 3, "context_length": 200}


def close(actual, expected):
    assert actual.shape == expected.shape
    return torch.allclose(actual, expected, rtol=0, atol=BOUND)


def make(d_in, num_heads, num_kv_groups, window, head_dim=None, **options):
    return SlidingWindowAttention(
        d_in,
        num_heads=num_heads,
        num_kv_groups=num_kv_groups,
        window=window,
        head_dim=head_dim,
        **options,
    )


@st.composite
def layers(draw, tokens=12):
    """A layer with any window and sinks, and a batch for it."""
    G, R, B = draw(sizes), draw(sizes), draw(sizes)
    window = draw(st.integers(1, tokens + 2))
    sinks = draw(st.integers(0, window - 1))
    torch.manual_seed(draw(seeds))
    layer = make(6, G * R, G, window, 2, sinks=sinks)
    T = draw(st.integers(1, tokens))
    return layer.double(), torch.randn(B, T, 6, dtype=torch.float64)


def visible(layer, real):
    """Who sees whom, in words of the definition: (T, T) of bools, for one text."""
    T = len(real)
    place = [sum(real[: t + 1]) - 1 for t in range(T)]
    table = torch.zeros(T, T, dtype=torch.bool)
    for t in range(T):
        for s in range(t + 1):
            young = place[t] - place[s] < layer.window - layer.sinks
            table[t, s] = real[s] and (young or place[s] < layer.sinks)
    return table


def by_definition(layer, x, real=None):
    """The layer's answer, one query at a time, with a table of who sees whom."""
    B, T, _ = x.shape
    queries, keys, values = layer.project(x)
    R = layer.num_heads // layer.num_kv_groups
    context = torch.zeros_like(queries)
    for b in range(B):
        seen = visible(layer, [True] * T if real is None else real[b].tolist())
        for head in range(layer.num_heads):
            for t in range(T):
                if not seen[t].any():
                    continue
                chosen = keys[b, head // R][seen[t]]
                scores = chosen @ queries[b, head, t] / layer.head_dim**0.5
                weights = torch.softmax(scores, dim=0)
                context[b, head, t] = weights @ values[b, head // R][seen[t]]
    return layer.out_proj(context.transpose(1, 2).flatten(2))


def windowed(windows, seed=0, sinks=0, sizes=TINY, **options):
    """A small Llama with these windows in its layers, in float64."""
    model = LlamaModel(sizes)
    D, H, G, K = (sizes[n] for n in ("emb_dim", "n_heads", "n_kv_groups", "head_dim"))
    with_parts(
        model,
        lambda i: windows[i] and make(D, H, G, windows[i], K, sinks=sinks, **options),
    )
    return draw_weights(model, seed, std=0.3).double().eval()


def ids(*shape, seed=0):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed))


# --- the mask -------------------------------------------------------------------------


@some
@given(layers())
def test_equals_its_definition(case):
    """Known mistakes: W + 1 tokens seen; W - 1; sinks beside a whole window."""
    layer, x = case
    assert close(layer(x), by_definition(layer, x))


@some
@given(layers(), st.data())
def test_equals_it_with_any_padding(case, data):
    """Ages are counted over real tokens, sinks are the first real ones."""
    layer, x = case
    B, T, _ = x.shape
    row = st.lists(st.booleans(), min_size=T, max_size=T)
    real = torch.tensor(data.draw(st.lists(row, min_size=B, max_size=B)))
    found, expected = layer(x, real), by_definition(layer, x, real)
    assert close(found[real], expected[real])


@pytest.mark.parametrize("window", [1, 2, 5, 9, 20])
def test_each_query_sees_exactly_as_many_as_the_window(window):
    """Known mistake: W + 1 tokens, by a diagonal that is one off."""
    layer = make(4, 2, 1, window)
    hidden = layer.hidden_keys(9, 9, None, torch.device("cpu"))
    expected = [min(t + 1, window) for t in range(9)]
    assert (~hidden).sum(dim=1).tolist() == expected


@some
@given(layers())
def test_a_window_as_long_as_the_text_is_full_attention(case):
    layer, x = case
    K = layer.head_dim
    sizes = {"num_heads": layer.num_heads, "num_kv_groups": layer.num_kv_groups}
    full = GroupedQueryAttention(6, head_dim=K, **sizes).double()
    full.load_state_dict(layer.state_dict())
    layer.window = x.shape[1] + layer.sinks
    assert close(layer(x), full(x))


def test_a_trace_reaches_through_the_layers_and_no_further():
    """Each layer adds W - 1 tokens: 3 layers of 4 reach 9 back."""
    model, text = windowed([4, 4, 4]), ids(1, 30)
    other = text.clone()
    other[0, 5] += 1
    gap = (model(other) - model(text)).abs().amax(dim=-1)[0]
    changed = (gap > 1e-12).nonzero().flatten()
    assert changed.min() == 5
    assert changed.max() == 5 + 3 * (4 - 1)


# --- the cache ------------------------------------------------------------------------


@some
@given(layers(), st.booleans(), st.data())
@torch.no_grad()
def test_cached_equals_uncached_for_any_chunks(case, rolling, data):
    """Known mistakes: a cache cut to W before a chunk has read it; a mask that takes
    the place in the ring for the place in the text.
    """
    layer, x = case
    T = x.shape[1]
    cuts = data.draw(st.sets(st.integers(1, T - 1))) if T > 1 else set()
    options = {"window": layer.window, "sinks": layer.sinks, "masked": True}
    cache = KVCache(1, **options if rolling else {}).layer(0)
    parts, start = [], 0
    for end in [*sorted(cuts), T]:
        parts.append(layer(x[:, start:end], cache=cache))
        start = end
    assert close(torch.cat(parts, dim=1), layer(x))
    assert not rolling or cache.held == min(T, layer.window)


@torch.no_grad()
@pytest.mark.parametrize(
    "windows", [[4, 4, 4], [4, None, 4], [4, 7, None], [33] * 3, [40] * 3]
)
@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5, 6, 7, 8])
def test_model_with_a_rolling_cache_equals_itself(windows, chunk):
    """Chunks from 1 to two windows; windows shorter than the text, as long, longer.

    Known mistakes: the cache is cut to the window before a chunk has read it; a window
    beyond the text; a check of the wrong axis, so that nothing is ever dropped.
    """
    model, text = windowed(windows), ids(2, 33)
    cache = KVCache(3, window=windows, masked=True)
    parts = [model(part, cache=cache) for part in text.split(chunk, dim=1)]
    assert close(torch.cat(parts, dim=1), model(text))
    assert cache.length == 33
    for i, window in enumerate(windows):
        assert cache.layer(i).keys.shape[2] == min(33, window or 33)


@torch.no_grad()
def test_long_texts_stay_right_and_the_memory_constant():
    """Known mistakes: nonsense only after several windows; NaN after a prompt of more
    than one; a decoding path that ignores the window.
    """
    model, prompt = windowed([5, 5, 5], sinks=1), ids(1, 15, seed=3)
    cache = KVCache(3, window=5, sinks=1, masked=True)
    text = generate_text_simple(model, prompt, 60, 200, cache=cache)
    assert torch.equal(text, generate_text_simple(model, prompt, 60, 200))
    assert model(text).isfinite().all()
    assert cache.nbytes == kv_cache_bytes(3, 1, 2, 5, 4, torch.float64)


@torch.no_grad()
def test_a_second_text_starts_afresh():
    """Known mistake: the place in the ring is not set back."""
    model, cache = windowed([4, None, 4]), KVCache(3, window=[4, None, 4], masked=True)
    generate_text_simple(model, ids(1, 9), 9, 200, cache=cache)
    cache.reset()
    second = generate_text_simple(model, ids(1, 7, seed=1), 9, 200, cache=cache)
    assert torch.equal(second, generate_text_simple(model, ids(1, 7, seed=1), 9, 200))


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_answers_as_each_text_alone(side):
    """Known mistake: a window over places, in which padding takes the place of text."""
    model, texts = windowed([4, None, 3]), [ids(1, n, seed=n) for n in (9, 14)]
    real = torch.ones(2, 14, dtype=torch.bool)
    batch, place = ids(2, 14, seed=5), slice(5, 14) if side == "left" else slice(9)
    real[0], real[0, place] = False, True
    batch[0, place], batch[1] = texts[0], texts[1]
    cache = KVCache(3)  # a plain one, since a rolling one takes no attention mask
    parts = [
        model(batch[:, start:end], real[:, :end], cache)
        for start, end in ((0, 4), (4, 5), (5, 11), (11, 14))
    ]
    for found in (model(batch, real), torch.cat(parts, dim=1)):
        for row, text in enumerate(texts):
            assert close(found[row][real[row]], model(text)[0])


def test_a_future_token_changes_no_past_output():
    model, text = windowed([3, None, 5]), ids(1, 20)
    for t in (4, 11, 19):
        other = text.clone()
        other[0, t] += 1
        assert torch.equal(model(other)[:, :t], model(text)[:, :t])


# --- other rotations, schedules -------------------------------------------------------


@torch.no_grad()
def test_own_rotation_replaces_the_models():
    """The base of this layer alone, also with a rolling cache."""
    layer = make(8, 2, 1, 3, rope_base=77.0).double()
    plain = make(8, 2, 1, 3).double()
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(1, 9, 8, dtype=torch.float64)
    cos, sin = rope_cos_sin(torch.arange(9), rope_frequencies(4, 77.0, None))
    expected = plain(x, rotate=lambda heads: apply_rope(heads, cos, sin))
    assert close(layer(x, rotate=lambda heads: 5 * heads), expected)
    cache = KVCache(1, window=3, masked=True).layer(0)
    parts = [layer(part, cache=cache) for part in x.split(1, dim=1)]
    assert close(torch.cat(parts, dim=1), expected)


RELEASED = {  # layers that see everything, and what transformers calls the model
    "Gemma 2": (2, "Gemma2Config"),
    "Gemma 3, 4B": (6, "Gemma3TextConfig"),
    "gpt-oss-20b": (2, "GptOssConfig"),
    "Olmo 3, 7B": (4, "Olmo3Config"),
    "Trinity Mini": (4, "AfmoeConfig"),
    "Gemma 4, 31B": (6, "Gemma4TextConfig"),
}


def test_schedules_are_those_of_released_models():
    """The table of the notebook, as far as transformers has it.

    Known mistake: the layers that see everything come first in each round.
    """
    import transformers

    page = (Path(__file__).parent / "swa.ipynb").read_text(encoding="utf-8")
    page = re.sub(r" <!--.*?-->", "", page)
    row = re.compile(r"\| ([^|]+) \| 20\d\d \| ([\d,]+) \| (?:(\d) of (\d)|all) \|")
    table = {name: counts for name, *counts in row.findall(page)}
    assert table.pop("Mistral 7B v0.1") == ["4,096", "", ""]
    assert set(table) == set(RELEASED)
    for name, (full_every, config) in RELEASED.items():
        window, some, of = (int(n.replace(",", "")) for n in table[name])
        assert (some, of) == (full_every - 1, full_every)
        cfg = getattr(transformers, config)(num_hidden_layers=24)
        kinds = [
            "sliding_attention" if one else "full_attention"
            for one in layer_windows(24, window, full_every)
        ]
        assert kinds == cfg.layer_types
        if name not in ("Gemma 3, 4B", "Gemma 4, 31B"):  # by size, from the reports
            assert window == cfg.sliding_window


def test_gemma_turns_by_the_bases_that_the_notebook_names():
    import transformers

    bases = transformers.Gemma3TextConfig().rope_parameters
    assert bases["sliding_attention"]["rope_theta"] == 10_000
    assert bases["full_attention"]["rope_theta"] == 1_000_000


def test_plans_without_full_layers_and_without_windows():
    assert layer_windows(3, 8) == [8, 8, 8]
    assert layer_windows(2, 8, full_every=1) == [None, None]


# --- against transformers -------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("window", [3, 7, 40])
def test_equals_mistral(window):
    """The whole model with its own mask: windows in all layers, many of them in a text.

    Its norms compute in float32, whatever the weights are. One token more in a window
    is seen.
    """
    import transformers

    from course.testing.references import llama_config
    from llama import llama_key_map

    cfg = llama_config(TINY).to_dict() | {"sliding_window": window}
    for name in ("model_type", "architectures"):
        cfg.pop(name, None)
    theirs = transformers.MistralForCausalLM(transformers.MistralConfig(**cfg))
    theirs = theirs.double().eval()
    ours, wider = windowed([window] * 3), windowed([window + 1] * 3)
    state = theirs.state_dict()
    for their, our in llama_key_map(TINY).items():
        for model in (ours, wider):
            model.get_parameter(our).copy_(state[their])
    text = ids(2, 25)
    expected = theirs(text).logits
    assert (ours(text) - expected).abs().max() < 1e-5
    assert ((wider(text) - expected).abs().max() < 1e-5) == (window == 40)
    cache = KVCache(3, window=window, masked=True)
    parts = [ours(part, cache=cache) for part in text.split(4, dim=1)]
    assert (torch.cat(parts, dim=1) - expected).abs().max() < 1e-5


class PerHeadNorm(nn.Module):
    """Gemma 3 normalises each head of queries and keys after the projection."""

    def __init__(self, linear, norm, head_dim):
        super().__init__()
        self.linear, self.norm, self.head_dim = linear, norm, head_dim

    def forward(self, x):
        heads = self.linear(x).unflatten(-1, (-1, self.head_dim))
        return self.norm(heads).flatten(-2)


def reference(family, window):
    """The config of a family, a layer with a window and one without, and its class."""
    import transformers
    from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention
    from transformers.models.gemma3.modeling_gemma3 import Gemma3Attention
    from transformers.models.mistral.modeling_mistral import MistralAttention

    name, kind = {
        "mistral": ("MistralConfig", MistralAttention),
        "gemma2": ("Gemma2Config", Gemma2Attention),
        "gemma3": ("Gemma3TextConfig", Gemma3Attention),
    }[family]
    plan = {"layer_types": ["sliding_attention", "full_attention"]}
    plan |= {"query_pre_attn_scalar": 4, "attn_logit_softcapping": None}
    cfg = getattr(transformers, name)(
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        sliding_window=window,
        num_hidden_layers=2,
        **({} if family == "mistral" else plan),
    )
    cfg._attn_implementation = "sdpa"
    return cfg, kind


@torch.no_grad()
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)]
)
@pytest.mark.parametrize("layer_idx", [0, 1])
@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_equals_the_attention_of(family, layer_idx, dtype, bound):
    """A layer with a window and one without, with masks that transformers makes.

    Gemma 3's layers have bases of their own, and norms of each head, which compute in
    float32: in float64 they are left out on both sides.
    """
    from transformers import masking_utils

    T, W = 11, 4
    cfg, kind = reference(family, W)
    slides = family == "mistral" or layer_idx == 0
    torch.manual_seed(0)
    theirs = kind(cfg, layer_idx=layer_idx).to(dtype).eval()
    bases = cfg.rope_parameters
    if family == "gemma3":
        bases = bases[cfg.layer_types[layer_idx]]
    base = bases["rope_theta"]
    ours = make(16, 4, 2, W if slides else T, 4, rope_base=base).to(dtype)
    for our, letter in zip(
        ("W_query", "W_key", "W_value", "out_proj"), "qkvo", strict=True
    ):
        getattr(ours, our).weight.copy_(getattr(theirs, f"{letter}_proj").weight)
    if family == "gemma3":
        assert base == (10_000 if slides else 1_000_000)
        for letter, our in (("q", "W_query"), ("k", "W_key")):
            norm = getattr(theirs, f"{letter}_norm")
            nn.init.normal_(norm.weight)
            if dtype == torch.float64:
                norm = nn.Identity()
                setattr(theirs, f"{letter}_norm", norm)
            setattr(ours, our, PerHeadNorm(getattr(ours, our), norm, 4))
    x = torch.randn(2, T, 16, dtype=dtype)
    make_mask = masking_utils.create_causal_mask
    if slides:
        make_mask = masking_utils.create_sliding_window_causal_mask
    mask = make_mask(cfg, x, None, None, allow_is_causal_skip=False)
    cos, sin = rope_cos_sin(torch.arange(T), rope_frequencies(4, base, None))
    turn = cos[None].to(dtype), sin[None].to(dtype)
    expected, _ = theirs(x, position_embeddings=turn, attention_mask=mask)
    assert (ours(x) - expected).abs().max() < bound


# --- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "sinks", "message"),
    [(0, 0, "window is 0"), (4, 4, "sinks=4 tokens"), (4, -1, "sinks is -1")],
)
def test_impossible_windows_are_refused(window, sinks, message):
    with pytest.raises(ValueError, match=message):
        make(8, 2, 1, window, sinks=sinks)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ((3, 0), "window is 0"),
        ((3, -4, 2), "window is -4"),
        ((3, 8, 0), "full_every is 0"),
        ((3, 8, -1), "full_every is -1"),
        ((-3, 8), "num_layers is -3"),
    ],
)
def test_impossible_plans_are_refused(plan, message):
    """Known mistakes: a window of 0 taken for full attention; 0 and -1 for never and
    always.
    """
    with pytest.raises(ValueError, match=message):
        layer_windows(*plan)
