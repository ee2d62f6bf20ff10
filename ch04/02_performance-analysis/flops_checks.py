"""The checks of the exercises in `flops-analysis.ipynb`; see `course.exercises`.

What is right is what PyTorch counts, or a search with the formulas that the notebook
proves; what the known slips would give is computed beside it.
"""

import copy
import functools
import math
from fractions import Fraction

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from course.exercises import call, check, expect, expect_equal, expect_number
from flops import (
    forward_flops,
    forward_work,
    matmul_flops,
    model_on_meta,
    needed_scores,
    sizes_of,
)
from gpt import GPT_CONFIG_124M, GPT_CONFIG_1558M
from llama import LLAMA32_1B, SMOLLM2_135M

TINY_GPT = {
    **GPT_CONFIG_124M,
    "vocab_size": 11,
    "context_length": 9,
    "emb_dim": 6,
    "n_heads": 2,
    "n_layers": 4,
}
TINY_LLAMA = {
    **SMOLLM2_135M,
    "vocab_size": 13,
    "emb_dim": 10,
    "n_heads": 4,
    "n_kv_groups": 2,
    "head_dim": 6,
    "n_layers": 5,
    "hidden_dim": 7,
    "tie_weights": False,
}
TINY = {"GPT": TINY_GPT, "Llama": TINY_LLAMA}


def _whole_number(found):
    """The result as an int; floats that are whole numbers pass."""
    number = expect_number(found)
    expect(math.isfinite(number), f"the result is {number}, not a number of operations")
    expect(number == int(number), f"the result, {number}, is not a whole number")
    return int(found)


def _expect_no_slip(found, right, slips):
    """Raise with the message of the first slip that gives this number."""
    for message, wrong in slips.items():
        expect(found != wrong or wrong == right, message)


# --- F.1 When attention takes over ----------------------------------------------------


