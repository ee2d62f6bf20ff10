"""The Llama model: what later models changed in GPT's design (chapter 5).

Four parts differ from `GPTModel` of chapter 4; everything else is as it was there.

* `RMSNorm` scales a token vector without centring it (Zhang and Sennrich, 2019,
  arXiv:1910.07467, equation 4);
* rotary positions turn queries and keys instead of adding a table to the embeddings
  (Su et al., 2021, arXiv:2104.09864, section 3.2.2): `rope_frequencies`,
  `rope_cos_sin`, `apply_rope`, and `pairs_to_halves` for weights of the other pairing;
* `LlamaFeedForward` has a gate, SwiGLU (Shazeer, 2020, arXiv:2002.05202, equation 6);
* attention is `GroupedQueryAttention` of chapter 4.

`LlamaConfig`, `LlamaBlock` and `LlamaModel` put them together, for Llama 2 (Touvron et
al., 2023, arXiv:2307.09288), Llama 3 to 3.2 (Grattafiori et al., 2024,
arXiv:2407.21783; the scaling of the frequencies, `RopeScaling`, is that of the code
released with 3.1), and SmolLM2 (Allal et al., 2025, arXiv:2502.02737), which has the
same architecture. `llama_key_map` names the weights as published; `arrange_columns` and
`quantise_int8` make fast copies for generating, the second one of another precision.
Left out: initialisation for training from nothing, dropout, biases.

>>> import torch
>>> cfg = LlamaConfig.of({**SMOLLM2_135M, "vocab_size": 50, "context_length": 64,
...     "emb_dim": 12, "n_heads": 6, "n_kv_groups": 2, "head_dim": 4, "n_layers": 2,
...     "hidden_dim": 20})
>>> _ = torch.manual_seed(0)
>>> model = LlamaModel(cfg).eval()
>>> idx = torch.tensor([[7, 1, 4], [3, 3, 9]])  # two prompts of three tokens
>>> model(idx).shape
torch.Size([2, 3, 50])

It has the interface of `GPTModel`, so what generated with that generates with this:

>>> from gpt import count_parameters, generate_text_simple
>>> from kv_cache import KVCache
>>> text = generate_text_simple(model, idx, max_new_tokens=4, context_size=64)
>>> cached = generate_text_simple(
...     model, idx, max_new_tokens=4, context_size=64, cache=KVCache(num_layers=2))
>>> torch.equal(cached, text)
True

The sizes are known without a byte of memory being spent:

>>> with torch.device("meta"):
...     count_parameters(LlamaModel(LLAMA32_1B))
1235814400

Shapes: B batch, T new tokens, S all tokens, D model width (`emb_dim`), H query heads
(`n_heads`), G key/value heads (`n_kv_groups`), K head width (`head_dim`), F
feed-forward width (`hidden_dim`), V vocabulary, L blocks (`n_layers`).
"""

import copy
import dataclasses
import functools
import math
import warnings
from collections.abc import Mapping
from numbers import Real

import torch
from torch import nn
from torch.nn import functional as F

from gpt import GPTConfig, TiedHead, _cached_tokens, _check_idx
from gqa import GroupedQueryAttention
from multihead_attention import _check_attention_mask, _check_sizes

# --- The configuration ---------------------------------------------------------------


def _check_number(name, number, above):
    """Raise unless the number is finite and above a bound."""
    if isinstance(number, bool) or not isinstance(number, Real):
        raise ValueError(f"{name} is {number!r}: give a number above {above}.")
    if not math.isfinite(number) or number <= above:
        raise ValueError(f"{name} is {number}: give a finite number above {above}.")


def _check_scaling(scaling):
    """Raise unless every field of the scaling is in its range."""
    _check_sizes(original_context_length=scaling["original_context_length"])
    for name in ("factor", "low_freq_factor", "high_freq_factor"):
        _check_number(name, scaling[name], above=0)
    if scaling["factor"] < 1:
        raise ValueError(
            f"factor is {scaling['factor']}: it divides the slow frequencies, so give "
            "1 or more; 8 makes the context eight times as long."
        )
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    if low >= high:
        raise ValueError(
            f"low_freq_factor={low} must lie below high_freq_factor={high}: between "
            "them the scaling sets in."
        )


