"""Which of many texts are nearly the same: MinHash with bands (chapter 5, bonus).

Two texts are compared by their *shingles*, all runs of five words. The share of shared
ones, their Jaccard similarity, would need all pairs of all texts. MinHash keeps 128
numbers of each text, and the share of equal ones estimates the similarity; cut into
bands, they are keys under which only texts that are probably alike meet.

>>> one = "the lamp was lit and the keeper went up the stairs to look at the sea again"
>>> other = one.replace("again", "once more")
>>> jaccard(shingles(one), shingles(other)), jaccard(shingles(one), shingles("No!"))
(0.8, 0.0)
>>> a, b = minhash(shingles(one)), minhash(shingles(other))
>>> 0.6 < similarity(a, b) < 1, bool(set(band_keys(a)) & set(band_keys(b)))
(True, True)

Left out: a text inside a longer one (an anthology), which Jaccard does not see.

Sources: Broder, "On the resemblance and containment of documents", 1997; Leskovec,
Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3, for the bands; Lee and
others, 2021 (arXiv:2107.06499), for what it does to language models.
"""

import hashlib
import re

import numpy as np

WORDS = 5
NUMBERS = 128  # of a signature
BANDS = 32
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def shingles(text: str, words: int = WORDS) -> np.ndarray:
    """A number for each different run of `words` words, whatever case and marks.

    Returns:
        uint64, sorted, (n,); one number for a shorter text, none without words.
    """
    places: dict[str, int] = {}
    found = re.findall(r"\w+", text.lower())
    numbered = [places.setdefault(word, len(places)) for word in found]
    hashes = np.array([word_hash(word) for word in places], dtype=np.uint64)
    if len(found) == 0:
        return hashes
    hashes = hashes[numbered]  # (words of the text,)
    words = min(words, len(hashes))
    count = len(hashes) - words + 1
    runs = np.zeros(count, dtype=np.uint64)
    for k in range(words):
        runs = mix(runs + hashes[k : k + count])
    return np.unique(runs)


def word_hash(word: str) -> int:
    """A number of 64 bits for a word, the same in every process."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())


def mix(numbers: np.ndarray) -> np.ndarray:
    """Spread 64-bit numbers so that each bit depends on all; overflow is meant."""
    numbers = numbers * _FACTOR
    return numbers ^ (numbers >> np.uint64(29))


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """The exact share of shingles that two texts have in common."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / max(len(one) + len(other) - both, 1)


def minhash(hashes: np.ndarray, numbers: int = NUMBERS) -> np.ndarray:
    """The signature of a set of shingles: its smallest element, in `numbers` orders.

    Each order is another shuffle of all 64-bit numbers. In a shuffle any shingle of two
    texts is equally likely to be the smallest, so both have the same smallest one with
    the probability that it belongs to both: their Jaccard similarity.

    Returns:
        uint32, (numbers,).
    """
    orders = np.random.default_rng(0).integers(1 << 63, size=(2, numbers))
    orders = orders.astype(np.uint64)
    signature = np.full(numbers, 0xFFFFFFFF, dtype=np.uint32)
    if len(hashes) == 0:
        return signature
    for i in range(numbers):
        # An odd factor sends no two numbers to the same one.
        factor = orders[0, i] * np.uint64(2) + np.uint64(1)
        shuffled = mix(hashes * factor + orders[1, i])
        signature[i] = (shuffled >> np.uint64(32)).min()
    return signature


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """The Jaccard similarity that two signatures estimate."""
    return float(np.mean(one == other))


def band_keys(signature: np.ndarray, bands: int = BANDS) -> list[bytes]:
    """A key for each band of a signature; texts with one in common may be alike.

    With r numbers in each of b bands, two texts of similarity s meet with probability
    1 - (1 - s^r)^b.
    """
    rows = signature.reshape(bands, -1)  # (bands, numbers in a band)
    return [bytes([i]) + row.tobytes() for i, row in enumerate(rows)]


def chance_to_meet(s: float, bands: int = BANDS, numbers: int = NUMBERS) -> float:
    """The probability that two texts of similarity `s` share the key of a band."""
    return 1 - (1 - s ** (numbers // bands)) ** bands
