"""The GPT model: from token ids to logits, and from a prompt to text (chapter 4).

* `LayerNorm` (section 4.2), `GELU` and `FeedForward` (4.3), `TransformerBlock` (4.4 and
  4.5);
* `GPTConfig` and the four sizes of GPT-2, `GPT_CONFIG_124M` to `GPT_CONFIG_1558M`,
  `GPTModel`, with `TiedHead`, `initialise_like_gpt2` and `count_parameters` (4.6);
* `generate_text_simple` (4.7).

The architecture is GPT-2's: Radford et al., "Language Models are Unsupervised Multitask
Learners", 2019, section 2.3, which is the decoder of Vaswani et al., 2017
(arXiv:1706.03762) with the normalisation moved to the front of each sub-layer. Layer
normalisation is Ba et al., 2016 (arXiv:1607.06450), section 3.1; GELU is Hendrycks and
Gimpel, 2016 (arXiv:1606.08415), section 2; tied weights are Press and Wolf, 2017
(arXiv:1608.05859). Left out: fused kernels, training and other ways to choose the next
token (both chapter 5), rotary positions and other later designs.

>>> import torch
>>> cfg = {**GPT_CONFIG_124M, "vocab_size": 50, "context_length": 8, "emb_dim": 12,
...        "n_heads": 3, "n_layers": 2}
>>> _ = torch.manual_seed(0)
>>> model = GPTModel(cfg).eval()
>>> idx = torch.tensor([[7, 1, 4], [3, 3, 9]])  # two prompts of three tokens
>>> model(idx).shape
torch.Size([2, 3, 50])

Each prompt goes on with the token that the model finds likeliest, again and again; a
cache of keys and values changes the speed and nothing else:

>>> text = generate_text_simple(model, idx, max_new_tokens=4, context_size=8)
>>> text.shape
torch.Size([2, 7])
>>> from kv_cache import KVCache
>>> cached = generate_text_simple(
...     model, idx, max_new_tokens=4, context_size=8, cache=KVCache(num_layers=2))
>>> torch.equal(cached, text)
True

The sizes are known without a byte of memory being spent:

>>> with torch.device("meta"):
...     count_parameters(GPTModel(GPT_CONFIG_124M))
163009536

Run as a script it continues a prompt; the weights are random, so the text is noise
until chapter 5 trains or loads some: `python gpt.py --prompt "Hello, I am"`.

Shapes: B sequences in a batch, T new tokens, S all tokens (cached and new), D model
width (`emb_dim`), V vocabulary, F feed-forward width (4 D), L blocks (`n_layers`).
"""

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from argument_checks import (
    cached_tokens,
    check_divisible,
    check_idx,
    check_prompt,
    check_start,
)
from dataloader import encode_text
from kv_cache import KVCache
from model_config import ModelConfig, extras_for, token_positions
from multihead_attention import MultiHeadAttention
from script_tools import (
    device,
    file_to_write,
    gpt2_tokenizer,
    parse,
    positive_int,
    run,
    seed,
    whole_text,
)

# --- The configuration ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class GPTConfig(ModelConfig):
    """The sizes of a GPT, checked when it is made, and readable like a dictionary.

    `{**cfg, "context_length": 256}` is a plain dictionary with one entry changed, which
    `GPTModel` takes as well.

    Args:
        vocab_size: how many different tokens there are, V.
        context_length: the most tokens that the model can read at once.
        emb_dim: width of a token vector, D, a multiple of `n_heads`.
        n_heads: attention heads in a block.
        n_layers: blocks, L.
        drop_rate: share of numbers set to 0 in training, at least 0 and below 1: after
            the embeddings, on attention weights and on each shortcut's branch.
        qkv_bias: whether the query, key and value projections add a bias. The weights
            that OpenAI published have one.
        tie_weights: whether the output head is the token embedding (`TiedHead`).

    Raises:
        ValueError: a value is out of range; the message names the field.
        TypeError: a field is unknown or missing.
    """

    vocab_size: int
    context_length: int
    emb_dim: int
    n_heads: int
    n_layers: int
    drop_rate: float
    qkv_bias: bool
    tie_weights: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_divisible(emb_dim=self.emb_dim, n_heads=self.n_heads)
        if not 0 <= self.drop_rate < 1:
            raise ValueError(
                f"drop_rate is {self.drop_rate}: it is the share of numbers that "
                "dropout sets to 0, so give at least 0 and less than 1."
            )


