"""What the checks of chapter 7's exercises try an answer on.

* `LetterTokenizer`, `ChattyTokenizer`: a token for each letter (7.1, 7.4);
* `conversation`: the row of a conversation, and rows with a slip (7.4);
* `ALPACA`: what may stand in a file like that of Stanford Alpaca (7.3);
* `REPLIES`: replies with JSON in them, and the verdict on each (7.5);
* `interval_of`, `shares_drawn`: the interval of section 7.6, from far more draws (7.6).

>>> LetterTokenizer().encode("Hi")
[72, 105]
"""

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gpt_instruction_finetuning import IGNORE_INDEX


class LetterTokenizer:
    """A token for each letter, and for each special token where it is allowed."""

    special_tokens = {"<|im_start|>": 1000, "<|im_end|>": 1001}
    eot_token = 1001

    def encode(
        self,
        text: str,
        *,
        allowed_special: Any = (),
        disallowed_special: Any = (),
    ) -> list[int]:
        """The ids of a text; what looks like a special token is none by default."""
        allowed = self.special_tokens if allowed_special == "all" else allowed_special
        names = "|".join(re.escape(name) for name in allowed)
        pieces = re.split(f"({names})", text) if names else [text]
        ids = []
        for piece in pieces:
            known = piece in allowed
            ids += [self.special_tokens[piece]] if known else [ord(c) for c in piece]
        return ids

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of a text in which nothing is special."""
        return self.encode(text)


class ChattyTokenizer(LetterTokenizer):
    """A tokenizer with a chat template of its own, which is longer than the text."""

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The ids of messages, after a system message."""
        return [7] * 90 + self.encode(messages[-1]["content"])


def conversation(
    turns: Sequence[tuple[str, str]],
    counted: Container[str] = "te",
    answers: Container[int] | None = None,
    skip: int = 0,
    shift: int = 1,
    newline: str = "\n",
) -> tuple[list[int], list[int]]:
    """Inputs and targets; `counted` names the kinds of tokens that count.

    Kinds: q for everything of a question, h for the heading of an answer, t for its
    text, e for its end token, n for the line break behind that.
    """
    marked = []  # (id, counts)
    for number, turn in enumerate(turns):
        for role, text in zip(("user", "assistant"), turn):
            asked = role == "user"
            chosen = asked or answers is None or number in answers
            pieces = [("h", [1000, *letters(f"{role}\n")]), ("t", letters(text))]
            pieces += [("e", [1001]), ("n", letters(newline))]
            for kind, ids in pieces:
                counts = chosen and ("q" if asked else kind) in counted
                late = skip if kind == "t" else 0
                marked += [(x, counts and i >= late) for i, x in enumerate(ids)]
    inputs = [x for x, _ in marked[:-1]]
    last = len(marked) - 1 + shift
    targets = [x if counts else IGNORE_INDEX for x, counts in marked[shift:last]]
    return inputs, targets


def letters(text: str) -> list[int]:
    """The ids that `LetterTokenizer` gives a text."""
    return [ord(letter) for letter in text]


ALPACA = [
    {"instruction": "Name a river.", "input": "", "output": "The Nile."},
    {"instruction": "Draw the moon.", "input": "full", "output": ""},
    {"instruction": "Name a bird.", "input": "<noinput>", "output": "A heron."},
    {"instruction": "Say more.", "input": "<noInput>", "output": "More."},
    {"instruction": "What is it?", "input": "The tag <noinput>.", "output": "A tag."},
    {"instruction": "Colour?", "input": "gr\u00fcn", "output": "Green, or \u7dd1."},
    {"instruction": "Indent it.\n", "input": "  x = 1\n", "output": "    x = 1\n"},
    {"instruction": "Say nothing.", "input": "", "output": " "},
    {"instruction": "Is there one?", "input": "noinput", "output": "No.", "by": "me"},
    {"instruction": "Name a river.", "input": "", "output": "The Nile."},
    {"instruction": "Name a song.", "input": "", "output": "<NOINPUT>"},
    {"instruction": "Speak up.", "input": "<NOINPUT>", "output": "I DO."},
    {"instruction": "Quote the tag.", "input": " <noinput>\n", "output": "It is one."},
]

_RECORD = {
    "instruction": 'Write the facts as a JSON object with "name", "age" and "left".',
    "input": "Rosa is 41, she has 1 cat left.",
    "output": '{"name": "Rosa", "age": 41, "left": 1}',
}
_LIST = {"instruction": "A JSON array.", "input": "b, a", "output": '["b", "a"]'}
_NESTED = {
    "instruction": "Write it as JSON.",
    "input": "Ann has 1 cat. J\u00fcrgen has none.",
    "output": '{"Ann": {"cats": 1, "ids": [1, 0]}, "J\u00fcrgen": {"cats": null}}',
}
_ROSA, _ANN = _RECORD["output"], _NESTED["output"]