def _check_llama(cfg):
    """Raise unless every field of the config is of its kind and in its range."""
    sizes = "vocab_size context_length emb_dim n_heads n_kv_groups head_dim n_layers"
    _check_sizes(**{name: cfg[name] for name in (*sizes.split(), "hidden_dim")})
    _check_llama_heads(cfg)
    _check_number("rope_base", cfg["rope_base"], above=1)
    _check_number("norm_eps", cfg["norm_eps"], above=0)
    if not isinstance(cfg["tie_weights"], bool):
        raise ValueError(f"tie_weights is {cfg['tie_weights']!r}: give True or False.")
    scaling = cfg["rope_scaling"]
    if scaling is not None and not isinstance(scaling, Mapping):
        raise ValueError(
            f"rope_scaling is {scaling!r}: give a RopeScaling, or None if the model "
            "was trained without scaling."
        )


def _check_llama_heads(cfg):
    """Raise unless heads fit groups, and a head can be cut into pairs."""
    if cfg["n_heads"] % cfg["n_kv_groups"]:
        raise ValueError(
            f"n_heads={cfg['n_heads']} cannot share n_kv_groups={cfg['n_kv_groups']} "
            "groups evenly: choose a number of groups that divides the number of heads."
        )
    if cfg["head_dim"] % 2:
        raise ValueError(
            f"head_dim={cfg['head_dim']} is odd, but rotary positions turn pairs of "
            "numbers: choose an even width."
        )


def _check_int8_input(x, in_features):
    """Raise unless x can be multiplied by 8-bit weights."""
    if x.shape[-1] != in_features:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, so its tokens are {x.shape[-1]} wide, but "
            f"this layer takes {in_features}."
        )
    if x.device.type != "cpu":
        raise ValueError(
            f"x is on {x.device}, but 8-bit weights are for the CPU: leave the model "
            "there, or use the one it was made from."
        )
    if x.requires_grad:
        raise ValueError(
            "A quantised layer passes no gradients: train the model that it was made "
            "from, and quantise that afterwards."
        )


def _check_original(model):
    """Raise unless the model is one of ours, on the CPU, and no fast copy itself."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}: give a model.")
    for kind, done in ((Int8Linear, "quantised"), (ColumnLinear, "arranged")):
        if any(isinstance(layer, kind) for layer in model.modules()):
            raise ValueError(
                f"This model is {done} already: use it as it is, or start from the one "
                "it was made from."
            )
    devices = {parameter.device.type for parameter in model.parameters()}
    if devices != {"cpu"}:
        raise ValueError(
            f"The model is on {', '.join(sorted(devices)) or 'no device'}, but fast "
            'copies are for the CPU: move it with model.to("cpu") first.'
        )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class RopeScaling(Mapping):
    """How Llama 3.1 and later slow down the rotary frequencies for a longer context.

    Frequencies that turn more than `high_freq_factor` times within the original context
    stay; those that turn less than `low_freq_factor` times are divided by `factor`;
    between the two the division sets in gradually.

    Args:
        factor: divisor of the slow frequencies, at least 1: 8 in Llama 3.1, 32 in 3.2.
        low_freq_factor: turns below which a frequency is slow, above 0.
        high_freq_factor: turns above which it is fast, above `low_freq_factor`.
        original_context_length: tokens in a text when the frequencies were chosen.

    Raises:
        ValueError: a value is out of range; the message names the field.
        TypeError: a field is unknown or missing.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context_length: int

    def __post_init__(self):
        _check_scaling(self)

    __getitem__ = GPTConfig.__getitem__
    __iter__ = GPTConfig.__iter__
    __len__ = GPTConfig.__len__
    of = classmethod(GPTConfig.of.__func__)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LlamaConfig(Mapping):
    """The sizes of a Llama, checked when it is made, and readable like a dictionary.

    As with `GPTConfig`, `cfg["emb_dim"]` and `cfg.emb_dim` are the same, and
    `{**cfg, "context_length": 256}` is a dictionary with one entry changed. No field
    has a default: a rotary base or scaling that is guessed gives a model that writes
    nonsense, some only after thousands of tokens.

    Args:
        vocab_size: how many different tokens there are, V.
        context_length: the most tokens that the model can read at once. Changing it
            changes no number, so it may be lowered freely.
        emb_dim: width of a token vector, D.
        n_heads: query heads in a block, H.
        n_kv_groups: key/value heads, G, a divisor of `n_heads`.
        head_dim: width of a head, K, an even number; often but not always D / H.
        n_layers: blocks, L.
        hidden_dim: width of the feed-forward part, F.
        rope_base: the base of the rotary frequencies, above 1.
        rope_scaling: a `RopeScaling`, a mapping with its fields, or None.
        norm_eps: what `RMSNorm` adds under the root, above 0.
        tie_weights: whether the output head is the token embedding.

    Raises:
        ValueError: a value is out of range; the message names the field.
        TypeError: a field is unknown or missing.
    """

    vocab_size: int
    context_length: int
    emb_dim: int
    n_heads: int
    n_kv_groups: int
    head_dim: int
    n_layers: int
    hidden_dim: int
    rope_base: float
    rope_scaling: RopeScaling | None
    norm_eps: float
    tie_weights: bool

    def __post_init__(self):
        _check_llama(self)
        if self.rope_scaling is not None:
            object.__setattr__(self, "rope_scaling", RopeScaling.of(self.rope_scaling))

    __getitem__ = GPTConfig.__getitem__
    __iter__ = GPTConfig.__iter__
    __len__ = GPTConfig.__len__
    of = classmethod(GPTConfig.of.__func__)


