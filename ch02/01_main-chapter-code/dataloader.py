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
import warnings
from collections.abc import Iterable, Mapping, Sequence

import tiktoken
import torch
from torch.utils.data import DataLoader, Dataset

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unk|>"


# --- Tokens by rule, and their ids ---------------------------------------------------


def split_into_tokens(text: str) -> list[str]:
    """Cut a text into words, punctuation marks, dashes and special tokens.

    A word may hold hyphens and apostrophes inside ("well-kept", "don't"). Each
    character but white space ends up in exactly one token; white space is dropped, so
    the text cannot be rebuilt to the letter.
    """
    _check_text(text)
    special, dash, word, mark = r"<\|\w+\|>", r"--", r"\w+(?:[-']\w+)*", r"[^\w\s]"
    return re.findall(f"{special}|{dash}|{word}|{mark}", text)


def build_vocabulary(
    tokens: Iterable[str], special_tokens: Iterable[str] = ()
) -> dict[str, int]:
    """Number the distinct tokens 0, 1, 2, ... in sorted order, special tokens last.

    A special token that also occurs among `tokens` keeps its place at the end. Raises
    `ValueError` if there is nothing to number, `TypeError` for a text instead of
    tokens.
    """
    _check_tokens(tokens, special_tokens)
    special_tokens = list(dict.fromkeys(special_tokens))
    words = sorted(set(tokens) - set(special_tokens))
    vocab = {token: i for i, token in enumerate(words + special_tokens)}
    _check_vocabulary(vocab)
    return vocab


class SimpleTokenizerV1:
    """Words to ids and back through a fixed vocabulary; unknown words are an error.

    `vocab` maps each token to its own id. White space is lost: `decode` writes one
    space between tokens and none before a closing mark, so a line break comes back as
    a space, and "a--b" as "a -- b". The tokens themselves survive: encoding the decoded
    text gives the same ids.
    """

    def __init__(self, vocab: Mapping[str, int]):
        _check_vocabulary(vocab)
        self.str_to_int = dict(vocab)
        self.int_to_str = {i: token for token, i in vocab.items()}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; `KeyError` names a word outside the vocabulary."""
        tokens = split_into_tokens(text)
        _check_known_tokens(tokens, self.str_to_int)
        return [self.str_to_int[token] for token in tokens]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of a list of ids; `KeyError` names an id without a token."""
        _check_known_ids(ids, self.int_to_str)
        text = " ".join(self.int_to_str[i] for i in ids)
        return re.sub(r" ([.,:;?!)])", r"\1", text)


class SimpleTokenizerV2(SimpleTokenizerV1):
    """Like V1, but a word outside the vocabulary becomes `<|unk|>`.

    Raises `ValueError` if `vocab` lacks that token.
    """

    def __init__(self, vocab: Mapping[str, int]):
        _check_holds_unknown(vocab)
        super().__init__(vocab)

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
    _check_text(text)
    _check_ratio(train_ratio)
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


def encode_text(text: str, tokenizer) -> list[int]:
    """Return the ids of a text in which each `<|endoftext|>` is the one special token.

    tiktoken refuses special tokens unless they are allowed, so that a stranger's text
    cannot smuggle them in. A tokenizer without that argument, like the two above, finds
    them in its vocabulary. Other text that looks special stays plain text.
    """
    _check_text(text)
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

    def __init__(self, txt: str, tokenizer, max_length: int, stride: int):
        _check_windows(max_length, stride)
        token_ids = torch.tensor(encode_text(txt, tokenizer), dtype=torch.long)
        _check_long_enough(len(token_ids), max_length)
        self.input_ids = token_ids[:-1].unfold(0, max_length, stride)  # (N, T)
        self.target_ids = token_ids[1:].unfold(0, max_length, stride)  # (N, T)

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index) -> tuple[torch.Tensor, torch.Tensor]:
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
    tokenizer=None,
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
    _check_batches(batch_size, num_workers)
    if tokenizer is None:
        tokenizer = tiktoken.get_encoding("gpt2")
    dataset = GPTDatasetV1(txt, tokenizer, max_length, stride)
    if drop_last:
        _check_one_batch(len(dataset), batch_size)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        num_workers=num_workers,
        generator=None if seed is None else torch.Generator().manual_seed(seed),
    )


