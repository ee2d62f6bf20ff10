"""Mixture of experts proved: dispatch = token by token, one expert = dense, references.

Bounds: float32 within 1e-5, float64 within 1e-10.
"""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from course.testing.model_contract import (
    BOUNDS,
    ModelContract,
    close,
    seeds,
)
from gpt import count_parameters, generate_text_simple
from kv_cache import KVCache
from llama import LlamaFeedForward, LlamaModel
from moe import (
    MixtureOfExperts,
    Routing,
    SigmoidRouter,
    SoftmaxRouter,
    dispatch,
    dispatch_by_token,
    expert_counts,
    keep_best_groups,
    load_balancing_loss,
    max_violation,
    moe_parameters,
    published_moe_weights,
    record_routing,
    sigmoid_routing,
    softmax_routing,
    train_experts,
)
from small_models import TINY_LLAMA
from variants import with_parts

some = settings(max_examples=30, deadline=None)
sizes = st.integers(min_value=1, max_value=4)
dtypes = st.sampled_from(list(BOUNDS))


# --- what the tests are made of -------------------------------------------------------


def random(*shape, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def make(seed=0, experts=5, top_k=2, shared_dim=0, kind=SoftmaxRouter, **router):
    torch.manual_seed(seed)
    router = kind(6, experts, top_k, **router)
    return MixtureOfExperts(6, 7, router, shared_dim).double().eval()


@st.composite
def layers(draw):
    """A layer of drawn sizes and a batch for it."""
    D, E = draw(sizes), draw(st.integers(1, 6))
    A, dtype = draw(st.integers(1, E)), draw(dtypes)
    torch.manual_seed(draw(seeds))
    if draw(st.booleans()):
        router = SoftmaxRouter(D, E, A, normalise=draw(st.booleans()))
    else:
        router = SigmoidRouter(D, E, A, scale=draw(st.sampled_from([1.0, 2.5])))
        router.selection_bias.normal_()
    layer = MixtureOfExperts(D, draw(sizes), router, shared_dim=draw(st.integers(0, 3)))
    x = torch.randn(draw(sizes), draw(st.integers(1, 9)), D, dtype=dtype)
    return layer.to(dtype).eval(), x


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors, allow_unused=True)


# --- dispatch -------------------------------------------------------------------------


@some
@given(layers(), seeds)
def test_dispatch_equals_token_by_token_in_values_and_gradients(case, seed):
    """Known mistakes: rows put back in the order of the experts; a weight given to
    another pair; a token that is written, not added, by its second expert.
    """
    layer, x = case
    rows = x.flatten(0, 1).requires_grad_()
    target = random(*rows.shape, seed=seed, dtype=rows.dtype)
    found = []
    for way in (dispatch, dispatch_by_token):
        _, chosen, weights = layer.router(rows)
        out = way(layer.experts, rows, chosen, weights)
        grads = gradients((out * target).sum(), rows, *layer.parameters())
        found.append((out, *grads))
    for one, other, name in zip(*found, range(10**6), strict=False):
        if other is None:  # an expert that no token met, one by one
            assert one is None or not one.any(), name
        else:
            assert close(one, other), name


def test_an_expert_without_tokens_works():
    """Known mistakes: NaN of an empty mean; no gradient, which distributed training
    waits for in vain; counts that end before the last expert.
    """
    layer, x = make(experts=4), random(1, 3, 6).requires_grad_()
    with torch.no_grad():  # experts 1 and 3 get nothing, whatever comes
        layer.router.scores.weight.zero_()
    chosen, weights = torch.tensor([[0, 2]] * 3), torch.full((3, 2), 0.5)
    out = dispatch(layer.experts, x[0], chosen, weights.double())
    right = (layer.experts[0](x[0]) + layer.experts[2](x[0])) / 2
    assert close(out, right)
    out.sum().backward()
    for number, expert in enumerate(layer.experts):
        for weight in expert.parameters():
            assert weight.grad.isfinite().all()
            assert weight.grad.any() == (number in (0, 2))
    assert x.grad.isfinite().all()


