"""Marks of form: what can be seen of a message without reading a word of it.

Support for chapter 6's comparison and for the tests of its data. A classifier that has
only these says how much the form of the messages gives away.

>>> marks = form_table(["Pay now!", "see you at seven"])
>>> marks.shape, len(FORM)
((2, 14), 14)
"""

import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

LINK = re.compile(r"(?:[a-z0-9-]+\.)+[a-z]{2,}(?:/\S*)?", re.IGNORECASE)


def host(text: str) -> str:
    """The domain of the first link, or nothing."""
    link = LINK.search(text)
    return link[0].split("/")[0] if link else ""


FORM: dict[str, Callable[[str], float]] = {
    "number of words": lambda text: float(np.log(len(text.split()))),
    "letters per word": lambda text: float(
        np.mean([len(word) for word in text.split()])
    ),
    "a link": lambda text: bool(host(text)),
    "a hyphen in the link's domain": lambda text: "-" in host(text),
    "a link without a path": lambda text: any(
        "/" not in link for link in LINK.findall(text)
    ),
    "a small first letter": lambda text: text[0].islower(),
    "ends with . ! or ?": lambda text: text[-1] in ".!?",
    "an exclamation mark": lambda text: "!" in text,
    "a question mark": lambda text: "?" in text,
    "share of digits": lambda text: float(np.mean([char.isdigit() for char in text])),
    "a currency sign": lambda text: any(unicodedata.category(c) == "Sc" for c in text),
    "share of capitals": lambda text: (
        sum(char.isupper() for char in text) / max(1, sum(map(str.isalpha, text)))
    ),
    "a line break": lambda text: "\n" in text,
    "an emoji": lambda text: any(unicodedata.category(c) == "So" for c in text),
}


def form_table(
    texts: Sequence[str], marks: dict[str, Callable[[str], float]] = FORM
) -> np.ndarray:
    """The marks of each text, (N, marks), as numbers."""
    return np.array([[float(mark(text)) for mark in marks.values()] for text in texts])
