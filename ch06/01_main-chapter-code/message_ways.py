"""Ways to classify messages, each with settings to choose from (chapter 6).

Support for `experiments.py`: nothing here is taught. A way has `settings`, the number
of its `seeds`, and `chances(bench, setting, known, asked, seed)`: it learns from the
messages of a `FeatureBench` at the places `known`, and returns for those at `asked` the
logit of spam, (n,): above 0 it says spam.

>>> heights((8,), (8, 16), strengths=(0.1, 1.0))
(((8,), 0.1), ((8,), 1.0), ((8, 16), 0.1), ((8, 16), 1.0))
"""

import contextlib
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline, make_union
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.utils.data import DataLoader

from frozen_features import (
    MeanOfTokens,
    UpperModel,
    collate_messages,
    freeze_below,
    learning,
)
from gpt_class_finetune import (
    QUESTION,
    add_classification_head,
    calc_loss_batch,
    class_probabilities,
    last_token_logits,
    message_loader,
)
from gpt_train import train_model_simple
from message_bench import FeatureBench, LengthBatches
from message_data import LABELS
from message_form import form_table
from model_config import extras_for
from pretrained import load_pretrained

BATCH_SIZE = 16


class Larger:
    """The larger class of what is known, for every message."""

    settings, seeds = ((),), 1

    def chances(
        self,
        bench: FeatureBench,
        setting: Any,
        known: np.ndarray,
        asked: np.ndarray,
        seed: int,
    ) -> np.ndarray:
        """Plus or minus one."""
        return np.full(len(asked), 1.0 if bench.targets[known].mean() > 0.5 else -1.0)


class Regression:
    """A logistic regression on what `view(bench, setting)` makes of all messages.

    Args:
        view: a function that gives texts or numbers, one row for each message.
        make: a function that takes a setting and gives an untrained model.
        settings: those to choose from.
    """

    seeds = 1

    def __init__(self, view, make, settings=((),)):
        self.view, self.make, self.settings = view, make, settings

    def chances(
        self,
        bench: FeatureBench,
        setting: Any,
        known: np.ndarray,
        asked: np.ndarray,
        seed: int,
    ) -> np.ndarray:
        """Its decision function."""
        rows = self.view(bench, setting)
        model = self.make(setting).fit(rows[known], bench.targets[known])
        return model.decision_function(rows[asked])


class Sum:
    """The logits of others, added up; each has the setting that it has alone."""

    settings, seeds = ((),), 1

    def __init__(self, ways: Mapping[str, Any]):
        self.ways = ways

    def chances(
        self,
        bench: FeatureBench,
        setting: Any,
        known: np.ndarray,
        asked: np.ndarray,
        seed: int,
    ) -> np.ndarray:
        """The sum."""
        return sum(
            way.chances(bench, bench.chosen[name], known, asked, seed)
            for name, way in self.ways.items()
        )


class InWords:
    """SmolLM2 as it is, asked whether a message is spam; it learns nothing.

    Args:
        half: whether matrices are multiplied as bfloat16.
    """

    settings, seeds = ((),), 1

    def __init__(self, half=True):
        self.half = half

    @torch.no_grad()
    def chances(
        self,
        bench: FeatureBench,
        setting: Any,
        known: np.ndarray,
        asked: np.ndarray,
        seed: int,
    ) -> np.ndarray:
        """The logit of Yes minus that of No, as of `ask_in_words`, in batches."""
        model, tokenizer, _ = load_pretrained(bench.model_name)
        head: Any = model.out_head
        model.out_head = torch.nn.Identity()
        rows, (yes, no) = questions(bench.messages["text"].iloc[asked], tokenizer)
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        found = np.zeros(len(rows))
        for start in range(0, len(order), BATCH_SIZE):
            chosen = order[start : start + BATCH_SIZE]
            ids, mask, _ = collate_messages([(rows[place], 0) for place in chosen])
            with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
                last = model(ids, **extras_for(model, attention_mask=mask))
            logits = head(last_token_logits(last.float(), mask))  # (B, V)
            found[chosen] = (logits[:, yes] - logits[:, no]).numpy()
        return found


def questions(texts: Iterable[str], tokenizer: Any) -> tuple[list[Tensor], list[int]]:
    """The ids of `QUESTION` for each text, and those of both answers."""
    asked = [QUESTION.format(text=text) for text in texts]
    if hasattr(tokenizer, "render_chat"):
        chats = ([{"role": "user", "content": one}] for one in asked)
        rows, answers = [tokenizer.render_chat(chat) for chat in chats], ("Yes", "No")
    else:
        rows = [
            tokenizer.encode(f"{one}\n\nAnswer:", disallowed_special=())
            for one in asked
        ]
        answers = (" Yes", " No")
    return [torch.tensor(row) for row in rows], [
        tokenizer.encode(a)[0] for a in answers
    ]


