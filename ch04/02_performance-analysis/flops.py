"""What a language model costs: operations, bytes, and time (chapter 4, bonus).

* `forward_flops`, `backward_flops`, `training_flops` and `generation_flops` count
  operations by formula, attention products and output head included; `count_flops` has
  PyTorch count them, and both agree to the last digit for every config of the course;
* `parameter_counts`, `activation_bytes` and `training_bytes` do so for memory;
* `forward_work` and `training_work` relate operations to bytes, `measure_ceilings`
  finds what a machine can do of both, and `Ceilings` is its roofline;
* `utilisation` is the MFU, `processor_peak` a published peak by its formula;
* `compute_optimal`, `ScalingLaw` and `gpt_for_budget` say which model fits a budget.

Sources: Kaplan et al., 2020 (arXiv:2001.08361, section 2.1): 6 operations for each
parameter and token; Chowdhery et al., 2022 (arXiv:2204.02311, appendix B): the MFU;
Williams et al., 2009 (DOI 10.1145/1498765.1498785): the roofline; Korthikanti et al.,
2022 (arXiv:2205.05198, section 4): activations; Hoffmann et al., 2022
(arXiv:2203.15556) and Besiroglu et al., 2024 (arXiv:2404.10102): the budget. Left out:
what is not a matrix product (norms, softmax, activation functions), and padding.

>>> from gpt import GPT_CONFIG_124M
>>> parts = forward_flops(GPT_CONFIG_124M, batch=2, tokens=1024)
>>> parts["attention products"], sum(parts.values())
(77309411328, 583296614400)
>>> count_flops(GPT_CONFIG_124M, batch=2, tokens=1024)  # forward, backward
(583296614400, 1166593228800)
>>> compute_optimal(1.2e20)  # parameters and tokens for a budget in operations
(1000000000.0, 20000000000.0)

A config is a `GPTConfig`, a `LlamaConfig`, or a dictionary with the same entries.
Shapes: B batch, T new tokens, S all tokens (cached and new), D model width, H query
heads, G key/value heads, K head width, F feed-forward width, V vocabulary, L blocks.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from gpt import GPT_CONFIG_124M, GPTConfig, GPTModel
from llama import LlamaModel

# --- Operations ----------------------------------------------------------------------


def matmul_flops(rows: int, inner: int, columns: int) -> int:
    """Operations of a product (rows, inner) by (inner, columns).

    Each result is a sum of `inner` products: as many multiplications as additions, if
    the sum starts from 0.
    """
    return 2 * rows * inner * columns


class Sizes(NamedTuple):
    """The sizes that decide what a model costs, in the letters of the course."""

    L: int
    D: int
    H: int
    G: int
    K: int
    F: int
    V: int
    matrices: int  # in feed-forward: 3 with a gate, otherwise 2


def sizes_of(cfg: Mapping[str, Any]) -> Sizes:
    """The sizes in a config, those that a GPT does not name included."""
    D, H = cfg["emb_dim"], cfg["n_heads"]
    return Sizes(
        L=cfg["n_layers"],
        D=D,
        H=H,
        G=cfg.get("n_kv_groups", H),
        K=cfg.get("head_dim", D // H),
        F=cfg.get("hidden_dim", 4 * D),
        V=cfg["vocab_size"],
        matrices=3 if "hidden_dim" in cfg else 2,
    )


def forward_flops(
    cfg: Mapping[str, Any], batch: int, tokens: int, past: int = 0
) -> dict[str, int]:
    """Operations of one forward pass by part of the model.

    Args:
        cfg: the config of a `GPTModel` or a `LlamaModel`.
        batch: sequences, B.
        tokens: new tokens in each, T; each gets its logits.
        past: tokens in the cache before them, S - T.

    Returns:
        {part: operations}; hidden scores are counted, as they are computed.
    """
    L, D, H, G, K, F, V, matrices = sizes_of(cfg)
    rows, S = batch * tokens, past + tokens
    queries_keys_values = matmul_flops(rows, D, (H + 2 * G) * K)
    out_proj = matmul_flops(rows, H * K, D)
    scores = batch * H * matmul_flops(tokens, K, S)
    mixing = batch * H * matmul_flops(tokens, S, K)
    return {
        "projections": L * (queries_keys_values + out_proj),
        "attention products": L * (scores + mixing),
        "feed-forward": L * matrices * matmul_flops(rows, D, F),
        "head": matmul_flops(rows, D, V),
    }


def backward_flops(cfg: Mapping[str, Any], batch: int, tokens: int) -> dict[str, int]:
    """Operations of the backward pass by part, all parameters being trained.

    Each product has two gradients, and each of these is a product of the same sizes.
    """
    forward = forward_flops(cfg, batch, tokens)
    return {part: 2 * flops for part, flops in forward.items()}


def training_flops(cfg: Mapping[str, Any], batch: int, tokens: int) -> int:
    """Operations of one training step, forward and backward.

    The optimizer's few operations for each parameter are left out.
    """
    forward = forward_flops(cfg, batch, tokens)
    backward = backward_flops(cfg, batch, tokens)
    return sum(forward.values()) + sum(backward.values())


def generation_flops(
    cfg: Mapping[str, Any], batch: int, prompt: int, new_tokens: int, cached: bool
) -> int:
    """Operations of `generate_text_simple`, within the context.

    The first pass reads the prompt. Each further one reads one token with a cache, and
    without a cache the whole text so far. The last token is chosen and never read.
    Fewer than one new token is a `ValueError`.
    """
    if new_tokens < 1:
        raise ValueError(f"new_tokens is {new_tokens}; it must be at least 1.")
    passes = [(prompt, 0)]  # (tokens, past)
    for length in range(prompt + 1, prompt + new_tokens):
        passes.append((1, length - 1) if cached else (length, 0))
    return sum(
        sum(forward_flops(cfg, batch, tokens, past).values()) for tokens, past in passes
    )


def needed_scores(tokens: int, past: int = 0) -> int:
    """Scores that a causal mask leaves, of `tokens * (past + tokens)` computed ones.

    The first new token sees `past + 1` tokens, the last one all.
    """
    return tokens * past + tokens * (tokens + 1) // 2


def model_on_meta(cfg: Mapping[str, Any]) -> nn.Module:
    """The model of a config with shapes and without numbers, in training mode."""
    with torch.device("meta"):
        return LlamaModel(cfg) if "hidden_dim" in cfg else GPTModel(cfg)


def count_flops(cfg: Mapping[str, Any], batch: int, tokens: int) -> tuple[int, int]:
    """Operations of forward and of backward, counted by PyTorch as the model runs.

    It runs on `meta`, where sizes are all there is and nothing has to be computed.
    Arguments are as in `forward_flops`.
    """
    model = model_on_meta(cfg)
    idx = torch.zeros(batch, tokens, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        logits = model(idx)
        loss = functional.cross_entropy(logits.flatten(0, 1), idx.flatten())
        forward = counter.get_total_flops()
        loss.backward()
    return forward, counter.get_total_flops() - forward


# --- Bytes ---------------------------------------------------------------------------


def parameter_counts(cfg: Mapping[str, Any]) -> dict[str, int]:
    """Parameters by part; a tied head has none of its own."""
    L, D, H, G, K, F, V, matrices = sizes_of(cfg)
    counts = {
        "embeddings": V * D,
        "attention": L * (D * (H + 2 * G) * K + H * K * D),
        "feed-forward": L * matrices * D * F,
        "norms": (2 * L + 1) * D,
        "head": 0 if cfg.get("tie_weights") else V * D,
    }
    if "hidden_dim" not in cfg:  # a GPT has a table of positions, and biases
        counts["embeddings"] += cfg["context_length"] * D
        counts["attention"] += L * (D + 3 * D * cfg["qkv_bias"])
        counts["feed-forward"] += L * (F + D)
        counts["norms"] *= 2  # scale and shift
    return counts


def activation_bytes(cfg: Mapping[str, Any], batch: int, tokens: int) -> dict[str, int]:
    """Bytes that forward and loss keep for the backward pass, in float32, by part.

    They are those of *this* code on the CPU: its norms and GELU are written out and
    keep more than fused kernels would. A mask of dropout holds 4 bytes for each number,
    on a GPU one. The model is in training mode; ids and targets are two tensors.
    """
    L, D, H, G, K, F, V, _ = sizes_of(cfg)
    B, T = batch, tokens
    kept = {  # numbers for each token
        "norms": L * 2 * (3 * D + 1) + 3 * D + 1,
        "queries, keys, values": L * (2 * H * K + 2 * G * K),
        "attention weights": L * H * T,
        "feed-forward": L * 4 * F,
        "logits": V,
    }
    rest = 2 * 8 * B * T + 4  # token ids, targets; how many targets count
    if "hidden_dim" in cfg:
        rest += 2 * 4 * T * K  # cos, sin
        rest += L * T * T if T > 1 else 0  # which keys are hidden, bool
    else:
        rest += 8 * T  # positions
        kept["feed-forward"] += L * F  # GELU by tanh keeps one more than a gate
        if cfg["drop_rate"] > 0:
            kept["dropout"] = L * (2 * D + 2 * H * T) + D
    sizes = {part: 4 * B * T * numbers for part, numbers in kept.items()}
    return {**sizes, "ids and masks": rest}


def training_bytes(cfg: Mapping[str, Any], batch: int, tokens: int) -> dict[str, int]:
    """Bytes that a training step with AdamW has to do with, in float32, by part.

    They are not all held at one moment: the sum estimates the peak and is no bound.
    """
    parameters = sum(parameter_counts(cfg).values())
    return {
        "weights": 4 * parameters,
        "gradients": 4 * parameters,
        "AdamW's moments": 2 * 4 * parameters,
        "activations": sum(activation_bytes(cfg, batch, tokens).values()),
    }


def measure_activations(model: nn.Module, idx: Tensor, targets: Tensor) -> int:
    """Bytes that autograd really keeps of a forward pass and its loss.

    Each memory is counted once, that of parameters and buffers not at all. `idx` and
    `targets` are ids, (B, T); a model in evaluation mode keeps less.
    """
    own = [*model.parameters(), *model.buffers()]
    known = {tensor.untyped_storage().data_ptr() for tensor in own}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself would keep itself alive

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(idx)
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert loss.requires_grad  # it still holds all, so no address was used twice
    return sum(kept.values())


# --- The roofline --------------------------------------------------------------------


class Work(NamedTuple):
    """Operations, and the bytes that at least have to be moved for them."""

    flops: float
    bytes: float

    @property
    def intensity(self) -> float:
        """Operations for each byte."""
        return self.flops / self.bytes


def forward_work(
    cfg: Mapping[str, Any], batch: int, tokens: int, past: int = 0, size: int = 4
) -> Work:
    """A forward pass: prefill with `past=0`, a step of decoding with `tokens=1`.

    Weights and cache are read once, new keys and values and the logits written once.
    Of the embeddings only the rows of the tokens are read, which does not count. `size`
    is bytes for each number; the other arguments are as in `forward_flops`.
    """
    L, _, _, G, K, _, V, _ = sizes_of(cfg)
    counts = parameter_counts(cfg)
    read = sum(counts.values()) - counts["embeddings"]
    if cfg.get("tie_weights"):
        read += V * cfg["emb_dim"]  # the head reads the whole table
    cache = 2 * L * batch * G * K * (past + tokens)
    logits = batch * tokens * V
    flops = sum(forward_flops(cfg, batch, tokens, past).values())
    return Work(flops, size * (read + cache + logits))


def training_work(cfg: Mapping[str, Any], batch: int, tokens: int) -> Work:
    """A training step with AdamW in float32.

    Weights are read forward and backward, gradients written; AdamW reads weight,
    gradient and two moments and writes three; activations are written and read.
    """
    parameters = sum(parameter_counts(cfg).values())
    activations = sum(activation_bytes(cfg, batch, tokens).values())
    moved = 4 * parameters * (3 + 7) + 2 * activations
    return Work(training_flops(cfg, batch, tokens), moved)


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, idx: Tensor
) -> None:
    """One step of training; the ids are their own targets, which changes no cost."""
    optimizer.zero_grad()
    logits = model(idx)
    functional.cross_entropy(logits.flatten(0, 1), idx.flatten()).backward()
    optimizer.step()


class Ceilings(NamedTuple):
    """What a machine can do at most: the two lines of its roofline."""

    flops_per_second: float
    bytes_per_second: float

    @property
    def ridge(self) -> float:
        """The intensity from which on arithmetic is the limit, not memory."""
        return self.flops_per_second / self.bytes_per_second

    def attainable(self, intensity: float) -> float:
        """Operations a second that work of this intensity can reach."""
        return min(self.flops_per_second, intensity * self.bytes_per_second)

    def least_seconds(self, work: Work) -> float:
        """Seconds that the work takes at least."""
        return work.flops / self.attainable(work.intensity)


def fastest(work: Callable[[], object], rounds: int, device: str = "cpu") -> float:
    """Seconds of the fastest of some rounds, at least 1, after one that warms up.

    For a ceiling the fastest is right: whatever else a machine does can only slow it.
    """
    on_cpu = torch.device(device).type == "cpu"
    wait = (lambda: None) if on_cpu else torch.accelerator.synchronize
    seconds = []
    for _ in range(rounds + 1):
        wait()
        start = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def measure_ceilings(
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    sides: tuple[int, ...] = (512, 1024, 2048),
    megabytes: int = 256,
    rounds: int = 5,
) -> Ceilings:
    """Measure what this machine can do: square matrix products, and a copy.

    Args:
        dtype: of the numbers.
        device: such as "cpu" or "cuda".
        sides: of the matrices; the best counts. A GPU reaches its peak with 8,192 and
            more.
        megabytes: to copy, more than the caches hold; each byte goes in and out.
        rounds: the fastest counts.
    """
    flops_per_second = 0.0
    for side in sides:
        a = torch.randn(side, side, device=device).to(dtype)
        seconds = fastest(lambda a=a: a @ a, rounds, device)
        flops = matmul_flops(side, side, side)
        flops_per_second = max(flops_per_second, flops / seconds)
    source = torch.ones(megabytes * 10**6, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = fastest(lambda: target.copy_(source), rounds, device)
    return Ceilings(flops_per_second, 2 * source.nbytes / seconds)


def utilisation(
    cfg: Mapping[str, Any], context: int, tokens_per_second: float, peak: float
) -> float:
    """Model FLOPs utilisation (MFU) of a training run, from 0 to 1.

    Args:
        cfg: the config of a `GPTModel` or a `LlamaModel`.
        context: tokens in a sequence.
        tokens_per_second: how many the run reads.
        peak: operations a second that the machine could do.

    Source: Chowdhery et al., 2022, appendix B. What is computed twice is counted once.
    """
    flops_per_token = training_flops(cfg, 1, context) / context
    return tokens_per_second * flops_per_token / peak


def processor_peak(cores: int, hertz: float, lanes: int, units: int = 2) -> float:
    """Operations a second by a processor's data sheet.

    No program gets beyond it, unless there are units that it does not count, such as
    the matrix units of Apple's processors.

    Args:
        cores: that compute at the same time.
        hertz: clock of each.
        lanes: numbers in a vector register: 16 float32 with AVX-512, 8 with AVX2.
        units: fused multiply-adds of that width that a core starts in each cycle.
    """
    return cores * hertz * lanes * units * 2  # a multiply-add is two operations


# --- The right size for a budget -----------------------------------------------------


def compute_optimal(
    flops: float, tokens_per_parameter: float = 20.0
) -> tuple[float, float]:
    """Parameters and training tokens that use up a budget of operations.

    Solves 6 * parameters * tokens = flops; the ratio is that of Hoffmann et al., 2022.
    A budget or a ratio that is not positive is a `ValueError`.
    """
    if flops <= 0 or tokens_per_parameter <= 0:
        raise ValueError(
            f"flops is {flops:.2g} and tokens_per_parameter {tokens_per_parameter:.2g};"
            " both must be above 0."
        )
    parameters = (flops / (6 * tokens_per_parameter)) ** 0.5
    return parameters, tokens_per_parameter * parameters


@dataclasses.dataclass(frozen=True)
class ScalingLaw:
    """Loss as a sum: what no model can avoid, too small a model, too little text.

    Source: Hoffmann et al., 2022, equations 2 and 4.
    """

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Predicted loss in nats for each token."""
        too_small = self.A / parameters**self.alpha
        return self.E + too_small + self.B / tokens**self.beta

    def optimum(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens of least loss with 6 * parameters * tokens = flops."""
        balance = self.alpha * self.A / (self.beta * self.B)
        share = self.beta / (self.alpha + self.beta)
        factor = balance ** (1 / (self.alpha + self.beta))
        parameters = factor * (flops / 6) ** share
        return parameters, flops / 6 / parameters


# The digits that the paper rounds away, which its source has (Besiroglu et al., 2024).
HOFFMANN_2022 = ScalingLaw(E=1.6934, A=406.4, alpha=0.3392, B=410.7, beta=0.2849)
BESIROGLU_2024 = ScalingLaw(E=1.8172, A=482.01, alpha=0.3478, B=2085.43, beta=0.3658)


def gpt_for_budget(
    flops: float, vocab_size: int, context: int, tokens_per_parameter: float = 20.0
) -> tuple[GPTConfig, int]:
    """The widest GPT that a budget can train, its operations counted in full.

    Widths are multiples of 64, one head for each; the depth is D / 64, at least 2, as
    in GPT-2's 124M; the head is tied. Returns the config and the training tokens.

    Raises:
        ValueError: not even the narrowest fits, or one of 999 heads does, too.
    """
    found = None
    for heads in range(1, 1000):
        sizes = {"emb_dim": 64 * heads, "n_heads": heads, "n_layers": max(2, heads)}
        text = {"vocab_size": vocab_size, "context_length": context}
        cfg = {**GPT_CONFIG_124M, **sizes, **text, "tie_weights": True}
        tokens = round(tokens_per_parameter * sum(parameter_counts(cfg).values()))
        if tokens * training_flops(cfg, 1, context) / context > flops:
            break
        found = GPTConfig.of(cfg), tokens
    else:
        raise ValueError(f"{flops:.2g} operations are enough for the widest tried.")
    if found is None:
        raise ValueError(f"{flops:.2g} operations are too few even for a width of 64.")
    return found
