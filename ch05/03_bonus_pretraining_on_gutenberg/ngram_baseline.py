"""An interpolated n-gram model on the same tokens: what a Transformer has to beat.

Chapter 5, bonus. Kneser-Ney smoothing, the best of the models that only count: the
probability of a token after its n - 1 predecessors is its discounted share there, and
what the discount has freed goes to the model that sees one predecessor less. The lower
models do not count how often a token occurred, but after how many different tokens.

>>> model = KneserNey([0, 1, 2, 0, 1, 2, 0, 1, 3], vocab_size=4, order=2)
>>> probabilities = [model.probability([0, 1, k])[-1] for k in range(4)]
>>> [round(float(p), 3) for p in probabilities], round(float(sum(probabilities)), 6)
([0.158, 0.158, 0.258, 0.425], 1.0)

Sources: Kneser and Ney, "Improved backing-off for m-gram language modeling", 1995; Chen
and Goodman, "An empirical study of smoothing techniques for language modeling", 1998,
for the interpolated form with three discounts for each order, taken from the counts.
"""

from collections.abc import Sequence

import numpy as np

Ids = Sequence[int] | np.ndarray


class KneserNey:
    """Counts of a row of tokens, and the probabilities that follow from them.

    Args:
        ids: the training tokens.
        vocab_size: V; `order` numbers below V have to fit into 62 bits.
        order: n, the longest run that is counted.
    """

    def __init__(self, ids: Ids, vocab_size: int, order: int = 5):
        self.vocab_size, self.order = vocab_size, order
        if vocab_size**order >= 1 << 62:
            raise ValueError(f"{order} ids below {vocab_size} do not fit in 62 bits")
        ids = np.asarray(ids, dtype=np.int64)
        self.tables = []  # one for each order, the shortest first
        runs, counts = np.unique(self._runs(ids, order), return_counts=True)
        for n in range(order, 0, -1):
            self.tables.insert(0, self._table(runs, counts, n))
            # Lower orders count in how many different ways a run is preceded.
            shorter = runs % vocab_size ** (n - 1)
            runs, counts = np.unique(shorter, return_counts=True)

    def _runs(self, ids, n):
        """Each run of n neighbours as one number, in base V."""
        numbers = np.zeros(len(ids) - n + 1, dtype=np.int64)
        for k in range(n):
            numbers = numbers * self.vocab_size + ids[k : len(ids) - n + 1 + k]
        return numbers

    def _table(self, runs, counts, n):
        """What order n needs: the runs, what is left of their counts, and the rest."""
        once, twice, thrice, four = (
            max(int((counts == k).sum()), 1) for k in (1, 2, 3, 4)
        )
        share = once / (once + 2 * twice)
        discounts = np.array(
            [0, 1 - 2 * share * twice / once, 2 - 3 * share * thrice / twice]
            + [3 - 4 * share * four / thrice]
        )
        # Counts of a small text may give none, and then nothing would be freed.
        discounts = np.clip(discounts, [0, 0.1, 0.1, 0.1], [0, 1, 2, 3])
        discount = discounts[np.minimum(counts, 3)]
        contexts, where = np.unique(runs // self.vocab_size, return_inverse=True)
        total = np.bincount(where, weights=counts)
        freed = np.bincount(where, weights=discount) / total  # for the lower order
        return runs, (counts - discount) / total[where], contexts, freed

    def probability(self, ids: Ids) -> np.ndarray:
        """The probability of each token but the first after those before it.

        The first ones have fewer than `order` - 1 before them.
        """
        ids = np.asarray(ids, dtype=np.int64)
        found = np.full(len(ids) - 1, 1 / self.vocab_size)
        for n, (runs, shares, contexts, freed) in enumerate(self.tables, 1):
            if len(ids) < n:
                break
            wanted = self._runs(ids, n)
            # The targets that have n - 1 tokens before them.
            begin = max(n - 2, 0)
            wanted = wanted[1:] if n == 1 else wanted
            share = _looked_up(runs, shares, wanted, missing=0.0)
            rest = _looked_up(contexts, freed, wanted // self.vocab_size, missing=1.0)
            found[begin:] = share + rest * found[begin:]
        return found


def _looked_up(keys, values, wanted, missing):
    """The values of some keys of a sorted row; `missing` for those that it lacks."""
    places = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], missing)


def mean_nats(probabilities: np.ndarray) -> float:
    """The mean loss of a row of probabilities, in nats."""
    return float(-np.log(probabilities).mean())
