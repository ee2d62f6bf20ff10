"""Sparse attention proved: k >= S is full, cached = uncached, DeepSeek-V3.2's layer.

Bounds: float32 within 1e-5, float64 within 1e-10. Indexers have 16 heads here: with few
of them scores of exactly 0 tie, and which of two is picked depends on the length.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from course.testing.model_contract import (
    ModelContract,
    close,
    seeds,
)
from dsa import (
    LightningIndexer,
    SparseAttention,
    hide_others,
    indexer_loss,
    numbers_read,
    pick_keys,
    recall,
    sparse_cache_bytes,
    summed_weights,
)
from gpt import generate_text_simple
from gqa import GroupedQueryAttention
from kv_cache import KVCache, kv_cache_bytes
from llama import LlamaModel, apply_rope
from mla import MultiHeadLatentAttention, deepseek_weights
from small_models import TINY_LLAMA
from variants import with_parts

some = settings(max_examples=30, deadline=None)
few = settings(max_examples=6, deadline=None)
sizes = st.integers(min_value=1, max_value=3)
dtypes = st.sampled_from([torch.float32, torch.float64])


# --- what the tests are made of -------------------------------------------------------


@st.composite
def layers(draw):
    """A layer of drawn sizes and a batch for it."""
    G, R, K = draw(sizes), draw(sizes), 2 * draw(sizes)
    D, B, T = draw(st.integers(2, 6)), draw(sizes), draw(st.integers(1, 9))
    dtype, k = draw(dtypes), draw(st.integers(1, 9))
    torch.manual_seed(draw(seeds))
    layer = SparseAttention(
        D,
        num_heads=G * R,
        num_kv_groups=G,
        head_dim=K,
        top_k=k,
        index_heads=16,
        index_dim=K + draw(st.sampled_from([0, 2, 5])),
    )
    return layer.to(dtype).eval(), torch.randn(B, T, D, dtype=dtype)


@st.composite
def padded(draw):
    """A layer, a batch, and any mask: left, right, holes, only padding."""
    layer, x = draw(layers())
    B, T, _ = x.shape
    row = st.lists(st.booleans(), min_size=T, max_size=T)
    return layer, x, torch.tensor(draw(st.lists(row, min_size=B, max_size=B)))


def make(seed=0, top_k=3, **changes):
    torch.manual_seed(seed)
    widths = {"num_heads": 4, "num_kv_groups": 2, "head_dim": 4, "index_heads": 16}
    layer = SparseAttention(6, **(widths | changes), top_k=top_k)
    return layer.double().eval()


def random(*shape, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def rotation(start, end, width, dtype=torch.float64):
    """A rotation for positions from `start` on, any angles."""
    speeds = torch.linspace(0.3, 1.1, width // 2, dtype=torch.float64)
    angles = torch.arange(start, end)[:, None] * speeds
    angles = torch.cat((angles, angles), dim=-1)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return lambda heads: apply_rope(heads, cos, sin)


def score(indexer, x, t, s, rotate):
    """Equation 1 of the paper, for one query and one token, head by head."""
    N, I = indexer.num_heads, indexer.head_dim  # noqa: E741
    key = F.layer_norm(
        indexer.W_key(x[s]), (I,), indexer.key_norm.weight, indexer.key_norm.bias, 1e-6
    )
    total = 0.0
    for head in range(N):
        query = (indexer.W_query.weight @ x[t])[head * I : (head + 1) * I]
        fit = float(rotate(query, t) @ rotate(key, s)) / I**0.5
        total += float(indexer.W_head.weight[head] @ x[t]) / N**0.5 * max(fit, 0.0)
    return total


# --- against what is known ------------------------------------------------------------


@few
@given(layers())
@torch.no_grad()
def test_scores_are_those_of_the_paper(case):
    """Known mistakes: ReLU after the sum over heads; one query for all heads; factors
    of the heads left out; the whole head turned.
    """
    layer, x = case
    indexer, (B, T, _) = layer.indexer, x.shape
    P = indexer.rope_dim
    turn = rotation(0, T, P, x.dtype)

    def rotate_one(vector, position):
        all_places = vector[:P].expand(1, 1, T, P)
        return torch.cat((turn(all_places)[0, 0, position], vector[P:]))

    keys = indexer.make_keys(x, turn)
    found = indexer(x, keys, turn)
    for b in range(B):
        expected = [
            [score(indexer, x[b], t, s, rotate_one) for s in range(T)] for t in range(T)
        ]
        expected = torch.tensor(expected, dtype=x.dtype)
        assert torch.allclose(found[b], expected, rtol=0, atol=1e-5)


@some
@given(padded(), st.booleans())
@torch.no_grad()
def test_attention_sees_the_best_k_of_those_it_may_see(case, masked):
    """Against plain loops. Known mistakes: padding or later tokens picked; the softmax
    over all tokens, of which the picked are kept; the lowest scores picked.
    """
    layer, x, real = case
    real = real if masked else torch.ones_like(real)
    B, T, _ = x.shape
    H, G, K = layer.num_heads, layer.num_kv_groups, layer.head_dim
    turn = rotation(0, T, K, x.dtype)
    queries, keys, values = layer.project(x, turn)
    indexer = layer.indexer
    scores = indexer(x, indexer.make_keys(x, turn), turn)
    context = torch.zeros(B, T, H, K, dtype=x.dtype)
    for b in range(B):
        for t in range(T):
            seen = [s for s in range(t + 1) if real[b, s]]
            seen = sorted(seen, key=lambda s: -scores[b, t, s])[: layer.top_k]
            for h in range(H if seen else 0):
                fits = keys[b, h // (H // G), seen] @ queries[b, h, t] / K**0.5
                weights = torch.softmax(fits, dim=0)
                context[b, t, h] = weights @ values[b, h // (H // G), seen]
    expected = layer.out_proj(context.flatten(2))
    assert close(layer(x, real if masked else None, rotate=turn), expected)


@torch.no_grad()
@pytest.mark.parametrize("heads", [8, 32])
@pytest.mark.parametrize("k", [1, 3, 7, 12])
def test_picks_are_those_of_deepseek_v32(heads, k):
    """Their whole layer, with a latent of keys and values behind the indexer, too."""
    from transformers.models.deepseek_v32 import modeling_deepseek_v32 as v32

    D, H, C, Q, K, P, T = 24, 4, 10, 12, 8, 4, 12
    config = v32.DeepseekV32Config(
        hidden_size=D,
        num_attention_heads=H,
        num_key_value_heads=H,
        kv_lora_rank=C,
        q_lora_rank=Q,
        qk_nope_head_dim=K,
        qk_rope_head_dim=P,
        v_head_dim=K,
        index_n_heads=heads,
        index_head_dim=6,
        index_topk=k,
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    theirs = v32.DeepseekV32Attention(config, layer_idx=0).eval()
    weights = theirs.state_dict()
    names = {"wq_b": "W_query", "wk": "W_key", "k_norm": "key_norm"}
    names["weights_proj"] = "W_head"
    of_indexer = {n: weights.pop(n) for n in list(weights) if "indexer" in n}
    indexer = LightningIndexer(D, heads, 6, rope_dim=P, query_dim=Q).eval()
    for theirs_name, ours_name in names.items():
        for part in ("weight", "bias"):
            value = of_indexer.pop(f"indexer.{theirs_name}.{part}", None)
            if value is not None:
                getattr(getattr(indexer, ours_name), part).copy_(value)
    assert not of_indexer
    latent = MultiHeadLatentAttention(
        D, num_heads=H, latent_dim=C, head_dim=K, rope_dim=P, query_latent_dim=Q
    ).eval()
    latent.load_state_dict(deepseek_weights(latent, weights))

    x = random(2, T, D, dtype=torch.float32)
    cos, sin = v32.DeepseekV32RotaryEmbedding(config)(x, torch.arange(T)[None])
    visible = torch.ones(T, T, dtype=torch.bool).tril()[None, None].expand(2, 1, T, T)
    expected, _ = theirs(x, (cos, sin), attention_mask=visible)
    q_resid = theirs.q_a_layernorm(theirs.q_a_proj(x))
    their_picks = theirs.indexer(x, q_resid, (cos, sin), visible[:, 0], None).long()

    def rotate(heads):
        return apply_rope(heads, cos[0], sin[0])

    scores = indexer(x, indexer.make_keys(x, rotate), rotate, q_resid)
    hidden = ~visible[0, 0]
    unseen = hide_others(pick_keys(scores, hidden, k), hidden, T)
    assert torch.equal(unseen, hide_others(their_picks, hidden, T))
    queries, entries = latent.project_queries(x, rotate), latent.compress(x, rotate)
    context = latent.read(queries, entries[:, 0], unseen[:, None])
    assert close(latent.out_proj(context), expected)


def test_few_heads_tie_at_nothing():
    """Why at least 8: with 1 or 2 heads many scores are exactly 0."""
    x, zeros = random(1, 40, 6), {}
    for heads in (1, 2, 8, 16):
        torch.manual_seed(0)
        indexer = LightningIndexer(6, heads, 4).double()
        scores = indexer(x, indexer.make_keys(x))
        zeros[heads] = (scores == 0).double().mean().item()
    assert zeros[1] > 0.35
    assert zeros[2] > 0.12
    assert zeros[8] < 0.02
    assert zeros[16] < 1e-3


# --- identities -----------------------------------------------------------------------


@some
@given(padded(), st.booleans(), st.booleans())
@torch.no_grad()
def test_as_many_picks_as_tokens_is_full_attention(case, masked, cached):
    layer, x, real = case
    T, K = x.shape[1], layer.head_dim
    layer.top_k = T
    dense = GroupedQueryAttention(
        x.shape[2],
        num_heads=layer.num_heads,
        num_kv_groups=layer.num_kv_groups,
        head_dim=K,
    )
    dense = dense.to(x.dtype).eval()
    dense.load_state_dict(layer.state_dict(), strict=False)
    turn, real = rotation(0, T, K, x.dtype), real if masked else None
    cache = KVCache(1).layer(0) if cached else None
    assert close(layer(x, real, cache, turn), dense(x, real, rotate=turn))


@some
@given(padded(), st.booleans(), st.data())
@torch.no_grad()
def test_cached_equals_uncached_for_any_chunks(case, masked, data):
    """Known mistakes: indexer keys not cached, or turned again; a row of the picked
    keys mixed up with one of the values; padding picked by a single token.
    """
    layer, x, real = case
    T, K = x.shape[1], layer.head_dim
    cuts = data.draw(st.sets(st.integers(1, T - 1))) if T > 1 else set()
    cache, parts, start = KVCache(1).layer(0), [], 0
    for end in [*sorted(cuts), T]:
        seen = real[:, :end] if masked else None
        turn = rotation(start, end, K, x.dtype)
        parts.append(layer(x[:, start:end], seen, cache, turn))
        start = end
    turn = rotation(0, T, K, x.dtype)
    whole = layer(x, real if masked else None, rotate=turn)
    assert close(torch.cat(parts, dim=1), whole)


@some
@given(layers(), st.data())
@torch.no_grad()
def test_future_token_never_changes_a_past_output(case, data):
    """Known mistake: the best k of all tokens, of which later ones are then hidden."""
    layer, x = case
    t = data.draw(st.integers(0, x.shape[1] - 1))
    changed = x.clone()
    changed[:, t:] += 3.0
    assert close(layer(changed)[:, :t], layer(x)[:, :t])


@some
@given(padded())
@torch.no_grad()
def test_padding_never_changes_an_answer(case):
    layer, x, real = case
    changed = torch.where(real[..., None], x, 7 * torch.randn_like(x))
    assert close(layer(changed, real)[real], layer(x, real)[real])


@some
@given(sizes, sizes, st.integers(1, 9), st.booleans())
@torch.no_grad()
def test_the_formula_gives_the_bytes_of_the_cache(L, B, S, wide):
    """Known mistakes: indexer keys forgotten, or counted for each head."""
    dtype = torch.float64 if wide else torch.float32
    layer, cache = make(index_dim=7).to(dtype), KVCache(L, room=S)
    for i in range(L):
        layer(random(B, S, 6, dtype=dtype), cache=cache.layer(i))
    assert cache.nbytes == sparse_cache_bytes(L, B, 2, S, 4, 7, dtype)
    assert cache.nbytes > kv_cache_bytes(L, B, 2, S, 4, dtype)


@torch.no_grad()
def test_a_token_reads_the_picked_rows_alone():
    """Known mistake: all keys multiplied, and most of the products thrown away."""
    layer, cache = make(top_k=8, head_dim=64), KVCache(1, room=1024).layer(0)
    layer(random(1, 1023, 6), cache=cache)
    with torch.profiler.profile(profile_memory=True) as seen:
        layer(random(1, 1, 6), cache=cache)
    largest = max(event.self_cpu_memory_usage for event in seen.key_averages())
    assert largest < 1024 * 2 * 64 * 8  # the bytes of all keys of both groups
    assert numbers_read(1024, 8, 256, 16) == 1024 * 16 + 8 * 256
    assert numbers_read(8, 8, 256, 16) == 8 * 256


# --- learning -------------------------------------------------------------------------


@some
@given(padded())
def test_the_target_is_the_mean_over_heads(case):
    layer, x, real = case
    T = x.shape[1]
    queries, keys, _ = layer.project(x)
    hidden = ~(torch.ones(T, T, dtype=torch.bool).tril() & real[:, None])
    found = summed_weights(queries, keys, hidden)
    assert not found.requires_grad
    keys = keys.repeat_interleave(layer.num_heads // layer.num_kv_groups, dim=1)
    scores = queries @ keys.transpose(2, 3) / layer.head_dim**0.5
    scores = scores.masked_fill(hidden[:, None], -torch.inf)
    weights = torch.softmax(scores, dim=-1).nan_to_num(0.0)  # NaN: nothing seen
    assert torch.allclose(found, weights.mean(dim=1), atol=1e-6)


def test_the_loss_is_the_divergence():
    """Known mistakes: the two exchanged; the sum over tokens in place of the mean."""
    scores, weights = random(2, 3, 5), torch.softmax(random(2, 3, 5, seed=2), dim=-1)
    found = indexer_loss(scores, weights, None)
    expected = F.kl_div(scores.log_softmax(-1), weights, reduction="sum") / 6
    assert torch.allclose(found, expected)
    assert abs(indexer_loss(weights.log() + 3, weights, None).item()) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rows_without_weight_cost_nothing(dtype):
    """Known mistake: NaN from 0 times minus infinity."""
    hidden = torch.ones(2, 3, 3, dtype=torch.bool).triu(1)
    hidden[0] = True
    weights = torch.softmax(random(2, 3, 3), dim=-1).masked_fill(hidden, 0.0)
    weights = (weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)).to(dtype)
    scores = random(2, 3, 3, seed=3).to(dtype).requires_grad_()
    loss = indexer_loss(scores, weights, hidden)
    loss.backward()
    alone = indexer_loss(scores[1:], weights[1:], hidden[1:])
    assert torch.allclose(loss, alone, rtol=0.02)
    assert scores.grad.isfinite().all()
    assert not scores.grad[0].any()


@pytest.mark.parametrize("top_k", [3, 99])
def test_the_two_losses_do_not_touch_each_other(top_k):
    """Known mistakes: the model is moved to be easy to predict; the indexer gets no
    gradient at all through the picks; the loss changes the output.
    """
    layer, x = make(top_k=top_k), random(2, 8, 6).requires_grad_()
    out = layer(x)
    with torch.no_grad():
        assert close(layer(x), out)
    out.square().sum().backward()
    both = {name: part.grad.clone() for name, part in layer.named_parameters()}
    of_x = x.grad.clone()
    layer.zero_grad()
    x.grad = None
    (0 * layer(x)).sum().backward()  # nothing but the indexer's own loss
    for name, part in layer.named_parameters():
        if "indexer" in name:
            assert close(part.grad, both[name])
            assert part.grad.any()
        else:
            assert not part.grad.any()
    assert not x.grad.any()
    assert of_x.any()


def test_several_batches_add_up_to_one():
    """Known mistake: the indexer's gradients do not shrink with the divided loss."""
    layer, x = make(), random(4, 8, 6)
    layer(x).square().mean().backward()
    whole = {name: part.grad.clone() for name, part in layer.named_parameters()}
    layer.zero_grad()
    layer.loss_scale = 1 / 4
    for text in x.split(1):
        (layer(text).square().mean() / 4).backward()
    for name, part in layer.named_parameters():
        assert close(part.grad, whole[name])


