"""The tokenizer in a folder of the model hub: support.

Three forms are read, and each becomes a tokenizer with tiktoken's methods:

* `tokenizer.json`, written by the package `tokenizers`: byte pair encoding over bytes,
  split as GPT-2, SmolLM2 or Llama 3 split a text;
* `vocab.json` and `merges.txt`, of GPT-2 alone, as they do not say how to split;
* `tokenizer.model` of Llama 3, itself or in `original`.

What is not there is a `NoTokenizer`: the model can be used with ids, and whoever asks
for words is told what is missing. What is there and damaged, or works in another way
(SentencePiece), raises `ValueError`; nothing is guessed. An added token that the file
does not call special is one here, too: in a text it counts where that is allowed.

>>> from tempfile import TemporaryDirectory
>>> with TemporaryDirectory() as folder:
...     tokenizer = folder_tokenizer(Path(folder), 50257, "llama")
>>> tokenizer.encode("Hello")  # doctest: +ELLIPSIS
Traceback (most recent call last):
    ...
AttributeError: There is no tokenizer in ...: put tokenizer.json beside the weights.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tiktoken

from bpe import GPT2_PATTERN, byte_alphabet
from gguf_files import Vocabulary, check_merges
from gguf_tokenizer import GGUFTokenizer
from llama_files import (
    LLAMA3_PATTERN,
    LLAMA3_SPECIAL,
    Llama3Encoding,
    llama_tokenizer,
)
from text_files import read_text_file
from vocabulary_files import NoTokenizer, check_size_of_tokenizer, read_json

_PATTERNS = {"gpt-2": GPT2_PATTERN, "llama-bpe": LLAMA3_PATTERN}


class HubEncoding(tiktoken.Encoding):
    """tiktoken's `Encoding`, with the end that the files name."""

    end = 0

    @property
    def eot_token(self) -> int:
        """The id with which the model ends its answer."""
        return self.end


def folder_tokenizer(
    folder: Path, vocab_size: int, family: str, kind: type[HubEncoding] = HubEncoding
) -> Any:
    """The tokenizer in a folder.

    Args:
        folder: where the files are.
        vocab_size: how many tokens the model has; the tokenizer may have fewer.
        family: "gpt2", or that of one of Llama's kin.
        kind: of what is made of a `tokenizer.json` that is not Llama 3's.

    Returns:
        A tokenizer with tiktoken's methods, `n_vocab` and `eot_token`; a `NoTokenizer`
        if there is none in the folder.

    Raises:
        ValueError: there is one that is damaged, of another kind or of another model.
    """
    ranks = [folder / "tokenizer.model", folder / "original" / "tokenizer.model"]
    ranks = [path for path in ranks if path.exists()]
    whole, vocabulary = folder / "tokenizer.json", folder / "vocab.json"
    if whole.exists():
        path = whole
        found = _from_json(whole, kind)
    elif vocabulary.exists() and family == "gpt2":
        path = vocabulary
        found = _from_two_files(vocabulary, folder / "merges.txt")
    elif ranks:
        path = ranks[0]
        found = llama_tokenizer(path)
    else:
        return NoTokenizer(_missing(folder, vocabulary.exists()))
    check_size_of_tokenizer(path, found, vocab_size)
    return found


def _missing(folder, vocabulary_exists):
    if vocabulary_exists:
        return (
            f"There is no tokenizer.json in {folder}, and vocab.json does not say how "
            "a text is split: put tokenizer.json beside the weights."
        )
    return f"There is no tokenizer in {folder}: put tokenizer.json beside the weights."


def tokenizer_of(
    vocabulary: Vocabulary,
    where: str,
    template: Any = None,
    kind: type[HubEncoding] = HubEncoding,
) -> Any:
    """The tokenizer of a vocabulary.

    Args:
        vocabulary: its `name` is the way of splitting, "gpt-2", "smollm" or
            "llama-bpe"; the ids must follow the order of the merges.
        where: it comes from, for messages.
        template: the chat template, if there is one.
        kind: of the result, unless it is a `GGUFTokenizer` or a `Llama3Encoding`.

    Raises:
        ValueError: tokens and merges do not belong together.
    """
    alphabet, ids = byte_alphabet(), vocabulary.ordinary_ids()
    try:
        check_merges(ids, vocabulary.merges, alphabet)
    except ValueError:
        raise ValueError(
            f"{where}: the merges do not make its tokens in the order of their ids, as "
            "GPT-2's, SmolLM2's and Llama 3's do: it is damaged, or of another kind."
        ) from None
    special = vocabulary.special_ids()
    if "" in special:
        raise ValueError(f"{where}: one of its special tokens is empty.")
    if vocabulary.name == "smollm":
        return GGUFTokenizer(
            {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.pre": "smollm",
                "tokenizer.ggml.tokens": vocabulary.tokens,
                "tokenizer.ggml.token_type": vocabulary.types,
                "tokenizer.ggml.merges": vocabulary.merges,
                "tokenizer.ggml.eos_token_id": vocabulary.eot_token,
                "tokenizer.chat_template": template,
            }
        )
    ranks = {bytes(alphabet[c] for c in token): i for token, i in ids.items()}
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise ValueError(f"{where}: a byte has no token, so not every text has ids.")
    llama3 = vocabulary.name == "llama-bpe" and special.keys() >= LLAMA3_SPECIAL.keys()
    encoding = (Llama3Encoding if llama3 else kind)(
        name=vocabulary.name,
        pat_str=_PATTERNS[vocabulary.name],
        mergeable_ranks=ranks,
        special_tokens=special,
    )
    if isinstance(encoding, HubEncoding):
        encoding.end = vocabulary.eot_token
    return encoding