LLAMA2_7B = LlamaConfig(
    vocab_size=32000,
    context_length=4096,
    emb_dim=4096,
    n_heads=32,
    n_kv_groups=32,
    head_dim=128,
    n_layers=32,
    hidden_dim=11008,
    rope_base=10_000.0,
    rope_scaling=None,
    norm_eps=1e-5,
    tie_weights=False,
)
LLAMA3_8B = LlamaConfig.of(
    {
        **LLAMA2_7B,
        "vocab_size": 128256,
        "context_length": 8192,
        "n_kv_groups": 8,
        "hidden_dim": 14336,
        "rope_base": 500_000.0,
    }
)
LLAMA31_8B = LlamaConfig.of(
    {
        **LLAMA3_8B,
        "context_length": 131072,
        "rope_scaling": RopeScaling(
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_context_length=8192,
        ),
    }
)
LLAMA32_3B = LlamaConfig.of(
    {
        **LLAMA31_8B,
        "emb_dim": 3072,
        "n_heads": 24,
        "n_layers": 28,
        "hidden_dim": 8192,
        "rope_scaling": {**LLAMA31_8B.rope_scaling, "factor": 32.0},
        "tie_weights": True,
    }
)
LLAMA32_1B = LlamaConfig.of(
    {**LLAMA32_3B, "emb_dim": 2048, "n_heads": 32, "head_dim": 64, "n_layers": 16}
)
SMOLLM2_135M = LlamaConfig(
    vocab_size=49152,
    context_length=8192,
    emb_dim=576,
    n_heads=9,
    n_kv_groups=3,
    head_dim=64,
    n_layers=30,
    hidden_dim=1536,
    rope_base=100_000.0,
    rope_scaling=None,
    norm_eps=1e-5,
    tie_weights=True,
)


# --- The four changes ----------------------------------------------------------------


class RMSNorm(nn.Module):
    """Each token vector scaled to a mean square of 1, then by learned factors.

    Unlike `LayerNorm` it neither subtracts the mean nor adds a shift.

    Args:
        emb_dim: width of a token vector, D.
        eps: what is added to the mean square, under the root.
    """

    def __init__(self, emb_dim, eps):
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(emb_dim))

    def forward(self, x):
        """Normalise the last dimension: (..., D) to (..., D), of the same dtype.

        The mean is taken in float32 (float64 stays), as in `LayerNorm`.
        """
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean_square = wide.square().mean(dim=-1, keepdim=True)  # (..., 1)
        normalised = wide * torch.rsqrt(mean_square + self.eps)
        return (self.scale * normalised).to(x.dtype)


