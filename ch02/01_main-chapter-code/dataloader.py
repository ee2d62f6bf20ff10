r"""From raw text to batches of token ids: everything chapter 2 builds, in one file.

Chapter 2, sections 2.2 to 2.6 (`ch02.ipynb` explains each line). A text becomes tokens,
tokens become ids, ids become overlapping windows, windows become shuffled batches for
next-token prediction: Radford et al., "Language Models are Unsupervised Multitask
Learners" (2019), section 2. Left out: training a byte pair vocabulary, keeping the
documents of one window from seeing each other, and texts that do not fit into memory.

Shapes: B windows in a batch, T tokens in a window (`max_length`), N windows in a text.

>>> text = "The lamp was lit. The lamp went out. The lamp was lit again."
>>> vocab = build_vocabulary(split_into_tokens(text), [END_OF_TEXT, UNKNOWN])
>>> tokenizer = SimpleTokenizerV2(vocab)
>>> tokenizer.decode(tokenizer.encode("The lamp was blue."))
'The lamp was <|unk|>.'
>>> loader = create_dataloader_v1(
...     text, batch_size=2, max_length=4, stride=4, shuffle=False, tokenizer=tokenizer
... )
>>> inputs, targets = next(iter(loader))
>>> inputs.shape
torch.Size([2, 4])
>>> tokenizer.decode(inputs[0].tolist()), tokenizer.decode(targets[0].tolist())
('The lamp was lit', 'lamp was lit.')

With `tokenizer=None` the loader takes GPT-2's byte pair encoding from tiktoken.
"""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tiktoken
import torch
from torch.utils.data import DataLoader, Dataset

from argument_checks import (
    check_any_batch,
    check_known,
    check_runs,
    check_tokens,
    check_vocabulary,
    check_window_fits,
    check_windows,
)

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unk|>"


# --- Tokens by rule, and their ids ---------------------------------------------------


def split_into_tokens(text: str) -> list[str]:
    """Cut a text into words, punctuation marks, dashes and special tokens.

    A word may hold hyphens and apostrophes inside ("well-kept", "don't"). Each
    character but white space ends up in exactly one token; white space is dropped, so
    the text cannot be rebuilt exactly.
    """
    special, dash, word, mark = r"<\|\w+\|>", r"--", r"\w+(?:[-']\w+)*", r"[^\w\s]"
    return re.findall(f"{special}|{dash}|{word}|{mark}", text)


def build_vocabulary(
    tokens: Iterable[str], special_tokens: Iterable[str] = ()
) -> dict[str, int]:
    """Number the distinct tokens 0, 1, 2, ... in sorted order, special tokens last.

    A special token that also occurs among `tokens` keeps its place at the end. Raises
    `TypeError` for a text instead of tokens.
    """
    check_tokens(tokens, special_tokens)
    special_tokens = list(dict.fromkeys(special_tokens))
    words = sorted(set(tokens) - set(special_tokens))
    return {token: i for i, token in enumerate(words + special_tokens)}


class SimpleTokenizerV1:
    """Words to ids and back through a fixed vocabulary; unknown words are an error.

    `vocab` maps each token to its own id. White space is lost: `decode` writes one
    space between tokens and none before a closing mark, so a line break comes back as
    a space, and "a--b" as "a -- b". The tokens themselves survive: encoding the decoded
    text gives the same ids.
    """

    def __init__(self, vocab: Mapping[str, int]):
        check_vocabulary(vocab)
        self.str_to_int = dict(vocab)
        self.int_to_str = {i: token for token, i in vocab.items()}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; `KeyError` names a word outside the vocabulary."""
        tokens = split_into_tokens(text)
        check_known(tokens, self.str_to_int)
        return [self.str_to_int[token] for token in tokens]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of a list of ids; `KeyError` names an id without a token."""
        text = " ".join(self.int_to_str[i] for i in ids)
        return re.sub(r" ([.,:;?!)])", r"\1", text)


class SimpleTokenizerV2(SimpleTokenizerV1):
    """Like V1, but a word outside the vocabulary becomes `<|unk|>`."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of any text; which word an `<|unk|>` replaced is lost."""
        unknown_id = self.str_to_int[UNKNOWN]
        return [
            self.str_to_int.get(token, unknown_id) for token in split_into_tokens(text)
        ]


# --- Training and validation text ----------------------------------------------------


