"""Cached equals uncached at every step, for GPT and for Llama, whatever is done.

In float64, against a pass over the whole text. The references for a rolling window are
the same models with the older tokens masked, without a cache.
"""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt import GPTModel, generate_text_simple
from kv_cache import (
    KVCache,
    LayerCache,
    PromptCache,
    kv_cache_bytes,
    read_in_chunks,
    shared_start,
)
from small_models import small_configs, small_model

CONTEXT, V = 32, 31
CONFIGS = small_configs(CONTEXT, V)
MODELS = {kind: small_model(cfg) for kind, cfg in CONFIGS.items()}
some = settings(max_examples=25, deadline=None)
kinds = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def ids(*shape, seed=0):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def close(actual, expected):
    assert actual.shape == expected.shape
    return torch.allclose(actual, expected, rtol=0, atol=1e-10)


def step_by_step(model, idx, cache):
    """Logits at every token, each read by itself."""
    rows = [model(idx[:, t : t + 1], cache=cache) for t in range(idx.shape[1])]
    return torch.cat(rows, dim=1)


def seeing(model, may_see):
    """The model with a mask of our own: may_see is a function of (query, key)."""
    changed = copy.deepcopy(model)
    places = torch.arange(CONTEXT)
    hidden = ~may_see(places[:, None], places) | (places > places[:, None])

    def hidden_keys(T, S, attention_mask, device):
        return hidden[S - T : S, :S]

    for block in changed.trf_blocks:
        if isinstance(changed, GPTModel):
            block.att.mask = hidden
        else:
            block.att.hidden_keys = hidden_keys
    return changed


def windowed(model, W, sinks=0):
    """The model with all tokens hidden that are before the window, sinks aside."""
    return seeing(model, lambda query, key: (key > query - W + sinks) | (key < sinks))


# --- every chunking, ragged, reset, second call ---------------------------------------


@kinds
def test_every_chunking_equals_one_pass(model):
    """Known mistakes: a cached step with a 1 x 1 mask; the causal mask aligned to the
    top left when queries are fewer than keys; a square mask misapplied to a
    continuation; an offset that grows by the total length at each step.
    """
    idx = ids(2, 6)
    expected = model(idx)
    for cuts in itertools.product((False, True), repeat=5):
        ends = [t + 1 for t, cut in enumerate(cuts) if cut] + [6]
        cache, rows, start = KVCache(2), [], 0
        for end in ends:
            assert cache.length == start  # offsets are 0, 1, ... n - 1
            rows.append(model(idx[:, start:end], cache=cache))
            start = end
        assert close(torch.cat(rows, dim=1), expected), ends


@kinds
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 5, 11, 12, 99])
def test_reading_in_chunks_equals_one_pass(model, chunk_size):
    idx, cache = ids(2, 12), KVCache(2)
    assert close(read_in_chunks(model, idx, cache, chunk_size), model(idx)[:, -1])
    more = ids(2, 5, seed=1)  # after what is there
    expected = model(torch.cat((idx, more), dim=1))[:, -1]
    assert close(read_in_chunks(model, more, cache, chunk_size), expected)


@kinds
@pytest.mark.parametrize("chunk_size", [1, 2, 7])
def test_ragged_prompts_in_chunks_equal_each_alone(model, chunk_size):
    """Known mistake: batched ragged prompts with a wrong mask or wrong positions."""
    lengths, longest = [3, 7, 5], 7
    prompts = [ids(1, n, seed=n) for n in lengths]
    idx = torch.zeros(3, longest, dtype=torch.long)
    real = torch.zeros(3, longest, dtype=torch.bool)
    for b, prompt in enumerate(prompts):
        idx[b, longest - lengths[b] :], real[b, longest - lengths[b] :] = prompt, True
    cache = KVCache(2)
    logits = read_in_chunks(model, idx, cache, chunk_size, real)
    for _ in range(6):
        chosen = logits.argmax(dim=-1, keepdim=True)
        for b, text in enumerate(prompts):
            assert close(logits[b : b + 1], model(text)[:, -1])
            prompts[b] = torch.cat((text, chosen[b : b + 1]), dim=1)
        real = torch.cat((real, torch.ones_like(real[:, :1])), dim=1)
        logits = model(chosen, real, cache)[:, -1]