@some
@given(layers())
def test_equal_experts_are_one_dense_layer(case):
    """Whatever the router says: weights that add up to 1 change nothing then."""
    layer, x = case
    layer.shared = None
    for expert in layer.experts[1:]:
        expert.load_state_dict(layer.experts[0].state_dict())
    weights = layer.router(x.flatten(0, 1)).weights.sum(dim=-1).view(*x.shape[:2], 1)
    assert close(layer(x), weights * layer.experts[0](x))


@pytest.mark.parametrize("kind", [SoftmaxRouter, SigmoidRouter])
@pytest.mark.parametrize("dtype", list(BOUNDS))
def test_one_expert_is_the_dense_layer(kind, dtype):
    layer = make(experts=1, top_k=1, kind=kind).to(dtype)
    dense = LlamaFeedForward({"emb_dim": 6, "hidden_dim": 7}).to(dtype)
    dense.load_state_dict(layer.experts[0].state_dict())
    x = random(2, 5, 6, dtype=dtype)
    assert close(layer(x), dense(x))


@some
@given(layers(), seeds)
def test_experts_in_another_order_are_the_same_layer(case, seed):
    """Known mistake: the number of an expert taken for its place in the batch."""
    layer, x = case
    other = copy.deepcopy(layer)
    order = torch.randperm(
        len(layer.experts), generator=torch.Generator().manual_seed(seed)
    )
    other.experts = torch.nn.ModuleList(layer.experts[e] for e in order)
    other.router.scores.weight.data = layer.router.scores.weight.data[order]
    if isinstance(other.router, SigmoidRouter):
        other.router.selection_bias = layer.router.selection_bias[order]
    assert close(other(x), layer(x))


def test_the_shared_expert_is_added_for_every_token():
    layer, x = make(shared_dim=3), random(2, 4, 6)
    alone = copy.deepcopy(layer)
    alone.shared = None
    assert close(layer(x), alone(x) + layer.shared(x))


# --- the references -------------------------------------------------------------------


@pytest.fixture
def double_everywhere(monkeypatch):
    """Their routers compute in float32, whatever comes; here they may not."""
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    monkeypatch.setattr(torch.Tensor, "type", lambda self, *_: self)
    monkeypatch.setattr(
        torch.nn.functional, "softmax", lambda x, dim, dtype=None: softmax(x, dim=dim)
    )


COMMON = {"hidden_size": 6, "num_experts_per_tok": 3, "hidden_act": "silu"}
COMMON["experts_implementation"] = "eager"


def theirs(name, normalise=True):
    """A layer of `transformers` with random weights, and our router for it."""
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek
    from transformers.models.mixtral import modeling_mixtral as mixtral
    from transformers.models.qwen3_moe import modeling_qwen3_moe as qwen

    if name == "Mixtral":
        config = mixtral.MixtralConfig(
            **COMMON, num_local_experts=8, intermediate_size=7
        )
        layer, ours = mixtral.MixtralSparseMoeBlock(config), SoftmaxRouter(6, 8, 3)
    elif name == "Qwen3-MoE":
        config = qwen.Qwen3MoeConfig(
            **COMMON, num_experts=8, moe_intermediate_size=7, norm_topk_prob=normalise
        )
        layer = qwen.Qwen3MoeSparseMoeBlock(config)
        ours = SoftmaxRouter(6, 8, 3, normalise=normalise)
    else:
        config = deepseek.DeepseekV3Config(
            **COMMON,
            n_routed_experts=8,
            moe_intermediate_size=7,
            n_shared_experts=2,
            n_group=4,
            topk_group=2,
            routed_scaling_factor=2.5,
        )
        layer = deepseek.DeepseekV3MoE(config)
        ours = SigmoidRouter(6, 8, 3, groups=4, kept_groups=2, scale=2.5)
    torch.manual_seed(0)
    for tensor in layer.state_dict().values():
        torch.nn.init.normal_(tensor, std=0.5)  # the biases negative, too
    return layer, ours


REFERENCES = [
    ("Mixtral", True),
    ("Qwen3-MoE", True),
    ("Qwen3-MoE", False),
    ("DeepSeek-V3", True),
]