GPT_CONFIG_124M = GPTConfig(
    vocab_size=50257,
    context_length=1024,
    emb_dim=768,
    n_heads=12,
    n_layers=12,
    drop_rate=0.1,
    qkv_bias=False,
)
GPT_CONFIG_355M = GPTConfig.of(
    {**GPT_CONFIG_124M, "emb_dim": 1024, "n_heads": 16, "n_layers": 24}
)
GPT_CONFIG_774M = GPTConfig.of(
    {**GPT_CONFIG_124M, "emb_dim": 1280, "n_heads": 20, "n_layers": 36}
)
GPT_CONFIG_1558M = GPTConfig.of(
    {**GPT_CONFIG_124M, "emb_dim": 1600, "n_heads": 25, "n_layers": 48}
)


# --- The parts of a block ------------------------------------------------------------


class LayerNorm(nn.Module):
    """Each token vector shifted and scaled to mean 0 and variance 1, then learned.

    The variance divides by the number of entries, not by one less, and `eps` stands
    under the root: both as in GPT-2, whose weights would not fit otherwise.

    Args:
        emb_dim: width of a token vector, D.
    """

    def __init__(self, emb_dim: int):
        super().__init__()
        self.eps = 1e-5
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension: (..., D) to (..., D), of the same dtype.

        Mean and variance are taken in float32 (float64 stays): a sum of some hundred
        bfloat16 numbers would keep about two digits.
        """
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        centred = wide - wide.mean(dim=-1, keepdim=True)  # (..., D)
        variance = centred.square().mean(dim=-1, keepdim=True)  # (..., 1)
        normalised = centred / torch.sqrt(variance + self.eps)
        return (self.scale * normalised + self.shift).to(x.dtype)


class GELU(nn.Module):
    """x times the probability that a standard normal number is below x, nearly.

    The approximation by tanh is the one that GPT-2 was trained with.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to every number: any shape, which stays."""
        inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)
        return 0.5 * x * (1.0 + torch.tanh(inner))


class FeedForward(nn.Module):
    """Two linear layers with GELU between, applied to each token by itself.

    Args:
        cfg: a `GPTConfig`, or a mapping that has "emb_dim".
    """

    def __init__(self, cfg: Mapping[str, Any]):
        super().__init__()
        D = cfg["emb_dim"]
        self.layers = nn.Sequential(nn.Linear(D, 4 * D), GELU(), nn.Linear(4 * D, D))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D), by way of (B, T, F)."""
        return self.layers(x)


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each normalised first and added to its input.

    Args:
        cfg: a `GPTConfig`, or a mapping with the same entries.
    """

    def __init__(self, cfg: Mapping[str, Any]):
        super().__init__()
        self.att = MultiHeadAttention(
            d_in=cfg["emb_dim"],
            d_out=cfg["emb_dim"],
            context_length=cfg["context_length"],
            dropout=cfg["drop_rate"],
            num_heads=cfg["n_heads"],
            qkv_bias=cfg["qkv_bias"],
        )
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg["emb_dim"])
        self.norm2 = LayerNorm(cfg["emb_dim"])
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """Token vectors of the next block.

        Args:
            x: vectors of the T new tokens, (B, T, D).
            attention_mask: (B, S), True for a real token; None if all are.
            cache: this block's part of a cache, such as `KVCache(L).layer(0)`.

        Returns:
            (B, T, D).

        Raises:
            ValueError: as `MultiHeadAttention`.
        """
        attended = self.att(self.norm1(x), attention_mask, cache)
        x = x + self.drop_shortcut(attended)
        return x + self.drop_shortcut(self.ff(self.norm2(x)))


# --- The model -----------------------------------------------------------------------


class TiedHead(nn.Module):
    """An output head without weights of its own: the token embedding, transposed.

    It holds the embedding itself, not a second parameter that starts as the same one.
    So both stay one tensor whatever happens to the model (`.to()`, `.to_empty()`,
    `copy.deepcopy`, loading with `assign=True`), and the weights are saved once.

    Args:
        embedding: the `nn.Embedding` to read, (V, D). Whoever puts another embedding
            into the model makes another head for it, too.
    """

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        # Past nn.Module's own way, which would list it as this layer's part as well.
        object.__setattr__(self, "embedding", embedding)

    @property
    def weight(self) -> Tensor:
        """The weights of the embedding, (V, D)."""
        return self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (..., D) to (..., V): how well x fits each token's vector."""
        return nn.functional.linear(x, self.weight)