@kinds
@pytest.mark.parametrize("window", [None, 6])
def test_a_second_text_equals_a_fresh_run(model, window):
    """Known mistakes: a cache cleared but not rebuilt, or leaking between calls; the
    pointer of a rolling window, or the position, not reset.
    """
    cache = KVCache(2, window=window)
    step_by_step(model, ids(2, 15), cache)
    cache.reset()
    second = ids(3, 14, seed=1)
    fresh = step_by_step(model, second, KVCache(2, window=window))
    assert torch.equal(step_by_step(model, second, cache), fresh)


@kinds
def test_a_full_cache_says_so_and_loses_nothing(model):
    """Known mistake: tokens lost in silence, or a guard that never fires."""
    idx, cache = ids(2, 10), KVCache(2, max_length=8)
    model(idx[:, :7], cache=cache)
    before = [cache.layer(i).keys.clone() for i in range(2)]
    with pytest.raises(
        ValueError, match="holds 7 tokens and 2 more .* max_length of 8"
    ):
        model(idx[:, 7:9], cache=cache)
    assert cache.length == 7
    assert all(torch.equal(cache.layer(i).keys, before[i]) for i in range(2))
    assert close(model(idx[:, 7:8], cache=cache), model(idx[:, :8])[:, -1:])


@kinds
def test_the_end_of_the_context_says_so_and_loses_nothing(model):
    """Known mistake: the bound checked on the chunk, not on offset and chunk."""
    idx, cache = ids(1, CONTEXT), KVCache(2)
    model(idx, cache=cache)
    with pytest.raises(
        ValueError, match=rf"33 tokens \({CONTEXT} of them in the cache"
    ):
        model(idx[:, :1], cache=cache)
    assert cache.length == CONTEXT


# --- copies, beams, going back --------------------------------------------------------


@kinds
def test_one_prefix_for_many_texts(model):
    prefix, ways = ids(1, 6), ids(4, 5, seed=1)
    cache = KVCache(2)
    model(prefix, cache=cache)
    many = cache.select([0] * 4)
    whole = torch.cat((prefix.expand(4, -1), ways), dim=1)
    assert close(step_by_step(model, ways, many), model(whole)[:, 6:])
    assert cache.length == 6  # the prefix is still there, for others
    assert close(model(ways[:1], cache=cache), model(whole[:1])[:, 6:])


@kinds
@given(data=st.data())
@some
def test_reordered_as_in_beam_search(model, data):
    """Rows go on from any rows of the step before, some from the same one."""
    texts, cache = ids(3, 4), KVCache(2)
    model(texts, cache=cache)
    for _ in range(3):
        rows = data.draw(
            st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=4)
        )
        new = torch.tensor(
            data.draw(
                st.lists(st.integers(0, V - 1), min_size=len(rows), max_size=len(rows))
            )
        )[:, None]
        texts = torch.cat((texts[rows], new), dim=1)
        cache = cache.select(torch.tensor(rows))
        assert close(model(new, cache=cache), model(texts)[:, -1:])


def test_rows_may_be_any_sequence_or_a_mask():
    """Known mistake: a tuple indexes several dimensions, without an error."""
    layer = LayerCache()
    keys = torch.randn(3, 2, 5, 4)
    layer.append(keys, keys)
    for rows in ((2, 0, 0), range(2), torch.tensor([1]), [True, False, True], (1,)):
        expected = keys[torch.tensor(list(rows))]
        assert torch.equal(layer.select(rows).keys, expected), rows
    for rows in (0, [[0, 1]]):
        with pytest.raises(ValueError, match="give a list of row numbers"):
            layer.select(rows)


def test_what_cannot_be_read_is_said():
    model, idx = MODELS["GPT"], ids(1, 5)
    for size in (0, -1, 2.0):
        with pytest.raises(ValueError, match="chunk_size is"):
            read_in_chunks(model, idx, KVCache(2), size)
    with pytest.raises(ValueError, match="no token at all"):
        read_in_chunks(model, idx[:, :0], KVCache(2), 2)
    for text in (idx, idx[0, :0]):
        with pytest.raises(ValueError, match="ids has shape"):
            PromptCache(model).read(text)
    with pytest.raises(ValueError, match="1 entries, but there are 2 layers"):
        KVCache(2, window=[4])


