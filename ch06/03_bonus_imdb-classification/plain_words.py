"""Plain words of praise and blame, and how a text uses them (chapter 6, bonus).

Support: nothing here is taught. The two lists were written for this course without a
look at its reviews; they are neither complete nor tuned. With them the notebook asks
whether a text says plainly what it means.

>>> votes("A great film, but the last hour is dull and far too long.")
(1, 1)
>>> from sklearn.feature_extraction.text import CountVectorizer
>>> from sklearn.linear_model import LogisticRegression
>>> from sklearn.pipeline import make_pipeline
>>> model = make_pipeline(CountVectorizer(), LogisticRegression())
>>> model = model.fit(["a fine film", "a dull film"], [1, 0])
>>> sorted(told(model))
['dull', 'fine']
>>> describe(["Dull indeed."], [model])
[{'words': 2, 'good': 0, 'bad': 1, 'known': '0.50', 'told': '1'}]
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

_PRAISE = (
    "good great best love loved loves excellent wonderful nice enjoy enjoyed enjoyable "
    "amazing awesome beautiful perfect fantastic delicious superb brilliant fine happy "
    "pleased recommend recommended fun funny favorite delightful impressive terrific "
    "charming moving"
)
_BLAME = (
    "bad worst terrible awful horrible poor poorly boring dull waste wasted "
    "disappointed disappointing disappointment stupid hate hated avoid useless broken "
    "lame mess slow cold ugly annoying mediocre crap sucks ridiculous worse fails "
    "failed unfortunately bland"
)
GOOD, BAD = frozenset(_PRAISE.split()), frozenset(_BLAME.split())


def votes(text: str) -> tuple[int, int]:
    """How many words of praise and of blame a text has."""
    words = re.findall(r"[a-z']+", text.lower())
    return sum(word in GOOD for word in words), sum(word in BAD for word in words)


def told(model: Any) -> frozenset[str]:
    """The plain words for which a classifier of words learned the right sign.

    Args:
        model: a fitted pipeline of `CountVectorizer` and a linear classifier, whose
            second class is praise.
    """
    places, weights = model[0].vocabulary_, model[-1].coef_[0]
    praised = {word for word in GOOD & places.keys() if weights[places[word]] > 0}
    return praised | {word for word in BAD & places.keys() if weights[places[word]] < 0}


def describe(texts: Iterable[str], models: Sequence[Any]) -> list[dict[str, Any]]:
    """What can be counted about texts.

    Args:
        texts: those to describe.
        models: classifiers of words, as `told` takes them.

    Returns:
        For each text: `words`; `good` and `bad`, how many plain words it has; `known`,
        the share of its words that the first model has met at all; and `told`, a digit
        for each model: 1 if it learned the right sign of a plain word of the text.
    """
    split, met = models[0][0].build_analyzer(), models[0][0].vocabulary_
    signs = [told(model) for model in models]
    rows = []
    for text in texts:
        good, bad = votes(text)
        words = split(text)
        known = sum(word in met for word in words) / max(len(words), 1)
        rows.append(
            {
                "words": len(text.split()),
                "good": good,
                "bad": bad,
                "known": f"{known:.2f}",
                "told": "".join(str(int(not one.isdisjoint(words))) for one in signs),
            }
        )
    return rows