# What is asked, a reply, whether it is right, and what a wrong verdict says.
REPLIES = [
    (_RECORD, _ROSA, True, "the expected text itself is refused"),
    (
        _RECORD,
        '{"name": "Ivan", "age": 41, "left": 1}',
        False,
        "a reply with another name in it passes",
    ),
    (
        _RECORD,
        '{\n   "name" : "Rosa",\n   "age" : 41, "left":1}',
        True,
        "white space decides; compare the data, not the text",
    ),
    (
        _RECORD,
        '{"age": 41, "left": 1, "name": "Rosa"}',
        True,
        "the order of the keys decides, and it has no meaning in JSON",
    ),
    (
        _RECORD,
        f"Here it is [as asked]:\n```json\n{_ROSA}\n```\nAnything else?",
        True,
        "words, brackets or a fence around the JSON make the reply wrong",
    ),
    (
        _RECORD,
        _ROSA + " Put {curly brackets} around it.",
        True,
        "a bracket somewhere behind the JSON makes the reply wrong; `raw_decode` stops "
        "where the JSON ends",
    ),
    (_LIST, 'Sure: ["b","a"]', True, "an array is refused where one was asked for"),
    (
        _LIST,
        '["a", "b"]',
        False,
        "an array in another order passes; in an array the order has a meaning",
    ),
    (
        _RECORD,
        _ROSA.replace("41", '"41"'),
        False,
        "a number in quotation marks passes; it is a text",
    ),
    (
        _RECORD,
        _ROSA.replace("1}", "true}"),
        False,
        "true passes for 1: Python calls them equal; `json.dumps` tells them apart",
    ),
    (_NESTED, _ANN, True, "an object inside an object is refused"),
    (
        _NESTED,
        '{"J\\u00fcrgen": {"cats": null}, "Ann": {"ids": [1, 0], "cats": 1}}',
        True,
        "the order of the keys decides inside an object, or how a letter is written",
    ),
    (
        _NESTED,
        _ANN.replace('"cats": 1', '"cats": true'),
        False,
        "true passes for 1 inside an object; compare the kinds at every depth",
    ),
    (
        _NESTED,
        _ANN.replace("[1, 0]", "[1, false]"),
        False,
        "false passes for 0 inside an array; compare the kinds at every depth",
    ),
    (
        _NESTED,
        _ANN.replace("[1, 0]", "[0, 1]"),
        False,
        "an array in another order passes inside an object",
    ),
    (
        _NESTED,
        _ANN.replace('{"cats": null}', "{}"),
        False,
        "a key that is missing passes for one whose value is null",
    ),
    (
        _NESTED,
        _ANN.replace("[1, 0]", '["1", "0"]'),
        False,
        "numbers in quotation marks pass inside an array",
    ),
    (_RECORD, _ROSA.replace("41", "41.5"), False, "a number passes for another one"),
    (_RECORD, _ROSA.replace('"Rosa"', '"rosa"'), False, "capitals make no difference"),
    (
        _RECORD,
        _ROSA.replace("}", ', "sure": false}'),
        False,
        "a reply with a key that nobody asked for passes",
    ),
    (
        _RECORD,
        _ROSA.replace("41", "14") + " or " + _ROSA,
        False,
        "a reply with two objects passes if one of them is right; the first one counts",
    ),
    (
        _RECORD,
        f"[{_ROSA}]",
        False,
        "an object inside an array passes, and it was asked for alone",
    ),
    (
        _RECORD,
        _ROSA[:-1],
        False,
        "a reply that breaks off before its last bracket passes",
    ),
    (_RECORD, "Rosa is 41 and has 1 cat left.", False, "a reply without JSON passes"),
    (_RECORD, "", False, "an empty reply passes"),
    (_RECORD, "{}", False, "an empty object passes"),
    (_RECORD, "Rosa, 41, 1", False, "the values pass without JSON around them"),
    (
        _RECORD,
        _ROSA.replace('"', "'"),
        False,
        "single quotation marks pass, and JSON knows double ones only",
    ),
    (
        _RECORD,
        f'{{"person": {_ROSA}}}',
        False,
        "an object inside another one passes, and it was asked for alone",
    ),
]


def interval_of(
    right: ArrayLike,
    families: Iterable[object],
    tail: float = 0.025,
    part: float = 1.0,
) -> tuple[float, float]:
    """`score_interval` with far more draws, all of them at once."""
    low, high = np.quantile(shares_drawn(right, families, part), [tail, 1 - tail])
    return float(low), float(high)


def shares_drawn(
    right: ArrayLike, families: Iterable[object], part: float = 1.0
) -> np.ndarray:
    """Shares of right answers, families drawn 40,000 times, or a part of so many."""
    _, family = np.unique(np.array([*families]), return_inverse=True)
    size, sums = np.bincount(family), np.bincount(family, weights=right)
    number = int(part * len(size))
    draws = np.random.default_rng(1).integers(len(size), size=(40_000, number))
    return sums[draws].sum(axis=1) / size[draws].sum(axis=1)