def test_selected_rows_share_no_memory():
    model, cache = MODELS["GPT"], KVCache(2)
    model(ids(1, 3), cache=cache)
    with torch.inference_mode():
        other = cache.select([0])
    before = cache.layer(0).keys.clone()
    model(ids(1, 3, seed=1), cache=other)
    assert torch.equal(cache.layer(0).keys, before)
    assert other.select([0, 0]).layer(1).keys.shape == (2, 3, 6, 4)
    assert KVCache(2).select([0]).length == 0


@kinds
@given(data=st.data())
@some
def test_going_back_and_on_equals_the_text_that_remains(model, data):
    text, cache = ids(1, 0), KVCache(2)
    for seed in range(4):
        kept = data.draw(st.integers(0, text.shape[1]))
        cache.truncate(kept)
        new = ids(1, data.draw(st.integers(1, 6)), seed=seed)
        text = torch.cat((text[:, :kept], new), dim=1)
        assert close(model(new, cache=cache), model(text)[:, kept:])


def test_going_back_repairs_an_interrupted_pass():
    model, idx, cache = MODELS["Llama"], ids(1, 6), KVCache(2)
    model(idx[:, :4], cache=cache)
    cache.layer(0).append(*[torch.zeros(1, 2, 1, 4).double()] * 2)
    with pytest.raises(RuntimeError, match="between 4 and 5"):
        model(idx[:, 4:], cache=cache)
    cache.truncate(4)
    assert close(model(idx[:, 4:], cache=cache), model(idx)[:, 4:])


def test_going_back_further_than_possible_is_refused():
    cache, model = KVCache(2, window=4), MODELS["GPT"]
    model(ids(1, 4), cache=cache)
    with pytest.raises(ValueError, match="read 4 tokens and cannot be cut to 5"):
        cache.truncate(5)
    cache.truncate(3)
    step_by_step(model, ids(1, 3), cache)
    with pytest.raises(ValueError, match="window of 4, .* overwritten"):
        cache.truncate(5)
    assert cache.length == 6
    cache.truncate(6)  # nothing to forget


# --- the rolling window ---------------------------------------------------------------


@kinds
@pytest.mark.parametrize("window", [1, 2, 5, CONTEXT - 1, CONTEXT, CONTEXT + 1])
def test_rolling_window_equals_the_mask_at_every_step(model, window):
    """Known mistakes: a window that decoding ignores; window off by one; gibberish only
    after many tokens (here up to 32 windows); a window as large as the context.
    """
    idx = ids(2, CONTEXT)
    cache = KVCache(2, window=window)
    expected = windowed(model, window)(idx)
    assert expected.isfinite().all()
    assert close(step_by_step(model, idx, cache), expected)
    assert cache.layer(1).keys.shape[2] == min(window, CONTEXT)


@pytest.mark.parametrize("window", [1, 3, 8])
def test_each_token_sees_exactly_the_window(window):
    """Known mistake: w + 1 keys, or w - 1."""
    layer = KVCache(1, window=window).layer(0)
    for t in range(20):
        marked = torch.full((1, 1, 1, 1), float(t))
        assert layer.length == min(t, window - 1)
        keys, _ = layer.append(marked, marked)
        seen = sorted(int(key) for key in keys.flatten())
        assert seen == list(range(max(0, t - window + 1), t + 1))


@kinds
@pytest.mark.parametrize("window", [1, 3, 5])
def test_chunks_of_any_size_through_a_window_that_the_model_masks(model, window):
    """Known mistakes: a cache cut to the window when a chunk arrives, so that its first
    token loses keys (window + chunk - 1 are needed); a prompt longer than the window.
    """
    idx, masked = ids(2, 4 * window + 6), windowed(model, window)
    expected = masked(idx)
    for chunk in range(1, 2 * window + 2):
        cache = KVCache(2, window=window, masked=True)
        rows = [masked(part, cache=cache) for part in idx.split(chunk, dim=1)]
        assert close(torch.cat(rows, dim=1), expected), chunk
        assert cache.length == idx.shape[1]


