"""Qwen3 proved: against transformers' dense and mixed model, against itself.

Bounds: float32 within 1e-5, float64 within 1e-10. The models are tiny: head widths that
are not D / H, groups, experts of which few are used. Their embeddings keep PyTorch's
large start, and their norms get factors that differ, so a norm in a wrong place shows.
"""

import contextlib
import copy
import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import qwen3
from course.testing.model_contract import (
    BOUNDS,
    CONTEXT,
    ModelContract,
    close,
    ragged,
    random_ids,
    seeds,
    sides,
    some,
)
from gpt import count_parameters, generate_text_simple
from kv_cache import KVCache
from llama import LlamaModel, RMSNorm, apply_rope, rope_cos_sin, rope_frequencies
from moe import MixtureOfExperts, published_moe_weights, record_routing
from qwen3 import (
    QWEN3_0_6B,
    QWEN3_30B_A3B,
    Experts,
    Qwen3Attention,
    Qwen3Config,
    Qwen3Model,
    qwen3_key_map,
    qwen3_parameters,
)
from qwen3_files import qwen3_settings
from small_models import TINY_LLAMA, with_exact_norms

FOUR_EXPERTS = Experts(num_experts=4, top_k=2, normalise=True)
TINY = Qwen3Config.of(
    {
        **TINY_LLAMA,
        "vocab_size": 23,
        "n_heads": 6,
        "n_kv_groups": 2,
        "hidden_dim": 20,
        "tie_weights": False,
        "experts": None,
    }
)
TINY_MOE = Qwen3Config.of({**TINY, "hidden_dim": 7, "experts": FOUR_EXPERTS})
BOTH = {"dense": TINY, "experts": TINY_MOE}
both = pytest.mark.parametrize("kind", BOTH)


@st.composite
def configs(draw, kind="dense"):
    """Odd sizes: head width not D / H, one key/value head, one expert, all experts."""
    G, R = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    E = draw(st.integers(1, 5))
    experts = Experts(
        num_experts=E,
        top_k=draw(st.integers(1, E)),
        normalise=draw(st.sampled_from([True, True, False])),
    )
    return Qwen3Config(
        vocab_size=draw(st.integers(2, 40)),
        context_length=CONTEXT,
        emb_dim=G * R * draw(st.integers(4, 6)),
        n_heads=G * R,
        n_kv_groups=G,
        head_dim=2 * draw(st.integers(1, 5)),
        n_layers=draw(st.integers(1, 3)),
        hidden_dim=draw(st.integers(1, 30)),
        rope_base=draw(st.sampled_from([100.0, 10_000.0, 1_000_000.0])),
        rope_scaling=None,
        norm_eps=draw(st.sampled_from([1e-5, 1e-6])),
        tie_weights=draw(st.booleans()),
        experts=experts if kind == "experts" else None,
    )


# --- parity with transformers ---------------------------------------------------------

# Normal numbers of this spread as weights, as in the tests of the Llama.
SPREADS = {torch.float32: 0.1, torch.float64: 0.5}