def check_reference(name, normalise, dtype):
    layer, router = theirs(name, normalise)
    shared_dim = 14 if name == "DeepSeek-V3" else 0
    ours = MixtureOfExperts(6, 7, router, shared_dim)
    ours.load_state_dict(published_moe_weights(layer.state_dict()))
    layer, ours = layer.to(dtype), ours.to(dtype)
    found = []
    for one in (layer, ours):
        x = random(3, 40, 6, dtype=dtype).requires_grad_()
        out = one(x)
        (grad,) = gradients((out * random(3, 40, 6, seed=2, dtype=dtype)).sum(), x)
        found.append((out, grad))
    for here, there in zip(*found, strict=True):
        assert close(here, there)


@pytest.mark.parametrize(("name", "normalise"), REFERENCES)
def test_equals_the_layer_of_transformers(name, normalise):
    """Known mistakes: weights taken with the bias; groups dropped by zeros; a softmax
    over the chosen logits where all count; the scale left out.
    """
    check_reference(name, normalise, torch.float32)


@pytest.mark.parametrize(("name", "normalise"), REFERENCES)
def test_equals_it_in_double_precision(name, normalise, double_everywhere):
    check_reference(name, normalise, torch.float64)


def test_weights_without_a_place_are_refused():
    layer, router = theirs("Mixtral")
    weights = layer.state_dict() | {"gate.bias": torch.zeros(8)}
    ours = MixtureOfExperts(6, 7, router)
    with pytest.raises(RuntimeError, match="Unexpected key.*gate.bias"):
        ours.load_state_dict(published_moe_weights(weights))


@some
@given(st.integers(2, 6), st.integers(1, 3), st.integers(1, 12), seeds, st.booleans())
def test_the_balancing_loss_is_that_of_transformers(E, layers, N, seed, masked):
    """Known mistakes: padding counted (huggingface/transformers#28505); the mean over
    the places of the top-k taken, which divides by A.
    """
    from transformers.models.mixtral import modeling_mixtral as mixtral

    A = min(2, E)
    logits = 3 * random(layers, N, E, seed=seed, dtype=torch.float32)
    real = random(N, seed=seed + 1) > -0.5
    real[0] = True
    mask = real.long()[None] if masked else None
    right = mixtral.load_balancing_loss_func(tuple(logits), E, A, mask)
    routing = softmax_routing(logits.flatten(0, 1), A)
    found = load_balancing_loss(routing, real.repeat(layers) if masked else None)
    assert close(found, right)


# --- the router -----------------------------------------------------------------------


@some
@given(st.integers(1, 6), st.integers(1, 9), seeds, st.data())
def test_softmax_first_and_divided_is_softmax_of_the_chosen(E, N, seed, data):
    """Mixtral's paper says the one, its code the other."""
    A = data.draw(st.integers(1, E))
    logits = 2 * random(N, E, seed=seed)
    routing = softmax_routing(logits, A)
    top, chosen = logits.topk(A, dim=-1)
    assert torch.equal(routing.chosen, chosen)
    assert close(routing.weights, torch.softmax(top, dim=-1))
    shares = softmax_routing(logits, A, normalise=False)
    assert close(shares.weights, torch.softmax(logits, dim=-1).gather(1, chosen))
    assert torch.equal(shares.chosen, chosen)


@pytest.mark.parametrize(("normalise", "learns"), [(True, False), (False, True)])
def test_one_normalised_expert_teaches_the_router_nothing(normalise, learns):
    """Known mistake: top-1 with weights that are divided by their sum."""
    layer = make(top_k=1, normalise=normalise)
    layer(random(2, 8, 6)).square().sum().backward()
    assert (layer.router.scores.weight.grad.abs().max() > 1e-9) == learns


def test_the_bias_chooses_and_does_not_weigh():
    """Known mistakes: weights made of biased scores (vllm-project/vllm#12002), or by
    taking the bias away again (flashinfer-ai/flashinfer#3875).
    """
    logits = torch.tensor([[2.0, 1.0, -18.0, -17.0]])
    bias = torch.tensor([0.0, 0.0, 12.0, 12.0])
    plain = sigmoid_routing(logits, torch.zeros(4), top_k=2)
    biased = sigmoid_routing(logits, bias, top_k=2)
    assert plain.chosen.tolist() == [[0, 1]]
    assert sorted(biased.chosen[0].tolist()) == [2, 3]
    right = torch.sigmoid(logits[0])[biased.chosen[0]]
    assert close(biased.weights[0], right / right.sum())
    assert 0.26 < biased.weights.min() < 0.27
    nothing = sigmoid_routing(torch.full((1, 4), -200.0), torch.zeros(4), top_k=2)
    assert nothing.weights.tolist() == [[0, 0]]


