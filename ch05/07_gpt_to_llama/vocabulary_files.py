"""Vocabularies in published files, found and read: support.

* `tokenizer_beside` finds the tokenizer in a folder; `NoTokenizer` stands where there
  is none;
* `read_ranks` and `read_json_ranks` read a vocabulary of bytes whose ids say how early
  a token is merged, as a list in base64 or as JSON.

>>> tokenizer = tokenizer_beside(["tokenizer.json"], read_json)(Path("nowhere"), 50)
>>> tokenizer.encode("Hello")
Traceback (most recent call last):
    ...
AttributeError: There is no tokenizer in nowhere: put tokenizer.json beside the weights.
"""

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bpe import byte_alphabet
from text_files import read_text_file


class NoTokenizer:
    """Stands where a tokenizer is missing; says so when one is asked for.

    Args:
        message: the sentence of the `AttributeError`.
    """

    def __init__(self, message: str):
        self._message = message

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python asks of every object
            raise AttributeError(name)
        raise AttributeError(self._message)


def tokenizer_beside(
    names: Sequence[str], read: Callable[[Path], Any]
) -> Callable[[Path, int], Any]:
    """How the tokenizer in a folder is found, for a `Family`.

    Args:
        names: of files; the first that is there is read.
        read: from a path to the tokenizer.

    Returns:
        A function of a folder and of the model's number of tokens. It gives the
        tokenizer, or a `NoTokenizer`, and raises `ValueError` if the tokenizer has more
        tokens than the model.
    """

    def find(folder: Path, vocab_size: int) -> Any:
        there = [folder / name for name in names if (folder / name).exists()]
        if not there:
            return NoTokenizer(
                f"There is no tokenizer in {folder}: put {names[0]} beside the weights."
            )
        tokenizer = read(there[0])
        check_size_of_tokenizer(there[0], tokenizer, vocab_size)
        return tokenizer

    return find


def check_size_of_tokenizer(path: Path, tokenizer: Any, vocab_size: int) -> None:
    """Raise if a tokenizer has more tokens than the model."""
    if tokenizer.n_vocab > vocab_size:
        raise ValueError(
            f"{path}: it has {tokenizer.n_vocab} tokens, but the model only "
            f"{vocab_size}: the files belong to different models."
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; `ValueError` if there is none."""
    try:
        found = json.loads(read_text_file(path))
    except (json.JSONDecodeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: it is not a JSON object; download it again.")
    return found


def read_ranks(path: str | Path, fix: str) -> dict[bytes, int]:
    """{bytes of a token: its rank} of a file that lists them; tiktoken would crash on
    half of one.

    Args:
        path: of a text file with a token in base64 and its rank in each line.
        fix: what to do if it is another file, for the message.

    Raises:
        ValueError: the file is not there, damaged or of another kind.
    """
    path = Path(path)
    try:
        lines = [line.split() for line in path.read_bytes().splitlines()]
        ranks = {base64.b64decode(t, validate=True): int(r) for t, r in lines}
    except OSError as problem:
        raise ValueError(f"{path} cannot be read: {problem.strerror}.") from None
    except ValueError:
        raise ValueError(
            f"{path}: it is not a list of tokens in base64 with their ranks: {fix}."
        ) from None
    in_order = sorted(ranks.values()) == list(range(len(lines)))
    if not in_order or any(bytes([byte]) not in ranks for byte in range(256)):
        raise ValueError(
            f"{path}: the ranks do not run from 0 up without a gap, or a byte has no "
            "token: the file is damaged, download it again."
        )
    return ranks


def read_json_ranks(path: Path, special: Sequence[str], model: str) -> dict[bytes, int]:
    """{bytes of a token: its rank} of a `tokenizer.json` or a `vocab.json`.

    Args:
        path: of the file, whose ids run from 0 up and say how early a token is merged.
        special: the special tokens that must follow, in the order of their ids, if the
            file holds any, as a `tokenizer.json` does.
        model: whose vocabulary it must be, for messages.

    Raises:
        ValueError: the file is not there, damaged or of another kind.
    """
    content, alphabet = read_json(path), byte_alphabet()
    try:
        added = {token["content"]: token["id"] for token in content["added_tokens"]}
        vocabulary = content["model"]["vocab"]
    except (KeyError, TypeError):
        added, vocabulary = None, content
    try:
        ranks = {
            bytes(alphabet[character] for character in token): id
            for token, id in vocabulary.items()
        }
        gapless = sorted(ranks.values()) == list(range(len(vocabulary)))
    except (KeyError, TypeError, AttributeError):
        ranks, gapless = {}, False
    whole = gapless and all(bytes([byte]) in ranks for byte in range(256))
    expected = {name: len(ranks) + i for i, name in enumerate(special)}
    more = sorted(map(str, set(added or ()) - set(expected)))
    if whole and more:
        raise ValueError(
            f"{path}: it has {len(more)} special tokens more than {model}, such as "
            f"{more[0]!r}, which are not known here."
        )
    if not whole or added not in (None, expected):
        raise ValueError(
            f"{path}: it is not the vocabulary of {model}, whose ids run from 0 up and "
            f"end with {len(special)} special tokens: download it again."
        )
    return ranks