# --- What callers get wrong ----------------------------------------------------------


def _check_text(text):
    if not isinstance(text, str):
        raise TypeError(
            f"The text must be a string, not {type(text).__name__}; "
            'read a file with open(path, encoding="utf-8").read().'
        )


def _check_tokens(tokens, special_tokens):
    if isinstance(tokens, str) or isinstance(special_tokens, str):
        raise TypeError(
            "Tokens must be a list of strings, not one string; "
            "call split_into_tokens(text) first, and put special tokens into a list."
        )


def _check_vocabulary(vocab):
    if not vocab:
        raise ValueError("The vocabulary is empty; build it from at least one token.")
    if len(set(vocab.values())) < len(vocab):
        raise ValueError(
            "Two tokens of the vocabulary share an id; give each its own, "
            "as build_vocabulary does."
        )


def _check_holds_unknown(vocab):
    if UNKNOWN not in vocab:
        raise ValueError(
            f"The vocabulary lacks {UNKNOWN!r}, which stands for unknown words; "
            "pass it to build_vocabulary among the special tokens."
        )


# A look-up that fails is a KeyError, which is what readers of such code expect.
def _check_known_tokens(tokens, vocab):
    for token in tokens:
        if token not in vocab:
            raise KeyError(
                f"{token!r} is not in the vocabulary; build it from a text with this "
                f"word, or use SimpleTokenizerV2, which writes {UNKNOWN} instead."
            )


def _check_known_ids(ids, int_to_str):
    if isinstance(ids, torch.Tensor):
        raise TypeError("The ids are a tensor; decode takes a list: call ids.tolist().")
    for i in ids:
        if i not in int_to_str:
            raise KeyError(
                f"id {i!r} stands for no token; this vocabulary has the ids "
                f"{min(int_to_str)} to {max(int_to_str)}."
            )


def _check_ratio(train_ratio):
    if not isinstance(train_ratio, float) or not 0 < train_ratio < 1:
        raise ValueError(
            f"train_ratio must be a number between 0 and 1, not {train_ratio!r}; "
            "0.9 keeps nine tenths for training."
        )


def _check_whole_number(name, value, least, mend):
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}; {mend}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}; {mend}.")


def _check_windows(max_length, stride):
    _check_whole_number("max_length", max_length, 1, "it counts the tokens of a window")
    _check_whole_number("stride", stride, 1, "stride=max_length uses each token once")
    if stride > max_length:
        warnings.warn(
            f"stride={stride} is larger than max_length={max_length}, so of every "
            f"{stride} tokens {stride - max_length} are never an input; use a stride "
            f"of at most {max_length} to read all of them.",
            stacklevel=3,
        )


def _check_long_enough(num_tokens, max_length):
    if num_tokens <= max_length:
        raise ValueError(
            f"The text is too short: it has {num_tokens} tokens, but one window of "
            f"max_length={max_length} with its target needs {max_length + 1}; use a "
            "longer text or a smaller max_length."
        )


def _check_batches(batch_size, num_workers):
    _check_whole_number("batch_size", batch_size, 1, "it counts the windows of a batch")
    _check_whole_number("num_workers", num_workers, 0, "0 loads in this process")


def _check_one_batch(num_windows, batch_size):
    if num_windows < batch_size:
        raise ValueError(
            f"The text has too few windows, {num_windows} for batch_size={batch_size}, "
            "and drop_last=True would leave no batch at all; use a smaller batch_size, "
            "drop_last=False or a longer text."
        )