class GPTModel(nn.Module):
    """Token ids in, logits for the next token out.

    Args:
        cfg: a `GPTConfig`, or a mapping with the same entries; kept as `self.cfg`.

    Raises:
        ValueError: a field of the config is unknown, missing or out of range.
    """

    def __init__(self, cfg: Mapping[str, Any]):
        super().__init__()
        cfg = GPTConfig.of(cfg)
        self.cfg = cfg
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.ModuleList(
            TransformerBlock(cfg) for _ in range(cfg["n_layers"])
        )
        self.final_norm = LayerNorm(cfg["emb_dim"])
        if cfg["tie_weights"]:
            self.out_head = TiedHead(self.tok_emb)
        else:
            self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(
        self,
        idx: Tensor,
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
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
            ValueError: idx has another rank, no token or one out of range; cached and
                new tokens exceed the context; the attention mask does not cover them;
                the cache was made for another model. The cache is unchanged.
        """
        past = cached_tokens(cache, self.cfg, attention_mask)
        check_idx(idx, self.cfg, past)
        positions = token_positions(idx, attention_mask, past)  # (T,) or (B, T)
        x = self.drop_emb(self.tok_emb(idx) + self.pos_emb(positions))  # (B, T, D)
        for i, block in enumerate(self.trf_blocks):
            x = block(x, attention_mask, None if cache is None else cache.layer(i))
        return self.out_head(self.final_norm(x))  # (B, T, V)


def initialise_like_gpt2(
    model: GPTModel, generator: torch.Generator | None = None
) -> GPTModel:
    """Draw all weights anew, as GPT-2 does, in place; return the model.

    Normal numbers of standard deviation 0.02, zeros for biases, and for the last layer
    of each branch 0.02 / sqrt(2 L): the 2 L branches add up in the shortcuts, and so
    their sum starts about as large whatever the depth. A tied model needs this: with
    PyTorch's own start (1.0 for an embedding) its first logits are far too large.

    Args:
        model: a `GPTModel`.
        generator: a `torch.Generator` on the model's device; None takes torch's own.

    Source: Radford et al., 2019, section 2.3 (the scaling) and GPT-2's code (0.02; for
    the positions it has 0.01, which later implementations did not keep).
    """
    std = 0.02
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=std, generator=generator)
        elif isinstance(module, LayerNorm):
            nn.init.ones_(module.scale)
            nn.init.zeros_(module.shift)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    branch_std = std / math.sqrt(2 * len(model.trf_blocks))
    for block in model.trf_blocks:
        for last in (block.att.out_proj, block.ff.layers[-1]):
            nn.init.normal_(last.weight, std=branch_std, generator=generator)
    return model


def count_parameters(module: nn.Module) -> int:
    """How many numbers a module learns, each shared tensor counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


# --- Generating ----------------------------------------------------------------------


@torch.no_grad()
def generate_text_simple(
    model: nn.Module,
    idx: Tensor,
    max_new_tokens: int,
    context_size: int,
    attention_mask: Tensor | None = None,
    cache: KVCache | None = None,
) -> Tensor:
    """Continue prompts with the likeliest token, one at a time.

    Past `context_size` tokens the model reads the last `context_size` of them, with
    positions counted from the first it reads. A cache cannot follow there, as every
    token gets another position at every step: it is refilled each time, so the text
    stays the same as without a cache and is no faster any more.

    Args:
        model: a model with the interface of `GPTModel.forward`, in evaluation mode.
        idx: the prompts' token ids, (B, T), T >= 1.
        max_new_tokens: how many tokens to add to each prompt, at least 0.
        context_size: the most tokens that the model reads at once.
        attention_mask: (B, T), True for a real token, for prompts of different lengths
            that are padded on the **left**. None if all are real.
        cache: an empty cache for this model, such as `KVCache(n_layers)`. It changes.

    Returns:
        (B, T + max_new_tokens): the prompts, padding included, and what follows. Equal
        logits go to the lower id.

    Raises:
        ValueError: there is no prompt; a number is out of range; dropout is on; a
            prompt ends with padding; the cache holds tokens already; it has a rolling
            window and the text would go past `context_size`; or as the model.
    """
    check_prompt(model, idx, max_new_tokens, context_size, cache)
    check_start(idx, attention_mask, cache)
    for _ in range(max_new_tokens):
        start = max(0, idx.shape[1] - context_size)
        real = None if attention_mask is None else attention_mask[:, start:]
        if cache is not None and start > 0:
            cache.reset()
        unread = start if cache is None else start + cache.length
        extras = extras_for(model, attention_mask=real, cache=cache)
        logits = model(idx[:, unread:], **extras)
        chosen = logits[:, -1].argmax(dim=-1, keepdim=True)  # (B, 1)
        idx = torch.cat((idx, chosen), dim=1)  # (B, T + 1)
        if attention_mask is not None:
            is_real = torch.ones_like(attention_mask[:, :1])
            attention_mask = torch.cat((attention_mask, is_real), dim=1)
    return idx