def test_the_loss_sees_what_attention_sees():
    """All tokens in the warm-up, the picked ones afterwards."""
    layer, x = make(top_k=99), random(1, 8, 6)
    layer(x)
    hidden = torch.ones(8, 8, dtype=torch.bool).triu(1)
    queries, keys, _ = layer.project(x)
    scores = layer.indexer(x, layer.indexer.make_keys(x))
    dense = indexer_loss(scores, summed_weights(queries, keys, hidden), hidden)
    assert close(layer.last_loss, dense.detach())
    layer.top_k = 3
    layer(x)
    picked = hide_others(pick_keys(scores, hidden, 3), hidden, 8)
    sparse = indexer_loss(scores, summed_weights(queries, keys, picked), picked)
    assert close(layer.last_loss, sparse.detach())
    assert abs(dense - sparse) > 1e-3


def test_an_indexer_learns_to_find_the_keys():
    """Dense warm-up on one batch; recall of the heaviest keys before and after."""
    layer, x = make(top_k=99), random(4, 24, 6)
    optimizer = torch.optim.Adam(layer.indexer.parameters(), lr=0.02)
    hidden = torch.ones(24, 24, dtype=torch.bool).triu(1)
    queries, keys, _ = layer.project(x)
    weights = summed_weights(3 * queries, keys, hidden)
    found = []
    for _ in range(80):
        optimizer.zero_grad()
        scores = layer.indexer(x, layer.indexer.make_keys(x))
        found.append(recall(pick_keys(scores, hidden, 4), weights)[:, 8:].mean())
        indexer_loss(scores, weights, hidden).backward()
        optimizer.step()
    assert found[-1] > found[0] + 0.2


