"""Which of many texts is nearly one before it, by letters or meaning (ch. 7, bonus).

Support: nothing here is taught; chapter 5's bonus on books teaches MinHash. Three ways
to say how alike two texts are, each from 0 to 1:

* `LetterWeights`: the cosine of TF-IDF vectors over runs of four letters. TF-IDF counts
  a run the more, the fewer texts hold it, so that what all texts share says little;
* `LetterSets`: the Jaccard similarity of the sets of runs of five letters. MinHash
  finds the pairs, and then their sets are compared;
* `Meanings`: the cosine of vectors that a sentence embedder gives to whole texts.

`nearest_before` goes through the texts in order with one of them. A text is kept unless
one that was kept before it is as similar as the threshold. So two kept texts are never
that similar, and whoever is not kept is like somebody who is.

>>> texts = ["Name the capital of Peru.", "What is a verb?", "name the capitol of Peru"]
>>> nearest_before(LetterWeights(texts, 0.5), 0.5)[:2]
([2], [0])

Most pairs are never compared letter by letter. All runs are ordered by how many texts
hold them, and of each text the most frequent ones are left out. What two texts share of
the rest, and the length of what was left out, bound their cosine from above (Bayardo,
Ma and Srikant, 2007, DOI 10.1145/1242572.1242591); only pairs whose bound
reaches the threshold are multiplied. Nothing is lost.
"""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
from sklearn.feature_extraction import FeatureHasher
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

from near_duplicates import NUMBERS, band_keys, jaccard, mix, shingles

BLOCK = 500  # texts that are compared with all before them at once
LETTERS = 4  # of a run for TF-IDF
RUN = 5  # of letters for MinHash
LEFT_OUT = 0.8  # length of what is left out of a vector, over the threshold
_COLUMNS = 1 << 20
_SLACK = 0.15  # three standard deviations of an estimate from 128 numbers
_PAIRS = 20_000  # whose vectors are multiplied at once

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]


class Finder(Protocol):
    """Texts by number, and which of them are alike."""

    count: int
    numbers: np.ndarray  # a hash of the digits in each text

    def pairs(self, start: int, stop: int, kept: np.ndarray, threshold: float) -> Pairs:
        """Pairs of one of the texts from `start` on and one before it, and how alike.

        Args:
            start, stop: the texts that are looked at.
            kept: those before `start` with which they are compared, ascending.
            threshold: the least similarity.

        Returns:
            Three arrays: the later text, the earlier one, their similarity.
        """
        ...


def nearest_before(
    finder: Finder,
    threshold: float,
    *,
    any_numbers: bool = False,
    progress: Callable[[int], Any] | None = None,
) -> tuple[list[int], list[int], list[float]]:
    """The texts that are not kept, each with the most similar one that was.

    Args:
        finder: of a kind above.
        threshold: from 0 to 1; texts that are as similar are not both kept.
        any_numbers: whether texts may be alike that hold other numbers. "Add 17 and 4."
            asks something else than "Add 17 and 5.", whatever the letters say.
        progress: is told how many texts have been gone through.

    Returns:
        Three lists: the texts, in order; for each a kept one; and how alike they are.
    """
    kept = np.zeros(finder.count, dtype=bool)
    found, nearest, alike = [], [], []
    for start in range(0, finder.count, BLOCK):
        stop = min(start + BLOCK, finder.count)
        before = np.flatnonzero(kept[:start])
        late, early, score = finder.pairs(start, stop, before, threshold)
        if not any_numbers:
            same = finder.numbers[late] == finder.numbers[early]
            late, early, score = late[same], early[same], score[same]
        order = np.lexsort((early, late))
        late, early, score = late[order], early[order], score[order]
        edges = np.searchsorted(late, np.arange(start, stop + 1))
        for row, low, high in zip(range(start, stop), edges, edges[1:]):
            here = low + np.flatnonzero(kept[early[low:high]])
            kept[row] = not len(here)
            if len(here):
                best = here[np.argmax(score[here])]
                found.append(row)
                nearest.append(int(early[best]))
                alike.append(float(score[best]))
        if progress:
            progress(stop)
    return found, nearest, alike


def with_neighbours(
    finder: Finder, threshold: float, *, any_numbers: bool = False
) -> np.ndarray:
    """The texts to which another one is as similar as the threshold, ascending.

    Unlike `nearest_before` it compares with all texts: the copy of a text that is not
    kept has a neighbour, too.
    """
    found = [np.empty(0, dtype=np.int64)]
    for start in range(0, finder.count, BLOCK):
        stop = min(start + BLOCK, finder.count)
        late, early, _ = finder.pairs(start, stop, np.arange(start), threshold)
        if not any_numbers:
            same = finder.numbers[late] == finder.numbers[early]
            late, early = late[same], early[same]
        found.append(np.unique(np.concatenate([late, early])))
    return np.unique(np.concatenate(found))