def test_a_dropped_group_is_never_chosen():
    """Known mistake: dropped ranks set to 0, more than negative ones that are kept
    (deepseek-ai/DeepSeek-V3#741).
    """
    logits, bias = random(50, 8, dtype=torch.float32), torch.full((8,), -3.0)
    routing = sigmoid_routing(logits, bias, top_k=4, groups=4, kept_groups=2)
    for row, ranks in zip(routing.chosen, torch.sigmoid(logits) + bias, strict=True):
        best = ranks.view(4, 2).sum(dim=1).topk(2).indices.tolist()
        assert {e // 2 for e in row.tolist()} == set(best)
    ranks = torch.tensor([[-1.0, -2.0, -9.0, -1.5, -3.0, -0.1]])
    kept = keep_best_groups(ranks, groups=3, kept=2)
    assert kept.tolist() == [[-1.0, -2.0, *[-torch.inf] * 2, -3.0, ranks[0, 5].item()]]


@pytest.mark.parametrize("kind", [SoftmaxRouter, SigmoidRouter])
def test_half_precision_routes_in_float32(kind):
    """Known mistake: scores that tie in bfloat16, so that chance picks an expert."""
    layer = make(kind=kind, experts=8).bfloat16()
    with torch.no_grad():  # bfloat16 has no number between 1 and 1.0078
        layer.router.scores.weight.fill_(1.0)
        layer.router.scores.weight[5, 0] = 1.0078125
    x = torch.ones(1, 1, 6, dtype=torch.bfloat16)
    with record_routing(layer) as routings:
        out = layer(x)
    assert routings[0].logits.dtype == torch.float32
    assert routings[0].chosen[0, 0] == 5
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


def test_experts_begin_different_and_finite():
    """Known mistake: weights of experts that nobody has drawn."""
    torch.manual_seed(0)
    layer = MixtureOfExperts(64, 32, SoftmaxRouter(64, 4, 2))
    first = [expert.gate.weight for expert in layer.experts]
    assert all(weight.isfinite().all() for weight in layer.parameters())
    assert len({weight.sum().item() for weight in first}) == 4
    for weight in first:  # as a linear layer of 64 inputs, not one of 4 or 2,048
        assert abs(weight.std().item() * (3 * 64) ** 0.5 - 1) < 0.05


# --- balance --------------------------------------------------------------------------


def routing_to(counts):
    """A routing whose expert e has counts[e] tokens, with shares to match."""
    chosen = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    logits = 4.0 * F.one_hot(chosen, len(counts)).double()
    return Routing(logits, chosen[:, None], torch.ones(len(chosen), 1).double())


def test_balancing_loss_between_balance_and_collapse():
    balanced = routing_to([5, 5, 5, 5])
    collapsed = routing_to([20, 0, 0, 0])
    assert abs(load_balancing_loss(balanced).item() - 1) < 1e-12
    assert load_balancing_loss(collapsed) > 3.5
    assert max_violation(expert_counts(balanced)) == 0
    assert max_violation(expert_counts(collapsed)) == 3
    assert expert_counts(collapsed).tolist() == [20, 0, 0, 0]


def test_layers_in_one_loss_hide_each_other():
    """Known mistake: the logits of all layers put in one row before the means
    (huggingface/transformers#28255).
    """
    one, other = routing_to([20, 0]), routing_to([0, 20])
    both = Routing(*(torch.cat(pair) for pair in zip(one, other, strict=True)))
    assert load_balancing_loss(both) < 1 + 1e-6
    assert load_balancing_loss(one) > 1.9
    assert load_balancing_loss(other) > 1.9


def test_padding_does_not_count_for_the_balance():
    logits = random(12, 4)
    real = torch.arange(12).view(3, 4) % 4 != 0
    found = load_balancing_loss(softmax_routing(logits, 2), real)
    kept = softmax_routing(logits[real.flatten()], 2)
    assert close(found, load_balancing_loss(kept))


def test_a_step_down_the_loss_takes_tokens_from_the_busy():
    """Known mistake: a loss of counts alone, which has no gradient."""
    logits = (random(64, 4) + torch.tensor([2.0, 0, 0, 0])).requires_grad_()
    routing = softmax_routing(logits, 1)
    (grad,) = gradients(load_balancing_loss(routing), logits)
    down = grad.sum(dim=0)
    assert expert_counts(routing).argmax() == 0
    assert down[0] > 0
    assert (down[1:] < 0).all()


def test_rebalancing_alone_balances_what_the_router_prefers():
    """Known mistake: the sign turned round, so that who has much gets more."""
    router = SigmoidRouter(5, 4, 1)
    x = torch.cat((random(400, 4, dtype=torch.float32), torch.ones(400, 1)), dim=1)
    with torch.no_grad():
        router.scores.weight.copy_(torch.eye(4, 5))
        router.scores.weight[0, 4] = 3.0  # the first is liked by all
        before = max_violation(expert_counts(router(x)))
        for _ in range(200):
            router.rebalance(expert_counts(router(x)), rate=0.01)
    assert before > 2
    assert max_violation(expert_counts(router(x))) < 0.2
    assert router.selection_bias[0] == router.selection_bias.min()
    assert not router.selection_bias.requires_grad
    assert "selection_bias" in router.state_dict()


def test_equal_loads_move_no_bias():
    router = SigmoidRouter(3, 4, 2)
    router.rebalance(torch.tensor([7, 7, 7, 7]), rate=0.1)
    assert not router.selection_bias.any()
    router.rebalance(torch.tensor([9, 7, 7, 5]), rate=0.1)
    assert close(router.selection_bias, torch.tensor([-0.1, 0, 0, 0.1]))


def test_training_moves_by_loss_or_by_bias():
    """Known mistakes: the bias trained by the optimizer; a loss that is not added."""
    ids = torch.randint(13, (1, 10), generator=torch.Generator().manual_seed(0))
    found = []
    for weight, rate in ((0.0, 0.0), (5.0, 0.0), (0.0, 0.25)):
        torch.manual_seed(0)
        model = LlamaModel(TINY_LLAMA)
        with_parts(
            model,
            feed_forward=lambda _: MixtureOfExperts(12, 3, SigmoidRouter(12, 4, 2)),
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loads = train_experts(model, [(ids, ids)] * 3, optimizer, weight, rate)
        assert loads.shape == (3, 2, 4)
        assert (loads.sum(dim=2) == 20).all()
        router = model.trf_blocks[0].ff.router
        found.append((router.scores.weight.detach(), router.selection_bias))
    (plain, still), (pushed, also_still), (same, moved) = found
    assert not torch.equal(plain, pushed)
    assert not still.any()
    assert not also_still.any()
    assert set(moved.abs().tolist()) <= {0.0, 0.25, 0.5, 0.75}
    assert moved.any()


def test_record_routing_sees_every_layer_and_leaves_no_hook():
    model = ExpertModel(TINY_LLAMA)
    ids = torch.tensor([[1, 2, 3]])
    with record_routing(model) as routings:
        model(ids)
    model(ids)
    assert [tuple(one.chosen.shape) for one in routings] == [(3, 2), (3, 2)]
    with pytest.raises(RuntimeError), record_routing(model):
        raise RuntimeError
    assert not any(part._forward_hooks for part in model.modules())
    assert sum(load_balancing_loss(one) for one in routings).requires_grad


# --- counts and refusals --------------------------------------------------------------


@some
@given(sizes, sizes, st.integers(1, 6), st.integers(0, 3), st.data())
def test_parameters_by_formula(D, hidden, E, shared, data):
    A = data.draw(st.integers(1, E))
    layer = MixtureOfExperts(D, hidden, SoftmaxRouter(D, E, A), shared)
    both, active = moe_parameters(D, hidden, E, A, shared)
    assert both == count_parameters(layer)
    unused = (E - A) * count_parameters(layer.experts[0])
    assert active == both - unused


def test_parameters_of_known_sizes():
    """Eight experts that share out a dense layer of 308,281,344 weights."""
    assert moe_parameters(7168, 1792, 8, 2) == (308_338_688, 77_127_680)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SoftmaxRouter(4, 0, 1), "num_experts is 0"),
        (lambda: SigmoidRouter(4, 4, 0), "top_k is 0"),
        (lambda: SigmoidRouter(4, 6, 2, groups=4), "cannot be shared"),
        (
            lambda: SigmoidRouter(4, 8, 5, groups=4, kept_groups=2),
            "hold too few experts for top_k=5",
        ),
        (lambda: SigmoidRouter(4, 2, 3), "hold too few experts for top_k=3"),
        (lambda: SoftmaxRouter(4, 2, 3), "top_k=3 of num_experts=2"),
    ],
)
def test_impossible_sizes_are_refused(call, message):
    """Known mistake: experts of dropped groups chosen because none are left."""
    with pytest.raises(ValueError, match=message):
        call()