@kinds
@given(
    data=st.data(),
    window=st.integers(1, 9),
    room=st.none() | st.integers(1, 12),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@some
def test_a_masked_window_gives_what_a_full_cache_ends_with(
    model, data, window, room, dtype
):
    """What a layer gets back, whatever the chunks: the last tokens, in order."""
    sinks = data.draw(st.integers(0, window - 1))
    options = {"window": window, "sinks": sinks, "masked": True}
    layer, read = KVCache(1, room=room, **options).layer(0), 0
    for size in data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=6)):
        new = torch.arange(read, read + size, dtype=dtype)[None, None, :, None]
        seen = [*range(min(sinks, read))]
        seen += range(max(len(seen), read - (window - 1 - sinks)), read)
        assert layer.length == len(seen)
        keys, values = layer.append(new, -new)
        found = keys.flatten().long().tolist()
        expected = [*seen, *range(read, read + size)]
        if size == 1:  # in whatever order
            found, expected = sorted(found), sorted(expected)
        assert found == expected
        assert torch.equal(values, -keys)
        read += size
        assert layer.seen == read


@kinds
@pytest.mark.parametrize(("window", "sinks"), [(4, 1), (5, 4), (8, 3)])
def test_sinks_stay(model, window, sinks):
    idx = ids(2, 24)
    cache = KVCache(2, window=window, sinks=sinks)
    expected = windowed(model, window, sinks)(idx)
    assert close(step_by_step(model, idx, cache), expected)
    plain = step_by_step(model, idx, KVCache(2, window=window))
    assert (plain - expected).abs().max() > 1e-6


@kinds
def test_a_prompt_up_to_the_window_may_be_read_at_once(model):
    """Beyond it the later tokens would see too much: refused, and nothing is lost."""
    idx, expected = ids(1, 15), windowed(model, 6)(ids(1, 15))
    cache = KVCache(2, window=6)
    first = model(idx[:, :6], cache=cache)
    with pytest.raises(ValueError, match="beyond the window of 6.* masked=True"):
        model(idx[:, 6:8], cache=cache)
    assert cache.length == 6
    rest = step_by_step(model, idx[:, 6:], cache)
    assert close(torch.cat((first, rest), dim=1), expected)


@kinds
def test_padding_with_a_window_is_refused_and_nothing_is_lost(model):
    """Known mistake: two messages, each of which asked for what the other refused."""
    cache, real = KVCache(2, window=[4, None]), torch.ones(2, 7, dtype=torch.bool)
    model(ids(2, 7)[:, :4], cache=cache)
    for columns in (4, 5):
        with pytest.raises(ValueError, match="the columns of the mask do not roll"):
            model(ids(2, 7)[:, 4:5], real[:, :columns], cache)
    assert cache.length == 4
    with pytest.raises(ValueError, match="do not roll"):
        model(ids(1, 2), real[:1, :6], cache.select([0]))


@kinds
def test_the_end_of_the_context_is_told_where_a_window_could_not_follow(model):
    """Known mistake: the window was blamed, in the middle of the text."""
    idx, size = ids(1, 4), 10
    cache = KVCache(2, window=6)
    with pytest.raises(ValueError, match="go past context_size=10"):
        generate_text_simple(model, idx, 8, size, cache=cache)
    assert cache.length == 0
    text = generate_text_simple(model, idx, 7, size, cache=cache)
    assert text.shape == (1, 11)


@kinds
def test_rows_of_a_ragged_batch_are_selected_with_their_masks(model):
    """Two rows change places; the mask's rows must follow those of the cache."""
    idx, real = ids(2, 6), torch.ones(2, 6, dtype=torch.bool)
    real[1, :3] = False
    cache = KVCache(2)
    model(idx[:, :5], real[:, :5], cache)
    logits = model(idx[[1, 0], 5:], real[[1, 0]], cache.select([1, 0]))[:, -1]
    expected = torch.stack((model(idx[1:, 3:])[0, -1], model(idx[:1])[0, -1]))
    assert close(logits, expected)


@kinds
def test_each_layer_may_have_its_own_window(model):
    """As in models that mix sliding and full layers."""
    idx, cache = ids(1, 20), KVCache(2, window=[5, None])
    masked = windowed(model, 5)
    mixed = copy.deepcopy(model)
    mixed.trf_blocks[0] = masked.trf_blocks[0]
    assert close(step_by_step(model, idx, cache), mixed(idx))
    assert [cache.layer(i).keys.shape[2] for i in range(2)] == [5, 20]
    with pytest.raises(ValueError, match="1 entries, but"):
        KVCache(2, window=[5])