# --- As a script ---------------------------------------------------------------------

_CONFIGS = {
    "124M": GPT_CONFIG_124M,
    "355M": GPT_CONFIG_355M,
    "774M": GPT_CONFIG_774M,
    "1558M": GPT_CONFIG_1558M,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Continue a prompt with a model of random weights; return the exit code.

    Args:
        arguments: the words after the program's name; None takes them from `sys.argv`.
    """
    return run(_continue_prompt, _options(arguments))


def _options(arguments):
    """The script's options."""
    parser = argparse.ArgumentParser(
        prog="gpt.py",
        description="Continue a prompt with a GPT of random weights, and say how fast. "
        "The text is noise: chapter 5 trains the model and loads real weights.",
    )
    add = parser.add_argument
    add(
        "--prompt",
        type=whole_text,
        default="Hello, I am",
        help="text to continue (%(default)s)",
    )
    add("--max-new-tokens", type=positive_int, default=20, help="(%(default)s)")
    add("--config", choices=_CONFIGS, default="124M", help="size (%(default)s)")
    add("--seed", type=seed, default=123, help="for the weights (%(default)s)")
    add("--cache", action="store_true", help="keep keys and values: much faster")
    add("--out", type=Path, help="also write the text to this file")
    options = parse(parser, arguments)
    if not options.prompt:
        parser.error("--prompt is empty: give at least one character to continue.")
    return options


def _continue_prompt(options):
    """Everything after the options are read."""
    cfg, tokenizer, where = _CONFIGS[options.config], gpt2_tokenizer(), device()
    ids = encode_text(options.prompt, tokenizer)
    if options.out is not None:
        file_to_write(options.out)
    if len(ids) > cfg.context_length:
        raise ValueError(
            f"The prompt has {len(ids)} tokens, but the model reads at most "
            f"{cfg.context_length}. Give a shorter one."
        )
    print(f"{options.config}: drawing random weights, seed {options.seed}.", flush=True)
    torch.manual_seed(options.seed)
    model = initialise_like_gpt2(GPTModel(cfg)).eval().to(where)
    print(f"{count_parameters(model):,} parameters. The prompt has {len(ids)} tokens.")

    count = options.max_new_tokens
    cache = KVCache(cfg.n_layers, cfg.context_length) if options.cache else None
    idx, start = torch.tensor([ids], device=where), time.perf_counter()
    # One pass through the model is one token. Without a terminal the bar is silent.
    with tqdm(total=count, unit="token", disable=None) as bar:
        model.register_forward_hook(lambda *_: bar.update() and None)
        idx = generate_text_simple(model, idx, count, cfg.context_length, cache=cache)
    seconds, text = time.perf_counter() - start, tokenizer.decode(idx[0].tolist())
    _report(text, seconds, options)


def _report(text, seconds, options):
    """Print the text, the speed and what to do next; write the file if one is asked."""
    count = options.max_new_tokens
    print(text)
    print(
        f"{count} tokens in {seconds:.1f} s, {count / seconds:.1f} tokens per second, "
        + ("with a cache." if options.cache else "without a cache (try --cache).")
    )
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")
        print(f"The text is in {options.out}.")
    print("It is noise, as nothing is learned yet: chapter 5 goes on from here.")


if __name__ == "__main__":
    sys.exit(main())
