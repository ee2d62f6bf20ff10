"""The cache proved: cached equals uncached equals chunked, and nothing is shared.

The model here is the least in which a cache can go wrong: two attention layers and a
table of positions, so that a wrong position or a wrong layer changes the answer.
"""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kv_cache import SMALLEST_ROOM, KVCache, LayerCache
from multihead_attention import MultiHeadAttention

B, G, K = 2, 3, 4  # of the keys and values that the tests make up
V, D, CONTEXT = 11, 8, 16  # of the model below
BOUND = 1e-10  # float64


class TinyModel(nn.Module):
    """Token ids to logits; positions are counted over real tokens."""

    def __init__(self, num_layers=2, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.tok_emb, self.pos_emb = nn.Embedding(V, D), nn.Embedding(CONTEXT, D)
        self.trf_blocks = nn.ModuleList(
            MultiHeadAttention(D, D, CONTEXT, 0.0, num_heads=2)
            for _ in range(num_layers)
        )
        self.out_head = nn.Linear(D, V, bias=False)
        self.double().eval()

    def forward(self, idx, attention_mask=None, cache=None):
        past = 0 if cache is None else cache.length
        positions = torch.arange(past, past + idx.shape[1])
        if attention_mask is not None:
            real_so_far = attention_mask.long().cumsum(dim=1)
            positions = (real_so_far - 1).clamp(min=0)[:, past:]
        x = self.tok_emb(idx) + self.pos_emb(positions)
        for i, attention in enumerate(self.trf_blocks):
            part = None if cache is None else cache.layer(i)
            x = x + attention(x, attention_mask, part)
        return self.out_head(x)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def random(tokens, seed=0, shape=(B, G, None, K)):
    generator = torch.Generator().manual_seed(seed)
    size = [tokens if n is None else n for n in shape]
    return torch.randn(*size, generator=generator)


def ids(*shape, seed=0):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def close(actual, expected):
    assert actual.shape == expected.shape
    return torch.allclose(actual, expected, rtol=0, atol=BOUND)


def greedy(model, idx, new_tokens, cache=None):
    """Continue `idx`, with the cache or by reading everything again each time."""
    logits = model(idx, cache=cache)
    for _ in range(new_tokens):
        chosen = logits[:, -1:].argmax(dim=-1)
        idx = torch.cat((idx, chosen), dim=1)
        logits = model(idx if cache is None else chosen, cache=cache)
    return idx, logits[:, -1]


# --- cached = uncached = chunked ------------------------------------------------------


def test_every_chunking_equals_one_pass():
    """Known mistakes: a cached step with a 1 x 1 mask; causal mask aligned to the top
    left when queries are fewer than keys; square mask misapplied to a chunked
    continuation; position offset that grows by the total length at each step.
    """
    model, idx = TinyModel(), ids(2, 7)
    expected = model(idx)
    for cuts in itertools.product((False, True), repeat=6):
        ends = [t + 1 for t, cut in enumerate(cuts) if cut] + [7]
        cache, logits, start = KVCache(num_layers=2), [], 0
        for end in ends:
            assert cache.length == start
            logits.append(model(idx[:, start:end], cache=cache))
            start = end
        assert cache.length == 7
        assert close(torch.cat(logits, dim=1), expected), ends


def test_generation_with_cache_equals_generation_without():
    """Known mistake: gibberish after many tokens only; here up to the last place."""
    model, idx = TinyModel(), ids(2, 3)
    text, logits = greedy(model, idx, CONTEXT - 3)
    cached_text, cached_logits = greedy(model, idx, CONTEXT - 3, KVCache(2))
    assert torch.equal(cached_text, text)
    assert close(cached_logits, logits)


def test_each_step_reads_one_token_only():
    """Known mistake: a demonstration "with cache" that does not use the cache."""
    model, read = TinyModel(), []
    model.tok_emb.register_forward_hook(lambda _, args, out: read.append(out.shape[1]))
    greedy(model, ids(1, 4), 5, KVCache(2))
    assert read == [4, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_ragged_prompts_in_one_batch_equal_each_prompt_alone(side):
    """Known mistakes: batched ragged prompts, padded without mask or with a wrong one;
    last-token logits taken at -1 although the row is padded.
    """
    model, lengths, steps = TinyModel(), [2, 6, 4], 5
    prompts = [ids(1, n, seed=n) for n in lengths]
    longest = max(lengths)
    idx, real = torch.zeros(3, longest, dtype=torch.long), torch.zeros(3, longest)
    for b, n in enumerate(lengths):
        place = slice(longest - n, None) if side == "left" else slice(n)
        idx[b, place], real[b, place] = prompts[b][0], 1
    last_real = real.cumsum(dim=1).argmax(dim=1)
    real = real.bool()

    cache = KVCache(num_layers=2)
    logits = model(idx, real, cache)[torch.arange(3), last_real]
    found = []
    for _ in range(steps):
        found.append(logits)
        chosen = logits.argmax(dim=-1, keepdim=True)
        real = torch.cat((real, torch.ones_like(chosen, dtype=torch.bool)), dim=1)
        logits = model(chosen, real, cache)[:, -1]
    for b, text in enumerate(prompts):
        for t in range(steps):
            expected = model(text)[:, -1]
            assert close(found[t][b : b + 1], expected), (b, t)
            text = torch.cat((text, expected.argmax(-1, keepdim=True)), dim=1)


def test_second_prompt_equals_a_fresh_run():
    """Known mistakes: cache cleared but not rebuilt, or leaking between calls; position
    not reset.
    """
    model, cache = TinyModel(), KVCache(num_layers=2)
    greedy(model, ids(2, 5, seed=1), 6, cache)
    cache.reset()
    assert cache.length == 0
    second = ids(3, 4, seed=2)  # another batch size
    text, logits = greedy(model, second, 6, cache)
    fresh_text, fresh_logits = greedy(TinyModel(), second, 6, KVCache(2))
    assert torch.equal(text, fresh_text)
    assert torch.equal(logits, fresh_logits)


def test_two_caches_of_one_model_do_not_disturb_each_other():
    """Two conversations in turn: state lives in the caches, not in the model."""
    model, first, second = TinyModel(), ids(1, 6, seed=1), ids(1, 6, seed=2)
    caches = KVCache(2), KVCache(2)
    for t in range(6):
        logits = [
            model(idx[:, t : t + 1], cache=cache)
            for idx, cache in zip((first, second), caches, strict=True)
        ]
    assert close(logits[0], model(first)[:, -1:])
    assert close(logits[1], model(second)[:, -1:])
    buffers = [part for c in caches for i in (0, 1) for part in parts(c.layer(i))]
    assert len({part.data_ptr() for part in buffers}) == len(buffers) == 8


def parts(layer):
    return layer.keys, layer.values


def test_a_copy_can_go_another_way():
    """One prompt, two continuations: `copy.deepcopy` makes an independent cache."""
    model, prompt = TinyModel(), ids(1, 5)
    cache = KVCache(2)
    model(prompt, cache=cache)
    branch = copy.deepcopy(cache)
    for token in range(V):
        model(torch.tensor([[token]]), cache=branch)
        if branch.length == CONTEXT:
            break
    assert (cache.length, branch.length) == (5, CONTEXT)
    last = torch.tensor([[7]])
    expected = model(torch.cat((prompt, last), dim=1))[:, -1:]
    assert close(model(last, cache=cache), expected)


# --- what a layer's part holds --------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=8))
def test_append_returns_everything_in_order(chunks):
    layer, all_keys, all_values = LayerCache(), [], []
    for seed, tokens in enumerate(chunks):
        all_keys.append(random(tokens, seed=2 * seed))
        all_values.append(random(tokens, seed=2 * seed + 1))
        keys, values = layer.append(all_keys[-1], all_values[-1])
        assert torch.equal(keys, torch.cat(all_keys, dim=2))
        assert torch.equal(values, torch.cat(all_values, dim=2))
        assert layer.length == keys.shape[2]
    assert torch.equal(layer.keys, keys)
    assert torch.equal(layer.values, values)


def test_most_steps_move_nothing():
    """The reason for the spare room: concatenating would move all tokens every time."""
    layer, moved, places = LayerCache(), 0, []
    for _ in range(1000):
        held = layer.length
        layer.append(random(1), random(1))
        if places and layer.keys.data_ptr() != places[-1]:
            moved += held
        places.append(layer.keys.data_ptr())
    assert len(set(places)) <= 6
    assert moved <= 1000  # by concatenating: 499,500


def test_appending_changes_no_earlier_view():
    """What a layer has got stays valid, also when the room grows or after a reset."""
    layer = LayerCache()
    first = random(2)
    early, _ = layer.append(first, first)
    for seed in range(2 * SMALLEST_ROOM):
        layer.append(random(1, seed), random(1, seed))
    layer.reset()
    layer.append(random(2, seed=5), random(2, seed=5))
    assert torch.equal(early, first)


def test_new_tokens_are_copied_not_kept_by_reference():
    layer, keys = LayerCache(), random(2)
    held, _ = layer.append(keys, keys)
    before = held.clone()
    keys.zero_()
    assert torch.equal(held, before)


def test_keys_are_held_with_their_own_number_of_heads():
    """Known mistake: a cache sized with query heads under grouped-query attention."""
    cache = KVCache(num_layers=1)
    cache.layer(0).append(*[random(5, shape=(2, 1, None, 4))] * 2)
    assert cache.layer(0).keys.shape == cache.layer(0).values.shape == (2, 1, 5, 4)


def test_values_may_have_another_width():
    layer = LayerCache()
    for _ in range(2):
        layer.append(random(3), random(3, shape=(B, G, None, 7)))
    assert layer.keys.shape == (B, G, 6, K)
    assert layer.values.shape == (B, G, 6, 7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_type_of_numbers_is_kept(dtype):
    layer = LayerCache()
    keys, _ = layer.append(random(3).to(dtype), random(3).to(dtype))
    assert keys.dtype == dtype


def test_a_fresh_cache_is_empty():
    cache = KVCache(num_layers=3)
    assert cache.length == 0
    assert cache.num_layers == 3
    assert cache.layer(2).keys is None
    assert cache.layer(2).values is None


def test_a_prompt_read_in_inference_mode_can_go_on_outside_it():
    model, idx, cache = TinyModel(), ids(1, 5), KVCache(2)
    with torch.inference_mode():
        model(idx[:, :4], cache=cache)
    assert close(model(idx[:, 4:], cache=cache), model(idx)[:, 4:])


def test_representation_says_how_full_it_is():
    cache = KVCache(num_layers=2, max_length=9)
    cache.layer(0).append(random(3), random(3))
    assert "num_layers=2" in repr(cache)
    assert "0 to 3" in repr(cache)


# --- limits and bad input: one clear sentence -----------------------------------------


def test_max_length_is_the_last_token_that_fits():
    """Known mistake: a guard that reads the wrong axis and never fires."""
    cache = KVCache(num_layers=2, max_length=5)
    cache.layer(0).append(random(3), random(3))
    cache.layer(0).append(random(2), random(2))
    with pytest.raises(
        ValueError, match="holds 5 tokens and 1 more .* max_length of 5"
    ):
        cache.layer(0).append(random(1), random(1))
    assert cache.layer(0).length == 5
    with pytest.raises(ValueError, match="holds 0 tokens and 6 more"):
        cache.layer(1).append(random(6), random(6))
    assert cache.layer(1).length == 0


def test_room_never_grows_beyond_max_length():
    layer = LayerCache(max_length=3)
    keys, _ = layer.append(random(2), random(2))
    assert keys.untyped_storage().nbytes() == B * G * 3 * K * 4


def test_a_model_is_stopped_at_max_length():
    model, cache = TinyModel(), KVCache(num_layers=2, max_length=6)
    with pytest.raises(ValueError, match="max_length of 6"):
        greedy(model, ids(1, 3), 10, cache)
    assert cache.length == 6  # the first layer refused: no layer is ahead


def test_an_interrupted_pass_is_noticed():
    """A reader who stops a cell halfway must not go on with layers out of step."""
    model, cache = TinyModel(), KVCache(num_layers=2)
    model(ids(1, 4), cache=cache)
    cache.layer(0).append(*[random(1, shape=(1, 2, None, 4)).double()] * 2)
    with pytest.raises(RuntimeError, match=r"between 4 and 5 tokens.*reset\(\)"):
        model(ids(1, 1), cache=cache)
    cache.reset()
    assert close(model(ids(1, 4), cache=cache), model(ids(1, 4)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_layers": 0}, "num_layers is 0"),
        ({"num_layers": 2.0}, "num_layers is 2.0"),
        ({"num_layers": True}, "num_layers is True"),
        ({"num_layers": 2, "max_length": 0}, "max_length is 0"),
    ],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        KVCache(**arguments)


@pytest.mark.parametrize(
    ("keys", "values", "message"),
    [
        (random(3)[0], random(3)[0], "both must be"),
        (random(3), random(2), "do not belong together"),
        (random(1, shape=(1, G, None, K)),) * 2
        + (r"holds \(2, 3, T, 4\): call reset",),
        (random(1, shape=(B, 1, None, K)),) * 2 + ("New keys have shape",),
        (random(1, shape=(B, G, None, 5)),) * 2 + ("New keys have shape",),
        (random(1), random(1, shape=(B, G, None, 5)), "New values have shape"),
        (random(1).double(), random(1).double(), "New keys are torch.float64"),
        (random(1).to("meta"), random(1).to("meta"), "on meta, but"),
        (random(1).requires_grad_(), random(1), r"torch\.no_grad\(\)"),
        (random(1), random(1).requires_grad_(), r"torch\.no_grad\(\)"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(keys, values, message):
    layer = LayerCache()
    layer.append(random(2), random(2))
    before = [part.clone() for part in parts(layer)]
    with pytest.raises(ValueError, match=message):
        layer.append(keys, values)
    assert layer.length == 2
    assert all(map(torch.equal, parts(layer), before))