# --- Three ways ----------------------------------------------------------------------


class LetterWeights:
    """Texts as TF-IDF vectors over runs of letters; a change of case is none.

    Args:
        texts: they are read once and not kept.
        threshold: the least one that will be asked for.
    """

    def __init__(self, texts: Iterable[str], threshold: float):
        counter = HashingVectorizer(
            analyzer="char_wb",
            ngram_range=(LETTERS, LETTERS),
            n_features=_COLUMNS,
            alternate_sign=False,
            norm=None,
            dtype=np.float32,
        )
        digits, texts = [], iter(texts)
        first = next(texts, None)
        if first is None:
            self.count, self.numbers = 0, np.empty(0, dtype=np.int64)
            return
        texts = _noting_numbers(itertools.chain([first], texts), digits)
        counts = counter.transform(texts)
        self.numbers = np.array(digits, dtype=np.int64)
        self.vectors = TfidfTransformer().fit_transform(counts)  # (texts, columns)
        self.count = self.vectors.shape[0]
        self.keys, self.rest = _rare_part(self.vectors, LEFT_OUT * threshold)

    def pairs(self, start: int, stop: int, kept: np.ndarray, threshold: float) -> Pairs:
        """As `Finder.pairs`; the cosine of the vectors."""
        late, early, score = _sharing(self.keys, start, stop, kept)
        rest = np.maximum(self.rest[late], self.rest[early])
        late, early, score = _above(late, early, score, threshold - rest - 1e-4)
        for low in range(0, len(late), _PAIRS):
            some = slice(low, low + _PAIRS)
            both = self.vectors[late[some]].multiply(self.vectors[early[some]])
            score[some] = np.asarray(both.sum(axis=1)).ravel()
        return _above(late, early, score, threshold)


class LetterSets:
    """Texts as sets of runs of letters; case, spaces and marks make no difference.

    Args:
        texts: they are read once and not kept.
    """

    def __init__(self, texts: Iterable[str]):
        digits, parts, edges, signed = [], [], [0], []
        for some in _in_blocks(_noting_numbers(texts, digits)):
            sets = [shingles(" ".join(text), RUN) for text in some]
            signed.append(signatures(sets))
            parts.append(np.concatenate(sets))
            edges += list(map(len, sets))
        self.numbers = np.array(digits, dtype=np.int64)
        self.count = len(digits)
        self.edges = np.cumsum(edges)
        self.runs = np.concatenate(parts or [np.empty(0, dtype=np.uint64)])
        none = np.empty((0, NUMBERS), dtype=np.uint32)
        self.signatures = np.concatenate([none, *signed])  # (texts, numbers)
        self.keys = self._band_columns()

    def _band_columns(self):
        """A matrix of texts and bands: who shares a column may be alike."""
        hasher = FeatureHasher(
            4 * _COLUMNS, input_type="string", alternate_sign=False, dtype=np.float32
        )
        # Texts without letters would all be alike.
        empty = np.diff(self.edges) == 0
        keys = (
            [] if none else [key.hex() for key in band_keys(signature)]
            for signature, none in zip(self.signatures, empty)
        )
        return _shared_columns(hasher.transform(keys)) if self.count else None

    def runs_of(self, row: int) -> np.ndarray:
        """The set of one text, as sorted numbers."""
        return self.runs[self.edges[row] : self.edges[row + 1]]

    def pairs(self, start: int, stop: int, kept: np.ndarray, threshold: float) -> Pairs:
        """As `Finder.pairs`; the exact Jaccard similarity of the sets."""
        late, early, _ = _sharing(self.keys, start, stop, kept)
        likely = np.empty(len(late), dtype=bool)
        for low in range(0, len(late), _PAIRS):
            some = slice(low, low + _PAIRS)
            same = self.signatures[late[some]] == self.signatures[early[some]]
            likely[some] = same.mean(axis=1) >= threshold - _SLACK
        late, early = late[likely], early[likely]
        sets = ((self.runs_of(a), self.runs_of(b)) for a, b in zip(late, early))
        score = np.array([jaccard(a, b) for a, b in sets], dtype=np.float32)
        return _above(late, early, score, threshold)