def test_recall():
    weights = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    assert recall(torch.tensor([[3, 1]]), weights).item() == 1
    assert recall(torch.tensor([[0, 1]]), weights).item() == 0.5
    assert recall(torch.tensor([[0, 2]]), weights).item() == 0


# --- refusals -------------------------------------------------------------------------


def test_impossible_sizes_are_refused():
    for name in ("top_k", "index_heads", "index_dim"):
        for size in (0, -1, 2.5):
            with pytest.raises(ValueError, match="give a whole"):
                make(**{name: size})


def test_an_indexer_narrower_than_what_is_turned_is_refused():
    with pytest.raises(ValueError, match="turns 4 numbers of a head"):
        make(index_dim=2)


@torch.no_grad()
def test_a_wrong_mask_is_refused_and_the_cache_stays():
    layer, cache = make(), KVCache(1).layer(0)
    layer(random(1, 2, 6), cache=cache)
    with pytest.raises(ValueError, match=r"must be \(1, 5\)"):
        layer(random(1, 3, 6), torch.ones(1, 3).bool(), cache)
    assert cache.length == 2


# --- in a model -----------------------------------------------------------------------


class PickingModel(LlamaModel):
    """A Llama whose attention picks three tokens."""

    def __init__(self, cfg):
        super().__init__(cfg)
        with_parts(
            self,
            attention=lambda layer: SparseAttention(
                self.cfg["emb_dim"],
                num_heads=self.cfg["n_heads"],
                num_kv_groups=self.cfg["n_kv_groups"],
                head_dim=self.cfg["head_dim"],
                top_k=3,
                index_heads=16,
                index_dim=self.cfg["head_dim"] + 3,
            ),
        )