def rope_frequencies(head_dim, base, scaling, device=None):
    """How far each pair of numbers turns from one token to the next, in radians.

    Pair i turns by base ** (-2 i / K): the first by 1 radian, the last by little more
    than 1 / base. `scaling` then slows down those that barely turn within the context
    of training, so that a longer one brings no angle that is new.

    Args:
        head_dim: width of a head, K, even.
        base: the base, such as 10,000 (Su et al., 2021, section 3.2.2).
        scaling: a `RopeScaling`, or None.
        device: where to put them.

    Returns:
        (K / 2,), float32.
    """
    exponents = torch.arange(0, head_dim, 2, device=device).float() / head_dim
    frequencies = 1.0 / base**exponents  # (K / 2,)
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies  # tokens for a whole turn
    turns = scaling["original_context_length"] / wavelengths
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)  # 0 if slow, 1 if fast
    return (1 - kept) * frequencies / scaling["factor"] + kept * frequencies


def rope_cos_sin(positions, frequencies):
    """Cosine and sine of the angle by which each pair is turned at each position.

    There is no table that could end: angles come from the positions themselves.

    Args:
        positions: whole numbers from 0, (T,) or (B, T).
        frequencies: (K / 2,), as from `rope_frequencies`.

    Returns:
        `(cos, sin)`, float32, (T, K) or (B, 1, T, K): the same for all heads, and the
        second half the same as the first, since entry i pairs with entry i + K / 2.
    """
    angles = positions[..., None].float() * frequencies  # (..., T, K / 2)
    angles = torch.cat((angles, angles), dim=-1)  # (..., T, K)
    if angles.ndim > 2:
        angles = angles[:, None]  # (B, 1, T, K)
    return angles.cos(), angles.sin()


def apply_rope(x, cos, sin):
    """Turn the pairs (i, i + K / 2) of every head by their angles.

    A vector turned by an angle is cos times itself plus sin times what a quarter turn
    makes of it, and a quarter turn takes (a, b) to (-b, a).

    Args:
        x: queries or keys, (B, heads, T, K), floating point.
        cos: (T, K) or (B, 1, T, K), as from `rope_cos_sin`.
        sin: the same.

    Returns:
        The shape and dtype of x; computed in float32 at least.
    """
    first, second = x.chunk(2, dim=-1)
    quarter_turned = torch.cat((-second, first), dim=-1)  # (B, heads, T, K)
    return (x * cos + quarter_turned * sin).to(x.dtype)


def pairs_to_halves(weight, num_heads):
    """Reorder a query or key projection made for rotating neighbours (2i, 2i + 1).

    The paper, the code released with the models and GGUF files pair neighbours;
    `apply_rope`, like the `transformers` library, pairs i with i + K / 2. These are the
    same vectors in another order: even entries go to the first half of their head, odd
    ones to the second. Queries and keys are reordered alike, so their products stay.

    Args:
        weight: (heads * K, D) or a bias, (heads * K,).
        num_heads: how many heads it holds: H for queries, G for keys.

    Returns:
        The same shape.
    """
    heads = weight.unflatten(0, (num_heads, -1, 2))  # (heads, K / 2, 2, ...)
    return heads.transpose(1, 2).flatten(0, 2)


def halves_to_pairs(weight, num_heads):
    """Undo `pairs_to_halves`: the same arguments, the opposite order."""
    heads = weight.unflatten(0, (num_heads, 2, -1))  # (heads, 2, K / 2, ...)
    return heads.transpose(1, 2).flatten(0, 2)


