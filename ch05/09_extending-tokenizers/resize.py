r"""New special tokens for a tokenizer, and rows for them in a model that is trained.

Chapter 5, bonus `09_extending-tokenizers` (`extend-tiktoken.ipynb` explains each line).

* `extend_encoding`, `ExtendedTokenizer`: the tokens. Old ids, and the ids of old text,
  stay; a mark that somebody types becomes the new token only where it is allowed;
* `mean_rows`, `zero_rows`, `random_rows`, `with_noise`, `rows_of_pieces`: how a new row
  may begin;
* `resize_vocabulary`: longer tables, tied or not, with their optimizer. Old rows, and
  what the head reads of an old text, stay to the last bit; the old logits are the same
  sums, but a library may add in another order in a product of another size, so that one
  may move by a few ten-millionths of the logits' size;
* `logits_apart`: old and new logits by two products, the old ones to the last bit;
* `train_only_rows`: training that leaves the old tokens alone;
* `padded_size`, `mask_padding`, `hide_padding`: a vocabulary padded to a multiple.

That a new row should begin as the mean of the others is from Hewitt, "Initializing New
Word Embeddings for Pretrained Language Models" (2021). Left out: new merges, tokens
taken away, tables spread over several devices.

>>> import torch
>>> from gpt import GPT_CONFIG_124M, GPTModel
>>> cfg = {**GPT_CONFIG_124M, "vocab_size": 50257, "context_length": 8, "emb_dim": 12,
...        "n_heads": 3, "n_layers": 1}
>>> _ = torch.manual_seed(0)
>>> model = GPTModel(cfg).eval()
>>> tokenizer = extend_encoding("gpt2", ["<|ask|>", "<|done|>"])
>>> ids = tokenizer.encode("<|ask|>Why?", allowed_special={"<|ask|>"})
>>> ids
[50257, 5195, 30]
>>> old_logits = model(torch.tensor([ids[1:]]))
>>> logits = resize_vocabulary(model, tokenizer.n_vocab)(torch.tensor([ids[1:]]))
>>> logits.shape
torch.Size([1, 2, 50259])
>>> torch.allclose(logits[..., :50257], old_logits, atol=1e-6)
True

What a new token gets is the mean of what the others get:

>>> torch.allclose(logits[..., 50257], old_logits.mean(dim=-1), atol=1e-5)
True

Shapes: V old rows, N new rows, D model width, T tokens.
"""

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import tiktoken
import torch
from tiktoken_ext.openai_public import ENCODING_CONSTRUCTORS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from bpe import cut_out
from gpt import TiedHead

# Makes N rows for a table of V rows: (V, D) and N to (N, D).
Start = Callable[[Tensor, int], Tensor]


# --- Tokens --------------------------------------------------------------------------


def number_tokens(
    new_tokens: Iterable[str], first: int, known: Collection[str] = ()
) -> dict[str, int]:
    """The new tokens with ids from `first` up: {text: id}.

    Raises `ValueError` for a token that is empty, given twice or among the `known`.
    """
    if isinstance(new_tokens, str):
        raise TypeError("new_tokens is a list of tokens, not one string.")
    numbers = {}
    for token in new_tokens:
        if not token or token in numbers or token in known:
            raise ValueError(f"{token!r} is empty, given twice or a token already.")
        numbers[token] = first + len(numbers)
    return numbers


def extend_encoding(name: str, new_tokens: Iterable[str]) -> tiktoken.Encoding:
    """One of tiktoken's own encodings, with new special tokens after its last id.

    Args:
        name: such as "gpt2".
        new_tokens: texts that shall be one id each.

    Raises:
        ValueError: as `number_tokens`, or tiktoken has no encoding of that name.
    """
    if name not in ENCODING_CONSTRUCTORS:
        raise ValueError(f"{name!r} is none of {sorted(ENCODING_CONSTRUCTORS)}.")
    parts = ENCODING_CONSTRUCTORS[name]()
    ranks, special = parts["mergeable_ranks"], parts["special_tokens"]
    first = 1 + max(*ranks.values(), *special.values())
    known = {token.decode("utf-8", "replace") for token in ranks} | special.keys()
    numbers = number_tokens(new_tokens, first, known)
    return tiktoken.Encoding(
        "+".join([name, *numbers]),  # another encoding needs another name
        pat_str=parts["pat_str"],
        mergeable_ranks=ranks,
        special_tokens=special | numbers,
    )