class Meanings:
    """Texts as vectors of length 1 whose direction is their meaning.

    Args:
        texts: they are read once and not kept.
        embed: makes the vectors (texts, width) of a list of texts.
    """

    def __init__(self, texts: Iterable[str], embed: Callable[[list[str]], np.ndarray]):
        digits = []
        made = [embed(some) for some in _in_blocks(_noting_numbers(texts, digits))]
        self.numbers = np.array(digits, dtype=np.int64)
        self.count = len(digits)
        self.vectors = np.concatenate(made or [np.empty((0, 1), dtype=np.float32)])

    def pairs(self, start: int, stop: int, kept: np.ndarray, threshold: float) -> Pairs:
        """As `Finder.pairs`; the cosine of the vectors."""
        others = np.concatenate([kept, np.arange(start, stop)])
        score = self.vectors[start:stop] @ self.vectors[others].T
        late, place = np.nonzero(score >= threshold)
        score, late, early = score[late, place], late + start, others[place]
        return tuple(part[early < late] for part in (late, early, score))


def signatures(sets: list[np.ndarray]) -> np.ndarray:
    """The MinHash signatures of many sets, as `near_duplicates.minhash` makes one.

    All sets go through a shuffle together, so that short ones cost no more than their
    length.

    Returns:
        uint32, (sets, numbers).
    """
    orders = np.random.default_rng(0).integers(1 << 63, size=(2, NUMBERS))
    orders = orders.astype(np.uint64)
    lengths = np.array([len(one) for one in sets], dtype=np.int64)
    made = np.full((len(sets), NUMBERS), 0xFFFFFFFF, dtype=np.uint32)
    full = np.flatnonzero(lengths)
    if not len(full):
        return made
    hashes = np.concatenate(sets)
    starts = (np.cumsum(lengths) - lengths)[full]
    for i in range(NUMBERS):
        factor = orders[0, i] * np.uint64(2) + np.uint64(1)
        shuffled = mix(hashes * factor + orders[1, i]) >> np.uint64(32)
        made[full, i] = np.minimum.reduceat(shuffled, starts)
    return made


def digits_of(text: str) -> int:
    """A number for the numbers in a text, whatever their order; 0 without any."""
    found = sorted(re.findall(r"\d+", text))
    if not found:
        return 0
    run = " ".join(found).encode()
    return int.from_bytes(hashlib.blake2b(run, digest_size=7).digest()) or 1


# --- Sparse matrices -----------------------------------------------------------------


def _rare_part(vectors, limit):
    """The rarest runs of each vector, and how long the rest of it is, below `limit`."""
    uses = np.bincount(vectors.indices, minlength=vectors.shape[1])
    rows = np.repeat(np.arange(vectors.shape[0]), np.diff(vectors.indptr))
    order = np.lexsort((vectors.indices, -uses[vectors.indices], rows))
    squares = vectors.data[order].astype(np.float64) ** 2
    sums = np.concatenate([[0.0], np.cumsum(squares)])
    sums = sums[1:] - sums[vectors.indptr[:-1]][rows]  # from the most frequent one on
    left_out = np.empty(len(order), dtype=bool)
    left_out[order] = sums < limit**2
    rare = vectors.copy()
    rare.data[left_out] = 0
    rest = np.bincount(
        rows[left_out],
        weights=vectors.data[left_out].astype(np.float64) ** 2,
        minlength=vectors.shape[0],
    )
    rare.eliminate_zeros()
    return _shared_columns(rare), np.sqrt(rest)


def _shared_columns(matrix):
    """The columns that several rows have; the others bring nobody together."""
    uses = np.bincount(matrix.indices, minlength=matrix.shape[1])
    return matrix[:, np.flatnonzero(uses > 1)]


def _sharing(keys, start, stop, kept):
    """Pairs of a row of a block and an earlier one, and the product of their keys."""
    others = np.concatenate([kept, np.arange(start, stop)])
    shared = keys[start:stop] @ keys[others].T
    late = np.repeat(np.arange(start, stop), np.diff(shared.indptr))
    early = others[shared.indices]
    before = early < late
    return late[before], early[before], shared.data[before]


def _above(late, early, score, threshold):
    high = score >= threshold
    return late[high], early[high], score[high]


def _in_blocks(texts):
    """Lists of texts, as long as a block or shorter."""
    some = []
    for text in texts:
        some.append(text)
        if len(some) == BLOCK:
            yield some
            some = []
    if some:
        yield some


def _noting_numbers(texts, numbers):
    """The texts as they come; a hash of the numbers in each goes into a list."""
    for text in texts:
        numbers.append(digits_of(text))
        yield text