class LlamaFeedForward(nn.Module):
    """Three linear layers: a gate decides how much of each hidden number passes.

    Args:
        cfg: a `LlamaConfig`, or a mapping that has "emb_dim" and "hidden_dim".
    """

    def __init__(self, cfg):
        super().__init__()
        D, hidden_dim = cfg["emb_dim"], cfg["hidden_dim"]
        self.gate = nn.Linear(D, hidden_dim, bias=False)
        self.up = nn.Linear(D, hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, D, bias=False)

    def forward(self, x):
        """(B, T, D) to (B, T, D), by way of (B, T, F)."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


# --- The model -----------------------------------------------------------------------


class LlamaBlock(nn.Module):
    """Attention, then feed-forward, each normalised first and added to its input.

    Args:
        cfg: a `LlamaConfig`, or a mapping with the same entries.
    """

    def __init__(self, cfg):
        super().__init__()
        self.att = GroupedQueryAttention(
            d_in=cfg["emb_dim"],
            num_heads=cfg["n_heads"],
            num_kv_groups=cfg["n_kv_groups"],
            head_dim=cfg["head_dim"],
        )
        self.ff = LlamaFeedForward(cfg)
        self.norm1 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        self.norm2 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])

    def forward(self, x, attention_mask=None, cache=None, rotate=None):
        """Token vectors of the next block.

        Args:
            x: vectors of the T new tokens, (B, T, D).
            attention_mask: (B, S), True for a real token; None if all are.
            cache: this block's part of a cache, such as `KVCache(L).layer(0)`.
            rotate: what gives queries and keys their positions; see
                `GroupedQueryAttention.forward`.

        Returns:
            (B, T, D).

        Raises:
            ValueError: as `GroupedQueryAttention`.
        """
        x = x + self.att(self.norm1(x), attention_mask, cache, rotate)
        return x + self.ff(self.norm2(x))


class LlamaModel(nn.Module):
    """Token ids in, logits for the next token out.

    Args:
        cfg: a `LlamaConfig`, or a mapping with the same entries; kept as `self.cfg`.

    Raises:
        ValueError: a field of the config is unknown, missing or out of range.
    """

    def __init__(self, cfg):
        super().__init__()
        cfg = LlamaConfig.of(cfg)
        self.cfg = cfg
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.trf_blocks = nn.ModuleList(LlamaBlock(cfg) for _ in range(cfg["n_layers"]))
        self.final_norm = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        if cfg["tie_weights"]:
            self.out_head = TiedHead(self.tok_emb)
        else:
            self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, idx, attention_mask=None, cache=None):
        """Logits for the token that follows each of the new ones.

        Args:
            idx: ids of the T new tokens, (B, T), integers from 0 to V - 1.
            attention_mask: (B, S), bool or 0/1 integers, True for a real token, False
                for padding on either side; it covers the cached tokens as well as the
                new ones, in every call. Without it all tokens are real. Positions are
                counted over real tokens only, so padding changes no answer.
            cache: a `KVCache(n_layers)` with the tokens before idx. It changes.

        Returns:
            (B, T, V), floating point. Those at padding mean nothing.

        Raises:
            ValueError, TypeError: as `GPTModel.forward`; the cache is unchanged.
        """
        past = 0 if cache is None else _cached_tokens(cache, self.cfg)
        _check_idx(idx, self.cfg, past)
        positions = torch.arange(past, past + idx.shape[1], device=idx.device)
        if attention_mask is not None:
            _check_attention_mask(attention_mask, len(idx), past + idx.shape[1], past)
            real_so_far = attention_mask.cumsum(dim=1)  # (B, S)
            positions = (real_so_far - 1).clamp(min=0)[:, past:]  # (B, T)
        frequencies = rope_frequencies(
            self.cfg["head_dim"],
            self.cfg["rope_base"],
            self.cfg["rope_scaling"],
            idx.device,
        )
        cos, sin = rope_cos_sin(positions, frequencies)

        def rotate(heads):
            return apply_rope(heads, cos, sin)

        x = self.tok_emb(idx)  # (B, T, D)
        for i, block in enumerate(self.trf_blocks):
            part = None if cache is None else cache.layer(i)
            x = block(x, attention_mask, part, rotate)
        return self.out_head(self.final_norm(x))  # (B, T, V)


def llama_key_map(cfg):
    """Where published weights belong: {their name: our name}, shapes alike.

    "Their" names are those of the `transformers` library and of the safetensors files
    in its format, whose queries and keys pair halves as ours do.

    Args:
        cfg: a `LlamaConfig`, or a mapping with the same entries. With tied weights no
            entry is made for the output head.
    """
    names = {"model.embed_tokens": "tok_emb", "model.norm": "final_norm"}
    if not cfg["tie_weights"]:
        names["lm_head"] = "out_head"
    parts = {
        "self_attn.q_proj": "att.W_query",
        "self_attn.k_proj": "att.W_key",
        "self_attn.v_proj": "att.W_value",
        "self_attn.o_proj": "att.out_proj",
        "mlp.gate_proj": "ff.gate",
        "mlp.up_proj": "ff.up",
        "mlp.down_proj": "ff.down",
        "input_layernorm": "norm1",
        "post_attention_layernorm": "norm2",
    }
    for i in range(cfg["n_layers"]):
        for theirs, ours in parts.items():
            names[f"model.layers.{i}.{theirs}"] = f"trf_blocks.{i}.{ours}"
    return {
        f"{theirs}.weight": f"{ours}.{'scale' if 'norm' in ours else 'weight'}"
        for theirs, ours in names.items()
    }


# --- The same weights, in the order in which they are read ---------------------------


class ColumnLinear(nn.Module):
    """A linear layer that keeps its matrix for one token at a time, by columns mostly.

    A single token's product reads every weight once, so it takes as long as the
    reading. PyTorch reads a matrix faster along its longer side: by columns, where
    there are more outputs than inputs. And it leaves such a product to one thread;
    several products at once it spreads over its threads. So the inputs are parted, each
    part has a product of its own, and these are added up. No number changes but by
    rounding. For generating only.

    Args:
        weight: (N, K), floating point.
        bias: (N,), or None.
        parts: how many; the next smaller number that divides K is taken.
    """

    def __init__(self, weight, bias=None, parts=1):
        super().__init__()
        N, K = self.out_features, self.in_features = weight.shape
        self.parts = next(p for p in range(parts, 0, -1) if K % p == 0)
        rows = torch.contiguous_format
        if K / self.parts > N:
            columns = weight.clone(memory_format=rows).t()
        else:
            columns = weight.t().clone(memory_format=rows)
        self.weight = nn.Parameter(columns)  # (K, N)
        self.bias = bias

    def forward(self, x):
        """(..., K) to (..., N)."""
        if self.parts == 1 or x.numel() != self.in_features:
            out = x @ self.weight
        else:
            rows = x.reshape(self.parts, 1, -1)  # (parts, 1, K / parts)
            out = torch.bmm(rows, self.weight.unflatten(0, (self.parts, -1)))
            out = out.sum(dim=0).view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias

    def _save_to_state_dict(self, *_):
        raise ValueError(
            "An arranged model cannot be saved: save the model it was made from, and "
            "call arrange_columns again after loading that."
        )


@torch.no_grad()
def arrange_columns(model, parts=None):
    """A copy of the model for generating on the CPU, its linear layers `ColumnLinear`.

    It computes the same, up to the order of sums. Layers that read the same vectors
    become one together, the output head is one as well, a tied one included. The copy
    shares no memory with the model, takes no gradients and cannot be saved.

    Args:
        model: a model of this course on the CPU; it is left as it was.
        parts: into which a single token's product is divided; by default as many as
            PyTorch has threads.

    Returns:
        The copy, in evaluation mode.

    Raises:
        ValueError: the model is on another device or a fast copy already, or `parts` is
            below 1.
        TypeError: it is no module.
    """
    _check_original(model)
    parts = torch.get_num_threads() if parts is None else parts
    if parts < 1:
        raise ValueError(f"parts is {parts}: give 1 or more.")

    def make(weight, bias):
        return ColumnLinear(weight, copy.deepcopy(bias), parts)

    return _fused_copy(model, make).eval().requires_grad_(False)


# --- Eight bits for a weight ---------------------------------------------------------


class Int8Linear(nn.Module):
    """A linear layer whose weights are 8-bit integers, a quarter of float32's memory.

    Each row of the matrix has a scale, and an integer from -127 to 127 for each weight.
    Products are done in integers: each token vector is rounded to a grid of its own as
    well, which depends on no other token ("dynamic quantisation"). For generating only.

    Args:
        weight: (N, K), floating point, on the CPU.
        bias: (N,), or None.

    Source: Dettmers et al., "LLM.int8()", 2022 (arXiv:2208.07339), section 2.1, with a
    scale for each row and each token vector; its outlier columns are left out.
    """

    def __init__(self, weight, bias=None):
        super().__init__()
        scales = weight.float().abs().amax(dim=1) / 127  # (N,)
        scales = scales.clamp(min=1e-30)  # a row of zeros
        integers = (weight.float() / scales[:, None]).round().to(torch.int8)  # (N, K)
        self.out_features, self.in_features = weight.shape
        self.packed = _pack_int8(integers, scales)
        self.row_sums = integers.sum(dim=1) * scales  # (N,)
        self.bias = bias

    def forward(self, x):
        """(..., K) to (..., N), of the same dtype."""
        _check_int8_input(x, self.in_features)
        if x.ndim > 1 and x.numel() == self.in_features:  # a single row, a single grid
            out = _int8_product(x.float(), self.packed)
        else:
            out = self.each_row(x.float())
        return (out if self.bias is None else out + self.bias).to(x.dtype)

    def each_row(self, x):
        """The product without the bias, (..., K) to (..., N), with a grid for each row.

        PyTorch makes one grid for all rows, on which the largest would flatten the
        others. So they are brought to integers here, and it finds a step of 1.
        """
        rows = x.reshape(-1, self.in_features)  # (M, K)
        top = 127 if _sums_overflow() else 255
        low = rows.amin(dim=1, keepdim=True).clamp(max=0.0)
        high = rows.amax(dim=1, keepdim=True).clamp(min=0.0)
        step = ((high - low) / top).clamp(min=1e-30)  # (M, 1)
        zero = (-low / step).round()  # the integer that stands for 0
        grid = ((rows / step).round() + zero).clamp(0, top)
        both_ends = torch.cat((grid, rows.new_full((1, self.in_features), top)))
        out = _int8_product(both_ends, self.packed)[:-1]  # (M, N)
        out = (out - zero * self.row_sums) * step
        return out.view(*x.shape[:-1], self.out_features)

    def _save_to_state_dict(self, *_):
        raise ValueError(
            "A quantised model cannot be saved: save the model it was made from, and "
            "call quantise_int8 again after loading that."
        )


@torch.no_grad()
def quantise_int8(model):
    """A copy of the model for generating on the CPU, its linear layers `Int8Linear`.

    The output head becomes one as well, a tied one included. Layers that read the same
    vectors (queries, keys and values; gate and up) become one together, since each call
    costs time of its own. Embeddings stay as they are, and norms compute the same. The
    copy shares no memory with the model, takes no gradients and cannot be saved:
    quantising again takes seconds.

    Args:
        model: a model of this course on the CPU; it is left as it was.

    Returns:
        The copy, in evaluation mode.

    Raises:
        ValueError: the model is on another device, or a fast copy already.
        TypeError: it is no module.
    """
    _check_original(model)
    return _fused_copy(model, _int8_of).eval().requires_grad_(False)


def _int8_of(weight, bias):
    return Int8Linear(weight, copy.deepcopy(bias))


def _fused_copy(model, make):
    """A copy whose linear layers are what `make(weight, bias)` gives.

    Layers that read the same vectors become one, norms need fewer calls of PyTorch, and
    the attention of a single new token needs one. All else is copied as it is.
    """

    def side_by_side(*layers):
        biases = [getattr(layer, "bias", None) for layer in layers]
        bias = None if biases[0] is None else torch.cat(biases)
        return make(torch.cat([layer.weight for layer in layers]), bias)

    kinds = {
        GroupedQueryAttention: lambda part: _FusedAttention(part, side_by_side),
        LlamaFeedForward: lambda part: _FusedFeedForward(part, side_by_side),
        RMSNorm: _FusedNorm,
        (nn.Linear, TiedHead): lambda part: make(
            part.weight, getattr(part, "bias", None)
        ),
    }
    memo, done = {}, set()
    for layer in model.modules():  # each before the layers in it
        change = next((c for kind, c in kinds.items() if isinstance(layer, kind)), None)
        if change is not None and id(layer) not in done:
            memo[id(layer)] = change(layer)
            done.update(id(part) for part in layer.modules())
    return copy.deepcopy(model, memo)


class _FusedAttention(GroupedQueryAttention):
    """The same attention; queries, keys and values are one product."""

    def __init__(self, source, side_by_side):
        nn.Module.__init__(self)
        for size in ("d_in", "num_heads", "num_kv_groups", "head_dim"):
            setattr(self, size, getattr(source, size))
        self.W_query = side_by_side(source.W_query, source.W_key, source.W_value)
        self.out_proj = side_by_side(source.out_proj)

    def project(self, x, rotate=None):
        heads = self.split_heads(self.W_query(x))  # (B, H + 2 G, T, K)
        H, G = self.num_heads, self.num_kv_groups
        turned, values = heads.split((H + G, G), dim=1)
        if rotate is not None:
            turned = rotate(turned)
        return *turned.split((H, G), dim=1), values

    def attend(self, queries, keys, values, hidden):
        if hidden is not None:
            return super().attend(queries, keys, values, hidden)
        return F.scaled_dot_product_attention(queries, keys, values, enable_gqa=True)


class _FusedFeedForward(nn.Module):
    """The same feed-forward part with one product for gate and up."""

    def __init__(self, source, side_by_side):
        super().__init__()
        self.up = side_by_side(source.gate, source.up)
        self.down = side_by_side(source.down)

    def forward(self, x):
        gate, up = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class _FusedNorm(RMSNorm):
    """The same normalisation in four calls instead of six.

    x / sqrt(|x|^2 / D + eps) is sqrt(D) x / sqrt(|x|^2 + D eps), and the last root is
    the hypotenuse over |x| and sqrt(D eps).
    """

    def __init__(self, source):
        nn.Module.__init__(self)
        D = len(source.scale)
        wide = torch.promote_types(source.scale.dtype, torch.float32)
        self.scale = nn.Parameter(source.scale.to(wide) * D**0.5)
        self.register_buffer("least", torch.tensor((D * source.eps) ** 0.5, dtype=wide))

    def forward(self, x):
        dtype = self.scale.dtype
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
        return (x / torch.hypot(length, self.least) * self.scale).to(x.dtype)


def _pack_int8(integers, scales):
    """The matrix in the order in which the processor's integer products read it.

    PyTorch has announced that this interface will be replaced one day. It is used in
    these two functions only, and the announcement is no news for readers.
    """
    zeros = torch.zeros(len(scales), dtype=torch.long)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*quantized tensor", module="torch")
        warnings.filterwarnings("ignore", message=".*quantize_per_channel")
        matrix = torch._make_per_channel_quantized_tensor(
            integers, scales.double() / _LIFT, zeros, 0
        )
        return torch.ops.quantized.linear_prepack(matrix, None)


# PyTorch makes no grid with a step below 6e-5, too coarse for vectors of small numbers.
# So they are multiplied by this, and the scales of the weights divided.
_LIFT = 1024.0


def _int8_product(rows, packed):
    """Rows, (M, K) float32, rounded to 8 bits with one grid, times a packed matrix."""
    return torch.ops.quantized.linear_dynamic(rows * _LIFT, packed, _sums_overflow())


@functools.cache
def _sums_overflow():
    """Whether this processor adds pairs of products in 16 bits, which overflow.

    Old ones do. With a grid of 7 bits for the rows, coarser but safe, they do not.
    """
    full = torch.full((4, 64), 127, dtype=torch.int8)
    packed = _pack_int8(full, torch.ones(4))
    ones = torch.full((1, 64), _LIFT)
    sums = torch.ops.quantized.linear_dynamic(ones, packed, False)
    return bool((sums / (64 * 127) - 1).abs().max() > 0.01)