def split_text(text: str, train_ratio: float = 0.9) -> tuple[str, str]:
    """Cut a text into a training part and a validation part; joined they are the text.

    The cut lies as close to `train_ratio` (between 0 and 1, counted in characters) as
    these rules allow. Documents joined by `<|endoftext|>` stay whole: the cut follows a
    separator, and from three documents on both parts hold one, so that the end of a
    document is both learned and measured. A single document is cut after a line if one
    ends within 5 % of the text's length of the wanted place, and otherwise before the
    white space between two words. Raises `ValueError` for a text without any such place
    and for a `train_ratio` of 0 or 1: neither part may be empty.
    """
    if not 0 < train_ratio < 1:
        raise ValueError(f"train_ratio is {train_ratio}: give a share such as 0.9.")
    wanted = train_ratio * len(text)
    # Both parts must hold more than white space and separators.
    content = text.replace(END_OF_TEXT, " " * len(END_OF_TEXT))
    first, last = len(text) - len(content.lstrip()), len(content.rstrip())

    documents = [match.end() for match in re.finditer(re.escape(END_OF_TEXT), text)]
    lines = [match.end() for match in re.finditer(r"(?:\r?\n)+", text)]
    lines = [cut for cut in lines if abs(cut - wanted) <= 0.05 * len(text)]
    words = [match.start() for match in re.finditer(r"\s+", text)]
    # Without its last separator the list leaves one to the validation part.
    for cuts in (documents[:-1], documents, lines, words):
        cuts = [cut for cut in cuts if first < cut < last]
        if cuts:
            cut = min(cuts, key=lambda cut: abs(cut - wanted))
            return text[:cut], text[cut:]
    raise ValueError(
        "The text cannot be cut in two: it needs two words, lines or documents; add "
        f"text, or put {END_OF_TEXT!r} or a line break where it may be cut."
    )


# --- Windows and batches -------------------------------------------------------------


def encode_text(text: str, tokenizer: Any) -> list[int]:
    """Return the ids of a text in which each `<|endoftext|>` is the one special token.

    tiktoken refuses special tokens unless they are allowed, so that a stranger's text
    cannot smuggle them in. A tokenizer without that argument, like the two above, finds
    them in its vocabulary. Other text that looks special stays plain text.
    """
    check_runs(text)
    if "allowed_special" in inspect.signature(tokenizer.encode).parameters:
        return tokenizer.encode(text, allowed_special={END_OF_TEXT})
    return tokenizer.encode(text)


class GPTDatasetV1(Dataset):
    """All windows of a text, each with the same window one token further as its target.

    Window i starts at token `i * stride`, and only whole windows count. A `stride`
    equal to `max_length` reads every token once, a smaller one reads tokens several
    times, a larger one skips some and warns. `input_ids` and `target_ids` (int64, both
    of shape (N, T)) are views of one tensor of ids: overlapping windows cost no extra
    memory. Raises `ValueError` for a text shorter than one window and its target.
    """

    def __init__(self, txt: str, tokenizer: Any, max_length: int, stride: int):
        check_windows(max_length, stride)
        token_ids = torch.tensor(encode_text(txt, tokenizer), dtype=torch.long)
        check_window_fits(len(token_ids), max_length)
        self.input_ids = token_ids[:-1].unfold(0, max_length, stride)  # (N, T)
        self.target_ids = token_ids[1:].unfold(0, max_length, stride)  # (N, T)

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one window and its target, (T,) each."""
        return self.input_ids[index], self.target_ids[index]


def create_dataloader_v1(
    txt: str,
    batch_size: int = 4,
    max_length: int = 256,
    stride: int = 128,
    shuffle: bool = True,
    drop_last: bool = True,
    num_workers: int = 0,
    tokenizer: Any = None,
    seed: int | None = None,
) -> DataLoader:
    """Return a loader of batches (inputs, targets), (B, T) each, int64.

    `tokenizer` is anything with `encode(text)`; `None` means GPT-2's. `seed` fixes the
    shuffling: epochs differ from one another, but loaders with one seed go through the
    same epochs; without a seed torch's global generator decides. `drop_last` drops an
    incomplete last batch. With `num_workers` above 0, a script on Windows or macOS must
    start below `if __name__ == "__main__":`. Raises `ValueError` for sizes below 1, for
    a text shorter than one window, and if `drop_last` would leave no batch at all.
    """
    if tokenizer is None:
        tokenizer = tiktoken.get_encoding("gpt2")
    dataset = GPTDatasetV1(txt, tokenizer, max_length, stride)
    if drop_last:
        check_any_batch(len(dataset), batch_size)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        num_workers=num_workers,
        generator=None if seed is None else torch.Generator().manual_seed(seed),
    )