class ExtendedTokenizer:
    """Any tokenizer with new special tokens, and tiktoken's methods.

    The tokens that are allowed are cut out of the text; what stands between them goes
    to the old tokenizer. So it need not be made anew, and no id of it changes. Of two
    tokens that begin in one place the longer is taken; tiktoken may take the other.

    Args:
        tokenizer: with `encode(text)` and `decode(ids)`; it may be extended already.
        new_tokens: texts that shall be one id each, after the tokenizer's last one.

    Attributes: `old`, the tokenizer; `new_tokens`, {text: id}; `n_vocab`; `eot_token`,
    as the old one has it, or None; `usually_disallowed`, what `encode` refuses unless
    told otherwise.
    Raises `ValueError` as `number_tokens`.
    """

    def __init__(self, tokenizer: Any, new_tokens: Iterable[str]):
        known = getattr(tokenizer, "str_to_int", {}).keys() | _special(tokenizer)
        if hasattr(tokenizer, "n_vocab"):
            first = tokenizer.n_vocab
        else:  # the first two of chapter 2
            first = 1 + max(tokenizer.int_to_str)
        self.old, self.new_tokens = tokenizer, number_tokens(new_tokens, first, known)
        self.n_vocab = first + len(self.new_tokens)
        self.eot_token = getattr(tokenizer, "eot_token", None)
        self._bytes = {i: token.encode() for token, i in self.new_tokens.items()}
        self._parameters = inspect.signature(tokenizer.encode).parameters
        usual = self._parameters.get("disallowed_special")
        default = () if usual is None else usual.default
        self.usually_disallowed = getattr(tokenizer, "usually_disallowed", default)
        if not hasattr(tokenizer, "str_to_int"):
            for token in self.new_tokens:
                ids = self._encode_old(token, (), ())
                if len(ids) == 1 and tokenizer.decode(ids) == token:
                    raise ValueError(f"{token!r} is a token already, with id {ids[0]}.")

    @property
    def special_tokens_set(self) -> set[str]:
        """The texts of all special tokens, old and new."""
        return _special(self.old) | self.new_tokens.keys()

    def encode(
        self,
        text: str,
        *,
        allowed_special: Collection[str] = frozenset(),
        disallowed_special: Collection[str] | None = None,
    ) -> list[int]:
        """The ids of a text.

        Args:
            allowed_special: the tokens, old and new, that become one id each, or "all".
            disallowed_special: texts that raise `ValueError`; "all" stands for the
                special tokens that are not allowed. With () they are text like any
                other. None: as in the old tokenizer.

        An old tokenizer that has no such arguments is not told: it goes on reading its
        own special tokens as before, and the switch is for the new ones only.
        """
        new = self.new_tokens.keys()
        if disallowed_special is None:
            disallowed_special = self.usually_disallowed
        for tokens in (allowed_special, disallowed_special):
            if isinstance(tokens, str) and tokens != "all":
                raise TypeError(f'{tokens!r}: give a set of tokens, or "all".')
        allowed = set(new) if allowed_special == "all" else new & set(allowed_special)
        refused = new - allowed
        if disallowed_special != "all":
            refused = new & set(disallowed_special)
        for token in refused:
            if token in text:
                raise ValueError(
                    f"The text holds the special token {token!r}: name it in "
                    "allowed_special, or read it as text with disallowed_special=()."
                )
        ids = []
        for part in cut_out(text, allowed):
            if part in allowed:
                ids.append(self.new_tokens[part])
            elif part:
                ids += self._encode_old(part, allowed_special, disallowed_special)
        return ids

    def _encode_old(self, text, allowed_special, disallowed_special):
        """The old tokenizer's ids; it is told only what it knows about."""
        given = {
            "allowed_special": allowed_special,
            "disallowed_special": disallowed_special,
        }
        for name, tokens in given.items():
            if tokens != "all":
                given[name] = set(tokens) - self.new_tokens.keys()
        return self.old.encode(
            text, **{name: given[name] for name in given if name in self._parameters}
        )

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of a text in which nothing is special, as far as `encode` can."""
        return self.encode(text, disallowed_special=())

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of some ids, special tokens as they are written."""
        pieces = []
        for is_new, run in itertools.groupby(ids, key=lambda i: int(i) in self._bytes):
            run = [int(i) for i in run]
            if is_new:
                pieces += [self._bytes[i] for i in run]
            elif hasattr(self.old, "decode_bytes"):
                pieces.append(self.old.decode_bytes(run))
            else:
                pieces.append(self.old.decode(run).encode())
        return b"".join(pieces)

    def decode_single_token_bytes(self, token: int) -> bytes:
        """The bytes of one id; they may be part of a character."""
        return self.decode_bytes([token])

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text of some ids; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors)