@dataclass(frozen=True)
class Trained:
    """A pretrained model with a new head, trained anew for each seed.

    It differs from the notebook's training in three ways, for a quarter of the time:
    batches hold messages of about the same length, matrices are multiplied as bfloat16,
    and features are kept as float16. What that changes has not been measured.

    Attributes:
        blocks: how many of the upper blocks learn besides norm and head.
        settings: pairs of learning rate and passes over the messages.
        kept: how many blocks the model has; those above are cut off. None for all.
        first: whether it sees nothing but the first token.
        mean: whether it is asked at all tokens, and not at the last.
        seeds: how many.
    """

    blocks: int
    settings: tuple[tuple[float, int], ...]
    kept: int | None = None
    first: bool = False
    mean: bool = False
    seeds: int = 3

    def chances(
        self,
        bench: FeatureBench,
        setting: Any,
        known: np.ndarray,
        asked: np.ndarray,
        seed: int,
    ) -> np.ndarray:
        """The logit of spam, of a model that was trained on what is known."""
        (rate, epochs), (model, data) = setting, self.start(bench)
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        add_classification_head(model, len(LABELS), generator)
        blocks = self.learning_blocks(len(model.trf_blocks))
        freeze_below(model, blocks)
        learner = UpperModel(model, blocks)
        learner = MeanOfTokens(learner) if self.mean else learner
        before = [one.detach().clone() for one in learning(model)]
        items = [data[place] for place in known]
        lengths = [len(row) for row, _ in items]
        batches = LengthBatches(lengths, BATCH_SIZE, generator)
        loader = DataLoader(items, batch_sampler=batches, collate_fn=collate_messages)
        train_quietly(learner, loader, items, rate, bench.epochs or epochs)
        with torch.autocast("cpu", torch.bfloat16):
            found = asked_of(learner, [data[place] for place in asked])
        with torch.no_grad():  # the next training starts from the base model again
            for parameter, weights in zip(learning(model), before):
                parameter.copy_(weights)
        return found

    def learning_blocks(self, depth: int) -> int:
        """How many blocks learn in a model of so many; the lowest never does."""
        return min(self.blocks, depth - 1)

    def start(self, bench: FeatureBench) -> tuple[Any, list]:
        """The model before training, cut, and what it reads of each message."""
        model = bench.cut(self.kept)
        depth = len(model.trf_blocks)
        data = bench.tokens(depth - self.learning_blocks(depth))
        if self.first:
            data = [(row[:1], target) for row, target in data]
        return model, data


def half_loss(*batch: Any) -> Tensor:
    """`calc_loss_batch` with matrices multiplied as bfloat16.

    Within one `autocast` the weights are cast once: around more than one update it
    would go on with the old ones.
    """
    with torch.autocast("cpu", torch.bfloat16):
        return calc_loss_batch(*batch)


def quiet() -> contextlib.AbstractContextManager:
    """What the training loop prints after each evaluation is not needed here."""
    return contextlib.redirect_stdout(io.StringIO())


def train_quietly(
    learner: torch.nn.Module,
    loader: DataLoader,
    items: list,
    rate: float,
    epochs: int,
    loss: Callable[..., torch.Tensor] = half_loss,
) -> None:
    """Chapter 5's loop with AdamW on what learns, and one look at the first item."""
    with quiet():
        train_model_simple(
            learner,
            loader,
            [collate_messages(items[:1])],
            torch.optim.AdamW(learning(learner), lr=rate, weight_decay=0.1),
            "cpu",
            num_epochs=epochs,
            eval_freq=10**9,
            eval_iter=1,
            start_context=None,
            tokenizer=None,
            loss=loss,
        )


def asked_of(model: torch.nn.Module, items: list) -> np.ndarray:
    """The logit of spam for each item, (n,); messages of a length are run together."""
    order = sorted(range(len(items)), key=lambda place: len(items[place][0]))
    loader = message_loader([items[place] for place in order], 2 * BATCH_SIZE)
    shares, _ = class_probabilities(loader, model, "cpu")
    found = np.zeros(len(items))
    found[order] = torch.logit(shares[:, 1].double(), eps=1e-9).numpy()
    return found


# --- Their settings ------------------------------------------------------------------


def texts(bench: FeatureBench, setting: Any) -> np.ndarray:
    """The messages themselves."""
    return bench.messages["text"].to_numpy()


def marks(bench: FeatureBench, setting: Any) -> np.ndarray:
    """Marks of form, none of which reads a word."""
    return form_table(bench.messages["text"])


def word_regression(setting: Any) -> Pipeline:
    """On counts of words, with scikit-learn's defaults."""
    return make_pipeline(CountVectorizer(), LogisticRegression(max_iter=1000))


def letter_regression(setting: Any) -> Pipeline:
    """On words, pairs of words and runs of two to five letters, weighed by TF-IDF."""
    both = make_union(
        TfidfVectorizer(ngram_range=(1, 2)),
        TfidfVectorizer(analyzer="char", ngram_range=(2, 5)),
    )
    return make_pipeline(both, LogisticRegression(C=setting[0], max_iter=2000))


def scaled_regression(setting: Any) -> Pipeline:
    """On numbers that are brought to the same scale first; `setting` ends with C."""
    strength = LogisticRegression(C=setting[-1] if setting else 1.0, max_iter=2000)
    return make_pipeline(StandardScaler(), strength)


def pooled(place: str) -> Callable[[FeatureBench, Any], np.ndarray]:
    """A view of the frozen model: one vector at each height of the setting."""

    def view(bench, setting):
        return bench.heights(place, setting[0])

    return view


def heights(*sets: tuple[int, ...], strengths: Iterable[float]) -> tuple:
    """Settings of a frozen row: heights to read, and how strong weights may get."""
    return tuple((levels, strength) for levels in sets for strength in strengths)