def configs():
    return st.builds(
        lambda G, R, K, D, L, tied: {
            **TINY_LLAMA,
            "n_heads": G * R,
            "n_kv_groups": G,
            "head_dim": 2 * K,
            "emb_dim": D,
            "n_layers": L,
            "tie_weights": tied,
        },
        st.integers(1, 2),
        st.integers(1, 2),
        st.integers(1, 2),
        st.integers(2, 9),
        st.integers(1, 2),
        st.booleans(),
    )


class TestPickingModel(ModelContract):
    tiny = TINY_LLAMA
    configs = staticmethod(configs)
    make_model = PickingModel
    make_cache = staticmethod(lambda cfg: KVCache(cfg["n_layers"]))
    generate = staticmethod(generate_text_simple)

    def test_a_token_changes_its_own_logits_and_those_of_all_later_places(self):
        """Not here: later places need not pick it. Its own place sees the change."""
        model, idx = self.model(), self.ids(1, 10)
        with torch.no_grad():
            out = model(idx)
            for t in range(10):
                changed = idx.clone()
                changed[:, t] = (changed[:, t] + 1) % 13
                moved = (model(changed) - out).abs().amax(dim=-1)[0]
                assert moved[t] > 1e-9
                assert (moved[:t] < 1e-10).all()