def _special(tokenizer: Any) -> set[str]:
    """The texts of a tokenizer's special tokens, as far as it tells them."""
    found = getattr(tokenizer, "special_tokens_set", None)
    return set(getattr(tokenizer, "special_tokens", ()) if found is None else found)


# --- How a new row begins ------------------------------------------------------------


def mean_rows(table: Tensor, count: int) -> Tensor:
    """The mean of all rows, `count` times: the logit is the mean of all logits.

    The likelihood of a token is then at most 1 / (V + N), so that the loss of any old
    text rises by at most ln(1 + N / V). Summed in float32 at least.
    """
    wide = table.to(torch.promote_types(table.dtype, torch.float32))
    return wide.mean(dim=0).to(table.dtype).expand(count, -1)  # (N, D)


def zero_rows(table: Tensor, count: int) -> Tensor:
    """Zeros: the logit is 0, wherever the other logits lie."""
    return table.new_zeros(count, table.shape[1])


def random_rows(std: float = 0.02, generator: torch.Generator | None = None) -> Start:
    """Normal numbers about 0, as before training: the logit is near 0."""

    def start(table, count):
        rows = torch.randn(count, table.shape[1], generator=generator)
        return (std * rows).to(table)

    return start


def with_noise(
    start: Start, std: float = 0.02, generator: torch.Generator | None = None
) -> Start:
    """A start and small random numbers, so that no two new rows are the same."""

    def noisy(table, count):
        return start(table, count) + random_rows(std, generator)(table, count)

    return noisy


def rows_of_pieces(pieces: Sequence[Sequence[int]]) -> Start:
    """For each new token the mean of some old rows; after the last, `mean_rows`.

    Args:
        pieces: old ids for each new token: those of its text, or of a token or word
            that does what the new one shall do.
    """

    def start(table, count):
        rows = mean_rows(table, count).clone()
        for row, ids in zip(rows, pieces, strict=False):
            row.copy_(mean_rows(table[torch.as_tensor(ids)], 1)[0])
        return rows

    return start


# --- Longer tables -------------------------------------------------------------------


def token_tables(model: nn.Module) -> list[nn.Parameter]:
    """The parameters with a row for each token: embedding, head, bias; each once."""
    heads = [model.out_head.weight, getattr(model.out_head, "bias", None)]
    found = {id(p): p for p in [model.tok_emb.weight, *heads] if p is not None}
    return list(found.values())


def padded_size(n_vocab: int, multiple: int) -> int:
    """The smallest multiple that is not below `n_vocab`."""
    return math.ceil(n_vocab / multiple) * multiple


def resize_vocabulary(
    model: nn.Module,
    n_vocab: int,
    start: Start = mean_rows,
    used: int | None = None,
    multiple: int = 1,
    optimizer: torch.optim.Optimizer | None = None,
) -> nn.Module:
    """Give embedding and head rows for `n_vocab` tokens, in place; return the model.

    Old rows keep their numbers. The tables are new parameters, one if the weights are
    tied: an optimizer that was made before still holds the old ones, so pass it here or
    make another. If there are rows enough, as after padding, none are added.

    Args:
        model: with `tok_emb`, `out_head` and `cfg`; `out_head` is tied or `nn.Linear`.
        n_vocab: how many tokens there are now.
        start: what the rows from `used` on begin as. A bias is given to it as a table
            of one column: it returns as many columns as it is given.
        used: how many rows have had a token so far; None for all. Only they count for
            a mean.
        multiple: the number of rows becomes a multiple of it, 1 or more.
        optimizer: its state grows along, with zeros for the new rows. It may keep one
            number for each number of a table, as Adam does, or one in all.

    Raises:
        ValueError: `n_vocab` is less than `used`: a token would lose its row. There are
            not so many rows as `used` says, or none; `multiple` is below 1. The
            optimizer keeps something that cannot grow; nothing is changed then.
        TypeError: the head is of another kind.
    """
    total = len(model.tok_emb.weight)
    used = total if used is None else used
    if n_vocab < used:
        raise ValueError(
            f"n_vocab is {n_vocab}, but {used} rows are in use. If the last ones "
            "are padding, say so with `used`."
        )
    if not 0 < used <= total or multiple < 1:
        raise ValueError(f"used is {used} of {total}, multiple is {multiple}.")
    head = model.out_head
    if not isinstance(head, (nn.Linear, TiedHead)):
        raise TypeError(f"{type(head).__name__} is neither tied nor linear.")
    rows = max(total, padded_size(n_vocab, multiple))
    if rows == used:
        return model
    replaced = {
        old: longer_table(old, rows, used, start) for old in token_tables(model)
    }
    if optimizer is not None:
        take_over(optimizer, replaced, used)
    model.tok_emb.weight = replaced[model.tok_emb.weight]
    model.tok_emb.num_embeddings = rows
    if isinstance(head, nn.Linear):
        for name, old in list(head.named_parameters()):
            setattr(head, name, replaced[old])
        head.out_features = rows
    # A config is frozen, so make another of its kind.
    model.cfg = type(model.cfg).of({**model.cfg, "vocab_size": rows})
    return model