# --- what must hold whatever the weights ----------------------------------------------


@some
@given(layers(), st.data())
def test_each_token_is_for_itself(case, data):
    """No future token, no padding and no other text changes an answer. Known mistake:
    a capacity, which makes a token's experts depend on the others in the batch.
    """
    layer, x = case
    B, T, _ = x.shape
    b, t = data.draw(st.integers(0, B - 1)), data.draw(st.integers(0, T - 1))
    changed = x + 3.0
    changed[b, t] = x[b, t]
    assert close(layer(changed)[b, t], layer(x)[b, t])
    assert close(layer(x[b : b + 1, t : t + 1])[0, 0], layer(x)[b, t])


class ExpertModel(LlamaModel):
    """A Llama with experts: softmax in the first block, sigmoid in the second."""

    def __init__(self, cfg):
        super().__init__(cfg)
        D = self.cfg["emb_dim"]

        def experts(layer):
            if layer:
                router = SigmoidRouter(D, 4, 2, groups=2, kept_groups=1)
                torch.nn.init.normal_(router.selection_bias)
                return MixtureOfExperts(D, 3, router, shared_dim=2)
            return MixtureOfExperts(D, 3, SoftmaxRouter(D, 3, 2))

        with_parts(self, feed_forward=experts)


def configs():
    drawn = {
        "n_heads": sizes,
        "head_dim": st.sampled_from([2, 4]),
        "emb_dim": st.integers(2, 9),
        "n_layers": st.integers(1, 2),
        "tie_weights": st.booleans(),
    }
    return st.fixed_dictionaries({k: st.just(v) for k, v in TINY_LLAMA.items()} | drawn)


