"""Choosing the next token, and writing with it (chapter 5, decoding).

* `next_token_probabilities`: what temperature, top-k and top-p make of logits;
* `Sampling`: how tokens are chosen, in one object;
* `generate_tokens`, the loop, which yields each token as soon as it is chosen;
* `generate`, which collects them: a batch of prompts in, a batch of texts out;
* `pad_left`: prompts of different lengths as one batch;
* `bytes_of`, `generate_stream`: text piece by piece, never half a character.

Top-k is Fan et al., "Hierarchical Neural Story Generation", 2018 (arXiv:1805.04833,
section 5.1); top-p, or nucleus sampling, is Holtzman et al., "The Curious Case of
Neural Text Degeneration", 2020 (arXiv:1904.09751, section 3.1). Left out: beam search,
penalties for repetition, speculative decoding.

Three tokens, with logits that stand for the probabilities 0.6, 0.3 and 0.1:

>>> import torch
>>> logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
>>> next_token_probabilities(logits)
tensor([[0.6000, 0.3000, 0.1000]])
>>> next_token_probabilities(logits, top_k=2)
tensor([[0.6667, 0.3333, 0.0000]])
>>> next_token_probabilities(logits, top_p=0.5)
tensor([[1., 0., 0.]])
>>> next_token_probabilities(logits, temperature=0)
tensor([[1., 0., 0.]])

Two prompts in one batch, and chance that can be repeated:

>>> from gpt import GPT_CONFIG_124M, GPTModel
>>> cfg = {**GPT_CONFIG_124M, "vocab_size": 50, "context_length": 8, "emb_dim": 12,
...        "n_heads": 3, "n_layers": 2}
>>> _ = torch.manual_seed(0)
>>> model = GPTModel(cfg).eval()
>>> idx, attention_mask = pad_left([[7, 1, 4], [3]], pad_id=0)
>>> idx
tensor([[7, 1, 4],
        [0, 0, 3]])
>>> def sample(seed):
...     return generate(model, idx, max_new_tokens=4, context_size=8, temperature=0.8,
...                     top_k=20, attention_mask=attention_mask,
...                     generator=torch.Generator().manual_seed(seed))
>>> sample(1).shape
torch.Size([2, 7])
>>> torch.equal(sample(1), sample(1))
True

Run as a script it continues a prompt with real weights, word by word as they come:
`python gpt_generate.py --prompt "Once upon a time"`, or answers: `--chat`.

Shapes: B sequences in a batch, T tokens of a prompt, V vocabulary.
"""

import argparse
import codecs
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import script_tools
from argument_checks import check_prompt, check_runs, check_start
from dataloader import encode_text
from decoding_checks import check_choice, finite_logits, one_prompt
from gpt_download import load_weights_into_gpt  # noqa: F401  (the book has it here)
from gpt_train import text_to_token_ids, token_ids_to_text  # noqa: F401  (likewise)
from kv_cache import KVCache
from model_config import end_tokens, extras_for
from pretrained import load_pretrained

# --- One choice ----------------------------------------------------------------------