def qwen3_model(cfg):
    """Theirs, with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**qwen3_settings(cfg))
    return AutoModelForCausalLM.from_config(config)


def reference(cfg, dtype):
    theirs = qwen3_model(cfg).to(dtype).eval()
    return with_exact_norms(theirs) if dtype == torch.float64 else theirs


@contextlib.contextmanager
def exact_router():
    """Theirs takes the softmax of float64 down to float32: here it stays."""
    softmax = F.softmax

    def wide(x, dim=None, dtype=None, **others):
        dtype = None if x.dtype == torch.float64 else dtype
        return softmax(x, dim=dim, dtype=dtype, **others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "softmax", wide)
        yield


def weights_of(theirs, cfg):
    """Theirs under our names; in memory their experts are one tensor, in files many."""
    state, names = dict(theirs.state_dict()), qwen3_key_map(cfg)
    found = {}
    for i in range(cfg.n_layers if cfg.experts else 0):
        start = f"model.layers.{i}.mlp."
        layer = {name: state.pop(name) for name in list(state) if start in name}
        layer = published_moe_weights(
            {name.removeprefix(start): tensor for name, tensor in layer.items()}
        )
        found |= {f"trf_blocks.{i}.ff.{name}": t for name, t in layer.items()}
    found |= {names[name]: tensor for name, tensor in state.items() if name in names}
    assert sorted(found) == sorted(names.values())
    return found


@torch.no_grad()
def twins(cfg, seed, dtype):
    """Our model and theirs with the same weights, drawn in theirs."""
    torch.manual_seed(seed)
    theirs, ours = reference(cfg, dtype), Qwen3Model(cfg).to(dtype).eval()
    torch.manual_seed(seed)
    for name, parameter in theirs.named_parameters():
        nn.init.normal_(parameter, std=SPREADS[dtype])
        parameter += "norm" in name  # these lie around 1
    ours.load_state_dict(weights_of(theirs, cfg))
    return ours, theirs


@both
@pytest.mark.parametrize("dtype", list(BOUNDS))
@some
@given(data=st.data(), seed=seeds)
def test_logits_equal_those_of_transformers(dtype, kind, data, seed):
    cfg = data.draw(configs(kind))
    ours, theirs = twins(cfg, seed, dtype)
    idx = torch.randint(cfg.vocab_size, (2, CONTEXT))
    with torch.no_grad(), exact_router():
        assert close(ours(idx), theirs(idx).logits)


@both
@sides
@pytest.mark.parametrize("dtype", list(BOUNDS))
@some
@given(data=st.data(), seed=seeds)
def test_padded_batches_equal_those_of_transformers(dtype, side, kind, data, seed):
    cfg = data.draw(configs(kind))
    ours, theirs = twins(cfg, seed, dtype)
    _, idx, real = data.draw(ragged(cfg.vocab_size, side))
    positions = (real.long().cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad(), exact_router():
        expected = theirs(idx, attention_mask=real.long(), position_ids=positions)
        assert close(ours(idx, real)[real], expected.logits[real])


@both
@sides
@pytest.mark.parametrize("dtype", list(BOUNDS))
@torch.no_grad()
def test_chunks_and_twenty_steps_equal_transformers(dtype, side, kind):
    """A padded batch is read in two chunks, then twenty tokens more, one at a time;
    theirs reads the whole anew each time.
    """
    cfg = Qwen3Config.of({**BOTH[kind], "context_length": 64})
    ours, theirs = twins(cfg, 3, dtype)
    idx = random_ids(3, 9, vocab_size=23, seed=1)
    real = torch.ones(3, 9, dtype=torch.bool)
    for b, length in enumerate([9, 4, 7]):
        real[b, slice(length, None) if side == "right" else slice(9 - length)] = False
    cache = KVCache(cfg.n_layers)
    ours(idx[:, :5], real[:, :5], cache)
    step = ours(idx[:, 5:], real, cache)
    assert cache.layer(0).keys.shape == (3, 2, 9, 4)  # groups, not heads
    with exact_router():
        for _ in range(20):
            positions = (real.long().cumsum(dim=1) - 1).clamp(min=0)
            expected = theirs(
                idx, attention_mask=real.long(), position_ids=positions
            ).logits
            T = step.shape[1]
            assert close(step[real[:, -T:]], expected[:, -T:][real[:, -T:]])
            new = random_ids(3, 1, vocab_size=23, seed=idx.shape[1])
            idx = torch.cat((idx, new), dim=1)
            real = torch.cat((real, torch.ones(3, 1, dtype=torch.bool)), dim=1)
            step = ours(new, real, cache)
    assert idx.shape == (3, 29)


@both
@some
@given(data=st.data(), seed=seeds)
def test_gradients_equal_those_of_transformers(kind, data, seed):
    cfg = data.draw(configs(kind))
    ours, theirs = twins(cfg, seed, torch.float64)
    idx = torch.randint(cfg.vocab_size, (2, CONTEXT))
    with exact_router():
        for logits in (ours(idx), theirs(idx).logits):
            F.cross_entropy(
                logits[:, :-1].flatten(0, 1), idx[:, 1:].flatten()
            ).backward()
    for parameter in theirs.parameters():  # none came: no token met this expert
        grad = parameter.grad
        parameter.data = torch.zeros_like(parameter) if grad is None else grad
    expected = weights_of(theirs, cfg)
    for name, parameter in ours.named_parameters():
        assert close(parameter.grad, expected[name]), name


@torch.no_grad()
def test_norms_come_before_the_rotation_for_each_head_and_not_for_values():
    """Known mistakes: after it, over the whole projection (as in Olmo), without scales,
    with the query's factors on the keys, over values as well.
    """
    torch.manual_seed(0)
    layer = Qwen3Attention(TINY).double()
    for norm in (layer.query_norm, layer.key_norm):
        nn.init.normal_(norm.scale)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    cos, sin = rope_cos_sin(torch.arange(5), rope_frequencies(4, 100.0, None))
    found = layer.project(x, lambda heads: apply_rope(heads, cos, sin))
    for b, t, h in [(0, 0, 0), (1, 4, 5), (1, 2, 3)]:
        query = x[b, t] @ layer.W_query.weight[4 * h : 4 * h + 4].T  # (K,)
        query = (
            query
            / (query.square().mean() + TINY.norm_eps).sqrt()
            * layer.query_norm.scale
        )
        turned = torch.complex(query[:2], query[2:]) * torch.complex(
            cos[t, :2], sin[t, :2]
        )
        expected = torch.cat((turned.real, turned.imag))
        assert close(found[0][b, h, t], expected, bound=1e-7)
    keys = layer.split_heads(layer.W_key(x))
    keys = keys / (keys.square().mean(-1, keepdim=True) + TINY.norm_eps).sqrt()
    keys = apply_rope(keys * layer.key_norm.scale, cos, sin)
    assert close(found[1], keys)
    assert torch.equal(found[2], layer.split_heads(layer.W_value(x)))


@torch.no_grad()
def test_the_size_of_the_projection_does_not_matter():
    """What the norms are for: no score grows with the queries and keys."""
    model = Qwen3Model(TINY).double()
    idx = random_ids(2, 6, vocab_size=23)
    before = model(idx)
    for block in model.trf_blocks:
        block.att.W_query.weight *= 50
        block.att.W_key.weight *= 50
    assert (model(idx) - before).abs().max() < 1e-4  # epsilon is felt a little less
    llama = LlamaModel({k: v for k, v in TINY.items() if k != "experts"}).double()
    before = llama(idx)
    for block in llama.trf_blocks:
        block.att.W_query.weight *= 50
        block.att.W_key.weight *= 50
    assert (llama(idx) - before).abs().max() > 1e-2


def test_it_is_a_llama_but_for_two_parts():
    """No biases, no buffers; its blocks are those of the Llama."""
    for cfg in BOTH.values():
        model = Qwen3Model(cfg)
        assert not [name for name, _ in model.named_parameters() if "bias" in name]
        assert not list(model.buffers())
        assert len([m for m in model.modules() if isinstance(m, RMSNorm)]) == 4 * 2 + 1
    assert isinstance(model.trf_blocks[1].ff, MixtureOfExperts)
    with record_routing(model) as routings:
        model(random_ids(2, 3, vocab_size=23))
    assert [routing.chosen.shape for routing in routings] == [(6, 2), (6, 2)]


# --- what must hold whatever the weights ----------------------------------------------


class Contract(ModelContract):
    __test__ = False
    make_model = Qwen3Model
    make_cache = staticmethod(lambda cfg: KVCache(cfg["n_layers"]))
    generate = staticmethod(generate_text_simple)


class TestQwen3(Contract):
    """As every model of the course."""

    __test__ = True
    tiny = TINY
    configs = staticmethod(configs)


class TestQwen3Moe(Contract):
    """As every model of the course."""

    __test__ = True
    tiny = TINY_MOE
    configs = staticmethod(functools.partial(configs, "experts"))

    def test_half_precision_stays_half_precision(self):
        """Rounded vectors may choose other experts; where all are chosen none can."""
        changes = {"experts": {**FOUR_EXPERTS, "top_k": 4}}
        model, idx = self.model(dtype=torch.float32, **changes), self.ids(2, 5)
        half = copy.deepcopy(model).to(torch.bfloat16)
        assert half(idx).dtype == torch.bfloat16
        assert (half(idx) - model(idx)).abs().max() < 0.1
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (model(idx) - half(idx)).abs().max() < 0.1

    def test_model_is_traced_in_one_piece(self):
        """Not in one: how many tokens an expert has depends on the data."""
        model, idx = self.model(), self.ids(2, 5)
        assert close(torch.compile(model, backend="eager")(idx), model(idx))


# --- sizes ----------------------------------------------------------------------------

# Of the files on the model hub, "total_size" of their index, or of 0.6B the bytes of
# all tensors, divided by two; the files of 0.6B and 1.7B hold the tied head twice.
PUBLISHED = {
    "QWEN3_0_6B": 1_503_264_768 // 2 - 151_936 * 1_024,
    "QWEN3_1_7B": 4_063_479_808 // 2 - 151_936 * 2_048,
    "QWEN3_4B": 8_044_936_192 // 2,
    "QWEN3_8B": 16_381_470_720 // 2,
    "QWEN3_14B": 29_536_614_400 // 2,
    "QWEN3_32B": 65_524_246_528 // 2,
    "QWEN3_30B_A3B": 61_064_245_248 // 2,
    "QWEN3_235B_A22B": 470_187_269_120 // 2,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    cfg = getattr(qwen3, name)
    few = Qwen3Config.of({**cfg, "n_layers": 1}), Qwen3Config.of({**cfg, "n_layers": 2})
    with torch.device("meta"):
        one, two = (count_parameters(Qwen3Model(small)) for small in few)
        theirs = qwen3_model(few[0])
    assert one + (cfg.n_layers - 1) * (two - one) == PUBLISHED[name]
    assert qwen3_parameters(cfg)[0] == PUBLISHED[name]
    assert count_parameters(theirs) == one


def test_the_smallest_is_counted_whole():
    with torch.device("meta"):
        assert count_parameters(Qwen3Model(QWEN3_0_6B)) == PUBLISHED["QWEN3_0_6B"]


def test_active_parameters():
    """The names say A3B and A22B; dense models use all. Known mistake: the entries of
    the experts taken in their order.
    """
    turned = {"normalise": True, "top_k": 8, "num_experts": 128}
    counted = qwen3_parameters({**QWEN3_30B_A3B, "experts": turned})
    assert counted == qwen3_parameters(QWEN3_30B_A3B)
    for cfg in BOTH.values():
        count = count_parameters(Qwen3Model(cfg))
        found, active = qwen3_parameters(cfg)
        idle = 2 * (2 * 3 * 12 * 7) if cfg.experts else 0  # 2 blocks, 2 experts idle
        assert (found, active) == (count, count - idle)
    assert qwen3_parameters(QWEN3_30B_A3B)[1] == 3_353_032_704
    assert round(qwen3_parameters(qwen3.QWEN3_235B_A22B)[1] / 1e9) == 22


@both
def test_key_map_names_every_weight_once(kind):
    for tied in (False, True):
        cfg = Qwen3Config.of({**BOTH[kind], "tie_weights": tied})
        names = qwen3_key_map(cfg)
        assert sorted(names.values()) == sorted(Qwen3Model(cfg).state_dict())
        assert ("lm_head.weight" in names) is not tied


# --- the config -----------------------------------------------------------------------


@pytest.mark.parametrize("make_config", [Qwen3Model, Qwen3Config.of])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_kv_groups": 4}, "n_heads=6 cannot share n_kv_groups=4"),
        ({"head_dim": 5}, "head_dim=5 is odd"),
        ({"n_experts": 4}, r"unknown field 'n_experts': did you mean 'experts'\?$"),
        ({"experts": {**FOUR_EXPERTS, "top_k": 5}}, "top_k=5 of num_experts=4: pick"),
        ({"experts": {**FOUR_EXPERTS, "top_k": 0}}, "top_k is 0: give a whole"),
        ({"experts": {**FOUR_EXPERTS, "normalise": 1}}, "normalise is 1: give True"),
        ({"experts": {"num_experts": 4, "top_k": 1}}, "lacks 'normalise'"),
        ({"experts": 4}, "The config is int: give a Experts"),
    ],
)
def test_wrong_configs_are_refused(make_config, changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make_config({**TINY, **changes})


def test_no_field_has_a_default():
    """Above all none for the experts: a mixed model would load as a dense one."""
    for name in TINY:
        fields = {key: value for key, value in TINY.items() if key != name}
        with pytest.raises(ValueError, match=f"lacks '{name}': give every field"):
            Qwen3Model(fields)