# --- tokenizer.json ------------------------------------------------------------------


def _from_json(path, kind):
    """The tokenizer in a `tokenizer.json`, and what lies beside it."""
    content = read_json(path)
    beside = path.with_name("tokenizer_config.json")
    notes = read_json(beside) if beside.exists() else {}
    try:
        _check_kind(content)
        split = _split(content["pre_tokenizer"])
        tokens, types = _tokens(content)
        merges = [
            pair if isinstance(pair, str) else " ".join(pair)
            for pair in content["model"]["merges"]
        ]
        end = _end(path.parent, notes, tokens)
        vocabulary = Vocabulary(split, tokens, types, merges, end)
    except (KeyError, TypeError, AttributeError, IndexError) as problem:
        raise ValueError(
            f"{path}: it is not a whole tokenizer.json of the package tokenizers "
            f"({type(problem).__name__}: {problem}); download it again."
        ) from None
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None
    return tokenizer_of(vocabulary, str(path), notes.get("chat_template"), kind)


def _check_kind(content):
    """Raise unless it is byte pair encoding over bytes and nothing besides."""
    model = content["model"]
    kind = model.get("type", "BPE")
    plain = not model.get("byte_fallback") and content.get("normalizer") is None
    if kind != "BPE" or not plain:
        raise ValueError(
            f"the tokenizer is of another kind ({kind}"
            f"{'' if plain else ' of characters'}); known are those of GPT-2, SmolLM2 "
            "and Llama 3: move the file away to load the model without it."
        )
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(name):
            raise ValueError(f"it asks for {name}={model[name]!r}, not known here.")
    for token in content["added_tokens"]:
        if any(token.get(name) for name in ("lstrip", "rstrip", "single_word")):
            raise ValueError(
                f"the added token {token['content']!r} takes in what stands around it, "
                "not known here."
            )


def _split(pre_tokenizer):
    """The way of splitting, by the name that GGUF files have for it."""
    parts = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    *first, last = parts
    with_pattern = last.get("use_regex", True)
    if last["type"] == "ByteLevel" and not last.get("add_prefix_space"):
        kinds = [part["type"] for part in first]
        if not kinds and with_pattern:
            return "gpt-2"
        if kinds == ["Digits"] and first[0]["individual_digits"] and with_pattern:
            return "smollm"
        if kinds == ["Split"] and not with_pattern:
            way = first[0]["behavior"], first[0].get("invert", False)
            # The pattern leaves no character out, so both keep just what it matches.
            kept = way in (("Isolated", False), ("Removed", True))
            if kept and first[0]["pattern"]["Regex"] == LLAMA3_PATTERN:
                return "llama-bpe"
    raise ValueError(
        "it splits a text in a way that is not known here; known are those of GPT-2, "
        "SmolLM2 and Llama 3: move the file away to load the model without it."
    )


def _tokens(content):
    """The text of each id, and its kind: 1 ordinary, 3 special."""
    ids = dict(content["model"]["vocab"])
    special = {token["content"]: token["id"] for token in content["added_tokens"]}
    return _in_order(ids | special, special)


def _in_order(ids, special):
    """`(tokens, types)` by id; the ids must run from 0 up without a gap."""
    places = list(ids.values())
    if not all(type(i) is int for i in places) or sorted(places) != list(
        range(len(places))
    ):
        raise ValueError("the ids of its tokens do not run from 0 up without a gap.")
    tokens = sorted(ids, key=ids.__getitem__)
    return tokens, [3 if token in special else 1 for token in tokens]


def _end(folder, notes, tokens):
    """The id that ends an answer, from whichever file says so."""
    end = notes.get("eos_token")
    end = end["content"] if isinstance(end, Mapping) else end
    if end is not None:
        return tokens.index(end)
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        end = read_json(file).get("eos_token_id") if file.exists() else None
        end = end[0] if isinstance(end, list) and end else end
        if type(end) is int and 0 <= end < len(tokens):
            return end
    if "<|endoftext|>" in tokens:
        return tokens.index("<|endoftext|>")
    raise ValueError(
        "no file beside it says which token ends a text; write it as eos_token into "
        "tokenizer_config.json."
    )


# --- vocab.json and merges.txt -------------------------------------------------------


def _from_two_files(vocabulary, merges):
    """GPT-2's kind: {token: id} in one file, a merge a line in the other."""
    ids = read_json(vocabulary)
    special = [token for token in ids if token == "<|endoftext|>"]
    lines = read_text_file(merges, "vocab.json needs it beside it").split("\n")
    lines = [line for line in lines if line and not line.startswith("#version")]
    try:
        tokens, types = _in_order(ids, special)
        end = _end(vocabulary.parent, {}, tokens)
    except ValueError as problem:
        raise ValueError(f"{vocabulary}: {problem}") from None
    return tokenizer_of(Vocabulary("gpt-2", tokens, types, lines, end), str(vocabulary))