@pytest.mark.parametrize("options", [{"sinks": 3}, {"sinks": 4, "window": 4}])
def test_sinks_need_a_larger_window(options):
    with pytest.raises(ValueError, match="sinks="):
        KVCache(2, **options)


# --- bytes ----------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_by_formula_are_those_taken(model, dtype):
    """Known mistake: a cache sized with query heads under grouped queries."""
    small = copy.deepcopy(model).to(dtype)
    groups, K = (3, 4) if isinstance(model, GPTModel) else (2, 4)
    cache = KVCache(2, room=20)
    small(ids(3, 5), cache=cache)
    assert cache.nbytes == kv_cache_bytes(2, 3, groups, 20, K, dtype)
    rolling = KVCache(2, window=7)
    step_by_step(small, ids(3, 30), rolling)
    assert rolling.nbytes == kv_cache_bytes(2, 3, groups, 7, K, dtype)
    assert KVCache(2).nbytes == 0


def test_room_is_made_once():
    cache = KVCache(1, room=50)
    layer, part = cache.layer(0), torch.zeros(1, 1, 1, 1)
    places = set()
    for _ in range(50):
        places.add(layer.append(part, part)[0].data_ptr())
    assert len(places) == 1
    layer.append(part, part)  # one more, and it doubles
    assert cache.nbytes == 2 * 102 * 4


# --- a text that is known -------------------------------------------------------------


def test_only_what_is_new_is_read():
    model, read = copy.deepcopy(MODELS["GPT"]), []
    model.tok_emb.register_forward_hook(lambda _, args, out: read.append(out.shape[1]))
    reader, text = PromptCache(model), ids(1, 12)[0]
    other = torch.cat((text[:7], (text[7:] + 1) % V))
    for ids_now, new in (
        (text[:8], 8),
        (text, 4),
        (text, 1),  # known: the last is read again, for its logits
        (other, 5),
        (text[:7], 1),
        (text[:3], 1),
        ((text + 1) % V, 12),
    ):
        logits = reader.read(ids_now)
        assert close(logits, MODELS["GPT"](ids_now[None])[0, -new:])
        assert read.pop() == new
        assert reader.cache.length == len(ids_now)


@kinds
@given(data=st.data())
@some
def test_prompt_cache_equals_reading_anew(model, data):
    reader = PromptCache(model)
    for _ in range(4):
        text = torch.tensor(
            data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=12))
        )
        logits = reader.read(text)
        assert close(logits, model(text[None])[0, -len(logits) :])


def test_a_text_that_fails_leaves_the_prompt_cache_usable():
    model = MODELS["Llama"]
    reader, text = PromptCache(model), ids(1, 10)[0]
    reader.read(text)
    with pytest.raises(ValueError, match="knows the ids"):
        reader.read(torch.cat((text[:4], text[:3] + V)))
    assert close(reader.read(text)[-1], model(text[None])[0, -1])
    # Known mistake: what was kept after a failure was a view of the caller's ids.
    bad = torch.cat((text[:4], text[:3] + V))
    with pytest.raises(ValueError, match="knows the ids"):
        reader.read(bad)
    bad[:] = (text[:7] + 1) % V
    assert close(reader.read(bad)[-1], model(bad[None])[0, -1])


def test_a_caller_may_change_the_ids_afterwards():
    model = MODELS["GPT"]
    reader, text = PromptCache(model), ids(1, 6)[0]
    reader.read(text)
    text[2] = (text[2] + 1) % V
    assert close(reader.read(text)[-1], model(text[None])[0, -1])


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [([], [1], 0), ([1, 2, 3], [1, 2, 4], 2), ([1], [1, 5], 1), ([2, 1], [1, 1], 0)],
)
def test_shared_start(first, second, shared):
    assert shared_start(torch.tensor(first), torch.tensor(second)) == shared


@kinds
def test_generating_through_a_window_stays_within_it(model):
    """With chapter 4's own loop: a cache with a window is a cache."""
    prompt, masked = ids(2, 5), windowed(model, 6)
    cache = KVCache(2, window=6)
    text = generate_text_simple(model, prompt, 20, CONTEXT, cache=cache)
    assert torch.equal(text, generate_text_simple(masked, prompt, 20, CONTEXT))