def longer_table(old: nn.Parameter, rows: int, used: int, start: Start) -> nn.Parameter:
    """A parameter of `rows` rows that begins with the first `used` of an old one.

    `old` is a table, (V, D), or a bias, (V,), which is a table with one column.
    """
    table = old.detach()[:used]
    table = table if table.ndim == 2 else table[:, None]
    table = torch.cat((table, start(table, rows - used)))
    return nn.Parameter(table.view(rows, *old.shape[1:]), old.requires_grad)


def take_over(
    optimizer: torch.optim.Optimizer,
    replaced: Mapping[nn.Parameter, nn.Parameter],
    used: int,
) -> None:
    """Put new parameters in place of old ones; a row without a past gets zeros.

    Args:
        optimizer: holds the old parameters, and what it noted for each number of them.
        replaced: {old: new}.
        used: how many rows keep what was noted.

    Raises:
        ValueError: it notes something else than one number for each number of a table,
            such as Adafactor's sums over rows; nothing is changed then.
    """
    for old in replaced:
        for name, value in optimizer.state.get(old, {}).items():
            single = not torch.is_tensor(value) or value.ndim == 0
            if not single and value.shape != old.shape:
                raise ValueError(
                    f"{name} of the optimizer is {tuple(value.shape)} for a "
                    f"table of {tuple(old.shape)}: it cannot grow along."
                )
    for group in optimizer.param_groups:
        group["params"] = [replaced.get(p, p) for p in group["params"]]
    for old, new in replaced.items():
        if old in optimizer.state:
            state = optimizer.state.pop(old)
            for name, value in state.items():
                if torch.is_tensor(value) and value.shape == old.shape:
                    state[name] = value.new_zeros(new.shape)
                    state[name][:used] = value[:used]
            optimizer.state[new] = state


def logits_apart(x: Tensor, table: Tensor, first: int) -> Tensor:
    """The logits of vectors, (..., D), by two products: (..., rows).

    The product with the rows before `first` has the size that it had when the table
    ended there, so that its bits are the same. It costs a copy of the logits.
    """
    old, new = F.linear(x, table[:first]), F.linear(x, table[first:])
    return torch.cat((old, new), dim=-1)


# --- Training ------------------------------------------------------------------------


def train_only_rows(
    model: nn.Module, first: int
) -> tuple[list[nn.Parameter], list[RemovableHandle]]:
    """Freeze everything but the rows from `first` on.

    The gradient of the other rows becomes zero. That holds them still under an
    optimizer whose step follows from gradients alone: give `weight_decay=0`, and start
    a new one, since Adam's means of past gradients would move them further.

    A hook on each table does this. A copy of the model and a table that has grown since
    have none: call again. To train everything, `.remove()` the hooks and call
    `model.requires_grad_(True)`.

    Returns:
        What an optimizer shall be given, and the handles of the hooks.
    """
    model.requires_grad_(False)
    parameters = token_tables(model)
    handles = []
    for table in parameters:
        table.requires_grad_(True)
        handles.append(table.register_hook(functools.partial(without_rows, first)))
    return parameters, handles


def without_rows(first: int, gradient: Tensor) -> Tensor:
    """A gradient with zeros before row `first`."""
    gradient = gradient.clone()  # a hook must not change what it is given
    gradient[:first] = 0
    return gradient


# --- Padding -------------------------------------------------------------------------


def mask_padding(logits: Tensor, n_vocab: int) -> Tensor:
    """The logits, (..., rows), with -inf from column `n_vocab` on: never chosen."""
    is_padding = torch.arange(logits.shape[-1], device=logits.device) >= n_vocab
    return logits.masked_fill(is_padding, -math.inf)


def hide_padding(model: nn.Module, n_vocab: int) -> RemovableHandle:
    """Make a model mask its padding in every call, until `.remove()` is called.

    Call that before the vocabulary grows: new tokens would be hidden, too.
    """
    return model.register_forward_hook(
        lambda _model, _inputs, logits: mask_padding(logits, n_vocab)
    )
