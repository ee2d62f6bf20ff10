"""Ways to classify reviews, and what they read (chapter 6, bonus).

Support for `experiments.py` and `train_gpt.py`: nothing here is taught. `ReviewBench`
is chapter 6's bench for reviews: SmolLM2 with its lowest 18 blocks only, run over each
review once in bfloat16, the sentence embedder as well. A way of chapter 6 has
`chances(bench, setting, known, asked, seed)`; two more are here: `SmallGPT`, which
nobody has pretrained, and `WholeModel`, in which all blocks learn, or LoRA in all.

>>> len(draw_labels([0, 1, 1, 0, 1, 0, 0, 1], np.arange(8), 4, seed=1))
4

Shapes: N reviews, T tokens, D width, C classes.
"""

import copy
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from download_prepare_dataset import LABELS
from frozen_features import MeanOfTokens, collate_messages
from gpt import GPTModel, initialise_like_gpt2
from gpt_class_finetune import SpamDataset, add_classification_head
from lora import replace_linear_with_lora
from message_bench import MAX_LENGTH, FeatureBench, LengthBatches
from message_ways import BATCH_SIZE, asked_of, train_quietly
from sentence_embedder import SentenceEmbedder

BLOCKS = 18  # of SmolLM2's 30: those above are cut off, as in chapter 6
SMALL = {
    "vocab_size": 50257,
    "context_length": 512,
    "emb_dim": 64,
    "n_heads": 4,
    "n_layers": 3,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
LORA = {"rank": 8, "alpha": 16}


class ReviewBench(FeatureBench):
    """Reviews in four parts, and what frozen models make of them.

    Args:
        data: a CSV file as of `download_prepare_dataset.py`.
        model: what `load_pretrained` takes.
        cache: the folder for features.
        outside: a CSV file of other reviews with the column `group`.
        embedder: arguments of `SentenceEmbedder`.

    Attributes:
        costs: seconds that a review takes to be read once, by who reads it.
    """

    def __init__(
        self, data: Path, model: str, cache: Path, outside: Path, **embedder: Any
    ):
        super().__init__(data, model, cache, outside, LABELS)
        self.levels = [self.depth - 1]
        self.embedder = embedder
        self.costs: dict[str, float] = {}

    @property
    def depth(self) -> int:
        """How many blocks the model has here."""
        return len(self.base[0].trf_blocks)

    @functools.cached_property
    def base(self) -> tuple[Any, Any]:
        """The model without its upper blocks, with a head of two classes."""
        model, tokenizer = super().base
        model.trf_blocks = model.trf_blocks[:BLOCKS]
        return model, tokenizer

    def pooled(self, place: str) -> np.ndarray:
        """One vector at each height for each review, (N, L + 1, D) float16."""
        with self._measured("frozen"):
            return super().pooled(place)

    def tokens(self, level: int) -> list[tuple[Tensor, int]]:
        """Pairs of features below block `level`, (T, D), and class."""
        with self._measured("frozen"):
            return super().tokens(level)

    @functools.cached_property
    def vectors(self) -> np.ndarray:
        """What the sentence embedder makes of each review, (N, D)."""
        name = f"vectors-{self.sha256[:12]}-{self.outside_sha256[:12]}.npy"
        path = self.folders[0].parent / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            embedder, start = SentenceEmbedder(**self.embedder), time.process_time()
            found = embedder.embed(self.messages["text"].tolist())
            self._note("embedder", time.process_time() - start)
            np.save(path, found)
        return np.load(path)

    def cost(self, reader: str) -> float:
        """Seconds that a review took to be read, written down when it was done."""
        return float((self.folders[0].parent / f"cost-{reader}").read_text("utf-8"))

    def _measured(self, reader):
        return _Measured(self, reader)

    def _note(self, reader, seconds):
        path = self.folders[0].parent / f"cost-{reader}"
        path.write_text(f"{seconds / len(self.messages):.5f}\n", "utf-8")


class _Measured:
    """Half precision meanwhile; the time is noted when features are first made."""

    def __init__(self, bench, reader):
        self.bench, self.reader = bench, reader
        self.half = torch.autocast("cpu", torch.bfloat16)

    def __enter__(self):
        there = [folder.exists() for folder in self.bench.folders]
        self.new = not any(there)
        _ = self.bench.ids if self.new else None  # loading the model is not reading
        self.start = time.process_time()
        self.half.__enter__()

    def __exit__(self, *problem):
        self.half.__exit__(*problem)
        if self.new and problem == (None, None, None):
            self.bench._note(self.reader, time.process_time() - self.start)


def draw_labels(
    targets: Sequence[int], places: np.ndarray, count: int, seed: int
) -> np.ndarray:
    """Places of `count` reviews drawn at random; smaller draws lie in larger ones.

    Raises:
        ValueError: there are not so many.
    """
    if count > len(places):
        raise ValueError(f"{count} labels are asked for, and there are {len(places)}.")
    return np.random.default_rng(seed).permutation(places)[:count]


# --- Ways in which more than the upper blocks learn ----------------------------------


@dataclass(frozen=True)
class SmallGPT:
    """Chapter 4's GPT, small and with random weights, asked at all tokens.

    Attributes:
        settings: pairs of learning rate and passes over the reviews.
        sizes: of the model.
        seeds: how many.
    """

    settings: tuple[tuple[float, int], ...]
    sizes: tuple[tuple[str, Any], ...] = tuple(SMALL.items())
    seeds: int = 3

    def chances(
        self,
        bench: ReviewBench,
        setting: Any,
        known: np.ndarray,
        asked: np.ndarray,
        seed: int,
    ) -> np.ndarray:
        """The logit of positive."""
        model, data = self.start(seed), small_ids(bench.messages["text"], bench.targets)
        return learn_and_ask(model, data, setting, known, asked, seed, bench.epochs)

    def start(self, seed: int) -> Any:
        """The untrained model, with a head of two classes."""
        generator = torch.Generator().manual_seed(seed)
        model = initialise_like_gpt2(GPTModel(dict(self.sizes)), generator)
        return add_classification_head(model, len(LABELS), generator)


@dataclass(frozen=True)
class WholeModel:
    """A pretrained model in which all blocks learn, asked at all tokens.

    Attributes:
        settings: pairs of learning rate and passes over the reviews.
        lora: rank and alpha, beside all matrices of all blocks; None trains the weights
            themselves.
        seeds: how many.
    """

    settings: tuple[tuple[float, int], ...]
    lora: tuple[int, float] | None = None
    seeds: int = 3

    def chances(
        self,
        bench: ReviewBench,
        setting: Any,
        known: np.ndarray,
        asked: np.ndarray,
        seed: int,
    ) -> np.ndarray:
        """The logit of positive."""
        model = self.prepared(copy.deepcopy(bench.base[0]), seed)
        return learn_and_ask(
            model, bench.ids, setting, known, asked, seed, bench.epochs
        )

    def prepared(self, model: Any, seed: int) -> Any:
        """The model with a new head, and what learns set; it changes."""
        generator = torch.Generator().manual_seed(seed)
        add_classification_head(model, len(LABELS), generator)
        model.requires_grad_(True)
        if self.lora is not None:
            rank, alpha = self.lora
            replace_linear_with_lora(
                model, rank, alpha, "trf_blocks.*", generator=generator
            )
            model.out_head.requires_grad_(True)
        return model


@functools.lru_cache(maxsize=1)
def small_tokenizer() -> Any:
    """GPT-2's, which the small GPT reads with."""
    import script_tools

    return script_tools.gpt2_tokenizer()


def small_ids(texts: Any, targets: Any) -> list[tuple[Tensor, int]]:
    """Pairs of GPT-2's ids and class."""
    labels = [LABELS[target] for target in targets]
    frame = pd.DataFrame({"text": list(texts), "label": labels})
    dataset = SpamDataset(frame, small_tokenizer(), MAX_LENGTH, LABELS)
    return [dataset[place] for place in range(len(dataset))]


def learn_and_ask(
    model: Any,
    data: Sequence[tuple[Tensor, int]],
    setting: tuple[float, int],
    known: np.ndarray,
    asked: np.ndarray,
    seed: int,
    epochs: int | None = None,
) -> np.ndarray:
    """Train a classifier on some reviews; the logit of positive for others, (n,).

    Batches hold reviews of about the same length, and matrices are multiplied as
    bfloat16, as in `message_ways.Trained`.
    """
    torch.manual_seed(seed)  # dropout
    learner, items = MeanOfTokens(model), [data[place] for place in known]
    lengths = [len(row) for row, _ in items]
    generator = torch.Generator().manual_seed(seed)
    order = LengthBatches(lengths, BATCH_SIZE, generator)
    loader = DataLoader(items, batch_sampler=order, collate_fn=collate_messages)
    train_quietly(learner, loader, items, setting[0], epochs or setting[1])
    with torch.autocast("cpu", torch.bfloat16):
        return asked_of(learner, [data[place] for place in asked])