def next_token_probabilities(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """With which probability each token is chosen next.

    First the temperature divides the logits; then top-k leaves the `top_k` likeliest
    tokens, and every further one that is exactly as likely as the last of them; then
    top-p leaves the fewest likeliest tokens that together have at least `top_p` of what
    top-k left, so the token that crosses the bound is kept (of equal ones the lower
    ids). What is left is scaled to the sum 1.

    Args:
        logits: (B, V), or any other leading shape, floating point; -inf for a token
            that may not come.
        temperature: 1 leaves the model's own probabilities, less makes likely tokens
            likelier, more makes all of them alike. 0 stands for the limit: the
            likeliest token alone, of equal ones the lowest id.
        top_k: from 1 up, more than V meaning all; None for all.
        top_p: above 0, at most 1; 1 or None for all.

    Returns:
        The shape of logits, float32, or float64 if the logits are. Never NaN.

    Raises:
        ValueError: an argument is out of range; the logits are no floating-point
            numbers; a row has NaN or +inf, or nothing but -inf.
    """
    check_choice(temperature, top_k, top_p)
    logits = finite_logits(logits)
    if temperature == 0:
        likeliest = logits.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(logits).scatter(-1, likeliest, 1.0)

    # With the largest at 0, no temperature, however small, makes inf / inf of it.
    limits = torch.finfo(logits.dtype)
    logits = logits - logits.amax(dim=-1, keepdim=True)
    logits = logits / min(max(temperature, limits.tiny), limits.max)
    if top_k is not None:
        last_kept = logits.topk(min(top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < last_kept, -math.inf)
    probabilities = torch.softmax(logits, dim=-1)
    if top_p is None or top_p == 1:
        return probabilities

    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    enough = ordered.cumsum(dim=-1) >= top_p  # with this token, at the latest
    outside = enough.roll(1, dims=-1)  # so what comes after it goes
    outside[..., 0] = False
    ordered = ordered.masked_fill(outside, 0.0)
    kept = torch.zeros_like(probabilities).scatter(-1, ids, ordered)
    return kept / kept.sum(dim=-1, keepdim=True)


# --- Text ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampling:
    """How each next token is chosen. The defaults take the likeliest.

    Attributes:
        temperature, top_k, top_p: as in `next_token_probabilities`.
        eos_id: the token that ends a text, or a tuple of several; None for none.
        generator: a `torch.Generator` on the device of the model, to draw from; None
            takes torch's own. Rows draw from it in turn, so that what is drawn for a
            row depends on its place in the batch.

    Raises:
        ValueError: a setting is out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    eos_id: int | tuple[int, ...] | None = None
    generator: torch.Generator | None = None

    def __post_init__(self):
        check_choice(self.temperature, self.top_k, self.top_p)

    @property
    def ends(self) -> list[int]:
        """The tokens that end a text: none, one or several."""
        tokens = [] if self.eos_id is None else self.eos_id
        return torch.as_tensor(tokens).reshape(-1).tolist()


@torch.no_grad()
def generate_tokens(
    model: nn.Module,
    idx: Tensor,
    max_new_tokens: int,
    context_size: int,
    sampling: Sampling = Sampling(),
    *,
    attention_mask: Tensor | None = None,
    cache: Any = None,
) -> Iterator[Tensor]:
    """Yield the next token of every row, (B, 1), again and again; see `generate`."""
    check_prompt(model, idx, max_new_tokens, context_size, cache)
    check_start(idx, attention_mask, cache)
    choice = sampling.temperature, sampling.top_k, sampling.top_p
    ends = torch.tensor(sampling.ends, device=idx.device)
    ended = torch.zeros(len(idx), 1, dtype=torch.bool, device=idx.device)
    for _ in range(max_new_tokens):
        start = max(0, idx.shape[1] - context_size)
        real = None if attention_mask is None else attention_mask[:, start:]
        if cache is not None and start > 0:
            cache.reset()
        unread = start if cache is None else start + cache.length
        extras = extras_for(model, attention_mask=real, cache=cache)
        logits = model(idx[:, unread:], **extras)[:, -1]
        chances = next_token_probabilities(logits, *choice)  # (B, V)
        if sampling.temperature == 0:
            chosen = chances.argmax(dim=-1, keepdim=True)  # (B, 1)
        else:
            chosen = torch.multinomial(chances, 1, generator=sampling.generator)
        if len(ends) > 0:
            chosen = chosen.masked_fill(ended, ends[0])
            ended = ended | torch.isin(chosen, ends)
        yield chosen
        if ended.all():
            return
        idx = torch.cat((idx, chosen), dim=1)  # (B, T + 1)
        if attention_mask is not None:
            is_real = torch.ones_like(attention_mask[:, :1])
            attention_mask = torch.cat((attention_mask, is_real), dim=1)


def generate(
    model: nn.Module,
    idx: Tensor,
    max_new_tokens: int,
    context_size: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    eos_id: int | tuple[int, ...] | None = None,
    *,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    attention_mask: Tensor | None = None,
    cache: Any = None,
) -> Tensor:
    """Continue prompts, each token drawn by its probability, or the likeliest taken.

    At temperature 0 and without `eos_id` this is `generate_text_simple`. As there, past
    `context_size` tokens the model reads the last `context_size` of them, with
    positions counted from the first it reads, and a cache is refilled at each step.

    Args:
        model: a model with the interface of `GPTModel.forward`, in evaluation mode.
        idx: the prompts' token ids, (B, T), T >= 1.
        max_new_tokens: the most tokens to add to each prompt, at least 0.
        context_size: the most tokens that the model reads at once.
        temperature, top_k, top_p, eos_id, generator: as in `Sampling`. A row that has
            met an end is filled with `eos_id`, the first of several, and when all rows
            have, nothing more is computed.
        attention_mask: (B, T), True for a real token, for prompts of different lengths
            that are padded on the **left** (`pad_left`). None if all are real.
        cache: an empty cache for this model, such as `KVCache(n_layers)`. It changes.

    Returns:
        (B, T + n), n <= max_new_tokens: the prompts, padding included, and what
        follows, without the end token of the row that ends last.

    Raises:
        ValueError: as `generate_text_simple` and `next_token_probabilities`.
        TypeError: idx or the attention mask is no tensor.
    """
    sampling = Sampling(temperature, top_k, top_p, eos_id, generator)
    new_tokens = generate_tokens(
        model,
        idx,
        max_new_tokens,
        context_size,
        sampling,
        attention_mask=attention_mask,
        cache=cache,
    )
    new = list(new_tokens)
    if new and set(new[-1].flatten().tolist()) <= set(sampling.ends):
        new.pop()  # it ends the last of the texts, and is no part of it
    return torch.cat((idx, *new), dim=1)


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Prompts of different lengths as one batch, fillers in front.

    Args:
        prompts: lists of token ids, at least one, none of them empty.
        pad_id: the id to fill with. Any that the model knows will do: the mask hides
            it, and no answer depends on it.

    Returns:
        `(idx, attention_mask)`, (B, T) each, T the longest prompt: ids as torch.long,
        and True where a token is real.

    Raises:
        ValueError: there is no prompt, or an empty one.
    """
    lengths = [len(prompt) for prompt in prompts]
    if 0 in lengths or not lengths:
        raise ValueError(
            "There is no prompt, or an empty one, and nothing to continue: give at "
            "least one token each, such as that of <|endoftext|>."
        )
    T = max(lengths)
    idx = torch.tensor([[pad_id] * (T - len(p)) + list(p) for p in prompts])
    real = torch.tensor([[False] * (T - n) + [True] * n for n in lengths])
    return idx, real


def bytes_of(token: Any, tokenizer: Any) -> bytes:
    """The bytes of a token that the model chose; `ValueError` for one it lacks."""
    try:
        return tokenizer.decode_single_token_bytes(token)
    except KeyError:
        raise ValueError(
            f"The model chose the token {token}, which the tokenizer does not know: "
            "use the tokenizer that the model was trained with."
        ) from None


def generate_stream(
    model: Any,
    ids: Any,
    tokenizer: Any,
    max_new_tokens: int,
    context_size: int,
    sampling: Sampling = Sampling(),
    *,
    cache: Any = None,
) -> Iterator[str]:
    """Yield the text that follows one prompt, piece by piece, as it is written.

    A token is some bytes, and a character may have its bytes in several tokens. Bytes
    wait here until their character is whole, so each piece can be shown at once, and
    all pieces together are what `tokenizer.decode` makes of all new tokens at the end.
    The end token itself is not shown.

    Args:
        model, max_new_tokens, context_size, cache: as in `generate`.
        sampling: how each token is chosen.
        ids: the prompt, a list of token ids, or a tensor (T,) or (1, T).
        tokenizer: anything with tiktoken's `decode_single_token_bytes`.

    Yields:
        str, never empty. Bytes that are no UTF-8 become U+FFFD, as in tiktoken.

    Raises:
        ValueError: as `generate`; there is more than one prompt; or the tokenizer does
            not know a token that the model chose.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    idx = one_prompt(ids, model.tok_emb.weight.device)  # (1, T)
    new_tokens = generate_tokens(
        model, idx, max_new_tokens, context_size, sampling, cache=cache
    )
    for token in new_tokens:
        if token.item() in sampling.ends:
            break
        piece = decoder.decode(bytes_of(token.item(), tokenizer))
        if piece:
            yield piece
    unfinished = decoder.decode(b"", final=True)
    if unfinished:
        yield unfinished


# --- As a script ---------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Continue prompts with a trained model; return the exit code."""
    return script_tools.run(_run, _options(arguments))


def _options(arguments):
    parser = argparse.ArgumentParser(
        prog="gpt_generate.py",
        description="Continue a prompt with a trained model, or let it answer one, and "
        "print the text as it comes.",
    )
    add = parser.add_argument
    add(
        "--model",
        default="smollm2-135m",
        help="smollm2-135m, a GPT-2 such as gpt2-small-124M (downloaded once), or the "
        "folder of a checkpoint that gpt_train.py wrote (%(default)s)",
    )
    add(
        "--prompt",
        type=script_tools.whole_text,
        default="Once upon a time",
        help="what to continue (%(default)s)",
    )
    add("--data", type=Path, help="a text file with a prompt in each line, instead")
    add("--chat", action="store_true", help="take the prompt as a question to answer")
    whole = script_tools.positive_int
    add("--max-new-tokens", type=whole, default=100, help="at most (%(default)s)")
    add("--temperature", type=float, help="0 is greedy (0.7; 0 with --chat)")
    add("--top-k", type=int, help="draw from the k likeliest tokens (all)")
    add("--top-p", type=float, default=0.95, help="draw from this share (%(default)s)")
    add(
        "--seed",
        type=script_tools.seed,
        default=123,
        help="for the draws (%(default)s)",
    )
    fast = parser.add_mutually_exclusive_group()
    fast.add_argument(
        "--int8", action="store_true", help="8-bit weights: faster, a little worse"
    )
    fast.add_argument(
        "--arrange",
        action="store_true",
        help="the same weights in an order that is read faster; twice the memory",
    )
    add("--no-cache", action="store_true", help="read the whole text at each step")
    add("--out", type=Path, help="also write prompts and texts to this file")
    options = script_tools.parse(parser, arguments)
    if options.temperature is None:
        options.temperature = 0.0 if options.chat else 0.7
    try:
        check_choice(options.temperature, options.top_k, options.top_p)
    except ValueError as problem:
        parser.error(str(problem))
    if not options.prompt:
        parser.error("--prompt is empty: give at least one character to continue.")
    return options


def _run(options):
    """Everything after the options are read."""
    prompts = _prompts(options)
    if options.out is not None:
        script_tools.file_to_write(options.out)
    start = time.perf_counter()
    print(f"Loading {options.model} ...", flush=True)
    model, tokenizer = _load(options)
    print(f"Loaded in {time.perf_counter() - start:.1f} s.", flush=True)
    encoded = [_encode(prompt, tokenizer, options) for prompt in prompts]
    texts = [
        _write(prompt, ids, model, tokenizer, options)
        for prompt, ids in zip(prompts, encoded, strict=True)
    ]
    if options.out is not None:
        options.out.write_text("\n".join(texts) + "\n", encoding="utf-8")
        print(f"The text is in {options.out}.")


def _prompts(options):
    """The prompts, one from the options or those of the file."""
    if options.data is None:
        return [options.prompt]
    text, _ = script_tools.read_text(options.data)
    prompts = [line for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"{options.data} has no prompt: write one in each line.")
    return prompts


def _load(options):
    """Model and tokenizer; a fast copy of the model, on the CPU, if asked."""
    device, dtype = script_tools.device(), script_tools.dtype()
    model, tokenizer, _ = load_pretrained(options.model, dtype)
    if not (options.int8 or options.arrange):
        model = model.to(device)
    else:
        from fast_copies import arrange_columns, quantise_int8

        model = quantise_int8(model) if options.int8 else arrange_columns(model)
    return model, tokenizer


def _encode(prompt, tokenizer, options):
    """The ids to continue: the prompt's own, or those of a chat that it opens.

    Models that cannot chat know one mark, the end of a text, and it is one token.
    """
    if not options.chat:
        if not hasattr(tokenizer, "render_chat"):
            return encode_text(prompt, tokenizer)
        check_runs(prompt)
        start = [tokenizer.bos_token] if hasattr(tokenizer, "bos_token") else []
        return start + tokenizer.encode(prompt, disallowed_special=())
    if not hasattr(tokenizer, "render_chat"):
        raise ValueError(
            f"{options.model} was not trained to chat: leave --chat out, or take "
            "--model smollm2-135m."
        )
    return tokenizer.render_chat([{"role": "user", "content": prompt}])


def _write(prompt, ids, model, tokenizer, options):
    """Print the prompt and what follows, as it comes, then the speed; return both."""
    context_size, read = model.cfg["context_length"], f"{len(ids)} tokens read"
    if len(ids) > context_size and options.chat:
        raise ValueError(
            f"The question has {len(ids)} tokens with all that belongs to a chat, but "
            f"the model reads at most {context_size}: shorten it."
        )
    if len(ids) > context_size:
        read = f"the last {context_size} of {len(ids)} tokens read"
        print(
            f"The prompt has {len(ids)} tokens, but the model reads at most "
            f"{context_size}: the first {len(ids) - context_size} are cut off."
        )
    cache = None if options.no_cache else KVCache(model.cfg["n_layers"], context_size)
    device = model.tok_emb.weight.device
    generator = torch.Generator(device).manual_seed(options.seed)
    choice = options.temperature, options.top_k, options.top_p
    pieces = generate_stream(
        model,
        ids,
        tokenizer,
        options.max_new_tokens,
        context_size,
        Sampling(*choice, end_tokens(tokenizer), generator),
        cache=cache,
    )
    tokens = []
    model_call = model.register_forward_hook(lambda *_: tokens.append(1))
    start, text = time.perf_counter(), prompt + ("\n" if options.chat else "")
    print(text, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
        text += piece
    seconds = time.perf_counter() - start
    model_call.remove()
    print(
        f"\n[{read}, {len(tokens)} written in {seconds:.1f} s, "
        f"{len(tokens) / seconds:.1f} per second]",
        flush=True,
    )
    return text


if __name__ == "__main__":
    sys.exit(main())