class TestExpertModel(ModelContract):
    tiny = TINY_LLAMA
    configs = staticmethod(configs)
    make_model = ExpertModel
    make_cache = staticmethod(lambda cfg: KVCache(cfg["n_layers"]))
    generate = staticmethod(generate_text_simple)

    def test_two_passes_agree_and_nothing_stays_between_calls(self):
        """The biases for the choice are part of a saved model, and nothing else is."""
        model, idx = self.model(), self.ids(2, 5)
        fresh, kept = model(idx), copy.deepcopy(model.state_dict())
        names = {name for name, _ in model.named_parameters()}
        assert kept.keys() - names == {"trf_blocks.1.ff.router.selection_bias"}
        with torch.no_grad():
            model(self.ids(3, 4, seed=1), cache=self.cache(model))
        model(self.ids(1, 9, seed=2), torch.zeros(1, 9, dtype=torch.bool))
        assert torch.equal(model(idx), fresh)
        assert all(torch.equal(kept[k], v) for k, v in model.state_dict().items())

    def test_model_is_traced_in_one_piece(self):
        """Not in one: how many tokens an expert has depends on the data."""
        model, idx = self.model(), self.ids(2, 5)
        layer, x = model.trf_blocks[0].ff, random(2, 5, 12)
        traced = torch.compile(layer, backend="eager")
        assert close(traced(x), layer(x))
        assert torch.equal(model(idx.int()), model(idx))