def _first(cfg, exceeds):
    """The smallest number of tokens at which attention exceeds its opponent.

    The one part grows with the square of the tokens and the other does not, so doubling
    and then halving finds the place.
    """
    high = 1
    while not exceeds(forward_flops(cfg, 1, high), high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if exceeds(forward_flops(cfg, 1, middle), middle):
            high = middle
        else:
            low = middle
    return high


def _attention(parts):
    return parts["attention products"]


def _rest(parts):
    return sum(parts.values()) - _attention(parts)


@check("F.1")
def check_F_1(attempt):
    exact = {**TINY_GPT, "vocab_size": 12}  # here both are equal at one length
    results = []
    for cfg in (GPT_CONFIG_124M, exact, TINY_LLAMA, LLAMA32_1B):
        found = _whole_number(call(attempt, cfg))
        right = _first(cfg, lambda parts, _: _attention(parts) > _rest(parts))
        slips = {
            "at this length attention costs as much as the rest, not more": (
                _first(cfg, lambda parts, _: _attention(parts) >= _rest(parts))
            ),
            "it is held against feed-forward alone, not against everything else": (
                _first(cfg, lambda parts, _: _attention(parts) > parts["feed-forward"])
            ),
            "the output head is missing from everything else": (
                _first(cfg, lambda p, _: _attention(p) > _rest(p) - p["head"])
            ),
            "the projections are missing from everything else": (
                _first(cfg, lambda p, _: _attention(p) > _rest(p) - p["projections"])
            ),
            "only the scores that the mask leaves are counted, but all are computed": (
                _first(
                    cfg,
                    lambda p, T: _attention(p) * needed_scores(T) > _rest(p) * T * T,
                )
            ),
            "it is the last length at which attention does not cost more": right - 1,
        }
        _expect_no_slip(found, right, slips)
        expect_equal(found, right, "attention does not take over at this length")
        results.append(found)
    gpt2, *_, llama = results
    return f"Four models; {gpt2:,} tokens for GPT-2 124M, {llama:,} for Llama."


# --- F.2 A counter that says nothing --------------------------------------------------


class AttentionAlone(nn.Module):
    """Attention by PyTorch's fused kernel, with a linear layer before and after."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        """(B, T, D) to (B, T, D)."""
        heads = (
            self.project(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        context = F.scaled_dot_product_attention(*heads, is_causal=True)
        return self.out(context.transpose(1, 2).flatten(2))


class AttentionOfTwo(AttentionAlone):
    """The same with a second input that the queries look at."""

    def forward(self, x, memory):
        """(B, T, D) and (B, S, D) to (B, T, D)."""
        queries, _, _ = self._split(x)
        _, keys, values = self._split(memory)
        context = F.scaled_dot_product_attention(queries, keys, values)
        return self.out(context.transpose(1, 2).flatten(2))

    def _split(self, x):
        return self.project(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)


def _counted(module, *inputs):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    return counter.get_total_flops()


def _counted_step(module, *inputs):
    """Forward and backward; the inputs need no gradient, so the first layer has one."""
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        module(*inputs).sum().backward()
    return counter.get_total_flops()


@check("F.2")
def check_F_2(attempt):
    torch.manual_seed(0)
    cases = [
        (AttentionAlone(12, 3), torch.randn(3, 7, 12)),
        (AttentionAlone(8, 1).eval(), torch.randn(1, 1, 8)),
        (AttentionOfTwo(8, 2), torch.randn(2, 5, 8), torch.randn(2, 9, 8)),
        (nn.Linear(3, 4), torch.randn(5, 3)),
    ]
    for module, *inputs in cases:
        twin = copy.deepcopy(module).to("meta")
        on_meta = [x.to("meta") for x in inputs]
        right, step = _counted(twin, *on_meta), _counted_step(twin, *on_meta)
        hole = _counted(module, *inputs)
        before = [p.detach().clone() for p in module.parameters()]
        state = module.training, [p.requires_grad for p in module.parameters()]
        found = call(attempt, module, *inputs)
        devices = {p.device.type for p in module.parameters()}
        expect(
            devices == {"cpu"},
            "the module itself has been moved and has lost its numbers; count a copy",
        )
        expect(
            [p.dtype for p in module.parameters()] == [p.dtype for p in before],
            "the module's parameters are left with another dtype",
        )
        same = all(map(torch.equal, before, module.parameters()))
        expect(same, "the module's parameters have changed")
        after = module.training, [p.requires_grad for p in module.parameters()]
        expect(
            after[0] == state[0],
            "the module is left in another mode, of training and evaluation",
        )
        expect(
            after[1] == state[1],
            "the module's parameters are left with another requires_grad",
        )
        expect(
            all(x.device.type == "cpu" for x in inputs), "the inputs have been moved"
        )
        found = _whole_number(found)
        slips = {
            "attention is missing: the counter has no entry for the kernel that runs "
            "on the CPU": hole,
            "only attention is counted, and the linear layers are missing": right
            - hole,
            "a multiply-add is two operations, and here it is one": right // 2,
            "a training step is counted, but a forward pass is asked for": step,
            "the backward pass is counted, but a forward pass is asked for": (
                step - right
            ),
            "the count is three times a forward pass": 3 * right,
        }
        _expect_no_slip(found, right, slips)
        expect_equal(found, right, "the count is not right")
    return "Four modules, one with two inputs; no parameter was changed."


# --- F.3 A backward pass that stops early ---------------------------------------------


@functools.cache
def _backward_counted(name, batch, tokens, trained):
    """What PyTorch counts with all frozen but the last blocks, norm and head."""
    cfg = TINY[name]
    model = model_on_meta(cfg).requires_grad_(False)
    blocks = list(model.trf_blocks)[cfg["n_layers"] - trained :]
    for part in (*blocks, model.final_norm, model.out_head):
        part.requires_grad_(True)
    idx = torch.zeros(batch, tokens, dtype=torch.long, device="meta")
    logits = model(idx)
    with FlopCounterMode(display=False) as counter:
        logits.sum().backward()
    return counter.get_total_flops()


@check("F.3")
def check_F_3(attempt):
    for name, cfg in TINY.items():
        for trained in (1, 2, 0, cfg["n_layers"]):
            batch, tokens = 3 + trained, 5 + trained
            about = f"with {trained} trained block{'s' * (trained != 1)}: "
            found = _whole_number(call(attempt, cfg, batch, tokens, trained))
            parts = forward_flops(cfg, batch, tokens)
            forward, head = sum(parts.values()), parts["head"]
            block = (forward - head) // cfg["n_layers"]
            frozen = cfg["n_layers"] - trained
            right = _backward_counted(name, batch, tokens, trained)
            attention = trained * parts["attention products"] // cfg["n_layers"]
            _, D, H, G, K, _, _, _ = sizes_of(cfg)
            first = matmul_flops(batch * tokens, D, (H + 2 * G) * K) if trained else 0
            slips = {
                "the output head is missing": 2 * trained * block,
                "frozen blocks are gone through as well; but nothing that learns lies "
                "before them": right + frozen * block,
                "nothing is saved: this is the backward pass of the whole model": (
                    2 * forward
                ),
                "the forward pass is counted, too": right + forward,
                "each product has two gradients, and one of them is counted": (
                    right // 2
                ),
                "each product has two gradients, and for the blocks one of them is "
                "counted": right - trained * block,
                "each product has two gradients, and for the head one of them is "
                "counted": right - head,
                "the batch is missing, or one sequence is counted": right // batch,
                "it goes by the share of blocks for the head as well, which learns "
                "whole": 2 * forward * trained // cfg["n_layers"],
                "as many blocks are counted as are frozen": (
                    2 * head + 2 * frozen * block
                ),
                "the first trained block has only one gradient for its queries, keys "
                "and values, but a norm that learns stands before them": right - first,
                "for attention products one gradient of two is counted": (
                    right - attention
                ),
                "the attention products are missing": right - 2 * attention,
            }
            _expect_no_slip(found, right, {about + m: n for m, n in slips.items()})
            expect_equal(found, right, about + "the count is not right")
    return "Two architectures, from no block to all of them, as PyTorch counts."


# --- F.4 A batch large enough? --------------------------------------------------------


def _least_batch(cfg, past, ridge, cache_shared=False):
    """The batch by exact fractions; None if there is none."""
    one, two = (forward_work(cfg, batch, 1, past) for batch in (1, 2))
    own = two.bytes - one.bytes  # bytes that come with each sequence
    if cache_shared:
        own = 0
    shared = one.bytes - own
    spare = one.flops - Fraction(ridge) * own
    if spare <= 0:
        return None
    return max(1, math.ceil(Fraction(ridge) * shared / spare))


@check("F.4")
def check_F_4(attempt):
    cases = [
        (SMOLLM2_135M, 1024, 5.0),
        (SMOLLM2_135M, 64, 5.0),
        (GPT_CONFIG_1558M, 16, 8.0),
        (LLAMA32_1B, 512, 5.0),
        (GPT_CONFIG_124M, 1023, 5.0),
        (SMOLLM2_135M, 8000, 100.0),
        (GPT_CONFIG_124M, 0, 0.25),
        (SMOLLM2_135M, 1024, 7.15),  # just below the limit: thousands of sequences
        (TINY_GPT, 1, 2.109375),  # what 6 sequences have, exactly
    ]
    for cfg, past, ridge in cases:
        right = _least_batch(cfg, past, ridge)
        found = call(attempt, cfg, past, ridge)
        about = f"with {past} tokens in the cache and a ridge at {ridge:g}"
        if right is None:
            expect(
                found is None,
                f"{about} no batch is enough: caches are not shared, so the intensity "
                "has a limit; return None",
            )
            continue
        expect(found is not None, f"{about} there is such a batch")
        found = _whole_number(found)
        expect(found >= 1, f"{about} the batch is {found}; it is at least 1")
        slips = {
            "the cache is counted once, but each sequence brings its own": (
                _least_batch(cfg, past, ridge, cache_shared=True)
            ),
            "bytes are taken for two a number, but float32 has four": (
                _least_batch(cfg, past, ridge / 2)
            ),
        }
        _expect_no_slip(found, right, slips)
        reached = forward_work(cfg, found, 1, past).intensity
        more = ", and one more is enough" * (found == right - 1)
        expect(
            reached >= ridge,
            f"{about} a batch of {found} reaches {reached:.5g} only{more}",
        )
        expect(found == right, f"{about} a smaller batch is enough, too")
    return "Nine cases, two of them without any batch that would do."
